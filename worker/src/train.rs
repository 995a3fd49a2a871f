//! The river of one stage: batch, losses, gradients, reduction, update, commit. There is no branch on the number of
//! ranks: one rank is a group of size one. What a batch becomes is the stage's (`backbone.rs`, `transfer.rs`).

use crate::checkpoint::{self, Committed};
use crate::data::Data;
use crate::evaluate::Measures;
use crate::feed::{Batch, Feed, Schedule};
use crate::optimizer::AdamW;
use crate::saver::{Save, Saver};
use crate::session::Session;
use crate::tensors::{Named, broadcast, copy_into, snapshot};
use anyhow::{Context, Result, bail};
use std::path::Path;
use std::time::Instant;
use tch::{Kind, Tensor};
use thanos_c10d::ProcessGroup;
use thanos_configs::{Position, TrainConfig, learning_rate, samples_sha256, step_key};
use thanos_proto::{Best, CheckpointWritten, Evaluated, StageResult, StepDone, WorkerEvent};

/// One term of the loss: this rank's share of its global value, a scalar. Shares are summed over the ranks.
pub(crate) struct Term {
    pub(crate) name: &'static str,
    pub(crate) weight: f64,
    pub(crate) share: Tensor,
}

/// The terms of one batch, and the scalar whose gradient is theirs.
#[derive(Default)]
pub(crate) struct Losses {
    terms: Vec<Term>,
    scalar: Option<Tensor>,
}

impl Losses {
    /// A term whose gradient autograd finds.
    pub(crate) fn add(&mut self, name: &'static str, weight: f64, share: Tensor) {
        self.grow(&share * weight);
        self.terms.push(Term { name, weight, share: share.detach() });
    }

    /// A term whose gradient with respect to `z` is known: sum(z * gradient) carries it into z exactly.
    pub(crate) fn add_gradient(&mut self, term: Term, z: &Tensor, gradient: &Tensor) {
        self.grow((z * gradient.detach()).sum(z.kind()) * term.weight);
        self.terms.push(term);
    }

    fn grow(&mut self, scalar: Tensor) {
        self.scalar = Some(match self.scalar.take() {
            Some(sum) => sum + scalar,
            None => scalar,
        });
    }

    fn backward(&self) -> Result<()> {
        match &self.scalar {
            Some(scalar) => scalar.f_backward().map_err(|error| {
                let lost = thanos_c10d::Error::in_backward(&error.to_string());
                lost.map_or_else(|| error.into(), anyhow::Error::from)
            }),
            None => bail!("a plan has a term to learn from, the stage computed none"),
        }
    }

    fn shares(&self) -> Vec<f64> {
        self.terms.iter().map(|term| term.share.double_value(&[])).collect()
    }
}

/// What is trained, and how it is judged.
pub(crate) trait Stage {
    /// What the optimiser moves, sorted by name.
    fn parameters(&self) -> Named;
    /// Parameters and buffers: what a checkpoint holds.
    fn state(&self) -> Named;
    /// Views of each image that a batch must have.
    fn views(&self) -> u64;
    fn losses(&mut self, batch: &Batch) -> Result<Losses>;
    /// Share of the validation images, over all ranks.
    fn validation_accuracy(&mut self) -> Result<f64>;
    /// Measures on the test images and, for a transfer, the fine accuracy.
    fn measure(&mut self) -> Result<(Measures, Option<f64>)>;
}

/// A stage's place in the run, and its numbers.
pub(crate) struct Recipe<'a> {
    pub(crate) name: &'a str,
    /// Tells this stage's dropout masks from those of others.
    pub(crate) key: u64,
    pub(crate) seed: u64,
    pub(crate) train: TrainConfig,
    pub(crate) schedule: Schedule,
    /// Steps between two checkpoints; `None`: once an epoch.
    pub(crate) checkpoint_every: Option<u64>,
}

/// The others of a generation: what a stage needs to act in common.
pub(crate) struct Peers<'a> {
    pub(crate) group: &'a ProcessGroup,
    pub(crate) session: &'a Session,
    pub(crate) generation: u64,
    pub(crate) run_dir: &'a Path,
}

