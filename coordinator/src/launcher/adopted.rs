//! Processes that an earlier coordinator of a run has started, and that are not children of this one.

use crate::run::ExitCause;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;
use tokio::sync::oneshot;

/// How often such a process is looked at: nobody tells how it ended, or when.
const BETWEEN_LOOKS: Duration = Duration::from_millis(50);

/// A process that stands for a worker. It dies with this value.
pub(super) struct Adopted {
    pid: Pid,
    program: &'static str,
}

impl Adopted {
    /// The processes that stand for these workers, by their names: on this machine a worker's own, else the `srun` that
    /// started it (Slurm's has a helper of the same command line, its child). One look at all processes.
    pub(super) fn find(workers: &[String], coordinator: &str, is_local: bool) -> BTreeMap<String, Self> {
        let program = if is_local { "thanos-worker" } else { "srun" };
        let pids = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let of_run = pids.filter_map(|pid| Some((pid, worker_of(&command(pid), program, coordinator)?)));
        let of_run: BTreeMap<i32, String> = of_run.filter(|(_, worker)| workers.contains(worker)).collect();
        let is_helper = |pid: i32| parent(pid).is_some_and(|parent| of_run.contains_key(&parent));
        let own = of_run.iter().filter(|(pid, _)| !is_helper(**pid));
        own.map(|(pid, worker)| (worker.clone(), Self { pid: Pid::from_raw(*pid), program })).collect()
    }

    /// Waits until it is gone, and says how, and why.
    pub(super) async fn wait(self, mut killed: oneshot::Receiver<()>) -> (String, ExitCause) {
        let mut looks = tokio::time::interval(BETWEEN_LOOKS);
        loop {
            tokio::select! {
                _ = looks.tick() => {}
                Ok(()) = &mut killed => return ("did not respond and was killed".into(), ExitCause::Hung),
            }
            if !runs(self.pid.as_raw(), self.program) {
                return ("has disappeared".into(), ExitCause::Vanished);
            }
        }
    }
}

impl Drop for Adopted {
    fn drop(&mut self) {
        // A number that was used again by another program must not be signalled.
        if runs(self.pid.as_raw(), self.program) {
            _ = kill(self.pid, Signal::SIGKILL);
        }
    }
}

/// The worker that a command line starts, if it is one of this coordinator.
fn worker_of(words: &[String], program: &str, coordinator: &str) -> Option<String> {
    let is_program = words.first().is_some_and(|first| Path::new(first).ends_with(program));
    let value = |name: &str| words.windows(2).find(|pair| pair[0] == name).map(|pair| pair[1].as_str());
    let is_of_run = is_program && value("--coordinator") == Some(coordinator);
    value("--id").filter(|_| is_of_run).map(Into::into)
}

/// Whether this is the process of a worker that runs: not of another program, and not one that nobody has waited for.
pub(crate) fn is_worker(pid: i32) -> bool {
    runs(pid, "thanos-worker")
}

fn runs(pid: i32, program: &str) -> bool {
    command(pid).first().is_some_and(|first| Path::new(first).ends_with(program))
}

/// Program and arguments; of a process that nobody has waited for there are none.
fn command(pid: i32) -> Vec<String> {
    let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    bytes
        .split(|byte| *byte == 0)
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .filter(|w| !w.is_empty())
        .collect()
}

fn parent(pid: i32) -> Option<i32> {
    // Behind the program's name in brackets come state and parent.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}
