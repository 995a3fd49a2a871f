//! The rules of a run, as one pure function: what happened goes in, what is to be done comes out. There is no lock,
//! clock, socket, log or wire type here; `conductor.rs` carries the effects out.

mod commits;
mod effect;
mod recovery;
mod standstill;

use standstill::{Pace, Progress};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use thanos_proto::{CheckpointRef, Command, Failed, Fetching, Held, Hello, Welcome, WorkerEvent};

pub(crate) use effect::{Effect, Event, ExitCause, Notice, RecoveredFrom, SessionId, Verdict};

use crate::exit::{EXIT_CONFIG, EXIT_STOPPED, EXIT_UNREACHABLE};

/// How long all workers together may take to start and open their packs; the transfer of a pack does not count.
pub(crate) const MOST_GATHERING: Duration = Duration::from_secs(120);
/// A worker that says nothing for this long is stopped or cut off; it heartbeats four times a second.
pub(crate) const MOST_SILENCE: Duration = Duration::from_secs(3);
/// Ticks this far apart mean that this process was held up itself: nobody's silence is counted meanwhile.
const HELD_UP: Duration = Duration::from_secs(1);
/// What is left of the time for a stop when it is given up: for the last words.
const FAREWELL: Duration = Duration::from_secs(2);
/// How long workers of an earlier coordinator have to come back before others are started in their place.
const MOST_COMING_BACK: Duration = Duration::from_secs(1);
/// Steps between two answers that steps are recorded.
const BETWEEN_RECORDED: u64 = 16;
/// Starts of a worker, and generations, without a step between them, before the run is given up.
const MOST_RESTARTS: u32 = 5;
const MOST_IDLE_GENERATIONS: u32 = 10;
/// Pause before a worker is started for the second time; it doubles each time. The first time there is none.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// What is known when a run starts, or starts again.
#[derive(Clone, Debug)]
pub(crate) struct Start {
    /// Most workers, and least: a run goes on with fewer than most, once it has waited for more.
    pub workers: usize,
    pub least: usize,
    pub patience: Duration,
    pub welcome: Welcome,
    pub version: String,
    /// The greatest generation that this run directory has seen.
    pub last_generation: u64,
    /// Index of the first stage that is not complete, and where it stands.
    pub stage: usize,
    pub resume: Option<CheckpointRef>,
    pub complete: Vec<CheckpointRef>,
    /// The stage that the ledger is in, and the step that it lacks; it may be ahead of `resume`.
    pub next_step: Option<(String, u64)>,
    /// Workers that an earlier coordinator of this run has started: they may come back, with what they hold.
    pub adopted: Vec<String>,
    /// How long a stop may take; `None`: as long as it takes.
    pub grace: Option<Duration>,
}

/// The state of a run.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    start: Start,
    phase: Phase,
    generation: u64,
    members: BTreeMap<SessionId, Member>,
    /// The stage in training and the step that comes next, as rank 0 tells it.
    next_step: Option<(String, u64)>,
    stopped_at: Option<(String, u64)>,
    /// Until when a generation waits for more workers than the least.
    patient_until: Duration,
    /// A worker is ready beside the generation, which was told to make room for it.
    growing: bool,
    /// A stop was asked for, and when: every generation is told.
    stopping: Option<(String, Duration)>,
    started: Duration,
    /// Workers of an earlier coordinator were to come back.
    again: bool,
    pace: Pace,
    /// Commits that are under way: a generation begins behind them.
    committing: u32,
    /// Workers that have joined at least once.
    joined: BTreeSet<String>,
    /// Starts of each worker since the last step.
    restarts: BTreeMap<String, u32>,
    /// Generations since the last step.
    idle_generations: u32,
    /// The first loss since the last step, and when.
    first_loss: Option<(String, Duration)>,
    last_tick: Duration,
}

#[derive(Clone, Debug, PartialEq)]
enum Phase {
    /// Waiting for workers: for the first time, or because a generation has lost one.
    Gathering {
        since: Duration,
    },
    Training,
    Over,
}

