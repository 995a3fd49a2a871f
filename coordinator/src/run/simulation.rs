//! A seeded simulation of whole runs: workers that join in any order, train in step, die, say too much or too late,
//! and a user who asks for stops. Whatever the order, the rules must keep what is asserted here; a failure prints the
//! seed that replays it.

use super::tests::{hello, ready, start, step};
use super::*;
use thanos_configs::SplitMix64;
use thanos_proto::Heartbeat;

const SEEDS: u64 = 10_000;
const MOST_EVENTS: u64 = 600;
const STAGES: [(&str, u64); 2] = [("a", 5), ("b", 3)];

/// One simulated worker process.
#[derive(Clone, Debug, PartialEq)]
enum Worker {
    Down,
    /// Its session is open; `ready` was said or not.
    Up {
        session: SessionId,
        ready: bool,
    },
    /// In a generation.
    Training {
        session: SessionId,
        rank: u32,
        generation: u64,
        told: bool,
    },
    /// Its last word is said.
    Leaving {
        session: SessionId,
    },
}

impl Worker {
    fn session(&self) -> Option<SessionId> {
        match self {
            Worker::Down => None,
            Worker::Up { session, .. } | Worker::Training { session, .. } | Worker::Leaving { session } => {
                Some(*session)
            }
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
    /// Steps that the group has made: all its ranks are alive.
    made: u64,
    stopping: bool,
    broken: bool,
    verdict: Option<Verdict>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut chance = SplitMix64::new(seed);
        let workers = 1 + chance.below(4) as usize;
        Self {
            run: Run::new(start(workers), Duration::ZERO),
            chance,
            workers: vec![Worker::Down; workers],
            now: Duration::ZERO,
            next_session: 1,
            recorded: Vec::new(),
            made: 0,
            stopping: false,
            broken: false,
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
                Effect::OpenStore { .. } | Effect::Commit { .. } | Effect::Tell(_) => {}
            }
        }
    }

    /// Every step once, in order.
    fn record(&mut self, step: &StepDone) {
        assert_eq!(step.generation, self.run.generation);
        let flat = self.recorded.len() as u64;
        assert_eq!((step.stage.clone(), step.step), place(flat), "recorded so far: {:?}", self.recorded);
        self.recorded.push((step.stage.clone(), step.step));
    }

    fn hear(&mut self, session: SessionId, command: Command) {
        let Some(index) = self.workers.iter().position(|worker| worker.session() == Some(session)) else { return };
        match command {
            Command::Begin(begin) => {
                let worker = &self.workers[index];
                assert!(matches!(worker, Worker::Up { ready: true, .. }), "{worker:?} was told to begin");
                assert_eq!(begin.world_size as usize, self.workers.len());
                let (rank, generation) = (begin.rank, begin.generation);
                let taken = self.workers.iter().any(|worker| {
                    matches!(worker, Worker::Training { rank: taken, generation: of, .. }
                        if (*taken, *of) == (rank, generation))
                });
                assert!(!taken, "rank {rank} was given twice");
                self.workers[index] = Worker::Training { session, rank, generation, told: false };
            }
            Command::Leave { .. } | Command::Refused { .. } => self.workers[index] = Worker::Down,
            Command::Stop { .. } => self.stopping = true,
            Command::Welcome(_) | Command::Committed(_) => {}
        }
    }

    /// Something happens to some worker.
    fn happen(&mut self) {
        self.now += Duration::from_millis(self.chance.below(400));
        match self.chance.below(100) {
            0 => self.apply(Event::StopAsked { reason: "asked".into() }),
            1 => self.kill(),
            2 => self.say_nonsense(),
            3..20 => self.apply(Event::Tick),
            _ => self.advance(),
        }
    }

    fn kill(&mut self) {
        let index = self.chance.below(self.workers.len() as u64) as usize;
        let Some(session) = self.workers[index].session() else { return };
        self.broken = true;
        self.workers[index] = Worker::Down;
        let exited = Event::Exited { worker: format!("worker-{index}"), how: "was killed".into() };
        let closed = Event::Closed { session };
        let (first, second) = if self.chance.below(2) == 0 { (exited, closed) } else { (closed, exited) };
        self.apply(first);
        self.apply(second);
    }

