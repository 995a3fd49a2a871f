//! The world of a simulated run: its coordinator, the launcher, the disk, and time.

mod fault;
mod group;
mod worker;

use crate::run::termination::TERMINATION_LIMIT;
use crate::run::tests::{hello, start, step};
use crate::run::{CommitOutcome, Effect, Event, ExitCause, Run, SessionId, Start, Verdict};
use fault::Fault;
pub(super) use fault::REPEATED;
use group::Group;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;
use thanos_configs::SplitMix64;
use thanos_proto::{
    Begin, CheckpointRef, CheckpointWritten, Command, Failed, Rejoin, StageResult, StepDone,
    WorkerEvent,
};
use worker::{Activity, Health, Worker};

/// How far time continues at once: also the interval of the coordinator's ticks.
const QUANTUM: Duration = Duration::from_millis(100);
/// Faults happen until then; the run must have ended at the latest then.
const DISTURBED: Duration = Duration::from_secs(60);
const DEADLINE: Duration = Duration::from_secs(7200);
/// The longest that a write takes, in seconds.
const DISK_DELAY: f64 = 60.0;
/// Names and steps of the stages.
const STAGES: [(&str, u64); 2] = [("a", 9), ("b", 8)];

/// Updates made of a stage; after the last stage there is one more without any.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct StagePoint {
    stage: usize,
    made: u64,
}

/// What a worker holds in memory.
#[derive(Clone, Debug)]
struct State {
    at: StagePoint,
    generation: u64,
    recent: Vec<StepDone>,
}

/// Durations of this world, in seconds.
#[derive(Clone, Copy, Debug)]
struct Pace {
    /// Of a step, for each stage.
    step: [f64; 2],
    save: f64,
    evaluate: f64,
}

/// A `Begin` that is sent once the disk has its generation.
struct PendingBegin {
    due: Duration,
    session: SessionId,
    begin: Begin,
    /// Where the generation begins.
    at: StagePoint,
}

