#!/usr/bin/env bash
# Everything that half an hour on a machine with one GPU must show, a verdict a line:
#
#   gpu/run.sh [--device cuda|cpu] [--short] [--only SECTION[,SECTION]] [--out DIR] [--bin DIR] [--tests PROGRAM]
#              [--limit SECONDS]
#
# It needs PyTorch in python3 (PYTHON=... names another), no network, and either the folder that `make gpu-bundle` makes
# or the repository after `make build` (for a GPU: after `make cuda`). A command of at most ten minutes each:
#
#   gpu/run.sh --only ceilings,digits,parity,views,losses,resume,gloo,nccl,cifar    at most 585 s
#   gpu/run.sh --only bench-128,bench-512                                           at most 570 s
#   gpu/run.sh --only bench-2048                                                    at most 300 s
#
# in total at most 1,455 s. Reports of several calls into the same --out DIR (default: runs/gpu) are one report:
# DIR/report.md, DIR/bench.jsonl, and all output of a section in DIR/SECTION.log. A failed section does not stop the
# next one; the exit code is 0 only if none failed. --device cpu rehearses it without a GPU, --short with fewer steps;
# --limit lowers the time limit of every section; --bin and --tests name other programs than those found.
set -u

# Time limits in seconds, in the order in which the sections run.
SECTIONS=(ceilings:60 digits:45 parity:60 views:30 losses:60 resume:60 gloo:90 nccl:120 cifar:60
    bench-128:285 bench-512:285 bench-2048:300)
# A section's exit code when it does not apply on this device.
SKIPPED=77
USAGE_ERROR=64

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ROOT=$(dirname "$HERE")
PYTHON=${PYTHON:-python3}

device=cuda short='' only='' out=runs/gpu programs='' tests='' limit=''

usage() {
    echo "$1; see the first lines of $0" >&2
    exit "$USAGE_ERROR"
}

parse_arguments() {
    while [ $# -gt 0 ]; do
        case $1 in
            --short) short=--short; shift; continue ;;
            --device | --only | --out | --bin | --tests | --limit) [ $# -ge 2 ] || usage "$1 needs a value" ;;
            *) usage "unknown argument $1" ;;
        esac
        case $1 in
            --device) device=$2 ;;
            --only) only=$2 ;;
            --out) out=$2 ;;
            --bin) programs=$2 ;;
            --tests) tests=$2 ;;
            --limit) limit=$2 ;;
        esac
        shift 2
    done
    case $device in cuda | cpu) ;; *) usage "--device is cuda or cpu, not $device" ;; esac
    case $limit in *[!0-9]*) usage "--limit is a number of seconds, not $limit" ;; esac
    check_section_names
}

check_section_names() {
    local name known
    known=" $(printf '%s\n' "${SECTIONS[@]}" | cut -d: -f1 | tr '\n' ' ')"
    for name in ${only//,/ }; do
        case $known in *" $name "*) ;; *) usage "unknown section $name; they are:$known" ;; esac
    done
}

# In the bundle bin/ has both programs, and the tests in deps/, as cargo puts them.
find_programs() {
    local release=${CARGO_TARGET_DIR:-$ROOT/target}/release
    if [ -z "$programs" ]; then
        programs=$release
        [ -x "$ROOT/bin/thanos-coord" ] && programs=$ROOT/bin
    fi
    if [ -z "$tests" ]; then
        tests=$programs/deps/thanos-tests
        [ -x "$tests" ] || tests=$(newest_tests)
    fi
}

newest_tests() {
    find "$programs/deps" -name 'thanos-*' ! -name '*.*' -type f -executable -printf '%T@ %p\n' 2>/dev/null |
        sort -n | tail -n 1 | cut -d' ' -f2
}

# The libraries that the programs were linked with are looked for first; where they do not exist, PyTorch's are.
set_environment() {
    local torch
    torch=$("$PYTHON" -c 'from importlib.util import find_spec as f; print(*f("torch").submodule_search_locations)' \
        2>/dev/null) && export LD_LIBRARY_PATH="$torch/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
    export PYTHONUNBUFFERED=1 THANOS_PARITY="$ROOT/tests/parity" THANOS_PACKS="$work/packs"
    export TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-${TMPDIR:-/tmp}/thanos-gpu-inductor}
    export THANOS_DEVICE=cpu
    if [ "$device" = cuda ]; then
        THANOS_DEVICE=cuda:0
    else
        export CUDA_VISIBLE_DEVICES=
    fi
    export THANOS_TEST_DEVICE=$THANOS_DEVICE
}

