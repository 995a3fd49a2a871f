//! The workers of one machine or pod whose coordinator runs elsewhere: one process each, restarted
//! when it fails, as workers/policy.rs decides. It may be process 1 of a container: it handles stop
//! signals, forwards them once, reaps every process, and ends when the run does. It knows nothing
//! of a run.

mod policy;

use crate::exit::{EXIT_STOPPED, EXIT_UNREACHABLE, Fatal, PERMANENT};
use crate::signals::{DUPLICATE_INTERVAL, stop_and_child_signals};
use crate::terminal;
use crate::workers::WorkerProcess;
use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use policy::{Attempt, Ended, Next, after};
use signal_hook::consts::SIGCHLD;
use signal_hook::iterator::Signals;
use std::io::{BufRead, BufReader, PipeReader};
use std::net::{TcpStream, ToSocketAddrs};
use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};
use thanos_transport::DeviceChoice;

/// Between two kills of workers that have not ended yet: killed processes need a moment.
const KILL_INTERVAL: Duration = Duration::from_secs(1);
/// How long a coordinator may take to accept a connection, when this program asks whether there is
/// one.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long this program waits for the last lines of workers that have ended.
const LAST_LINES_TIMEOUT: Duration = Duration::from_secs(2);

/// What is started.
#[derive(Clone, Debug)]
pub(crate) struct LocalWorkers {
    pub(crate) program: PathBuf,
    pub(crate) count: usize,
    /// Number of the first worker in the run.
    pub(crate) first: usize,
    /// HOST:PORT.
    pub(crate) coordinator: String,
    /// Options of every worker, without those that differ.
    pub(crate) arguments: Vec<String>,
    pub(crate) threads: usize,
    pub(crate) device: DeviceChoice,
    /// Of the first worker; the next one has the next port.
    pub(crate) status_port: Option<u16>,
    /// How long a worker tries to reach the coordinator when it starts.
    pub(crate) wait: Duration,
    /// How long the workers may take to end after a stop signal, or after the first of them has
    /// ended for good.
    pub(crate) grace: Duration,
    pub(crate) max_restarts: u32,
}

/// Runs the workers until the run is over, and returns the exit code.
///
/// # Errors
/// 69 if a worker's process cannot be started.
pub(crate) fn run(what: &LocalWorkers) -> Result<u8> {
    let signals = watch_signals()?;
    let mut group = Group::new(what, Instant::now());
    loop {
        group.start_due(Instant::now())?;
        if let Some(code) = group.code() {
            group.logs.finish();
            return Ok(code);
        }
        match signals.recv_timeout(group.timeout(Instant::now())) {
            Ok(SIGCHLD) => group.reap()?,
            Ok(signal) => group.stop(Signal::try_from(signal)?, Instant::now()),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                return Err(Fatal::new(
                    EXIT_UNREACHABLE,
                    "the thread that receives signals has ended",
                )
                .into());
            }
        }
        group.kill_late(Instant::now());
    }
}

/// Stop signals and ends of processes, from now on.
fn watch_signals() -> Result<Receiver<i32>> {
    let mut signals = Signals::new(stop_and_child_signals()).context("handlers of stop signals")?;
    let (received, receiver) = channel();
    std::thread::spawn(move || {
        for signal in signals.forever() {
            if received.send(signal).is_err() {
                return;
            }
        }
    });
    Ok(receiver)
}

/// One worker's process.
#[derive(Clone, Copy, Debug)]
enum State {
    /// To be started then.
    Due(Instant),
    Running {
        pid: Pid,
        since: Instant,
    },
    /// Not restarted.
    Ended,
}

/// The group is ending: no worker is restarted.
#[derive(Clone, Copy, Debug)]
struct Ending {
    code: u8,
    /// The signal that asked for it arrived then; `None`: a worker has ended for good.
    signalled: Option<Instant>,
    /// When what still runs is killed.
    deadline: Instant,
}

