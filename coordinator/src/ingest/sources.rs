//! Which raw files a data set has, and where they are in `data.dir`.
//! It opens none of them but to read it whole, and knows nothing of what is in them.

use super::error::DataError;
use super::raw::RawFile;
use super::{Split, digits};
use std::fs;
use std::path::{Path, PathBuf};
use thanos_configs::{DataKind, DataSet};

/// The raw files of both splits, in the order in which they are decoded: none for an embedded data set.
pub(super) struct Sources {
    train: Vec<PathBuf>,
    test: Vec<PathBuf>,
}

impl Sources {
    /// Finds every file of a data set in `dir`, or in a folder of it that the official archive makes.
    ///
    /// # Errors
    /// If `dir` is not given or no folder, or a file is not there; all missing ones are named.
    pub(super) fn locate(kind: DataKind, dir: Option<&Path>) -> Result<Self, DataError> {
        let Some(layout) = Layout::of(kind) else {
            return Ok(Self { train: Vec::new(), test: Vec::new() });
        };
        let dataset = DataSet::of(kind).name;
        let files = || layout.names().map(|spellings| spellings[0]).collect::<Vec<_>>().join(", ");
        let dir = dir.ok_or_else(|| DataError::NoDir { dataset, files: files() })?;
        let refuse = |fault: String| Err(DataError::NotAFolder { dir: dir.to_owned(), fault, files: files() });
        match fs::metadata(dir) {
            Err(error) => return refuse(error.to_string()),
            Ok(found) if !found.is_dir() => return refuse("not a folder".into()),
            Ok(_) => {}
        }
        let places: Vec<PathBuf> =
            layout.folders.iter().map(|folder| dir.join(folder).components().collect()).collect();
        // One folder must have them all: a set put together from two is more likely a mistake.
        let mut missing = Vec::new();
        for place in &places {
            let absent: Vec<&str> =
                layout.names().filter(|names| find(place, names).is_none()).map(|names| names[0]).collect();
            if absent.is_empty() {
                let all = |names: &[Spellings]| names.iter().filter_map(|names| find(place, names)).collect();
                return Ok(Self { train: all(layout.train), test: all(layout.test) });
            }
            if missing.is_empty() || absent.len() < missing.len() {
                missing = absent;
            }
        }
        let places: Vec<String> = places.iter().map(|place| place.display().to_string()).collect();
        let (files, places) = (missing.join(", "), places.join(" and "));
        Err(DataError::Missing { dataset, files, places, advice: layout.advice })
    }

    /// Reads the files of one split.
    pub(super) fn read(&self, split: Split) -> Result<Vec<RawFile>, DataError> {
        let paths = match split {
            Split::Train => &self.train,
            Split::Test => &self.test,
        };
        if paths.is_empty() {
            return Ok(vec![RawFile::embedded(digits::NAME, digits::EMBEDDED)]);
        }
        paths.iter().map(|path| RawFile::read(path)).collect()
    }
}

/// Names under which a file is known, the official one first.
type Spellings = &'static [&'static str];

/// Which files a data set has, and in which folders below `data.dir` they may be.
struct Layout {
    folders: &'static [&'static str],
    train: &'static [Spellings],
    test: &'static [Spellings],
    advice: &'static str,
}

/// Images before labels, as `idx::decode` takes them.
const IDX: Layout = Layout {
    folders: &[""],
    train: &[
        &["train-images-idx3-ubyte", "train-images.idx3-ubyte"],
        &["train-labels-idx1-ubyte", "train-labels.idx1-ubyte"],
    ],
    test: &[
        &["t10k-images-idx3-ubyte", "t10k-images.idx3-ubyte"],
        &["t10k-labels-idx1-ubyte", "t10k-labels.idx1-ubyte"],
    ],
    advice: "get the four IDX files, gzipped (.gz) or not",
};

const CIFAR10: Layout = Layout {
    folders: &["", "cifar-10-batches-bin"],
    train: &[
        &["data_batch_1.bin"],
        &["data_batch_2.bin"],
        &["data_batch_3.bin"],
        &["data_batch_4.bin"],
        &["data_batch_5.bin"],
    ],
    test: &[&["test_batch.bin"]],
    advice: "unpack the binary version (cifar-10-binary.tar.gz, not the Python one)",
};

impl Layout {
    fn of(kind: DataKind) -> Option<&'static Self> {
        match kind {
            DataKind::Digits => None,
            DataKind::Mnist | DataKind::FashionMnist => Some(&IDX),
            DataKind::Cifar10 => Some(&CIFAR10),
        }
    }

    fn names(&self) -> impl Iterator<Item = Spellings> {
        self.train.iter().chain(self.test).copied()
    }
}

/// The first of a file's spellings that is there, bare before gzipped.
fn find(folder: &Path, spellings: &[&str]) -> Option<PathBuf> {
    let named = |suffix: &'static str| spellings.iter().map(move |name| folder.join(format!("{name}{suffix}")));
    named("").chain(named(".gz")).find(|path| path.is_file())
}