# Replaces itself by a section's program, whose last line `figures: ...` goes into the verdict.
section() {
    local common=(--coord "$programs/thanos-coord" --device "$device" --work "$work/$1")
    [ -n "$short" ] && common+=("$short")
    case $1 in
        ceilings) exec "$PYTHON" "$HERE/ceilings.py" --device "$device" ${short:+"$short"} ;;
        parity) strict_float32; exec "$PYTHON" "$HERE/rust_tests.py" "$tests" parity_checks:: test_device:: fused_on_device:: ;;
        views) strict_float32; exec "$PYTHON" "$HERE/rust_tests.py" "$tests" device_views:: ;;
        losses) strict_float32; exec "$PYTHON" "$HERE/train.py" losses "${common[@]}" ;;
        bench-*)
            exec "$PYTHON" "$HERE/bench.py" "${1#bench-}" "${common[@]}" --out "$out/bench.jsonl" \
                --seconds "$(($2 - 5))" --peer "$ROOT/benches/peer.py"
            ;;
        *) exec "$PYTHON" "$HERE/train.py" "$1" "${common[@]}" ;;
    esac
}

# cuBLAS and cuDNN compute float32 in float32, whatever a program asks for.
strict_float32() {
    export NVIDIA_TF32_OVERRIDE=0
}

# Prints and records one verdict. `timeout` ends the section's whole process group.
run_section() {
    local name=$1 seconds=$2 log=$out/$1.log started code verdict figures
    [ -n "$limit" ] && [ "$limit" -lt "$seconds" ] && seconds=$limit
    started=$(date +%s)
    # The variables of this shell that the section needs in a process of its own.
    THANOS_GPU_SECTION=$name THANOS_GPU_SECONDS=$seconds THANOS_GPU_WORK=$work \
        timeout --kill-after=5 "$seconds" "$BASH" "${BASH_SOURCE[0]}" "${arguments[@]}" >"$log" 2>&1 </dev/null
    code=$?
    local took=$(($(date +%s) - started))
    case $code in
        0) verdict=PASS ;;
        "$SKIPPED") verdict=SKIP ;;
        124 | 137) if [ "$took" -ge "$seconds" ]; then verdict=TIMEOUT; else verdict=FAIL; fi ;;
        *) verdict=FAIL ;;
    esac
    figures=$(sed -n 's/^figures: //p' "$log" | tail -n 1)
    [ -n "$figures" ] || figures="exit code $code: $(grep -v '^[[:space:]]*$' "$log" | tail -n 1 | cut -c1-200)"
    printf '%-7s %-10s %4d s  %s\n' "$verdict" "$name" "$took" "$figures"
    record "$name" "$verdict" "$took" "$figures"
    write_report
    case $verdict in FAIL | TIMEOUT) failed=1 ;; esac
}

# The last verdict of each section, also over several calls.
record() {
    local table=$out/verdicts.tsv
    touch "$table"
    { grep -v "^$1	" "$table"; printf '%s\t%s\t%s\t%s\n' "$@"; } >"$table.new"
    mv "$table.new" "$table"
}

# After every section: a call that is cut off has reported what it finished.
write_report() {
    local names
    names=$(printf '%s\n' "${SECTIONS[@]}" | cut -d: -f1 | paste -sd,)
    "$PYTHON" "$HERE/report.py" --out "$out" --sections "$names" --device "$device" ${short:+"$short"} || failed=1
}

run_sections() {
    local entry name
    for entry in "${SECTIONS[@]}"; do
        name=${entry%:*}
        [ -z "$only" ] && run_section "$name" "${entry#*:}"
        case ,$only, in *,"$name",*) run_section "$name" "${entry#*:}" ;; esac
    done
}

main() {
    arguments=("$@")
    parse_arguments "$@"
    find_programs
    if [ -n "${THANOS_GPU_SECTION:-}" ]; then
        work=$THANOS_GPU_WORK
        set_environment
        section "$THANOS_GPU_SECTION" "$THANOS_GPU_SECONDS"
    fi
    mkdir -p "$out" || exit 1
    work=$(mktemp -d) || exit 1
    trap 'rm -rf "$work"' EXIT
    failed=0
    run_sections
    exit "$failed"
}

main "$@"
