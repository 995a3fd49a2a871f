//! One stream to the coordinator, as the training thread holds it: events out, answers in, until it
//! is lost.

use super::MAX_UNRECORDED;
use crate::error::{Result, WorkerError};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use thanos_proto::{Command, StepDone, WorkerEvent};
use tokio::sync::mpsc;

/// Events that may wait for the network; a full queue makes the step wait.
const MAX_EVENTS: usize = 1024;

pub(super) struct Connection {
    events: mpsc::Sender<WorkerEvent>,
    answers: Receiver<Command>,
    window: Arc<AckWindow>,
}

/// The other end of a [`Connection`], which the session's thread holds.
pub(super) struct ConnectionPeer {
    pub(super) events: mpsc::Receiver<WorkerEvent>,
    pub(super) answers: Sender<Command>,
    pub(super) window: Arc<AckWindow>,
}

/// Steps that were reported on a connection, and how many of them the coordinator has recorded.
#[derive(Default)]
pub(super) struct AckWindow {
    steps: Mutex<Steps>,
    changed: Condvar,
}

#[derive(Default)]
struct Steps {
    reported: u64,
    recorded: u64,
    lost: bool,
    /// The generation ends: no step waits any more.
    released: bool,
}

impl AckWindow {
    /// Lets a step that waits continue, when the generation is to end: at a stop, or because a rank
    /// is lost.
    pub(super) fn release(&self, released: bool) {
        self.lock().released = released;
        self.changed.notify_all();
    }

    pub(super) fn recorded(&self, steps: u64) {
        self.lock().recorded = steps;
        self.changed.notify_all();
    }

    /// Nothing that is sent from here on would be received.
    pub(super) fn lose(&self) {
        self.lock().lost = true;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Steps> {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connection {
    pub(super) fn new() -> (Self, ConnectionPeer) {
        let (events, outbound) = mpsc::channel(MAX_EVENTS);
        let (inbound, answers) = channel();
        let window = Arc::new(AckWindow::default());
        let far = ConnectionPeer { events: outbound, answers: inbound, window: window.clone() };
        (Self { events, answers, window }, far)
    }

    pub(super) fn events(&self) -> mpsc::Sender<WorkerEvent> {
        self.events.clone()
    }

    pub(super) fn send(&self, event: WorkerEvent) -> Result<()> {
        if self.window.lock().lost {
            return Err(WorkerError::Disconnected);
        }
        self.events.blocking_send(event).map_err(|_| WorkerError::Disconnected)
    }

    pub(super) fn send_step(&self, step: StepDone) -> Result<()> {
        let too_many = |steps: &mut Steps| {
            !steps.lost
                && !steps.released
                && steps.reported - steps.recorded >= MAX_UNRECORDED as u64
        };
        let mut steps = self
            .window
            .changed
            .wait_while(self.window.lock(), too_many)
            .unwrap_or_else(PoisonError::into_inner);
        steps.reported += 1;
        drop(steps);
        self.send(WorkerEvent::Step(step))
    }

    /// The next answer, however long it takes.
    pub(super) fn wait(&self) -> Result<Command> {
        self.answers.recv().map_err(|_| WorkerError::Disconnected)
    }

    pub(super) fn wait_for(&self, limit: Duration) -> Result<Command, RecvTimeoutError> {
        self.answers.recv_timeout(limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(step: u64) -> StepDone {
        StepDone {
            stage: "a".into(),
            step,
            generation: 1,
            world_size: 1,
            loss: 1.0,
            lr: 0.1,
            images: 8,
            total_steps: 1000,
            ..StepDone::default()
        }
    }

    #[test]
    fn a_step_waits_while_too_many_are_not_recorded() {
        let (connection, mut far) = Connection::new();
        for number in 0..MAX_UNRECORDED as u64 {
            connection.send_step(step(number)).expect("room");
        }
        let window = far.window.clone();
        let waiting =
            std::thread::spawn(move || connection.send_step(step(64)).map(|()| connection));
        assert!(!waiting.is_finished());
        window.recorded(1);
        let connection = waiting.join().expect("no panic").expect("one was recorded");
        let waiting = std::thread::spawn(move || connection.send_step(step(65)));
        window.lose();
        assert!(
            waiting.join().expect("no panic").is_err(),
            "no thread waits for a lost connection"
        );
        let reported = std::iter::from_fn(|| far.events.try_recv().ok()).count();
        assert_eq!(reported, 65);
    }
}
