//! A seeded simulation of whole runs: workers that join in any order, train in step, commit, die in any moment, fall
//! silent, say too much or too late, and a user who asks for stops. Whatever the order, the rules must keep what is
//! asserted here, and once nothing disturbs it any more a run must end well; a failure prints the seed that replays it.

use super::tests::{hello, ready, start, step};
use super::*;
use std::collections::VecDeque;
use thanos_configs::SplitMix64;
use thanos_proto::{Begin, CheckpointWritten, Heartbeat, Rejoin, StageResult, StepDone};

const SEEDS: u64 = 10_000;
/// Events with faults among them, and events that may follow until the end.
const DISTURBED: u64 = 400;
const CALM: u64 = 4_000;
const STAGES: [(&str, u64); 2] = [("a", 5), ("b", 3)];

/// Where a worker is: updates made of a stage; behind the last stage there is one more without any.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    stage: usize,
    made: u64,
}

/// One simulated worker process.
#[derive(Clone, Debug)]
enum Worker {
    /// Not running; it may be started.
    Down {
        started: bool,
    },
    /// Its coordinator is gone, and it tries again.
    Away {
        holds: Holds,
    },
    /// Its session is open, and it has not said yet what it holds.
    Up {
        session: SessionId,
        holds: Holds,
    },
    /// It has said that it holds nothing.
    Ready {
        session: SessionId,
    },
    /// It left its group, holds this, and waits.
    Waiting {
        session: SessionId,
        at: Place,
        generation: u64,
        recent: Vec<StepDone>,
    },
    Training(Training),
    /// Its last word is said.
    Leaving {
        session: SessionId,
        last_word: WorkerEvent,
    },
}

/// What a worker has to say when it comes (back).
#[derive(Clone, Debug)]
enum Holds {
    Nothing,
    Memory { at: Place, generation: u64, recent: Vec<StepDone> },
    LastWord(WorkerEvent),
}

#[derive(Clone, Debug)]
struct Training {
    session: SessionId,
    rank: u32,
    generation: u64,
    world_size: u32,
    at: Place,
    recent: Vec<StepDone>,
    /// Rank 0 has told a checkpoint and waits for its commit.
    waits: bool,
    stop: bool,
    stopped: bool,
    /// Asked to make room for others; and all have agreed to, behind a step.
    regroup: bool,
    regrouping: bool,
}

impl Worker {
    fn session(&self) -> Option<SessionId> {
        match self {
            Worker::Down { .. } | Worker::Away { .. } => None,
            Worker::Up { session, .. }
            | Worker::Ready { session }
            | Worker::Waiting { session, .. }
            | Worker::Leaving { session, .. } => Some(*session),
            Worker::Training(training) => Some(training.session),
        }
    }
}

