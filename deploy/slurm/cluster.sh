#!/usr/bin/env bash
# A real Slurm cluster of four virtual nodes, n0 to n3, on this machine: what the job scripts are tried on.
#
#   cluster.sh install        slurm-wlm and munge, from Debian or Ubuntu; nothing else here installs anything
#   cluster.sh up [DIR]       start what does not run; everything lives in DIR (/tmp/thanos-slurm)
#   cluster.sh status [DIR]
#   cluster.sh down [DIR]     cancel all jobs, end all daemons, remove DIR
#
# Jobs in the partition "urgent" preempt those in "main", which have a minute of grace. A node fails for Slurm half a
# minute after `kill -9 $(cat DIR/n2.pid)`, which leaves its tasks alone, and is back after `up`.
set -euo pipefail

nodes=(n0 n1 n2 n3)
verb=${1:-}
dir=$(realpath -m "${2:-/tmp/thanos-slurm}")
export SLURM_CONF=$dir/slurm.conf

configure() {
    mkdir -p "$dir"/{state,log}
    [[ -s $dir/munge.key ]] || (umask 077 && head -c 128 /dev/urandom >"$dir/munge.key")
    # CPUs and memory are what the scheduler believes: the nodes share this machine.
    cat >"$SLURM_CONF" <<CONF
ClusterName=thanos
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=16817
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
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SlurmdTimeout=30
ReturnToService=2
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
NodeName=n[0-3] NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=[16820-16823] CPUs=8 RealMemory=4000
PartitionName=main Nodes=ALL Default=YES PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=ALL PriorityTier=2
CONF
}

# The process of a daemon, if it runs: its pid file may be older than the machine.
pid_of() {
    local pid
    pid=$(cat "$dir/$1.pid" 2>/dev/null) && [[ $(cat "/proc/$pid/comm" 2>/dev/null) == "$2" ]] && echo "$pid"
}

up() {
    configure
    pid_of munged munged >/dev/null || munged --key-file="$dir/munge.key" --socket="$dir/munge.socket" \
        --pid-file="$dir/munged.pid" --log-file="$dir/log/munged.log" --seed-file="$dir/munge.seed"
    pid_of slurmctld slurmctld >/dev/null || slurmctld -f "$SLURM_CONF"
    for node in "${nodes[@]}"; do
        pid_of "$node" slurmd >/dev/null || slurmd -N "$node" -f "$SLURM_CONF"
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
*) echo "usage: $0 install | up [DIR] | status [DIR] | down [DIR]" >&2 && exit 64 ;;
esac
