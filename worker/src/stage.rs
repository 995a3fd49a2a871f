//! What a stage is to the training loop: what a batch becomes (the terms of a loss), and how the
//! result is evaluated.
//! `backbone.rs` and `transfer.rs` are the two kinds; how they are trained is `train.rs`'s.

use crate::batch_loader::Batch;
use crate::error::{Result, WorkerError};
use crate::evaluate::EvalMetrics;
use crate::tensors::{StateDict, upload};
use anyhow::anyhow;
use std::ops::Range;
use tch::{Device, Kind, Tensor};
use thanos_configs::LossTerm;
use thanos_fused::{Draws, rows_of};

/// One term of the loss: this rank's share of its global value, a scalar. Shares are summed over
/// the ranks.
pub(crate) struct Term {
    pub(crate) term: LossTerm,
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
    pub(crate) fn add(&mut self, term: LossTerm, weight: f64, share: Tensor) {
        self.grow(&share * weight);
        self.terms.push(Term { term, weight, share: share.detach() });
    }

    /// A term whose gradient with respect to `z` is known: sum(z * gradient) carries it into z
    /// exactly.
    pub(crate) fn add_gradient(&mut self, term: Term, z: &Tensor, gradient: &Tensor) {
        self.grow((z * gradient.detach()).sum(z.kind()) * term.weight);
        self.terms.push(term);
    }

    /// For tests: the gradient of a parameter, and of no other one, becomes NaN.
    pub(crate) fn poison(&mut self, parameter: &Tensor) {
        self.grow((parameter * f64::NAN).sum(parameter.kind()));
    }

    fn grow(&mut self, scalar: Tensor) {
        self.scalar = Some(match self.scalar.take() {
            Some(sum) => sum + scalar,
            None => scalar,
        });
    }

    pub(crate) fn backward(&self) -> Result<()> {
        match &self.scalar {
            Some(scalar) => scalar.f_backward().map_err(|error| {
                let lost = thanos_c10d::Error::in_backward(&error.to_string());
                lost.map_or_else(|| error.into(), WorkerError::Group)
            }),
            None => Err(anyhow!("a plan has a term to learn from, the stage computed none").into()),
        }
    }

    pub(crate) fn terms(&self) -> &[Term] {
        &self.terms
    }

    /// This rank's share of each term, [terms] f64.
    pub(crate) fn shares(&self) -> Tensor {
        let shares: Vec<Tensor> =
            self.terms.iter().map(|term| term.share.to_kind(Kind::Double).reshape([])).collect();
        Tensor::stack(&shares, 0)
    }
}

/// What one step computes with, on the training device. A recorded step reads all of it at the same
/// place.
pub(crate) struct Inputs {
    /// Views of this rank's images, [b, views, C, S, S]; none where the stage asks for none.
    pub(crate) images: Tensor,
    /// i64: the key of the step's draws [1], rows of the draws [b x views], labels of the global
    /// batch [B], ids of this rank's samples [b].
    numbers: Tensor,
    views: u64,
    /// This rank's part of the global batch.
    own: Range<usize>,
    total: usize,
}

impl Inputs {
    /// `labels` are those of all samples of the pack; `key` is that of what the step draws.
    pub(crate) fn new(
        batch: &Batch,
        (labels, views): (&[i64], u64),
        key: u64,
        device: Device,
    ) -> Self {
        let mut numbers = vec![key as i64];
        numbers.extend(rows_of(batch.own(), views));
        numbers.extend(batch.samples.iter().map(|&id| labels[id as usize]));
        numbers.extend(batch.own().iter().map(|&id| id as i64));
        Self {
            images: batch.images.shallow_clone(),
            numbers: upload(&numbers, device),
            views,
            own: batch.own.clone(),
            total: batch.samples.len(),
        }
    }

    /// Images of this rank and of the global batch: b, B.
    pub(crate) fn sizes(&self) -> (i64, i64) {
        (self.own.len() as i64, self.total as i64)
    }

    /// What the step draws by.
    pub(crate) fn draws(&self) -> Draws {
        Draws::from_tensors(self.part(0, 1), self.part(1, self.rows()))
    }

    /// Labels of the global batch, [B].
    pub(crate) fn labels(&self) -> Tensor {
        self.part(1 + self.rows(), self.total)
    }

    /// Labels of this rank's samples, [b].
    pub(crate) fn own_labels(&self) -> Tensor {
        self.part(1 + self.rows() + self.own.start, self.own.len())
    }

    /// Ids of this rank's samples, [b].
    pub(crate) fn own_samples(&self) -> Tensor {
        self.part(1 + self.rows() + self.total, self.own.len())
    }

    /// The same at a place of its own.
    pub(crate) fn copy(&self) -> Self {
        let (images, numbers) = (self.images.copy(), self.numbers.copy());
        Self { images, numbers, views: self.views, own: self.own.clone(), total: self.total }
    }

    /// Takes over those of another step of the same sizes.
    pub(crate) fn replace_by(&mut self, other: &Self) {
        self.images.copy_(&other.images);
        self.numbers.copy_(&other.numbers);
    }

    fn rows(&self) -> usize {
        self.own.len() * self.views as usize
    }

    fn part(&self, from: usize, len: usize) -> Tensor {
        self.numbers.narrow(0, from as i64, len as i64)
    }
}

/// What is measured at the end of a stage.
pub(crate) struct Measured {
    pub(crate) metrics: EvalMetrics,
    /// Of a transfer.
    pub(crate) fine_test_accuracy: Option<f64>,
    /// On rank 0: files of the stage's last checkpoint beside its weights.
    pub(crate) files: Vec<(&'static str, StateDict)>,
}

/// What is trained, and how it is evaluated.
pub(crate) trait Stage {
    /// What the optimiser moves, sorted by name.
    fn parameters(&self) -> StateDict;
    /// Parameters and buffers: what a checkpoint holds.
    fn state(&self) -> StateDict;
    /// Views of each image that a batch must have.
    fn views(&self) -> u64;
    /// Labels that the losses need, of all training samples.
    fn labels(&self) -> &[i64];
    /// A function of the inputs and of the state alone, which waits for nothing: it may be recorded
    /// and run again.
    fn losses(&mut self, inputs: &Inputs) -> Result<Losses>;
    /// Share of the validation images, over all ranks.
    fn validation_accuracy(&mut self) -> Result<f64>;
    /// Metrics on the test images, by the weights as they are.
    fn measure(&mut self) -> Result<Measured>;
}
