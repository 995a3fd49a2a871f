#!/bin/sh
# One container of a pod, without a container runtime: a root of its own over this machine's, read-only, with the pod's
# volumes, hosts file and user, in a network namespace that exists. Its program is process 1 of a PID namespace, as in a
# container; when the process that this script is started as ends, the kernel kills all of them.
#   pod.sh NAME FOLDER HOSTS BIN LIBTORCH VOLUME=FOLDER... -- VARIABLE=VALUE... PROGRAM ARGUMENT...
set -eu
if [ -z "${IN_POD:-}" ]; then
    IN_POD=yes exec ip netns exec "thanos-$1" unshare --mount --uts --pid --fork --kill-child sh "$0" "$@"
fi
hostname "$1"
folder=$2 hosts=$3 bin=$4 libtorch=$5
shift 5
# A pod of an earlier attempt has left its own.
rm -rf "$folder"
mkdir -p "$folder/upper" "$folder/work" "$folder/root"
root=$folder/root
mount -t overlay -o "lowerdir=/,upperdir=$folder/upper,workdir=$folder/work" overlay "$root"
cp "$hosts" "$root/etc/hosts"
mkdir -p "$root/app"
mount --bind "$bin" "$root/app"
# Where the programs look for libtorch; the image has it elsewhere. Its own folders may be closed to other users.
mkdir -p "$root$libtorch"
mount --bind "$libtorch" "$root$libtorch"
way=$libtorch
while [ "$way" != / ]; do
    way=$(dirname "$way")
    chmod a+x "$root$way"
done
while [ "$1" != -- ]; do
    mkdir -p "$root/${1%%=*}"
    mount --bind "${1#*=}" "$root/${1%%=*}"
    shift
done
shift
mount -t tmpfs tmpfs "$root/tmp"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -o remount,ro "$root"
exec chroot --userspec=10001:10001 "$root" env -i PATH=/app:/usr/bin:/bin "$@"
