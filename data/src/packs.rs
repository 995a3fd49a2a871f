//! The packs of a data set, as their users get them.

use super::samples::Split;
use std::path::PathBuf;
use thanos_formats::{PackHeader, Skipped, SkippedImages};

/// One split's pack on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackFile {
    /// `train` or `test`.
    pub split: String,
    pub path: PathBuf,
    /// SHA-256 over header, images and labels, in hexadecimal: equal wherever and whenever the same
    /// data is packed.
    pub fingerprint: String,
    /// Number of images.
    pub images: u64,
    /// Number of images that could not be decoded and were skipped, and the first of them.
    pub skipped_images: u64,
    pub skipped: Vec<Skipped>,
    /// What is unusual about its images, a sentence each.
    pub warnings: Vec<String>,
}

impl PackFile {
    pub(super) fn of(split: Split, path: PathBuf, header: PackHeader) -> Self {
        let images = header.images();
        let PackHeader {
            fingerprint,
            skipped_images: SkippedImages { images: skipped_images, named: skipped },
            notes,
            ..
        } = header;
        let warnings = notes.warnings;
        Self {
            split: split.name().into(),
            path,
            images,
            fingerprint,
            skipped_images,
            skipped,
            warnings,
        }
    }
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
