//! What is due after an update and at the end of a stage: evaluations, checkpoints, the metrics of
//! the best weights.

use super::{StageOutcome, StepCounts, Trainer};
use crate::checkpoint;
use crate::error::{Result, WorkerError};
use crate::save_schedule::Due;
use crate::saver::Save;
use crate::stage::Measured;
use crate::tensors::{StateDict, copy_into, snapshot};
use anyhow::Context;
use std::time::Instant;
use thanos_configs::{Position, Select};
use thanos_proto::{Best, CheckpointWritten, Evaluated, RankPhase, StageResult, WorkerEvent};

/// The result of a complete stage, and files of its last checkpoint beside the state.
type Finished = (StageResult, Vec<(&'static str, StateDict)>);

impl Trainer<'_> {
    /// What is due after the update `at`: an evaluation, a checkpoint. `false`: a stop was
    /// requested meanwhile.
    pub(super) fn run_post_step(
        &mut self,
        at: Position,
        steps: StepCounts,
        stop: bool,
    ) -> Result<bool> {
        let last = self.step == steps.total;
        let evaluated = last || self.is_evaluated_after(at, steps.per_epoch);
        if evaluated && !self.evaluate(at.epoch)? {
            return Ok(false);
        }
        self.post_step_done = true;
        if !last && !stop {
            self.save_if_due(at.epoch)?;
        }
        Ok(true)
    }

    /// Starts a save beside the steps that follow, if one is due.
    fn save_if_due(&mut self, epoch: u64) -> Result<()> {
        let began = Instant::now();
        let starts = match self.spec.saves.due(self.step, began) {
            Some(Due::Steps) => true,
            Some(Due::Time) => self.saver.is_idle()?,
            None => false,
        };
        if starts {
            if let Some(save) = self.checkpoint(epoch, None)? {
                self.saver.start(save)?;
            }
            self.spec.saves.restart(Instant::now());
            self.saving += began.elapsed().as_secs_f64();
        }
        Ok(())
    }

    /// Whether an evaluation is due after this update, whether or not it is the last one.
    pub(super) fn is_evaluated_after(&self, at: Position, steps_per_epoch: u64) -> bool {
        let epoch_ends = at.step_in_epoch + 1 == steps_per_epoch;
        epoch_ends && (at.epoch + 1).is_multiple_of(self.spec.train.evaluate_every)
    }

    /// All ranks stop after the same update. No rank leaves before it is committed.
    pub(super) fn stop(&mut self, epoch: u64) -> Result<StageOutcome> {
        self.save_for_all(epoch, None)?;
        Ok(StageOutcome::Stopped { step: self.step })
    }

    /// Keeps the weights of the first of the best epochs, or of the last one. `false`: a stop was
    /// requested meanwhile.
    pub(super) fn evaluate(&mut self, epoch: u64) -> Result<bool> {
        self.phase(RankPhase::Evaluate);
        let validation_accuracy = match self.stage.validation_accuracy() {
            Err(WorkerError::StopRequested) => return Ok(false),
            evaluated => evaluated?,
        };
        let is_better =
            |(best, _): &(Best, StateDict)| validation_accuracy > best.validation_accuracy;
        let better =
            self.spec.train.select == Select::Last || self.best.as_ref().is_none_or(is_better);
        if better {
            self.best = Some((Best { epoch, validation_accuracy }, snapshot(&self.stage.state())));
        }
        if self.context.group.rank() == 0 {
            let (stage, measure) = (self.spec.name.into(), self.spec.measure.label().into());
            let evaluated = Evaluated { stage, epoch, validation_accuracy, best: better, measure };
            self.context.session.send(WorkerEvent::Evaluated(evaluated))?;
        }
        Ok(true)
    }

    /// What rank 0 saves after this update; `None`: this is another rank.
    fn checkpoint(&self, epoch: u64, result: Option<Finished>) -> Result<Option<Save>> {
        self.phase(RankPhase::Save);
        if self.context.group.rank() > 0 {
            return Ok(None);
        }
        let mut files = vec![
            (checkpoint::MODEL, snapshot(&self.stage.state())),
            (checkpoint::OPTIMIZER, snapshot(&self.optimizer.state())),
        ];
        if let Some((_, weights)) = &self.best {
            files.push((checkpoint::BEST, snapshot(weights)));
        }
        let (result, more) =
            result.map_or((None, Vec::new()), |(result, more)| (Some(result), more));
        files.extend(more);
        let reported = CheckpointWritten {
            stage: self.spec.name.into(),
            epoch,
            step: self.step,
            generation: self.context.generation,
            world_size: self.context.group.size() as u32,
            folder: String::new(),
            files: Vec::new(),
            seconds: self.seconds(),
            best: self.best.as_ref().map(|(best, _)| *best),
            post_step_done: self.post_step_done,
            result,
        };
        let (place, record) = (self.context.files.clone(), self.spec.record.clone());
        Ok(Some(Save { place, files, record, copied: self.clock.event()?, reported }))
    }

    /// Saves, and returns on every rank when the checkpoint is committed.
    pub(super) fn save_for_all(&mut self, epoch: u64, result: Option<Finished>) -> Result<()> {
        if let Some(save) = self.checkpoint(epoch, result)? {
            self.saver.save(save)?;
        }
        self.spec.saves.restart(Instant::now());
        Ok(self.context.group.barrier()?)
    }

    /// Evaluates the best weights on the test images, and saves the stage as complete with the last
    /// weights.
    pub(super) fn finish(&mut self) -> Result<StageOutcome> {
        self.phase(RankPhase::Measure);
        let (best, weights) =
            self.best.as_ref().context("a stage's last step is always evaluated")?;
        let (best, weights) = (*best, snapshot(weights));
        let last = snapshot(&self.stage.state());
        copy_into(&self.stage.state(), &weights)?;
        let measured = self.stage.measure();
        copy_into(&self.stage.state(), &last)?;
        let Measured { metrics: measures, fine_test_accuracy, files } = match measured {
            Err(WorkerError::StopRequested) => return self.stop(best.epoch),
            measured => measured?,
        };
        let result = StageResult {
            stage: self.spec.name.into(),
            seconds: self.seconds(),
            data_wait_seconds: self.waited,
            validation_accuracy: best.validation_accuracy,
            coarse_test_accuracy: measures.coarse_accuracy,
            fine_test_accuracy,
            knn_fine_accuracy: measures.knn_fine_accuracy,
            cosine_within_coarse: measures.cosine_within_coarse,
            cosine_within_fine: measures.cosine_within_fine,
            cosine_between_views: measures.cosine_between_views,
        };
        let (seconds, waited, saving) = (self.seconds(), self.waited, self.saving);
        tracing::info!(
            "stage {}: {seconds:.1} s, of them {waited:.3} s for images, {saving:.3} s for saves",
            result.stage
        );
        // No rank leaves a stage whose end is not committed: it could not be done again.
        self.save_for_all(best.epoch, Some((result, files)))?;
        self.context.session.send(WorkerEvent::StageFinished { stage: self.spec.name.into() })?;
        Ok(StageOutcome::Complete(weights))
    }

    pub(super) fn seconds(&self) -> f64 {
        self.seconds_before + self.started.elapsed().as_secs_f64()
    }
}
