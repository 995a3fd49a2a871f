//! The vocabulary of the rules: what happened, what is to be done about it, and what users are
//! notified of.

use nix::sys::signal::Signal;
use std::time::Duration;
use thanos_proto::{
    BenchReport, CheckpointRef, CheckpointWritten, Collectives, Command, Device, Evaluated, Hello,
    StageResult, StepDone, WorkerEvent,
};

const SIGKILL: i32 = 9;

/// A session, as the server numbers them.
pub(crate) type SessionId = u64;

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Event {
    /// A worker opened a session and introduced itself.
    Opened {
        session: SessionId,
        hello: Hello,
    },
    Received {
        session: SessionId,
        event: WorkerEvent,
    },
    /// The session's stream ended.
    Closed {
        session: SessionId,
    },
    /// A worker's process has exited; `how` describes it to users.
    Exited {
        worker: String,
        how: String,
        cause: ExitCause,
    },
    /// The checkpoint that this session has written was committed, or given up.
    Committed {
        session: SessionId,
        commit: CommitOutcome,
    },
    /// The ranks of this generation were sent their `Begin`, which had waited for the disk.
    BeginSent {
        generation: u64,
    },
    /// The user, or the machine, wants the run to stop where it can be resumed.
    StopRequested {
        reason: String,
    },
    /// The run directory cannot be written, and why; `None`: it can be again.
    Storage {
        problem: Option<String>,
    },
    Tick,
}

/// How the commit of a checkpoint ended.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct CommitOutcome {
    pub(crate) stage: String,
    pub(crate) step: u64,
    /// Why it was given up, if so.
    pub(crate) outcome: Result<CheckpointRef, String>,
    /// Of a stage that is complete with it.
    pub(crate) result: Option<StageResult>,
}

/// Why a worker's process has exited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExitCause {
    /// By itself, with this exit code.
    Exited(i32),
    /// By this signal, which the coordinator did not send.
    Signalled(i32),
    /// The coordinator killed it: it was hung, or sent no heartbeats.
    Hung,
    /// Its process could not be started.
    NotStarted,
    /// An earlier coordinator had started it: its process has disappeared, or did not come back.
    Vanished,
}

impl ExitCause {
    /// Whether it was ended from outside, which does not show whether it would have worked.
    pub(crate) fn is_external(self) -> bool {
        matches!(self, Self::Signalled(SIGKILL) | Self::Hung | Self::Vanished)
    }

    /// Whether it was a stop request, which came before the worker could handle it.
    pub(crate) fn is_stop_request(self) -> bool {
        matches!(self, Self::Signalled(signal) if is_stop_signal(signal))
    }
}

/// Whether a process that ends by this signal, unable to handle it yet, was asked to stop.
pub(crate) fn is_stop_signal(signal: i32) -> bool {
    [Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM, Signal::SIGUSR1]
        .iter()
        .any(|stop| *stop as i32 == signal)
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Effect {
    Send {
        session: SessionId,
        command: Command,
    },
    /// Give a new generation an empty rendezvous, before it is sent to its ranks.
    OpenStore {
        generation: u64,
    },
    /// Append a line to `steps.jsonl`.
    Record(StepDone),
    /// Commit what rank 0 has written, and answer with [`Event::Committed`].
    Commit {
        session: SessionId,
        written: CheckpointWritten,
    },
    Notify(Notice),
    /// Start a worker's process again, if this program starts workers.
    Restart {
        worker: String,
        after: Duration,
    },
    /// End a worker's process, which does not answer.
    Kill {
        worker: String,
    },
    /// Take out of `steps.jsonl` what will be done again: all but the steps of these stages, and
    /// the first ones of another.
    CutSteps {
        stages: Vec<String>,
        first: Option<(String, u64)>,
    },
    /// The run is over; nothing follows.
    End(Verdict),
}

/// What a user may want to read, and `events.jsonl` keeps.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Notice {
    Joined {
        worker: String,
        host: String,
        pid: u32,
        device: Device,
    },
    /// A worker has a pack that it did not see: `bytes` came over the session, `from` were there.
    Fetched {
        worker: String,
        split: String,
        from: u64,
        bytes: u64,
    },
    Refused {
        worker: String,
        reason: String,
    },
    Began {
        generation: u64,
        workers: Vec<String>,
        /// On what they train, as people read it.
        devices: String,
        collectives: Collectives,
    },
    Evaluated(Evaluated),
    Saved {
        stage: String,
        step: u64,
    },
    NotSaved {
        stage: String,
        step: u64,
        reason: String,
    },
    StageComplete(StageResult),
    /// A rank of a benchmark reports what it measured.
    Benched(BenchReport),
    Stopping {
        reason: String,
    },
    /// A worker received SIGTERM, and most others did not: it trains on until it is killed, at most
    /// this long.
    Terminating {
        worker: String,
        limit: Duration,
    },
    /// The run ends, and this worker saves its state first: no checkpoint has it.
    SavingBeforeEnd {
        worker: String,
        stage: String,
        step: u64,
    },
    /// The run directory cannot be written: training pauses when too many steps wait to be
    /// recorded.
    StorageBlocked {
        problem: String,
    },
    StorageRecovered {
        seconds: f64,
    },
    /// The time for a stop is over: what was done since the last checkpoint will be done again.
    GraceOver,
    /// An update was skipped because of a non-finite value.
    Skipped {
        stage: String,
        step: u64,
        problem: String,
    },
    /// Ranks whose state was not that of the others were given it.
    Repaired {
        problem: String,
    },
    /// The others wait for this worker, this share of their time.
    Straggler {
        worker: String,
        last_position: String,
        share: f64,
    },
    Lost {
        worker: String,
        reason: String,
    },
    /// A rank left its generation because of an error that is not a lost connection; the step is
    /// made again once.
    GroupFailed {
        worker: String,
        reason: String,
    },
    Restarting {
        worker: String,
        how: String,
        cause: ExitCause,
        restart: u32,
    },
    /// It was started too often without a step: the run continues without it.
    Abandoned {
        worker: String,
        how: String,
    },
    /// Training continues after this step, after a loss.
    Recovered {
        generation: u64,
        stage: String,
        step: u64,
        seconds: f64,
        from: RecoveredFrom,
    },
}

/// Where a new generation has its state from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RecoveredFrom {
    /// The memory of this worker.
    Memory(String),
    Checkpoint,
    /// The stage begins.
    Start,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Done,
    /// At a common step; `None`: before the first one.
    Stopped {
        at: Option<(String, u64)>,
    },
    Failed {
        message: String,
        exit_code: u8,
    },
}
