//! Which sample goes where: the split, the order of an epoch, a rank's slice of a batch, a view's
//! key. Every answer is a function of its arguments alone, so that no worker count and no restart
//! can change it.

use crate::digest::hex;
use rand_mt::Mt;
use sha2::{Digest, Sha256};
use std::ops::Range;

/// Seed of the train / validation split, the reference's.
const SPLIT_SEED: u32 = 42;

/// The official training set cut in two; entries are indices into it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split {
    pub train: Vec<u64>,
    pub validation: Vec<u64>,
}

/// Splits `len` images by `torch.randperm(len)` of a CPU generator seeded with 42: the first
/// `floor(len * (1 - validation_fraction))` are for training, the others for validation; of two
/// images or more either part has one at least.
pub fn split_train_validation(len: u64, validation_fraction: f64) -> Split {
    let train = (len as f64 * (1.0 - validation_fraction)).floor() as u64;
    let train = if len < 2 { len } else { train.clamp(1, len - 1) };
    let mut order = torch_randperm(len, SPLIT_SEED);
    let validation = order.split_off(train as usize);
    Split { train: order, validation }
}

/// Of `ids`, in their order, the first `max[class]` of each class; `fine[id]` is the class of an
/// id.
///
/// Where the ids are a drawn permutation, this draws from each class without replacement.
pub(crate) fn first_of_each_class(ids: &[u64], fine: &[i64], max: &[usize]) -> Vec<u64> {
    let mut left = max.to_vec();
    let mut take = |id: &u64| {
        let left = &mut left[fine[*id as usize] as usize];
        let taken = *left > 0;
        *left = left.saturating_sub(1);
        taken
    };
    ids.iter().copied().filter(|id| take(id)).collect()
}

/// The permutation of `len` images that the split is cut from.
pub(crate) fn permutation(len: u64) -> Vec<u64> {
    torch_randperm(len, SPLIT_SEED)
}

/// torch's CPU `randperm` for fewer than 2^32 / 20 elements (ATen/native/TensorFactories.cpp,
/// `randperm_cpu`).
fn torch_randperm(len: u64, seed: u32) -> Vec<u64> {
    let mut generator = Mt::new(seed);
    let mut order: Vec<u64> = (0..len).collect();
    for i in 0..len.saturating_sub(1) {
        let z = u64::from(generator.next_u32()) % (len - i);
        order.swap(i as usize, (i + z) as usize);
    }
    order
}

/// The order in which one epoch visits its samples.
#[derive(Clone, Debug)]
pub struct EpochOrder {
    samples: Vec<u64>,
    batch_size: u64,
    drop_last: bool,
}

impl EpochOrder {
    /// Shuffles `samples` by (seed, epoch) alone: Fisher-Yates over SplitMix64.
    pub fn new(samples: &[u64], seed: u64, epoch: u64, batch_size: u64, drop_last: bool) -> Self {
        let mut samples = samples.to_vec();
        let mut stream = SplitMix64::new(mix(mix(seed ^ 0x6f72_6465_7200) ^ epoch));
        for i in (1..samples.len()).rev() {
            samples.swap(i, stream.below(i as u64 + 1) as usize);
        }
        Self { samples, batch_size, drop_last }
    }

    /// Steps of the epoch: the last may be short unless it is dropped.
    pub fn steps(&self) -> u64 {
        steps_per_epoch(self.samples.len() as u64, self.batch_size, self.drop_last)
    }

    /// The global batch of a step of this epoch, as sample ids; empty after the last step.
    pub fn batch(&self, step_in_epoch: u64) -> &[u64] {
        if step_in_epoch >= self.steps() {
            return &[];
        }
        let from = (step_in_epoch * self.batch_size) as usize;
        let to = self.samples.len().min(from + self.batch_size as usize);
        &self.samples[from..to]
    }
}

/// Steps of an epoch over `len` samples.
pub(crate) fn steps_per_epoch(len: u64, batch_size: u64, drop_last: bool) -> u64 {
    if drop_last { len / batch_size } else { len.div_ceil(batch_size) }
}

/// Where a stage stands: `step` updates are committed, the next one is `step_in_epoch` of `epoch`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    pub step: u64,
    pub epoch: u64,
    pub step_in_epoch: u64,
}

impl Position {
    /// The position after `step` updates of epochs of `steps_per_epoch` each.
    pub fn at(step: u64, steps_per_epoch: u64) -> Self {
        Self { step, epoch: step / steps_per_epoch, step_in_epoch: step % steps_per_epoch }
    }
}

/// The steps of `range` of a stage: where each is, and its global batch, as sample ids. `order`
/// makes that of an epoch.
pub fn stage_steps(
    range: Range<u64>,
    order: impl Fn(u64) -> EpochOrder,
) -> impl Iterator<Item = (Position, Vec<u64>)> {
    let mut current = order(0);
    let (mut epoch, steps_per_epoch) = (0, current.steps());
    range.map(move |step| {
        let at = Position::at(step, steps_per_epoch);
        if at.epoch != epoch {
            (current, epoch) = (order(at.epoch), at.epoch);
        }
        (at, current.batch(at.step_in_epoch).to_vec())
    })
}