#[derive(Clone, Debug)]
struct Member {
    hello: Hello,
    ready: bool,
    /// In the newest generation.
    rank: Option<u32>,
    progress: Progress,
    /// Steps that it told in this session.
    steps_told: u64,
    /// What it holds in memory, while it is ready again.
    held: Option<Held>,
    /// Where it last said it was.
    whereabouts: String,
    heard: Duration,
    /// How its process ended, if the launcher was quicker than the end of its session.
    exited: Option<(String, ExitCause)>,
    /// It has said its last word and was told to leave.
    left: bool,
}

impl Member {
    fn new(hello: Hello, now: Duration) -> Self {
        Self {
            hello,
            ready: false,
            rank: None,
            progress: Progress::default(),
            steps_told: 0,
            held: None,
            whereabouts: "start".into(),
            heard: now,
            exited: None,
            left: false,
        }
    }
}

impl Run {
    /// A run that waits for its workers; `now` is the time since some fixed moment, as in [`Run::apply`].
    pub(crate) fn new(start: Start, now: Duration) -> Self {
        let generation = start.last_generation;
        let (next_step, again) = (start.next_step.clone(), !start.adopted.is_empty());
        let phase = Phase::Gathering { since: now };
        let patient_until = now + start.patience;
        Self {
            start,
            patient_until,
            growing: false,
            phase,
            generation,
            members: BTreeMap::new(),
            next_step,
            stopped_at: None,
            stopping: None,
            started: now,
            again,
            pace: Pace::default(),
            committing: 0,
            joined: BTreeSet::new(),
            restarts: BTreeMap::new(),
            idle_generations: 0,
            first_loss: again.then(|| ("the coordinator was killed".into(), now)),
            last_tick: now,
        }
    }

    /// The only way in which a run changes.
    pub(crate) fn apply(&mut self, event: Event, now: Duration) -> Vec<Effect> {
        if self.phase == Phase::Over {
            return self.answer_behind_the_end(event);
        }
        match event {
            Event::Opened { session, hello } => self.opened(session, hello, now),
            Event::Said { session, event } => self.said(session, event, now),
            Event::Closed { session } => self.closed(session, now),
            Event::Exited { worker, how, cause } => self.exited(&worker, (&how, cause), now),
            Event::Committed { session, outcome, result } => self.committed(session, outcome, result, now),
            Event::StopAsked { reason } => self.stop_asked(reason, now),
            Event::Tick => self.tick(now),
        }
    }

    /// Who was told nothing yet must be told; nobody else matters any more.
    fn answer_behind_the_end(&mut self, event: Event) -> Vec<Effect> {
        match event {
            Event::Opened { session, .. } => {
                let reason = "the run is over".into();
                vec![Effect::Send { session, command: Command::Refused { reason, exit_code: EXIT_UNREACHABLE } }]
            }
            Event::Said { session, event: WorkerEvent::Failed(_) } => {
                vec![Effect::Send { session, command: Command::Leave { reason: "the run is over".into() } }]
            }
            _ => Vec::new(),
        }
    }

    fn opened(&mut self, session: SessionId, hello: Hello, now: Duration) -> Vec<Effect> {
        let same_process = |member: &Member| {
            let of = |hello: &Hello| (hello.worker_id.clone(), hello.pid, hello.host.clone());
            hello.generation > 0 && of(&member.hello) == of(&hello)
        };
        let before = self.members.iter().find(|(_, member)| same_process(member)).map(|(session, _)| *session);
        let mut effects = before.map_or_else(Vec::new, |before| self.lost(before, "has lost its connection", now));
        if self.phase == Phase::Over {
            effects.extend(self.answer_behind_the_end(Event::Opened { session, hello }));
            return effects;
        }
        if let Some((reason, exit_code)) = self.refusal(&hello) {
            let told = Notice::Refused { worker: hello.worker_id, reason: reason.clone() };
            effects.push(Effect::Send { session, command: Command::Refused { reason, exit_code } });
            effects.push(Effect::Tell(told));
            return effects;
        }
        let Hello { worker_id: worker, host, pid, .. } = hello.clone();
        self.joined.insert(worker.clone());
        effects.push(Effect::Send { session, command: Command::Welcome(self.start.welcome.clone()) });
        if let Some(index) = self.start.adopted.iter().position(|adopted| *adopted == worker) {
            self.start.adopted.remove(index);
            effects.push(Effect::Adopt { worker: worker.clone(), pid });
        }
        effects.push(Effect::Tell(Notice::Joined { worker, host, pid }));
        self.members.insert(session, Member::new(hello, now));
        effects
    }

