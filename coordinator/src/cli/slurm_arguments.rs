//! Options of a launch inside a Slurm allocation.

use super::launcher::LauncherName;
use crate::exit::{EXIT_USAGE, Fatal};
use clap::Args;

#[derive(Args, Debug)]
pub(super) struct SlurmArguments {
    /// A further argument of each worker's srun, such as --srun-arg=--container-image=IMAGE;
    /// repeatable
    #[arg(long = "srun-arg", value_name = "ARG", allow_hyphen_values = true)]
    pub(super) srun_arguments: Vec<String>,
    /// How often a job of Slurm may have been restarted and still be requeued when it is stopped;
    /// one that committed no checkpoint since its start is never requeued
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub(super) max_requeues: u32,
}

impl SlurmArguments {
    /// # Errors
    /// 64 if an option is for another launcher.
    pub(super) fn check(&self, launcher: LauncherName) -> Result<(), Fatal> {
        match launcher {
            LauncherName::Srun => Ok(()),
            _ if self.srun_arguments.is_empty() => Ok(()),
            _ => Err(Fatal::new(EXIT_USAGE, "--srun-arg is for --launcher srun")),
        }
    }
}
