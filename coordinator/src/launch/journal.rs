//! The journal: one thread that carries out, in order, every effect that touches the run directory:
//! lines of the ledger, commits, and the commands that may only be sent once what precedes them is
//! durable. The event loop never waits for storage. Where the run directory cannot be written the
//! journal reports it and tries again: lines wait, and with them the acknowledgements that let
//! training continue.

use crate::run::{CommitOutcome, Effect, Event, Notice, SessionId};
use crate::run_dir::checkpoints::Checkpoints;
use crate::run_dir::ledger::Ledger;
use crate::server::Sessions;
use serde_json::Value;
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use thanos_proto::{CheckpointWritten, Command};
use tokio::sync::mpsc;

/// Delay before a write that failed is tried again.
const RETRY_DELAY: Duration = Duration::from_millis(250);
/// Lines of events that are kept while they cannot be written; the oldest are dropped.
const MAX_LATE_EVENTS: usize = 1024;
/// How often the end of the thread is looked at.
const FINISH_POLL: Duration = Duration::from_millis(5);

/// What the journal reaches.
pub(crate) struct Journal {
    jobs: Sender<Job>,
    thread: JoinHandle<Option<String>>,
    /// The run has ended: what cannot be written is given up.
    closing: Arc<AtomicBool>,
}

enum Job {
    Effect(Effect),
    /// A line of `events.jsonl`.
    Event(&'static str, Value),
    Close,
}

impl Journal {
    pub(crate) fn start(
        ledger: Ledger,
        checkpoints: Checkpoints,
        (sessions, events): (Sessions, mpsc::Sender<Event>),
    ) -> io::Result<Self> {
        let (jobs, receiver) = channel();
        let closing = Arc::new(AtomicBool::new(false));
        let writer = Writer {
            ledger,
            checkpoints: Arc::new(checkpoints),
            sessions,
            events,
            closing: closing.clone(),
            problem: None,
            late: VecDeque::new(),
            unsent: Vec::new(),
        };
        let thread =
            thread::Builder::new().name("journal".into()).spawn(move || writer.run(&receiver))?;
        Ok(Self { jobs, thread, closing })
    }

    /// Carries an effect out, after those before it.
    pub(crate) fn carry_out(&self, effect: Effect) {
        _ = self.jobs.send(Job::Effect(effect));
    }

    /// Appends a line to `events.jsonl`; at best effort, but for the beginning of a generation.
    pub(crate) fn event(&self, kind: &'static str, fields: Value) {
        _ = self.jobs.send(Job::Event(kind, fields));
    }

    /// Waits until everything is written, at most this long; returns why not, if so.
    pub(crate) async fn finish(self, limit: Duration) -> Option<String> {
        _ = self.jobs.send(Job::Close);
        let started = Instant::now();
        while !self.thread.is_finished() {
            if started.elapsed() >= limit {
                self.closing.store(true, Ordering::Relaxed);
            }
            tokio::time::sleep(FINISH_POLL).await;
        }
        self.thread.join().unwrap_or_else(|_| Some("the thread that writes it panicked".into()))
    }
}

struct Writer {
    ledger: Ledger,
    checkpoints: Arc<Checkpoints>,
    sessions: Sessions,
    events: mpsc::Sender<Event>,
    closing: Arc<AtomicBool>,
    /// Why the last write failed, if it did.
    problem: Option<String>,
    late: VecDeque<(&'static str, Value)>,
    /// Commands that wait for the lines before them to be durable.
    unsent: Vec<(SessionId, Command)>,
}

impl Writer {
    fn run(mut self, jobs: &Receiver<Job>) -> Option<String> {
        loop {
            // One sync for all that came meanwhile.
            let job = match jobs.try_recv() {
                Ok(job) => job,
                Err(TryRecvError::Empty) => {
                    self.send_durable();
                    let Ok(job) = jobs.recv() else { break };
                    job
                }
                Err(TryRecvError::Disconnected) => break,
            };
            match job {
                Job::Effect(effect) => self.carry_out(effect),
                Job::Event(kind, fields) => self.event(kind, fields),
                Job::Close => break,
            }
        }
        self.send_durable();
        self.problem
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Record(step) => self.until_written(|ledger| ledger.step(&step)),
            Effect::CutSteps { stages, first } => self.until_written(|ledger| {
                ledger.cut(|line| {
                    let is_first =
                        |(stage, steps): &(String, u64)| *stage == line.stage && line.step < *steps;
                    stages.contains(&line.stage) || first.as_ref().is_some_and(is_first)
                })
            }),
            Effect::Send { session, command } => self.unsent.push((session, command)),
            Effect::Commit { session, written } => {
                self.send_durable();
                self.commit(session, written);
            }
            Effect::Notify(notice) => self.notify(&notice),
            Effect::OpenStore { .. }
            | Effect::Restart { .. }
            | Effect::Kill { .. }
            | Effect::End(_) => {}
        }
    }

