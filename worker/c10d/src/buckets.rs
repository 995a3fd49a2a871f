//! `GradientBuckets`: gradients are summed over the ranks in parts, while the backward pass makes
//! the others.

use crate::error::{Error, check};
use crate::group::{ProcessGroup, tensor_ptr};
use crate::raw;
use std::ffi::c_void;
use std::marker::PhantomData;
use std::ptr;
use tch::{Kind, Tensor};

/// Sums the gradients of a model's parameters over a Gloo group, bucket by bucket. While it lives,
/// a backward pass between [`Self::begin`] and [`Self::finish`] copies each gradient as it is made.
pub struct GradientBuckets<'a> {
    raw: *mut raw::Buckets,
    row: Tensor,
    group: PhantomData<&'a ProcessGroup>,
}

impl<'a> GradientBuckets<'a> {
    /// For parameters of one dtype on the CPU, in this order; bucket b ends before parameter
    /// `ends[b]`, the last with the last one. All ranks must have the same buckets.
    ///
    /// # Errors
    /// If libtorch refuses.
    ///
    /// # Panics
    /// If `ends` do not rise up to the number of parameters.
    pub fn new(
        group: &'a ProcessGroup,
        parameters: &[&Tensor],
        ends: &[usize],
    ) -> Result<Self, Error> {
        assert!(ends.is_sorted_by(|one, next| one < next), "{ends:?}");
        assert_eq!(ends.last(), Some(&parameters.len()));
        let kind = parameters.first().map_or(Kind::Float, |parameter| parameter.kind());
        let elements: usize = parameters.iter().map(|parameter| parameter.numel()).sum();
        let row = Tensor::zeros([elements as i64], (kind, tch::Device::Cpu));
        let pointers: Vec<*mut c_void> = parameters.iter().map(|each| tensor_ptr(each)).collect();
        let mut raw = ptr::null_mut();
        // SAFETY: all tensors and `raw` live through the call; the shim takes references of its
        // own to tensors and group.
        check("buckets", unsafe {
            raw::thanos_buckets_create(
                group.raw(),
                pointers.len(),
                pointers.as_ptr(),
                tensor_ptr(&row),
                ends.len(),
                ends.as_ptr(),
                &raw mut raw,
            )
        })?;
        Ok(Self { raw, row, group: PhantomData })
    }

    /// Call before each backward pass.
    ///
    /// # Errors
    /// None that is expected.
    pub fn begin(&self) -> Result<(), Error> {
        // SAFETY: the buckets are alive.
        check("buckets", unsafe { raw::thanos_buckets_begin(self.raw) })
    }

    /// Call after it: returns when all gradients are summed.
    ///
    /// # Errors
    /// A peer that is lost.
    pub fn finish(&self) -> Result<(), Error> {
        // SAFETY: the buckets are alive.
        check("all_reduce", unsafe { raw::thanos_buckets_finish(self.raw) })
    }

    /// The sums after [`Self::finish`], one after the other, [elements of all parameters], zeros
    /// where there was no gradient. It is the same memory in each step.
    pub fn row(&self) -> Tensor {
        self.row.shallow_clone()
    }
}

impl Drop for GradientBuckets<'_> {
    fn drop(&mut self) {
        // SAFETY: made by `new`, freed once.
        unsafe { raw::thanos_buckets_free(self.raw) }
    }
}
