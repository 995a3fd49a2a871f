//! What a piece of a program computes, for benchmarks: the operators that it dispatches, their
//! floating point operations, and, in a build with CUDA, kernels and peak memory.
//! `shim/measure.cpp` has the formulas.

use crate::error::{Error, check};
use crate::raw;
use std::ffi::{CStr, c_char};
use std::ptr;
use std::sync::{Mutex, PoisonError};

unsafe extern "C" {
    fn thanos_count_begin(handle: *mut u64) -> *mut c_char;
    fn thanos_count_end(handle: u64, operators: *mut u64, flops: *mut u64) -> *mut c_char;
    fn thanos_kernels_begin() -> *mut c_char;
    fn thanos_kernels_end(kernels: *mut u64) -> *mut c_char;
    fn thanos_cuda_reset_peak(device: i32) -> *mut c_char;
    fn thanos_cuda_peak(device: i32, bytes: *mut u64) -> *mut c_char;
    fn thanos_cuda_name(device: i32, name: *mut *mut c_char) -> *mut c_char;
}

/// What a piece of a program has computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Operators that were dispatched, without those that they are made of.
    pub operators: u64,
    /// Floating point operations of matrix products, convolutions and attention; a multiplication
    /// and an addition are two.
    pub flops: u64,
}

/// The counters are of the process.
static COUNTING: Mutex<()> = Mutex::new(());

/// Removes the callback, also when the body panics.
struct Counting(u64);

impl Counting {
    fn begin() -> Result<Self, Error> {
        let mut handle = 0;
        // SAFETY: `handle` lives through the call.
        check("count", unsafe { thanos_count_begin(&raw mut handle) })?;
        Ok(Self(handle))
    }

    fn end(&mut self) -> Result<Counted, Error> {
        let mut counted = Counted::default();
        let handle = std::mem::take(&mut self.0);
        // SAFETY: both numbers live through the call; the handle is of this thread and not used
        // again.
        check("count", unsafe {
            thanos_count_end(handle, &raw mut counted.operators, &raw mut counted.flops)
        })?;
        Ok(counted)
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        if self.0 != 0 {
            // What failed before is what the caller is sent.
            _ = self.end();
        }
    }
}

/// Runs `body` and counts what it dispatches on this thread and in its backward passes. Not to be
/// called within itself.
///
/// # Errors
/// If libtorch does not take the callback.
pub fn count<T>(body: impl FnOnce() -> T) -> Result<(T, Counted), Error> {
    let _alone = COUNTING.lock().unwrap_or_else(PoisonError::into_inner);
    let mut counting = Counting::begin()?;
    let done = body();
    Ok((done, counting.end()?))
}

/// Runs `body` and counts the kernels that this process's GPU runs for it. Other uses of the
/// profiler must not overlap.
///
/// # Errors
/// Without the feature `cuda`, and if the profiler does not start.
pub fn count_kernels<T>(body: impl FnOnce() -> T) -> Result<(T, u64), Error> {
    // SAFETY: it takes nothing.
    check("count_kernels", unsafe { thanos_kernels_begin() })?;
    let done = body();
    let mut kernels = 0;
    // SAFETY: `kernels` lives through the call.
    check("count_kernels", unsafe { thanos_kernels_end(&raw mut kernels) })?;
    Ok((done, kernels))
}

/// Resets the peak of a GPU's memory.
///
/// # Errors
/// Without the feature `cuda`, and if there is no such device.
pub fn reset_cuda_peak(device: usize) -> Result<(), Error> {
    // SAFETY: it takes a number.
    check("reset_cuda_peak", unsafe { thanos_cuda_reset_peak(device as i32) })
}

/// Bytes of a GPU's memory that this process has reserved at most since the peak was reset.
///
/// # Errors
/// As [`reset_cuda_peak`].
pub fn cuda_peak_bytes(device: usize) -> Result<u64, Error> {
    let mut bytes = 0;
    // SAFETY: `bytes` lives through the call.
    check("cuda_peak_bytes", unsafe { thanos_cuda_peak(device as i32, &raw mut bytes) })?;
    Ok(bytes)
}

