//! The local launcher: worker processes on this machine. They end with the coordinator: each has a session whose end
//! ends it, and whoever is still there when the launcher is dropped is killed.

use crate::exit::{EXIT_UNREACHABLE, Fatal};
use crate::run::Event;
use anyhow::{Context, Result};
use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// How long workers may take to leave by themselves when a run is over.
const MOST_LEAVING: Duration = Duration::from_secs(10);

/// What every worker is started with.
#[derive(Clone, Debug)]
pub(crate) struct WorkerCommand {
    pub(crate) program: PathBuf,
    /// HOST:PORT.
    pub(crate) coordinator: String,
    pub(crate) threads: usize,
    /// Folder of the workers' logs, one file each.
    pub(crate) logs: PathBuf,
}

/// The workers' processes.
pub(crate) struct Launcher {
    waiting: JoinSet<()>,
}

impl Launcher {
    /// Starts `workers` processes; each one's end is told as [`Event::Exited`].
    pub(crate) fn start(command: &WorkerCommand, workers: usize, events: &mpsc::Sender<Event>) -> Result<Self> {
        let mut waiting = JoinSet::new();
        for index in 0..workers {
            let worker = worker_id(index);
            let log = command.logs.join(format!("{worker}.log"));
            let mut child = spawn(command, index, &log)?;
            let events = events.clone();
            waiting.spawn(async move {
                let how = match child.wait().await {
                    Ok(status) => describe(status, &log),
                    Err(error) => format!("could not be waited for: {error}"),
                };
                _ = events.send(Event::Exited { worker, how }).await;
            });
        }
        Ok(Self { waiting })
    }

    /// Waits until all have left, and kills whoever does not.
    pub(crate) async fn finish(mut self) {
        let all_left = async { while self.waiting.join_next().await.is_some() {} };
        if tokio::time::timeout(MOST_LEAVING, all_left).await.is_err() {
            tracing::warn!("some workers did not leave within {MOST_LEAVING:?} and are killed");
        }
        // The children die with their tasks.
        self.waiting.shutdown().await;
    }
}

/// Where `thanos-worker` is: beside this program.
pub(crate) fn worker_program() -> Result<PathBuf> {
    let here = std::env::current_exe().context("this program's own path")?;
    let program = here.with_file_name("thanos-worker");
    if !program.is_file() {
        let message = format!("{} is not there: `make build` puts it beside thanos-coord", program.display());
        return Err(Fatal::new(EXIT_UNREACHABLE, message).into());
    }
    Ok(program)
}

fn worker_id(index: usize) -> String {
    format!("worker-{index}")
}

fn spawn(command: &WorkerCommand, index: usize, log: &Path) -> Result<Child> {
    let file = File::options().create(true).append(true).open(log).with_context(|| format!("{}", log.display()))?;
    Command::new(&command.program)
        .args(["--coordinator", &command.coordinator, "--id", &worker_id(index)])
        .args(["--local-rank", &index.to_string(), "--threads", &command.threads.to_string()])
        // One thread of OpenMP a worker, or the workers of a machine fight for its cores.
        .env("OMP_NUM_THREADS", command.threads.to_string())
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        // A Ctrl-C at the terminal is for the coordinator, which tells the workers.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("{} could not be started", command.program.display()))
}

/// How a process ended, with the telling line of its log if it did not end well.
fn describe(status: ExitStatus, log: &Path) -> String {
    let how = match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with exit code {code}"),
        (None, Some(signal)) => format!("was killed by signal {signal}"),
        (None, None) => "ended".into(),
    };
    if status.success() {
        return how;
    }
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let telling = |line: &&str| line.contains("ERROR") || line.contains("panicked at");
    let line = text.lines().rev().find(telling).or(text.lines().rev().find(|line| !line.trim().is_empty()));
    format!("{how} ({}: {})", log.display(), line.unwrap_or("it says nothing"))
}
