#!/usr/bin/env bash
# `make gpu-bundle`: all that gpu/run.sh needs on a machine with PyTorch, a GPU and no network, in one folder.
#
#   gpu/bundle.sh FOLDER CPU_RELEASE CUDA_RELEASE CUDA_TESTS
#
# CPU_RELEASE and CUDA_RELEASE are cargo's folders of programs. Programs are stripped. The CPU's worker runs there as
# well, with PyTorch's libraries: libtorch_cpu is the same in both builds of libtorch.
set -euo pipefail
cd "$(dirname "$0")/.."

MAX_MEGABYTES=60
folder=$1 cpu=$2 cuda=$3 tests=$4

rm -rf "$folder"
mkdir -p "$folder/bin/deps" "$folder/gpu" "$folder/benches" "$folder/tests"
strip -o "$folder/bin/thanos-coord" "$cpu/thanos-coord"
strip -o "$folder/bin/thanos-worker" "$cpu/thanos-worker"
strip -o "$folder/bin/thanos-worker-cuda" "$cuda/thanos-worker"
strip -o "$folder/bin/deps/thanos-tests" "$tests"
cp gpu/run.sh gpu/*.py gpu/README.md "$folder/gpu/"
find benches -maxdepth 1 -name 'peer*.py' -exec cp -t "$folder/benches/" {} +
cp -r tests/parity "$folder/tests/"
git describe --always --dirty --abbrev=40 >"$folder/COMMIT"

size=$(($(du -sk "$folder" | cut -f1) / 1024))
if [ "$size" -gt "$MAX_MEGABYTES" ]; then
    echo "$folder has $size MB, more than $MAX_MEGABYTES" >&2
    exit 1
fi
echo "$folder: $size MB, commit $(cat "$folder/COMMIT"); there: gpu/run.sh"
