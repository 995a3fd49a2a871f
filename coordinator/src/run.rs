//! The rules of a run, as one pure function: what happened goes in, what is to be done comes out. There is no lock,
//! clock, socket, log or wire type here; `conductor.rs` carries the effects out.

mod commits;
mod recovery;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use thanos_proto::{
    CheckpointRef, CheckpointWritten, Command, Evaluated, Failed, Fetching, Held, Hello, StageResult, StepDone,
    Welcome, WorkerEvent,
};

use crate::exit::{EXIT_CONFIG, EXIT_STOPPED, EXIT_UNREACHABLE};

/// How long all workers together may take to start and open their packs; the transfer of a pack does not count.
pub(crate) const MOST_GATHERING: Duration = Duration::from_secs(120);
/// A worker that says nothing for this long is stopped or cut off; it heartbeats once a second.
pub(crate) const MOST_SILENCE: Duration = Duration::from_secs(3);
/// Ticks this far apart mean that this process was held up itself: nobody's silence is counted meanwhile.
const HELD_UP: Duration = Duration::from_secs(1);
/// Starts of a worker, and generations, without a step between them, before the run is given up.
const MOST_RESTARTS: u32 = 5;
const MOST_IDLE_GENERATIONS: u32 = 10;
/// Pause before a worker is started for the second time; it doubles each time. The first time there is none.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

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
    Said {
        session: SessionId,
        event: WorkerEvent,
    },
    /// The session's stream ended.
    Closed {
        session: SessionId,
    },
    /// The launcher saw a worker's process end.
    Exited {
        worker: String,
        how: String,
    },
    /// A checkpoint was committed, or given up and why.
    Committed {
        session: SessionId,
        outcome: Result<CheckpointRef, String>,
        result: Option<StageResult>,
    },
    /// The user, or the machine, wants the run to stop where it can be resumed.
    StopAsked {
        reason: String,
    },
    Tick,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Effect {
    Send {
        session: SessionId,
        command: Command,
    },
    /// Give a new generation an empty rendezvous, before its ranks hear of it.
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
    Tell(Notice),
    /// Start a worker's process again, if this program starts workers.
    Restart {
        worker: String,
        after: Duration,
    },
    /// End a worker's process, which does not answer.
    Kill {
        worker: String,
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
    Stopping {
        reason: String,
    },
    Lost {
        worker: String,
        reason: String,
    },
    Restarting {
        worker: String,
        how: String,
        restart: u32,
    },
    /// It was started too often without a step: the run goes on without it.
    Abandoned {
        worker: String,
        how: String,
    },
    /// After a loss, in training again behind this step.
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
    /// A stop was asked for: every generation is told.
    stopping: Option<String>,
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
    /// What it holds in memory, while it is ready again.
    held: Option<Held>,
    /// Where it last said it was.
    whereabouts: String,
    heard: Duration,
    /// How its process ended, if the launcher was quicker than the end of its session.
    exited: Option<String>,
    /// It has said its last word and was told to leave.
    left: bool,
}

impl Run {
    /// A run that waits for its workers; `now` is the time since some fixed moment, as in [`Run::apply`].
    pub(crate) fn new(start: Start, now: Duration) -> Self {
        let generation = start.last_generation;
        let next_step = start.resume.as_ref().map(|checkpoint| (checkpoint.stage.clone(), checkpoint.step));
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
            committing: 0,
            joined: BTreeSet::new(),
            restarts: BTreeMap::new(),
            idle_generations: 0,
            first_loss: None,
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
            Event::Exited { worker, how } => self.exited(&worker, &how, now),
            Event::Committed { session, outcome, result } => self.committed(session, outcome, result, now),
            Event::StopAsked { reason } => self.stop_asked(reason),
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
        let refusal = if hello.version != self.start.version {
            let (theirs, ours) = (&hello.version, &self.start.version);
            Some((format!("worker {} is version {theirs}, the coordinator {ours}", hello.worker_id), EXIT_CONFIG))
        } else if self.members.values().any(|member| member.hello.worker_id == hello.worker_id) {
            Some((format!("a worker called {} is already here", hello.worker_id), EXIT_CONFIG))
        } else if self.is_through() {
            Some(("the run is over but for its last words".into(), EXIT_STOPPED))
        } else if self.members.len() >= self.start.workers {
            Some((format!("all {} workers of this run are already here", self.start.workers), EXIT_STOPPED))
        } else {
            None
        };
        if let Some((reason, exit_code)) = refusal {
            let told = Notice::Refused { worker: hello.worker_id, reason: reason.clone() };
            return vec![Effect::Send { session, command: Command::Refused { reason, exit_code } }, Effect::Tell(told)];
        }
        self.joined.insert(hello.worker_id.clone());
        let told = Notice::Joined { worker: hello.worker_id.clone(), host: hello.host.clone(), pid: hello.pid };
        let member = Member {
            hello,
            ready: false,
            rank: None,
            held: None,
            whereabouts: "start".into(),
            heard: now,
            exited: None,
            left: false,
        };
        self.members.insert(session, member);
        let welcome = Command::Welcome(self.start.welcome.clone());
        vec![Effect::Send { session, command: welcome }, Effect::Tell(told)]
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
                }
                Vec::new()
            }
            WorkerEvent::Step(step) => self.step(session, step),
            WorkerEvent::Evaluated(evaluated) => vec![Effect::Tell(Notice::Evaluated(evaluated))],
            WorkerEvent::Checkpoint(written) => self.checkpoint(session, written),
            WorkerEvent::NotSaved { stage, step, reason } => {
                vec![Effect::Tell(Notice::NotSaved { stage, step, reason })]
            }
            WorkerEvent::StageFinished { .. } => Vec::new(),
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
        if self.phase == Phase::Training && !self.growing {
            self.growing = true;
            let in_generation = self.members.iter().filter(|(_, member)| member.rank.is_some());
            let regroup = |session: &SessionId| Effect::Send { session: *session, command: Command::Regroup };
            return in_generation.map(|(session, _)| regroup(session)).collect();
        }
        self.begin_if_all_are_ready(now)
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

    fn stop_asked(&mut self, reason: String) -> Vec<Effect> {
        if self.phase == Phase::Over || self.stopping.is_some() {
            return Vec::new();
        }
        let told = Effect::Tell(Notice::Stopping { reason: reason.clone() });
        if matches!(self.phase, Phase::Gathering { .. }) && self.generation == self.start.last_generation {
            let mut effects = self.tell_all_to_leave(&reason);
            self.phase = Phase::Over;
            effects.extend([told, Effect::End(Verdict::Stopped { at: self.next_step.clone() })]);
            return effects;
        }
        let in_generation = self.members.iter().filter(|(_, member)| !member.left && member.rank.is_some());
        let sends: Vec<Effect> = in_generation.map(|(session, _)| stop(*session, &reason)).collect();
        self.stopping = Some(reason);
        [told].into_iter().chain(sends).collect()
    }

    fn tick(&mut self, now: Duration) -> Vec<Effect> {
        let gap = now.saturating_sub(self.last_tick);
        self.last_tick = now;
        if gap >= HELD_UP {
            self.members.values_mut().for_each(|member| member.heard += gap);
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
                let mut effects = self.lose_the_silent(now);
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
