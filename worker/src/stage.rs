//! What a stage is to the one who trains it: what a batch becomes (the terms of a loss), and how the result is judged.
//! `backbone.rs` and `transfer.rs` are the two kinds; how they are trained is `train.rs`'s.

use crate::evaluate::Measures;
use crate::feed::Batch;
use crate::tensors::Named;
use anyhow::{Result, bail};
use tch::Tensor;

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

    pub(crate) fn backward(&self) -> Result<()> {
        match &self.scalar {
            Some(scalar) => scalar.f_backward().map_err(|error| {
                let lost = thanos_c10d::Error::in_backward(&error.to_string());
                lost.map_or_else(|| error.into(), anyhow::Error::from)
            }),
            None => bail!("a plan has a term to learn from, the stage computed none"),
        }
    }

    pub(crate) fn terms(&self) -> &[Term] {
        &self.terms
    }

    /// This rank's share of each term.
    pub(crate) fn shares(&self) -> Vec<f64> {
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
    /// `draws` is the key of what the model draws in this step.
    fn losses(&mut self, batch: &Batch, draws: u64) -> Result<Losses>;
    /// Share of the validation images, over all ranks.
    fn validation_accuracy(&mut self) -> Result<f64>;
    /// Measures on the test images and, for a transfer, the fine accuracy.
    fn measure(&mut self) -> Result<(Measures, Option<f64>)>;
}
