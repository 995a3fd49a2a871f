//! Images that are made up: random pixels in the shape of a data set, with its classes, for
//! benchmarks on a machine that does not have its files.

use super::error::DataError;
use super::pack_file::Sink;
use super::packing::{Packing, pack_raw};
use super::packs::Packs;
use super::raw_set::RawSet;
use super::samples::{Decoded, OnProgress, Split};
use sha2::{Digest, Sha256};
use std::path::Path;
use thanos_configs::{DataConfig, DataSet, SplitMix64};

/// Classes of a data set whose files alone name them, and their coarse classes.
const FINE_CLASSES: i64 = 100;
const COARSE_CLASSES: i64 = 10;
/// Images that are made at once.
const CHUNK: usize = 256;

/// Packs synthetic images in the shape of the data set: so many for training, and one a class for
/// tests. As many of each class as of any other, or one fewer. The same seed gives the same packs.
///
/// # Errors
/// If a pack cannot be written.
pub fn pack_synthetic(
    config: &DataConfig,
    packs_dir: &Path,
    (images, seed): (u64, u64),
) -> Result<Packs, DataError> {
    let raw = Synthetic { facts: named(config.facts()), images, seed };
    pack_raw(&Packing { raw: &raw, packs_dir, on_split: &|_, _, _| {} }, config.validation_fraction)
}

struct Synthetic {
    facts: DataSet,
    /// For training.
    images: u64,
    seed: u64,
}

/// With names for the classes that only the files would name.
fn named(mut facts: DataSet) -> DataSet {
    let labels = &mut facts.labels;
    let numbers = |count: i64| (0..count).map(|number| number.to_string()).collect();
    if labels.coarse_of.is_empty() {
        labels.coarse_of = (0..FINE_CLASSES).map(|fine| fine % COARSE_CLASSES).collect();
        labels.coarse_names = numbers(COARSE_CLASSES);
    }
    if labels.fine_names.is_empty() {
        labels.fine_names = numbers(labels.coarse_of.len() as i64);
    }
    facts
}

impl Synthetic {
    fn images(&self, split: Split) -> usize {
        match split {
            Split::Train => self.images as usize,
            Split::Test => self.facts.labels.fine_names.len(),
        }
    }
}

impl RawSet for Synthetic {
    fn facts(&self) -> &DataSet {
        &self.facts
    }

    fn hash_into(&self, split: Split, hash: &mut Sha256) -> Result<(), DataError> {
        hash.update(format!("synthetic {} {}", self.images(split), self.seed));
        Ok(())
    }

    fn decode(
        &self,
        split: Split,
        sink: &mut Sink<'_>,
        _: OnProgress<'_>,
    ) -> Result<Decoded, DataError> {
        let (images, classes) = (self.images(split), self.facts.labels.fine_names.len());
        let bytes_of_each = self.facts.side * self.facts.side * self.facts.channels;
        let mut pixels = SplitMix64::new(self.seed ^ split as u64);
        sink.expect(images, false)?;
        for first in (0..images).step_by(CHUNK) {
            let bytes = CHUNK.min(images - first) * bytes_of_each;
            let words = (0..bytes.div_ceil(8)).flat_map(|_| pixels.next_u64().to_le_bytes());
            sink.images(&words.take(bytes).collect::<Vec<u8>>())?;
        }
        let fine = (0..images).map(|image| (image % classes) as i64).collect();
        Ok(Decoded { fine, ..Decoded::default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{fine_labels, info, verify};
    use thanos_configs::DataKind;

    #[test]
    fn every_data_set_has_made_up_images_of_its_shape() {
        use DataKind::{Cifar10, Cifar100, Digits, FashionMnist, ImageFolder, Mnist, Tinyimagenet};
        for (kind, shape, classes) in [
            (Digits, [8, 8, 1], [10, 2]),
            (Mnist, [28, 28, 1], [10, 2]),
            (FashionMnist, [28, 28, 1], [10, 2]),
            (Cifar10, [32, 32, 3], [10, 2]),
            (Cifar100, [32, 32, 3], [100, 20]),
            (Tinyimagenet, [64, 64, 3], [200, 67]),
            (ImageFolder, [64, 64, 3], [100, 10]),
        ] {
            let folder = tempfile::tempdir().expect("a folder");
            let config = DataConfig { kind, ..DataConfig::default() };
            let packs = pack_synthetic(&config, folder.path(), (400, 7)).expect("packed");
            assert_eq!((packs.train.images, packs.test.images), (400, classes[0]), "{kind:?}");
            for pack in [&packs.train, &packs.test] {
                verify(&pack.path).expect("its fingerprint");
                let facts = info(&pack.path).expect("a pack").to_string();
                assert!(
                    facts
                        .contains(&format!("images of {} x {} x {}", shape[0], shape[1], shape[2])),
                    "{facts}"
                );
            }
            let fine = fine_labels(&packs.train.path).expect("labels");
            let count =
                |class: u64| fine.iter().filter(|fine| **fine == class as i64).count() as u64;
            assert!(
                (0..classes[0]).all(|class| count(class) == 400 / classes[0]),
                "{kind:?} is not balanced"
            );
            let labels = named(config.facts()).labels;
            assert_eq!(
                [labels.fine_names.len(), labels.coarse_names.len()].map(|count| count as u64),
                classes
            );
        }
    }

    #[test]
    fn images_are_those_of_the_seed() {
        let folder = tempfile::tempdir().expect("a folder");
        let config = DataConfig { kind: DataKind::Digits, ..DataConfig::default() };
        let prints = |seed: u64, name: &str| {
            let packs =
                pack_synthetic(&config, &folder.path().join(name), (300, seed)).expect("packed");
            [packs.train.fingerprint, packs.test.fingerprint]
        };
        assert_eq!(prints(1, "a"), prints(1, "b"));
        assert_ne!(prints(1, "a"), prints(2, "c"));
    }
}
