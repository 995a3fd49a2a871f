//! A step's kernels as two CUDA graphs, on a single GPU: one makes the gradient, the other the
//! update, and between them the host looks at the numbers. Launching some hundred kernels one by
//! one takes longer than running them.
//!
//! A step is recorded once its sizes have come a few times; a batch of other sizes, such as an
//! epoch's last, runs as before. Both ways run the same kernels on the same numbers: it cannot be
//! seen from the result which one it was.

use super::Trainer;
use super::computed::Computed;
use crate::error::{Result, WorkerError};
use crate::failpoints;
use crate::panics::without_panic;
use crate::stage::Inputs;
use crate::tensors::{StateDict, snapshot, upload};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use tch::{Device, Kind, Tensor};
use thanos_c10d::Graph;
use thanos_fused::gpu;
use thanos_proto::RankPhase;

/// Steps of the same sizes before one is recorded: libraries allocate and choose their algorithms
/// in the first ones.
const STEPS_BEFORE: u32 = 3;

/// A step's recording, and the tensors that it reads and writes.
pub(super) struct StepGraph {
    inputs: Inputs,
    computed: Computed,
    /// The buffers as they were before the forward pass.
    buffers_before: StateDict,
    gradient: Graph,
    update: Graph,
    /// [2] f32: the learning rate and the number of the update.
    rates: Tensor,
}

impl StepGraph {
    /// Starts the forward and the backward pass: what they compute, and the buffers before them.
    /// `rates` are those of the update, which are on their way while the GPU computes.
    pub(super) fn compute(
        &mut self,
        inputs: &Inputs,
        rates: [f32; 2],
    ) -> Result<(Computed, StateDict)> {
        self.inputs.replace_by(inputs);
        self.gradient.replay()?;
        self.rates.copy_(&upload(&rates, self.rates.device()));
        let shared = |named: &StateDict| {
            named.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect()
        };
        Ok((self.computed.shallow_clone(), shared(&self.buffers_before)))
    }

    /// Starts the update from the gradient of the last [`Self::compute`].
    pub(super) fn update(&mut self) -> Result<()> {
        Ok(self.update.replay()?)
    }
}

/// A recording has failed: it would again.
static HAS_FAILED: AtomicBool = AtomicBool::new(false);

/// The recorded step of a stage.
pub(super) struct Graphs {
    is_enabled: bool,
    /// Steps so far, by the sizes of their batch.
    steps: BTreeMap<(i64, i64), u32>,
    recorded: Option<((i64, i64), StepGraph)>,
}

impl Graphs {
    /// For a stage whose parameters are of this kind on this device, with so many ranks. With
    /// several, collectives within a step would have to be recorded; masks in float64 are drawn
    /// with the host's help; what tests break on purpose is between the kernels.
    pub(super) fn new((kind, device): (Kind, Device), ranks: usize) -> Self {
        let is_possible =
            device.is_cuda() && kind == Kind::Float && ranks == 1 && gpu::is_available();
        let is_enabled =
            is_possible && !failpoints::are_armed() && !HAS_FAILED.load(Ordering::Relaxed);
        Self { is_enabled, steps: BTreeMap::new(), recorded: None }
    }

    /// The recording of a step of these sizes, to be given back after the step.
    pub(super) fn take(&mut self, sizes: (i64, i64)) -> Option<StepGraph> {
        self.recorded.take_if(|(recorded, _)| *recorded == sizes).map(|(_, graph)| graph)
    }

    pub(super) fn give_back(&mut self, sizes: (i64, i64), graph: StepGraph) {
        self.recorded = Some((sizes, graph));
    }

    /// Counts a step; whether it is to be recorded first.
    fn is_due(&mut self, sizes: (i64, i64)) -> bool {
        if !self.is_enabled || self.recorded.is_some() {
            return false;
        }
        let steps = self.steps.entry(sizes).or_default();
        *steps += 1;
        *steps > STEPS_BEFORE
    }
}

impl Trainer<'_> {
    /// The recording that runs a step with these inputs, made now if it is time.
    pub(super) fn graph_for(&mut self, inputs: &Inputs) -> Result<Option<StepGraph>> {
        let graph = self.graphs.take(inputs.sizes());
        if graph.is_some() || !self.graphs.is_due(inputs.sizes()) {
            return Ok(graph);
        }
        self.phase(RankPhase::Record);
        match without_panic(|| self.record(inputs)) {
            Ok(graph) => {
                tracing::debug!("steps of {:?} images are a CUDA graph", inputs.sizes());
                Ok(Some(graph))
            }
            Err(error) => {
                tracing::warn!("steps are not recorded as a CUDA graph: {error}");
                HAS_FAILED.store(true, Ordering::Relaxed);
                self.graphs.is_enabled = false;
                Ok(None)
            }
        }
    }

    fn record(&mut self, inputs: &Inputs) -> Result<StepGraph> {
        let inputs = inputs.copy();
        let rates = Tensor::zeros([2], (Kind::Float, inputs.images.device()));
        self.optimizer.zero_grad()?;
        let (gradient, (computed, buffers_before)) = Graph::record(|| -> Result<_> {
            let before = snapshot(&self.buffers);
            let losses = self.stage.losses(&inputs)?;
            losses.backward()?;
            Ok((Computed::new(&losses, self.optimizer.flat_gradient()).with_norm(), before))
        })?;
        let update = || {
            self.optimizer.apply_on_device(&computed.gradient, &rates).map_err(WorkerError::from)
        };
        let (update, ()) = Graph::record(update)?;
        Ok(StepGraph { inputs, computed, buffers_before, gradient, update, rates })
    }
}
