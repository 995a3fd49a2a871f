//! From raw files to packs: which packs are reused, what is decoded, and what a pack is named by.

use super::error::DataError;
use super::pack_file::{self, Sink};
use super::pack_header;
use super::packs::{PackFile, Packs};
use super::raw_set::{RawSet, TestImages};
use super::samples::{Decoded, Split};
use super::{kept, known, sources};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use thanos_configs::{DataConfig, DataSet, hex, split_train_validation};
use thanos_formats::PackHeader;

/// Called with a split and how many of its images are decoded, of how many; from any thread.
pub type OnSplit<'a> = &'a (dyn Fn(&str, u64, u64) + Sync);

/// Packs a data set's raw files into `packs_dir`, which is made if needed; a pack of the same raw
/// bytes is reused. Several processes may do this at once.
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
pub(super) fn pack_raw(packing: &Packing<'_>, share: f64) -> Result<Packs, DataError> {
    let raw = packing.raw;
    let mut notes = raw.notes().to_vec();
    // One split after the other. The training images' mean and std are those of both.
    let (train, facts, train_reused) = packing.pack(Split::Train, raw.facts(), None)?;
    let held_out = (!raw.has_test()).then_some(HeldOut { train: &train.path, share });
    if held_out.is_some() {
        notes.push(
            "there are no test images: metrics are computed on the images held out for validation"
                .into(),
        );
    }
    let (test, _, test_reused) = packing.pack(Split::Test, &facts, held_out)?;
    Ok(Packs { train, test, reused: train_reused && test_reused, notes })
}

/// Test images that are taken from the training images' pack: those that a plan holds out for
/// validation.
#[derive(Clone, Copy)]
struct HeldOut<'a> {
    train: &'a Path,
    share: f64,
}

/// From raw files to packs.
pub(super) struct Packing<'a> {
    pub(super) raw: &'a dyn RawSet,
    pub(super) packs_dir: &'a Path,
    pub(super) on_split: OnSplit<'a>,
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
        let path = self.packs_dir.join(format!(
            "{}-{}-{}.safetensors",
            facts.name,
            split.name(),
            &source[..16]
        ));
        let (header, reused) = match PackHeader::read(&path) {
            Ok(header) if pack_header::describes(&header, facts, split.name()) => {
                kept::note_use(&path);
                (header, true)
            }
            // None yet, or one that is damaged: it is replaced.
            _ => {
                let mut sink = Sink::new(&path, facts, split);
                let progress = |done, total| (self.on_split)(split.name(), done, total);
                let pixels = self.pixels_sha256(split, held_out)?;
                let decoded =
                    match (known::with_pixels(facts, split, &pixels, self.packs_dir), held_out) {
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

    /// Identifies a split's decoded images: as [`source_sha256`], whatever the coarse labels.
    fn pixels_sha256(
        &self,
        split: Split,
        held_out: Option<HeldOut<'_>>,
    ) -> Result<String, DataError> {
        let mut facts = self.raw.facts().clone();
        facts.labels.coarse_names.clear();
        facts.labels.coarse_of.clear();
        sha256_of(self.raw, &facts, split, held_out)
    }
}

/// Images and fine labels of another pack: only its coarse labels are others.
fn copy_all(
    (path, header): (PathBuf, PackHeader),
    sink: &mut Sink<'_>,
) -> Result<Decoded, DataError> {
    let refuse = |fault| DataError::Pack { path: path.clone(), fault };
    let fine = pack_file::read_fine(&path).map_err(refuse)?;
    sink.expect(fine.len(), header.skipped_images.images > 0)?;
    let mut written = Ok(());
    let mut images = pack_file::Images::open(&path).map_err(refuse)?;
    let put = |pixels: &[u8]| {
        written = std::mem::replace(&mut written, Ok(())).and_then(|()| sink.images(pixels))
    };
    images.each(put).map_err(refuse)?;
    written?;
    Ok(Decoded {
        fine,
        skipped: header.skipped_images.named,
        warnings: header.notes.warnings,
        pixels: String::new(),
    })
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
        Ok(Decoded {
            fine: ids.iter().map(|id| fine[*id as usize]).collect(),
            ..Decoded::default()
        })
    }
}

/// Decides whether a pack may be reused: over what distinguishes the raw files, the header's words
/// (format, names, mean and std among them) and the map to coarse labels, so that a corrected fact
/// makes a new pack.
fn source_sha256(
    raw: &dyn RawSet,
    split: Split,
    held_out: Option<HeldOut<'_>>,
) -> Result<String, DataError> {
    sha256_of(raw, raw.facts(), split, held_out)
}

fn sha256_of(
    raw: &dyn RawSet,
    facts: &DataSet,
    split: Split,
    held_out: Option<HeldOut<'_>>,
) -> Result<String, DataError> {
    let mut hash = Sha256::new();
    hash.update(pack_header::of(facts, split.name(), 0).to_bytes());
    facts.labels.coarse_of.iter().for_each(|coarse| hash.update(coarse.to_le_bytes()));
    raw.hash_into(split, &mut hash)?;
    if let Some(held_out) = held_out {
        hash.update(held_out.share.to_le_bytes());
    }
    Ok(hex(&hash.finalize()))
}
