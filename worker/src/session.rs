//! The worker's session with its coordinator: one gRPC stream on a thread of its own, so that a
//! stalled step still heartbeats and a run that is over ends a worker that hangs in a collective. A
//! stream that breaks is opened again; the training thread sees it as
//! [`WorkerError::Disconnected`]. It decides nothing about training.

mod admission;
mod connection;
mod files;
mod packs;
mod signals;
mod store;
mod stream;

use crate::error::{Result, WorkerError};
use crate::run_files::{Disk, RunFiles};
use admission::Admission;
use anyhow::{Context, anyhow};
use axum::Router;
use axum::routing::get;
use connection::Connection;
pub(crate) use packs::PackParts;
use signals::StopRequest;
use std::cell::{OnceCell, RefCell};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use thanos_c10d::{Collectives, GroupAborter, KeyValueStore, ProcessGroup, collectives, exit_now};
use thanos_configs::TimeoutsConfig;
use thanos_formats::EXIT_SOFTWARE;
use thanos_proto::{
    BEFORE_STAGES, Begin, CheckpointRef, Command, Heartbeat, Hello, RankPhase, StepDone, Welcome,
    WorkerEvent,
};
use thanos_transport::{Guard, needs_guard, show};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

/// How long a coordinator may take to answer a `Hello`.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(120);
/// Reported steps that are not yet known to be in the ledger: with more, a step waits. Every rank
/// keeps as many, so that a restarted coordinator can be sent all that it lacks.
pub(crate) const MAX_UNRECORDED: usize = 64;

/// The run, as one worker talks to it.
pub(crate) struct Session {
    /// The stream in use, and those that were opened in its stead since.
    connection: RefCell<Connection>,
    lines: Receiver<Connection>,
    shared: Arc<Shared>,
    client: stream::Client,
    runtime: Runtime,
    /// Of the run's configuration, once it is known.
    timeouts: OnceCell<TimeoutsConfig>,
}

/// What the training thread and the session's thread both see.
struct Shared {
    stop: AtomicBool,
    /// When the stop that was asked for must be over; inside `None`: no limit was set.
    stop_deadline: OnceLock<Option<Instant>>,
    /// What the coordinator is to be asked, since this process received a stop signal.
    stop_request: StopRequest,
    /// The generation has ended: its group is broken.
    abandoned: AtomicBool,
    /// The worker has sent its last message and waits for `Leave`.
    done: AtomicBool,
    /// Certificate and key, PEM, of a run that is no insecure one.
    identity: OnceLock<(String, String)>,
    /// Where this worker shows its metrics.
    shows: OnceLock<SocketAddr>,
    position: Mutex<TrainingPosition>,
}

/// Where the training thread is.
struct TrainingPosition {
    heartbeat: Heartbeat,
    /// What had been counted when the generation began.
    before: Collectives,
    /// The newest generation that is to be left for one with more workers, and the newest that was
    /// abandoned; the `Begin` of either may come later.
    regroup: u64,
    abandoned: u64,
    /// Ends the generation's group; none between two generations, and once it was used.
    aborter: Option<GroupAborter>,
    /// When the phase began, and the time of earlier ones since they were asked for.
    phase_began: Instant,
    phase_seconds: BTreeMap<RankPhase, f64>,
}

impl TrainingPosition {
    fn end_phase(&mut self) {
        let now = Instant::now();
        let seconds =
            now.duration_since(std::mem::replace(&mut self.phase_began, now)).as_secs_f64();
        match self.phase_seconds.get_mut(&self.heartbeat.phase) {
            Some(sum) => *sum += seconds,
            None => _ = self.phase_seconds.insert(self.heartbeat.phase.clone(), seconds),
        }
    }
}

