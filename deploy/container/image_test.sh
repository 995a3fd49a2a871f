#!/usr/bin/env bash
# Trains in a built image as a cluster would run it: as the image's own user, with a root that cannot be written, no
# capabilities, and nothing writable but /tmp. Needs buildah, unshare and setpriv, and root for the namespaces; no daemon.
#   deploy/container/image_test.sh IMAGE
set -euo pipefail
image=${1:?IMAGE}
container=$(buildah from "$image")
trap 'buildah umount "$container" >/dev/null; buildah rm "$container" >/dev/null' EXIT
root=$(buildah mount "$container")

echo "size of $image: $(buildah images --format '{{.Size}}' "$image")"
for licence in LICENSE libtorch crates; do
    test -e "$root/usr/local/share/doc/thanos-trainer/$licence"
done
find "$root/usr/local/share/doc/thanos-trainer/libtorch" -path '*torch-*' -name NOTICE | grep -q .

# The command runs in namespaces of its own: mounts, processes, network.
inside() {
    # shellcheck disable=SC2016 # It is expanded in there.
    unshare --mount --pid --fork --net --propagation private bash -euc '
        root=$1; shift
        mount --bind "$root" "$root"
        mount -t tmpfs -o mode=1777,size=1g tmpfs "$root/tmp"
        mount -t proc proc "$root/proc"
        mount -t tmpfs -o mode=1777,size=1g tmpfs "$root/dev" && mkdir "$root/dev/shm" && chmod 1777 "$root/dev/shm"
        for device in null zero random urandom; do touch "$root/dev/$device"; mount --bind "/dev/$device" "$root/dev/$device"; done
        mount -o remount,bind,ro "$root"
        ip link set lo up 2>/dev/null || true
        exec chroot "$root" /usr/bin/env -i PATH=/usr/local/bin:/usr/bin:/bin HOME=/tmp OMP_NUM_THREADS=1 \
            setpriv --reuid 10001 --regid 10001 --clear-groups --no-new-privs --inh-caps=-all --bounding-set=-all "$@"
    ' inside "$root" "$@"
}

# Not by trying: its user may not write there in any case.
inside grep -q '^[^ ]* / [^ ]* ro[, ]' /proc/self/mounts
inside thanos-coord launch --nodes 2 --threads-per-worker 1 --run-dir /tmp/run --packs-dir /tmp/packs digits_supcon train.max_steps=30
echo 'trained the digits: as user 10001, on a read-only root'