/// How a stage ended.
pub(crate) enum Ending {
    /// With the weights of the best validation epoch.
    Complete(Named),
    /// All ranks stopped behind this many updates; a checkpoint holds them.
    Stopped { step: u64 },
}

/// What a stage begins from.
pub(crate) enum Origin<'a> {
    Start,
    Checkpoint(&'a Committed),
    /// Everyone takes over what rank `source` holds; `own` is this rank's, if it has any.
    Memory {
        own: Option<&'a Memory>,
        source: usize,
    },
}

/// A rank's state between two steps, kept in memory when its group is lost.
pub(crate) struct Memory {
    /// Updates made.
    pub(crate) step: u64,
    /// What is due behind the last of them is done, too.
    pub(crate) settled: bool,
    /// As told, or as it would be told by rank 0.
    pub(crate) last_step: Option<StepDone>,
    model: Named,
    optimizer: Named,
    best: Option<(Best, Named)>,
    seconds: f64,
}

/// All ranks leave their generation behind the same step, for one with more workers.
#[derive(Debug, thiserror::Error)]
#[error("more workers are here")]
pub(crate) struct Regroup;

/// Why a stage ended before its end; `memory` is what the rank holds, once it has begun.
pub(crate) struct Interrupted {
    pub(crate) error: anyhow::Error,
    pub(crate) memory: Option<Box<Memory>>,
}

/// Trains a stage to its end, or to a stop that all ranks agree on.
pub(crate) fn train(
    stage: &mut dyn Stage,
    data: &Data,
    recipe: &Recipe<'_>,
    peers: &Peers<'_>,
    from: &Origin<'_>,
) -> Result<Ending, Interrupted> {
    let mut trainer = Trainer::new(stage, recipe, peers);
    // Until all have begun, what a rank held before is still its best: it is not touched.
    trainer.begin(from).map_err(|error| Interrupted { error, memory: None })?;
    trainer.run(data).map_err(|error| Interrupted { error, memory: Some(Box::new(trainer.memory())) })
}

/// A stage under way.
struct Trainer<'a> {
    stage: &'a mut dyn Stage,
    recipe: &'a Recipe<'a>,
    peers: &'a Peers<'a>,
    optimizer: AdamW,
    saver: Saver<'a>,
    /// Updates made.
    step: u64,
    settled: bool,
    last_step: Option<StepDone>,
    best: Option<(Best, Named)>,
    /// The model's buffers before the step in flight, which changes them in its forward pass; empty between steps.
    buffers: Named,
    seconds_before: f64,
    /// Seconds that steps waited for their images, since this rank started the stage.
    waited: f64,
    started: Instant,
}

impl<'a> Trainer<'a> {
    fn new(stage: &'a mut dyn Stage, recipe: &'a Recipe<'a>, peers: &'a Peers<'a>) -> Self {
        let optimizer = AdamW::new(stage.parameters(), recipe.train.weight_decay);
        Self {
            stage,
            recipe,
            peers,
            optimizer,
            saver: Saver::new(peers.session),
            step: 0,
            settled: true,
            last_step: None,
            best: None,
            buffers: Named::new(),
            seconds_before: 0.0,
            waited: 0.0,
            started: Instant::now(),
        }
    }

    fn begin(&mut self, from: &Origin<'_>) -> Result<()> {
        match from {
            Origin::Start => Ok(()),
            Origin::Checkpoint(checkpoint) => {
                copy_into(&self.stage.state(), &checkpoint.tensors(checkpoint::MODEL)?)?;
                self.optimizer.load(&checkpoint.tensors(checkpoint::OPTIMIZER)?)?;
                self.step = checkpoint.step();
                self.seconds_before = checkpoint.seconds();
                if let Some(best) = checkpoint.best() {
                    self.best = Some((best, checkpoint.tensors(checkpoint::BEST)?));
                }
                Ok(())
            }
            Origin::Memory { own, source } => {
                if self.peers.group.rank() == *source {
                    self.recall(own.context("the rank whose memory all take over has none")?)?;
                }
                self.take_over(*source)
            }
        }
    }