struct Group<'a> {
    what: &'a LocalWorkers,
    states: Vec<State>,
    restarts: Vec<u32>,
    ending: Option<Ending>,
    /// Whether each that has ended for good had finished its run.
    all_finished: bool,
    logs: Logs,
}

impl<'a> Group<'a> {
    fn new(what: &'a LocalWorkers, now: Instant) -> Self {
        let (states, restarts) = (vec![State::Due(now); what.count], vec![0; what.count]);
        Self { what, states, restarts, ending: None, all_finished: true, logs: Logs::new() }
    }

    /// Starts the processes that are due.
    fn start_due(&mut self, now: Instant) -> Result<()> {
        for place in 0..self.states.len() {
            if matches!(self.states[place], State::Due(at) if at <= now) {
                let pid = self.what.spawn((place, self.restarts[place] > 0), &self.logs)?;
                self.states[place] = State::Running { pid, since: now };
            }
        }
        Ok(())
    }

    /// The exit code, once all processes have ended for good.
    fn code(&self) -> Option<u8> {
        let ending = self
            .ending
            .filter(|_| self.states.iter().all(|state| matches!(state, State::Ended)))?;
        // All had finished when the signal arrived.
        let is_done =
            ending.signalled.is_some() && ending.code == EXIT_STOPPED && self.all_finished;
        Some(if is_done { 0 } else { ending.code })
    }

    /// How long nothing needs to be done unless a signal arrives.
    fn timeout(&self, now: Instant) -> Duration {
        let due = self.states.iter().filter_map(|state| match state {
            State::Due(at) => Some(*at),
            State::Running { .. } | State::Ended => None,
        });
        let next = due.chain(self.ending.map(|ending| ending.deadline)).min();
        next.map_or(Duration::from_secs(3600), |next| next.saturating_duration_since(now))
    }

    /// Takes note of every process that has ended. Process 1 inherits orphans, which are only
    /// reaped.
    fn reap(&mut self) -> Result<()> {
        loop {
            let (pid, ended) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => {
                    (pid, Ended::Exited(u8::try_from(code).unwrap_or(u8::MAX)))
                }
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, Ended::Killed(signal as i32)),
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(()),
                Ok(_) => continue,
                Err(error) => return Err(error).context("the ends of the workers' processes"),
            };
            let is_it =
                |state: &State| matches!(state, State::Running { pid: own, .. } if *own == pid);
            if let Some(place) = self.states.iter().position(is_it) {
                self.ended(place, ended, Instant::now());
            }
        }
    }

    fn ended(&mut self, place: usize, ended: Ended, now: Instant) {
        let State::Running { since, .. } = std::mem::replace(&mut self.states[place], State::Ended)
        else {
            return;
        };
        let worker = self.what.worker(place);
        if let Some(ending) = &mut self.ending {
            self.all_finished &= ended == Ended::Exited(0);
            match ended {
                Ended::Exited(code) if PERMANENT.contains(&code) => ending.code = code,
                _ => {}
            }
            return;
        }
        let attempt = Attempt {
            restarts: self.restarts[place],
            max_restarts: self.what.max_restarts,
            ran: now - since,
            wait: self.what.wait,
        };
        match after(ended, attempt, || accepts(&self.what.coordinator)) {
            Next::Restart(delay) => {
                self.restarts[place] += 1;
                self.states[place] = State::Due(now + delay);
                terminal::line(&format!("{worker} {ended}: restarting it in {delay:?}"));
            }
            Next::End(code) => {
                self.all_finished &= code == 0;
                if !matches!(code, 0 | EXIT_STOPPED) {
                    terminal::line(&format!(
                        "{worker} {ended}: the other workers have {:?} to exit",
                        self.what.grace
                    ));
                }
                self.end(Ending { code, signalled: None, deadline: now + self.what.grace });
            }
        }
    }

    fn end(&mut self, ending: Ending) {
        self.ending = Some(ending);
        for state in &mut self.states {
            if matches!(state, State::Due(_)) {
                *state = State::Ended;
                self.all_finished = false;
            }
        }
    }

    /// Forwards the first stop signal; a later one kills.
    fn stop(&mut self, signal: Signal, now: Instant) {
        match self.ending.and_then(|ending| ending.signalled) {
            Some(first) if now - first < DUPLICATE_INTERVAL => {}
            Some(_) => self.signal_all(Signal::SIGKILL),
            None => {
                terminal::line(&format!(
                    "{signal}: forwarded to the workers, which have {:?} to exit",
                    self.what.grace
                ));
                self.signal_all(signal);
                let (code, deadline) = match self.ending {
                    Some(ending) => (ending.code, ending.deadline.min(now + self.what.grace)),
                    None => (EXIT_STOPPED, now + self.what.grace),
                };
                self.end(Ending { code, signalled: Some(now), deadline });
            }
        }
    }

    fn kill_late(&mut self, now: Instant) {
        let Some(ending) = self.ending.as_mut().filter(|ending| ending.deadline <= now) else {
            return;
        };
        ending.deadline = now + KILL_INTERVAL;
        terminal::line(&format!(
            "workers are still running after {:?}: killing them",
            self.what.grace
        ));
        self.signal_all(Signal::SIGKILL);
    }

    fn signal_all(&self, signal: Signal) {
        for state in &self.states {
            if let State::Running { pid, .. } = state {
                // One that has just ended is reaped next.
                _ = kill(*pid, signal);
            }
        }
    }
}