    /// Why a worker does not fit, and the exit code that it is to end with.
    fn refusal(&self, hello: &Hello) -> Option<(String, u8)> {
        let worker = &hello.worker_id;
        if hello.version != self.start.version {
            let (theirs, ours) = (&hello.version, &self.start.version);
            return Some((format!("worker {worker} is version {theirs}, the coordinator {ours}"), EXIT_CONFIG));
        }
        if self.members.values().any(|member| member.hello.worker_id == *worker) {
            // One that was away is not wrong: another was started in its place.
            let exit_code = if hello.generation > 0 { EXIT_STOPPED } else { EXIT_CONFIG };
            return Some((format!("a worker called {worker} is already here"), exit_code));
        }
        if self.is_through() {
            return Some(("the run is over but for its last words".into(), EXIT_STOPPED));
        }
        let full = self.members.len() >= self.start.workers;
        full.then(|| (format!("all {} workers of this run are already here", self.start.workers), EXIT_STOPPED))
    }

    fn said(&mut self, session: SessionId, event: WorkerEvent, now: Duration) -> Vec<Effect> {
        // A stranger, or one that was told to leave: what it still says is nobody's business.
        let Some(member) = self.members.get_mut(&session).filter(|member| !member.left) else { return Vec::new() };
        member.heard = now;
        match event {
            WorkerEvent::Hello(_) => self.broke_the_protocol(session, "it introduced itself twice"),
            WorkerEvent::Ready { config_digest } => self.ready(session, &config_digest, now),
            WorkerEvent::Rejoin(rejoin) => self.rejoin(session, rejoin, now),
            WorkerEvent::Fetching(fetching) => self.fetching(session, fetching, now),
            WorkerEvent::Heartbeat(heartbeat) => {
                if heartbeat.generation == self.generation {
                    member.whereabouts =
                        format!("{} of step {} of stage {}", heartbeat.phase, heartbeat.step, heartbeat.stage);
                    member.progress.beat(heartbeat, now);
                }
                Vec::new()
            }
            WorkerEvent::Step(step) => self.step(session, step, now),
            WorkerEvent::Repaired { problem } => vec![Effect::Tell(Notice::Repaired { problem })],
            WorkerEvent::Evaluated(evaluated) => vec![Effect::Tell(Notice::Evaluated(evaluated))],
            WorkerEvent::Checkpoint(written) => self.checkpoint(session, written),
            WorkerEvent::NotSaved { stage, step, reason } => {
                vec![Effect::Tell(Notice::NotSaved { stage, step, reason })]
            }
            WorkerEvent::StopRequested { reason } => self.stop_asked(reason, now),
            WorkerEvent::StageFinished { .. } | WorkerEvent::Shows { .. } => Vec::new(),
            WorkerEvent::Stopped { stage, step } => self.last_word(session, Some((stage, step))),
            WorkerEvent::Finished => self.last_word(session, None),
            WorkerEvent::Failed(failed) => self.failed(session, &failed),
        }
    }

    /// The time for gathering starts anew with every pack that is under way: it may be large, and the line slow.
    fn fetching(&mut self, session: SessionId, fetching: Fetching, now: Duration) -> Vec<Effect> {
        if let Phase::Gathering { since } = &mut self.phase {
            *since = now;
        }
        let Fetching { split, from, done, total } = fetching;
        if done < total {
            return Vec::new();
        }
        let worker = self.members.get(&session).map(|member| member.hello.worker_id.clone()).unwrap_or_default();
        vec![Effect::Tell(Notice::Fetched { worker, split, from, bytes: total - from.min(total) })]
    }