    /// This rank's state as it was.
    fn recall(&mut self, memory: &Memory) -> Result<()> {
        copy_into(&self.stage.state(), &memory.model)?;
        self.optimizer.load(&memory.optimizer)?;
        (self.step, self.settled, self.seconds_before) = (memory.step, memory.settled, memory.seconds);
        self.best = memory.best.as_ref().map(|(best, weights)| (*best, snapshot(weights)));
        self.last_step = memory.last_step.clone();
        Ok(())
    }

    /// Everything that rank `source` holds, on every rank.
    fn take_over(&mut self, source: usize) -> Result<()> {
        let group = self.peers.group;
        let state = self.stage.state();
        let (best, _) = self.best.as_ref().map_or((None, None), |(best, weights)| (Some(*best), Some(weights)));
        let mut numbers = Tensor::from_slice(&[
            self.step as f64,
            f64::from(u8::from(self.settled)),
            self.seconds_before,
            f64::from(u8::from(best.is_some())),
            best.map_or(0.0, |best| best.epoch as f64),
            best.map_or(0.0, |best| best.validation_accuracy),
        ])
        .to_device(state.values().next().map_or(tch::Device::Cpu, Tensor::device));
        group.broadcast(&mut numbers, source)?;
        let numbers = Vec::<f64>::try_from(numbers)?;
        let &[step, settled, seconds, has_best, epoch, validation_accuracy] = numbers.as_slice() else {
            bail!("six numbers were sent, {} came", numbers.len());
        };
        (self.step, self.settled, self.seconds_before) = (step as u64, settled > 0.0, seconds);
        broadcast(&state, group, source)?;
        let optimizer = self.optimizer.state();
        broadcast(&optimizer, group, source)?;
        self.optimizer.load(&optimizer)?;
        self.best = if has_best > 0.0 {
            let weights = self.best.take().map_or_else(|| snapshot(&state), |(_, weights)| weights);
            broadcast(&weights, group, source)?;
            Some((Best { epoch: epoch as u64, validation_accuracy }, weights))
        } else {
            None
        };
        Ok(())
    }

    /// What this rank holds: the state behind its last update, whatever it was doing when its group was lost.
    fn memory(&mut self) -> Memory {
        self.saver.leave();
        let mut model = snapshot(&self.stage.state());
        model.extend(snapshot(&self.buffers));
        Memory {
            step: self.step,
            settled: self.settled,
            last_step: self.last_step.clone(),
            model,
            optimizer: snapshot(&self.optimizer.state()),
            best: self.best.as_ref().map(|(best, weights)| (*best, snapshot(weights))),
            seconds: self.seconds(),
        }
    }

    fn run(&mut self, data: &Data) -> Result<Ending> {
        let recipe = self.recipe;
        let steps_per_epoch = recipe.schedule.steps_per_epoch();
        let total_steps = recipe.train.max_steps.unwrap_or(u64::MAX).min(recipe.train.epochs * steps_per_epoch);
        if !self.settled {
            self.settle(Position::at(self.step - 1, steps_per_epoch), (steps_per_epoch, total_steps), false)?;
        }
        let mut feed = Feed::new(data, &recipe.schedule, self.step..total_steps, self.stage.views())?;
        self.phase("data");
        while let Some(batch) = feed.next()? {
            let Asked { stop, regroup } = self.update(&batch, total_steps)?;
            self.waited = feed.waited.as_secs_f64();
            self.settle(batch.at, (steps_per_epoch, total_steps), stop)?;
            if stop && self.step < total_steps {
                // Nobody leaves before it is committed.
                self.save_for_all(batch.at.epoch, None)?;
                return Ok(Ending::Stopped { step: self.step });
            }
            if regroup {
                return Err(Regroup.into());
            }
            self.phase("data");
        }
        self.finish()
    }

