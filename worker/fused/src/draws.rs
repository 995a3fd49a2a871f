//! Random numbers that are functions of a key, a row, a site and an element: Philox4x32-10 (Salmon
//! et al., SC 2011).
//!
//! The key is 64 bits of the seed, the stage and the step; a row stands for a sample and a view, a
//! site for a place in the network. So a mask does not depend on which worker makes it, on how a
//! batch is shared, or on what was drawn before.
//!
//! An element has 16 bits of the generator's output, which halves its cost: a rate is rounded to a
//! multiple of 1/65536, and what is kept is scaled by the inverse of the rounded probability, so
//! that the expectation is exact. Elements come in groups of 128, from 16 counters (16 group +
//! lane, site, row's low word, row's high word); element e of a group has 16 bits of word e / 32 of
//! lane e % 16, from bit 16 x (e / 16 % 2) on.

use crate::raw;
use tch::{Device, Kind, Tensor};

/// Elements that are drawn together.
pub(crate) const GROUP: i64 = 128;
const COUNTERS: i64 = 16;
const WORD: i64 = 0xffff_ffff;

/// What the random numbers of one forward pass are functions of, besides the site and the element.
/// On a GPU the kernels read it there.
#[derive(Debug)]
pub struct Draws {
    /// [1] i64, the bits of the key.
    key: Tensor,
    /// [n] i64, of the images of the pass; where the key is.
    rows: Tensor,
    /// The site of a network's first one.
    first_site: u32,
}

/// Sites of one network.
const NETWORK_SITES: u32 = 1 << 16;

impl Draws {
    /// For a batch with so many views of each sample, flattened as (sample, view). `key` is of the
    /// seed, the stage and the step.
    pub fn new(key: u64, samples: &[u64], views: u64) -> Self {
        Self::from_tensors(
            Tensor::from_slice(&[key as i64]),
            Tensor::from_slice(&rows_of(samples, views)),
        )
    }

    /// From a key [1] and rows [n], i64, both on the device of the images.
    pub fn from_tensors(key: Tensor, rows: Tensor) -> Self {
        Self { key, rows, first_site: 0 }
    }

    /// The same on another device.
    #[must_use]
    pub fn to_device(&self, device: Device) -> Self {
        Self {
            key: self.key.to_device(device),
            rows: self.rows.to_device(device),
            first_site: self.first_site,
        }
    }

    pub(crate) fn rows(&self) -> &Tensor {
        &self.rows
    }

    pub(crate) fn key_tensor(&self) -> &Tensor {
        &self.key
    }

    /// For the network of this number among those that the same images go through.
    #[must_use]
    pub fn of_network(&self, network: u32) -> Self {
        let first_site = network.wrapping_mul(NETWORK_SITES);
        Self { key: self.key.shallow_clone(), rows: self.rows.shallow_clone(), first_site }
    }

    pub(crate) fn site(&self, site: u32) -> u32 {
        self.first_site.wrapping_add(site)
    }

    /// On a GPU this waits for it.
    pub(crate) fn key(&self) -> u64 {
        self.key.int64_value(&[0]) as u64
    }
}

/// The row of each of so many views of each sample.
pub fn rows_of(samples: &[u64], views: u64) -> Vec<i64> {
    let rows = |sample: u64| {
        (0..views).map(move |view| sample.wrapping_mul(views).wrapping_add(view) as i64)
    };
    samples.iter().copied().flat_map(rows).collect()
}

/// A probability of being kept, as a share of 65536.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept(u32);

impl Kept {
    pub const EVERYTHING: Self = Self(1 << 16);

    /// For a rate of being dropped, in [0, 1).
    pub fn of_rate(rate: f64) -> Self {
        let share = ((1.0 - rate) * f64::from(Self::EVERYTHING.0)).round();
        Self((share as u32).clamp(1, Self::EVERYTHING.0))
    }

    pub fn probability(self) -> f64 {
        f64::from(self.0) / f64::from(Self::EVERYTHING.0)
    }

    pub(crate) fn share(self) -> u32 {
        self.0
    }
}

/// Elements in whole groups.
pub(crate) fn in_groups(elements: i64) -> i64 {
    (elements + GROUP - 1) / GROUP * GROUP
}

/// Whether the kernels take tensors of this kind on this device.
pub(crate) fn has_kernels((kind, device): (Kind, Device)) -> bool {
    device == Device::Cpu && [Kind::Float, Kind::Double].contains(&kind)
}

/// For an operation that drops nothing.
pub(crate) fn keep_everything() -> raw::Drop {
    let all = Kept::EVERYTHING.share();
    raw::Drop { key: 0, site: 0, query: all, weights: all, output: all, hidden: all, depth: all }
}

/// The 16-bit numbers of a site, [n, elements] i64, a multiple of a group's.
pub(crate) fn numbers(draws: &Draws, site: u32, elements: i64, device: Device) -> Tensor {
    let _no_graph = tch::no_grad_guard();
    let (n, groups) = (draws.rows.size()[0], elements / GROUP);
    let rows = draws.rows.to_device(device).reshape([n, 1]);
    let lanes = Tensor::arange(groups * COUNTERS, (Kind::Int64, device)).reshape([1, -1]);
    let site = Tensor::full([1, 1], i64::from(draws.site(site)), (Kind::Int64, device));
    let high_row = rows.bitwise_right_shift_tensor_scalar(32).bitwise_and(WORD);
    let counter = [lanes, site, rows.bitwise_and(WORD), high_row];
    let words = philox(counter, draws.key()); // 4 x [n, 16 groups]
    let parts: Vec<Tensor> = words
        .iter()
        .flat_map(|word| {
            [0, 16].map(|bits| word.bitwise_right_shift_tensor_scalar(bits).bitwise_and(0xffff))
        })
        .map(|part| part.reshape([n, groups, COUNTERS]))
        .collect();
    Tensor::stack(&parts, 2).reshape([n, elements]) // [n, groups, 8, 16]
}

/// Philox4x32-10 of counters whose words are i64 below 2^32, of any shapes that broadcast.
pub(crate) fn philox(counter: [Tensor; 4], key: u64) -> [Tensor; 4] {
    const MULTIPLY: [i64; 2] = [0xd251_1f53, 0xcd9e_8d57];
    const WEYL: [u32; 2] = [0x9e37_79b9, 0xbb67_ae85];
    let mut keys = [key as u32, (key >> 32) as u32];
    let [mut first, mut second, mut third, mut fourth] = counter;
    for _ in 0..10 {
        // A product of two 32-bit words fills all 64 bits of its i64.
        let (left, right) = (&first * MULTIPLY[0], &third * MULTIPLY[1]);
        let high =
            |product: &Tensor| product.bitwise_right_shift_tensor_scalar(32).bitwise_and(WORD);
        first = high(&right).bitwise_xor_tensor(&second).bitwise_xor(i64::from(keys[0]));
        third = high(&left).bitwise_xor_tensor(&fourth).bitwise_xor(i64::from(keys[1]));
        (second, fourth) = (right.bitwise_and(WORD), left.bitwise_and(WORD));
        keys = [keys[0].wrapping_add(WEYL[0]), keys[1].wrapping_add(WEYL[1])];
    }
    [first, second, third, fourth]
}
