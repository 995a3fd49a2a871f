//! Simulated worker processes: they start, connect, report what they hold, heartbeat, and die.

use super::{STAGES, State, World};
use crate::run::tests::{hello, ready};
use crate::run::{Event, ExitCause, SessionId};
use std::time::Duration;
use thanos_proto::{GroupFailure, Heartbeat, Held, Hello, Rejoin, WorkerEvent};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Health {
    Healthy,
    /// By a signal: nothing comes from it.
    Stopped,
    /// Its heartbeats continue; it does nothing else.
    Hung,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Activity {
    /// Not running; with a time, it will be.
    Down {
        starts: Option<Duration>,
    },
    /// It has a session, or is about to, and will report what it holds.
    Reporting,
    /// It has reported, and waits for a generation.
    Waiting,
    /// In the group, at work until then, or in a collective.
    Training {
        until: Duration,
    },
    /// It left its group, and finishes what it was at before it reports.
    Leaving {
        until: Duration,
    },
    SavingMemory {
        until: Duration,
    },
    /// It has finished, or stopped.
    Over {
        final_event: Box<WorkerEvent>,
        is_sent: bool,
    },
}

#[derive(Clone, Debug)]
pub(super) struct Worker {
    pub(super) activity: Activity,
    pub(super) health: Health,
    pub(super) session: Option<SessionId>,
    /// When it connects next.
    connects: Duration,
    /// `None`: it holds nothing.
    pub(super) state: Option<State>,
    /// When rank 0's background save is written, what it is of, and the session that it belongs to.
    pub(super) saves: Option<(Duration, WorkerEvent, Option<SessionId>)>,
    pub(super) stop: bool,
    /// The newest generation that it was asked to leave for one with more workers.
    pub(super) regroup: u64,
    pub(super) collectives: u64,
    pub(super) phase: &'static str,
    /// Why it left its group, until it has reported that.
    pub(super) failure: Option<GroupFailure>,
    /// When it received SIGTERM.
    pub(super) terminating: Option<Duration>,
    /// It sent what no correct worker sends: what becomes of it does not matter.
    pub(super) misbehaved: bool,
}

impl Worker {
    pub(super) fn starting(starts: Duration) -> Self {
        Self { activity: Activity::Down { starts: Some(starts) }, ..Self::ended() }
    }

    pub(super) fn ended() -> Self {
        Self {
            activity: Activity::Down { starts: None },
            health: Health::Healthy,
            session: None,
            connects: Duration::ZERO,
            state: None,
            saves: None,
            stop: false,
            regroup: 0,
            collectives: 0,
            phase: "start",
            failure: None,
            terminating: None,
            misbehaved: false,
        }
    }

    pub(super) fn is_alive(&self) -> bool {
        !matches!(self.activity, Activity::Down { .. })
    }

    pub(super) fn lose_session(&mut self, back: Duration) {
        (self.session, self.connects) = (None, back);
        match &mut self.activity {
            Activity::Waiting | Activity::SavingMemory { .. } => {
                self.activity = Activity::Reporting
            }
            Activity::Over { is_sent, .. } => *is_sent = false,
            _ => {}
        }
    }
}

impl World {
    /// What a worker does in this quantum outside of its group.
    pub(super) fn live(&mut self, index: usize) {
        let now = self.now;
        let worker = &mut self.workers[index];
        if let Activity::Down { starts } = worker.activity {
            if starts.is_some_and(|starts| starts <= now) {
                (worker.activity, worker.connects) = (Activity::Reporting, now);
            }
            return;
        }
        if worker.health == Health::Stopped {
            return;
        }
        if worker.session.is_none() && worker.connects <= now {
            self.connect(index);
        }
        self.heartbeat(index);
        if self.workers[index].health == Health::Healthy {
            self.save(index);
            self.act(index);
        }
    }

    fn connect(&mut self, index: usize) {
        let session = self.next_session;
        self.next_session += 1;
        let worker = &mut self.workers[index];
        worker.session = Some(session);
        let generation = worker.state.as_ref().map_or(0, |state| state.generation);
        let hello = Hello { generation, ..hello(&format!("worker-{index}")) };
        let is_terminating = worker.terminating.is_some();
        self.send(Event::Opened { session, hello });
        if is_terminating {
            self.send(Event::Received { session, event: WorkerEvent::TerminationNotice });
        }
    }

    /// A worker receives SIGTERM: it reports it, and works on.
    pub(super) fn terminate(&mut self, index: usize) {
        let worker = &mut self.workers[index];
        if !worker.is_alive() || worker.health != Health::Healthy || worker.terminating.is_some() {
            return;
        }
        worker.terminating = Some(self.now);
        if let Some(session) = worker.session {
            self.send(Event::Received { session, event: WorkerEvent::TerminationNotice });
        }
    }

    fn act(&mut self, index: usize) {
        let worker = &mut self.workers[index];
        let Some(session) = worker.session else { return };
        match worker.activity.clone() {
            Activity::Reporting => {
                worker.activity = Activity::Waiting;
                worker.phase = "waiting";
                let failure = worker.failure.take();
                let event = match &worker.state {
                    None => ready(),
                    Some(State { at, generation, recent }) => {
                        self.reported.insert(session, *at);
                        let held = Some(Held {
                            stage: at.stage as u32,
                            step: at.made,
                            post_step_done: true,
                        });
                        let recent = recent.clone();
                        WorkerEvent::Rejoin(Rejoin {
                            generation: *generation,
                            held,
                            recent,
                            failure,
                        })
                    }
                };
                self.send(Event::Received { session, event });
            }
            Activity::Leaving { until } if until <= self.now && worker.saves.is_none() => {
                worker.activity = Activity::Reporting;
            }
            Activity::Leaving { until } if until <= self.now => worker.phase = "save",
            Activity::SavingMemory { until } if until <= self.now => {
                worker.activity = Activity::Waiting;
                let state = worker.state.clone().expect("it was asked for what it holds");
                let event = match self.chance.below(5) {
                    0 => WorkerEvent::NotSaved {
                        stage: STAGES[state.at.stage].0.into(),
                        step: state.at.made,
                        reason: "full".into(),
                    },
                    _ => WorkerEvent::Checkpoint(self.written(state.at, state.generation, false)),
                };
                self.send(Event::Received { session, event });
            }
            Activity::Over { final_event, is_sent: false } => {
                worker.activity =
                    Activity::Over { final_event: final_event.clone(), is_sent: true };
                self.send(Event::Received { session, event: *final_event });
            }
            _ => {}
        }
    }

    /// Rank 0's background save is written: the coordinator is notified.
    fn save(&mut self, index: usize) {
        let worker = &mut self.workers[index];
        if worker.saves.as_ref().is_some_and(|(until, _, _)| *until <= self.now)
            && let Some((_, event, began_in)) = worker.saves.take()
            && began_in == worker.session
            && let Some(session) = worker.session
        {
            self.send(Event::Received { session, event });
        }
    }

    fn heartbeat(&mut self, index: usize) {
        let worker = &self.workers[index];
        let (Some(session), Some(state)) = (worker.session, &worker.state) else { return };
        let heartbeat = Heartbeat {
            generation: state.generation,
            stage: STAGES.get(state.at.stage).map_or("end", |(stage, _)| stage).into(),
            step: state.at.made,
            phase: worker.phase.into(),
            collectives: worker.collectives,
            waited_ms: 0,
            progress: 0,
            in_collective: matches!(
                worker.activity,
                Activity::Training { until } if until <= self.now
            ),
        };
        self.send(Event::Received { session, event: WorkerEvent::Heartbeat(heartbeat) });
    }

    /// A process ends: its peers notice at once, the coordinator by its session and its exit, in
    /// either order.
    pub(super) fn die(&mut self, index: usize) {
        if !self.workers[index].is_alive() {
            return;
        }
        self.losses += 1;
        self.tear_step(index);
        let worker = std::mem::replace(&mut self.workers[index], Worker::ended());
        let exited = Event::Exited {
            worker: format!("worker-{index}"),
            how: "was killed".into(),
            cause: ExitCause::Signalled(9),
        };
        let closed = worker.session.map(|session| Event::Closed { session });
        match (closed, self.is_once_in(2)) {
            (Some(closed), true) => self.inbox.extend([exited, closed]),
            (Some(closed), false) => self.inbox.extend([closed, exited]),
            (None, _) => self.inbox.push_back(exited),
        }
        if let Some(group) = self.group.as_mut().filter(|group| group.ranks.contains(&Some(index)))
        {
            group.broken = true;
        }
    }

    /// Sent `Leave`, it leaves.
    pub(super) fn leave(&mut self, index: usize) {
        if self.workers[index].health == Health::Stopped {
            return;
        }
        self.workers[index] = Worker::ended();
        if let Some(group) = self.group.as_mut().filter(|group| group.ranks.contains(&Some(index)))
        {
            group.broken = true;
        }
        self.send(Event::Exited {
            worker: format!("worker-{index}"),
            how: "ended".into(),
            cause: ExitCause::Exited(0),
        });
    }
}
