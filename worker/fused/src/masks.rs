//! Dropout masks, by the kernels of CPUs or GPUs, or by tensor operations where there are none.

use crate::calls::{self, Error};
use crate::draws::{Draws, Kept, has_kernels, in_groups, keep_everything, numbers};
use crate::{gpu, raw};
use tch::{Device, Kind, Tensor};

/// The factors of a dropout mask, [n, elements]: 1 / probability with this probability, else 0.
///
/// # Errors
/// If there is no memory for it.
pub fn keep_mask(
    draws: &Draws,
    site: u32,
    elements: i64,
    kept: Kept,
    like: (Kind, Device),
) -> Result<Tensor, Error> {
    let drop = raw::Drop { site: draws.site(site), output: kept.share(), ..keep_everything() };
    if gpu::takes_masks(like) {
        return gpu::mask(draws, elements, like.1, &drop);
    }
    if !has_kernels(like) {
        return Ok(plain_mask(draws, site, elements, kept, like));
    }
    calls::mask(draws.rows(), elements, like.0, &raw::Drop { key: draws.key(), ..drop })
}

/// The same by tensor operations, on any device.
pub(crate) fn plain_mask(
    draws: &Draws,
    site: u32,
    elements: i64,
    kept: Kept,
    options: (Kind, Device),
) -> Tensor {
    let (kind, device) = options;
    let numbers = numbers(draws, site, in_groups(elements), device).narrow(1, 0, elements);
    numbers.lt(i64::from(kept.share())).to_kind(kind) / kept.probability()
}
