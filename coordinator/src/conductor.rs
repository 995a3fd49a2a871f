//! The conductor: one task that owns the run. It feeds the rules in `run.rs` with what happens, and carries out what
//! they say; it decides nothing.

use crate::checkpoints::Checkpoints;
use crate::exit::Fatal;
use crate::launcher::Launcher;
use crate::ledger::Ledger;
use crate::observe::Observed;
use crate::progress::Progress;
use crate::run::{Effect, Event, Notice, RecoveredFrom, Run, SessionId, Verdict};
use crate::server::Sessions;
use crate::store::Store;
use crate::tensorboard::TensorBoard;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};
use thanos_proto::{CheckpointWritten, StageResult};
use tokio::sync::mpsc;

/// How often deadlines are looked at.
const BETWEEN_TICKS: Duration = Duration::from_millis(100);

/// The run, and everything that its effects reach.
pub(crate) struct Conductor {
    pub(crate) run: Run,
    pub(crate) sessions: Sessions,
    pub(crate) store: Arc<Store>,
    pub(crate) ledger: Ledger,
    pub(crate) checkpoints: Arc<Checkpoints>,
    /// Where workers are started, if this program does it.
    pub(crate) launcher: Option<Arc<Launcher>>,
    pub(crate) progress: Progress,
    /// Event files, if somebody asked for them.
    pub(crate) tensorboard: Option<TensorBoard>,
    /// What is scraped, if somebody may.
    pub(crate) observed: Option<Observed>,
    /// Where the outcome of a commit is told.
    pub(crate) events: mpsc::Sender<Event>,
    pub(crate) started: Instant,
    /// What the stages that completed measured.
    pub(crate) results: Vec<StageResult>,
}

impl Conductor {
    /// Conducts the run to its end.
    pub(crate) async fn conduct(
        mut self,
        mut happened: mpsc::Receiver<Event>,
    ) -> Result<(Verdict, Vec<StageResult>), Fatal> {
        let mut ticks = tokio::time::interval(BETWEEN_TICKS);
        loop {
            let event = tokio::select! {
                event = happened.recv() => event.unwrap_or(Event::Tick),
                _ = ticks.tick() => Event::Tick,
            };
            for effect in self.run.apply(event, self.started.elapsed()) {
                if let Some(observed) = &self.observed {
                    observed.see(&effect);
                }
                if let Some(tensorboard) = &mut self.tensorboard {
                    tensorboard.see(&effect);
                }
                if let Some(verdict) = self.carry_out(effect)? {
                    self.progress.finish();
                    return Ok((verdict, self.results));
                }
            }
        }
    }

    fn carry_out(&mut self, effect: Effect) -> Result<Option<Verdict>, Fatal> {
        match effect {
            Effect::OpenStore { generation } => self.store.open(generation),
            Effect::Send { session, command } => self.sessions.send(session, command),
            Effect::Record(step) => {
                self.progress.step(&step);
                self.ledger.step(step)?;
            }
            Effect::Commit { session, written } => {
                self.ledger.sync_steps()?;
                self.commit(session, written);
            }
            Effect::Tell(notice) => self.tell(notice)?,
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
            Effect::Adopt { worker, pid } => {
                if let Some(launcher) = &self.launcher {
                    launcher.adopt(&worker, pid);
                }
            }
            Effect::CutSteps { stages, first } => self.ledger.cut(|line| {
                let is_first = |(stage, steps): &(String, u64)| *stage == line.stage && line.step < *steps;
                stages.contains(&line.stage) || first.as_ref().is_some_and(is_first)
            })?,
            Effect::End(verdict) => {
                self.ledger.event("ended", &ending(&verdict))?;
                return Ok(Some(verdict));
            }
        }
        Ok(None)
    }

    /// Commits on a thread of its own: it waits for the disk.
    fn commit(&self, session: SessionId, written: CheckpointWritten) {
        let (checkpoints, events) = (self.checkpoints.clone(), self.events.clone());
        tokio::task::spawn_blocking(move || {
            let outcome = checkpoints.commit(&written).map_err(|error| format!("{error:#}"));
            _ = events.blocking_send(Event::Committed { session, outcome, result: written.result });
        });
    }

    fn tell(&mut self, notice: Notice) -> Result<(), Fatal> {
        self.progress.notice(&notice);
        let (kind, fields) = line(&notice);
        self.ledger.event(kind, &fields)?;
        match (notice, &self.launcher) {
            (Notice::StageComplete(result), _) => self.results.push(result),
            (Notice::Began { generation, workers }, _) => self.sessions.began(generation, &workers),
            (Notice::Joined { worker, .. }, Some(launcher)) => launcher.joined(&worker),
            _ => {}
        }
        Ok(())
    }
}

/// A notice as a line of `events.jsonl`.
fn line(notice: &Notice) -> (&'static str, Value) {
    match notice {
        Notice::Joined { worker, host, pid } => ("joined", json!({"worker": worker, "host": host, "pid": pid})),
        Notice::Fetched { worker, split, from, bytes } => {
            ("fetched", json!({"worker": worker, "split": split, "from": from, "bytes": bytes}))
        }
        Notice::Refused { worker, reason } => ("refused", json!({"worker": worker, "reason": reason})),
        Notice::Began { generation, workers } => ("began", json!({"generation": generation, "ranks": workers})),
        Notice::Evaluated(evaluated) => (
            "evaluated",
            json!({
                "stage": evaluated.stage,
                "epoch": evaluated.epoch,
                "validation_accuracy": evaluated.validation_accuracy,
                "best": evaluated.best,
            }),
        ),
        Notice::Saved { stage, step } => ("checkpoint", json!({"stage": stage, "step": step})),
        Notice::NotSaved { stage, step, reason } => {
            ("checkpoint_failed", json!({"stage": stage, "step": step, "reason": reason}))
        }
        Notice::StageComplete(result) => ("stage_complete", json!({"stage": result.stage, "seconds": result.seconds})),
        Notice::Stopping { reason } => ("stopping", json!({"reason": reason})),
        Notice::GraceOver => ("grace_over", json!({})),
        Notice::Skipped { stage, step, problem } => {
            ("skipped", json!({"stage": stage, "step": step, "problem": problem}))
        }
        Notice::Repaired { problem } => ("repaired", json!({"problem": problem})),
        Notice::Straggler { worker, whereabouts, share } => {
            ("straggler", json!({"worker": worker, "in": whereabouts, "share_of_time_waited_for": share}))
        }
        Notice::Lost { worker, reason } => ("lost", json!({"worker": worker, "reason": reason})),
        Notice::Restarting { worker, how, restart } => {
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
