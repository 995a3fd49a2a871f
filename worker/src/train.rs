//! The training loop of one stage: batch, losses, gradients, reduction, update, commit. There is no
//! branch on the number of ranks: one rank is a group of size one. What a batch becomes is the
//! stage's (`stage.rs`).

pub(crate) mod bench;
mod checks;
mod computed;
mod finish;
mod gpu_clock;
mod gradients;
mod graph;
mod spec;
mod state;

use crate::batch_loader::{Batch, BatchLoader};
use crate::error::Result;
use crate::failpoints;
use crate::metrics;
use crate::optimizer::AdamW;
use crate::replica_state::UnackedSteps;
use crate::saver::Saver;
use crate::stage::{Inputs, Stage};
use crate::tensors::{StateDict, snapshot};
use anyhow::Context;
use computed::{Computed, Reduced, Requests, norm_of};
use gpu_clock::GpuClock;
use gradients::Gradients;
use graph::{Graphs, StepGraph};
pub(crate) use spec::{Interrupted, ResumeFrom, StageContext, StageOutcome, StageSpec};
use std::collections::BTreeMap;
use std::time::Instant;
use tch::{Device, Kind, Tensor};
use thanos_c10d::{Exchanged, count};
use thanos_configs::{Position, learning_rate, samples_sha256, step_key};
use thanos_proto::{Best, RankPhase, StepDone};

/// Trains a stage to its end, or to a stop or a regroup that all ranks agree on.
pub(crate) fn train(
    stage: &mut dyn Stage,
    spec: &StageSpec<'_>,
    context: &StageContext<'_>,
    from: &ResumeFrom<'_>,
) -> Result<StageOutcome, Interrupted> {
    let nothing_changed = |error| Interrupted { error, memory: None };
    let mut trainer = Trainer::new(stage, spec, context).map_err(nothing_changed)?;
    // Until all have begun, what a rank held before is still its best: it is not touched.
    trainer.begin(from).map_err(nothing_changed)?;
    let left = match trainer.run() {
        Ok(Some(outcome)) => return Ok(outcome),
        Ok(None) => Ok(()),
        Err(error) => Err(error),
    };
    // The save in progress is finished first, however long it takes: another generation begins from
    // it, or after it.
    trainer.phase(RankPhase::Save);
    trainer.saver.leave();
    let memory = Box::new(trainer.memory());
    match left {
        Ok(()) => Ok(StageOutcome::Regroup(memory)),
        Err(error) => Err(Interrupted { error, memory: Some(memory) }),
    }
}

impl Trainer<'_> {
    /// `None`: the ranks leave their generation for another one, between two steps.
    fn run(&mut self) -> Result<Option<StageOutcome>> {
        let spec = self.spec;
        let per_epoch = spec.schedule.steps_per_epoch();
        let total = spec.train.max_steps.unwrap_or(u64::MAX).min(spec.train.epochs * per_epoch);
        let steps = StepCounts { per_epoch, total };
        if self.step > 0 {
            let at = Position::at(self.step - 1, per_epoch);
            // A resume with fewer epochs may end after a step that was not the last one when it was
            // made.
            let never_evaluated = self.step == total && !self.is_evaluated_after(at, per_epoch);
            if (!self.post_step_done || never_evaluated) && !self.run_post_step(at, steps, false)? {
                return self.stop(at.epoch).map(Some);
            }
        }
        let mut feed = BatchLoader::new(
            self.context.data,
            &spec.schedule,
            self.step..total,
            self.stage.views(),
        )?;
        self.phase(RankPhase::Data);
        while let Some(batch) = feed.next()? {
            let Requests { stop, regroup } = self.update(&batch, total, &mut feed)?;
            self.waited = feed.waited.as_secs_f64();
            let post_step_done = self.run_post_step(batch.at, steps, stop)?;
            if !post_step_done || stop && self.step < total {
                return self.stop(batch.at.epoch).map(Some);
            }
            if regroup {
                return Ok(None);
            }
            self.phase(RankPhase::Data);
        }
        self.finish().map(Some)
    }

    /// One optimiser update, during which `feed` prepares the next batch.
    fn update(
        &mut self,
        batch: &Batch,
        total_steps: u64,
        feed: &mut BatchLoader<'_>,
    ) -> Result<Requests> {
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
            None => self.compute_and_count(&inputs, batch.samples.len())?,
        };
        feed.prepare()?;
        self.step_phase(RankPhase::Reduce)?;
        failpoints::broken_collective(rank, self.step)?;
        // A group that is aborted from here on changes nothing any more: this waits until the sums
        // are there, and fails if they are not to be used.
        let reduced = self.reduce(&computed)?;
        self.exchanged = self.context.group.take_exchanged()?;
        let problem = self.non_finite(&computed, &reduced)?;
        self.phase(RankPhase::Update);
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
        let done = self.describe(&StepInFlight { batch, lr, total_steps }, &computed, &reduced);
        self.commit(StepDone { skipped: problem, phase_seconds, ..done })?;
        failpoints::change_weight(self.optimizer.parameters(), rank, self.step);
        self.compare_ranks()?;
        Ok(reduced.asked)
    }
}

