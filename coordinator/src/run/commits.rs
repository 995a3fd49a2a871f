//! The rules of what rank 0 reports: steps, which the ledger has once and in order, and
//! checkpoints, which are committed. Every message is fenced: only rank 0 of the newest generation
//! may send it, and only about the stage in training.

use super::{CommitOutcome, Effect, Member, Notice, Phase, RECORDED_INTERVAL, Run, SessionId};
use std::time::Duration;
use thanos_proto::{CheckpointRef, CheckpointWritten, Command, StageResult, StepDone};

/// A checkpoint that rank 0 could not write, and why.
pub(super) struct FailedSave {
    pub(super) stage: String,
    pub(super) step: u64,
    pub(super) reason: String,
}

impl Run {
    pub(super) fn step(
        &mut self,
        session: SessionId,
        step: StepDone,
        now: Duration,
    ) -> Vec<Effect> {
        let fenced =
            self.fence(session, step.generation).or_else(|| self.fence_stage(session, &step.stage));
        if let Some(problem) = fenced {
            return self.protocol_violation(session, &problem, now);
        }
        let expected = self.recorded_of_stage();
        if step.step > expected {
            let problem = format!(
                "it reported step {} of stage {}, expected {expected}",
                step.step, step.stage
            );
            return self.protocol_violation(session, &problem, now);
        }
        self.pace.step(&step);
        self.first_loss = None;
        self.generation_made_a_step();
        // One that is made again after a loss is in the ledger already.
        let mut effects = if self.comes_next(&step) { self.record(step) } else { Vec::new() };
        if let Some(member) = self.members.get_mut(&session) {
            member.steps_reported += 1;
            if member.steps_reported.is_multiple_of(RECORDED_INTERVAL) {
                let command = Command::Recorded { steps: member.steps_reported };
                effects.push(Effect::Send { session, command });
            }
        }
        effects
    }

    /// What went wrong before is forgiven to those that took part.
    fn generation_made_a_step(&mut self) {
        self.idle_generations = 0;
        for member in self.members.values_mut().filter(|member| member.seat().is_some()) {
            member.made_a_step();
            self.restarts.remove(&member.hello.worker_id);
            self.growth.remove(&member.hello.worker_id);
        }
    }

    /// Whether a step is the one that the ledger lacks: the next one of the stage in training.
    pub(super) fn comes_next(&self, step: &StepDone) -> bool {
        step.stage == self.current_stage() && step.step == self.recorded_of_stage()
    }

    pub(super) fn current_stage(&self) -> &str {
        self.start.stages.get(self.start.stage).map_or("", String::as_str)
    }

    pub(super) fn record(&mut self, done: StepDone) -> Vec<Effect> {
        let StepDone { stage, step, skipped, .. } = done.clone();
        self.next_step = Some((stage.clone(), step + 1));
        let skipped =
            skipped.map(|problem| Effect::Notify(Notice::Skipped { stage, step, problem }));
        [Effect::Record(done)].into_iter().chain(skipped).collect()
    }

    /// Steps of the stage in training that the ledger has.
    pub(super) fn recorded_of_stage(&self) -> u64 {
        self.next_step
            .as_ref()
            .filter(|(stage, _)| stage == self.current_stage())
            .map_or(0, |(_, next)| *next)
    }

    /// Where training continues from a checkpoint, or from a stage's start, the ledger goes back as
    /// well; also when it has steps of a later stage.
    pub(super) fn cut_steps(&mut self) -> Option<Effect> {
        let first = self
            .start
            .resume
            .as_ref()
            .map(|checkpoint| (checkpoint.stage.clone(), checkpoint.step));
        let is_complete =
            |stage: &str| self.start.complete.iter().any(|complete| complete.stage == stage);
        let position = self.next_step.as_ref().filter(|(stage, _)| !is_complete(stage));
        let at_start = |place: &(String, u64)| place.1 == 0;
        if position.filter(|place| !at_start(place))
            == first.as_ref().filter(|place| !at_start(place))
        {
            return None;
        }
        self.next_step.clone_from(&first);
        let stages =
            self.start.complete.iter().map(|checkpoint| checkpoint.stage.clone()).collect();
        Some(Effect::CutSteps { stages, first })
    }

