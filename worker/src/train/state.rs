//! The state of a stage under way: from a checkpoint or from another rank's memory, and back into
//! memory.

use super::{ResumeFrom, Trainer};
use crate::checkpoint::{self, Committed};
use crate::error::Result;
use crate::replica_state::ReplicaState;
use crate::tensors::{StateDict, copy_into, snapshot};
use std::time::Instant;
use thanos_configs::Position;

impl Trainer<'_> {
    pub(super) fn begin(&mut self, from: &ResumeFrom<'_>) -> Result<()> {
        // In all other cases what is trained is newer than the last save.
        if !matches!(from, ResumeFrom::ReplicaState { .. }) {
            self.spec.saves.restart(Instant::now());
        }
        match from {
            ResumeFrom::Start => Ok(()),
            // One rank reads it: the others may be a thousand, or see no disk.
            ResumeFrom::Checkpoint(checkpoint) => {
                if self.context.group.rank() == 0 {
                    self.load(checkpoint)?;
                }
                let mut memory = self.memory();
                memory.take_over(self.context.group, 0)?;
                self.recall(memory)
            }
            ResumeFrom::ReplicaState { own, source } => {
                let mut memory = match own {
                    Some(own) if self.context.group.rank() == *source => own.copy(),
                    _ => self.memory(),
                };
                memory.take_over(self.context.group, *source)?;
                if let Some(own) = own.filter(|own| own.step == memory.step) {
                    memory.recent = own.recent.clone();
                }
                self.recall(memory)
            }
        }
    }

    fn load(&mut self, checkpoint: &Committed) -> Result<()> {
        let model = self.with_buffers(checkpoint.tensors(checkpoint::MODEL)?, checkpoint);
        copy_into(&self.stage.state(), &model)?;
        self.optimizer.load(&checkpoint.tensors(checkpoint::OPTIMIZER)?)?;
        (self.step, self.post_step_done) = (checkpoint.step(), checkpoint.post_step_done());
        self.seconds_before = checkpoint.seconds();
        if let Some(best) = checkpoint.best() {
            self.best = Some((best, self.with_buffers(checkpoint.best_state()?, checkpoint)));
        }
        Ok(())
    }

    /// A checkpoint's tensors, with this rank's buffers where an earlier version did not save them.
    fn with_buffers(&self, mut saved: StateDict, checkpoint: &Committed) -> StateDict {
        let missing: StateDict = snapshot(&self.buffers)
            .into_iter()
            .filter(|(name, _)| !saved.contains_key(name))
            .collect();
        if let Some(name) = missing.keys().next() {
            let step = checkpoint.step();
            tracing::warn!(
                "the checkpoint of step {step} was saved without `{name}`: it is as at the stage's \
                start"
            );
        }
        saved.extend(missing);
        saved
    }

    pub(super) fn recall(&mut self, memory: ReplicaState) -> Result<()> {
        copy_into(&self.stage.state(), &memory.model)?;
        self.optimizer.load(&memory.optimizer)?;
        (self.step, self.post_step_done, self.seconds_before) =
            (memory.step, memory.post_step_done, memory.seconds);
        (self.best, self.recent) = (memory.best, memory.recent);
        self.started = Instant::now();
        Ok(())
    }

    /// What this rank holds: the state after its last update, whatever it was doing when its group
    /// was lost.
    pub(super) fn memory(&self) -> ReplicaState {
        let mut model = snapshot(&self.stage.state());
        model.extend(snapshot(&self.buffers_before));
        let steps_per_epoch = self.spec.schedule.steps_per_epoch();
        ReplicaState {
            step: self.step,
            epoch: Position::at(self.step.saturating_sub(1), steps_per_epoch).epoch,
            world_size: self.context.group.size() as u32,
            post_step_done: self.post_step_done,
            recent: self.recent.clone(),
            model,
            optimizer: snapshot(&self.optimizer.state()),
            best: self.best.as_ref().map(|(best, weights)| (*best, snapshot(weights))),
            seconds: self.seconds(),
        }
    }
}
