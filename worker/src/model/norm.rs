//! Batch normalisation whose training statistics are those of the global batch, so that the curve
//! does not depend on how many ranks share it. The only place where a model knows that there are
//! others.

use super::Mode;
use anyhow::Result;
use std::fmt;
use std::rc::Rc;
use tch::{Tensor, nn};
use thanos_c10d::ProcessGroup;
use thanos_fused::Epilogue;

const EPS: f64 = 1e-5;
const MOMENTUM: f64 = 0.1;

/// Sums over the ranks, within the graph.
pub trait BatchSum {
    fn sum(&self, local: &Tensor) -> Result<Tensor>;
}

impl BatchSum for ProcessGroup {
    fn sum(&self, local: &Tensor) -> Result<Tensor> {
        Ok(self.all_reduce_differentiable(local)?)
    }
}

/// The batch of a single rank.
pub struct Alone;

impl BatchSum for Alone {
    fn sum(&self, local: &Tensor) -> Result<Tensor> {
        Ok(local.shallow_clone())
    }
}

/// `torch.nn.BatchNorm2d` (momentum 0.1, eps 1e-5) over the global batch.
pub(crate) struct BatchNorm {
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    sum: Rc<dyn BatchSum>,
}

impl fmt::Debug for BatchNorm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BatchNorm({})", self.weight.size()[0])
    }
}

impl BatchNorm {
    pub(crate) fn new(path: &nn::Path<'_>, channels: i64, sum: &Rc<dyn BatchSum>) -> Self {
        Self {
            weight: path.ones("weight", &[channels]),
            bias: path.zeros("bias", &[channels]),
            running_mean: path.zeros_no_train("running_mean", &[channels]),
            running_var: path.ones_no_train("running_var", &[channels]),
            sum: sum.clone(),
        }
    }

    /// [n, C, H, W] to the same shape. A rank may hold no image.
    pub(crate) fn forward(
        &self,
        x: &Tensor,
        epilogue: Epilogue<'_>,
        mode: Mode<'_>,
    ) -> Result<Tensor> {
        let norm = thanos_fused::BatchNorm {
            weight: &self.weight,
            bias: &self.bias,
            running_mean: &self.running_mean,
            running_var: &self.running_var,
            eps: EPS,
            momentum: MOMENTUM,
        };
        match mode {
            Mode::Eval => Ok(norm.evaluate(x, epilogue)),
            Mode::Train(_) => norm.train(x, epilogue, |moments| self.sum.sum(moments)),
        }
    }
}