    fn notify(&mut self, notice: &Notice) {
        let (kind, fields) = crate::launch::event_lines::line(notice);
        match notice {
            // A worker must not be sent a generation that a restarted coordinator would not know
            // of.
            Notice::Began { .. } => self.until_written(|ledger| ledger.event(kind, &fields)),
            _ => self.event(kind, fields),
        }
    }

    fn event(&mut self, kind: &'static str, fields: Value) {
        self.late.push_back((kind, fields));
        self.write_late();
        while self.late.len() > MAX_LATE_EVENTS {
            self.late.pop_front();
        }
    }

    fn write_late(&mut self) {
        while let Some((kind, fields)) = self.late.front() {
            if self.ledger.event(kind, fields).is_err() {
                break;
            }
            self.late.pop_front();
        }
    }

    /// Syncs what was written, then sends what waited for it.
    fn send_durable(&mut self) {
        if self.unsent.is_empty() {
            return;
        }
        self.until_written(Ledger::sync);
        let mut begun = None;
        for (session, command) in std::mem::take(&mut self.unsent) {
            if let Command::Begin(begin) = &command {
                begun = Some(begin.generation);
            }
            self.sessions.send(session, command);
        }
        if let Some(generation) = begun {
            _ = self.events.blocking_send(Event::BeginSent { generation });
        }
    }

    /// Commits on a thread of its own, after the lines of the checkpoint's steps are durable: they
    /// must not be fewer.
    fn commit(&mut self, session: SessionId, written: CheckpointWritten) {
        self.until_written(Ledger::sync);
        let (stage, step, result) = (written.stage.clone(), written.step, written.result.clone());
        let events = self.events.clone();
        let report = move |outcome| {
            let commit =
                CommitOutcome { stage: stage.clone(), step, outcome, result: result.clone() };
            _ = events.blocking_send(Event::Committed { session, commit });
        };
        let (checkpoints, report_commit) = (self.checkpoints.clone(), report.clone());
        let spawned = thread::Builder::new().name("commit".into()).spawn(move || {
            report_commit(checkpoints.commit(&written).map_err(|error| format!("{error:#}")));
        });
        if let Err(error) = spawned {
            report(Err(format!("no thread to commit it: {error}")));
        }
    }

    /// Tries until it succeeds or the run has ended; the first failure and the recovery are
    /// reported.
    fn until_written(&mut self, mut write: impl FnMut(&mut Ledger) -> io::Result<()>) {
        loop {
            // An evaluation precedes the step that was made after it.
            self.write_late();
            match write(&mut self.ledger) {
                Ok(()) => {
                    if self.problem.take().is_some() {
                        _ = self.events.blocking_send(Event::Storage { problem: None });
                    }
                    return;
                }
                Err(error) => {
                    let problem = error.to_string();
                    if self.problem.as_ref() != Some(&problem) {
                        self.problem = Some(problem.clone());
                        _ = self.events.blocking_send(Event::Storage { problem: Some(problem) });
                    }
                }
            }
            if self.closing.load(Ordering::Relaxed) {
                return;
            }
            thread::sleep(RETRY_DELAY);
        }
    }
}

#[cfg(test)]
mod tests;