struct World {
    run: Run,
    chance: SplitMix64,
    workers: Vec<Worker>,
    now: Duration,
    next_session: SessionId,
    /// Steps that were recorded.
    recorded: Vec<(String, u64)>,
    commits: VecDeque<(SessionId, CheckpointWritten)>,
    /// Workers that were told to leave, whose processes have ended; the launcher has not said so yet.
    exits: VecDeque<usize>,
    /// The newest generation, with index and place of each of its ranks as they were when it began.
    ranks: (u64, Vec<(usize, Option<Place>)>),
    /// Something was said that no worker says.
    nonsense: bool,
    verdict: Option<Verdict>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut chance = SplitMix64::new(seed);
        let workers = 1 + chance.below(4) as usize;
        let least = 1 + chance.below(workers as u64) as usize;
        let start = Start { least, patience: Duration::from_secs(2), ..start(workers) };
        Self {
            run: Run::new(start, Duration::ZERO),
            chance,
            workers: vec![Worker::Down { started: true }; workers],
            now: Duration::ZERO,
            next_session: 1,
            recorded: Vec::new(),
            commits: VecDeque::new(),
            exits: VecDeque::new(),
            ranks: (0, Vec::new()),
            nonsense: false,
            verdict: None,
        }
    }

    fn apply(&mut self, event: Event) {
        let over = self.verdict.is_some();
        for effect in self.run.apply(event, self.now) {
            assert!(!over || matches!(effect, Effect::Send { .. }), "behind the end: {effect:?}");
            match effect {
                Effect::Record(step) => self.record(&step),
                Effect::Send { session, command } => self.hear(session, command),
                Effect::End(verdict) => {
                    assert!(self.verdict.is_none(), "ended twice");
                    self.verdict = Some(verdict);
                }
                Effect::Commit { session, written } => self.commits.push_back((session, written)),
                Effect::Restart { worker, .. } => {
                    let index = index_of(&worker);
                    // One that comes back too late is refused, and ends.
                    let startable = matches!(self.workers[index], Worker::Down { .. } | Worker::Away { .. });
                    assert!(startable, "{worker} was started twice");
                    self.workers[index] = Worker::Down { started: true };
                }
                Effect::Kill { worker } => self.die(index_of(&worker)),
                Effect::CutSteps { stages, first } => self.recorded.retain(|(stage, step)| {
                    stages.contains(stage) || first.as_ref().is_some_and(|(first, n)| first == stage && step < n)
                }),
                Effect::OpenStore { .. } | Effect::Tell(_) | Effect::Adopt { .. } => {}
            }
        }
    }

    /// Every step once, in order.
    fn record(&mut self, step: &StepDone) {
        assert!(step.generation <= self.run.generation);
        let mut all = STAGES.iter().flat_map(|(stage, steps)| (0..*steps).map(move |step| ((*stage).to_owned(), step)));
        let next = all.nth(self.recorded.len());
        assert_eq!(next, Some((step.stage.clone(), step.step)), "recorded so far: {:?}", self.recorded);
        self.recorded.extend(next);
    }

    fn hear(&mut self, session: SessionId, command: Command) {
        let Some(index) = self.workers.iter().position(|worker| worker.session() == Some(session)) else { return };
        match command {
            Command::Begin(begin) => self.begin(index, &begin),
            Command::Leave { .. } | Command::Refused { .. } => {
                self.workers[index] = Worker::Down { started: false };
                self.exits.push_back(index);
            }
            Command::Stop { .. } => {
                if let Worker::Training(training) = &mut self.workers[index] {
                    training.stop = true;
                }
            }
            Command::Regroup => {
                if let Worker::Training(training) = &mut self.workers[index] {
                    training.regroup = true;
                }
            }
            Command::Committed(outcome) => self.committed(index, &outcome),
            // What has lost a member is not whole any more: its ranks leave it by themselves.
            Command::Welcome(_) | Command::Abandon { .. } | Command::Recorded { .. } => {}
        }
    }

    /// Takes over what the source holds, or what is committed.
    fn begin(&mut self, index: usize, begin: &Begin) {
        if self.ranks.0 != begin.generation {
            let ready = |(index, worker): (usize, &Worker)| match worker {
                Worker::Ready { .. } => Some((index, None)),
                Worker::Waiting { at, .. } => Some((index, Some(*at))),
                _ => None,
            };
            self.ranks = (begin.generation, self.workers.iter().enumerate().filter_map(ready).collect());
        }
        let ranks = &self.ranks.1;
        assert_eq!(begin.world_size as usize, ranks.len());
        assert_eq!(ranks[begin.rank as usize].0, index, "ranks follow the names");
        assert_eq!(begin.complete.len(), begin.stage as usize);
        let at = match begin.source {
            Some(source) => ranks[source as usize].1.expect("the source holds something"),
            None => {
                let made = begin.resume.as_ref().map_or(0, |checkpoint| checkpoint.step);
                Place { stage: begin.stage as usize, made }
            }
        };
        assert_eq!(at.stage, begin.stage as usize, "a stage that is committed is not done again");
        let session = match self.workers[index] {
            Worker::Ready { session } => session,
            Worker::Waiting { session, at: held, generation, .. } => {
                let lost = begin.source.is_some() && generation + 1 == begin.generation && held > at;
                assert!(!lost, "{held:?} was held, and all go on from {at:?}");
                session
            }
            ref other => panic!("{other:?} was told to begin"),
        };
        self.workers[index] = Worker::Training(Training {
            session,
            rank: begin.rank,
            generation: begin.generation,
            world_size: begin.world_size,
            at,
            recent: Vec::new(),
            waits: false,
            stop: false,
            stopped: false,
            regroup: false,
            regrouping: false,
        });
    }

    /// Rank 0 hears of its commit. Behind the end of a stage all go on together, if all are still there.
    fn committed(&mut self, index: usize, outcome: &Result<CheckpointRef, String>) {
        let Worker::Training(training) = &mut self.workers[index] else { return };
        training.waits = false;
        let (at, generation) = (training.at, training.generation);
        let ends = outcome.as_ref().is_ok_and(|saved| at.stage < STAGES.len() && saved.step == STAGES[at.stage].1);
        if ends && at.made == STAGES[at.stage].1 && self.is_whole(generation) {
            let next = Place { stage: at.stage + 1, made: 0 };
            // Some may be through the barrier and others not, if somebody dies in it.
            let torn = self.chance.below(8) == 0;
            for index in 0..self.workers.len() {
                let through = !torn || self.chance.below(2) == 0;
                if let (Worker::Training(training), true) = (&mut self.workers[index], through) {
                    training.at = next;
                }
            }
            if torn {
                let index = self.chance.below(self.workers.len() as u64) as usize;
                self.kill(index);
            }
        }
    }

    fn is_whole(&self, generation: u64) -> bool {
        let all = self.workers.iter().filter_map(|worker| match worker {
            Worker::Training(training) if training.generation == generation => Some(training.world_size as usize),
            _ => None,
        });
        let world_size = all.clone().next();
        world_size == Some(all.count())
    }

    /// Something happens to some worker.
    fn happen(&mut self, disturbed: bool) {
        self.now += Duration::from_millis(self.chance.below(if disturbed { 400 } else { 100 }));
        if let Some(index) = self.exits.pop_front() {
            self.apply(Event::Exited {
                worker: format!("worker-{index}"),
                how: "ended".into(),
                cause: ExitCause::Exited(0),
            });
        }
        match self.chance.below(100) {
            0 if disturbed => self.apply(Event::StopAsked { reason: "asked".into() }),
            99 if disturbed && self.chance.below(2) == 0 => self.restart_coordinator(),
            1..3 if disturbed => {
                let index = self.chance.below(self.workers.len() as u64) as usize;
                self.kill(index);
            }
            3 if disturbed && self.chance.below(4) == 0 => self.say_nonsense(),
            4..20 => self.apply(Event::Tick),
            20..30 => self.commit(),
            _ => self.advance(),
        }
        if !disturbed {
            for index in 0..self.workers.len() {
                self.heartbeat(index);
            }
        }
    }

    /// The coordinator is killed, and another one starts with what is on the disk. What it was committing may be there.
    fn restart_coordinator(&mut self) {
        if self.verdict.is_some() {
            return;
        }
        let mut start = self.run.start.clone();
        for (_, written) in std::mem::take(&mut self.commits) {
            let CheckpointWritten { stage, step, folder, result, .. } = written;
            let saved = CheckpointRef { stage, folder, manifest_sha256: "0".into(), step };
            let again = start.complete.iter().any(|complete| complete.stage == saved.stage);
            match (self.chance.below(2) == 0 && !again, result.is_some()) {
                (true, true) => {
                    start.complete.push(saved);
                    (start.stage, start.resume) = (start.stage + 1, None);
                }
                (true, false) => start.resume = Some(saved),
                (false, _) => {}
            }
        }
        // All is done: such a coordinator only prints the table, and the workers' lease ends.
        if start.complete.len() == STAGES.len() {
            self.verdict = Some(Verdict::Done);
            self.workers.fill(Worker::Down { started: false });
            return;
        }
        start.last_generation = self.run.generation;
        start.next_step = self.recorded.last().map(|(stage, step)| (stage.clone(), step + 1));
        start.adopted = (0..self.workers.len()).map(|index| format!("worker-{index}")).collect();
        self.run = Run::new(start, self.now);
        self.exits.clear();
        for worker in &mut self.workers {
            let holds = match worker.clone() {
                Worker::Down { .. } => continue,
                Worker::Away { holds } | Worker::Up { holds, .. } => holds,
                Worker::Ready { .. } => Holds::Nothing,
                Worker::Waiting { at, generation, recent, .. }
                | Worker::Training(Training { at, generation, recent, stopped: false, .. }) => {
                    Holds::Memory { at, generation, recent }
                }
                Worker::Training(training) => Holds::LastWord(last_word(&training)),
                Worker::Leaving { last_word, .. } => Holds::LastWord(last_word),
            };
            *worker = Worker::Away { holds };
        }
    }

    fn commit(&mut self) {
        let Some((session, written)) = self.commits.pop_front() else { return };
        let CheckpointWritten { stage, step, folder, result, .. } = written;
        let outcome = Ok(CheckpointRef { stage, folder, manifest_sha256: "0".into(), step });
        self.apply(Event::Committed { session, outcome, result });
    }

    /// Dies wherever it is. Of those that were in a step with it, some may still have got its result.
    fn kill(&mut self, index: usize) {
        if let Worker::Training(Training { generation, .. }) = self.workers[index]
            && self.is_whole(generation)
            && self.chance.below(2) == 0
        {
            let all = self.workers.clone();
            for (other, worker) in all.into_iter().enumerate().filter(|(other, _)| *other != index) {
                let Worker::Training(training) = worker else { continue };
                if self.chance.below(2) == 0 {
                    self.workers[other] = Worker::Training(make_step(training));
                }
            }
        }
        self.die(index);
    }

    fn die(&mut self, index: usize) {
        let Some(session) = self.workers[index].session() else { return };
        self.workers[index] = Worker::Down { started: false };
        let exited = Event::Exited {
            worker: format!("worker-{index}"),
            how: "was killed".into(),
            cause: ExitCause::Signalled(9),
        };
        let closed = Event::Closed { session };
        let (first, second) = if self.chance.below(2) == 0 { (exited, closed) } else { (closed, exited) };
        self.apply(first);
        self.apply(second);
    }

    /// A message that a correct worker would not send now, or one from a session that never was.
    fn say_nonsense(&mut self) {
        let session = self.chance.below(self.next_session + 2);
        let known = self.workers.iter().any(|worker| worker.session() == Some(session));
        self.nonsense |= known;
        let event = match self.chance.below(5) {
            0 => WorkerEvent::Step(step("a", self.chance.below(9), self.chance.below(9))),
            1 => WorkerEvent::Hello(hello("again")),
            2 => WorkerEvent::Failed(Failed { phase: "p".into(), message: "m".into(), exit_code: 70 }),
            3 => WorkerEvent::Rejoin(Rejoin { generation: 99, held: None, recent: Vec::new() }),
            _ => WorkerEvent::Ready { config_digest: "another".into() },
        };
        self.apply(Event::Said { session, event });
    }

    fn heartbeat(&mut self, index: usize) {
        let Worker::Training(Training { session, generation, .. }) = self.workers[index] else {
            if let Worker::Waiting { session, .. } = self.workers[index] {
                let heartbeat = Heartbeat {
                    generation: 0,
                    stage: "a".into(),
                    step: 0,
                    phase: "waiting".into(),
                    collectives: 0,
                    waited_ms: 0,
                };
                self.apply(Event::Said { session, event: WorkerEvent::Heartbeat(heartbeat) });
            }
            return;
        };
        // Nobody hangs: whoever is in a generation that makes no step may be evaluating.
        let (stage, phase) = ("a".into(), "evaluate".into());
        let heartbeat = Heartbeat { generation, stage, step: 0, phase, collectives: 0, waited_ms: 0 };
        self.apply(Event::Said { session, event: WorkerEvent::Heartbeat(heartbeat) });
    }

    /// A random worker does what it does next.
    fn advance(&mut self) {
        let index = self.chance.below(self.workers.len() as u64) as usize;
        match self.workers[index].clone() {
            Worker::Down { started: true } => self.open(index, Holds::Nothing),
            Worker::Away { holds } => self.open(index, holds),
            Worker::Up { session, holds } => self.announce(index, session, holds),
            Worker::Training(training) if self.is_whole(training.generation) && !training.regrouping => {
                self.train(index, training);
            }
            Worker::Training(training) if training.stopped || training.at.stage == STAGES.len() => {
                self.last_word(index, training);
            }
            Worker::Training(Training { session, generation, at, recent, .. }) => {
                self.announce(index, session, Holds::Memory { at, generation, recent });
            }
            Worker::Down { .. } | Worker::Ready { .. } | Worker::Waiting { .. } | Worker::Leaving { .. } => {}
        }
    }

    fn open(&mut self, index: usize, holds: Holds) {
        let session = self.next_session;
        self.next_session += 1;
        let generation = if matches!(holds, Holds::Nothing) { 0 } else { self.run.generation };
        self.workers[index] = Worker::Up { session, holds };
        let hello = Hello { generation, ..hello(&format!("worker-{index}")) };
        self.apply(Event::Opened { session, hello });
    }

    fn announce(&mut self, index: usize, session: SessionId, holds: Holds) {
        let (worker, event) = match holds {
            Holds::Nothing => (Worker::Ready { session }, ready()),
            Holds::LastWord(event) => (Worker::Leaving { session, last_word: event.clone() }, event),
            Holds::Memory { at, generation, recent } => {
                let held = Some(Held { stage: at.stage as u32, step: at.made, settled: true });
                let rejoin = Rejoin { generation, held, recent: recent.clone() };
                (Worker::Waiting { session, at, generation, recent }, WorkerEvent::Rejoin(rejoin))
            }
        };
        self.workers[index] = worker;
        self.apply(Event::Said { session, event });
    }

    /// The whole group makes a step, or rank 0 has something committed; behind the last stage all leave.
    fn train(&mut self, index: usize, training: Training) {
        if training.stopped || training.at.stage == STAGES.len() {
            return self.last_word(index, training);
        }
        if training.rank > 0 || training.waits {
            return self.heartbeat(index);
        }
        let (stage, steps) = STAGES[training.at.stage];
        let ends = training.at.made == steps;
        if ends || training.at.made > 0 && self.chance.below(6) == 0 {
            let written = CheckpointWritten {
                stage: stage.into(),
                epoch: 0,
                step: training.at.made,
                generation: training.generation,
                world_size: training.world_size,
                folder: "f".into(),
                files: Vec::new(),
                result: ends.then(|| StageResult { stage: stage.into(), ..StageResult::default() }),
                seconds: 1.0,
                best: None,
                settled: true,
            };
            let session = training.session;
            self.workers[index] = Worker::Training(Training { waits: true, ..training });
            return self.apply(Event::Said { session, event: WorkerEvent::Checkpoint(written) });
        }
        let any = |asked: fn(&Training) -> bool| {
            self.workers.iter().any(|worker| matches!(worker, Worker::Training(training) if asked(training)))
        };
        let (stop, regroup) = (any(|training| training.stop), any(|training| training.regroup));
        for worker in &mut self.workers {
            if let Worker::Training(training) = worker {
                let stepped = make_step(training.clone());
                let stopped = stop && stepped.at.made < steps;
                *training = Training { stopped, regrouping: regroup && !stopped, ..stepped };
            }
        }
        let Worker::Training(Training { session, recent, .. }) = self.workers[index].clone() else {
            unreachable!("rank 0 is in training")
        };
        let told = recent.last().cloned().expect("rank 0 has made a step");
        self.apply(Event::Said { session, event: WorkerEvent::Step(told) });
    }

    fn last_word(&mut self, index: usize, training: Training) {
        self.announce(index, training.session, Holds::LastWord(last_word(&training)));
    }
}