/// The contiguous slice of a global batch of `len` that a rank holds; slices differ by at most one
/// in length.
///
/// The slices of all ranks, in rank order, are the batch.
pub fn rank_slice(len: usize, rank: usize, world_size: usize) -> Range<usize> {
    len * rank / world_size..len * (rank + 1) / world_size
}

/// The ledger's digest of a step: SHA-256 over the sorted sample ids as little-endian u64, in
/// hexadecimal.
pub fn samples_sha256(samples: &[u64]) -> String {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable();
    let mut hash = Sha256::new();
    for sample in sorted {
        hash.update(sample.to_le_bytes());
    }
    hex(&hash.finalize())
}

/// The seed of one view's randomness, keyed by what the view is and by nothing else.
pub fn view_key(seed: u64, epoch: u64, sample: u64, view: u64) -> u64 {
    mix(mix(mix(mix(seed ^ 0x7669_6577_7300) ^ epoch) ^ sample) ^ view)
}

/// A stage's part of its keys: of its name alone, so that other stages change nothing in it.
pub fn stage_key(name: &str) -> u64 {
    let digest = Sha256::digest(name.as_bytes());
    digest.iter().take(8).fold(0, |key, byte| key << 8 | u64::from(*byte))
}

/// The seed of torch's generator while a stage's initial weights are drawn: equal on every rank.
pub fn init_key(seed: u64, stage: u64) -> u64 {
    mix(mix(seed ^ 0x696e_6974_0000) ^ stage)
}

/// The key of what the model draws in one step: its dropout masks are functions of this, of the
/// sample and of the view, so that neither a repeated step nor the number of workers changes them.
pub fn step_key(seed: u64, stage: u64, step: u64) -> u64 {
    mix(mix(mix(seed ^ 0x7374_6570_0000) ^ stage) ^ step)
}

/// Sebastiano Vigna's SplitMix64 (prng.di.unimi.it/splitmix64.c): its whole state is one number.
#[derive(Clone, Debug)]
pub struct SplitMix64(u64);

impl SplitMix64 {
    /// The stream of one key; streams of different keys are independent.
    pub fn new(key: u64) -> Self {
        Self(key)
    }

    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        finish(self.0)
    }

    /// Uniform in 0..bound, by Lemire's multiplication; the bias is below bound / 2^64.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u64
    }

    /// Uniform in [0, 1), a multiple of 2^-53.
    pub fn unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 * (1.0 / (1_u64 << 53) as f64)
    }

    /// Uniform in [least, most).
    pub fn uniform(&mut self, min: f64, max: f64) -> f64 {
        min + (max - min) * self.unit()
    }
}

/// One round of SplitMix64 as a hash.
fn mix(value: u64) -> u64 {
    finish(value.wrapping_add(0x9e37_79b9_7f4a_7c15))
}

