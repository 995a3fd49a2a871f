//! The `srun` that starts a worker on a node.

use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// Variables of a job that a step needs, to find Slurm and the job; tasks get the others again, for
/// their step.
const KEPT: [&str; 6] = [
    "SLURM_CONF",
    "SLURM_CONF_SERVER",
    "SLURM_JWT",
    "SLURM_JOB_ID",
    "SLURM_JOBID",
    "SLURM_WORKING_CLUSTER",
];
/// Set by sites and plugins, for every step.
const KEPT_PREFIXES: [&str; 3] = ["SLURM_SPANK_", "SLURM_TASK_PROLOG", "SLURM_TASK_EPILOG"];
/// Of the two that were tried, 22.05 and 24.11, the former needs the other option.
const FIRST_YEAR_OF_GPUS_PER_NODE: u32 = 23;
/// GPUs that the job has on this node: a step on another one has others.
const GPU_LISTS: [&str; 4] =
    ["CUDA_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK"];

/// Starts a program on a node, in a step of its own, so that one that ends can be restarted alone.
/// The step has all that the job has there: its cores, its memory and its `gpus`; the worker takes
/// the GPU of its place. `arguments` come last, so that they prevail.
///
/// Workers are not bound to cores: every step has the same ones, and `--cpu-bind=cores` would put
/// all single tasks on the first. Nor is a step given one GPU alone: NCCL copies between GPUs of a
/// node directly only if each process sees all.
pub(crate) fn srun(node: &str, gpus: usize, arguments: &[String]) -> Command {
    let mut command = Command::new("srun");
    command
        .args(["--nodes=1", "--ntasks=1", "--nodelist", node])
        // Steps of the same node share what the job has; one that fails does not end another.
        .args([
            "--overlap",
            "--mem=0",
            "--kill-on-bad-exit=0",
            "--cpu-bind=none",
            "--mpi=none",
            "--unbuffered",
        ])
        // `sbatch --export=NONE` is for what the job inherits, not for its workers.
        .arg("--export=ALL")
        .stdin(Stdio::null());
    if gpus > 0 {
        command.arg(format!("{}={gpus}", gpus_option()));
    }
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| is_for_another_step(name, gpus > 0)) {
            command.env_remove(name);
        }
    }
    command.args(arguments);
    command
}

/// How a step requests the GPUs of its node, for the Slurm that is installed.
fn gpus_option() -> &'static str {
    static OPTION: OnceLock<&str> = OnceLock::new();
    OPTION.get_or_init(|| {
        let asked = Command::new("srun").arg("--version").stdin(Stdio::null()).output();
        let printed = asked.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        gpus_option_of(&printed.unwrap_or_default())
    })
}

/// The same for what `srun --version` prints. In a job of `--gpus` whose nodes have different
/// numbers, 22.05 refuses `--gpus-per-node` and `--gres` for the node with more, and 24.11 makes a
/// step of `--gpus` on one node wait while steps of another run; in all other jobs both take both.
fn gpus_option_of(printed: &str) -> &'static str {
    let version = printed.split_whitespace().last().unwrap_or_default();
    let year = version.split('.').next().and_then(|year| year.parse::<u32>().ok());
    if year.is_some_and(|year| year < FIRST_YEAR_OF_GPUS_PER_NODE) {
        "--gpus"
    } else {
        "--gpus-per-node"
    }
}

/// The options of `sbatch` are passed to a job as variables, which `srun` reads as its own:
/// `SLURM_GPUS=8` of the whole job would make each step of one node ask for eight ("Invalid generic
/// resource"), `SLURM_GPUS_PER_TASK=1` would show each worker the first GPU.
fn is_for_another_step(name: &str, has_gpus: bool) -> bool {
    let is_of_slurm =
        ["SLURM_", "SRUN_", "SBATCH_", "SALLOC_"].iter().any(|prefix| name.starts_with(prefix));
    let is_kept =
        KEPT.contains(&name) || KEPT_PREFIXES.iter().any(|prefix| name.starts_with(prefix));
    is_of_slurm && !is_kept || has_gpus && GPU_LISTS.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_requests_gpus_as_the_installed_slurm_takes_them() {
        for (printed, option) in [
            ("slurm-wlm 22.05.8\n", "--gpus"),
            ("slurm 21.08.5", "--gpus"),
            ("slurm 23.02.7", "--gpus-per-node"),
            ("slurm-wlm 24.11.5\n", "--gpus-per-node"),
            ("", "--gpus-per-node"),
        ] {
            assert_eq!(gpus_option_of(printed), option, "{printed}");
        }
    }

    #[test]
    fn a_step_inherits_no_request_of_its_job() {
        let requests = [
            "SLURM_GPUS",
            "SLURM_GPUS_PER_NODE",
            "SLURM_GPUS_PER_TASK",
            "SLURM_TRES_PER_TASK",
            "SLURM_CPUS_PER_TASK",
            "SLURM_CPUS_PER_GPU",
            "SLURM_MEM_PER_CPU",
            "SLURM_MEM_PER_NODE",
            "SLURM_NTASKS_PER_NODE",
            "SLURM_EXPORT_ENV",
            "SRUN_CPUS_PER_TASK",
            "SBATCH_GPUS",
        ];
        for name in requests {
            assert!(is_for_another_step(name, false), "{name}");
        }
        for name in [
            "SLURM_CONF",
            "SLURM_JOB_ID",
            "SLURM_SPANK_X",
            "_SLURM_SPANK_OPTION_pyxis",
            "PATH",
            "NCCL_DEBUG",
        ] {
            assert!(!is_for_another_step(name, true), "{name}");
        }
        // Where Slurm does not manage the GPUs, the user's choice stands.
        let visible = |has_gpus| is_for_another_step("CUDA_VISIBLE_DEVICES", has_gpus);
        assert_eq!((visible(true), visible(false)), (true, false));
    }

    #[test]
    fn a_step_has_the_gpus_of_its_node_and_the_users_arguments_last() {
        let words = |gpus, arguments: &[&str]| -> Vec<String> {
            let arguments: Vec<String> = arguments.iter().map(|word| (*word).into()).collect();
            srun("n1", gpus, &arguments)
                .get_args()
                .map(|word| word.to_string_lossy().into_owned())
                .collect()
        };
        let with_gpus = words(4, &["--container-image=a.sqsh"]);
        assert!(with_gpus.windows(2).any(|pair| pair == ["--nodelist", "n1"]), "{with_gpus:?}");
        let gpus = format!("{}=4", gpus_option());
        assert_eq!(with_gpus[with_gpus.len() - 2..], [gpus.as_str(), "--container-image=a.sqsh"]);
        assert!(!words(0, &[]).iter().any(|word| word.starts_with("--gpus")));
    }
}
