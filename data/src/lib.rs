//! Data ingestion: raw files are read, checked and decoded once into a pack a split, which every
//! worker reads by position. A pack is a safetensors file: `images` u8 [N, H, W, C], `fine` and
//! `coarse` i64 [N], and a header that describes them. Pixels are stored as they are: mean, std and
//! views are the worker's. This crate knows no run.
//!
//! - `sources` chooses the reader of `data.dir`; `layouts` has the published files of a data set,
//!   and where they are looked for.
//! - `sets` (by `cifar`, `idx`, `digits`), `tinyimagenet` and `image_folder` are the readers;
//!   `raw_set` is their trait.
//! - `packing` makes packs of what they read, or reuses those that are there (`known`, `kept`,
//!   `stamp`).
//! - `pack_file` and `pack_header` write and read packs; `info` and `sheet` show what is in one.
//! - `picture` and `pictures` decode; `tree`, `archive`, `raw` and `pickle` open what raw files are
//!   in.
//! - `synthetic` makes random images for benchmarks; `fetch`, alone with the network, downloads
//!   published files.

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
mod layouts;
mod moments;
mod pack_file;
mod pack_header;
mod packing;
mod packs;
mod pickle;
mod picture;
mod pictures;
mod raw;
mod raw_set;
mod samples;
mod sets;
mod sheet;
mod sources;
mod splits;
mod stamp;
mod synthetic;
mod tinyimagenet;
mod tree;

pub use error::{DataError, RawFault};
pub use info::PackInfo;
pub use kept::{KeptPack, kept_packs, prune};
pub use known::{find_packs, raw_stamp};
pub use packing::{OnSplit, pack};
pub use packs::{PackFile, Packs};
pub use raw_set::TestImages;
pub use sheet::{contact_sheet, report_sheet};
pub use synthetic::pack_synthetic;
pub use thanos_formats::{PackFault, Skipped};

use std::path::Path;

/// What `thanos-coord data info` prints about a pack; mean and std are measured. It does not check
/// the fingerprint.
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

#[cfg(test)]
mod tests;
