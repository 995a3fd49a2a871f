//! The training loop of one stage: batch, losses, gradients, reduction, update, commit. There is no branch on the number of
//! ranks: one rank is a group of size one. What a batch becomes is the stage's (`stage.rs`).

pub(crate) mod bench;
mod checks;
mod computed;
mod gpu_clock;
mod graph;

use crate::checkpoint::{self, Committed};
use crate::data::Data;
use crate::evaluate::StopAsked;
use crate::failpoints;
use crate::feed::{Batch, BatchLoader, SampleSchedule};
use crate::memory::{ReplicaState, UnackedSteps};
use crate::metrics;
use crate::optimizer::AdamW;
use crate::run_files::RunFiles;
use crate::save_schedule::{Due, SaveSchedule};
use crate::saver::{Save, Saver};
use crate::session::Session;
use crate::stage::{Inputs, Measured, Stage};
use crate::tensors::{StateDict, copy_into, snapshot};
use anyhow::{Context, Result, bail};
use computed::{Computed, Reduced, Requests, norm_of};
use gpu_clock::GpuClock;
use graph::{Graphs, StepGraph};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;
use tch::{Device, Kind, Tensor};
use thanos_c10d::{Exchanged, ProcessGroup};
use thanos_configs::{
    ChecksConfig, Position, Select, TrainConfig, ValidationMeasure, learning_rate, samples_sha256, step_key,
};
use thanos_proto::{Best, CheckpointWritten, Evaluated, StageResult, StepDone, WorkerEvent};

/// A stage's place in the run, and its numbers.
pub(crate) struct StageSpec<'a> {
    pub(crate) name: &'a str,
    /// Distinguishes this stage's dropout masks from those of other stages.
    pub(crate) key: u64,
    pub(crate) seed: u64,
    pub(crate) train: TrainConfig,
    /// What the stage's validation accuracy is of.
    pub(crate) measure: ValidationMeasure,
    /// Describes the network in files of weights.
    pub(crate) record: Arc<str>,
    pub(crate) schedule: SampleSchedule,
    pub(crate) saves: SaveSchedule<'a>,
    pub(crate) checks: &'a ChecksConfig,
}

/// The result of a complete stage, and files of its last checkpoint beside the state.
type Finished = (StageResult, Vec<(&'static str, StateDict)>);

/// The others of a generation: what a stage needs to act in common.
pub(crate) struct StageContext<'a> {
    pub(crate) group: &'a ProcessGroup,
    pub(crate) session: &'a Session,
    pub(crate) generation: u64,
    pub(crate) files: &'a Arc<dyn RunFiles>,
}

/// How a stage ended.
pub(crate) enum StageOutcome {
    /// With the weights of the best validation epoch.
    Complete(StateDict),
    /// All ranks stopped after this many updates; a checkpoint holds them.
    Stopped { step: u64 },
}

/// What a stage begins from.
pub(crate) enum ResumeFrom<'a> {
    Start,
    Checkpoint(&'a Committed),
    /// Everyone takes over what rank `source` holds; `own` is this rank's, if it has any.
    ReplicaState {
        own: Option<&'a ReplicaState>,
        source: usize,
    },
}

/// All ranks leave their generation after the same step, for one with more workers.
#[derive(Debug, thiserror::Error)]
#[error("more workers have joined")]
pub(crate) struct Regroup;

/// Why a stage ended before its end; `memory` is what the rank holds, once it has begun.
pub(crate) struct Interrupted {
    pub(crate) error: anyhow::Error,
    pub(crate) memory: Option<Box<ReplicaState>>,
}

/// Trains a stage to its end, or to a stop that all ranks agree on.
pub(crate) fn train(
    stage: &mut dyn Stage,
    data: &Data,
    spec: &StageSpec<'_>,
    context: &StageContext<'_>,
    from: &ResumeFrom<'_>,
) -> Result<StageOutcome, Interrupted> {
    let mut trainer = Trainer::new(stage, spec, context);
    // Until all have begun, what a rank held before is still its best: it is not touched.
    trainer.begin(from).map_err(|error| Interrupted { error, memory: None })?;
    trainer.run(data).map_err(|error| {
        // The save in progress is finished first, however long it takes: another generation begins from it, or after it.
        trainer.phase("save");
        trainer.saver.leave();
        Interrupted { error, memory: Some(Box::new(trainer.memory())) }
    })
}

/// A stage under way.
struct Trainer<'a> {
    stage: &'a mut dyn Stage,
    spec: &'a StageSpec<'a>,
    context: &'a StageContext<'a>,
    device: Device,
    optimizer: AdamW,
    saver: Saver<'a>,
    /// Updates made.
    step: u64,
    post_step_done: bool,
    recent: UnackedSteps,
    best: Option<(Best, StateDict)>,
    /// The model's buffers, and as they were before the step in flight, which changes them in its forward pass; the
    /// latter is empty between steps.
    buffers: StateDict,
    buffers_before: StateDict,
    /// Updates skipped since the last one that was made.
    skipped: u32,
    /// In the forward pass of the step in flight.
    exchanged: Exchanged,
    clock: GpuClock,
    graphs: Graphs,
    seconds_before: f64,
    /// Seconds that steps waited for their images, and for saves, since this rank started the stage.
    waited: f64,
    saving: f64,
    started: Instant,
}

