//! What a step computes: on one rank, and reduced over all of them.

use crate::stage::Losses;
use tch::{Kind, Tensor};
use thanos_configs::LossTerm;

/// What one rank has computed of a step, from its own images.
pub(super) struct Computed {
    pub(super) terms: Vec<TermName>,
    /// This rank's share of each term, [terms] f64.
    pub(super) shares: Tensor,
    /// [parameters], in the optimiser's layout.
    pub(super) gradient: Tensor,
    /// The gradient's norm [1] f64, where this rank's gradient is that of the global loss.
    pub(super) norm: Option<Tensor>,
}

/// A term of the loss, without its value.
#[derive(Clone, Copy)]
pub(super) struct TermName {
    pub(super) term: LossTerm,
    pub(super) weight: f64,
}

impl Computed {
    pub(super) fn new(losses: &Losses, gradient: Tensor) -> Self {
        let terms = losses
            .terms()
            .iter()
            .map(|term| TermName { term: term.term, weight: term.weight })
            .collect();
        Self { terms, shares: losses.shares(), gradient, norm: None }
    }

    /// For the only rank.
    pub(super) fn with_norm(self) -> Self {
        let norm = Some(norm_of(&self.gradient));
        Self { norm, ..self }
    }

    pub(super) fn shallow_clone(&self) -> Self {
        Self {
            terms: self.terms.clone(),
            shares: self.shares.shallow_clone(),
            gradient: self.gradient.shallow_clone(),
            norm: self.norm.as_ref().map(Tensor::shallow_clone),
        }
    }
}

/// The norm of a gradient, [1] f64. The squares of finite float32 values never overflow there: it
/// is non-finite only if a value is.
pub(super) fn norm_of(gradient: &Tensor) -> Tensor {
    gradient.norm_scalaropt_dtype(2, Kind::Double).reshape([1])
}

/// The globally reduced values of one step.
pub(super) struct Reduced {
    /// The gradient of the global loss, in the optimiser's layout.
    pub(super) gradient: Tensor,
    pub(super) norm: f64,
    /// The global value of each term.
    pub(super) terms: Vec<f64>,
    pub(super) asked: Requests,
}

/// What some rank has been asked to do after this step, so that all do it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Requests {
    pub(super) stop: bool,
    pub(super) regroup: bool,
}
