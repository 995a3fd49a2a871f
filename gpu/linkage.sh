#!/usr/bin/env bash
# `make check-cuda`: what the dynamic linker will look for, read from the programs; needs no GPU.
#
#   gpu/linkage.sh SITE CPU_WORKER PROGRAM...
#
# Each PROGRAM, built with the feature `cuda`, needs libtorch_cuda.so (a linker drops a library that nothing refers to,
# and then the program sees no GPU), finds it and libc10_cuda.so in SITE, and names its folders in RPATH: RUNPATH would
# let LD_LIBRARY_PATH take precedence. CPU_WORKER, if it exists, needs no library of CUDA's.
set -euo pipefail

site=$1 cpu_worker=$2
shift 2

fail() {
    echo "$1" >&2
    exit 1
}

needs() {
    grep -q "NEEDED.*\[$2\]" <<<"$(readelf --dynamic --wide "$1")"
}

check_cuda_program() {
    local program=$1 library found
    needs "$program" libtorch_cuda.so || fail "$program does not need libtorch_cuda.so"
    grep -q "(RPATH).*\$ORIGIN/.*$site/torch/lib" <<<"$(readelf --dynamic --wide "$program")" ||
        fail "$program has no RPATH with \$ORIGIN/... and $site/torch/lib"
    # In a variable: in a pipe `grep -q` would end ldd early, which pipefail reports.
    found=$(ldd "$program")
    for library in libtorch_cuda.so libc10_cuda.so libnccl.so.2; do
        grep -q "$library => $site/" <<<"$found" || fail "$program does not find $library in $site"
    done
    ! grep 'not found' <<<"$found" || fail "$program does not find all its libraries"
    echo "$program: libtorch_cuda is needed and found"
}

for program in "$@"; do
    check_cuda_program "$program"
done
if [ -x "$cpu_worker" ]; then
    for library in libtorch_cuda.so libc10_cuda.so; do
        ! needs "$cpu_worker" "$library" || fail "$cpu_worker needs $library"
    done
    echo "$cpu_worker: needs no library of CUDA's"
fi