impl<'a> Trainer<'a> {
    fn new(stage: &'a mut dyn Stage, spec: &'a StageSpec<'a>, context: &'a StageContext<'a>) -> Self {
        let parameters = stage.parameters();
        let buffers = stage.state().into_iter().filter(|(name, _)| !parameters.contains_key(name)).collect();
        let (kind, device) = parameters.values().next().map_or((Kind::Float, Device::Cpu), |p| (p.kind(), p.device()));
        let optimizer = AdamW::new(parameters, spec.train.weight_decay);
        Self {
            stage,
            spec,
            context,
            device,
            optimizer,
            saver: Saver::new(context.session),
            step: 0,
            post_step_done: true,
            recent: UnackedSteps::default(),
            best: None,
            buffers,
            buffers_before: StateDict::new(),
            skipped: 0,
            exchanged: Exchanged::default(),
            clock: GpuClock::new(device),
            graphs: Graphs::new((kind, device), context.group.size()),
            seconds_before: 0.0,
            waited: 0.0,
            saving: 0.0,
            started: Instant::now(),
        }
    }

    fn begin(&mut self, from: &ResumeFrom<'_>) -> Result<()> {
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
        let missing: StateDict =
            snapshot(&self.buffers).into_iter().filter(|(name, _)| !saved.contains_key(name)).collect();
        if let Some(name) = missing.keys().next() {
            let step = checkpoint.step();
            tracing::warn!("the checkpoint of step {step} was saved without `{name}`: it is as at the stage's start");
        }
        saved.extend(missing);
        saved
    }

    fn recall(&mut self, memory: ReplicaState) -> Result<()> {
        copy_into(&self.stage.state(), &memory.model)?;
        self.optimizer.load(&memory.optimizer)?;
        (self.step, self.post_step_done, self.seconds_before) = (memory.step, memory.post_step_done, memory.seconds);
        (self.best, self.recent) = (memory.best, memory.recent);
        self.started = Instant::now();
        Ok(())
    }

