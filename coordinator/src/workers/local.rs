//! `--launcher local`: workers are child processes on this machine.

use super::LaunchTarget;
use crate::run::Placement;
use std::path::Path;
use std::process::Command;

/// What a worker's id begins with; its place follows.
const WORKER: &str = "worker";

/// So many workers on this machine.
#[derive(Clone, Debug)]
pub(crate) struct ThisMachine {
    pub(crate) workers: usize,
}

impl LaunchTarget for ThisMachine {
    fn placement(&self) -> Placement {
        Placement::Local
    }

    fn worker_ids(&self) -> Vec<String> {
        (0..self.workers).map(|index| format!("{WORKER}-{index}")).collect()
    }

    fn command(&self, _worker: &str, program: &Path) -> Command {
        Command::new(program)
    }

    fn process_name(&self, program: &Path) -> String {
        program.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }
}