fn finish(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;
    use std::path::Path;

    fn is_permutation(samples: &[u64], of: &[u64]) -> bool {
        let sorted = |samples: &[u64]| {
            let mut sorted = samples.to_vec();
            sorted.sort_unstable();
            sorted
        };
        sorted(samples) == sorted(of)
    }

    /// `splits.json`: `n = int(0.9 * len)` and the rest of
    /// `torch.randperm(len, generator=manual_seed(42))`.
    #[test]
    fn the_split_is_the_references() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/parity/splits.json");
        let text = std::fs::read_to_string(&file).expect("tests/parity/splits.json");
        let cases: Value = serde_json::from_str(&text).expect("JSON");
        let cases = cases.as_object().expect("a map from lengths to splits");
        assert!(!cases.is_empty());
        for (len, expected) in cases {
            let split = split_train_validation(len.parse().expect("a length"), 0.1);
            for (name, part) in [("train", &split.train), ("val", &split.validation)] {
                assert_eq!(expected[format!("{name}_len")], part.len(), "{len} {name}");
                assert_eq!(
                    expected[format!("{name}_first")],
                    Value::from(&part[..8]),
                    "{len} {name}"
                );
                let mut hash = Sha256::new();
                part.iter().for_each(|sample| hash.update(sample.to_le_bytes()));
                let hash: String =
                    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
                assert_eq!(expected[format!("{name}_sha256_le_u64")], hash, "{len} {name}");
            }
        }
    }

    #[test]
    fn a_split_leaves_neither_part_empty() {
        let check = |len: u64, share: f64, train: usize| {
            let split = split_train_validation(len, share);
            assert_eq!(
                (split.train.len(), split.validation.len()),
                (train, len as usize - train),
                "{len} {share}"
            );
            let both: Vec<u64> = split.train.iter().chain(&split.validation).copied().collect();
            assert!(is_permutation(&both, &(0..len).collect::<Vec<_>>()));
        };
        check(0, 0.1, 0);
        check(1, 0.1, 1);
        check(2, 0.1, 1);
        check(9, 1e-9, 8);
        check(9, 1.0 - 1e-9, 1);
        check(1797, 0.2, 1437);
    }

    #[test]
    fn the_first_of_each_class_are_kept_in_their_order() {
        assert_eq!(first_of_each_class(&[4, 1, 3, 0, 2], &[0, 1, 0, 1, 1], &[9, 2]), [4, 1, 0, 2]);
        assert_eq!(first_of_each_class(&[4, 1, 3, 0, 2], &[0, 1, 0, 1, 1], &[1, 0]), [0]);
    }

    #[test]
    fn an_epoch_visits_every_sample_once_in_an_order_of_its_own() {
        let samples: Vec<u64> = (0..101).map(|index| index * 3).collect();
        let order = |seed, epoch, drop_last| EpochOrder::new(&samples, seed, epoch, 8, drop_last);
        let visited = |order: &EpochOrder| {
            (0..order.steps()).flat_map(|step| order.batch(step).to_vec()).collect()
        };
        let first: Vec<u64> = visited(&order(1, 0, false));
        assert!(is_permutation(&first, &samples));
        assert_eq!(first, visited(&order(1, 0, false)));
        assert_ne!(first, samples);
        assert_ne!(first, visited(&order(1, 1, false)));
        assert_ne!(first, visited(&order(2, 0, false)));

        assert_eq!(order(1, 0, false).steps(), 13);
        assert_eq!(order(1, 0, false).batch(12).len(), 5);
        assert_eq!(order(1, 0, false).batch(13), &[] as &[u64]);
        assert_eq!(order(1, 0, true).steps(), 12);
        assert_eq!(order(1, 0, true).batch(12), &[] as &[u64]);
        assert_eq!(visited(&order(1, 0, true)), first[..96]);
    }

    #[test]
    fn slices_of_all_ranks_are_the_batch() {
        for len in [0, 1, 5, 7, 128, 129] {
            for world_size in 1..=9 {
                let slices: Vec<_> =
                    (0..world_size).map(|rank| rank_slice(len, rank, world_size)).collect();
                let together: Vec<usize> = slices.iter().cloned().flatten().collect();
                assert_eq!(together, (0..len).collect::<Vec<_>>(), "{len} over {world_size}");
                let lengths = slices.iter().map(Range::len);
                assert!(
                    lengths.clone().max() <= lengths.min().map(|min| min + 1),
                    "{len} over {world_size}"
                );
            }
        }
    }

    #[test]
    fn a_position_is_its_step() {
        let check = |step, epoch, step_in_epoch| {
            assert_eq!(Position::at(step, 12), Position { step, epoch, step_in_epoch });
        };
        check(0, 0, 0);
        check(11, 0, 11);
        check(12, 1, 0);
        check(30, 2, 6);
    }

    #[test]
    fn a_stage_continues_in_the_middle_of_an_epoch() {
        let samples: Vec<u64> = (0..10).collect();
        let order = |epoch| EpochOrder::new(&samples, 1, epoch, 4, false);
        let found: Vec<_> = stage_steps(4..7, order).collect();
        let expected = [(4, 1, 1), (5, 1, 2), (6, 2, 0)].map(|(step, epoch, step_in_epoch)| {
            (Position { step, epoch, step_in_epoch }, order(epoch).batch(step_in_epoch).to_vec())
        });
        assert_eq!(found, expected);
    }

    /// `printf` of the sorted ids as little-endian u64 into `sha256sum`.
    #[test]
    fn the_digest_of_a_step_ignores_the_order() {
        let expected = "e2e2033ae7e19d680599d4eb0a1359a2b48ec5baac75066c317fbf85159c54ef";
        assert_eq!(samples_sha256(&[3, 1, 2]), expected);
        assert_eq!(samples_sha256(&[1, 2, 3]), expected);
    }

    #[test]
    fn keys_differ_in_every_part() {
        let mut keys = vec![init_key(0, 0), init_key(1, 0), init_key(0, 1)];
        for part in 0..4 {
            for value in [1, 2] {
                let mut parts = [0_u64; 4];
                parts[part] = value;
                let [a, b, c, d] = parts;
                keys.push(view_key(a, b, c, d));
                keys.extend((part < 3).then(|| step_key(a, b, c)));
            }
        }
        keys.extend([view_key(0, 0, 0, 0), step_key(0, 0, 0)]);
        let len = keys.len();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), len);
    }

    /// `printf cae | sha256sum`: the first eight bytes.
    #[test]
    fn a_stage_is_keyed_by_its_name() {
        assert_eq!(stage_key("cae"), 0x3290_6664_311c_41df);
        assert_ne!(stage_key("cnce"), stage_key("cae"));
    }

    /// First outputs for seed 1234567 as published with the generator
    /// (rosettacode.org/wiki/Pseudo-random_numbers/Splitmix64).
    #[test]
    fn the_stream_is_splitmix64() {
        let mut stream = SplitMix64::new(1_234_567);
        let first: Vec<u64> = (0..3).map(|_| stream.next_u64()).collect();
        assert_eq!(
            first,
            [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]
        );
        for bound in [1, 2, 7, u64::MAX] {
            assert!((0..100).all(|_| stream.below(bound) < bound));
        }
        assert!((0..1000).all(|_| (0.2..0.4).contains(&stream.uniform(0.2, 0.4))));
    }
}
