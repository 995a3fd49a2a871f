//! A run inside a Slurm allocation: its nodes, how they are reached and what the job has on each.
//! Slurm's own programs are asked, as its libraries are of one version each. How workers are
//! started is in `slurm/target.rs` and `slurm/step.rs`, the requeue in `slurm/requeue.rs`.

mod requeue;
mod resources;
mod step;
mod target;

use crate::exit::{EXIT_UNREACHABLE, EXIT_USAGE, Fatal};
use nix::ifaddrs::getifaddrs;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Command, Stdio};
use thanos_transport::address_towards;

pub(crate) use requeue::{Checkpointed, requeue};
use step::srun;
pub(crate) use target::SlurmNodes;

/// What this program is part of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Allocation {
    /// Its nodes, each once; none of them is without a worker.
    pub(crate) nodes: Vec<Node>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) name: String,
    /// As Slurm reaches it: an address, or a name.
    address: String,
    /// One for each GPU, or one for each task where the job has no GPUs.
    pub(crate) workers: usize,
    /// The job's, on this node.
    pub(crate) gpus: usize,
    pub(crate) cores: usize,
}

impl Allocation {
    /// The allocation that this process runs in.
    ///
    /// # Errors
    /// 64 outside of one; 69 if Slurm does not answer.
    pub(crate) fn of_this_job() -> Result<Self, Fatal> {
        let (Some(list), Some(job)) = (variable("SLURM_JOB_NODELIST"), job_id()) else {
            let message = "--launcher srun runs inside a Slurm allocation (SLURM_JOB_NODELIST is \
                not set): sbatch deploy/slurm/train.sbatch, or salloc";
            return Err(Fatal::new(EXIT_USAGE, message));
        };
        // --all: partitions may be hidden from ordinary users.
        let listed = ask(
            "sinfo",
            &["--all", "--noheader", "--Node", "--nodes", &list, "--format", "%N %o"],
        )?;
        let addresses = addresses(&listed);
        if addresses.is_empty() {
            return Err(Fatal::new(EXIT_UNREACHABLE, format!("sinfo knows no node of {list}")));
        }
        let job = ask("scontrol", &["--all", "--details", "--oneliner", "show", "job", &job])?;
        let mut shares = BTreeMap::new();
        for share in resources::shares(&job) {
            let names = ask("scontrol", &["show", "hostnames", share.nodes])?;
            shares.extend(
                names.lines().map(|name| (name.trim().to_owned(), (share.cores, share.gpus))),
            );
        }
        let tasks = resources::tasks(variable);
        Ok(Self { nodes: nodes(addresses, &shares, &tasks) })
    }

    /// Takes the first nodes, at most this many, with this many workers on each; `None`: as many as
    /// the job has GPUs or tasks.
    pub(crate) fn limit(&mut self, nodes: usize, workers_per_node: Option<usize>) {
        self.nodes.truncate(nodes);
        for node in &mut self.nodes {
            node.workers = workers_per_node.unwrap_or(node.workers);
        }
    }

    /// Workers of the nodes with the fewest, this many nodes.
    pub(crate) fn fewest_workers(&self, nodes: usize) -> usize {
        let mut workers: Vec<usize> = self.nodes.iter().map(|node| node.workers).collect();
        workers.sort_unstable();
        workers.iter().take(nodes).sum()
    }

    /// Cores for each worker on the node that has the fewest; at least 1.
    pub(crate) fn cores_per_worker(&self) -> usize {
        self.nodes.iter().map(|node| node.cores / node.workers.max(1)).min().unwrap_or(1).max(1)
    }

    /// GPUs on the node that has the most.
    pub(crate) fn gpus(&self) -> usize {
        self.nodes.iter().map(|node| node.gpus).max().unwrap_or(0)
    }

