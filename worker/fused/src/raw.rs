//! The C functions of `kernels/operations.cpp` and `kernels/gpu/calls.cpp`, as they are. Nothing
//! here is safe; nothing here decides.

use std::ffi::{c_char, c_void};

/// `thanos::Drop`.
#[repr(C)]
pub(crate) struct Drop {
    pub(crate) key: u64,
    pub(crate) site: u32,
    /// Of 65536, each.
    pub(crate) query: u32,
    pub(crate) weights: u32,
    pub(crate) output: u32,
    pub(crate) hidden: u32,
    pub(crate) depth: u32,
}

unsafe extern "C" {
    pub(crate) fn thanos_mask(
        rows: *mut c_void,
        elements: i64,
        doubles: bool,
        drop: *const Drop,
        out: *mut *mut c_void,
    ) -> *mut c_char;
    #[cfg(test)]
    pub(crate) fn thanos_draw(
        drop: *const Drop,
        row: u64,
        elements: i64,
        out: *mut u16,
    ) -> *mut c_char;
    pub(crate) fn thanos_attention(
        tensors: *const *mut c_void,
        heads: i64,
        queries: i64,
        eps: f64,
        bfloat16: bool,
        drop: *const Drop,
        out: *mut *mut c_void,
    ) -> *mut c_char;
    pub(crate) fn thanos_feed_forward(
        tensors: *const *mut c_void,
        eps: f64,
        bfloat16: bool,
        drop: *const Drop,
        out: *mut *mut c_void,
    ) -> *mut c_char;
    pub(crate) fn thanos_batch_moments(x: *mut c_void, out: *mut *mut c_void) -> *mut c_char;
    pub(crate) fn thanos_batch_norm(
        tensors: *const *mut c_void,
        eps: f64,
        momentum: f64,
        relu: bool,
        out: *mut *mut c_void,
    ) -> *mut c_char;
    pub(crate) fn thanos_gpu_shared_bytes(bytes: *mut i64) -> *mut c_char;
    pub(crate) fn thanos_gpu_attention_bytes(tokens: i64, queries: i64, head: i64) -> i64;
    pub(crate) fn thanos_gpu_view_bytes(pixels: i64) -> i64;
    pub(crate) fn thanos_gpu_limits(limits: *mut [i64; 2]);
    pub(crate) fn thanos_gpu_mask(
        tensors: *const *mut c_void,
        elements: i64,
        drop: *const Drop,
        out: *mut *mut c_void,
    ) -> *mut c_char;
    pub(crate) fn thanos_gpu_attention(
        tensors: *const *mut c_void,
        heads: i64,
        queries: i64,
        eps: f64,
        drop: *const Drop,
        out: *mut *mut c_void,
    ) -> *mut c_char;
    pub(crate) fn thanos_gpu_feed_forward(
        tensors: *const *mut c_void,
        eps: f64,
        drop: *const Drop,
        out: *mut *mut c_void,
    ) -> *mut c_char;
    pub(crate) fn thanos_gpu_views(
        tensors: *const *mut c_void,
        scale: *const f32,
        shift: *const f32,
    ) -> *mut c_char;
    pub(crate) fn thanos_drop_gradients(
        count: usize,
        parameters: *const *mut c_void,
    ) -> *mut c_char;
    pub(crate) fn free(pointer: *mut c_void);
}