impl Shared {
    fn position(&self) -> MutexGuard<'_, TrainingPosition> {
        self.position.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Frees the training thread from a group that has lost a member; `generation`: only from that
    /// of this one, also if it has not begun here yet.
    fn break_group(&self, generation: Option<u64>) {
        let mut position = self.position();
        position.abandoned = position.abandoned.max(generation.unwrap_or(0));
        if generation.is_none_or(|generation| generation == position.heartbeat.generation)
            && let Some(aborter) = position.aborter.take()
        {
            self.abandoned.store(true, Ordering::Relaxed);
            aborter.abort();
        }
    }

    fn heartbeat(&self) -> Heartbeat {
        let position = self.position();
        let Collectives { entered, left, waited } = collectives();
        let waited = waited.saturating_sub(position.before.waited);
        Heartbeat {
            collectives: entered - position.before.entered,
            in_collective: entered > left,
            waited_ms: u64::try_from(waited.as_millis()).unwrap_or(u64::MAX),
            ..position.heartbeat.clone()
        }
    }
}

impl Session {
    /// Connects to `coordinator` (host:port) and introduces itself; waits until the coordinator is
    /// up. `credentials` is a folder; without one nothing is encrypted.
    ///
    /// # Errors
    /// [`WorkerError::Refused`] if this worker may not take part, [`WorkerError::StoppedWaiting`]
    /// if a stop signal arrived before there was a session.
    pub(crate) fn connect(
        (coordinator, wait): (&str, Duration),
        credentials: Option<&Path>,
        hello: Hello,
    ) -> Result<(Self, Welcome)> {
        let admission = Admission::read(credentials)?;
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let heartbeat = Heartbeat {
            generation: 0,
            stage: BEFORE_STAGES.into(),
            step: 0,
            phase: RankPhase::Start,
            collectives: 0,
            waited_ms: 0,
            progress: 0,
            in_collective: false,
        };
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            stop_deadline: OnceLock::new(),
            stop_request: StopRequest::new(None),
            abandoned: AtomicBool::new(false),
            done: AtomicBool::new(false),
            identity: OnceLock::new(),
            shows: OnceLock::new(),
            position: Mutex::new(TrainingPosition {
                heartbeat,
                before: collectives(),
                regroup: 0,
                abandoned: 0,
                aborter: None,
                phase_began: Instant::now(),
                phase_seconds: BTreeMap::new(),
            }),
        });
        {
            let _inside = runtime.enter();
            signals::handle(shared.stop_request.clone(), hello.worker_id.clone())?;
        }
        let (opened, lines) = std::sync::mpsc::channel();
        let reconnector =
            stream::Reconnector::new(coordinator, admission, hello, (shared.clone(), opened));
        let (reconnector, client, connection) = runtime.block_on(reconnector.open_first(wait))?;
        let kept = runtime.spawn(reconnector.pump_until_left());
        // Without its session a worker would be an orphan that no coordinator knows of.
        runtime.spawn(async move {
            if kept.await.is_err_and(|error| error.is_panic()) {
                exit_now(EXIT_SOFTWARE);
            }
        });
        let connection = RefCell::new(connection);
        let session =
            Self { connection, lines, shared, client, runtime, timeouts: OnceCell::new() };
        match session.answer("the coordinator's welcome", WELCOME_TIMEOUT)? {
            Command::Welcome(welcome) => Ok((session, welcome)),
            other => Err(unexpected("a welcome", &other)),
        }
    }

    /// Sends an event to the coordinator, in order, and waits only when the queue is full.
    ///
    /// # Errors
    /// [`WorkerError::Disconnected`].
    pub(crate) fn send(&self, event: WorkerEvent) -> Result<()> {
        self.connection.borrow().send(event)
    }

    /// Sends a step, once no more than [`MAX_UNRECORDED`] are on their way to the ledger.
    ///
    /// # Errors
    /// [`WorkerError::Disconnected`].
    pub(crate) fn send_step(&self, step: StepDone) -> Result<()> {
        self.connection.borrow().send_step(step)
    }

    /// Sends what this worker is ready with, on a stream that lives.
    pub(crate) fn announce(&self, event: &WorkerEvent) -> Result<()> {
        while self.connection.borrow().send(event.clone()).is_err() {
            self.next_line()?;
        }
        Ok(())
    }

    /// From here on the configuration's timeouts are in force; their defaults were before.
    pub(crate) fn set_timeouts(&self, timeouts: &TimeoutsConfig) {
        _ = self.timeouts.set(timeouts.clone());
    }

    fn timeouts(&self) -> TimeoutsConfig {
        self.timeouts.get().cloned().unwrap_or_default()
    }

    /// Waits for the stream that is opened in a lost one's stead; the session's thread ends the
    /// process if none is.
    fn next_line(&self) -> Result<()> {
        *self.connection.borrow_mut() =
            self.lines.recv().context("the session's thread has ended")?;
        Ok(())
    }

    /// The way to the coordinator, for another thread.
    pub(crate) fn events(&self) -> mpsc::Sender<WorkerEvent> {
        self.connection.borrow().events()
    }

    /// Waits, as long as it takes, for a generation to be complete, or to be asked to save what
    /// this worker holds.
    ///
    /// # Errors
    /// [`WorkerError::Disconnected`].
    pub(crate) fn next(&self) -> Result<Next> {
        loop {
            match self.connection.borrow().wait()? {
                Command::Begin(begin) => return Ok(Next::Begin(begin)),
                Command::Save => return Ok(Next::Save),
                // Of a generation that is over: its commit is what this one may begin from.
                Command::Stop { .. } | Command::Committed(_) => {}
                other => return Err(unexpected("the start of a generation", &other)),
            }
        }
    }

    /// Waits for the answer to `WorkerEvent::Checkpoint`.
    pub(crate) fn committed(&self) -> Result<Result<CheckpointRef, String>> {
        let limit = Duration::from_secs_f64(self.timeouts().commit_seconds);
        match self.answer("the commit of a checkpoint", limit)? {
            Command::Committed(outcome) => Ok(outcome),
            other => Err(unexpected("the commit of a checkpoint", &other)),
        }
    }

    /// The answer to `WorkerEvent::Checkpoint`; `None`: it has not come yet.
    pub(crate) fn try_committed(&self) -> Result<Option<Result<CheckpointRef, String>>> {
        match self.answer_within(Duration::ZERO)? {
            Some(Command::Committed(outcome)) => Ok(Some(outcome)),
            Some(other) => Err(unexpected("the commit of a checkpoint", &other)),
            None => Ok(None),
        }
    }

    /// Whether the coordinator has asked for a stop. Ranks see it at different steps: agree before
    /// acting.
    pub(crate) fn stop_requested(&self) -> bool {
        self.shared.stop.load(Ordering::Relaxed)
    }

    /// When a stop that was asked for must be over; `None`: none was asked for, or no limit was
    /// set.
    pub(crate) fn stop_deadline(&self) -> Option<Instant> {
        self.shared.stop_deadline.get().copied().flatten()
    }

    /// Whether the group of this generation was ended, as a peer or the coordinator is lost.
    pub(crate) fn generation_is_over(&self) -> bool {
        self.shared.abandoned.load(Ordering::Relaxed)
    }

    /// The same, for a test without a session.
    pub(crate) fn stop_flag(&self) -> StopFlag {
        StopFlag(self.shared.clone())
    }

    /// Whether the coordinator has asked for another generation. As with a stop: agree before
    /// acting.
    pub(crate) fn regroup_requested(&self) -> bool {
        let position = self.shared.position();
        position.regroup >= position.heartbeat.generation
    }

    /// The newest generation that this worker was in.
    pub(crate) fn generation(&self) -> u64 {
        self.shared.position().heartbeat.generation
    }

    /// Says in the next heartbeat where this rank is.
    pub(crate) fn enter_phase(&self, stage: &str, step: u64, phase: RankPhase) {
        let mut position = self.shared.position();
        position.end_phase();
        let heartbeat = &mut position.heartbeat;
        if heartbeat.stage != stage {
            heartbeat.stage = stage.into();
        }
        (heartbeat.phase, heartbeat.step) = (phase, step);
    }

    /// Seconds that were spent in each phase since this was asked for the last time; those that a
    /// GPU has measured are its own. So long of the forward pass was the exchange of candidates.
    pub(crate) fn take_phase_seconds(
        &self,
        on_gpu: BTreeMap<RankPhase, f64>,
        gathering: Duration,
    ) -> BTreeMap<RankPhase, f64> {
        let mut position = self.shared.position();
        position.end_phase();
        let mut seconds = std::mem::take(&mut position.phase_seconds);
        seconds.extend(on_gpu);
        if let Some(forward) = seconds.get_mut(&RankPhase::Forward) {
            *forward -= gathering.as_secs_f64();
        }
        seconds.insert(RankPhase::Gather, gathering.as_secs_f64());
        seconds
    }

    /// Whether anyone can read this process's metrics.
    pub(crate) fn serves_metrics(&self) -> bool {
        self.shared.shows.get().is_some()
    }

    /// Stamps heartbeats with a new generation, whose group is made next, and returns its
    /// rendezvous.
    ///
    /// # Errors
    /// [`WorkerError::GenerationOver`] if it has been abandoned already.
    pub(crate) fn enter(
        &self,
        generation: u64,
        world_size: usize,
    ) -> Result<Arc<dyn KeyValueStore>> {
        let mut position = self.shared.position();
        position.heartbeat.generation = generation;
        if position.abandoned >= generation {
            return Err(WorkerError::GenerationOver);
        }
        (position.before, position.aborter) = (collectives(), Some(GroupAborter::new()));
        self.shared.abandoned.store(false, Ordering::Relaxed);
        let (client, runtime) = (self.client.clone(), self.runtime.handle().clone());
        let (shared, place) = (self.shared.clone(), (generation, world_size));
        let is_over = move || shared.abandoned.load(Ordering::Relaxed);
        Ok(Arc::new(store::CoordinatorStore::new(client, runtime, place, is_over)))
    }

    /// The generation's group is connected: from now on it is what ends with the generation.
    ///
    /// # Errors
    /// [`WorkerError::GenerationOver`] if it has ended meanwhile.
    pub(crate) fn connected(&self, group: &ProcessGroup) -> Result<()> {
        match &mut self.shared.position().aborter {
            Some(aborter) => {
                aborter.watch(group);
                Ok(())
            }
            None => Err(WorkerError::GenerationOver),
        }
    }

    /// The group of the generation is closed: nothing is left to be aborted.
    pub(crate) fn leave_group(&self) {
        self.shared.position().aborter = None;
    }

    /// Serves this process's metrics; where other machines can reach them, for the scrape token
    /// alone.
    pub(crate) fn show(
        &self,
        address: SocketAddr,
        scrape_token_sha256: Option<&str>,
        page: impl FnOnce() -> anyhow::Result<Router>,
    ) -> anyhow::Result<()> {
        let _inside = self.runtime.enter();
        let listener = std::net::TcpListener::bind(address)
            .with_context(|| format!("--status-port: {address}"))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let identity = self.shared.identity.get().filter(|_| needs_guard(address));
        let guard = match (identity, scrape_token_sha256) {
            (Some((certificate, key)), Some(token_sha256)) => {
                let tls = Arc::new(admission::server(certificate, key)?);
                Some(Guard { tls, token_sha256: token_sha256.into(), cookie: None })
            }
            _ => None,
        };
        let alive = Router::new().route("/healthz", get(|| async { "alive\n" }));
        show(TcpListener::from_std(listener)?, guard, (alive, page()?))?;
        _ = self.shared.shows.set(address);
        Ok(())
    }

    /// Starts a stream of a pack's file, from an offset on.
    pub(crate) fn fetch_pack(&self, fingerprint: &str, offset: u64) -> anyhow::Result<PackParts> {
        PackParts::open(self.client.clone(), self.runtime.handle().clone(), fingerprint, offset)
    }

    /// Where the files of checkpoints are: in the run directory, if this machine sees it.
    pub(crate) fn run_files(&self, run_dir: &Path, run_id: &str) -> Arc<dyn RunFiles> {
        match Disk::of_run(run_dir, run_id) {
            Some(disk) => Arc::new(disk),
            None => {
                tracing::info!(
                    "{} is not seen here: checkpoints go to the coordinator",
                    run_dir.display()
                );
                let (client, runtime) = (self.client.clone(), self.runtime.handle().clone());
                Arc::new(files::Remote {
                    client,
                    runtime,
                    timeout: Duration::from_secs_f64(self.timeouts().transfer_seconds),
                })
            }
        }
    }

    /// Where this rank last said it was.
    pub(crate) fn position(&self) -> String {
        let position = self.shared.position();
        let Heartbeat { phase, step, stage, .. } = &position.heartbeat;
        match phase {
            RankPhase::Start => phase.label().into(),
            _ => format!("{} of step {step} of stage {stage}", phase.label()),
        }
    }

    /// Sends the last message, and waits for the coordinator to close the session.
    pub(crate) fn leave(self, last_event: &WorkerEvent) -> Result<()> {
        self.shared.done.store(true, Ordering::Relaxed);
        self.announce(last_event)?;
        loop {
            let limit = Duration::from_secs_f64(self.timeouts().commit_seconds);
            let answer = self.connection.borrow().wait_for(limit);
            match answer {
                Ok(Command::Leave { .. } | Command::Refused { .. }) => break,
                Ok(_) => {}
                // It may not have been heard: said again.
                Err(RecvTimeoutError::Disconnected) => self.announce(last_event)?,
                Err(RecvTimeoutError::Timeout) => {
                    return Err(anyhow!(
                        "the coordinator did not close the session within {limit:?}"
                    )
                    .into());
                }
            }
        }
        self.runtime.shutdown_background();
        Ok(())
    }

    fn answer(&self, what: &str, limit: Duration) -> Result<Command> {
        self.answer_within(limit)?
            .ok_or_else(|| anyhow!("{what} did not come within {limit:?}").into())
    }

    /// The coordinator's next answer; `None`: none came within `limit`.
    fn answer_within(&self, limit: Duration) -> Result<Option<Command>> {
        loop {
            match self.connection.borrow().wait_for(limit) {
                Ok(Command::Refused { reason, exit_code }) => {
                    return Err(WorkerError::Refused { reason, exit_code });
                }
                // A stop is requested: the flag is set, the training loop agrees on the step.
                Ok(Command::Stop { .. }) => {}
                Ok(command) => return Ok(Some(command)),
                Err(RecvTimeoutError::Timeout) => return Ok(None),
                Err(RecvTimeoutError::Disconnected) => return Err(WorkerError::Disconnected),
            }
        }
    }
}

/// What a waiting worker is to do next.
pub(crate) enum Next {
    Begin(Begin),
    /// The run ends, and no checkpoint has what this worker holds.
    Save,
}

/// Whether what is not a step should be given up: a stop was requested, or the generation has
/// ended. Ranks see it at different moments: agree before acting.
#[derive(Clone)]
pub(crate) struct StopFlag(Arc<Shared>);

impl StopFlag {
    pub(crate) fn is_set(&self) -> bool {
        self.0.stop.load(Ordering::Relaxed) || self.0.abandoned.load(Ordering::Relaxed)
    }

    /// Reports progress that no collective or step shows.
    pub(crate) fn progressed(&self) {
        self.0.position().heartbeat.progress += 1;
    }
}

/// A command that is no answer to what was asked.
fn unexpected(expected: &str, got: &Command) -> WorkerError {
    anyhow!("expected {expected}, got {got:?}").into()
}