    /// What the user should know of the request, a line each.
    pub(crate) fn notices(&self) -> Vec<String> {
        let starved: Vec<&Node> =
            self.nodes.iter().filter(|node| node.cores < node.workers).collect();
        let Some(first) = starved.first() else { return Vec::new() };
        let others = match starved.len() - 1 {
            0 => String::new(),
            others => format!(" (and {others} more such nodes)"),
        };
        let option = if first.gpus > 0 { "--cpus-per-gpu" } else { "--cpus-per-task" };
        vec![format!(
            "warning: the job has {} on node {}{others} for {} workers, which will be slow: \
             request more with {option}, or whole nodes with --exclusive",
            if first.cores == 1 { "1 core".into() } else { format!("{} cores", first.cores) },
            first.name,
            first.workers
        )]
    }

    /// The address under which the other nodes reach this one: of an interface, or from which they
    /// are reached.
    ///
    /// # Errors
    /// 69 if there is none.
    pub(crate) fn own_address(&self, interface: Option<&str>) -> Result<IpAddr, Fatal> {
        match interface {
            Some(name) => address_of(name),
            None => match self
                .nodes
                .iter()
                .find(|node| Some(&node.name) != variable("SLURMD_NODENAME").as_ref())
            {
                Some(other) => address_towards((other.address.as_str(), 1)).map_err(|error| {
                    Fatal::new(EXIT_UNREACHABLE, format!("node {}: {error}", other.name))
                }),
                None => Ok(Ipv4Addr::LOCALHOST.into()),
            },
        }
    }
}

/// The nodes of these addresses, with the job's cores and GPUs on each, and the tasks of each in
/// their order. In a job with GPUs a node without one has no worker, and is not used.
fn nodes(
    addresses: Vec<(String, String)>,
    shares: &BTreeMap<String, (usize, usize)>,
    tasks: &[usize],
) -> Vec<Node> {
    let has_gpus = shares.values().any(|(_, gpus)| *gpus > 0);
    let node = |(index, (name, address)): (usize, (String, String))| {
        let (cores, gpus) = shares.get(&name).copied().unwrap_or((1, 0));
        let tasks = tasks.get(index).or(tasks.last()).copied().unwrap_or(1);
        let workers = if has_gpus { gpus } else { tasks.max(1) };
        Node { name, address, workers, gpus, cores }
    };
    addresses.into_iter().enumerate().map(node).filter(|node| node.workers > 0).collect()
}

/// The name of this job as Slurm's programs take it; `None`: this process is in none. The number of
/// an array's last task alone would be that of the whole array.
fn job_id() -> Option<String> {
    let task = variable("SLURM_ARRAY_JOB_ID").zip(variable("SLURM_ARRAY_TASK_ID"));
    task.map(|(array, task)| format!("{array}_{task}")).or(variable("SLURM_JOB_ID"))
}

/// `NAME ADDRESS` a line; a node comes once for each of its partitions.
fn addresses(listed: &str) -> Vec<(String, String)> {
    let mut nodes: Vec<(String, String)> = Vec::new();
    for line in listed.lines() {
        if let Some((name, address)) = line.trim().split_once(' ')
            && !nodes.iter().any(|(other, _)| other == name)
        {
            nodes.push((name.into(), address.trim().into()));
        }
    }
    nodes
}

fn address_of(interface: &str) -> Result<IpAddr, Fatal> {
    let all = getifaddrs().into_iter().flatten().filter(|one| one.interface_name == interface);
    let first = all.filter_map(|one| Some(one.address?.as_sockaddr_in()?.ip())).next();
    first.map(IpAddr::from).ok_or_else(|| {
        Fatal::new(
            EXIT_UNREACHABLE,
            format!("--interface {interface} has no IPv4 address on this machine"),
        )
    })
}

