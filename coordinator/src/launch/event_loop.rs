//! The event loop: one task that owns the run. It feeds the rules in `run.rs` with what happens,
//! and carries out what they say; it decides nothing, and waits for nothing but events: what
//! touches the run directory is `journal.rs`'s.

use crate::exit::{EXIT_IO, Fatal};
use crate::launch::event_lines::ending;
use crate::launch::journal::Journal;
use crate::run::{Effect, Event, Notice, Run, Verdict};
use crate::server::Sessions;
use crate::server::rendezvous::Store;
use crate::telemetry::Telemetry;
use crate::telemetry::http::Observed;
use crate::telemetry::progress::Progress;
use crate::terminal;
use crate::workers::Launcher;
use std::sync::Arc;
use std::time::{Duration, Instant};
use thanos_proto::{Command, StageResult, WorkerEvent};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

/// How often deadlines are checked.
const TICK_INTERVAL: Duration = Duration::from_millis(100);
/// How long a run that has not completed waits at its end for the journal.
const MIN_JOURNAL_TIMEOUT: Duration = Duration::from_secs(5);

/// The run, and everything that its effects reach.
pub(crate) struct EventLoop {
    pub(crate) run: Run,
    pub(crate) sessions: Sessions,
    pub(crate) store: Arc<Store>,
    pub(crate) journal: Journal,
    /// How long a complete run waits at its end for the journal.
    pub(crate) journal_timeout: Duration,
    /// Where workers are started, if this program does it.
    pub(crate) launcher: Option<Arc<Launcher>>,
    pub(crate) progress: Progress,
    /// What monitoring knows of the run.
    pub(crate) telemetry: Telemetry,
    /// What the status page shows, if it is served.
    pub(crate) observed: Option<Observed>,
    pub(crate) started: Instant,
    /// What the stages that completed measured.
    pub(crate) results: Vec<StageResult>,
}

impl EventLoop {
    /// Runs until the run has ended.
    ///
    /// # Errors
    /// 74 if the run is complete and its ledger cannot be written.
    pub(crate) async fn run_to_end(
        mut self,
        mut happened: mpsc::Receiver<Event>,
    ) -> Result<(Verdict, Vec<StageResult>), Fatal> {
        let mut ticks = tokio::time::interval(TICK_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let verdict = loop {
            let event = tokio::select! {
                event = happened.recv() => event.unwrap_or(Event::Tick),
                _ = ticks.tick() => {
                    // What was sent before the deadline is read before the deadline is checked.
                    let waiting = happened.len();
                    let mut next = || happened.try_recv().unwrap_or(Event::Tick);
                    let ended = (0..waiting).find_map(|_| self.apply(next()));
                    if let Some(verdict) = ended {
                        break verdict;
                    }
                    Event::Tick
                }
            };
            if let Some(verdict) = self.apply(event) {
                break verdict;
            }
        };
        drop(happened);
        self.end(verdict).await
    }

    fn apply(&mut self, event: Event) -> Option<Verdict> {
        self.telemetry.on_event(&event);
        if let Event::Received { event: WorkerEvent::Heartbeat(heartbeat), .. } = &event {
            self.progress.heartbeat(heartbeat);
        }
        if let Some(observed) = &self.observed {
            observed.on_event(&event);
        }
        let effects = self.run.apply(event, self.started.elapsed());
        let mut verdict = None;
        for effect in effects {
            self.telemetry.on_effect(&effect);
            if let Some(observed) = &self.observed {
                observed.on_effect(&effect);
            }
            verdict = verdict.or(self.carry_out(effect));
        }
        verdict
    }

    fn carry_out(&mut self, effect: Effect) -> Option<Verdict> {
        match effect {
            Effect::OpenStore { generation } => self.store.open(generation),
            // After the lines that they acknowledge, or that a restarted coordinator must know of.
            Effect::Send { command: Command::Begin(_) | Command::Recorded { .. }, .. }
            | Effect::Commit { .. }
            | Effect::CutSteps { .. } => self.journal.carry_out(effect),
            Effect::Send { session, command } => self.sessions.send(session, command),
            Effect::Record(ref step) => {
                self.progress.step(step);
                self.journal.carry_out(effect);
            }
            Effect::Notify(notice) => self.notify(notice),
            Effect::Restart { worker, after } => {
                if let Some(launcher) = &self.launcher {
                    launcher.restart(&worker, after);
                }
            }
            Effect::Kill { worker } => {
                if let Some(launcher) = &self.launcher {
                    launcher.kill(&worker);
                }
            }
            Effect::End(verdict) => {
                self.journal.event("ended", ending(&verdict));
                return Some(verdict);
            }
        }
        None
    }

    fn notify(&mut self, notice: Notice) {
        self.progress.notice(&notice);
        match (&notice, &self.launcher) {
            (Notice::StageComplete(result), _) => self.results.push(result.clone()),
            (Notice::Began { generation, workers, .. }, _) => {
                self.sessions.began(*generation, workers)
            }
            (Notice::SavingBeforeEnd { worker, .. }, _) => self.sessions.saves(worker),
            (Notice::Joined { worker, .. }, Some(launcher)) => launcher.joined(worker),
            _ => {}
        }
        self.journal.carry_out(Effect::Notify(notice));
    }

    async fn end(self, verdict: Verdict) -> Result<(Verdict, Vec<StageResult>), Fatal> {
        terminal::hide_bar();
        let timeout = match verdict {
            Verdict::Done => self.journal_timeout,
            Verdict::Stopped { .. } | Verdict::Failed { .. } => MIN_JOURNAL_TIMEOUT,
        };
        match (self.journal.finish(timeout).await, &verdict) {
            (Some(problem), Verdict::Done) => {
                let message = format!(
                    "every stage is complete and committed, but the ledger is not: {problem}"
                );
                Err(Fatal::new(EXIT_IO, message))
            }
            (Some(problem), _) => {
                tracing::warn!("the last lines of the ledger are not written: {problem}");
                Ok((verdict, self.results))
            }
            (None, _) => Ok((verdict, self.results)),
        }
    }
}
