//! The processes of workers, or those that stand for workers on other machines: this program's own,
//! and those that an earlier coordinator of the run has started. Workers that still run when the
//! run is over are killed; if this process is killed itself, they wait for another coordinator
//! until their lease ends. [`LaunchTarget`] is how one is started.

mod adopted;
pub(crate) mod devices;
mod local;
mod log;
pub(crate) mod slurm;

use crate::run::{Event, ExitCause, Placement};
use crate::server::credentials::Credentials;
use crate::telemetry::trackers::secret_variables;
use crate::workers::devices::shared_nccl_variables;
use adopted::Adopted;
pub(crate) use adopted::is_worker_since;
use anyhow::{Context, Result};
pub(crate) use local::ThisMachine;
use log::first_error;
use std::collections::{HashMap, HashSet};
use std::fmt::Debug;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use thanos_transport::DeviceChoice;
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

/// How long workers may take to leave by themselves when a run is over.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Variable by which CUDA orders GPUs.
const DEVICE_ORDER: &str = "CUDA_DEVICE_ORDER";

/// Resolves when a process is to end; never, if the sender is gone.
type Killed = Pin<Box<dyn Future<Output = ()> + Send>>;

fn asked_to_end(asked: oneshot::Receiver<()>) -> Killed {
    Box::pin(async move {
        if asked.await.is_err() {
            std::future::pending::<()>().await;
        }
    })
}

/// Where workers are started, and how: one implementation a launcher.
pub(crate) trait LaunchTarget: Debug + Send + Sync {
    /// How far the workers are from this program, for timeouts.
    fn placement(&self) -> Placement;

    /// Names of the workers, each ending in `-N` with its place N among those of its machine.
    fn worker_ids(&self) -> Vec<String>;

    /// What starts a worker's program; the program's own arguments and the environment of a worker
    /// are added. The process stands for the worker: it ends when the worker does, with its exit
    /// code, or 128 + N after a signal, and killing it kills the worker. The program can read the
    /// files that its arguments name.
    fn command(&self, worker: &str, program: &Path) -> std::process::Command;

    /// File name of what [`Self::command`] runs: a restarted coordinator looks for such processes.
    fn process_name(&self, program: &Path) -> String;
}

/// What every worker is started with.
#[derive(Clone)]
pub(crate) struct WorkerCommand {
    pub(crate) program: PathBuf,
    /// HOST:PORT.
    pub(crate) coordinator: String,
    /// Where workers are invited; `None`: they need not be.
    pub(crate) credentials: Option<Arc<Credentials>>,
    pub(crate) threads: usize,
    pub(crate) device: DeviceChoice,
    /// Workers that share a GPU use NCCL all the same, for tests.
    pub(crate) shares_gpu_by_nccl: bool,
    pub(crate) target: Arc<dyn LaunchTarget>,
    /// Under which the workers reach each other; `None`: they find out.
    pub(crate) interface: Option<String>,
    /// Whether they show their metrics.
    pub(crate) shows: bool,
    /// Folder of the workers' logs, one file each.
    pub(crate) logs: PathBuf,
}

/// The workers' processes: each is started, waited for, and restarted when asked.
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
    /// Those that have a session, and are sent `Leave`.
    joined: HashSet<String>,
}

impl Launcher {
    /// A launcher that has started nothing yet; each process's end is reported as
    /// [`Event::Exited`].
    pub(crate) fn new(command: WorkerCommand, events: &mpsc::Sender<Event>) -> Self {
        Self { command, events: events.clone(), processes: Mutex::default() }
    }

    /// Starts all workers' processes.
    pub(crate) fn start(&self) -> Result<()> {
        for worker in self.command.target.worker_ids() {
            let child = self.command.spawn(&worker)?;
            self.spawn_after(worker, Some(child), Duration::ZERO);
        }
        Ok(())
    }

    /// Starts a worker's process again; one that cannot be started has ended.
    pub(crate) fn restart(&self, worker: &str, after: Duration) {
        self.spawn_after(worker.into(), None, after);
    }

    /// A worker has opened its session.
    pub(crate) fn joined(&self, worker: &str) {
        self.lock().joined.insert(worker.into());
    }

