#!/usr/bin/env bash
# A real Slurm cluster of four virtual nodes, n0 to n3, on this machine: what the job scripts are tried on.
#
#   cluster.sh install             slurm-wlm and munge, from Debian or Ubuntu; nothing else here installs anything
#   cluster.sh up [DIR] [OPTION]   start what does not run; everything lives in DIR (/tmp/thanos-slurm)
#       --gpus 4,4,2,4             GPUs of each node: links to /dev/zero, which Slurm counts and allocates like devices
#       --preempt user             a preempted job gets its own --signal (preempt_send_user_signal), as `sbatch` asked;
#       --preempt default          Slurm's default: the tasks get SIGTERM at once, the batch script nothing
#   cluster.sh status [DIR]
#   cluster.sh down [DIR]          cancel all jobs, end all daemons, remove DIR
#
# Jobs in the partition "urgent" preempt those in "main", which have a minute of grace. The partition "hidden" is not
# shown to ordinary users. A node fails for Slurm half a minute after `kill -9 $(cat DIR/n2.pid)`, which leaves its tasks
# alone, and is back after `up`.
set -euo pipefail

nodes=(n0 n1 n2 n3)
verb=${1:-}
gpus=(0 0 0 0)
preempt=user
[[ $# -gt 0 ]] && shift
[[ ${1:-} != --* && -n ${1:-} ]] && dir=$1 && shift
dir=$(realpath -m "${dir:-/tmp/thanos-slurm}")
while [[ $# -gt 0 ]]; do
    case $1 in
    --gpus) IFS=, read -r -a gpus <<<"${2:?numbers}" && shift 2 ;;
    --preempt) preempt=${2:?user or default} && shift 2 ;;
    *) echo "unknown option $1" >&2 && exit 64 ;;
    esac
done
export SLURM_CONF=$dir/slurm.conf

# The controller's port; the nodes have the next ones. Another cluster may run on this machine.
port() {
    local base offset
    if [[ -s $SLURM_CONF ]]; then
        sed -n 's/^SlurmctldPort=//p' "$SLURM_CONF"
        return
    fi
    for base in {16800..16990..10}; do
        for offset in 0 1 2 3 4; do
            if (exec 3<>"/dev/tcp/127.0.0.1/$((base + offset))") 2>/dev/null; then continue 2; fi
        done
        echo "$base" && return
    done
    echo "no free ports" >&2 && return 69
}

configure() {
    mkdir -p "$dir"/{state,log}
    [[ -s $dir/munge.key ]] || (umask 077 && head -c 128 /dev/urandom >"$dir/munge.key")
    fake_gpus
    port=$(port)
    # CPUs, memory and GPUs are what the scheduler believes: the nodes share this machine.
    cat >"$SLURM_CONF" <<CONF
ClusterName=thanos
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=$port
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
AuthInfo=socket=$dir/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/%n
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/%n.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/%n.log
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=1000
GresTypes=gpu
SlurmdParameters=config_overrides
SlurmdTimeout=30
ReturnToService=2
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
$([[ $preempt == user ]] && echo SlurmctldParameters=preempt_send_user_signal)
$(node_lines)
PartitionName=main Nodes=ALL Default=YES PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=ALL PriorityTier=2
PartitionName=hidden Nodes=ALL Hidden=YES
CONF
}

node_lines() {
    local index
    for index in "${!nodes[@]}"; do
        echo "NodeName=${nodes[index]} NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=$((port + 1 + index))" \
            "CPUs=8 RealMemory=64000$([[ ${gpus[index]} == 0 ]] || echo " Gres=gpu:${gpus[index]}")"
    done
}

fake_gpus() {
    local index gpu
    : >"$dir/gres.conf"
    for index in "${!nodes[@]}"; do
        for ((gpu = 0; gpu < gpus[index]; gpu++)); do
            ln -sf /dev/zero "$dir/${nodes[index]}.gpu$gpu"
            echo "NodeName=${nodes[index]} Name=gpu File=$dir/${nodes[index]}.gpu$gpu" >>"$dir/gres.conf"
        done
    done
}

# The process of a daemon, if it runs: its pid file may be older than the machine.
pid_of() {
    local pid
    pid=$(cat "$dir/$1.pid" 2>/dev/null) && [[ $(cat "/proc/$pid/comm" 2>/dev/null) == "$2" ]] && echo "$pid"
}

up() {
    # Another cluster that started now would find the same ports free. The daemons do not keep the lock.
    exec 9>"${TMPDIR:-/tmp}/thanos-slurm-$(id -u).lock"
    flock 9
    configure
    pid_of munged munged >/dev/null || munged --key-file="$dir/munge.key" --socket="$dir/munge.socket" \
        --pid-file="$dir/munged.pid" --log-file="$dir/log/munged.log" --seed-file="$dir/munge.seed" 9>&-
    pid_of slurmctld slurmctld >/dev/null || slurmctld -f "$SLURM_CONF" 9>&-
    for node in "${nodes[@]}"; do
        pid_of "$node" slurmd >/dev/null || slurmd -N "$node" -f "$SLURM_CONF" 9>&-
    done
    for _ in {1..60}; do
        if silent=$(sinfo -h -N -p main -t down,unknown,no_respond 2>/dev/null) && [[ -z $silent ]]; then
            echo "up; export SLURM_CONF=$SLURM_CONF"
            return
        fi
        sleep 1
    done
    echo "not all nodes came up: see $dir/log" >&2
    exit 69
}

# Sessions of the daemons and of all steps of jobs: each has its own, and all of Slurm's work in the log folder.
sessions() {
    local process
    for process in /proc/[0-9]*; do
        if [[ $(readlink "$process/cwd") == "$dir/log" && $(cat "$process/comm") == slurm* ]]; then
            ps -o sid= -p "${process#/proc/}" || true
        fi
    done 2>/dev/null | sort -u
}

down() {
    [[ -d $dir ]] || return 0
    local session pid
    for session in $(sessions); do pkill -KILL --session "$session" || true; done
    if pid=$(pid_of munged munged); then kill -KILL "$pid"; fi
    rm -rf "$dir"
}

case $verb in
install) apt-get update -q && apt-get install -q -y --no-install-recommends slurm-wlm munge ;;
up) up ;;
status) sinfo --Node --long && squeue ;;
down) down ;;
*) echo "usage: $0 install | up [DIR] [OPTION]... | status [DIR] | down [DIR]" >&2 && exit 64 ;;
esac
