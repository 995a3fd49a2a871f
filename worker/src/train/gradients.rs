//! How a stage's gradients become one row that is summed over the ranks: in buckets, while the
//! backward pass makes the others, or after it.

use crate::error::Result;
use crate::optimizer::AdamW;
use crate::stage::Losses;
use std::ops::Range;
use tch::{Device, Tensor};
use thanos_c10d::{GradientBuckets, ProcessGroup};

/// Four hide three quarters of the time of the sum; more are as many more collectives.
const MAX_BUCKETS: usize = 4;
/// A sum of less takes as long as its messages' way.
const MIN_BUCKET_BYTES: usize = 1 << 20;

pub(super) enum Gradients<'a> {
    AfterBackward(&'a ProcessGroup),
    /// Over Gloo, from CPUs. On GPUs this has not been tried yet.
    WhileBackward(GradientBuckets<'a>),
}

impl<'a> Gradients<'a> {
    pub(super) fn new(optimizer: &AdamW, group: &'a ProcessGroup) -> Result<Self> {
        let parameters: Vec<&Tensor> = optimizer.in_layout().collect();
        let bytes: Vec<usize> = parameters
            .iter()
            .map(|parameter| parameter.numel() * parameter.kind().elt_size_in_bytes())
            .collect();
        let ends = bucket_ends(&bytes);
        let is_on_cpu = parameters.iter().all(|parameter| parameter.device() == Device::Cpu);
        if group.size() == 1 || group.gpu().is_some() || !is_on_cpu || ends.len() < 2 {
            return Ok(Self::AfterBackward(group));
        }
        Ok(Self::WhileBackward(GradientBuckets::new(group, &parameters, &ends)?))
    }

    /// The backward pass of this rank's losses. Returns its gradients in the optimiser's layout,
    /// [parameters], for [`Self::sum`].
    pub(super) fn backward(&self, losses: &Losses, optimizer: &AdamW) -> Result<Tensor> {
        optimizer.zero_grad()?;
        match self {
            Self::AfterBackward(_) => {
                losses.backward()?;
                Ok(optimizer.flat_gradient())
            }
            Self::WhileBackward(buckets) => {
                buckets.begin()?;
                losses.backward()?;
                Ok(buckets.row())
            }
        }
    }

    /// The sum over the ranks of what [`Self::backward`] or a recording of it has returned.
    pub(super) fn sum(&self, gradient: &Tensor) -> Result<Tensor> {
        let mut sum = gradient.shallow_clone();
        match self {
            Self::AfterBackward(group) => group.all_reduce(&mut sum)?,
            Self::WhileBackward(buckets) => buckets.finish()?,
        }
        Ok(sum)
    }
}

/// Before which parameter each bucket ends, of parameters of so many bytes.
fn bucket_ends(bytes: &[usize]) -> Vec<usize> {
    let total: usize = bytes.iter().sum();
    let enough = total.div_ceil(MAX_BUCKETS).max(MIN_BUCKET_BYTES);
    let mut ends = Vec::new();
    let mut open: Range<usize> = 0..0;
    for (parameter, bytes) in bytes.iter().enumerate() {
        open.end += bytes;
        // What is left after the last whole bucket belongs to it.
        if open.len() >= enough && total - open.end >= enough {
            ends.push(parameter + 1);
            open.start = open.end;
        }
    }
    if !bytes.is_empty() {
        ends.push(bytes.len());
    }
    ends
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_few_and_large() {
        const MIB: usize = 1 << 20;
        assert!(bucket_ends(&[]).is_empty());
        assert_eq!(bucket_ends(&[100, 200]), [2]);
        assert_eq!(bucket_ends(&[MIB, MIB - 1]), [2]);
        assert_eq!(bucket_ends(&[MIB, MIB]), [1, 2]);
        assert_eq!(bucket_ends(&[MIB; 100]), [25, 50, 75, 100]);
        assert_eq!(bucket_ends(&[90 * MIB, MIB, MIB]), [3]);
        assert_eq!(bucket_ends(&[MIB, MIB, 90 * MIB, 10]), [4]);
    }
}