    /// What is due behind the update `at`: an evaluation, a checkpoint.
    fn settle(&mut self, at: Position, (steps_per_epoch, total_steps): (u64, u64), stop: bool) -> Result<()> {
        let last = self.step == total_steps;
        let epoch_ends = at.step_in_epoch + 1 == steps_per_epoch;
        if last || epoch_ends && (at.epoch + 1).is_multiple_of(self.recipe.train.evaluate_every) {
            self.evaluate(at.epoch)?;
        }
        self.settled = true;
        let due = self.recipe.checkpoint_every.map_or(epoch_ends, |every| self.step.is_multiple_of(every));
        if due
            && !last
            && !stop
            && let Some(save) = self.checkpoint(at.epoch, None)
        {
            self.saver.start(save)?;
        }
        Ok(())
    }

    fn phase(&self, phase: &str) {
        self.peers.session.at(self.recipe.name, self.step, phase);
    }

    /// One optimiser update.
    fn update(&mut self, batch: &Batch, total_steps: u64) -> Result<Asked> {
        let rank = self.peers.group.rank() as u64;
        tch::manual_seed(step_key(self.recipe.seed, self.recipe.key, self.step, rank) as i64);
        let parameters = self.optimizer.names();
        let is_buffer = |(name, _): &(String, Tensor)| !parameters.contains(name);
        self.buffers = snapshot(&self.stage.state().into_iter().filter(is_buffer).collect());
        self.phase("forward");
        let losses = self.stage.losses(batch)?;
        self.phase("backward");
        self.optimizer.zero_grad();
        losses.backward()?;
        self.phase("reduce");
        let reduced = self.reduce(&losses)?;
        self.refuse_non_numbers(&losses, &reduced)?;
        self.phase("update");
        let lr = learning_rate(&self.recipe.train, batch.at.epoch);
        self.optimizer.update(&reduced.gradient, lr)?;
        self.buffers.clear();
        self.commit(batch, &losses, &reduced, (lr, total_steps))?;
        Ok(reduced.asked)
    }

    /// Sums gradients, shares of the loss and what was asked for over the ranks: all ranks see the same from here on.
    fn reduce(&self, losses: &Losses) -> Result<Reduced> {
        let mut gradient = self.optimizer.flat_gradient(); // [parameters]
        self.peers.group.all_reduce(&mut gradient)?;
        let mut numbers = losses.shares();
        let asked = [self.peers.session.stop_requested(), self.peers.session.regroup_requested()];
        numbers.extend(asked.map(|asked| f64::from(u8::from(asked))));
        let mut sums = Tensor::from_slice(&numbers).to_device(gradient.device());
        self.peers.group.all_reduce(&mut sums)?;
        let mut terms = Vec::<f64>::try_from(sums)?;
        let regroup = terms.pop().is_some_and(|asked| asked > 0.0);
        let stop = terms.pop().is_some_and(|asked| asked > 0.0);
        Ok(Reduced { gradient, terms, asked: Asked { stop, regroup } })
    }

    /// Stops, on all ranks alike and before the update, at a loss or a gradient that is no number.
    fn refuse_non_numbers(&self, losses: &Losses, reduced: &Reduced) -> Result<()> {
        for (term, value) in losses.terms.iter().zip(&reduced.terms) {
            if !value.is_finite() {
                bail!("the loss `{}` is {value} at step {} of stage {}", term.name, self.step, self.recipe.name);
            }
        }
        if !reduced.gradient.sum(Kind::Double).double_value(&[]).is_finite() {
            let name = self.optimizer.first_non_finite(&reduced.gradient);
            bail!("the gradient of `{name}` is not finite at step {} of stage {}", self.step, self.recipe.name);
        }
        Ok(())
    }

