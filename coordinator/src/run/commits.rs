//! The rules of what rank 0 tells: steps, which the ledger has once and in order, and checkpoints, which are committed.

use super::{Effect, Notice, Phase, Run, SessionId};
use std::time::Duration;
use thanos_proto::{CheckpointRef, CheckpointWritten, Command, StageResult, StepDone};

impl Run {
    pub(super) fn step(&mut self, session: SessionId, step: StepDone) -> Vec<Effect> {
        if let Some(problem) = self.fence(session, step.generation) {
            return self.broke_the_protocol(session, &problem);
        }
        if self.comes_next(&step) {
            self.first_loss = None;
            return vec![self.record(step)];
        }
        let expected = self.next_step.as_ref().filter(|(stage, _)| *stage == step.stage).map_or(0, |(_, next)| *next);
        if step.step < expected {
            // Made again behind a loss; the ledger has it.
            return Vec::new();
        }
        let problem = format!("it told step {} of stage {} where {expected} comes next", step.step, step.stage);
        self.broke_the_protocol(session, &problem)
    }

    /// Whether a step is the one that the ledger lacks.
    pub(super) fn comes_next(&self, step: &StepDone) -> bool {
        match &self.next_step {
            Some((stage, next)) if *stage == step.stage => step.step == *next,
            _ => step.step == 0,
        }
    }

    pub(super) fn record(&mut self, step: StepDone) -> Effect {
        self.next_step = Some((step.stage.clone(), step.step + 1));
        self.restarts.clear();
        self.idle_generations = 0;
        Effect::Record(step)
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
            let again = self.start.complete.iter().any(|complete| complete.stage == saved.stage);
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
