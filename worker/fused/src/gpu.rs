//! Kernels of GPUs: the branches in bfloat16, masks, and views. They take what the program was
//! built for and the GPU has memory for; [`is_available`] says whether there are any. The same
//! kernels run on the CPU, slowly, for tests.

use crate::calls::{AttentionShape, Error, check, pointer, result};
use crate::draws::{Draws, GROUP};
use crate::products::Products;
use crate::raw;
use std::sync::{Once, OnceLock};
use tch::{Device, Kind, Tensor};

/// Widths of a head that the kernels are compiled for.
const HEAD_WIDTHS: [i64; 3] = [16, 32, 64];
/// Channels of an image that a view can have.
pub const MAX_CHANNELS: usize = 3;
/// 32-bit words of [`ViewParameters`].
pub const VIEW_WORDS: usize = 14;

/// Whether this program has kernels for the current GPU.
pub fn is_available() -> bool {
    shared_bytes() > 0
}

/// Most shared memory of a block on this process's GPU, in bytes; 0 where kernels cannot run.
fn shared_bytes() -> i64 {
    static BYTES: OnceLock<i64> = OnceLock::new();
    if let Some(bytes) = BYTES.get() {
        return *bytes;
    }
    let mut bytes = 0;
    // SAFETY: a number that lives through the call.
    match check("shared_bytes", unsafe { raw::thanos_gpu_shared_bytes(&raw mut bytes) }) {
        Ok(()) => *BYTES.get_or_init(|| bytes),
        Err(error) => {
            static REPORTED: Once = Once::new();
            REPORTED.call_once(|| eprintln!("GPU kernels are not used: {error}"));
            0
        }
    }
}

pub(crate) fn takes_masks((kind, device): (Kind, Device)) -> bool {
    device.is_cuda() && kind == Kind::Float && is_available()
}

fn is_for_kernels(x: &Tensor, products: Products) -> bool {
    x.device().is_cuda() && x.kind() == Kind::Float && products == Products::Bfloat16
}

pub(crate) fn takes_attention(x: &Tensor, heads: i64, queries: i64, products: Products) -> bool {
    if !is_for_kernels(x, products) || !fits_attention(&x.size(), heads, queries) {
        return false;
    }
    let (t, head) = (x.size()[1], x.size()[2] / heads);
    // SAFETY: a function of three numbers.
    let bytes = unsafe { raw::thanos_gpu_attention_bytes(t, queries, head) };
    bytes <= shared_bytes()
}

/// Whether the sizes are those of the kernels: rows are whole groups of random numbers.
pub(crate) fn fits_attention(x: &[i64], heads: i64, queries: i64) -> bool {
    let (t, d, limits) = (x[1], x[2], limits());
    d % GROUP == 0
        && d <= limits.width
        && t <= limits.tokens
        && queries <= t
        && HEAD_WIDTHS.contains(&(d / heads))
}

/// `m`: hidden features.
pub(crate) fn takes_feed_forward(x: &Tensor, m: i64, products: Products) -> bool {
    is_for_kernels(x, products) && fits_feed_forward(&x.size(), m) && is_available()
}

/// Whether the sizes are those of the kernels.
pub(crate) fn fits_feed_forward(x: &[i64], m: i64) -> bool {
    x[2] % GROUP == 0 && m % GROUP == 0 && x[2] <= limits().width
}

/// The largest sizes of the kernels.
struct Limits {
    width: i64,
    tokens: i64,
}

fn limits() -> Limits {
    let mut limits = [0; 2];
    // SAFETY: it writes two numbers.
    unsafe { raw::thanos_gpu_limits(&raw mut limits) };
    let [width, tokens] = limits;
    Limits { width, tokens }
}

/// A mask [n, elements] on a device, of the site and the share kept of `drop.output`.
pub(crate) fn mask(
    draws: &Draws,
    elements: i64,
    device: Device,
    drop: &raw::Drop,
) -> Result<Tensor, Error> {
    let [key, rows] = draws_of(Some(draws), device);
    let tensors = [&key, &rows].map(pointer);
    result("mask", |out| {
        // SAFETY: two pointers to tensors that live through the call, as `drop` and `out` do.
        unsafe { raw::thanos_gpu_mask(tensors.as_ptr(), elements, drop, out) }
    })
}

/// `tensors`: x, weight and bias of the norm, weight of q, k and v.
pub(crate) fn attention(
    tensors: [&Tensor; 4],
    shape: AttentionShape,
    eps: f64,
    draws: Option<&Draws>,
    drop: &raw::Drop,
) -> Result<Tensor, Error> {
    let AttentionShape { heads, queries } = shape;
    let [x, weight, bias, qkv] = tensors;
    let [key, rows] = draws_of(draws, x.device());
    let tensors = [x, weight, bias, qkv, &key, &rows].map(pointer);
    result("attention", |out| {
        // SAFETY: six pointers to tensors that live through the call, as `drop` and `out` do.
        unsafe { raw::thanos_gpu_attention(tensors.as_ptr(), heads, queries, eps, drop, out) }
    })
}