pub(super) struct World {
    run: Run,
    chance: SplitMix64,
    pace: Pace,
    now: Duration,
    workers: Vec<Worker>,
    group: Option<Group>,
    /// What sessions have reported to hold; the worker may have died since.
    reported: BTreeMap<SessionId, StagePoint>,
    next_session: SessionId,
    /// What workers have sent, in order; the coordinator reads it when it is not paused.
    inbox: VecDeque<Event>,
    paused_until: Duration,
    recorded: Vec<(String, u64)>,
    commits: Vec<(Duration, SessionId, CheckpointWritten)>,
    /// In order; other commands overtake them.
    begins: VecDeque<PendingBegin>,
    /// The newest generation that was abandoned.
    abandoned: u64,
    /// Something was sent that no correct worker sends.
    nonsense: bool,
    /// A worker that stopped or hung was there when the run ended.
    is_missing: bool,
    /// A step whose collectives fail on every rank.
    fault: Option<Fault>,
    /// Workers that died and coordinators that were restarted so far.
    losses: u64,
    pub(super) verdict: Option<Verdict>,
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        let mut chance = SplitMix64::new(seed);
        let count = 1 + chance.below(4) as usize;
        let min_workers = 1 + chance.below(count as u64) as usize;
        let mut pick = |choices: &[f64]| choices[chance.below(choices.len() as u64) as usize];
        let pace = Pace {
            step: [pick(&[0.05, 0.3, 1.0, 8.0]), pick(&[0.05, 0.3, 1.0, 8.0])],
            save: pick(&[0.1, 2.0, 18.0, 60.0]),
            evaluate: pick(&[0.1, 4.0, 40.0]),
        };
        let start =
            Start { min_workers, rendezvous_timeout: Duration::from_secs(2), ..start(count) };
        let workers = (0..count).map(|_| Worker::starting(Duration::ZERO)).collect();
        Self {
            run: Run::new(start, Duration::ZERO),
            chance,
            pace,
            now: Duration::ZERO,
            workers,
            group: None,
            reported: BTreeMap::new(),
            next_session: 1,
            inbox: VecDeque::new(),
            paused_until: Duration::ZERO,
            recorded: Vec::new(),
            commits: Vec::new(),
            begins: VecDeque::new(),
            abandoned: 0,
            nonsense: false,
            is_missing: false,
            fault: Fault::of(seed),
            losses: 0,
            verdict: None,
        }
    }

    /// One quantum of time.
    pub(super) fn advance(&mut self) {
        self.now += QUANTUM;
        assert!(
            self.now < DEADLINE,
            "a run that nothing disturbs any more ends: {:?} {:?}",
            self.workers,
            self.group
        );
        if self.now < DISTURBED {
            self.disturb();
        }
        self.finish_commits();
        self.send_begins();
        for index in 0..self.workers.len() {
            self.live(index);
        }
        self.advance_group();
        self.coordinate();
    }

    fn is_once_in(&mut self, quanta: u64) -> bool {
        self.chance.below(quanta) == 0
    }

    /// Between half of it and all of it.
    fn about(&mut self, seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds * self.chance.uniform(0.5, 1.0))
    }

    fn disturb(&mut self) {
        let victim = self.chance.below(self.workers.len() as u64) as usize;
        match self.chance.below(1200) {
            0..4 => self.die(victim),
            4 => self.workers[victim].health = Health::Stopped,
            5 => self.workers[victim].health = Health::Hung,
            6..8 => self.paused_until = self.now + self.about(20.0),
            8 => self.restart_coordinator(false),
            9 => self.restart_coordinator(true),
            10 => self.send(Event::StopRequested { reason: "asked".into() }),
            11 if self.is_once_in(4) => self.send_nonsense(),
            12 => {
                self.restart_coordinator(false);
                self.die(victim);
            }
            // A peer of one that saves in the background.
            25 => self.terminate(victim),
            // A preemption reaches all.
            26 => (0..self.workers.len()).for_each(|index| self.terminate(index)),
            13..25
                if self
                    .workers
                    .iter()
                    .enumerate()
                    .any(|(index, worker)| index != victim && worker.saves.is_some()) =>
            {
                self.die(victim);
            }
            _ => {}
        }
    }

    fn send(&mut self, event: Event) {
        self.inbox.push_back(event);
    }

    /// The coordinator reads what came, and looks at its deadlines, in either order after a pause.
    fn coordinate(&mut self) {
        if self.now < self.paused_until {
            return;
        }
        if self.is_once_in(2) {
            self.apply(Event::Tick);
        }
        while let Some(event) = self.inbox.pop_front() {
            self.apply(event);
        }
        self.apply(Event::Tick);
    }

    fn apply(&mut self, event: Event) {
        let over = self.verdict.is_some();
        let traced = std::env::var_os("SIMULATION_SEED").is_some();
        if traced
            && !matches!(
                event,
                Event::Tick | Event::Received { event: WorkerEvent::Heartbeat(_), .. }
            )
        {
            println!("{:?} {event:?}", self.now);
        }
        let effects = self.run.apply(event, self.now);
        // Before anyone is sent away.
        if let Some(Effect::End(verdict)) =
            effects.iter().find(|effect| matches!(effect, Effect::End(_)))
        {
            self.end(verdict.clone());
        }
        let source = self.source_of(&effects);
        let durable = self.durable_at();
        for effect in effects {
            if traced {
                println!("    {effect:?}");
            }
            assert!(!over || matches!(effect, Effect::Send { .. }), "after the end: {effect:?}");
            match effect {
                Effect::Record(step) => self.record(&step),
                Effect::Send { session, command: Command::Begin(begin) } => {
                    let at = self.beginning_of(&begin, source);
                    self.begins.push_back(PendingBegin { due: durable, session, begin, at });
                }
                Effect::Send { session, command } => self.deliver(session, command),
                Effect::Commit { session, written } => {
                    let seconds = self.chance.uniform(0.0, 1.0);
                    self.commits.push((
                        self.now + Duration::from_secs_f64(seconds),
                        session,
                        written,
                    ));
                }
                Effect::Restart { worker, after } => {
                    let index = index_of(&worker);
                    assert!(!self.workers[index].is_alive(), "{worker} was started twice");
                    let starts = self.now + after + self.about(2.0);
                    self.workers[index] = Worker::starting(starts);
                }
                Effect::Kill { worker } => self.kill(index_of(&worker)),
                Effect::CutSteps { stages, first } => self.recorded.retain(|(stage, step)| {
                    stages.contains(stage)
                        || first.as_ref().is_some_and(|(first, n)| first == stage && step < n)
                }),
                Effect::End(_) | Effect::OpenStore { .. } | Effect::Notify(_) => {}
            }
        }
    }

    /// Every step once, in order.
    fn record(&mut self, step: &StepDone) {
        assert!(step.generation <= self.run.generation);
        let mut all = STAGES
            .iter()
            .flat_map(|(stage, steps)| (0..*steps).map(move |step| ((*stage).to_owned(), step)));
        let next = all.nth(self.recorded.len());
        assert_eq!(
            next,
            Some((step.stage.clone(), step.step)),
            "recorded so far: {:?}",
            self.recorded
        );
        self.recorded.extend(next);
    }

    /// The coordinator terminates a worker: none that is healthy.
    fn kill(&mut self, index: usize) {
        let worker = &self.workers[index];
        let is_asked =
            worker.terminating.is_some_and(|since| self.now >= since + TERMINATION_LIMIT / 2);
        let is_healthy = worker.is_alive()
            && worker.health == Health::Healthy
            && !worker.misbehaved
            && !is_asked;
        assert!(
            !is_healthy,
            "at {:?} a healthy worker was terminated: {worker:?} {:?}",
            self.now, self.group
        );
        self.die(index);
    }

    /// The run ends. Unless it could not be helped, no worker holds what no checkpoint has.
    fn end(&mut self, verdict: Verdict) {
        assert!(self.verdict.is_none(), "ended twice");
        let saved = self.saved();
        let lost = self
            .workers
            .iter()
            .filter(|worker| worker.health == Health::Healthy && !worker.misbehaved);
        let lost = lost.filter_map(|worker| worker.state.as_ref()).find(|state| {
            state.generation == self.run.generation && state.at > saved && state.at.made > 0
        });
        let saves_failed = matches!(
            &verdict,
            Verdict::Failed { message, .. } if message.contains("could not be saved")
        );
        assert!(
            lost.is_none() || saves_failed,
            "at {:?} {:?} was dropped, saved is {saved:?}: {verdict:?}",
            self.now,
            lost.map(|state| state.at)
        );
        self.is_missing = self.workers.iter().any(|worker| worker.health != Health::Healthy);
        self.verdict = Some(verdict);
    }

    /// The last checkpoint.
    fn saved(&self) -> StagePoint {
        let made = self.run.start.resume.as_ref().map_or(0, |checkpoint| checkpoint.step);
        StagePoint { stage: self.run.start.stage, made }
    }

    pub(super) fn assert_ended_well(&self) {
        match self.verdict.as_ref().expect("ended") {
            Verdict::Done => {
                assert!(!self.has_repeating_fault(), "a step that always fails was made");
                assert_eq!(
                    self.recorded.len() as u64,
                    STAGES.iter().map(|(_, steps)| steps).sum::<u64>()
                );
            }
            Verdict::Failed { message, .. } => {
                let expected = ["giving up", "the newest state could not be saved"];
                // One that stopped or hung before it joined is not replaced.
                let missing = self.is_missing && message.contains("workers were ready within");
                let repeated = self.has_repeating_fault() && message.contains(REPEATED);
                let is_expected = repeated
                    || missing
                    || expected.iter().any(|begins| message.starts_with(begins));
                assert!(self.nonsense || is_expected, "nothing was wrong, and yet: {message}");
            }
            Verdict::Stopped { .. } => {}
        }
    }

    fn deliver(&mut self, session: SessionId, command: Command) {
        let Some(index) = self.workers.iter().position(|worker| worker.session == Some(session))
        else {
            return;
        };
        match command {
            Command::Leave { .. } | Command::Refused { .. } => self.leave(index),
            Command::Stop { .. } => self.workers[index].stop = true,
            Command::Regroup { generation } => self.workers[index].regroup = generation,
            Command::Abandon { generation, .. } => {
                self.abandoned = self.abandoned.max(generation);
                self.break_group(generation);
            }
            Command::Committed(outcome) => self.committed(index, &outcome),
            Command::Save => {
                let until = self.now + self.about(self.pace.save);
                self.workers[index].activity = Activity::SavingMemory { until };
            }
            Command::Begin(_) | Command::Welcome(_) | Command::Recorded { .. } => {}
        }
    }

    /// When the disk has what is written to it now: mostly at once.
    fn durable_at(&mut self) -> Duration {
        let delay = match self.chance.below(8) {
            0 => self.about(DISK_DELAY),
            _ => Duration::ZERO,
        };
        self.begins.back().map_or(Duration::ZERO, |last| last.due).max(self.now + delay)
    }

    fn send_begins(&mut self) {
        while self.begins.front().is_some_and(|next| next.due <= self.now)
            && let Some(PendingBegin { session, begin, at, .. }) = self.begins.pop_front()
        {
            if let Some(index) =
                self.workers.iter().position(|worker| worker.session == Some(session))
            {
                self.begin(index, &begin, at);
            }
            let generation = begin.generation;
            if self.begins.front().is_none_or(|next| next.begin.generation > generation) {
                self.send(Event::BeginSent { generation });
            }
        }
    }

    /// Where a generation begins: at what its source holds, or at what is committed.
    fn beginning_of(&self, begin: &Begin, source: Option<StagePoint>) -> StagePoint {
        match begin.source {
            Some(_) => source.expect("among the same effects"),
            None => {
                let made = begin.resume.as_ref().map_or(0, |checkpoint| checkpoint.step);
                StagePoint { stage: begin.stage as usize, made }
            }
        }
    }

    /// A worker takes over the state of the beginning; no live worker held more.
    fn begin(&mut self, index: usize, begin: &Begin, at: StagePoint) {
        assert_eq!(at.stage, begin.stage as usize, "a stage that is committed is not made again");
        assert_eq!(begin.complete.len(), begin.stage as usize);
        for worker in self
            .workers
            .iter()
            .filter(|worker| worker.health == Health::Healthy && !worker.misbehaved)
        {
            let Some(state) = worker.state.as_ref().filter(|_| worker.is_alive()) else { continue };
            let lost =
                state.generation + 1 == begin.generation && state.at > at && state.at.made > 0;
            assert!(
                !lost,
                "{:?}: {worker:?} holds {:?}, and all continue from {at:?}",
                self.now, state.at
            );
        }
        let group = match self.group.take() {
            Some(group) if group.generation == begin.generation => group,
            _ => Group {
                broken: self.abandoned >= begin.generation,
                ..Group::new(begin.generation, begin.world_size as usize, at)
            },
        };
        assert_eq!(group.at, at, "all ranks begin at one place");
        self.group = Some(group);
        self.join_group(index, begin.rank as usize);
    }

    /// What the source of a generation holds, before its ranks begin.
    fn source_of(&self, effects: &[Effect]) -> Option<StagePoint> {
        let session = effects.iter().find_map(|effect| match effect {
            Effect::Send { session, command: Command::Begin(begin) }
                if begin.source == Some(begin.rank) =>
            {
                Some(*session)
            }
            _ => None,
        })?;
        Some(*self.reported.get(&session).expect("the source holds something"))
    }

    /// The coordinator dies, and another one starts with what is on the disk; what was being
    /// committed may be there. `stop`: it is asked to stop before workers have reconnected.
    fn restart_coordinator(&mut self, stop: bool) {
        self.losses += 1;
        let mut start = self.run.start.clone();
        for (_, _, written) in std::mem::take(&mut self.commits) {
            let CheckpointWritten { stage, step, folder, result, .. } = written;
            let is_current = Some(&stage) == start.stages.get(start.stage);
            let saved = CheckpointRef { stage, folder, manifest_sha256: "0".into(), step };
            if is_current && self.is_once_in(2) {
                if result.is_some() {
                    start.complete.push(saved);
                    (start.stage, start.resume) = (start.stage + 1, None);
                } else {
                    start.resume = Some(saved);
                }
            }
        }
        // All is done: such a coordinator only prints the table.
        if start.complete.len() == STAGES.len() {
            self.verdict = Some(Verdict::Done);
            (self.inbox, self.paused_until) = (VecDeque::new(), DEADLINE);
            return;
        }
        start.last_generation = self.run.generation;
        start.next_step = self.recorded.last().map(|(stage, step)| (stage.clone(), step + 1));
        start.adopted = (0..self.workers.len()).map(|index| format!("worker-{index}")).collect();
        self.run = Run::new(start, self.now);
        self.paused_until = self.now;
        self.inbox.clear();
        self.begins.clear();
        if stop {
            self.send(Event::StopRequested { reason: "asked".into() });
        }
        for index in 0..self.workers.len() {
            if self.workers[index].is_alive() {
                let back = self.now + self.about(5.0);
                self.workers[index].lose_session(back);
            } else {
                self.workers[index] = Worker::ended();
                let (worker, how) = (format!("worker-{index}"), "ended".into());
                self.send(Event::Exited { worker, how, cause: ExitCause::Signalled(9) });
            }
        }
        if let Some(group) = &mut self.group {
            group.broken = true;
        }
    }

    fn finish_commits(&mut self) {
        let due = self.commits.iter().position(|(due, _, _)| *due <= self.now);
        let Some((_, session, written)) = due.map(|index| self.commits.remove(index)) else {
            return;
        };
        let CheckpointWritten { stage, step, folder, result, .. } = written;
        let committed =
            CheckpointRef { stage: stage.clone(), folder, manifest_sha256: "0".into(), step };
        self.send(Event::Committed {
            session,
            commit: CommitOutcome { stage, step, outcome: Ok(committed), result },
        });
    }

    /// A message that a correct worker would not send now, or one from a session that never was.
    fn send_nonsense(&mut self) {
        let session = self.chance.below(self.next_session + 2);
        if let Some(worker) = self.workers.iter_mut().find(|worker| worker.session == Some(session))
        {
            worker.misbehaved = true;
            self.nonsense = true;
        }
        let event = match self.chance.below(6) {
            0 => WorkerEvent::Step(step("a", self.chance.below(9), self.chance.below(9))),
            1 => WorkerEvent::Hello(hello("again")),
            2 => WorkerEvent::Failed(Failed {
                phase: "p".into(),
                message: "m".into(),
                exit_code: 70,
            }),
            3 => WorkerEvent::Rejoin(Rejoin {
                generation: 99,
                held: None,
                recent: Vec::new(),
                failure: None,
            }),
            4 => WorkerEvent::Finished,
            _ => WorkerEvent::Ready { config_digest: "another".into() },
        };
        self.send(Event::Received { session, event });
    }

    fn written(&self, at: StagePoint, generation: u64, is_end: bool) -> CheckpointWritten {
        let stage = STAGES[at.stage].0;
        CheckpointWritten {
            stage: stage.into(),
            epoch: 0,
            step: at.made,
            generation,
            world_size: 1,
            folder: "f".into(),
            files: Vec::new(),
            result: is_end.then(|| StageResult { stage: stage.into(), ..StageResult::default() }),
            seconds: 1.0,
            best: None,
            post_step_done: true,
        }
    }
}

fn index_of(worker: &str) -> usize {
    worker.trim_start_matches("worker-").parse().expect("workers are numbered")
}