impl LocalWorkers {
    fn worker(&self, place: usize) -> String {
        format!("worker-{}", self.first + place)
    }

    /// Starts a worker's process.
    fn spawn(&self, (place, again): (usize, bool), logs: &Logs) -> Result<Pid> {
        let worker = self.worker(place);
        let mut command = Command::new(&self.program);
        let (coordinator, local_rank, threads) =
            (self.coordinator.as_str(), place.to_string(), self.threads);
        WorkerProcess {
            coordinator,
            id: &worker,
            local_rank: &local_rank,
            threads,
            device: self.device,
        }
        .put_into(&mut command);
        command.args(["--wait", &format!("{}ms", self.wait.as_millis())]).args(&self.arguments);
        if let Some(first) = self.status_port {
            command.args(["--status-port", &(usize::from(first) + place).to_string()]);
        }
        if again {
            // A test's failpoint breaks the first process only.
            command.env_remove("FAILPOINTS");
        }
        let output = match self.count {
            1 => None,
            _ => {
                let (reader, writer) = std::io::pipe().context("a pipe for a worker's log")?;
                command.stdout(writer.try_clone()?).stderr(writer);
                Some(reader)
            }
        };
        let cannot = || {
            Fatal::new(EXIT_UNREACHABLE, format!("{} could not be started", self.program.display()))
        };
        let child = command.spawn().with_context(cannot)?;
        if let Some(output) = output {
            logs.copy_lines(output, worker);
        }
        Ok(Pid::from_raw(i32::try_from(child.id())?))
    }
}

/// Copies what workers log to standard error.
struct Logs {
    /// Each copying thread has one until its worker's pipe is closed.
    copying: Sender<()>,
    copied: Receiver<()>,
}

impl Logs {
    fn new() -> Self {
        let (copying, copied) = channel();
        Self { copying, copied }
    }

    /// Each line with the worker's name.
    fn copy_lines(&self, output: PipeReader, worker: String) {
        let copying = self.copying.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                terminal::line(&format!("{worker}: {}", String::from_utf8_lossy(&line)));
            }
            drop(copying);
        });
    }

    /// Waits for the last lines.
    fn finish(self) {
        drop(self.copying);
        // Nothing is ever sent: it ends when the last thread does.
        _ = self.copied.recv_timeout(LAST_LINES_TIMEOUT);
    }
}

/// Whether something listens at HOST:PORT.
fn accepts(coordinator: &str) -> bool {
    let addresses = coordinator.to_socket_addrs().into_iter().flatten();
    addresses.take(4).any(|address| TcpStream::connect_timeout(&address, CONNECT_TIMEOUT).is_ok())
}