/// `tensors`: x, weight and bias of the norm, of the first and of the second layer.
pub(crate) fn feed_forward(
    tensors: [&Tensor; 7],
    eps: f64,
    draws: Option<&Draws>,
    drop: &raw::Drop,
) -> Result<Tensor, Error> {
    let [x, weight, bias, input, input_bias, output, output_bias] = tensors;
    let [key, rows] = draws_of(draws, x.device());
    let tensors =
        [x, weight, bias, input, input_bias, output, output_bias, &key, &rows].map(pointer);
    result("feed_forward", |out| {
        // SAFETY: nine pointers to tensors that live through the call, as `drop` and `out` do.
        unsafe { raw::thanos_gpu_feed_forward(tensors.as_ptr(), eps, drop, out) }
    })
}

/// Key and rows where the kernel runs; without draws they are not read.
fn draws_of(draws: Option<&Draws>, device: Device) -> [Tensor; 2] {
    match draws {
        Some(draws) => [draws.key_tensor().to_device(device), draws.rows().to_device(device)],
        None => [Tensor::new(), Tensor::new()],
    }
}

/// What chance decided about a view, as the kernel reads it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ViewParameters {
    pub top: i32,
    pub left: i32,
    pub height: i32,
    pub width: i32,
    pub flip: i32,
    pub gray: i32,
    /// In the order in which they act: 0 for none, 1 brightness, 2 contrast, 3 saturation, 4 hue.
    pub kinds: [i32; 4],
    pub amounts: [f32; 4],
}

impl ViewParameters {
    /// The words of a row of the tensor that [`views`] takes.
    pub fn words(&self) -> [i32; VIEW_WORDS] {
        let [k0, k1, k2, k3] = self.kinds;
        let [a0, a1, a2, a3] = self.amounts.map(|amount| amount.to_bits() as i32);
        let Self { top, left, height, width, flip, gray, .. } = *self;
        [top, left, height, width, flip, gray, k0, k1, k2, k3, a0, a1, a2, a3]
    }
}

/// By channel, pixels in [0, 1] become pixel * scale + shift.
#[derive(Clone, Copy, Debug)]
pub struct Normalization<'a> {
    pub scale: &'a [f32],
    pub shift: &'a [f32],
}

/// Whether [`views`] makes views of these images, [N, S, S, C].
pub fn takes_views(images: &Tensor) -> bool {
    let size = images.size();
    images.device().is_cuda()
        && size[3] <= MAX_CHANNELS as i64
        // SAFETY: a function of a number.
        && unsafe { raw::thanos_gpu_view_bytes(size[1] * size[2] * size[3]) } <= shared_bytes()
}

/// Writes views to `out` [n, C, S, S] f32. View i is of image `rows[i]`, [n] i64, of `images` [N,
/// S, S, C] u8, by `parameters[i]`, [n, 14] i32 as [`ViewParameters::words`]; then pixels are
/// normalized.
///
/// Rows and crops that are not within the images read other memory: they are the caller's to check.
///
/// # Errors
/// If shapes do not fit, or tensors are on several devices.
pub fn views(
    images: &Tensor,
    rows: &Tensor,
    parameters: &Tensor,
    normalization: Normalization<'_>,
    out: &mut Tensor,
) -> Result<(), Error> {
    let Normalization { scale, shift } = normalization;
    let (size, n) = (images.size(), rows.size()[0]);
    let [_, side, _, channels] = size[..] else { return Err(misfit(&size)) };
    let fits = size[1] == size[2]
        && [rows, parameters, out].iter().all(|tensor| tensor.device() == images.device())
        && parameters.size() == [n, VIEW_WORDS as i64]
        && out.size() == [n, channels, side, side]
        && channels as usize <= MAX_CHANNELS
        && [scale.len(), shift.len()] == [channels as usize; 2]
        && [images.kind(), rows.kind(), parameters.kind(), out.kind()]
            == [Kind::Uint8, Kind::Int64, Kind::Int, Kind::Float]
        && [images, rows, parameters, out].iter().all(|tensor| tensor.is_contiguous());
    if !fits {
        return Err(misfit(&size));
    }
    let tensors = [images, rows, parameters, out].map(pointer);
    // SAFETY: four pointers to tensors that are borrowed for the call, of the kinds and sizes that
    // C++ reads and writes; `scale` and `shift` have a number for each channel.
    check("views", unsafe {
        raw::thanos_gpu_views(tensors.as_ptr(), scale.as_ptr(), shift.as_ptr())
    })
}

fn misfit(images: &[i64]) -> Error {
    Error {
        operation: "views",
        message: format!("rows, parameters or output do not fit images {images:?}"),
    }
}