    /// Kills a worker's process, which may be stopped.
    pub(crate) fn kill(&self, worker: &str) {
        if let Some(kill) = self.lock().kill.remove(worker) {
            _ = kill.send(());
        }
    }

    /// Takes over the workers' processes that an earlier coordinator of this run started; those
    /// that are not there have ended.
    pub(crate) fn adopt_all(&self) {
        let workers = self.command.target.worker_ids();
        let program = self.command.target.process_name(&self.command.program);
        let mut found = Adopted::find(&workers, &self.command.coordinator, &program);
        for worker in workers {
            let process = found.remove(&worker);
            self.report_end(worker, |killed| async move {
                match process {
                    Some(process) => process.wait(killed).await,
                    None => ("ended while no coordinator was running".into(), ExitCause::Vanished),
                }
            });
        }
    }

    /// Starts a process unless there is one, waits for it, and reports how it ended.
    fn spawn_after(&self, worker: String, child: Option<Started>, after: Duration) {
        let (command, id) = (self.command.clone(), worker.clone());
        self.report_end(worker, |mut killed| async move {
            tokio::select! {
                () = tokio::time::sleep(after) => {}
                () = &mut killed => return ("was not restarted".into(), ExitCause::Hung),
            }
            match child.map_or_else(|| command.spawn_again(&id), Ok) {
                Ok(child) => child.wait(killed).await,
                Err(error) => (format!("could not be started: {error:#}"), ExitCause::NotStarted),
            }
        });
    }

    /// Reports how a worker's process ended, when it has, and why; it is to end when `killed`
    /// resolves.
    fn report_end<F>(&self, worker: String, ending: impl FnOnce(Killed) -> F)
    where
        F: Future<Output = (String, ExitCause)> + Send + 'static,
    {
        let events = self.events.clone();
        let (kill, killed) = oneshot::channel();
        let ended = ending(asked_to_end(killed));
        let mut processes = self.lock();
        processes.joined.remove(&worker);
        processes.kill.insert(worker.clone(), kill);
        processes.waiting.spawn(async move {
            let (how, cause) = ended.await;
            _ = events.send(Event::Exited { worker, how, cause }).await;
        });
    }

    /// Waits until all have exited, and kills those that do not, or that cannot know that they
    /// should.
    pub(crate) async fn finish(&self) {
        let Processes { mut waiting, kill, joined } = std::mem::take(&mut *self.lock());
        for (_, kill) in kill.into_iter().filter(|(worker, _)| !joined.contains(worker)) {
            // No session will notify it that the run is over.
            _ = kill.send(());
        }
        let all_left = async { while waiting.join_next().await.is_some() {} };
        if tokio::time::timeout(LEAVE_TIMEOUT, all_left).await.is_err() {
            tracing::warn!("some workers did not exit within {LEAVE_TIMEOUT:?} and are killed");
        }
        // The processes die with their tasks.
        waiting.shutdown().await;
    }

    fn lock(&self) -> MutexGuard<'_, Processes> {
        self.processes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A worker's process, and where its log began when it was started: earlier processes wrote to the
/// same file.
struct Started {
    child: Child,
    log: PathBuf,
    log_begins_at: u64,
}

impl Started {
    /// Waits for the process to end, by itself or killed on demand, and returns how it ended, and
    /// why.
    async fn wait(mut self, killed: Killed) -> (String, ExitCause) {
        let (ended, is_hung) = tokio::select! {
            ended = self.child.wait() => (ended, false),
            () = killed => match self.child.kill().await {
                Ok(()) => (self.child.wait().await, true),
                Err(error) => (Err(error), true),
            },
        };
        match ended {
            Ok(_) if is_hung => ("was killed by the coordinator".into(), ExitCause::Hung),
            Ok(status) => self.describe(status),
            Err(error) => (format!("could not be waited for: {error}"), ExitCause::Vanished),
        }
    }

