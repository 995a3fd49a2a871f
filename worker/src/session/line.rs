//! One stream to the coordinator, as the training thread holds it: events out, answers in, until it is lost.

use super::MAX_UNRECORDED;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use thanos_proto::{Command, StepDone, WorkerEvent};
use tokio::sync::mpsc;

/// Events that may wait for the network; a full queue makes the step wait.
const MAX_EVENTS: usize = 1024;

/// The stream has broken: the generation is over, and another stream is being opened.
#[derive(Debug, thiserror::Error)]
#[error("the coordinator cannot be reached")]
pub(crate) struct LineLost;

pub(super) struct Line {
    events: mpsc::Sender<WorkerEvent>,
    answers: Receiver<Command>,
    tally: Arc<Tally>,
}

/// The other end of a [`Line`], which the session's thread holds.
pub(super) struct FarEnd {
    pub(super) events: mpsc::Receiver<WorkerEvent>,
    pub(super) answers: Sender<Command>,
    pub(super) tally: Arc<Tally>,
}

/// Steps that were told on a line, and how many of them the coordinator has recorded.
#[derive(Default)]
pub(super) struct Tally {
    steps: Mutex<Steps>,
    changed: Condvar,
}

#[derive(Default)]
struct Steps {
    told: u64,
    recorded: u64,
    lost: bool,
    /// The generation ends: no step waits any more.
    released: bool,
}

impl Tally {
    /// Lets a step that waits go on, when the generation is to end: at a stop, or because a rank is lost.
    pub(super) fn release(&self, released: bool) {
        self.lock().released = released;
        self.changed.notify_all();
    }

    pub(super) fn recorded(&self, steps: u64) {
        self.lock().recorded = steps;
        self.changed.notify_all();
    }

    /// Nothing that is told from here on would be heard.
    pub(super) fn lose(&self) {
        self.lock().lost = true;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Steps> {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Line {
    pub(super) fn new() -> (Self, FarEnd) {
        let (events, outbound) = mpsc::channel(MAX_EVENTS);
        let (inbound, answers) = channel();
        let tally = Arc::new(Tally::default());
        let far = FarEnd { events: outbound, answers: inbound, tally: tally.clone() };
        (Self { events, answers, tally }, far)
    }

    pub(super) fn events(&self) -> mpsc::Sender<WorkerEvent> {
        self.events.clone()
    }

    pub(super) fn send(&self, event: WorkerEvent) -> Result<(), LineLost> {
        if self.tally.lock().lost {
            return Err(LineLost);
        }
        self.events.blocking_send(event).map_err(|_| LineLost)
    }

    pub(super) fn send_step(&self, step: StepDone) -> Result<(), LineLost> {
        let too_many =
            |steps: &mut Steps| !steps.lost && !steps.released && steps.told - steps.recorded >= MAX_UNRECORDED as u64;
        let mut steps =
            self.tally.changed.wait_while(self.tally.lock(), too_many).unwrap_or_else(PoisonError::into_inner);
        steps.told += 1;
        drop(steps);
        self.send(WorkerEvent::Step(step))
    }

    /// The next answer, however long it takes.
    pub(super) fn wait(&self) -> Result<Command, LineLost> {
        self.answers.recv().map_err(|_| LineLost)
    }

    pub(super) fn wait_for(&self, most: Duration) -> Result<Command, RecvTimeoutError> {
        self.answers.recv_timeout(most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn step(step: u64) -> StepDone {
        StepDone {
            stage: "a".into(),
            epoch: 0,
            step,
            generation: 1,
            world_size: 1,
            loss: 1.0,
            losses: BTreeMap::new(),
            lr: 0.1,
            images: 8,
            samples_sha256: String::new(),
            total_steps: 1000,
            skipped: None,
            phase_seconds: BTreeMap::new(),
            gathered_bytes: 0,
        }
    }

    #[test]
    fn a_step_waits_while_too_many_are_not_recorded() {
        let (line, mut far) = Line::new();
        for number in 0..MAX_UNRECORDED as u64 {
            line.send_step(step(number)).expect("room");
        }
        let tally = far.tally.clone();
        let waiting = std::thread::spawn(move || line.send_step(step(64)).map(|()| line));
        assert!(!waiting.is_finished());
        tally.recorded(1);
        let line = waiting.join().expect("no panic").expect("one was recorded");
        let waiting = std::thread::spawn(move || line.send_step(step(65)));
        tally.lose();
        assert!(waiting.join().expect("no panic").is_err(), "a lost line makes nobody wait");
        let told = std::iter::from_fn(|| far.events.try_recv().ok()).count();
        assert_eq!(told, 65);
    }
}
