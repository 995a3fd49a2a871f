//! AdamW with its state as our own tensors, so that it can be saved and moved; the update is
//! libtorch's fused kernel.

use crate::model::depth;
use crate::tensors::{StateDict, copy_into, upload};
use anyhow::{Context, Result};
use tch::{Device, Kind, Tensor};
use thanos_c10d::{AdamWParameter, AdamWRates, LearningRate, fused_adamw};
use thanos_fused::drop_gradients;

/// Decoupled weight decay on every parameter, as `torch.optim.AdamW` (betas 0.9 and 0.999, eps
/// 1e-8).
pub struct AdamW {
    parameters: StateDict,
    /// Names of the parameters in the order of a flat gradient: that of a forward pass.
    layout: Vec<String>,
    means: StateDict,
    squares: StateDict,
    /// Updates made.
    step: u64,
    weight_decay: f64,
}

impl AdamW {
    /// The tensors are the model's own and are updated in place.
    pub fn new(parameters: StateDict, weight_decay: f64) -> Self {
        let zeros = || {
            parameters
                .iter()
                .map(|(name, p)| (name.clone(), p.detach().zeros_like()))
                .collect::<StateDict>()
        };
        let mut layout: Vec<String> = parameters.keys().cloned().collect();
        layout.sort_by_key(|name| depth(name));
        Self { means: zeros(), squares: zeros(), parameters, layout, step: 0, weight_decay }
    }

    pub(crate) fn parameters(&self) -> &StateDict {
        &self.parameters
    }

    /// Names of the parameters in the order of a flat gradient.
    pub(crate) fn layout(&self) -> &[String] {
        &self.layout
    }

    /// The parameters in the order of a flat gradient.
    pub(crate) fn in_layout(&self) -> impl Iterator<Item = &Tensor> {
        self.layout.iter().map(|name| &self.parameters[name])
    }

    /// Number of updates made.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// The gradients of all parameters as one row, with zeros for a parameter without a gradient.
    pub fn flat_gradient(&self) -> Tensor {
        let parts: Vec<Tensor> = self
            .in_layout()
            .map(|p| {
                let gradient = p.grad();
                if gradient.defined() {
                    gradient.reshape(-1)
                } else {
                    p.detach().zeros_like().reshape(-1)
                }
            })
            .collect();
        Tensor::cat(&parts, 0)
    }

    /// The place of the first parameter whose part of a flat gradient holds a NaN or an infinity.
    pub(crate) fn first_non_finite(&self, flat_gradient: &Tensor) -> Option<usize> {
        let mut from = 0;
        self.in_layout().position(|parameter| {
            let part = flat_gradient.narrow(0, from, parameter.numel() as i64);
            from += parameter.numel() as i64;
            part.isfinite().all().int64_value(&[]) == 0
        })
    }

    /// Forgets the gradients of the last step: the next backward pass makes new ones instead of
    /// adding to zeros.
    ///
    /// # Errors
    /// If libtorch refuses.
    pub fn zero_grad(&self) -> Result<()> {
        Ok(drop_gradients(self.parameters.values())?)
    }

    /// One update from the summed gradient, laid out as by [`Self::flat_gradient`].
    pub fn update(&mut self, flat_gradient: &Tensor, learning_rate: f64) -> Result<()> {
        let device = flat_gradient.device();
        let next = self.next_rates(learning_rate);
        self.step += 1;
        if device.is_cuda() {
            return self.apply_on_device(flat_gradient, &upload(&next, device));
        }
        let step = Tensor::full([], self.step as f64, (Kind::Float, device));
        self.apply(flat_gradient, LearningRate::Number(learning_rate), &step)
    }

    /// The learning rate and the number of the next update, as [`Self::apply_on_device`] reads
    /// them.
    pub(crate) fn next_rates(&self, learning_rate: f64) -> [f32; 2] {
        [learning_rate as f32, (self.step + 1) as f32]
    }

    /// An update was made by a recording of [`Self::apply_on_device`].
    pub(crate) fn count_update(&mut self) {
        self.step += 1;
    }

    /// An update that reads learning rate and number from `rates`, [2] f32, on the GPU.
    pub(crate) fn apply_on_device(&self, flat_gradient: &Tensor, rates: &Tensor) -> Result<()> {
        self.apply(flat_gradient, LearningRate::Tensor(&rates.get(0)), &rates.get(1))
    }

    fn apply(
        &self,
        flat_gradient: &Tensor,
        learning_rate: LearningRate<'_>,
        step: &Tensor,
    ) -> Result<()> {
        let mut from = 0;
        let mut gradients = Vec::new();
        for parameter in self.in_layout() {
            let len = parameter.numel() as i64;
            gradients.push(flat_gradient.narrow(0, from, len).view_as(parameter));
            from += len;
        }
        let rows: Vec<AdamWParameter<'_>> = self
            .layout
            .iter()
            .zip(&gradients)
            .map(|(name, gradient)| AdamWParameter {
                parameter: &self.parameters[name],
                gradient,
                mean: &self.means[name],
                square: &self.squares[name],
                step,
            })
            .collect();
        let rates = AdamWRates {
            learning_rate,
            beta1: 0.9,
            beta2: 0.999,
            weight_decay: self.weight_decay,
            eps: 1e-8,
        };
        fused_adamw(&rows, rates)?;
        Ok(())
    }

    /// The state by name: `exp_avg/NAME`, `exp_avg_sq/NAME` (torch's words) and `step` [1] i64. All
    /// of it is on the parameters' device, as it travels in one broadcast: NCCL takes no CPU
    /// tensors.
    pub fn state(&self) -> StateDict {
        let mut state = StateDict::new();
        for (prefix, tensors) in [("exp_avg", &self.means), ("exp_avg_sq", &self.squares)] {
            state.extend(
                tensors
                    .iter()
                    .map(|(name, tensor)| (format!("{prefix}/{name}"), tensor.shallow_clone())),
            );
        }
        let device = self.parameters.values().next().map_or(Device::Cpu, Tensor::device);
        state.insert("step".into(), Tensor::from_slice(&[self.step as i64]).to_device(device));
        state
    }

    /// Takes over a state made by [`Self::state`].
    pub fn load(&mut self, state: &StateDict) -> Result<()> {
        let target = self.state();
        let step = target.get("step").map(Tensor::shallow_clone).context("a state has its step")?;
        copy_into(&target, state).context("optimizer state")?;
        self.step = step.int64_value(&[0]) as u64;
        Ok(())
    }
}
