//! What a job has on each of its nodes: parsed from `scontrol show job --details` and from the
//! variables of a job. The job's own variables describe its first node only, or were made for the
//! options of `srun`.

/// What a job has on each of some nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Share<'a> {
    /// As Slurm abbreviates them, such as `n[0-3,7]`.
    pub(super) nodes: &'a str,
    pub(super) cores: usize,
    pub(super) gpus: usize,
}

/// The shares in a job's description: `Nodes=n[0-1] CPU_IDs=0-7 Mem=8192 GRES=gpu:4(IDX:0-3)`.
pub(super) fn shares(job: &str) -> Vec<Share<'_>> {
    let mut shares: Vec<Share> = Vec::new();
    for word in job.split_whitespace() {
        let Some((key, value)) = word.split_once('=') else { continue };
        match (key, shares.last_mut()) {
            ("Nodes", _) => shares.push(Share { nodes: value, cores: 1, gpus: 0 }),
            ("CPU_IDs", Some(share)) => share.cores = count(value).max(1),
            ("GRES", Some(share)) => share.gpus = gpus(value),
            _ => {}
        }
    }
    shares
}

/// Numbers of a list such as `0-3,8`.
fn count(list: &str) -> usize {
    let number = |text: &str| text.parse::<usize>().ok();
    let part = |part: &str| match part.split_once('-') {
        Some((first, last)) => number(first)
            .zip(number(last))
            .map_or(0, |(first, last)| last.saturating_sub(first) + 1),
        None => usize::from(number(part).is_some()),
    };
    list.split(',').map(part).sum()
}

/// GPUs of `gpu:h100:4(IDX:0-2,5),gpu:1(IDX:7)`; other resources, such as shards of GPUs, are not
/// counted.
fn gpus(resources: &str) -> usize {
    // Without the indices in parentheses, which may have commas.
    let names: String = resources
        .split('(')
        .map(|part| part.split_once(')').map_or(part, |(_, outside)| outside))
        .collect();
    let number = |resource: &str| -> Option<usize> {
        let mut parts = resource.split(':');
        (parts.next() == Some("gpu")).then(|| parts.next_back()?.parse().ok())?
    };
    names.split(',').filter_map(number).sum()
}

/// Tasks of each node, in the order of the nodes; empty: the job has not asked for any, and Slurm
/// would say a task a core.
pub(super) fn tasks(variable: impl Fn(&str) -> Option<String>) -> Vec<usize> {
    let each = variable("SLURM_NTASKS_PER_NODE").and_then(|text| text.parse().ok());
    let asked = variable("SLURM_NTASKS").is_some();
    let listed = || variable("SLURM_TASKS_PER_NODE").filter(|_| asked).map(|list| repeated(&list));
    each.map(|each| vec![each]).or_else(listed).unwrap_or_default()
}

/// `2(x3),1` is 2, 2, 2, 1.
fn repeated(list: &str) -> Vec<usize> {
    let part = |part: &str| {
        let (number, times) = part.split_once("(x").unwrap_or((part, "1)"));
        let times = times.trim_end_matches(')').parse().unwrap_or(1);
        number
            .parse()
            .ok()
            .into_iter()
            .flat_map(move |number| std::iter::repeat_n(number, times))
            .collect::<Vec<_>>()
    };
    list.split(',').flat_map(part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of `scontrol show job --details --oneliner` of 22.05 and 24.11, in part.
    #[test]
    fn a_job_has_its_own_share_of_each_node() {
        let job = "JobId=10 NodeList=n[0-1,3] NumNodes=3 NumCPUs=20 TRES=cpu=20,node=3,gres/gpu=10 \
            JOB_GRES=gpu:10   \
                   Nodes=n[0-1] CPU_IDs=0-7 Mem=8192 GRES=gpu:4(IDX:0-3)   Nodes=n3 CPU_IDs=0-2,5 \
                   Mem=4096 \
                   GRES=gpu:h100:1(IDX:0),gpu:a100:2(IDX:1,3) MinCPUsNode=1 TresPerJob=gres:gpu:10";
        let expected = [
            Share { nodes: "n[0-1]", cores: 8, gpus: 4 },
            Share { nodes: "n3", cores: 4, gpus: 3 },
        ];
        assert_eq!(shares(job), expected);
        let job = "JobId=11   Nodes=n0 CPU_IDs=4 Mem=0 GRES= MinCPUsNode=1";
        assert_eq!(shares(job), [Share { nodes: "n0", cores: 1, gpus: 0 }]);
        assert_eq!(shares("JobId=12 JobState=PENDING NumNodes=2"), []);
    }

    #[test]
    fn only_gpus_are_counted() {
        let found = ["gpu:2", "gpu:h100:8(IDX:0-7)", "shard:4(0/2,2/2),gpu:1(IDX:3)", "nic:2", ""]
            .map(gpus);
        assert_eq!(found, [2, 8, 1, 0, 0]);
    }

    #[test]
    fn tasks_count_where_they_were_requested() {
        let check = |variables: &[(&str, &str)], expected: &[usize]| {
            let value = |name: &str| {
                variables.iter().find(|(other, _)| *other == name).map(|(_, v)| (*v).to_owned())
            };
            assert_eq!(tasks(value), expected, "{variables:?}");
        };
        check(
            &[
                ("SLURM_NTASKS_PER_NODE", "2"),
                ("SLURM_NTASKS", "8"),
                ("SLURM_TASKS_PER_NODE", "2(x4)"),
            ],
            &[2],
        );
        check(&[("SLURM_NTASKS", "7"), ("SLURM_TASKS_PER_NODE", "2(x3),1")], &[2, 2, 2, 1]);
        // Cores, by --exclusive or --cpus-per-gpu.
        check(&[("SLURM_TASKS_PER_NODE", "8(x2),4")], &[]);
        check(&[], &[]);
    }
}