    fn ready(&mut self, session: SessionId, digest: &str, now: Duration) -> Vec<Effect> {
        let ready = self.members.get(&session).is_some_and(|member| member.ready || member.rank.is_some());
        if ready {
            return self.broke_the_protocol(session, "it was ready twice");
        }
        if digest != self.start.welcome.config_digest {
            let ours = &self.start.welcome.config_digest;
            let reason = format!("the configuration's digest is {digest} there and {ours} at the coordinator");
            let refused = Command::Refused { reason: reason.clone(), exit_code: EXIT_CONFIG };
            let mut effects = vec![Effect::Send { session, command: refused }];
            effects.extend(self.fail(format!("{}: {reason}", self.name(session)), EXIT_CONFIG));
            return effects;
        }
        if let Some(member) = self.members.get_mut(&session) {
            member.ready = true;
        }
        if self.phase == Phase::Training {
            return self.make_room();
        }
        self.begin_if_all_are_ready(now)
    }

    /// A worker is ready beside the generation: its ranks are told to leave it at a common step.
    fn make_room(&mut self) -> Vec<Effect> {
        if self.growing {
            return Vec::new();
        }
        self.growing = true;
        let in_generation = self.members.iter().filter(|(_, member)| member.rank.is_some());
        let regroup = |session: &SessionId| Effect::Send { session: *session, command: Command::Regroup };
        in_generation.map(|(session, _)| regroup(session)).collect()
    }

    /// A worker is through: with the whole run (`None`), or stopped somewhere.
    fn last_word(&mut self, session: SessionId, stopped_at: Option<(String, u64)>) -> Vec<Effect> {
        if stopped_at.is_some() {
            self.stopped_at = stopped_at;
        }
        if let Some(member) = self.members.get_mut(&session) {
            member.left = true;
        }
        let reason = "this worker's part is done".into();
        let mut effects = vec![Effect::Send { session, command: Command::Leave { reason } }];
        // In a generation the others say theirs; if it is broken, nobody needs another one any more.
        let broken = matches!(self.phase, Phase::Gathering { .. });
        if broken || self.all_ranks_have_left() {
            effects.extend(self.end_well());
        }
        effects
    }

    /// Whoever waits beside the generation is not needed any more.
    fn all_ranks_have_left(&self) -> bool {
        self.members.values().all(|member| member.left || member.rank.is_none())
    }

    /// All is committed that there was to do, or the stop.
    fn end_well(&mut self) -> Vec<Effect> {
        let mut effects = self.tell_all_to_leave("the run is over");
        self.phase = Phase::Over;
        let verdict = match self.stopped_at.take() {
            Some(at) => Verdict::Stopped { at: Some(at) },
            None => Verdict::Done,
        };
        effects.push(Effect::End(verdict));
        effects
    }

    /// Some worker has said its last word: whatever the others were waiting for is committed.
    fn is_through(&self) -> bool {
        self.members.values().any(|member| member.left)
    }

    fn failed(&mut self, session: SessionId, failed: &Failed) -> Vec<Effect> {
        let message = format!("{} failed in {}: {}", self.name(session), failed.phase, failed.message);
        let reason = "the failure is noted".into();
        if let Some(member) = self.members.get_mut(&session) {
            member.left = true;
        }
        let mut effects = vec![Effect::Send { session, command: Command::Leave { reason } }];
        effects.extend(self.fail(message, failed.exit_code));
        effects
    }

    fn closed(&mut self, session: SessionId, now: Duration) -> Vec<Effect> {
        match self.members.get(&session) {
            Some(member) if !member.left => self.lost(session, "is gone without a word", now),
            _ => Vec::new(),
        }
    }

