//! Processes that an earlier coordinator of a run has started, and that are not children of this one.

use crate::run::ExitCause;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
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
    /// The process of a worker of this machine, if that is what it is.
    pub(super) fn worker(pid: i32) -> Option<Self> {
        Self::new(pid, "thanos-worker")
    }

    /// The `srun` of a worker on a node. Slurm's has a helper of the same command line, its child.
    pub(super) fn srun(worker: &str) -> Option<Self> {
        let pids = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let of_worker = |pid: &i32| {
            let words = command(*pid);
            words.first().is_some_and(|program| Path::new(program).ends_with("srun"))
                && words.windows(2).any(|pair| pair == ["--id", worker])
        };
        let is_helper = |pid: &i32| parent(*pid).is_some_and(|parent| of_worker(&parent));
        pids.filter(of_worker).find(|pid| !is_helper(pid)).and_then(|pid| Self::new(pid, "srun"))
    }

    fn new(pid: i32, program: &'static str) -> Option<Self> {
        runs(pid, program).then(|| Self { pid: Pid::from_raw(pid), program })
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
