//! The rules of a run, as one pure function: events go in, effects come out. There is no lock,
//! clock, socket, log or wire type here; `event_loop.rs` carries the effects out.

mod commits;
mod devices;
mod effect;
mod ending;
mod liveness;
mod member;
mod recovery;
mod repeated_failures;
mod termination;
mod timeouts;

use ending::Ending;
use liveness::Pace;
use member::{Member, MemberState, Seat};
use repeated_failures::RepeatedFailures;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use thanos_proto::{CheckpointRef, Command, DeviceKind, Fetching, Hello, Welcome, WorkerEvent};

pub(crate) use devices::CollectivesChoice;
pub(crate) use effect::{
    CommitOutcome, Effect, Event, ExitCause, Notice, RecoveredFrom, SessionId, Verdict,
    is_stop_signal,
};
pub(crate) use timeouts::{Placement, Timeouts};

use crate::exit::{EXIT_CONFIG, EXIT_STOPPED, EXIT_UNREACHABLE};

/// Two events further apart than this mean that this process itself was paused: only this much of
/// the pause is counted towards any timeout of a worker.
const MAX_GAP: Duration = Duration::from_millis(500);
/// Steps between two acknowledgements that steps are recorded.
const RECORDED_INTERVAL: u64 = 16;
/// Generations without a step between them before the run is abandoned.
const MAX_IDLE_GENERATIONS: u32 = 10;
/// Delay before a worker is restarted for the second time; it doubles each time. The first restart
/// has none.
const RESTART_BACKOFF: Duration = Duration::from_secs(1);

/// What is known when a run starts, or restarts.
#[derive(Clone, Debug)]
pub(crate) struct Start {
    /// Maximum of workers, and minimum: a run continues with fewer than the maximum once it has
    /// waited for more.
    pub workers: usize,
    pub min_workers: usize,
    pub rendezvous_timeout: Duration,
    /// This program starts the workers.
    pub launched: bool,
    pub welcome: Welcome,
    pub version: String,
    /// The greatest generation that this run directory has seen.
    pub last_generation: u64,
    /// Names of the plan's stages, in order.
    pub stages: Vec<String>,
    /// Index of the first stage that is not complete, and where it stands.
    pub stage: usize,
    pub resume: Option<CheckpointRef>,
    pub complete: Vec<CheckpointRef>,
    /// The stage that the ledger is in, and the step that it lacks; it may be ahead of `resume`.
    pub next_step: Option<(String, u64)>,
    /// Workers of the newest generation of an earlier coordinator of this run: they may reconnect,
    /// with their state.
    pub adopted: Vec<String>,
    /// How long a stop may take; `None`: as long as it takes.
    pub grace: Option<Duration>,
    pub collectives: CollectivesChoice,
    /// Workers explicitly share a GPU.
    pub shares_gpu: bool,
    pub timeouts: Timeouts,
}

/// The state of a run.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    start: Start,
    phase: Phase,
    generation: u64,
    /// The ranks of the newest generation were sent their `Begin`: before, nothing can be expected
    /// of them.
    is_begin_sent: bool,
    /// What the workers of the first generation train on, and so all that follow.
    kind: Option<DeviceKind>,
    members: BTreeMap<SessionId, Member>,
    /// The stage in training and the step that comes next, as rank 0 reports it.
    next_step: Option<(String, u64)>,
    stopped_at: Option<(String, u64)>,
    /// Since when (of `awake`) a rendezvous waits for nothing but workers that are not there.
    missing_since: Duration,
    /// Until when a generation waits for more workers than the minimum.
    rendezvous_deadline: Duration,
    /// A worker is ready while a generation trains, which was asked to regroup with it.
    growing: bool,
    /// When a worker may next cause a regroup, and how often it was lost again before the next
    /// step.
    growth: BTreeMap<String, Growth>,
    /// The run is to end: a stop was requested, or it was abandoned.
    ending: Option<Ending>,
    /// Time in which this process was able to read what workers sent: all their timeouts are
    /// measured in it.
    awake: Duration,
    last_event: Duration,
    /// Workers of an earlier coordinator were to come back.
    again: bool,
    pace: Pace,
    /// Commits that are in progress: a generation begins after them.
    committing: u32,
    /// The run directory cannot be written: why, and since when (of `awake`).
    storage: Option<(String, Duration)>,
    /// Workers that have joined at least once.
    joined: BTreeSet<String>,
    /// Restarts of each worker since it last took part in a step.
    restarts: BTreeMap<String, u32>,
    /// Generations since the last step.
    idle_generations: u32,
    /// The first loss since the last step, and when.
    first_loss: Option<(String, Duration)>,
    failures: RepeatedFailures,
}

