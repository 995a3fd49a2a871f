//! A run inside a Slurm allocation: which nodes it has and how they are reached, the `srun` that starts a worker there, and
//! a job that is queued again when it was stopped before its end. Slurm's own programs are asked, as its libraries are
//! of one version each.

use crate::exit::{EXIT_UNREACHABLE, EXIT_USAGE, Fatal};
use crate::terminal;
use nix::ifaddrs::getifaddrs;
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Command, Stdio};
use thanos_door::address_towards;

/// What this program is part of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Allocation {
    /// Its nodes, each once.
    pub(crate) nodes: Vec<Node>,
    /// A worker a GPU of this node, or a task where there are none.
    pub(crate) workers_per_node: usize,
    /// Cores that are the job's on the node that has the fewest.
    pub(crate) cores: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) name: String,
    /// As Slurm reaches it: an address, or a name.
    pub(crate) address: String,
}

impl Allocation {
    /// The allocation that this process runs in.
    ///
    /// # Errors
    /// 64 outside of one; 69 if Slurm does not answer.
    pub(crate) fn of_this_job() -> Result<Self, Fatal> {
        let Some(list) = variable("SLURM_JOB_NODELIST") else {
            let message = "--launcher srun runs inside a Slurm allocation (SLURM_JOB_NODELIST is not set): \
                           sbatch deploy/slurm/train.sbatch, or salloc";
            return Err(Fatal::new(EXIT_USAGE, message));
        };
        let told = ask("sinfo", &["--noheader", "--Node", "--nodes", &list, "--format", "%N %o"])?;
        let nodes = nodes(&told);
        if nodes.is_empty() {
            return Err(Fatal::new(EXIT_UNREACHABLE, format!("sinfo knows no node of {list}")));
        }
        let number = |name: &str| variable(name).and_then(|text| fewest(&text));
        let workers_per_node = number("SLURM_GPUS_ON_NODE").or_else(|| number("SLURM_NTASKS_PER_NODE")).unwrap_or(1);
        let cores = number("SLURM_JOB_CPUS_PER_NODE").unwrap_or(1);
        Ok(Self { nodes, workers_per_node: workers_per_node.max(1), cores })
    }

    /// The address under which the other nodes reach this one: of an interface, or from which they are reached.
    ///
    /// # Errors
    /// 69 if there is none.
    pub(crate) fn own_address(&self, interface: Option<&str>) -> Result<IpAddr, Fatal> {
        match interface {
            Some(name) => address_of(name),
            None => match self.nodes.iter().find(|node| Some(&node.name) != variable("SLURMD_NODENAME").as_ref()) {
                Some(other) => address_towards((other.address.as_str(), 1))
                    .map_err(|error| Fatal::new(EXIT_UNREACHABLE, format!("node {}: {error}", other.name))),
                None => Ok(Ipv4Addr::LOCALHOST.into()),
            },
        }
    }
}

/// Starts a program on a node, in a step of its own, so that one that ends can be started again. It sees all that the job
/// has there: the worker takes the GPU of its place.
pub(crate) fn srun(node: &str) -> Command {
    let mut command = Command::new("srun");
    command
        .args(["--nodes=1", "--ntasks=1", "--nodelist", node])
        // Steps of the same node share what the job has; one that fails does not end another.
        .args(["--overlap", "--kill-on-bad-exit=0", "--cpu-bind=none", "--mpi=none", "--unbuffered"])
        .stdin(Stdio::null());
    command
}

/// Queues this job again, if it is one that may be and Slurm has not done so.
pub(crate) fn requeue() {
    // The number of an array's last task alone would be that of the whole array.
    let task = variable("SLURM_ARRAY_JOB_ID").zip(variable("SLURM_ARRAY_TASK_ID"));
    let Some(job) = task.map(|(array, task)| format!("{array}_{task}")).or(variable("SLURM_JOB_ID")) else { return };
    let told = ask("scontrol", &["show", "job", "--oneliner", &job]).unwrap_or_default();
    let says = |field: &str| told.split_whitespace().any(|word| word == field);
    if !["JobState=RUNNING", "Requeue=1", "BatchFlag=1"].into_iter().all(says) {
        return;
    }
    terminal::line(&format!("job {job} is queued again"));
    if let Err(error) = ask("scontrol", &["requeue", &job]) {
        terminal::line(&format!("warning: {error}"));
    }
}

/// `NAME ADDRESS` a line; a node comes once for each of its partitions.
fn nodes(told: &str) -> Vec<Node> {
    let mut nodes: Vec<Node> = Vec::new();
    for line in told.lines() {
        if let Some((name, address)) = line.trim().split_once(' ')
            && !nodes.iter().any(|node| node.name == name)
        {
            nodes.push(Node { name: name.into(), address: address.trim().into() });
        }
    }
    nodes
}

/// The least number of a list such as `8(x3),4`.
fn fewest(list: &str) -> Option<usize> {
    list.split(',').filter_map(|part| part.split('(').next()?.parse().ok()).min()
}

fn address_of(interface: &str) -> Result<IpAddr, Fatal> {
    let all = getifaddrs().into_iter().flatten().filter(|one| one.interface_name == interface);
    let first = all.filter_map(|one| Some(one.address?.as_sockaddr_in()?.ip())).next();
    first.map(IpAddr::from).ok_or_else(|| {
        Fatal::new(EXIT_UNREACHABLE, format!("--interface {interface} has no IPv4 address on this machine"))
    })
}

fn ask(program: &str, arguments: &[&str]) -> Result<String, Fatal> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let failed = |reason: String| Fatal::new(EXIT_UNREACHABLE, format!("{program} {}: {reason}", arguments.join(" ")));
    let output = output.map_err(|error| failed(error.to_string()))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(failed(String::from_utf8_lossy(&output.stderr).trim().into())),
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_of_two_partitions_is_one_node() {
        let node = |name: &str, address: &str| Node { name: name.into(), address: address.into() };
        assert_eq!(
            nodes("n0 10.0.0.1\nn0 10.0.0.1\nn1 n1.cluster  \n"),
            [node("n0", "10.0.0.1"), node("n1", "n1.cluster")]
        );
        assert_eq!(nodes(""), []);
    }

    #[test]
    fn the_node_with_the_fewest_cores_counts() {
        assert_eq!(["8", "2,1(x2)", "1(x3),4", ""].map(fewest), [Some(8), Some(1), Some(1), None]);
    }

    #[test]
    fn the_way_to_another_node_has_an_address_here() {
        assert_eq!(address_towards(("127.0.0.1", 1)).expect("loopback"), IpAddr::from(Ipv4Addr::LOCALHOST));
        assert_eq!(address_of("lo").expect("loopback"), IpAddr::from(Ipv4Addr::LOCALHOST));
        assert_eq!(address_of("nope0").expect_err("there is none").exit_code, EXIT_UNREACHABLE);
    }
}
