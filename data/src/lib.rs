//! Data ingestion: raw files are read, checked and decoded once into a pack a split, which every worker reads by position.
//! A pack is a safetensors file: `images` u8 [N, H, W, C], `fine` and `coarse` i64 [N], and a header that describes
//! them. Pixels are stored as they are: mean, std and views are the worker's. This module knows no run and no network.

mod archive;
mod cifar;
mod class_folders;
mod digits;
mod error;
pub mod fetch;
mod idx;
mod image_folder;
mod info;
mod kept;
mod known;
mod moments;
mod pack_file;
mod pack_header;
mod pickle;
mod picture;
mod pictures;
mod raw;
mod sets;
mod sheet;
mod sources;
mod splits;
mod synthetic;
mod tinyimagenet;
mod tree;

pub use error::{DataError, PackFault, RawFault};
pub use info::PackInfo;
pub use kept::{KeptPack, kept_packs, prune};
pub use known::{find_packs, raw_stamp};
pub use sheet::{contact_sheet, report_sheet};
pub use synthetic::pack_synthetic;

use pack_file::Sink;
use pack_header::{Header, LeftOut, Notes};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use thanos_configs::{DataConfig, DataSet, hex, split_train_validation};

/// Told of a split how many images are decoded, of how many; from any thread.
pub type OnSplit<'a> = &'a (dyn Fn(&str, u64, u64) + Sync);

/// The same of this split.
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
    /// Number of images that could not be decoded and were skipped, and the first of them.
    pub left_out: u64,
    pub skipped: Vec<Skipped>,
    /// What is unusual about its images, a sentence each.
    pub warnings: Vec<String>,
}

/// An image that was skipped, and why.
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
    /// What is next to the images and not used, one sentence each.
    pub notes: Vec<String>,
}

/// Whether a data set without test images is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TestImages {
    Required,
    /// Without any, measures are taken on the images that are held out to select the best epoch.
    Optional,
}

/// Packs a data set's raw files into `packs_dir`, which is made if needed; a pack of the same raw bytes is reused.
/// Several processes may do this at once.
///
/// # Errors
/// If raw files are missing or bad, or a pack cannot be written.
pub fn pack(
    config: &DataConfig,
    packs_dir: &Path,
    test: TestImages,
    on_split: OnSplit<'_>,
) -> Result<Packs, DataError> {
    let raw = sources::locate(config, test)?;
    pack_raw(&Packing { raw: raw.as_ref(), packs_dir, on_split }, config.validation_fraction)
}

/// `share`: of the training images, which are measured where there are no test images.
fn pack_raw(packing: &Packing<'_>, share: f64) -> Result<Packs, DataError> {
    let raw = packing.raw;
    let mut notes = raw.notes().to_vec();
    // One split after the other. The training images' mean and std are those of both.
    let (train, facts, train_reused) = packing.pack(Split::Train, raw.facts(), None)?;
    let held_out = (!raw.has_test()).then_some(HeldOut { train: &train.path, share });
    if held_out.is_some() {
        notes.push("there are no test images: metrics are computed on the images held out for validation".into());
    }
    let (test, _, test_reused) = packing.pack(Split::Test, &facts, held_out)?;
    Ok(Packs { train, test, reused: train_reused && test_reused, notes })
}

/// What `thanos-coord data info` prints about a pack; mean and std are measured. It does not check the fingerprint.
///
/// # Errors
/// If the file is not a pack, or is cut off.
pub fn info(path: &Path) -> Result<PackInfo, DataError> {
    PackInfo::read(path).map_err(|fault| DataError::Pack { path: path.to_owned(), fault })
}

/// The fine labels of a pack, [N].
///
/// # Errors
/// If the file is not a pack, or is cut off.
pub fn fine_labels(path: &Path) -> Result<Vec<i64>, DataError> {
    pack_file::read_fine(path).map_err(|fault| DataError::Pack { path: path.to_owned(), fault })
}

/// Recomputes a pack's fingerprint from its header, images and labels.
///
/// # Errors
/// If the file is not a pack, is cut off, or holds something else than when it was written.
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

    /// What is next to the images and not used, one sentence each.
    fn notes(&self) -> &[String] {
        &[]
    }

    /// Whether there are test images.
    fn has_test(&self) -> bool {
        true
    }

    /// Adds to a hash what distinguishes a split's raw files.
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
#[derive(Default)]
struct Decoded {
    /// [N].
    fine: Vec<i64>,
    skipped: Vec<Skipped>,
    /// What is unusual about its images, a sentence each.
    warnings: Vec<String>,
    /// What the images were decoded from and how: see [`Notes`].
    pixels: String,
}

/// Test images that are taken from the training images' pack: those that a plan holds out for validation.
#[derive(Clone, Copy)]
struct HeldOut<'a> {
    train: &'a Path,
    share: f64,
}

