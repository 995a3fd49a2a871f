//! `render slurm`: a script for `sbatch`. It is deploy/slurm/train.sbatch with the numbers of one
//! run: nodes, what a worker gets of its node, and how long a stop may take.

use super::Numbers;

const SCRIPT: &str = include_str!("../../../../deploy/slurm/train.sbatch");

/// What the job requests of each of its nodes, in addition to GPUs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NodeShare {
    /// All cores and all memory; no other job runs there.
    Whole,
    /// For each worker: CPUs, and memory as Slurm writes it, such as `16G`.
    PerWorker { cpus: u16, memory: String },
}

impl NodeShare {
    /// Options of `sbatch`: a worker has a GPU, or is the only one of its node.
    fn options(&self, gpus: usize) -> String {
        match (self, gpus) {
            (Self::Whole, _) => "--exclusive --mem=0".into(),
            (Self::PerWorker { cpus, memory }, 0) => {
                format!("--cpus-per-task={cpus} --mem={memory}")
            }
            (Self::PerWorker { cpus, memory }, _) => {
                format!("--cpus-per-gpu={cpus} --mem-per-gpu={memory}")
            }
        }
    }
}

/// A script for `sbatch`. `target` is what was typed after the options: preset or file, and
/// overrides.
pub(crate) fn slurm(target: &[String], numbers: &Numbers, share: &NodeShare) -> String {
    let workers = match numbers.gpus {
        0 => "--ntasks-per-node=1".into(),
        gpus => format!("--gpus-per-node={gpus}"),
    };
    let arguments: Vec<String> = target.iter().map(|word| quoted(word)).collect();
    let changes = [
        (
            "--nodes=4 --ntasks-per-node=1",
            format!("--nodes={} {workers} {}", numbers.nodes, share.options(numbers.gpus)),
        ),
        ("USR1@120", format!("USR1@{}", numbers.lead())),
        ("--grace 90s", format!("--grace {}s", numbers.grace.as_secs())),
        ("Two minutes before", format!("{} s before", numbers.lead())),
        ("\"$@\"", format!("{} \"$@\"", arguments.join(" "))),
    ];
    changes.iter().fold(SCRIPT.to_owned(), |script, (what, by)| script.replace(what, by))
}

/// A word as a shell reads it back.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./=:,@%+".contains(c);
    if word.chars().all(plain) { word.into() } else { format!("'{}'", word.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn script(gpus: usize, share: &NodeShare) -> String {
        let target = ["cifar10_thanos", "data.dir=/my data"].map(String::from);
        slurm(&target, &Numbers { nodes: 3, gpus, grace: Duration::from_secs(200) }, share)
    }

    #[test]
    fn a_script_has_the_numbers_of_its_run() {
        let share = NodeShare::PerWorker { cpus: 6, memory: "20G".into() };
        let script = script(8, &share);
        for part in [
            "#SBATCH --nodes=3 --gpus-per-node=8 --cpus-per-gpu=6 --mem-per-gpu=20G\n",
            "--signal=B:USR1@230 ",
            "230 s before",
            "--grace 200s cifar10_thanos 'data.dir=/my data' \"$@\"\n",
        ] {
            assert!(script.contains(part), "no `{part}` in\n{script}");
        }
    }

    #[test]
    fn every_request_says_what_a_worker_gets() {
        let share = NodeShare::PerWorker { cpus: 6, memory: "20G".into() };
        let check = |gpus, share: &NodeShare, line: &str| {
            let script = script(gpus, share);
            assert!(
                script.contains(&format!("#SBATCH --nodes=3 {line}\n")),
                "no `{line}` in\n{script}"
            );
        };
        check(0, &share, "--ntasks-per-node=1 --cpus-per-task=6 --mem=20G");
        check(0, &NodeShare::Whole, "--ntasks-per-node=1 --exclusive --mem=0");
        check(8, &NodeShare::Whole, "--gpus-per-node=8 --exclusive --mem=0");
    }
}