    /// A message that a correct worker would not send now, or one from a session that never was.
    fn say_nonsense(&mut self) {
        let session = self.chance.below(self.next_session + 2);
        let known = self.workers.iter().any(|worker| worker.session() == Some(session));
        self.broken |= known;
        let event = match self.chance.below(4) {
            0 => WorkerEvent::Step(step("a", self.chance.below(9), self.chance.below(9))),
            1 => WorkerEvent::Hello(hello("again")),
            2 => WorkerEvent::Failed(Failed { phase: "p".into(), message: "m".into(), exit_code: 70 }),
            _ => WorkerEvent::Ready { config_digest: "another".into() },
        };
        self.apply(Event::Said { session, event });
    }

    /// A random worker does what it does next.
    fn advance(&mut self) {
        let index = self.chance.below(self.workers.len() as u64) as usize;
        match self.workers[index].clone() {
            Worker::Down => {
                let session = self.next_session;
                self.next_session += 1;
                self.workers[index] = Worker::Up { session, ready: false };
                self.apply(Event::Opened { session, hello: hello(&format!("worker-{index}")) });
            }
            Worker::Up { session, ready: false } => {
                self.workers[index] = Worker::Up { session, ready: true };
                self.apply(Event::Said { session, event: ready() });
            }
            Worker::Up { .. } | Worker::Leaving { .. } => {}
            Worker::Training { session, rank, generation, told } => {
                self.train(index, (session, rank, generation, told));
            }
        }
    }

    /// The group makes a step when all its ranks are there; rank 0 tells it. Then each says its last word.
    fn train(&mut self, index: usize, (session, rank, generation, told): (SessionId, u32, u64, bool)) {
        let whole =
            self.workers.iter().all(|worker| matches!(worker, Worker::Training { .. } | Worker::Leaving { .. }));
        let total: u64 = STAGES.iter().map(|(_, steps)| steps).sum();
        if self.made == total || self.stopping {
            let last_word = match self.stopping {
                true => WorkerEvent::Stopped { stage: "a".into(), step: self.made },
                false => WorkerEvent::Finished,
            };
            self.workers[index] = Worker::Leaving { session };
            self.apply(Event::Said { session, event: last_word });
        } else if rank == 0 && whole {
            let (stage, number) = place(self.made);
            self.made += 1;
            self.apply(Event::Said { session, event: WorkerEvent::Step(step(&stage, number, generation)) });
        } else if !told {
            let heartbeat = Heartbeat { generation, stage: "a".into(), step: self.made, phase: "forward".into() };
            self.apply(Event::Said { session, event: WorkerEvent::Heartbeat(heartbeat) });
        }
    }
}

/// The stage and step of the n-th step of the run.
fn place(n: u64) -> (String, u64) {
    let (first, steps) = STAGES[0];
    if n < steps { (first.into(), n) } else { (STAGES[1].0.into(), n - steps) }
}

/// Runs a world until it ends. Errors say what it did not keep.
fn live(seed: u64) -> Verdict {
    let mut world = World::new(seed);
    for _ in 0..MOST_EVENTS {
        if world.verdict.is_some() {
            break;
        }
        world.happen();
    }
    // A run that nothing disturbs any more ends by its deadlines at the latest.
    world.now += MOST_GATHERING + MOST_SILENCE;
    world.apply(Event::Tick);
    world.now += FOR_THE_EXIT_STATUS;
    world.apply(Event::Tick);
    let verdict = world.verdict.clone().expect("every run ends");
    let waiting =
        world.workers.iter().any(|worker| worker.session().is_some_and(|s| world.run.members.contains_key(&s)));
    assert!(!waiting, "somebody was not told that the run is over: {:?}", world.workers);
    if verdict == Verdict::Done {
        assert_eq!(world.recorded.len() as u64, STAGES.iter().map(|(_, steps)| steps).sum::<u64>());
    }
    if !world.broken && world.made > 0 {
        assert!(!matches!(verdict, Verdict::Failed { .. }), "nothing went wrong, and yet {verdict:?}");
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
    assert!(done > SEEDS / 20 && stopped > SEEDS / 20 && failed > SEEDS / 20, "{done} {stopped} {failed}");
}
