//! `--launcher`: which program starts the workers of a run.

use clap::ValueEnum;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum LauncherName {
    /// This program, on this machine
    Local,
    /// This program, on the nodes of the Slurm allocation that it runs in
    Srun,
    /// Not this program: the coordinator waits for workers that are started separately
    None,
}

impl LauncherName {
    /// The command that starts a run with this launcher.
    pub(super) fn command(self) -> &'static str {
        match self {
            Self::Local => "launch",
            Self::Srun => "launch --launcher srun",
            Self::None => "serve",
        }
    }
}