    /// Rank 0 tells the coordinator, who writes the line of `steps.jsonl`; should rank 0 be gone, another can tell.
    fn commit(&mut self, batch: &Batch, losses: &Losses, reduced: &Reduced, (lr, total): (f64, u64)) -> Result<()> {
        let terms = || losses.terms.iter().zip(&reduced.terms);
        let done = StepDone {
            stage: self.recipe.name.into(),
            epoch: batch.at.epoch,
            step: self.step,
            generation: self.peers.generation,
            world_size: self.peers.group.size() as u32,
            loss: terms().map(|(term, value)| term.weight * value).sum(),
            losses: terms().map(|(term, value)| (term.name.into(), *value)).collect(),
            lr,
            images: batch.samples.len() as u64,
            samples_sha256: samples_sha256(&batch.samples),
            total_steps: total,
        };
        self.step += 1;
        self.settled = false;
        self.last_step = Some(done.clone());
        match self.peers.group.rank() {
            0 => self.peers.session.send(WorkerEvent::Step(done)),
            _ => Ok(()),
        }
    }

    /// Keeps the weights of the first of the best epochs.
    fn evaluate(&mut self, epoch: u64) -> Result<()> {
        self.phase("evaluate");
        let validation_accuracy = self.stage.validation_accuracy()?;
        let better = self.best.as_ref().is_none_or(|(best, _)| validation_accuracy > best.validation_accuracy);
        if better {
            self.best = Some((Best { epoch, validation_accuracy }, snapshot(&self.stage.state())));
        }
        if self.peers.group.rank() == 0 {
            let stage = self.recipe.name.into();
            let evaluated = Evaluated { stage, epoch, validation_accuracy, best: better };
            self.peers.session.send(WorkerEvent::Evaluated(evaluated))?;
        }
        Ok(())
    }

    /// What rank 0 saves behind this update; `None`: this is another rank.
    fn checkpoint(&self, epoch: u64, result: Option<StageResult>) -> Option<Save> {
        self.phase("checkpoint");
        if self.peers.group.rank() > 0 {
            return None;
        }
        let mut files = vec![
            (checkpoint::MODEL, snapshot(&self.stage.state())),
            (checkpoint::OPTIMIZER, snapshot(&self.optimizer.state())),
        ];
        if let Some((_, weights)) = &self.best {
            files.push((checkpoint::BEST, snapshot(weights)));
        }
        let told = CheckpointWritten {
            stage: self.recipe.name.into(),
            epoch,
            step: self.step,
            generation: self.peers.generation,
            world_size: self.peers.group.size() as u32,
            folder: String::new(),
            files: Vec::new(),
            seconds: self.seconds(),
            best: self.best.as_ref().map(|(best, _)| *best),
            result,
        };
        Some(Save { run_dir: self.peers.run_dir.into(), files, told })
    }

    /// Saves, and returns on every rank when the checkpoint is committed.
    fn save_for_all(&mut self, epoch: u64, result: Option<StageResult>) -> Result<()> {
        if let Some(save) = self.checkpoint(epoch, result) {
            self.saver.save(save)?;
        }
        Ok(self.peers.group.barrier()?)
    }

    /// Measures the best weights on the test images, and saves the stage as complete with the last weights.
    fn finish(&mut self) -> Result<Ending> {
        self.phase("measure");
        let Some((best, weights)) = &self.best else { bail!("a stage's last step is always evaluated") };
        let (best, weights) = (*best, snapshot(weights));
        let last = snapshot(&self.stage.state());
        copy_into(&self.stage.state(), &weights)?;
        let measured = self.stage.measure();
        copy_into(&self.stage.state(), &last)?;
        let (measures, fine_test_accuracy) = measured?;
        let result = StageResult {
            stage: self.recipe.name.into(),
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
        // Nobody leaves a stage whose end is not committed: it could not be done again.
        self.save_for_all(best.epoch, Some(result))?;
        self.peers.session.send(WorkerEvent::StageFinished { stage: self.recipe.name.into() })?;
        Ok(Ending::Complete(weights))
    }

    fn seconds(&self) -> f64 {
        self.seconds_before + self.started.elapsed().as_secs_f64()
    }
}

/// What all ranks know alike about one step.
struct Reduced {
    /// The gradient of the global loss, in the optimiser's layout.
    gradient: Tensor,
    /// The global value of each term.
    terms: Vec<f64>,
    asked: Asked,
}

/// What some rank has been asked to do behind this step, so that all do it.
#[derive(Clone, Copy, Debug)]
struct Asked {
    stop: bool,
    regroup: bool,
}
