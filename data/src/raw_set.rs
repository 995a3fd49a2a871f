//! What a reader of raw files is to the packing of them.

use super::error::DataError;
use super::pack_file::Sink;
use super::samples::{Decoded, OnProgress, Split};
use sha2::Sha256;
use thanos_configs::DataSet;

/// Whether a data set without test images is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TestImages {
    Required,
    /// Without any, measures are taken on the images that are held out to select the best epoch.
    Optional,
}

/// A data set's raw files, found and not yet decoded.
pub(super) trait RawSet {
    /// What is known of it, class names included; mean and std are empty where they are to be
    /// measured.
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
    fn decode(
        &self,
        split: Split,
        sink: &mut Sink<'_>,
        progress: OnProgress<'_>,
    ) -> Result<Decoded, DataError>;
}
