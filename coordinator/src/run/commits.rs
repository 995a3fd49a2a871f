//! The rules of what rank 0 tells: steps, which the ledger has once and in order, and checkpoints, which are committed.

use super::{BETWEEN_RECORDED, Effect, Notice, Phase, Run, SessionId};
use std::time::Duration;
use thanos_proto::{CheckpointRef, CheckpointWritten, Command, StageResult, StepDone};

impl Run {
    pub(super) fn step(&mut self, session: SessionId, step: StepDone, now: Duration) -> Vec<Effect> {
        if let Some(problem) = self.fence(session, step.generation) {
            return self.broke_the_protocol(session, &problem);
        }
        let expected = self.next_step.as_ref().filter(|(stage, _)| *stage == step.stage).map_or(0, |(_, next)| *next);
        if step.step > expected {
            let problem = format!("it told step {} of stage {} where {expected} comes next", step.step, step.stage);
            return self.broke_the_protocol(session, &problem);
        }
        self.pace.step(now);
        self.first_loss = None;
        // One that is made again behind a loss is in the ledger already.
        let mut effects = if self.comes_next(&step) { self.record(step) } else { Vec::new() };
        if let Some(member) = self.members.get_mut(&session) {
            member.steps_told += 1;
            if member.steps_told.is_multiple_of(BETWEEN_RECORDED) {
                let command = Command::Recorded { steps: member.steps_told };
                effects.push(Effect::Send { session, command });
            }
        }
        effects
    }

    /// Whether a step is the one that the ledger lacks: the next one of the stage in training, or the first of another.
    pub(super) fn comes_next(&self, step: &StepDone) -> bool {
        match &self.next_step {
            Some((stage, next)) if !self.is_complete(stage) => (&step.stage, step.step) == (stage, *next),
            _ => step.step == 0 && !self.is_complete(&step.stage),
        }
    }

    fn is_complete(&self, stage: &str) -> bool {
        self.start.complete.iter().any(|complete| complete.stage == stage)
    }

    pub(super) fn record(&mut self, done: StepDone) -> Vec<Effect> {
        let StepDone { stage, step, skipped, .. } = done.clone();
        self.next_step = Some((stage.clone(), step + 1));
        self.restarts.clear();
        self.idle_generations = 0;
        let skipped = skipped.map(|problem| Effect::Tell(Notice::Skipped { stage, step, problem }));
        [Effect::Record(done)].into_iter().chain(skipped).collect()
    }

    /// Steps of the stage in training that the ledger has.
    pub(super) fn recorded_of_stage(&self) -> u64 {
        self.next_step.as_ref().filter(|(stage, _)| !self.is_complete(stage)).map_or(0, |(_, next)| *next)
    }

    /// Where training goes on from a checkpoint, or from a stage's start, the ledger goes back as well.
    pub(super) fn cut_steps(&mut self) -> Option<Effect> {
        let first = self.start.resume.as_ref().map(|checkpoint| (checkpoint.stage.clone(), checkpoint.step));
        if self.recorded_of_stage() == first.as_ref().map_or(0, |(_, step)| *step) {
            return None;
        }
        self.next_step.clone_from(&first);
        let stages = self.start.complete.iter().map(|checkpoint| checkpoint.stage.clone()).collect();
        Some(Effect::CutSteps { stages, first })
    }

    pub(super) fn checkpoint(&mut self, session: SessionId, written: CheckpointWritten) -> Vec<Effect> {
        match self.fence(session, written.generation) {
            Some(problem) => self.broke_the_protocol(session, &problem),
            None => {
                self.committing += 1;
                vec![Effect::Commit { session, written }]
            }
        }
    }

    /// Why this session may not speak for the run, if so: only rank 0 of the running generation may.
    pub(super) fn fence(&self, session: SessionId, generation: u64) -> Option<String> {
        let rank = self.members.get(&session).and_then(|member| member.rank);
        if self.phase == Phase::Over || rank != Some(0) {
            return Some("only rank 0 of a running generation tells steps and checkpoints".into());
        }
        let current = self.generation;
        (generation != current).then(|| format!("it speaks of generation {generation}, this is {current}"))
    }

    pub(super) fn committed(
        &mut self,
        session: SessionId,
        outcome: Result<CheckpointRef, String>,
        result: Option<StageResult>,
        now: Duration,
    ) -> Vec<Effect> {
        self.committing = self.committing.saturating_sub(1);
        let (stage, step) = self.next_step.clone().unwrap_or_default();
        let told = match &outcome {
            Ok(saved) => Notice::Saved { stage: saved.stage.clone(), step: saved.step },
            Err(reason) => Notice::NotSaved { stage, step, reason: reason.clone() },
        };
        let mut effects = vec![Effect::Tell(told)];
        if let Ok(saved) = &outcome {
            let again = self.is_complete(&saved.stage);
            match result {
                // A stage is complete once.
                Some(_) if again => {}
                Some(result) => {
                    self.start.complete.push(saved.clone());
                    self.start.resume = None;
                    self.start.stage += 1;
                    effects.push(Effect::Tell(Notice::StageComplete(result)));
                }
                None => self.start.resume = Some(saved.clone()),
            }
        }
        effects.insert(1, Effect::Send { session, command: Command::Committed(outcome) });
        effects.extend(self.begin_if_all_are_ready(now));
        effects
    }
}