#[derive(Clone, Debug, PartialEq)]
enum Phase {
    /// Waiting for workers: for the first time, or because a generation has lost one.
    Rendezvous {
        /// Of `awake`.
        since: Duration,
    },
    Training,
    /// A waiting worker writes a checkpoint of its state, the newest, before the run ends.
    Saving {
        session: SessionId,
        /// It was asked at this time (of `awake`); `None`: its last attempt failed.
        asked: Option<Duration>,
        /// When an attempt failed.
        failed: Duration,
        /// Of the first attempt.
        since: Duration,
    },
    Over,
}

/// How often a newcomer was lost before a generation with it made a step.
#[derive(Clone, Copy, Debug, Default)]
struct Growth {
    failures: u32,
    not_before: Duration,
}

impl Run {
    /// A run that waits for its workers; `now` is the time since some fixed moment, as in
    /// [`Run::apply`].
    pub(crate) fn new(start: Start, now: Duration) -> Self {
        let generation = start.last_generation;
        let (next_step, again) = (start.next_step.clone(), !start.adopted.is_empty());
        let rendezvous_deadline = start.rendezvous_timeout;
        Self {
            start,
            rendezvous_deadline,
            missing_since: Duration::ZERO,
            growing: false,
            growth: BTreeMap::new(),
            phase: Phase::Rendezvous { since: Duration::ZERO },
            generation,
            is_begin_sent: false,
            kind: None,
            members: BTreeMap::new(),
            next_step,
            stopped_at: None,
            ending: None,
            awake: Duration::ZERO,
            last_event: now,
            again,
            pace: Pace::default(),
            committing: 0,
            storage: None,
            joined: BTreeSet::new(),
            restarts: BTreeMap::new(),
            idle_generations: 0,
            first_loss: again.then(|| ("the coordinator ended unexpectedly".into(), now)),
            failures: RepeatedFailures::default(),
        }
    }

    /// The only way in which a run changes.
    pub(crate) fn apply(&mut self, event: Event, now: Duration) -> Vec<Effect> {
        self.awake += now.saturating_sub(self.last_event).min(MAX_GAP);
        self.last_event = now;
        if self.phase == Phase::Over {
            return self.reply_after_end(event);
        }
        match event {
            Event::Opened { session, hello } => self.opened(session, hello, now),
            Event::Received { session, event } => self.received(session, event, now),
            Event::Closed { session } => self.closed(session, now),
            Event::Exited { worker, how, cause } => self.exited(&worker, (&how, cause), now),
            Event::Committed { session, commit } => self.committed(session, commit, now),
            Event::StopRequested { reason } => self.stop_requested(reason, now),
            Event::BeginSent { generation } => self.begin_sent(generation),
            Event::Storage { problem } => self.storage(problem),
            Event::Tick => self.tick(now),
        }
    }

