//! `render`: job scripts and manifests for one experiment. They are the files of deploy/, with the numbers of this run in
//! their places: workers, how long a stop may take, what that means for whoever sends the signal, and exit codes.

mod data_volume;
mod kubernetes;

use std::time::Duration;

pub(crate) use data_volume::{DataMount, DataVolume};
pub(crate) use kubernetes::{Api, Memory, Resources, RunName, Setting, Site, Toleration, kubernetes, node_label};

/// Between the end of a stop and whoever would end the program: the last messages, the last files.
const BEHIND_GRACE: Duration = Duration::from_secs(30);

const SCRIPT: &str = include_str!("../../deploy/slurm/train.sbatch");

/// The numbers of a run that are not in its plan.
#[derive(Clone, Debug)]
pub(crate) struct Numbers {
    /// Machines of Slurm; pods of workers of Kubernetes.
    pub(crate) nodes: usize,
    /// GPUs on each; 0: it trains on CPUs.
    pub(crate) gpus: usize,
    pub(crate) grace: Duration,
}

impl Numbers {
    /// From the signal to the end by force.
    fn lead(&self) -> u64 {
        (self.grace + BEHIND_GRACE).as_secs()
    }
}

/// A script for `sbatch`. `target` is what was typed behind the options: preset or file, and overrides.
pub(crate) fn slurm(target: &[String], numbers: &Numbers) -> String {
    let per_node = match numbers.gpus {
        0 => "--ntasks-per-node=1".into(),
        gpus => format!("--gpus-per-node={gpus}"),
    };
    let arguments: Vec<String> = target.iter().map(|word| quoted(word)).collect();
    let changes = [
        ("--nodes=4 --ntasks-per-node=1", format!("--nodes={} {per_node}", numbers.nodes)),
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

    fn numbers(gpus: usize) -> Numbers {
        Numbers { nodes: 3, gpus, grace: Duration::from_secs(200) }
    }

    #[test]
    fn a_script_has_the_numbers_of_its_run() {
        let target = ["cifar10_thanos", "data.dir=/my data"].map(String::from);
        let script = slurm(&target, &numbers(8));
        for part in [
            "#SBATCH --nodes=3 --gpus-per-node=8\n",
            "--signal=B:USR1@230 ",
            "--grace 200s cifar10_thanos 'data.dir=/my data' \"$@\"\n",
            "# as it was. 230 s before",
        ] {
            // Where lines of the comment break is not this test's business.
            let part = part.trim_start_matches("# as it was. ");
            assert!(script.contains(part), "no `{part}` in\n{script}");
        }
        assert!(slurm(&target, &numbers(0)).contains("--ntasks-per-node=1\n"));
    }
}