fn ask(program: &str, arguments: &[&str]) -> Result<String, Fatal> {
    let mut command = Command::new(program);
    // A user's filters (SINFO_PARTITION) and formats are for what the user types.
    for (name, _) in std::env::vars_os() {
        if name
            .to_str()
            .is_some_and(|name| name.starts_with("SINFO_") || name.starts_with("SCONTROL_"))
        {
            command.env_remove(name);
        }
    }
    let output = command.args(arguments).stdin(Stdio::null()).output();
    let failed = |reason: String| {
        Fatal::new(EXIT_UNREACHABLE, format!("{program} {}: {reason}", arguments.join(" ")))
    };
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
        let node = |name: &str, address: &str| (name.to_owned(), address.to_owned());
        assert_eq!(
            addresses("n0 10.0.0.1\nn0 10.0.0.1\nn1 n1.cluster  \n"),
            [node("n0", "10.0.0.1"), node("n1", "n1.cluster")]
        );
        assert_eq!(addresses(""), []);
    }

    /// An allocation of nodes with these cores and GPUs, and tasks.
    fn allocation(shares: &[(usize, usize)], tasks: &[usize]) -> Allocation {
        let names: Vec<String> = (0..shares.len()).map(|index| format!("n{index}")).collect();
        let addresses = names.iter().map(|name| (name.clone(), "10.0.0.1".to_owned())).collect();
        let shares = names.into_iter().zip(shares.iter().copied()).collect();
        Allocation { nodes: nodes(addresses, &shares, tasks) }
    }

    fn workers(allocation: &Allocation) -> Vec<(&str, usize)> {
        allocation.nodes.iter().map(|node| (node.name.as_str(), node.workers)).collect()
    }

    #[test]
    fn a_node_has_a_worker_for_each_of_its_gpus_or_tasks() {
        assert_eq!(workers(&allocation(&[(8, 4), (8, 2)], &[1])), [("n0", 4), ("n1", 2)]);
        assert_eq!(workers(&allocation(&[(8, 4), (8, 0)], &[1])), [("n0", 4)], "no GPU there");
        assert_eq!(workers(&allocation(&[(8, 0), (8, 0)], &[2, 1])), [("n0", 2), ("n1", 1)]);
        assert_eq!(workers(&allocation(&[(8, 0), (8, 0)], &[])), [("n0", 1), ("n1", 1)]);
        let mut limited = allocation(&[(8, 4), (8, 4), (8, 2)], &[]);
        assert_eq!((limited.fewest_workers(1), limited.fewest_workers(2)), (2, 6));
        limited.limit(2, Some(1));
        assert_eq!(workers(&limited), [("n0", 1), ("n1", 1)]);
    }

    #[test]
    fn nodes_with_fewer_cores_than_workers_are_reported() {
        let check = |shares: &[(usize, usize)], tasks: &[usize], cores, notice: Option<&str>| {
            let allocation = allocation(shares, tasks);
            let notices = allocation.notices();
            assert_eq!(
                (allocation.cores_per_worker(), notices.len()),
                (cores, usize::from(notice.is_some()))
            );
            assert!(notice.is_none_or(|part| notices[0].contains(part)), "{notices:?}");
        };
        check(&[(32, 8), (16, 8)], &[], 2, None);
        check(
            &[(8, 8), (1, 8), (1, 8)],
            &[],
            1,
            Some("1 core on node n1 (and 1 more such nodes) for 8 workers"),
        );
        check(
            &[(2, 0)],
            &[4],
            1,
            Some(
                "2 cores on node n0 for 4 workers, which will be slow: request more with \
                --cpus-per-task",
            ),
        );
    }

    #[test]
    fn the_way_to_another_node_has_an_address_here() {
        assert_eq!(
            address_towards(("127.0.0.1", 1)).expect("loopback"),
            IpAddr::from(Ipv4Addr::LOCALHOST)
        );
        assert_eq!(address_of("lo").expect("loopback"), IpAddr::from(Ipv4Addr::LOCALHOST));
        assert_eq!(address_of("nope0").expect_err("there is none").exit_code, EXIT_UNREACHABLE);
    }
}
