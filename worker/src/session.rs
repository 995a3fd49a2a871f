//! The worker's session with its coordinator: one gRPC stream on a thread of its own, so that a stalled step still
//! heartbeats and a run that is over ends a worker that hangs in a collective. It decides nothing about training.

mod packs;
mod store;
mod stream;

use anyhow::{Context, Result, bail};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use thanos_c10d::KeyValueStore;
use thanos_proto::{Begin, CheckpointRef, Command, Heartbeat, Hello, Welcome, WorkerEvent};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

/// Events that may wait for the network; a full queue makes the step wait.
const MOST_EVENTS: usize = 1024;
/// How long a coordinator may take to answer a `Hello`, or a checkpoint.
const MOST_ANSWER: Duration = Duration::from_secs(120);
/// The run, as one worker talks to it.
pub(crate) struct Session {
    events: mpsc::Sender<WorkerEvent>,
    answers: Receiver<Command>,
    shared: Arc<Shared>,
    client: stream::Client,
    runtime: Runtime,
}

/// What the training thread and the session's thread both see.
struct Shared {
    stop: AtomicBool,
    /// The generation is to be left for one with more workers.
    regroup: AtomicBool,
    /// The worker has said its last word and waits for `Leave`.
    done: AtomicBool,
    heartbeat: Mutex<Heartbeat>,
}

impl Session {
    /// Connects to `coordinator` (host:port) and introduces itself; waits until the coordinator is up.
    pub(crate) fn connect(coordinator: &str, hello: Hello) -> Result<(Self, Welcome)> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let (events, outbound) = mpsc::channel(MOST_EVENTS);
        let (inbound, answers) = std::sync::mpsc::channel();
        let start = Heartbeat { generation: 0, stage: "start".into(), step: 0, phase: "start".into() };
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            regroup: AtomicBool::new(false),
            done: AtomicBool::new(false),
            heartbeat: Mutex::new(start),
        });
        let client = runtime
            .block_on(stream::open(coordinator, hello, outbound, inbound, shared.clone()))
            .with_context(|| format!("no coordinator at {coordinator}"))?;
        runtime.spawn(stream::heartbeats(events.clone(), shared.clone()));
        let session = Self { events, answers, shared, client, runtime };
        match session.answer("the coordinator's welcome")? {
            Command::Welcome(welcome) => Ok((session, welcome)),
            other => bail!("expected a welcome, got {other:?}"),
        }
    }

    /// Tells the coordinator; it is sent in order, and waits only when the queue is full.
    pub(crate) fn send(&self, event: WorkerEvent) -> Result<()> {
        self.events.blocking_send(event).context("the session with the coordinator has ended")
    }

    /// The way to the coordinator, for another thread.
    pub(crate) fn events(&self) -> mpsc::Sender<WorkerEvent> {
        self.events.clone()
    }

    /// Waits, as long as it takes, for a generation to be complete.
    pub(crate) fn begin(&self) -> Result<Begin> {
        loop {
            match self.answers.recv().context("the session with the coordinator has ended")? {
                Command::Begin(begin) => return Ok(begin),
                // Of a generation that is over: its commit is what this one may begin from.
                Command::Stop { .. } | Command::Committed(_) => {}
                other => bail!("expected the start of a generation, got {other:?}"),
            }
        }
    }

    /// Waits for the answer to `WorkerEvent::Checkpoint`.
    pub(crate) fn committed(&self) -> Result<Result<CheckpointRef, String>> {
        match self.answer("the commit of a checkpoint")? {
            Command::Committed(outcome) => Ok(outcome),
            other => bail!("expected the commit of a checkpoint, got {other:?}"),
        }
    }

    /// Whether the coordinator has asked for a stop. Ranks hear it at different steps: agree before acting.
    pub(crate) fn stop_requested(&self) -> bool {
        self.shared.stop.load(Ordering::Relaxed)
    }

    /// Whether the coordinator has asked for another generation. As with a stop: agree before acting.
    pub(crate) fn regroup_requested(&self) -> bool {
        self.shared.regroup.load(Ordering::Relaxed)
    }

    /// Says in the next heartbeat where this rank is.
    pub(crate) fn at(&self, stage: &str, step: u64, phase: &str) {
        let mut heartbeat = self.shared.heartbeat.lock().unwrap_or_else(PoisonError::into_inner);
        if heartbeat.stage != stage {
            heartbeat.stage = stage.into();
        }
        if heartbeat.phase != phase {
            heartbeat.phase = phase.into();
        }
        heartbeat.step = step;
    }

    /// Stamps heartbeats with a new generation, and returns the rendezvous of that generation.
    pub(crate) fn store(&self, generation: u64) -> Arc<dyn KeyValueStore> {
        self.shared.heartbeat.lock().unwrap_or_else(PoisonError::into_inner).generation = generation;
        Arc::new(store::CoordinatorStore::new(self.client.clone(), self.runtime.handle().clone(), generation))
    }

    /// Starts a stream of a pack's file, from an offset on.
    pub(crate) fn fetch_pack(&self, fingerprint: &str, offset: u64) -> Result<packs::PackParts> {
        packs::PackParts::open(self.client.clone(), self.runtime.handle().clone(), fingerprint, offset)
    }

    /// Where this rank last said it was.
    pub(crate) fn phase(&self) -> String {
        let heartbeat = self.shared.heartbeat.lock().unwrap_or_else(PoisonError::into_inner);
        match heartbeat.phase.as_str() {
            "start" => "start".into(),
            phase => format!("{phase} of step {} of stage {}", heartbeat.step, heartbeat.stage),
        }
    }

    /// Says the last word, and waits for the coordinator to close the session.
    pub(crate) fn leave(self, last_word: WorkerEvent) -> Result<()> {
        self.shared.done.store(true, Ordering::Relaxed);
        self.send(last_word)?;
        loop {
            match self.answers.recv_timeout(MOST_ANSWER) {
                Ok(Command::Leave { .. } | Command::Refused { .. }) | Err(RecvTimeoutError::Disconnected) => break,
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => bail!("the coordinator did not close the session in {MOST_ANSWER:?}"),
            }
        }
        self.runtime.shutdown_background();
        Ok(())
    }

    fn answer(&self, what: &str) -> Result<Command> {
        loop {
            match self.answers.recv_timeout(MOST_ANSWER) {
                Ok(Command::Refused { reason, exit_code }) => return Err(Refused { reason, exit_code }.into()),
                // Asked for a stop: the flag is set, the training loop agrees on the step.
                Ok(Command::Stop { .. }) => {}
                Ok(command) => return Ok(command),
                Err(RecvTimeoutError::Timeout) => bail!("{what} did not come within {MOST_ANSWER:?}"),
                Err(RecvTimeoutError::Disconnected) => bail!("the session ended before {what}"),
            }
        }
    }
}

/// The coordinator does not want this worker.
#[derive(Debug, thiserror::Error)]
#[error("refused by the coordinator: {reason}")]
pub(crate) struct Refused {
    pub reason: String,
    pub exit_code: u8,
}