    /// How a process ended by itself, with the first error of its log if it did not end well.
    fn describe(&self, status: ExitStatus) -> (String, ExitCause) {
        let (how, cause) = match (signal_of(status), status.code()) {
            (Some(signal), _) => {
                (format!("was killed by signal {signal}"), ExitCause::Signalled(signal))
            }
            (None, code) => {
                let code = code.unwrap_or_default();
                (format!("ended with exit code {code}"), ExitCause::Exited(code))
            }
        };
        // A process that was killed or asked to stop from outside has logged nothing about it.
        if status.success() || cause.is_external() || cause.is_stop_request() {
            return (how, cause);
        }
        let error = first_error(&self.log, self.log_begins_at)
            .unwrap_or_else(|| "it logged nothing".into());
        (format!("{how} ({}: {error})", self.log.display()), cause)
    }
}

impl WorkerCommand {
    fn log(&self, worker: &str) -> PathBuf {
        self.logs.join(format!("{worker}.log"))
    }

    /// What starts a worker.
    fn build(&self, worker: &str) -> Result<Command> {
        let log = self.log(worker);
        let file = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("{}", log.display()))?;
        let (_, index) = worker.rsplit_once('-').unwrap_or((worker, "0"));
        let mut command = self.target.command(worker, &self.program);
        let (coordinator, threads) = (self.coordinator.as_str(), self.threads);
        WorkerProcess { coordinator, id: worker, local_rank: index, threads, device: self.device }
            .put_into(&mut command);
        let mut command = Command::from(command);
        match &self.credentials {
            Some(credentials) => {
                command.arg("--credentials").arg(credentials.invite(worker).context("credentials")?)
            }
            None => command.arg("--insecure"),
        };
        if self.shows {
            command.args(["--status-port", "0"]);
        }
        if let Some(interface) = &self.interface {
            command.args(["--interface", interface]);
        }
        if self.shares_gpu_by_nccl {
            command.envs(shared_nccl_variables(worker, self.interface.is_some()));
        }
        command
            // What this program was passed is not for its workers.
            .env_remove("LISTEN_FDS")
            .env_remove("LISTEN_FDS_FIRST_FD")
            .stdout(file.try_clone()?)
            .stderr(file)
            .kill_on_drop(true);
        Ok(command)
    }

    fn spawn(&self, worker: &str) -> Result<Started> {
        self.spawned(self.build(worker)?, worker)
    }

    /// As [`Self::spawn`]; a failpoint of a test breaks the first process only.
    fn spawn_again(&self, worker: &str) -> Result<Started> {
        let mut command = self.build(worker)?;
        command.env_remove("FAILPOINTS");
        self.spawned(command, worker)
    }

    fn spawned(&self, mut command: Command, worker: &str) -> Result<Started> {
        let log = self.log(worker);
        let log_begins_at = std::fs::metadata(&log).map_or(0, |log| log.len());
        let started = command.spawn();
        let child = started.with_context(|| {
            let program = command.as_std().get_program().to_string_lossy();
            format!("{program} could not be started")
        })?;
        Ok(Started { child, log, log_begins_at })
    }
}

/// What every worker's process is started with, whichever program starts it.
pub(crate) struct WorkerProcess<'a> {
    /// HOST:PORT.
    pub(crate) coordinator: &'a str,
    pub(crate) id: &'a str,
    /// Its place among the workers of its machine, from 0.
    pub(crate) local_rank: &'a str,
    pub(crate) threads: usize,
    pub(crate) device: DeviceChoice,
}

impl WorkerProcess<'_> {
    pub(crate) fn put_into(&self, command: &mut std::process::Command) {
        let threads = self.threads.to_string();
        command
            .args(["--coordinator", self.coordinator, "--id", self.id])
            .args(["--local-rank", self.local_rank, "--threads", &threads])
            // Otherwise the workers of a machine compete for its cores.
            .env("OMP_NUM_THREADS", &threads)
            .stdin(Stdio::null())
            // A Ctrl-C at the terminal reaches them once: through the process that starts them.
            .process_group(0);
        for secret in secret_variables() {
            command.env_remove(secret);
        }
        if self.device != DeviceChoice::Auto {
            command.args(["--device", &self.device.to_string()]);
        }
        // CUDA numbers GPUs as nvidia-smi does, and as they are reported.
        if std::env::var_os(DEVICE_ORDER).is_none() {
            command.env(DEVICE_ORDER, "PCI_BUS_ID");
        }
    }
}

/// The signal that ended a process, or, as `srun` says it, the process that it stands for.
fn signal_of(status: ExitStatus) -> Option<i32> {
    status.signal().or(status.code().filter(|code| *code > 128).map(|code| code - 128))
}

#[cfg(test)]
mod tests;
