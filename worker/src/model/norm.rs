//! Batch normalisation whose training statistics are those of the global batch, so that the curve does not depend
//! on how many ranks share it. The only place where a model knows that there are others.

use super::Mode;
use anyhow::Result;
use std::fmt;
use std::rc::Rc;
use tch::{Kind, Tensor, nn};
use thanos_c10d::ProcessGroup;

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
    pub(crate) fn forward(&self, x: &Tensor, mode: Mode<'_>) -> Result<Tensor> {
        if matches!(mode, Mode::Eval) {
            return Ok(self.scale(x, &self.running_mean, &self.running_var));
        }
        let (n, c, height, width) = x.size4()?;
        let axes = &[0_i64, 2, 3][..];
        let len = n * height * width;
        // Moments about this rank's own mean: a variance far below the mean's square is not lost.
        let own_mean = (x.detach().sum_dim_intlist(axes, false, None) / len.max(1) as f64).to_kind(x.kind()); // [C]
        let centred = x - own_mean.view([1, c, 1, 1]);
        let sum = |x: &Tensor| x.sum_dim_intlist(axes, false, None).to_kind(Kind::Double); // [C]
        let (first, second) = (sum(&centred), sum(&centred.square()));
        // Moved to zero in float64, they add up over the ranks, in one collective.
        let origin = own_mean.to_kind(Kind::Double);
        let second = second + &origin * &first * 2.0 + origin.square() * len as f64;
        let first = first + &origin * len as f64;
        let local = Tensor::full([1], len as f64, (Kind::Double, x.device()));
        let moments = self.sum.sum(&Tensor::cat(&[first, second, local], 0))?; // [2C + 1]
        let count = moments.narrow(0, 2 * c, 1).detach();
        let mean = moments.narrow(0, 0, c) / &count;
        let var = (moments.narrow(0, c, c) / &count - mean.square()).clamp_min(0.0);
        self.track(&mean, &var, &count);
        let offset = (origin - &mean).to_kind(x.kind());
        let scale = (var.to_kind(x.kind()) + EPS).rsqrt() * &self.weight;
        let shift = &self.bias + offset * &scale;
        Ok(centred * scale.view([1, c, 1, 1]) + shift.view([1, c, 1, 1]))
    }

    fn scale(&self, x: &Tensor, mean: &Tensor, var: &Tensor) -> Tensor {
        let scale = (var + EPS).rsqrt() * &self.weight;
        let shift = &self.bias - mean * &scale;
        x * scale.view([1, -1, 1, 1]) + shift.view([1, -1, 1, 1])
    }

    /// Moves the running statistics; the variance without bias, as torch's.
    fn track(&self, mean: &Tensor, var: &Tensor, count: &Tensor) {
        tch::no_grad(|| {
            let unbiased = var * (count / (count - 1.0).clamp_min(1.0));
            let kind: Kind = self.running_mean.kind();
            _ = self.running_mean.shallow_clone().lerp_(&mean.to_kind(kind), MOMENTUM);
            _ = self.running_var.shallow_clone().lerp_(&unbiased.to_kind(kind), MOMENTUM);
        });
    }
}