    fn opened(&mut self, session: SessionId, hello: Hello, now: Duration) -> Vec<Effect> {
        let identity = |hello: &Hello| (hello.worker_id.clone(), hello.pid, hello.host.clone());
        let same_process = |member: &Member| identity(&member.hello) == identity(&hello);
        let before = self
            .members
            .iter()
            .find(|(_, member)| same_process(member))
            .map(|(session, _)| *session);
        let mut effects =
            before.map_or_else(Vec::new, |before| self.lost(before, "has reconnected", now));
        if self.phase == Phase::Over {
            effects.extend(self.reply_after_end(Event::Opened { session, hello }));
            return effects;
        }
        if let Some((reason, exit_code)) = self.refusal(&hello) {
            let notice = Notice::Refused { worker: hello.worker_id, reason: reason.clone() };
            effects.push(Effect::Send { session, command: Command::Refused { reason, exit_code } });
            effects.push(Effect::Notify(notice));
            return effects;
        }
        let Hello { worker_id: worker, host, pid, device, .. } = hello.clone();
        self.joined.insert(worker.clone());
        self.start.adopted.retain(|adopted| *adopted != worker);
        effects
            .push(Effect::Send { session, command: Command::Welcome(self.start.welcome.clone()) });
        effects.push(Effect::Notify(Notice::Joined { worker, host, pid, device }));
        self.members.insert(session, Member::new(hello, self.awake));
        effects
    }

    /// Why a worker does not fit, and the exit code that it is to end with.
    fn refusal(&self, hello: &Hello) -> Option<(String, u8)> {
        let worker = &hello.worker_id;
        if hello.version != self.start.version {
            let (theirs, ours) = (&hello.version, &self.start.version);
            return Some((
                format!("worker {worker} is version {theirs}, the coordinator {ours}"),
                EXIT_CONFIG,
            ));
        }
        if let Some(other) = self.members.values().find(|member| member.hello.worker_id == *worker)
        {
            // One that returns was replaced; a new one may try again once the other one's session
            // has ended.
            let exit_code = if hello.generation > 0 { EXIT_STOPPED } else { EXIT_UNREACHABLE };
            let Hello { pid, host, .. } = &other.hello;
            return Some((
                format!("a worker named {worker} has joined already (pid {pid} on {host})"),
                exit_code,
            ));
        }
        if self.is_draining() {
            return Some(("the run is ending".into(), EXIT_STOPPED));
        }
        if let Some(reason) = self.device_refusal(hello) {
            return Some((reason, EXIT_CONFIG));
        }
        let full = self.members.len() >= self.start.workers;
        full.then(|| {
            (
                format!("all {} workers of this run have joined already", self.start.workers),
                EXIT_STOPPED,
            )
        })
    }

    fn received(&mut self, session: SessionId, event: WorkerEvent, now: Duration) -> Vec<Effect> {
        // What an unknown session sends, or one that was sent `Leave`, is ignored.
        let Some(member) = self.members.get_mut(&session).filter(|member| !member.has_left())
        else {
            return Vec::new();
        };
        member.last_message = self.awake;
        match event {
            WorkerEvent::Hello(_) => self.protocol_violation(session, "a second Hello", now),
            WorkerEvent::Ready { config_digest } => self.ready(session, &config_digest, now),
            WorkerEvent::Rejoin(rejoin) => self.rejoin(session, rejoin, now),
            WorkerEvent::Fetching(fetching) => self.fetching(session, fetching),
            WorkerEvent::Heartbeat(heartbeat) => {
                if heartbeat.generation == self.generation {
                    member.last_position = format!(
                        "{} of step {} of stage {}",
                        heartbeat.phase.label(),
                        heartbeat.step,
                        heartbeat.stage
                    );
                    member.progress.beat(heartbeat, self.awake);
                }
                Vec::new()
            }
            WorkerEvent::Step(step) => self.step(session, step, now),
            WorkerEvent::Checkpoint(written) => self.checkpoint(session, written, now),
            WorkerEvent::Evaluated(evaluated) => {
                match self.fence_stage(session, &evaluated.stage) {
                    Some(problem) => self.protocol_violation(session, &problem, now),
                    None => vec![Effect::Notify(Notice::Evaluated(evaluated))],
                }
            }
            WorkerEvent::Repaired { problem } => match self.fence_rank_0(session) {
                Some(problem) => self.protocol_violation(session, &problem, now),
                None => vec![Effect::Notify(Notice::Repaired { problem })],
            },
            WorkerEvent::NotSaved { stage, step, reason } => {
                self.not_saved(session, commits::FailedSave { stage, step, reason }, now)
            }
            WorkerEvent::StageFinished { .. } | WorkerEvent::Shows { .. } => Vec::new(),
            WorkerEvent::Stopped { stage, step } => self.stopped(session, (stage, step), now),
            WorkerEvent::Finished => self.finished(session, now),
            WorkerEvent::Benched(report) => self.benched(session, report, now),
            WorkerEvent::StopRequested { reason } => self.stop_requested(reason, now),
            WorkerEvent::TerminationNotice => self.termination_notice(session, now),
            WorkerEvent::Failed(failed) => self.failed(session, &failed, now),
        }
    }

