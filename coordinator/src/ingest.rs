//! Data ingestion: raw files are read, checked and decoded once into a pack a split, which every worker maps.
//! A pack is a safetensors file: `images` u8 [N, H, W, C], `fine` and `coarse` i64 [N], and a header that describes
//! them. Pixels are stored as they are: mean, std and views are the worker's. This module knows no run and no network.

mod cifar;
mod digits;
mod error;
mod idx;
mod image_folder;
mod info;
mod known;
mod pack_file;
mod pack_header;
mod pickle;
mod picture;
mod pictures;
mod raw;
mod sets;
mod sheet;
mod sources;
mod synthetic;
mod tinyimagenet;
mod tree;

pub use error::{DataError, PackFault, RawFault};
pub use info::PackInfo;
pub(crate) use known::{find_packs, raw_stamp};
pub use sheet::contact_sheet;
pub(crate) use synthetic::pack_synthetic;

use pack_file::Sink;
use pack_header::{Header, LeftOut};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use thanos_configs::{DataConfig, DataSet, hex};

/// Told of a split how many images are decoded, of how many; from any thread.
pub type OnSplit<'a> = &'a (dyn Fn(&str, u64, u64) + Sync);

/// The same of the split at hand.
type OnProgress<'a> = &'a (dyn Fn(u64, u64) + Sync);

/// One split's pack on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackFile {
    /// `train` or `test`.
    pub split: String,
    pub path: PathBuf,
    /// SHA-256 over header, images and labels, in hexadecimal: equal wherever and whenever the same data is packed.
    pub fingerprint: String,
    /// Number of images.
    pub images: u64,
    /// Number of images that could not be decoded and were left out, and the first of them.
    pub left_out: u64,
    pub skipped: Vec<Skipped>,
}

/// An image that was left out, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    pub name: String,
    pub reason: String,
}

/// The packs of a data set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packs {
    pub train: PackFile,
    pub test: PackFile,
    /// Both were there already and nothing was decoded.
    pub reused: bool,
}

/// Packs a data set's raw files into `packs_dir`, which is made if need be; a pack of the same raw bytes is reused.
/// Several processes may do this at once.
///
/// # Errors
/// If raw files are missing or bad, or a pack cannot be written.
pub fn pack(config: &DataConfig, packs_dir: &Path, on_split: OnSplit<'_>) -> Result<Packs, DataError> {
    let raw = sources::locate(config)?;
    pack_raw(&Packing { raw: raw.as_ref(), packs_dir, on_split })
}

fn pack_raw(packing: &Packing<'_>) -> Result<Packs, DataError> {
    // One split after the other. The training images' mean and std are those of both.
    let (train, facts, train_reused) = packing.pack(Split::Train, packing.raw.facts())?;
    let (test, _, test_reused) = packing.pack(Split::Test, &facts)?;
    Ok(Packs { train, test, reused: train_reused && test_reused })
}

/// What `thanos-coord data info` prints about a pack; mean and std are measured. It does not check the fingerprint.
///
/// # Errors
/// If the file is no pack, or is cut off.
pub fn info(path: &Path) -> Result<PackInfo, DataError> {
    let read = || PackInfo::of(pack_file::read(path)?);
    read().map_err(|fault| DataError::Pack { path: path.to_owned(), fault })
}

/// The fine labels of a pack, [N].
///
/// # Errors
/// If the file is no pack, or is cut off.
pub fn fine_labels(path: &Path) -> Result<Vec<i64>, DataError> {
    pack_file::read_fine(path).map_err(|fault| DataError::Pack { path: path.to_owned(), fault })
}

/// Recomputes a pack's fingerprint from its header, images and labels.
///
/// # Errors
/// If the file is no pack, is cut off, or holds something else than when it was written.
pub fn verify(path: &Path) -> Result<(), DataError> {
    pack_file::verify(path).map_err(|fault| DataError::Pack { path: path.to_owned(), fault })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Split {
    Train,
    Test,
}

impl Split {
    fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Test => "test",
        }
    }
}

/// A data set's raw files, found and not yet decoded.
trait RawSet {
    /// What is known of it, class names included; mean and std are empty where they are to be measured.
    fn facts(&self) -> &DataSet;

    /// Adds to a hash what tells a split's raw files from others.
    fn hash_into(&self, split: Split, hash: &mut Sha256) -> Result<(), DataError>;

    /// Decodes a split's images into a pack.
    fn decode(&self, split: Split, sink: &mut Sink<'_>, progress: OnProgress<'_>) -> Result<Decoded, DataError>;
}

/// Decoded images, [N, H, W, C] u8, and their fine labels, [N], each below the number of classes.
#[derive(Default)]
struct Samples {
    images: Vec<u8>,
    fine: Vec<i64>,
}

impl Samples {
    fn with_capacity(images: usize, bytes_of_each: usize) -> Self {
        Self { images: Vec::with_capacity(images * bytes_of_each), fine: Vec::with_capacity(images) }
    }
}

/// What is known of a split when its images are in its pack.
struct Decoded {
    /// [N].
    fine: Vec<i64>,
    skipped: Vec<Skipped>,
}

/// From raw files to packs.
struct Packing<'a> {
    raw: &'a dyn RawSet,
    packs_dir: &'a Path,
    on_split: OnSplit<'a>,
}

impl Packing<'_> {
    /// A split's pack; also the facts with what was measured, and whether the pack was there.
    fn pack(&self, split: Split, facts: &DataSet) -> Result<(PackFile, DataSet, bool), DataError> {
        let source = source_sha256(self.raw, split)?;
        let path = self.packs_dir.join(format!("{}-{}-{}.safetensors", facts.name, split.name(), &source[..16]));
        let (header, reused) = match Header::read(&path) {
            Ok(header) if header.describes(facts, split.name()) => (header, true),
            // None yet, or one that is damaged: it is replaced.
            _ => {
                let mut sink = Sink::new(&path, facts, split);
                let progress = |done, total| (self.on_split)(split.name(), done, total);
                let decoded = self.raw.decode(split, &mut sink, &progress)?;
                (sink.finish(decoded)?, false)
            }
        };
        let facts = DataSet { mean: header.mean.clone(), std: header.std.clone(), ..facts.clone() };
        Ok((PackFile::of(split, path, header), facts, reused))
    }
}

/// Decides whether a pack may be reused: over what tells the raw files from others, the header's words (format, names,
/// mean and std among them) and the map to coarse labels, so that a corrected fact makes a new pack.
fn source_sha256(raw: &dyn RawSet, split: Split) -> Result<String, DataError> {
    let mut hash = Sha256::new();
    hash.update(pack_header::to_bytes(raw.facts(), split.name(), &LeftOut::default(), (0, "")));
    raw.facts().labels.coarse_of.iter().for_each(|coarse| hash.update(coarse.to_le_bytes()));
    raw.hash_into(split, &mut hash)?;
    Ok(hex(&hash.finalize()))
}

#[cfg(test)]
mod tests;