    fn stop_asked(&mut self, reason: String, now: Duration) -> Vec<Effect> {
        if self.phase == Phase::Over || self.stopping.is_some() {
            return Vec::new();
        }
        let told = Effect::Tell(Notice::Stopping { reason: reason.clone() });
        if matches!(self.phase, Phase::Gathering { .. }) && self.generation == self.start.last_generation {
            let mut effects = self.stop_here(&reason);
            // The end is the last effect.
            effects.insert(effects.len() - 1, told);
            return effects;
        }
        let in_generation = self.members.iter().filter(|(_, member)| !member.left && member.rank.is_some());
        let sends: Vec<Effect> = in_generation.map(|(session, _)| stop(*session, &reason)).collect();
        self.stopping = Some((reason, now));
        sends.into_iter().chain([told]).collect()
    }

    /// Ends the run where its last checkpoint is.
    fn stop_here(&mut self, reason: &str) -> Vec<Effect> {
        let mut effects = self.tell_all_to_leave(reason);
        self.phase = Phase::Over;
        let at = self.start.resume.as_ref().map(|checkpoint| (checkpoint.stage.clone(), checkpoint.step));
        effects.push(Effect::End(Verdict::Stopped { at }));
        effects
    }

    fn tick(&mut self, now: Duration) -> Vec<Effect> {
        let gap = now.saturating_sub(self.last_tick);
        self.last_tick = now;
        if gap >= HELD_UP {
            self.members.values_mut().for_each(|member| member.heard += gap);
        }
        let overdue = |(_, since): &&(String, Duration)| {
            self.start.grace.is_some_and(|grace| now.saturating_sub(*since) + FAREWELL >= grace)
        };
        if self.phase != Phase::Over && self.stopping.as_ref().filter(overdue).is_some() {
            return [vec![Effect::Tell(Notice::GraceOver)], self.stop_here("the time for a stop is over")].concat();
        }
        match &self.phase {
            Phase::Gathering { since } if now.saturating_sub(*since) >= MOST_GATHERING => {
                let ready = self.members.values().filter(|member| member.ready).map(|member| &member.hello.worker_id);
                let ready: Vec<String> = ready.cloned().collect();
                let (here, wanted) = (ready.len(), self.start.least);
                let message = format!(
                    "{here} of {wanted} workers were ready within {MOST_GATHERING:?} ({}): see the others' logs",
                    if ready.is_empty() { "none".into() } else { ready.join(", ") },
                );
                self.fail(message, EXIT_UNREACHABLE)
            }
            Phase::Gathering { .. } | Phase::Training => {
                let mut effects = self.start_who_did_not_come_back(now);
                effects.extend(self.lose_the_silent(now));
                effects.extend(self.lose_the_hung(now));
                effects.extend(self.name_a_straggler(now));
                effects.extend(self.begin_if_all_are_ready(now));
                effects
            }
            Phase::Over => Vec::new(),
        }
    }

    fn broke_the_protocol(&mut self, session: SessionId, problem: &str) -> Vec<Effect> {
        let message = format!("{} broke the protocol: {problem}", self.name(session));
        self.fail(message, EXIT_UNREACHABLE)
    }

    fn fail(&mut self, message: String, exit_code: u8) -> Vec<Effect> {
        let mut effects = self.tell_all_to_leave(&message);
        self.phase = Phase::Over;
        effects.push(Effect::End(Verdict::Failed { message, exit_code }));
        effects
    }

    /// Everyone who has not been told yet.
    fn tell_all_to_leave(&mut self, reason: &str) -> Vec<Effect> {
        let mut effects = Vec::new();
        for (session, member) in self.members.iter_mut().filter(|(_, member)| !member.left) {
            member.left = true;
            let command = Command::Leave { reason: reason.into() };
            effects.push(Effect::Send { session: *session, command });
        }
        effects
    }

    /// A worker as a message names it.
    fn name(&self, session: SessionId) -> String {
        let Some(member) = self.members.get(&session) else { return format!("session {session}") };
        let rank = member.rank.map_or_else(String::new, |rank| format!("rank {rank}, "));
        format!("{} ({rank}pid {} on {})", member.hello.worker_id, member.hello.pid, member.hello.host)
    }
}

fn stop(session: SessionId, reason: &str) -> Effect {
    Effect::Send { session, command: Command::Stop { reason: reason.into() } }
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
