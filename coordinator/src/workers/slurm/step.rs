//! The `srun` that starts a worker on a node.

use std::process::{Command, Stdio};

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
        // Not `--gres=gpu:N`: in a job of `--gpus` whose nodes have different numbers, Slurm 22.05
        // refuses it for the others.
        command.arg(format!("--gpus={gpus}"));
    }
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| is_for_another_step(name, gpus > 0)) {
            command.env_remove(name);
        }
    }
    command.args(arguments);
    command
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
        assert_eq!(with_gpus[with_gpus.len() - 2..], ["--gpus=4", "--container-image=a.sqsh"]);
        assert!(!words(0, &[]).iter().any(|word| word.starts_with("--gpus")));
    }
}