fn last_word(training: &Training) -> WorkerEvent {
    let Place { stage, made } = training.at;
    match training.stopped {
        true => WorkerEvent::Stopped { stage: STAGES[stage].0.into(), step: made },
        false => WorkerEvent::Finished,
    }
}

/// One more update, if the stage has one.
fn make_step(training: Training) -> Training {
    let Place { stage, made } = training.at;
    if stage == STAGES.len() || made == STAGES[stage].1 || training.stopped {
        return training;
    }
    let mut recent = if made == 0 { Vec::new() } else { training.recent };
    recent.push(step(STAGES[stage].0, made, training.generation));
    Training { at: Place { stage, made: made + 1 }, recent, ..training }
}

fn index_of(worker: &str) -> usize {
    worker.trim_start_matches("worker-").parse().expect("workers are numbered")
}

/// Runs a world until it ends.
fn live(seed: u64) -> Verdict {
    let mut world = World::new(seed);
    for event in 0..DISTURBED + CALM {
        if world.verdict.is_some() {
            break;
        }
        world.happen(event < DISTURBED);
    }
    let verdict = world.verdict.clone().expect("a run that nothing disturbs any more ends");
    let waiting =
        world.workers.iter().any(|worker| worker.session().is_some_and(|s| world.run.members.contains_key(&s)));
    assert!(!waiting, "somebody was not told that the run is over: {:?}", world.workers);
    match &verdict {
        Verdict::Done => {
            assert_eq!(world.recorded.len() as u64, STAGES.iter().map(|(_, steps)| steps).sum::<u64>());
        }
        Verdict::Failed { message, .. } => {
            assert!(world.nonsense || message.starts_with("given up"), "nothing was wrong, and yet: {message}");
        }
        Verdict::Stopped { .. } => {}
    }
    verdict
}

#[test]
fn ten_thousand_runs_keep_the_rules() {
    let (mut done, mut stopped, mut failed) = (0, 0, 0);
    for seed in 0..SEEDS {
        let verdict = std::panic::catch_unwind(|| live(seed)).unwrap_or_else(|_| panic!("seed {seed}"));
        match verdict {
            Verdict::Done => done += 1,
            Verdict::Stopped { .. } => stopped += 1,
            Verdict::Failed { .. } => failed += 1,
        }
    }
    // All kinds of ends occur, or the simulation shows nothing.
    assert!(done > SEEDS / 20 && stopped > SEEDS / 20 && failed > SEEDS / 100, "{done} {stopped} {failed}");
}
