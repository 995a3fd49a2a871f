//! Processes that an earlier coordinator of a run has started, and that are not children of this
//! one.

use super::Killed;
use crate::run::ExitCause;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::HashMap;
use std::path::Path;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How often such a process is polled: there is no notification of how it ended, or when.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Slurm's `srun` has a helper of the same command line, its child: the parents alone.
fn without_children(
    found: HashMap<i32, String>,
    parent: impl Fn(i32) -> Option<i32>,
) -> HashMap<String, i32> {
    let is_helper =
        |pid: i32| parent(pid).is_some_and(|parent| found.get(&parent) == found.get(&pid));
    found
        .iter()
        .filter(|(pid, _)| !is_helper(**pid))
        .map(|(pid, worker)| (worker.clone(), *pid))
        .collect()
}

/// A process that stands for a worker. It dies with this value.
pub(super) struct Adopted {
    pid: Pid,
    program: String,
}

impl Adopted {
    /// The processes of a program that stand for these workers of this coordinator, by the workers'
    /// names. Reads /proc once, for all workers.
    pub(super) fn find(
        workers: &[String],
        coordinator: &str,
        program: &str,
    ) -> HashMap<String, Self> {
        let pids = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let found =
            pids.filter_map(|pid| Some((pid, worker_of(&command(pid), program, coordinator)?)));
        let of_run = without_children(
            found.filter(|(_, worker)| workers.contains(worker)).collect(),
            parent,
        );
        of_run
            .into_iter()
            .map(|(worker, pid)| {
                (worker, Self { pid: Pid::from_raw(pid), program: program.into() })
            })
            .collect()
    }

    /// Waits until it has exited, and returns how, and why.
    pub(super) async fn wait(self, mut killed: Killed) -> (String, ExitCause) {
        let mut looks = tokio::time::interval(POLL_INTERVAL);
        loop {
            tokio::select! {
                _ = looks.tick() => {}
                () = &mut killed => {
                    return ("was killed by the coordinator".into(), ExitCause::Hung);
                }
            }
            if !runs(self.pid.as_raw(), &self.program) {
                return ("has disappeared".into(), ExitCause::Vanished);
            }
        }
    }
}

impl Drop for Adopted {
    fn drop(&mut self) {
        // A number that was used again by another program must not be signalled.
        if runs(self.pid.as_raw(), &self.program) {
            _ = kill(self.pid, Signal::SIGKILL);
        }
    }
}

/// The worker that a command line starts, if it is one of this coordinator.
fn worker_of(words: &[String], program: &str, coordinator: &str) -> Option<String> {
    let is_program = words.first().is_some_and(|first| Path::new(first).ends_with(program));
    let value =
        |name: &str| words.windows(2).find(|pair| pair[0] == name).map(|pair| pair[1].as_str());
    let is_of_run = is_program && value("--coordinator") == Some(coordinator);
    value("--id").filter(|_| is_of_run).map(Into::into)
}

/// Whether this is the process of this worker, and started no later than then (seconds since 1970):
/// its number may have been given to another process since, also to one of another run.
pub(crate) fn is_worker_since(pid: i32, worker: &str, then: f64) -> bool {
    let words = command(pid);
    // Whatever its program is called.
    words.iter().any(|word| word == "--coordinator")
        && words.windows(2).any(|pair| pair == ["--id", worker])
        && started_at(pid).is_some_and(|started| started <= then + CLOCK_DIFFERENCE_SECONDS)
}

/// Between the clock that events are stamped with and the kernel's, which counts in hundredths.
const CLOCK_DIFFERENCE_SECONDS: f64 = 0.5;
/// Of /proc/PID/stat, on every machine.
const TICKS_PER_SECOND: f64 = 100.0;

/// When a process was started, in seconds since 1970.
fn started_at(pid: i32) -> Option<f64> {
    let ticks: f64 = field_after_name(pid, 19)?;
    let uptime: f64 =
        std::fs::read_to_string("/proc/uptime").ok()?.split_whitespace().next()?.parse().ok()?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_secs_f64();
    Some(now - uptime + ticks / TICKS_PER_SECOND)
}

fn runs(pid: i32, program: &str) -> bool {
    command(pid).first().is_some_and(|first| Path::new(first).ends_with(program))
}

/// Program and arguments; a zombie process has none.
fn command(pid: i32) -> Vec<String> {
    let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    bytes
        .split(|byte| *byte == 0)
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .filter(|w| !w.is_empty())
        .collect()
}

fn parent(pid: i32) -> Option<i32> {
    field_after_name(pid, 1)
}

/// A field of /proc/PID/stat, counted from the one after the program's name, which is in brackets.
fn field_after_name<T: FromStr>(pid: i32, index: usize) -> Option<T> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(index)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn helpers_of_srun_are_not_the_process_of_a_worker() {
        let words = |line: &str| line.split(' ').map(String::from).collect::<Vec<_>>();
        let line =
            words("/usr/bin/srun --exact thanos-worker --coordinator h:1 --id n1-0 --threads 1");
        assert_eq!(worker_of(&line, "srun", "h:1").as_deref(), Some("n1-0"));
        assert_eq!(worker_of(&line, "srun", "h:2"), None, "of another run");
        assert_eq!(
            worker_of(&words("/usr/bin/thanos-worker --coordinator h:1 --id n1-0"), "srun", "h:1"),
            None
        );
        // 11 is the helper of 10; 20 was started by a shell.
        let found = HashMap::from([(10, "n1-0".into()), (11, "n1-0".into()), (20, "n1-1".into())]);
        let parents = HashMap::from([(10, 1), (11, 10), (20, 5)]);
        let sruns = without_children(found, |pid| parents.get(&pid).copied());
        assert_eq!(sruns, HashMap::from([("n1-0".into(), 10), ("n1-1".into(), 20)]));
    }

    #[test]
    fn the_start_of_this_process_is_known() {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs_f64();
        let started = started_at(std::process::id() as i32).expect("it runs");
        assert!((now - 600.0..now + 0.1).contains(&started), "{started}, now {now}");
        // This process is not a worker.
        assert!(!is_worker_since(std::process::id() as i32, "worker-0", now));
    }
}