/// A stage under way.
struct Trainer<'a> {
    stage: &'a mut dyn Stage,
    spec: &'a StageSpec<'a>,
    context: &'a StageContext<'a>,
    device: Device,
    optimizer: AdamW,
    gradients: Gradients<'a>,
    saver: Saver<'a>,
    /// Updates made.
    step: u64,
    post_step_done: bool,
    recent: UnackedSteps,
    best: Option<(Best, StateDict)>,
    /// The model's buffers, and as they were before the step in flight, which changes them in its
    /// forward pass; the latter is empty between steps.
    buffers: StateDict,
    buffers_before: StateDict,
    /// Updates skipped since the last one that was made.
    skipped: u32,
    /// Floating-point operations of this rank for each image of the global batch; counted in the
    /// first step if metrics are served.
    flops_per_image: Option<f64>,
    /// In the forward pass of the step in flight.
    exchanged: Exchanged,
    clock: GpuClock,
    graphs: Graphs,
    seconds_before: f64,
    /// Seconds that steps waited for their images, and for saves, since this rank started the
    /// stage.
    waited: f64,
    saving: f64,
    started: Instant,
}

/// How many steps a stage has.
#[derive(Clone, Copy)]
struct StepCounts {
    per_epoch: u64,
    total: u64,
}

/// The batch of the step in flight, and what it is trained with.
struct StepInFlight<'a> {
    batch: &'a Batch,
    lr: f64,
    total_steps: u64,
}

impl<'a> Trainer<'a> {
    fn new(
        stage: &'a mut dyn Stage,
        spec: &'a StageSpec<'a>,
        context: &'a StageContext<'a>,
    ) -> Result<Self> {
        let parameters = stage.parameters();
        let buffers =
            stage.state().into_iter().filter(|(name, _)| !parameters.contains_key(name)).collect();
        let (kind, device) = parameters
            .values()
            .next()
            .map_or((Kind::Float, Device::Cpu), |p| (p.kind(), p.device()));
        let optimizer = AdamW::new(parameters, spec.train.weight_decay);
        let gradients = Gradients::new(&optimizer, context.group)?;
        Ok(Self {
            stage,
            spec,
            context,
            device,
            optimizer,
            gradients,
            saver: Saver::new(context.session),
            step: 0,
            post_step_done: true,
            recent: UnackedSteps::default(),
            best: None,
            buffers,
            buffers_before: StateDict::new(),
            skipped: 0,
            flops_per_image: None,
            exchanged: Exchanged::default(),
            clock: GpuClock::new(device),
            graphs: Graphs::new((kind, device), context.group.size()),
            seconds_before: 0.0,
            waited: 0.0,
            saving: 0.0,
            started: Instant::now(),
        })
    }