/// From raw files to packs.
struct Packing<'a> {
    raw: &'a dyn RawSet,
    packs_dir: &'a Path,
    on_split: OnSplit<'a>,
}

impl Packing<'_> {
    /// A split's pack; also the facts with what was measured, and whether the pack was there.
    fn pack(
        &self,
        split: Split,
        facts: &DataSet,
        held_out: Option<HeldOut<'_>>,
    ) -> Result<(PackFile, DataSet, bool), DataError> {
        let source = source_sha256(self.raw, split, held_out)?;
        let path = self.packs_dir.join(format!("{}-{}-{}.safetensors", facts.name, split.name(), &source[..16]));
        let (header, reused) = match Header::read(&path) {
            Ok(header) if header.describes(facts, split.name()) => {
                kept::note_use(&path);
                (header, true)
            }
            // None yet, or one that is damaged: it is replaced.
            _ => {
                let mut sink = Sink::new(&path, facts, split);
                let progress = |done, total| (self.on_split)(split.name(), done, total);
                let pixels = self.pixels_sha256(split, held_out)?;
                let decoded = match (known::with_pixels(facts, split, &pixels, self.packs_dir), held_out) {
                    (Some(found), _) => copy_all(found, &mut sink)?,
                    (None, None) => self.raw.decode(split, &mut sink, &progress)?,
                    (None, Some(held_out)) => held_out.copy(&mut sink)?,
                };
                (sink.finish(Decoded { pixels, ..decoded })?, false)
            }
        };
        let facts = DataSet { mean: header.mean.clone(), std: header.std.clone(), ..facts.clone() };
        Ok((PackFile::of(split, path, header), facts, reused))
    }
}

impl Packing<'_> {
    /// Identifies a split's decoded images: as [`source_sha256`], whatever the coarse labels.
    fn pixels_sha256(&self, split: Split, held_out: Option<HeldOut<'_>>) -> Result<String, DataError> {
        let mut facts = self.raw.facts().clone();
        facts.labels.coarse_names.clear();
        facts.labels.coarse_of.clear();
        sha256_of(self.raw, &facts, split, held_out)
    }
}

/// Images and fine labels of another pack: only its coarse labels are others.
fn copy_all((path, header): (PathBuf, Header), sink: &mut Sink<'_>) -> Result<Decoded, DataError> {
    let refuse = |fault| DataError::Pack { path: path.clone(), fault };
    let fine = pack_file::read_fine(&path).map_err(refuse)?;
    sink.expect(fine.len(), header.left_out.images > 0)?;
    let mut written = Ok(());
    let mut images = pack_file::Images::open(&path).map_err(refuse)?;
    let put = |pixels: &[u8]| written = std::mem::replace(&mut written, Ok(())).and_then(|()| sink.images(pixels));
    images.each(put).map_err(refuse)?;
    written?;
    Ok(Decoded { fine, skipped: header.left_out.named, warnings: header.notes.warnings, pixels: String::new() })
}

impl HeldOut<'_> {
    /// Copies the images out of the training images' pack, in which they stay.
    fn copy(self, sink: &mut Sink<'_>) -> Result<Decoded, DataError> {
        let refuse = |fault| DataError::Pack { path: self.train.to_owned(), fault };
        let fine = pack_file::read_fine(self.train).map_err(refuse)?;
        let mut images = pack_file::Images::open(self.train).map_err(refuse)?;
        let ids = split_train_validation(fine.len() as u64, self.share).validation;
        sink.expect(ids.len(), false)?;
        for &id in &ids {
            sink.images(&images.image(id).map_err(refuse)?)?;
        }
        Ok(Decoded { fine: ids.iter().map(|id| fine[*id as usize]).collect(), ..Decoded::default() })
    }
}

/// Decides whether a pack may be reused: over what distinguishes the raw files, the header's words (format, names,
/// mean and std among them) and the map to coarse labels, so that a corrected fact makes a new pack.
fn source_sha256(raw: &dyn RawSet, split: Split, held_out: Option<HeldOut<'_>>) -> Result<String, DataError> {
    sha256_of(raw, raw.facts(), split, held_out)
}

fn sha256_of(
    raw: &dyn RawSet,
    facts: &DataSet,
    split: Split,
    held_out: Option<HeldOut<'_>>,
) -> Result<String, DataError> {
    let mut hash = Sha256::new();
    hash.update(pack_header::to_bytes(facts, split.name(), &LeftOut::default(), (0, ""), &Notes::default()));
    facts.labels.coarse_of.iter().for_each(|coarse| hash.update(coarse.to_le_bytes()));
    raw.hash_into(split, &mut hash)?;
    if let Some(held_out) = held_out {
        hash.update(held_out.share.to_le_bytes());
    }
    Ok(hex(&hash.finalize()))
}

#[cfg(test)]
mod tests;