    /// The time for the rendezvous starts again with every pack that is in transfer: it may be
    /// large, and the network slow.
    fn fetching(&mut self, session: SessionId, fetching: Fetching) -> Vec<Effect> {
        self.missing_since = self.awake;
        let Fetching { split, from, done, total } = fetching;
        if done < total {
            return Vec::new();
        }
        let worker = self
            .members
            .get(&session)
            .map(|member| member.hello.worker_id.clone())
            .unwrap_or_default();
        vec![Effect::Notify(Notice::Fetched {
            worker,
            split,
            from,
            bytes: total - from.min(total),
        })]
    }

    fn ready(&mut self, session: SessionId, digest: &str, now: Duration) -> Vec<Effect> {
        if self
            .members
            .get(&session)
            .is_some_and(|member| !matches!(member.state, MemberState::Joining))
        {
            return self.protocol_violation(session, "a second Ready", now);
        }
        if digest != self.start.welcome.config_digest {
            let ours = &self.start.welcome.config_digest;
            let reason = format!(
                "the configuration's digest is {digest} there and {ours} at the coordinator"
            );
            return self.evict_newcomer(session, &reason, EXIT_CONFIG, now);
        }
        if let Some(member) = self.members.get_mut(&session) {
            member.becomes_ready(None);
        }
        self.begin_if_ready(now)
    }

    /// A newcomer cannot take part. It ends alone, unless the run cannot begin without it: then the
    /// user must read its message.
    fn evict_newcomer(
        &mut self,
        session: SessionId,
        reason: &str,
        exit_code: u8,
        now: Duration,
    ) -> Vec<Effect> {
        let refused = Command::Refused { reason: reason.into(), exit_code };
        let mut effects = vec![Effect::Send { session, command: refused }];
        if self.is_first_rendezvous()
            && self.start.launched
            && self.start.min_workers == self.start.workers
        {
            let message = format!("{}: {reason}", self.name(session));
            self.members.remove(&session);
            effects.extend(self.abandon(message, exit_code, now));
        } else {
            effects.extend(self.lost(session, reason, now));
        }
        effects
    }

    /// No generation has begun since this coordinator started, and none is to be taken over.
    fn is_first_rendezvous(&self) -> bool {
        !self.again && self.generation == self.start.last_generation
    }

    fn closed(&mut self, session: SessionId, now: Duration) -> Vec<Effect> {
        match self.members.get(&session) {
            Some(member) if !member.has_left() => {
                self.lost(session, "disconnected unexpectedly", now)
            }
            _ => Vec::new(),
        }
    }

    /// The run directory cannot be written, or can be again. Hang detection is suspended meanwhile,
    /// since steps wait.
    fn storage(&mut self, problem: Option<String>) -> Vec<Effect> {
        match (problem, self.storage.take()) {
            (Some(problem), before) => {
                let since = before.as_ref().map_or(self.awake, |(_, since)| *since);
                self.storage = Some((problem.clone(), since));
                let notice = Effect::Notify(Notice::StorageBlocked { problem });
                before.is_none().then_some(notice).into_iter().collect()
            }
            (None, Some((_, since))) => {
                let awake = self.awake;
                self.members.values_mut().for_each(|member| member.progress.restart(awake));
                vec![Effect::Notify(Notice::StorageRecovered {
                    seconds: (self.awake - since).as_secs_f64(),
                })]
            }
            (None, None) => Vec::new(),
        }
    }

