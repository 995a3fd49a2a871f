//! Batch norm over the images of all ranks, and what follows it in a residual network, as two
//! operations around a sum over the ranks. On the CPU they are C++ kernels; elsewhere plain tensor
//! operations, which the tests compare them with.

use crate::draws::has_kernels;
use crate::{Error, calls};
use tch::{Kind, Tensor};

/// Weight, bias and running statistics, [C] each.
#[derive(Clone, Copy, Debug)]
pub struct BatchNorm<'a> {
    pub weight: &'a Tensor,
    pub bias: &'a Tensor,
    pub running_mean: &'a Tensor,
    pub running_var: &'a Tensor,
    pub eps: f64,
    pub momentum: f64,
}

/// What follows a norm, in one pass with it.
#[derive(Clone, Copy, Debug)]
pub enum Epilogue<'a> {
    None,
    Relu,
    /// The ReLU of the sum with a tensor of the same shape.
    AddRelu(&'a Tensor),
}

impl Epilogue<'_> {
    fn residual(&self) -> Option<&Tensor> {
        match self {
            Self::AddRelu(residual) => Some(residual),
            Self::None | Self::Relu => None,
        }
    }

    fn apply(&self, x: Tensor) -> Tensor {
        match self {
            Self::None => x,
            Self::Relu => x.relu(),
            Self::AddRelu(residual) => (x + *residual).relu(),
        }
    }
}

impl BatchNorm<'_> {
    /// Feature maps [n, C, H, W] to the same shape by the statistics of the batch, which move the
    /// running ones. The batch may be empty on this rank. `sum` adds up float64 moments [2 C + 1]
    /// over the ranks within the graph: sums of the elements of each channel, sums of their
    /// squares, and the number of elements of a channel.
    ///
    /// # Errors
    /// If shapes do not fit, or `sum` fails.
    pub fn train<E: From<Error>>(
        &self,
        x: &Tensor,
        epilogue: Epilogue<'_>,
        sum: impl FnOnce(&Tensor) -> Result<Tensor, E>,
    ) -> Result<Tensor, E> {
        self.check(x, epilogue)?;
        if !has_kernels((x.kind(), x.device())) {
            return self.plain(x, epilogue, sum);
        }
        let (x, moments) = calls::batch_moments(x)?;
        let moments = sum(&moments)?;
        let tensors = [&x, &moments, self.weight, self.bias, self.running_mean, self.running_var];
        let relu = !matches!(epilogue, Epilogue::None);
        Ok(calls::batch_norm(tensors, epilogue.residual(), (self.eps, self.momentum), relu)?)
    }

    /// The same shape by the running statistics.
    pub fn evaluate(&self, x: &Tensor, epilogue: Epilogue<'_>) -> Tensor {
        let scale = (self.running_var + self.eps).rsqrt() * self.weight;
        let shift = self.bias - self.running_mean * &scale;
        epilogue.apply(x * scale.view([1, -1, 1, 1]) + shift.view([1, -1, 1, 1]))
    }

    /// [`Self::train`] by plain tensor operations with autograd's gradients.
    pub(crate) fn plain<E>(
        &self,
        x: &Tensor,
        epilogue: Epilogue<'_>,
        sum: impl FnOnce(&Tensor) -> Result<Tensor, E>,
    ) -> Result<Tensor, E> {
        let (n, c, height, width) = x.size4().expect("the caller has checked the shape");
        let axes = &[0_i64, 2, 3][..];
        let len = n * height * width;
        // Moments about this rank's own mean: a variance far below the mean's square is not lost.
        let own_mean =
            (x.detach().sum_dim_intlist(axes, false, None) / len.max(1) as f64).to_kind(x.kind());
        let centred = x - own_mean.view([1, c, 1, 1]);
        let total = |x: &Tensor| x.sum_dim_intlist(axes, false, None).to_kind(Kind::Double); // [C]
        let (first, second) = (total(&centred), total(&centred.square()));
        // Moved to zero in float64, they add up over the ranks, in one collective.
        let origin = own_mean.to_kind(Kind::Double);
        let second = second + &origin * &first * 2.0 + origin.square() * len as f64;
        let first = first + &origin * len as f64;
        let local = Tensor::full([1], len as f64, (Kind::Double, x.device()));
        let moments = sum(&Tensor::cat(&[first, second, local], 0))?; // [2C + 1]
        let count = moments.narrow(0, 2 * c, 1).detach();
        let mean = moments.narrow(0, 0, c) / &count;
        let var = (moments.narrow(0, c, c) / &count - mean.square()).clamp_min(0.0);
        self.track(&mean, &var, &count);
        let offset = (origin - &mean).to_kind(x.kind());
        let scale = (var.to_kind(x.kind()) + self.eps).rsqrt() * self.weight;
        let shift = self.bias + offset * &scale;
        Ok(epilogue.apply(centred * scale.view([1, c, 1, 1]) + shift.view([1, c, 1, 1])))
    }

    /// Moves the running statistics; the variance without bias, as torch's.
    fn track(&self, mean: &Tensor, var: &Tensor, count: &Tensor) {
        tch::no_grad(|| {
            let unbiased = var * (count / (count - 1.0).clamp_min(1.0));
            let kind = self.running_mean.kind();
            _ = self.running_mean.shallow_clone().lerp_(&mean.to_kind(kind), self.momentum);
            _ = self.running_var.shallow_clone().lerp_(&unbiased.to_kind(kind), self.momentum);
        });
    }

    fn check(&self, x: &Tensor, epilogue: Epilogue<'_>) -> Result<(), Error> {
        let error = |message| Err(Error { operation: "batch_norm", message });
        let Ok((_, c, ..)) = x.size4() else {
            return error(format!("feature maps are [n, C, H, W], not {:?}", x.size()));
        };
        for (name, tensor) in [
            ("weight", self.weight),
            ("bias", self.bias),
            ("running mean", self.running_mean),
            ("running variance", self.running_var),
        ] {
            let alike = tensor.kind() == x.kind() && tensor.device() == x.device();
            if tensor.size() != [c] || !alike || !tensor.is_contiguous() {
                let found = (tensor.size(), tensor.kind(), tensor.device());
                return error(format!(
                    "{name} is {found:?} for {c} channels of {:?} on {:?}",
                    x.kind(),
                    x.device()
                ));
            }
        }
        match epilogue.residual() {
            Some(residual) if residual.size() != x.size() || residual.kind() != x.kind() => {
                let found = (residual.size(), residual.kind());
                error(format!("the residual is {found:?} for {:?} of {:?}", x.size(), x.kind()))
            }
            _ => Ok(()),
        }
    }
}
