//! The event loop: one task that owns the run. It feeds the rules in `run.rs` with what happens, and carries out what
//! they say; it decides nothing, and waits for nothing but events: what touches the run directory is `journal.rs`'s.

use crate::commands::bench;
use crate::exit::{EXIT_IO, Fatal};
use crate::launch::journal::Journal;
use crate::run::{Effect, Event, Notice, RecoveredFrom, Run, Verdict};
use crate::server::Sessions;
use crate::server::rendezvous::Store;
use crate::telemetry::Telemetry;
use crate::telemetry::http::Observed;
use crate::telemetry::http::device_json;
use crate::telemetry::progress::Progress;
use crate::terminal;
use crate::workers::Launcher;
use serde_json::{Value, json};
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
    /// Conducts the run to its end.
    ///
    /// # Errors
    /// 74 if the run is complete and its ledger cannot be written.
    pub(crate) async fn conduct(
        mut self,
        mut happened: mpsc::Receiver<Event>,
    ) -> Result<(Verdict, Vec<StageResult>), Fatal> {
        let mut ticks = tokio::time::interval(TICK_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let verdict = loop {
            let event = tokio::select! {
                event = happened.recv() => event.unwrap_or(Event::Tick),
                _ = ticks.tick() => {
                    // What was sent before the deadline is read before it is judged.
                    let waiting = happened.len();
                    let ended = (0..waiting).find_map(|_| self.apply(happened.try_recv().unwrap_or(Event::Tick)));
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
                observed.see(&effect);
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
            (Notice::Began { generation, workers, .. }, _) => self.sessions.began(*generation, workers),
            (Notice::SavingBeforeEnd { worker, .. }, _) => self.sessions.saves(worker),
            (Notice::Joined { worker, .. }, Some(launcher)) => launcher.joined(worker),
            _ => {}
        }
        self.journal.carry_out(Effect::Notify(notice));
    }

    async fn end(self, verdict: Verdict) -> Result<(Verdict, Vec<StageResult>), Fatal> {
        terminal::hide_bar();
        let rendezvous_timeout = match verdict {
            Verdict::Done => self.journal_timeout,
            Verdict::Stopped { .. } | Verdict::Failed { .. } => MIN_JOURNAL_TIMEOUT,
        };
        match (self.journal.finish(rendezvous_timeout).await, &verdict) {
            (Some(problem), Verdict::Done) => {
                let message = format!("every stage is complete and committed, but the ledger is not: {problem}");
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

/// A notice as a line of `events.jsonl`.
pub(crate) fn line(notice: &Notice) -> (&'static str, Value) {
    match notice {
        Notice::Joined { worker, host, pid, device } => {
            ("joined", json!({"worker": worker, "host": host, "pid": pid, "device": device_json(device)}))
        }
        Notice::Fetched { worker, split, from, bytes } => {
            ("fetched", json!({"worker": worker, "split": split, "from": from, "bytes": bytes}))
        }
        Notice::Refused { worker, reason } => ("refused", json!({"worker": worker, "reason": reason})),
        Notice::Began { generation, workers, devices, collectives } => {
            let collectives = collectives.label();
            let fields = json!({
                "generation": generation, "ranks": workers, "devices": devices, "collectives": collectives,
            });
            ("began", fields)
        }
        Notice::Evaluated(evaluated) => (
            "evaluated",
            json!({
                "stage": evaluated.stage,
                "epoch": evaluated.epoch,
                "validation_accuracy": evaluated.validation_accuracy,
                "best": evaluated.best,
                "measure": evaluated.measure,
            }),
        ),
        Notice::Saved { stage, step } => ("checkpoint", json!({"stage": stage, "step": step})),
        Notice::NotSaved { stage, step, reason } => {
            ("checkpoint_failed", json!({"stage": stage, "step": step, "reason": reason}))
        }
        Notice::StageComplete(result) => ("stage_complete", stage_result(result)),
        Notice::Benched(report) => ("benched", bench::to_json(report)),
        Notice::Stopping { reason } => ("stopping", json!({"reason": reason})),
        Notice::Terminating { worker, .. } => ("termination_notice", json!({"worker": worker})),
        Notice::SavingBeforeEnd { worker, stage, step } => {
            ("saving_before_end", json!({"worker": worker, "stage": stage, "step": step}))
        }
        Notice::StorageBlocked { problem } => ("storage_blocked", json!({"problem": problem})),
        Notice::StorageRecovered { seconds } => ("storage_recovered", json!({"seconds": seconds})),
        Notice::GraceOver => ("grace_over", json!({})),
        Notice::Skipped { stage, step, problem } => {
            ("skipped", json!({"stage": stage, "step": step, "problem": problem}))
        }
        Notice::Repaired { problem } => ("repaired", json!({"problem": problem})),
        Notice::Straggler { worker, last_position, share } => {
            ("straggler", json!({"worker": worker, "in": last_position, "share_of_time_waited_for": share}))
        }
        Notice::Lost { worker, reason } => ("lost", json!({"worker": worker, "reason": reason})),
        Notice::GroupFailed { worker, reason } => ("group_failed", json!({"worker": worker, "reason": reason})),
        Notice::Restarting { worker, how, restart, .. } => {
            ("restarting", json!({"worker": worker, "how": how, "restart": restart}))
        }
        Notice::Abandoned { worker, how } => ("abandoned", json!({"worker": worker, "how": how})),
        Notice::Recovered { generation, stage, step, seconds, from } => {
            let from = match from {
                RecoveredFrom::Memory(worker) => json!({"memory": worker}),
                RecoveredFrom::Checkpoint => json!("checkpoint"),
                RecoveredFrom::Start => json!("start"),
            };
            let fields = json!({
                "generation": generation, "stage": stage, "step": step, "seconds": seconds, "from": from,
            });
            ("recovered", fields)
        }
    }
}

/// What a complete stage has measured: accuracies as shares, and mean cosines of test embeddings.
fn stage_result(result: &StageResult) -> Value {
    json!({
        "stage": result.stage,
        "seconds": result.seconds,
        "validation_accuracy": result.validation_accuracy,
        "coarse_test_accuracy": result.coarse_test_accuracy,
        "fine_test_accuracy": result.fine_test_accuracy,
        "knn_fine_accuracy": result.knn_fine_accuracy,
        "cosine_within_coarse": result.cosine_within_coarse,
        "cosine_within_fine": result.cosine_within_fine,
        "cosine_between_views": result.cosine_between_views,
    })
}

fn ending(verdict: &Verdict) -> Value {
    match verdict {
        Verdict::Done => json!({"how": "done"}),
        Verdict::Stopped { at: Some((stage, step)) } => json!({"how": "stopped", "stage": stage, "step": step}),
        Verdict::Stopped { at: None } => json!({"how": "stopped"}),
        Verdict::Failed { message, exit_code } => {
            json!({"how": "failed", "message": message, "exit_code": exit_code})
        }
    }
}