    /// What this rank holds: the state after its last update, whatever it was doing when its group was lost.
    fn memory(&self) -> ReplicaState {
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

    fn run(&mut self, data: &Data) -> Result<StageOutcome> {
        let spec = self.spec;
        let steps_per_epoch = spec.schedule.steps_per_epoch();
        let total_steps = spec.train.max_steps.unwrap_or(u64::MAX).min(spec.train.epochs * steps_per_epoch);
        if self.step > 0 {
            let at = Position::at(self.step - 1, steps_per_epoch);
            // A resume with fewer epochs may end after a step that was not the last one when it was made.
            let never_evaluated = self.step == total_steps && !self.is_evaluated_after(at, steps_per_epoch);
            if (!self.post_step_done || never_evaluated)
                && !self.run_post_step(at, (steps_per_epoch, total_steps), false)?
            {
                return self.stop(at.epoch);
            }
        }
        let mut feed = BatchLoader::new(data, &spec.schedule, self.step..total_steps, self.stage.views())?;
        self.phase("data");
        while let Some(batch) = feed.next()? {
            let Requests { stop, regroup } = self.update(&batch, total_steps, &mut feed)?;
            self.waited = feed.waited.as_secs_f64();
            let post_step_done = self.run_post_step(batch.at, (steps_per_epoch, total_steps), stop)?;
            if !post_step_done || stop && self.step < total_steps {
                return self.stop(batch.at.epoch);
            }
            if regroup {
                return Err(Regroup.into());
            }
            self.phase("data");
        }
        self.finish()
    }

    /// What is due after the update `at`: an evaluation, a checkpoint. `false`: a stop was requested meanwhile.
    fn run_post_step(&mut self, at: Position, (steps_per_epoch, total_steps): (u64, u64), stop: bool) -> Result<bool> {
        let last = self.step == total_steps;
        let evaluated = last || self.is_evaluated_after(at, steps_per_epoch);
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
    fn is_evaluated_after(&self, at: Position, steps_per_epoch: u64) -> bool {
        let epoch_ends = at.step_in_epoch + 1 == steps_per_epoch;
        epoch_ends && (at.epoch + 1).is_multiple_of(self.spec.train.evaluate_every)
    }

    /// All ranks stop after the same update. No rank leaves before it is committed.
    fn stop(&mut self, epoch: u64) -> Result<StageOutcome> {
        self.save_for_all(epoch, None)?;
        Ok(StageOutcome::Stopped { step: self.step })
    }

    fn phase(&self, phase: &str) {
        self.context.session.at(self.spec.name, self.step, phase);
    }

    /// A phase that the GPU's time is measured of.
    fn step_phase(&mut self, phase: &'static str) -> Result<()> {
        self.phase(phase);
        self.clock.mark(phase)
    }

    /// One optimiser update, during which `feed` prepares the next batch.
    fn update(&mut self, batch: &Batch, total_steps: u64, feed: &mut BatchLoader<'_>) -> Result<Requests> {
        let rank = self.context.group.rank();
        let key = step_key(self.spec.seed, self.spec.key, self.step);
        let labels = (self.stage.labels(), self.stage.views());
        let inputs = Inputs::new(batch, labels, key, self.device);
        let lr = learning_rate(&self.spec.train, batch.at.epoch);
        let mut graph = self.graph_for(&inputs)?;
        self.clock.reset();
        self.context.group.forget_exchanged();
        let computed = match &mut graph {
            Some(graph) => self.replay(graph, &inputs, lr)?,
            None => self.compute(&inputs)?,
        };
        feed.prepare()?;
        self.step_phase("reduce")?;
        failpoints::broken_collective(rank, self.step)?;
        // A group that is aborted from here on changes nothing any more: this waits until the sums are there, and fails if
        // they are not to be used.
        let reduced = self.reduce(&computed)?;
        self.exchanged = self.context.group.take_exchanged()?;
        let problem = self.non_finite(&computed, &reduced)?;
        self.phase("update");
        let on_gpu = self.clock.begin_update()?;
        match (&problem, &mut graph) {
            (None, Some(graph)) => {
                graph.update()?;
                self.optimizer.count_update();
            }
            (None, None) => self.optimizer.update(&reduced.gradient, lr)?,
            (Some(problem), _) => self.skip(problem, batch.at.epoch)?,
        }
        self.clock.end_update();
        if let Some(graph) = graph {
            self.graphs.give_back(inputs.sizes(), graph);
        }
        let phase_seconds = self.context.session.take_phase_seconds(on_gpu, self.exchanged.time);
        self.skipped = if problem.is_some() { self.skipped + 1 } else { 0 };
        self.buffers_before.clear();
        let done = self.describe(batch, &computed, &reduced, (lr, total_steps));
        self.commit(StepDone { skipped: problem, phase_seconds, ..done })?;
        failpoints::change_weight(self.optimizer.parameters(), rank, self.step);
        self.compare_ranks()?;
        Ok(reduced.asked)
    }

    /// The forward and the backward pass of this rank's images.
    fn compute(&mut self, inputs: &Inputs) -> Result<Computed> {
        let rank = self.context.group.rank();
        self.buffers_before = snapshot(&self.buffers);
        self.step_phase("forward")?;
        failpoints::hang(rank, self.step);
        failpoints::pass("step");
        let losses = self.stage.losses(inputs)?;
        self.step_phase("backward")?;
        self.optimizer.zero_grad()?;
        losses.backward()?;
        failpoints::poison_gradient(self.optimizer.parameters(), rank, self.step);
        Ok(Computed::new(&losses, self.optimizer.flat_gradient()))
    }

    /// The same as a CUDA graph, which does not say when the backward pass begins.
    fn replay(&mut self, graph: &mut StepGraph, inputs: &Inputs, lr: f64) -> Result<Computed> {
        self.step_phase("compute")?;
        let (computed, buffers_before) = graph.compute(inputs, self.optimizer.next_rates(lr))?;
        self.buffers_before = buffers_before;
        Ok(computed)
    }

    /// Sums gradients, shares of the loss and what was asked for over the ranks: all ranks see the same from here on.
    fn reduce(&self, computed: &Computed) -> Result<Reduced> {
        let mut gradient = computed.gradient.shallow_clone(); // [parameters]
        self.context.group.all_reduce(&mut gradient)?;
        failpoints::abort_collective(&mut gradient, self.context.group, self.step);
        let norm = computed.norm.as_ref().map_or_else(|| norm_of(&gradient), Tensor::shallow_clone);
        let asked = [self.context.session.stop_requested(), self.context.session.regroup_requested()];
        let asked = asked.map(|asked| f64::from(u8::from(asked)));
        let mut terms = self.context.group.sum_and_read(&computed.shares, &asked, &norm)?;
        let norm = terms.pop().context("the norm was read")?;
        let regroup = terms.pop().is_some_and(|asked| asked > 0.0);
        let stop = terms.pop().is_some_and(|asked| asked > 0.0);
        Ok(Reduced { gradient, norm, terms, asked: Requests { stop, regroup } })
    }

    /// The line of `steps.jsonl` of the step in flight.
    fn describe(
        &self,
        batch: &Batch,
        computed: &Computed,
        reduced: &Reduced,
        (lr, total_steps): (f64, u64),
    ) -> StepDone {
        let terms = || computed.terms.iter().zip(&reduced.terms);
        StepDone {
            stage: self.spec.name.into(),
            epoch: batch.at.epoch,
            step: self.step,
            generation: self.context.generation,
            world_size: self.context.group.size() as u32,
            loss: terms().map(|(term, value)| term.weight * value).sum(),
            losses: terms().map(|(term, value)| (term.name.into(), *value)).collect(),
            lr,
            images: batch.samples.len() as u64,
            samples_sha256: samples_sha256(&batch.samples),
            total_steps,
            skipped: None,
            phase_seconds: BTreeMap::new(),
            gathered_bytes: self.exchanged.bytes,
        }
    }

    /// The update is made. Rank 0 reports it to the coordinator, which writes the line of `steps.jsonl`; should rank 0 be
    /// lost, another rank can report it.
    fn commit(&mut self, done: StepDone) -> Result<()> {
        self.step += 1;
        self.post_step_done = false;
        self.recent.push(done.clone());
        metrics::step(self.context.group.rank(), &done);
        match self.context.group.rank() {
            0 => self.context.session.send_step(done),
            _ => Ok(()),
        }
    }

    /// Keeps the weights of the first of the best epochs, or of the last one. `false`: a stop was requested meanwhile.
    fn evaluate(&mut self, epoch: u64) -> Result<bool> {
        self.phase("evaluate");
        let validation_accuracy = match self.stage.validation_accuracy() {
            Err(error) if error.is::<StopAsked>() => return Ok(false),
            evaluated => evaluated?,
        };
        let is_better = |(best, _): &(Best, StateDict)| validation_accuracy > best.validation_accuracy;
        let better = self.spec.train.select == Select::Last || self.best.as_ref().is_none_or(is_better);
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
        self.phase("save");
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
        let (result, more) = result.map_or((None, Vec::new()), |(result, more)| (Some(result), more));
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
    fn save_for_all(&mut self, epoch: u64, result: Option<Finished>) -> Result<()> {
        if let Some(save) = self.checkpoint(epoch, result)? {
            self.saver.save(save)?;
        }
        self.spec.saves.restart(Instant::now());
        Ok(self.context.group.barrier()?)
    }

    /// Evaluates the best weights on the test images, and saves the stage as complete with the last weights.
    fn finish(&mut self) -> Result<StageOutcome> {
        self.phase("measure");
        let Some((best, weights)) = &self.best else { bail!("a stage's last step is always evaluated") };
        let (best, weights) = (*best, snapshot(weights));
        let last = snapshot(&self.stage.state());
        copy_into(&self.stage.state(), &weights)?;
        let measured = self.stage.measure();
        copy_into(&self.stage.state(), &last)?;
        let Measured { metrics: measures, fine_test_accuracy, files } = match measured {
            Err(error) if error.is::<StopAsked>() => return self.stop(best.epoch),
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

    fn seconds(&self) -> f64 {
        self.seconds_before + self.started.elapsed().as_secs_f64()
    }
}