/// The name of a GPU.
///
/// # Errors
/// As [`reset_cuda_peak`].
pub fn cuda_name(device: usize) -> Result<String, Error> {
    let mut name: *mut c_char = ptr::null_mut();
    // SAFETY: `name` lives through the call.
    check("cuda_name", unsafe { thanos_cuda_name(device as i32, &raw mut name) })?;
    // SAFETY: on success the shim has put a NUL-terminated string from malloc there, which is ours.
    let text = unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned();
    // SAFETY: as above; not used again.
    unsafe { raw::free(name.cast()) };
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind, Tensor};

    fn random(shape: &[i64], requires_grad: bool) -> Tensor {
        Tensor::rand(shape, (Kind::Float, Device::Cpu)).set_requires_grad(requires_grad)
    }

    fn flops(body: impl FnOnce()) -> u64 {
        count(body).expect("counted").1.flops
    }

    /// 2 m k n for each product.
    #[test]
    fn matrix_products_are_counted_once_whatever_they_are_made_of() {
        let (a, b) = (random(&[3, 5], false), random(&[5, 7], false));
        let (_, counted) = count(|| a.matmul(&b)).expect("counted");
        assert_eq!(counted, Counted { operators: 1, flops: 2 * 3 * 5 * 7 });
        let (_, counted) = count(|| (a.relu(), &a + 1.0)).expect("counted");
        assert_eq!(counted, Counted { operators: 2, flops: 0 });
        let (a, b) = (random(&[2, 4, 3, 5], false), random(&[2, 4, 5, 7], false));
        assert_eq!(flops(|| _ = a.matmul(&b)), 2 * 4 * 2 * 3 * 5 * 7);
        let sum = random(&[3, 7], false);
        assert_eq!(
            flops(|| _ = sum.addmm(&random(&[3, 5], false), &random(&[5, 7], false))),
            2 * 3 * 5 * 7
        );
        let sum = random(&[2, 3, 7], false);
        let product =
            || sum.baddbmm(&random(&[2, 3, 5], false), &random(&[2, 5, 7], false), 1.0, 1.0);
        assert_eq!(flops(|| _ = product()), 2 * 2 * 3 * 5 * 7);
    }

    /// Forward, the gradient of the weight and that of the input are 2 x 4 x 6 x 5 each; an input
    /// without a gradient saves one.
    #[test]
    fn a_linear_layer_costs_three_products() {
        let (weight, bias) = (random(&[5, 6], true), random(&[5], true));
        for (needs_gradient, products) in [(true, 3), (false, 2)] {
            let x = random(&[4, 6], needs_gradient);
            let step = || x.linear(&weight, Some(&bias)).sum(Kind::Float).backward();
            assert_eq!(flops(step), products * 2 * 4 * 6 * 5, "{needs_gradient}");
        }
        // A sequence is flattened: 2 x 3 rows.
        let x = random(&[2, 3, 6], false);
        assert_eq!(flops(|| _ = tch::no_grad(|| x.linear(&weight, Some(&bias)))), 2 * 6 * 6 * 5);
    }

    /// 3x3 weights from 3 to 4 channels, stride 2 and padding 1: 8x8 becomes 4x4, and each of the
    /// two images costs 2 x (4 x 3 x 9) x 16. Transposed, each place of the input counts instead.
    #[test]
    fn a_convolution_costs_three_times_its_forward_pass() {
        let (x, weight) = (random(&[2, 3, 8, 8], true), random(&[4, 3, 3, 3], true));
        let forward = 2 * 2 * (4 * 3 * 9) * 16;
        let convolved = || x.conv2d(&weight, None::<&Tensor>, [2, 2], [1, 1], [1, 1], 1);
        assert_eq!(flops(|| _ = convolved()), forward);
        assert_eq!(flops(|| convolved().sum(Kind::Float).backward()), 3 * forward);
        let input = x.detach();
        let step = || {
            input
                .conv2d(&weight, None::<&Tensor>, [2, 2], [1, 1], [1, 1], 1)
                .sum(Kind::Float)
                .backward()
        };
        assert_eq!(flops(step), 2 * forward);
        let weight = random(&[3, 4, 2, 2], true);
        let forward = 2 * 2 * (3 * 4 * 4) * 64;
        let transposed =
            || x.conv_transpose2d(&weight, None::<&Tensor>, [2, 2], [0, 0], [0, 0], 1, [1, 1]);
        assert_eq!(flops(|| _ = transposed()), forward);
        assert_eq!(flops(|| transposed().sum(Kind::Float).backward()), 3 * forward);
    }

    /// Two products forward; backward five, as the fused kernel computes the scores again. 5
    /// queries, 7 keys, width 4.
    #[test]
    fn fused_attention_costs_two_products_and_five_backward() {
        let (query, key, value) =
            (random(&[2, 3, 5, 4], true), random(&[2, 3, 7, 4], true), random(&[2, 3, 7, 4], true));
        let product = 2 * 2 * 3 * 5 * 7 * 4;
        let attended = || {
            Tensor::scaled_dot_product_attention(
                &query,
                &key,
                &value,
                None::<&Tensor>,
                0.0,
                false,
                None,
                false,
            )
        };
        assert_eq!(flops(|| _ = attended()), 2 * product);
        assert_eq!(flops(|| attended().sum(Kind::Float).backward()), 7 * product);
    }

    #[test]
    fn other_threads_and_later_operators_are_not_counted() {
        let a = random(&[3, 3], false);
        let (_, counted) = count(|| {
            std::thread::spawn(|| random(&[3, 3], false).matmul(&random(&[3, 3], false)))
                .join()
                .expect("no panic")
        })
        .expect("counted");
        assert_eq!(counted, Counted::default());
        std::panic::catch_unwind(|| count(|| panic!("a body"))).expect_err("it panics");
        _ = a.matmul(&a);
        assert_eq!(count(|| ()).expect("counted").1, Counted::default());
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn without_cuda_there_are_no_kernels() {
        let error = count_kernels(|| ()).expect_err("no CUDA").to_string();
        assert!(error.contains("cargo feature `cuda`"), "{error}");
        assert!(
            cuda_name(0).is_err() && cuda_peak_bytes(0).is_err() && reset_cuda_peak(0).is_err()
        );
    }
}