    pub(super) fn checkpoint(
        &mut self,
        session: SessionId,
        written: CheckpointWritten,
        now: Duration,
    ) -> Vec<Effect> {
        let saves_before_end = self.saves_before_end(session);
        let fenced = if saves_before_end { None } else { self.fence(session, written.generation) };
        if let Some(problem) = fenced.or_else(|| self.checkpoint_problem(&written)) {
            return self.protocol_violation(session, &problem, now);
        }
        self.committing += 1;
        vec![Effect::Commit { session, written }]
    }

    /// A checkpoint is of the stage in training, and not ahead of the ledger.
    fn checkpoint_problem(&self, written: &CheckpointWritten) -> Option<String> {
        let CheckpointWritten { stage, step, generation, result, .. } = written;
        if stage != self.current_stage()
            || result.as_ref().is_some_and(|result| result.stage != *stage)
        {
            return Some(format!(
                "a checkpoint of stage `{stage}` while stage `{}` is in training",
                self.current_stage()
            ));
        }
        let recorded = self.recorded_of_stage();
        if *step > recorded || *generation > self.generation {
            return Some(format!("a checkpoint of step {step}, but {recorded} steps are recorded"));
        }
        None
    }

    fn saves_before_end(&self, session: SessionId) -> bool {
        matches!(self.phase, Phase::Saving { session: saver, .. } if saver == session)
    }

    /// Why this session may not speak for the run, if so: only rank 0 of the newest generation may.
    fn fence(&self, session: SessionId, generation: u64) -> Option<String> {
        let current = self.generation;
        let stale = || {
            (generation != current)
                .then(|| format!("a message of generation {generation} in generation {current}"))
        };
        self.fence_rank_0(session).or_else(stale)
    }

    pub(super) fn fence_rank_0(&self, session: SessionId) -> Option<String> {
        let rank = self.members.get(&session).and_then(Member::rank);
        (rank != Some(0)).then(|| "a message that only rank 0 of a generation may send".into())
    }

    pub(super) fn fence_stage(&self, session: SessionId, stage: &str) -> Option<String> {
        let other =
            || (stage != self.current_stage()).then(|| format!("a message about stage `{stage}`"));
        self.fence_rank_0(session).or_else(other)
    }

    pub(super) fn not_saved(
        &mut self,
        session: SessionId,
        FailedSave { stage, step, reason }: FailedSave,
        now: Duration,
    ) -> Vec<Effect> {
        let saves_before_end = self.saves_before_end(session);
        if let Some(problem) = self.fence_stage(session, &stage).filter(|_| !saves_before_end) {
            return self.protocol_violation(session, &problem, now);
        }
        let mut effects =
            vec![Effect::Notify(Notice::NotSaved { stage, step, reason: reason.clone() })];
        if saves_before_end {
            effects.extend(self.save_failed(now, &reason));
        }
        effects
    }

    pub(super) fn committed(
        &mut self,
        session: SessionId,
        commit: CommitOutcome,
        now: Duration,
    ) -> Vec<Effect> {
        let CommitOutcome { stage, step, outcome, result } = commit;
        self.committing = self.committing.saturating_sub(1);
        let notice = match &outcome {
            Ok(_) => Notice::Saved { stage, step },
            Err(reason) => Notice::NotSaved { stage, step, reason: reason.clone() },
        };
        let mut effects =
            vec![Effect::Send { session, command: Command::Committed(outcome.clone()) }];
        effects.push(Effect::Notify(notice));
        let saves_before_end = self.saves_before_end(session);
        match outcome {
            Ok(saved) => {
                effects.extend(self.saved(saved, result));
                if saves_before_end {
                    effects.extend(self.end_now(None, now));
                }
            }
            Err(reason) if saves_before_end => effects.extend(self.save_failed(now, &reason)),
            Err(_) => {}
        }
        effects.extend(self.begin_if_ready(now));
        effects
    }

    /// A checkpoint is committed; with a result its stage is complete, once.
    fn saved(&mut self, saved: CheckpointRef, result: Option<StageResult>) -> Option<Effect> {
        let is_current = saved.stage == self.current_stage();
        match result {
            Some(result) if is_current => {
                self.start.complete.push(saved);
                self.start.resume = None;
                self.start.stage += 1;
                Some(Effect::Notify(Notice::StageComplete(result)))
            }
            None if is_current
                && self.start.resume.as_ref().is_none_or(|newest| newest.step <= saved.step) =>
            {
                self.start.resume = Some(saved);
                None
            }
            Some(_) | None => None,
        }
    }
}

#[cfg(test)]
mod tests;