    fn tick(&mut self, now: Duration) -> Vec<Effect> {
        if let Some(effects) = self.end_after_grace(now) {
            return effects;
        }
        let blocked = self
            .storage
            .as_ref()
            .filter(|(_, since)| self.awake - *since >= self.start.timeouts.storage);
        if let Some((problem, _)) = blocked.filter(|_| self.ending.is_none()) {
            let message = format!(
                "the run directory could not be written for {:?}: {problem}",
                self.start.timeouts.storage
            );
            return self.abandon(message, crate::exit::EXIT_IO, now);
        }
        if matches!(self.phase, Phase::Saving { .. }) {
            return self.retry_save(now);
        }
        let mut effects = self.restart_not_returned();
        effects.extend(self.evict_unresponsive(now));
        effects.extend(self.evict_stuck(now));
        effects.extend(self.evict_terminating(now));
        effects.extend(self.report_straggler());
        effects.extend(self.begin_if_ready(now));
        if self.phase != Phase::Over {
            effects.extend(self.rendezvous_timeout(now));
        }
        effects
    }

    /// Workers that may hold state have not reported yet what they hold. Those of an earlier
    /// coordinator are awaited as long as there is a place for them.
    fn awaits_survivors(&self) -> bool {
        let adopted = !self.start.adopted.is_empty() && self.members.len() < self.start.workers;
        adopted || self.members.values().any(Member::may_hold_state)
    }

    /// Too few workers are ready, and have been for too long.
    fn rendezvous_timeout(&mut self, now: Duration) -> Vec<Effect> {
        // Survivors have limits of their own, in which they may take long.
        if !matches!(self.phase, Phase::Rendezvous { .. }) || self.awaits_survivors() {
            self.missing_since = self.awake;
            return Vec::new();
        }
        let timeouts = &self.start.timeouts;
        let limit = if self.is_first_rendezvous() {
            timeouts.first_rendezvous
        } else {
            Some(timeouts.rendezvous)
        };
        let over = |limit: &Duration| self.awake.saturating_sub(self.missing_since) >= *limit;
        let Some(limit) = limit.filter(over) else { return Vec::new() };
        let ready = self
            .members
            .values()
            .filter(|member| member.is_ready())
            .map(|member| &member.hello.worker_id);
        let ready: Vec<String> = ready.cloned().collect();
        if ready.len() >= self.start.min_workers || self.ending.is_some() {
            return Vec::new();
        }
        let message = format!(
            "{} of {} workers were ready within {limit:?} ({}): see the logs of the others",
            ready.len(),
            self.start.min_workers,
            if ready.is_empty() { "none".into() } else { ready.join(", ") },
        );
        self.abandon(message, EXIT_UNREACHABLE, now)
    }

    /// A worker that does not keep to the protocol is evicted; the run continues without it, or
    /// with its replacement.
    fn protocol_violation(
        &mut self,
        session: SessionId,
        problem: &str,
        now: Duration,
    ) -> Vec<Effect> {
        let how = format!("violated the protocol ({problem})");
        self.evict(&[(session, how)], now)
    }

    /// A worker as a message names it.
    fn name(&self, session: SessionId) -> String {
        let Some(member) = self.members.get(&session) else { return format!("session {session}") };
        let rank = member.rank().map_or_else(String::new, |rank| format!("rank {rank}, "));
        format!(
            "{} ({rank}pid {} on {})",
            member.hello.worker_id, member.hello.pid, member.hello.host
        )
    }
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) use tests::step as test_step;