    /// As [`Self::compute`]; in the first step also counts what it costs.
    fn compute_and_count(&mut self, inputs: &Inputs, images: usize) -> Result<Computed> {
        if self.flops_per_image.is_some() || !self.context.session.serves_metrics() {
            return self.compute(inputs);
        }
        let (computed, counted) = count(|| self.compute(inputs))?;
        self.flops_per_image = Some(counted.flops as f64 / images.max(1) as f64);
        computed
    }

    /// The forward and the backward pass of this rank's images.
    fn compute(&mut self, inputs: &Inputs) -> Result<Computed> {
        let rank = self.context.group.rank();
        self.buffers_before = snapshot(&self.buffers);
        self.step_phase(RankPhase::Forward)?;
        failpoints::hang(rank, self.step);
        failpoints::pass("step");
        let mut losses = self.stage.losses(inputs)?;
        if let Some(parameter) = failpoints::poisoned(self.optimizer.parameters(), rank, self.step)
        {
            losses.poison(parameter);
        }
        self.step_phase(RankPhase::Backward)?;
        let gradient = self.gradients.backward(&losses, &self.optimizer)?;
        Ok(Computed::new(&losses, gradient))
    }

    /// The same as a CUDA graph, which does not say when the backward pass begins.
    fn replay(&mut self, graph: &mut StepGraph, inputs: &Inputs, lr: f64) -> Result<Computed> {
        self.step_phase(RankPhase::Compute)?;
        let (computed, buffers_before) = graph.compute(inputs, self.optimizer.next_rates(lr))?;
        self.buffers_before = buffers_before;
        Ok(computed)
    }

    /// Sums gradients, shares of the loss and what was asked for over the ranks: all ranks see the
    /// same from here on.
    fn reduce(&self, computed: &Computed) -> Result<Reduced> {
        let mut gradient = self.gradients.sum(&computed.gradient)?; // [parameters]
        failpoints::abort_collective(&mut gradient, self.context.group, self.step);
        let norm = computed.norm.as_ref().map_or_else(|| norm_of(&gradient), Tensor::shallow_clone);
        let asked =
            [self.context.session.stop_requested(), self.context.session.regroup_requested()];
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
        step: &StepInFlight<'_>,
        computed: &Computed,
        reduced: &Reduced,
    ) -> StepDone {
        let StepInFlight { batch, lr, total_steps } = *step;
        let terms = || computed.terms.iter().zip(&reduced.terms);
        StepDone {
            stage: self.spec.name.into(),
            epoch: batch.at.epoch,
            step: self.step,
            generation: self.context.generation,
            world_size: self.context.group.size() as u32,
            loss: terms().map(|(term, value)| term.weight * value).sum(),
            losses: terms().map(|(term, value)| (term.term.name().into(), *value)).collect(),
            lr,
            images: batch.samples.len() as u64,
            samples_sha256: samples_sha256(&batch.samples),
            total_steps,
            skipped: None,
            phase_seconds: BTreeMap::new(),
            gathered_bytes: self.exchanged.bytes,
        }
    }

    /// The update is made. Rank 0 reports it to the coordinator, which writes the line of
    /// `steps.jsonl`; should rank 0 be lost, another rank can report it.
    fn commit(&mut self, done: StepDone) -> Result<()> {
        self.step += 1;
        self.post_step_done = false;
        self.recent.push(done.clone());
        let flops = self.flops_per_image.unwrap_or(0.0) * done.images as f64;
        metrics::step(self.context.group.rank(), &done, flops);
        match self.context.group.rank() {
            0 => self.context.session.send_step(done),
            _ => Ok(()),
        }
    }

    fn phase(&self, phase: RankPhase) {
        self.context.session.enter_phase(self.spec.name, self.step, phase);
    }

    /// A phase that the GPU's time is measured of.
    fn step_phase(&mut self, phase: RankPhase) -> Result<()> {
        self.phase(phase.clone());
        self.clock.mark(phase)
    }
}
