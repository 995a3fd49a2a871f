//! The local launcher: worker processes on this machine. They end with the coordinator: each has a session whose end
//! ends it, and whoever is still there when the launcher is dropped is killed.

use crate::exit::{EXIT_UNREACHABLE, Fatal};
use crate::run::Event;
use anyhow::{Context, Result};
use std::collections::HashMap;
use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

/// How long workers may take to leave by themselves when a run is over.
const MOST_LEAVING: Duration = Duration::from_secs(10);

const SIGKILL: i32 = 9;

/// What a worker's id begins with; its place on this machine follows.
const WORKER: &str = "worker-";

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

/// The workers' processes: each is started, waited for, and started again when asked.
pub(crate) struct Launcher {
    command: WorkerCommand,
    events: mpsc::Sender<Event>,
    processes: Mutex<Processes>,
}

#[derive(Default)]
struct Processes {
    waiting: JoinSet<()>,
    /// Ends the process of a worker, by its id.
    kill: HashMap<String, oneshot::Sender<()>>,
}

impl Launcher {
    /// Starts `workers` processes; each one's end is told as [`Event::Exited`].
    pub(crate) fn start(command: WorkerCommand, workers: usize, events: &mpsc::Sender<Event>) -> Result<Self> {
        let launcher = Self { command, events: events.clone(), processes: Mutex::default() };
        for index in 0..workers {
            let worker = worker_id(index);
            let child = spawn(&launcher.command, &worker)?;
            launcher.watch(worker, Some(child), Duration::ZERO);
        }
        Ok(launcher)
    }

    /// Starts a worker's process again; one that cannot be started has ended.
    pub(crate) fn restart(&self, worker: &str, after: Duration) {
        self.watch(worker.into(), None, after);
    }

    /// Kills a worker's process, which may be stopped.
    pub(crate) fn kill(&self, worker: &str) {
        if let Some(kill) = self.lock().kill.remove(worker) {
            _ = kill.send(());
        }
    }

    /// Waits for a process, which is started first if there is none, and tells how it ended.
    fn watch(&self, worker: String, child: Option<Child>, after: Duration) {
        let (command, events) = (self.command.clone(), self.events.clone());
        let (kill, killed) = oneshot::channel();
        let mut processes = self.lock();
        processes.kill.insert(worker.clone(), kill);
        processes.waiting.spawn(async move {
            tokio::time::sleep(after).await;
            let child = child.map_or_else(|| spawn(&command, &worker), Ok);
            let how = match child {
                Ok(child) => wait(child, killed, &command.log(&worker)).await,
                Err(error) => format!("could not be started: {error:#}"),
            };
            _ = events.send(Event::Exited { worker, how }).await;
        });
    }

    /// Waits until all have left, and kills whoever does not.
    pub(crate) async fn finish(&self) {
        let mut waiting = std::mem::take(&mut self.lock().waiting);
        let all_left = async { while waiting.join_next().await.is_some() {} };
        if tokio::time::timeout(MOST_LEAVING, all_left).await.is_err() {
            tracing::warn!("some workers did not leave within {MOST_LEAVING:?} and are killed");
        }
        // The children die with their tasks.
        waiting.shutdown().await;
    }

    fn lock(&self) -> MutexGuard<'_, Processes> {
        self.processes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits for a process to end, by itself or killed on demand, and says how it ended.
async fn wait(mut child: Child, killed: oneshot::Receiver<()>, log: &Path) -> String {
    let ended = tokio::select! {
        ended = child.wait() => ended,
        Ok(()) = killed => match child.kill().await {
            Ok(()) => child.wait().await,
            Err(error) => Err(error),
        },
    };
    match ended {
        Ok(status) => describe(status, log),
        Err(error) => format!("could not be waited for: {error}"),
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
    format!("{WORKER}{index}")
}

impl WorkerCommand {
    fn log(&self, worker: &str) -> PathBuf {
        self.logs.join(format!("{worker}.log"))
    }
}

fn spawn(command: &WorkerCommand, worker: &str) -> Result<Child> {
    let log = command.log(worker);
    let file = File::options().create(true).append(true).open(&log).with_context(|| format!("{}", log.display()))?;
    let index = worker.strip_prefix(WORKER).unwrap_or_default();
    Command::new(&command.program)
        .args(["--coordinator", &command.coordinator, "--id", worker])
        .args(["--local-rank", index, "--threads", &command.threads.to_string()])
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
    // Who is killed from outside has nothing to say about it.
    if status.success() || status.signal() == Some(SIGKILL) {
        return how;
    }
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let telling = |line: &&str| line.contains("ERROR") || line.contains("panicked at");
    let line = text.lines().rev().find(telling).or(text.lines().rev().find(|line| !line.trim().is_empty()));
    format!("{how} ({}: {})", log.display(), line.unwrap_or("it says nothing"))
}
