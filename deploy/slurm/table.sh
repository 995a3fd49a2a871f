#!/bin/bash
# Submits the result table of a data set, once and from here: three backbones, each a task of an array, and then, in a job that
# waits for them, the probes over all three. `sbatch` is not needed on the nodes, which some sites forbid.
#
#   bash deploy/slurm/table.sh [OPTION OF SBATCH]... -- [OPTION OF THANOS-COORD]... DATA_SET [KEY=VALUE]...
#   bash deploy/slurm/table.sh --account=lab --partition=gpu --nodes=2 --gpus-per-node=8 --cpus-per-gpu=8 \
#       -- cifar10 data.dir=/data/cifar10
#
# All jobs get all options of sbatch. The runs are in RUNS, which is runs/table-DATE unless it is set.
set -euo pipefail
options=()
while [[ $# -gt 0 && $1 != -- ]]; do
    options+=("$1") && shift
done
if [[ $# -lt 2 ]]; then
    sed -n '5,8s/^# \{0,2\}//p' "$0" >&2
    exit 64
fi
shift
runs=${RUNS:-runs/table-$(date +%Y%m%d-%H%M%S)}
script=$(dirname "$0")/table.sbatch
backbones=$(sbatch --parsable "${options[@]}" --array=0-2 "$script" "$runs" "$@")
# The number may be followed by the name of a cluster.
if ! table=$(sbatch --parsable "${options[@]}" --array=3 --dependency="afterok:${backbones%%;*}" \
    --kill-on-invalid-dep=yes "$script" "$runs" "$@"); then
    scancel "${backbones%%;*}"
    echo "the job of the table was refused: the backbones are cancelled" >&2
    exit 69
fi
echo "submitted the backbones as array ${backbones%%;*} and the table as job ${table%%;*}; the runs are in $runs"
