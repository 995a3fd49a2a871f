//! A rank's state between two steps, kept in memory when its generation is lost, and handed on to
//! ranks that have none.

use crate::checkpoint;
use crate::session::MAX_UNRECORDED;
use crate::tensors::{StateDict, broadcast, snapshot};
use anyhow::Result;
use std::collections::VecDeque;
use thanos_c10d::ProcessGroup;
use thanos_proto::{Best, StepDone};

/// Everything that the next step depends on, and what a coordinator may lack.
pub(crate) struct ReplicaState {
    /// Updates made.
    pub(crate) step: u64,
    /// Of the last of them, and how many ranks made it.
    pub(crate) epoch: u64,
    pub(crate) world_size: u32,
    /// What is due after the last of them is done, too.
    pub(crate) post_step_done: bool,
    pub(crate) recent: UnackedSteps,
    pub(crate) model: StateDict,
    pub(crate) optimizer: StateDict,
    pub(crate) best: Option<(Best, StateDict)>,
    /// Training time of the stage so far.
    pub(crate) seconds: f64,
}

impl ReplicaState {
    /// A copy of its own.
    pub(crate) fn copy(&self) -> Self {
        Self {
            model: snapshot(&self.model),
            optimizer: snapshot(&self.optimizer),
            best: self.best.as_ref().map(|(best, weights)| (*best, snapshot(weights))),
            recent: self.recent.clone(),
            ..*self
        }
    }

    /// The files of a checkpoint of this state.
    pub(crate) fn files(&self) -> Vec<(&'static str, &StateDict)> {
        let mut files =
            vec![(checkpoint::MODEL, &self.model), (checkpoint::OPTIMIZER, &self.optimizer)];
        files.extend(self.best.iter().map(|(_, weights)| (checkpoint::BEST, weights)));
        files
    }

    /// Replaces this by what rank `source` holds, on every rank; tensors must have the same names
    /// and shapes.
    ///
    /// # Errors
    /// If a peer is lost.
    pub(crate) fn take_over(&mut self, group: &ProcessGroup, source: usize) -> Result<()> {
        let best = self.best.as_ref().map(|(best, _)| *best);
        let mut numbers = [
            self.step as f64,
            f64::from(u8::from(self.post_step_done)),
            self.seconds,
            f64::from(u8::from(best.is_some())),
            best.map_or(0.0, |best| best.epoch as f64),
            best.map_or(0.0, |best| best.validation_accuracy),
        ];
        group.broadcast_numbers(&mut numbers, source)?;
        let [step, post_step_done, seconds, has_best, epoch, validation_accuracy] = numbers;
        (self.step, self.post_step_done, self.seconds) =
            (step as u64, post_step_done > 0.0, seconds);
        broadcast(&self.model, group, source)?;
        broadcast(&self.optimizer, group, source)?;
        let own = self.best.take().map(|(_, weights)| weights);
        if has_best > 0.0 {
            let weights = own.unwrap_or_else(|| snapshot(&self.model));
            broadcast(&weights, group, source)?;
            self.best = Some((Best { epoch: epoch as u64, validation_accuracy }, weights));
        }
        // The result of an aborted collective must not become the state.
        Ok(group.synchronize()?)
    }
}

/// The last steps that this rank made of a stage, as its rank 0 reports them: as many as may not be
/// recorded yet, and the one in flight.
#[derive(Clone, Debug, Default)]
pub(crate) struct UnackedSteps(VecDeque<StepDone>);

impl UnackedSteps {
    pub(crate) fn push(&mut self, step: StepDone) {
        if self.0.len() > MAX_UNRECORDED {
            self.0.pop_front();
        }
        self.0.push_back(step);
    }

    /// In order.
    pub(crate) fn to_vec(&self) -> Vec<StepDone> {
        self.0.iter().cloned().collect()
    }

    pub(crate) fn last(&self) -> Option<&StepDone> {
        self.0.back()
    }
}
