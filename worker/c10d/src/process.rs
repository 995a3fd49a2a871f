//! What concerns the whole process: two things of libtorch and glibc that tch does not reach and a
//! fast step needs, and the count of its collectives.

use crate::error::{Error, check};
use crate::group::tensor_ptr;
use crate::raw;
use std::ffi::c_void;
use std::ptr;
use std::time::Duration;
use tch::Tensor;

/// The numbers of an AdamW update.
#[derive(Clone, Copy, Debug)]
pub struct AdamWRates<'a> {
    pub learning_rate: LearningRate<'a>,
    pub beta1: f64,
    pub beta2: f64,
    pub weight_decay: f64,
    pub eps: f64,
}

/// A learning rate as the update reads it.
#[derive(Clone, Copy, Debug)]
pub enum LearningRate<'a> {
    Number(f64),
    /// Float scalar on the parameters' device, which a recorded update reads each time. CUDA only.
    Tensor(&'a Tensor),
}

/// One parameter of an AdamW update, with its state; all five of one device, the first four of one
/// shape.
pub struct AdamWParameter<'a> {
    pub parameter: &'a Tensor,
    pub gradient: &'a Tensor,
    pub mean: &'a Tensor,
    pub square: &'a Tensor,
    /// Float scalar: the number of this update, from 1.
    pub step: &'a Tensor,
}

/// One AdamW update in place, by the kernel of `torch.optim.AdamW(fused=True)`.
pub fn fused_adamw(parameters: &[AdamWParameter<'_>], rates: AdamWRates<'_>) -> Result<(), Error> {
    let list =
        |of: fn(&AdamWParameter<'_>) -> *mut c_void| parameters.iter().map(of).collect::<Vec<_>>();
    let (weights, gradients) =
        (list(|p| tensor_ptr(p.parameter)), list(|p| tensor_ptr(p.gradient)));
    let (means, squares) = (list(|p| tensor_ptr(p.mean)), list(|p| tensor_ptr(p.square)));
    let steps = list(|p| tensor_ptr(p.step));
    let (learning_rate, on_device) = match rates.learning_rate {
        LearningRate::Number(rate) => (rate, ptr::null_mut()),
        LearningRate::Tensor(rate) => (0.0, tensor_ptr(rate)),
    };
    let rates = [learning_rate, rates.beta1, rates.beta2, rates.weight_decay, rates.eps];
    // SAFETY: five arrays of `count` pointers to tensors that are borrowed for the call, one more
    // or null, five numbers.
    check("fused_adamw", unsafe {
        raw::thanos_fused_adamw(
            parameters.len(),
            weights.as_ptr(),
            gradients.as_ptr(),
            means.as_ptr(),
            squares.as_ptr(),
            steps.as_ptr(),
            on_device,
            rates.as_ptr(),
        )
    })
}

/// Collectives of this process since its start, in all groups, backward passes included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collectives {
    pub entered: u64,
    /// Returned from, or failed; fewer than `entered` while one is waited in.
    pub left: u64,
    /// Time spent in them.
    pub waited: Duration,
}

/// From any thread, also while a collective waits.
pub fn collectives() -> Collectives {
    let (mut entered, mut left, mut waited_us) = (0, 0, 0);
    // SAFETY: reads three atomics into numbers that live through the call.
    unsafe { raw::thanos_collectives(&raw mut entered, &raw mut left, &raw mut waited_us) };
    Collectives { entered, left, waited: Duration::from_micros(waited_us) }
}

/// Ends this process now. Other threads may be in the middle of an operation: libtorch's statics,
/// which an exit would destroy under them, are left alone.
pub fn exit_now(code: u8) -> ! {
    // SAFETY: it ends the process, and touches nothing.
    unsafe { raw::_exit(code.into()) }
}

/// Keeps the memory that a step frees for the next step, instead of giving it back to the kernel.
/// Process-wide.
pub fn keep_freed_memory() {
    // SAFETY: mallopt takes a lock and sets numbers.
    unsafe { raw::thanos_keep_freed_memory() }
}
