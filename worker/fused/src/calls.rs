//! Calls of C++, made safe: pointers of tensors, errors, results.

use crate::products::Products;
use crate::raw;
use std::ffi::{CStr, c_char, c_void};
use std::ptr;
use tch::{Kind, Tensor};

/// What libtorch said when an operation failed: shapes that do not fit, or no memory.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{operation}: {message}")]
pub struct Error {
    pub operation: &'static str,
    pub message: String,
}

/// Forgets the gradients of parameters: the next backward pass makes them, instead of adding to
/// zeros.
///
/// # Errors
/// If libtorch refuses, as for a tensor that is not a leaf.
pub fn drop_gradients<'a>(parameters: impl IntoIterator<Item = &'a Tensor>) -> Result<(), Error> {
    let pointers: Vec<*mut c_void> = parameters.into_iter().map(pointer).collect();
    // SAFETY: an array of so many pointers to tensors that are borrowed for the call.
    check("drop_gradients", unsafe {
        raw::thanos_drop_gradients(pointers.len(), pointers.as_ptr())
    })
}

/// A mask [n, elements] on the CPU, of the key in `drop` and of `rows` [n] i64.
pub(crate) fn mask(
    rows: &Tensor,
    elements: i64,
    kind: Kind,
    drop: &raw::Drop,
) -> Result<Tensor, Error> {
    result("mask", |out| {
        // SAFETY: the tensor, `drop` and `out` live through the call.
        unsafe { raw::thanos_mask(pointer(rows), elements, kind == Kind::Double, drop, out) }
    })
}

/// The first random numbers of one row and site; `elements` is a multiple of a group's.
#[cfg(test)]
pub(crate) fn draw(drop: &raw::Drop, row: u64, elements: usize) -> Result<Vec<u16>, Error> {
    let mut numbers = vec![0; elements];
    // SAFETY: `numbers` has so many elements.
    check("draw", unsafe { raw::thanos_draw(drop, row, elements as i64, numbers.as_mut_ptr()) })?;
    Ok(numbers)
}

/// Heads, and queries: the first tokens, which attend to all.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AttentionShape {
    pub(crate) heads: i64,
    pub(crate) queries: i64,
}

/// `tensors`: x, weight and bias of the norm, weight of q, k and v, rows.
pub(crate) fn attention(
    tensors: [&Tensor; 5],
    shape: AttentionShape,
    eps: f64,
    products: Products,
    drop: &raw::Drop,
) -> Result<Tensor, Error> {
    let AttentionShape { heads, queries } = shape;
    let tensors = tensors.map(pointer);
    let bfloat16 = products == Products::Bfloat16;
    result("attention", |out| {
        // SAFETY: five pointers to tensors that are borrowed for the call; `drop` and `out` live
        // through it.
        unsafe { raw::thanos_attention(tensors.as_ptr(), heads, queries, eps, bfloat16, drop, out) }
    })
}

/// `tensors`: x, weight and bias of the norm, of the first and of the second layer, rows.
pub(crate) fn feed_forward(
    tensors: [&Tensor; 8],
    (eps, products): (f64, Products),
    drop: &raw::Drop,
) -> Result<Tensor, Error> {
    let tensors = tensors.map(pointer);
    let bfloat16 = products == Products::Bfloat16;
    result("feed_forward", |out| {
        // SAFETY: eight pointers to tensors that are borrowed for the call; `drop` and `out` live
        // through it.
        unsafe { raw::thanos_feed_forward(tensors.as_ptr(), eps, bfloat16, drop, out) }
    })
}

/// x [n, C, H, W] again, for the norm, and its moments.
pub(crate) fn batch_moments(x: &Tensor) -> Result<(Tensor, Tensor), Error> {
    let mut out: [*mut c_void; 2] = [ptr::null_mut(); 2];
    // SAFETY: the tensor and `out` live through the call.
    check("batch_moments", unsafe { raw::thanos_batch_moments(pointer(x), out.as_mut_ptr()) })?;
    // SAFETY: on success C++ has put two new `at::Tensor` there, which tch frees.
    Ok(unsafe { (Tensor::from_ptr(out[0].cast()), Tensor::from_ptr(out[1].cast())) })
}

/// `tensors`: x and its moments over all ranks, weight, bias, running mean and variance.
pub(crate) fn batch_norm(
    tensors: [&Tensor; 6],
    residual: Option<&Tensor>,
    (eps, momentum): (f64, f64),
    relu: bool,
) -> Result<Tensor, Error> {
    let [x, moments, weight, bias, mean, variance] = tensors.map(pointer);
    let tensors =
        [x, moments, weight, bias, mean, variance, residual.map_or(ptr::null_mut(), pointer)];
    result("batch_norm", |out| {
        // SAFETY: seven pointers to tensors that are borrowed for the call, the last of which may
        // be null; `out` lives through it.
        unsafe { raw::thanos_batch_norm(tensors.as_ptr(), eps, momentum, relu, out) }
    })
}

pub(crate) fn pointer(tensor: &Tensor) -> *mut c_void {
    tensor.as_ptr().cast_mut().cast()
}

pub(crate) fn result(
    operation: &'static str,
    call: impl FnOnce(*mut *mut c_void) -> *mut c_char,
) -> Result<Tensor, Error> {
    let mut out: *mut c_void = ptr::null_mut();
    check(operation, call(&raw mut out))?;
    // SAFETY: on success C++ has put a new `at::Tensor` there, which tch frees.
    Ok(unsafe { Tensor::from_ptr(out.cast()) })
}

pub(crate) fn check(operation: &'static str, message: *mut c_char) -> Result<(), Error> {
    if message.is_null() {
        return Ok(());
    }
    // SAFETY: C++ returns null or a NUL-terminated string from malloc that is ours.
    let text = unsafe { CStr::from_ptr(message) }.to_string_lossy().into_owned();
    // SAFETY: as above; not used again.
    unsafe { raw::free(message.cast()) };
    Err(Error { operation, message: text })
}
