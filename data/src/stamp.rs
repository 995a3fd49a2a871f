//! The cheap sign by which raw files are known not to have changed: names, lengths and times,
//! without reading any.

use super::error::DataError;
use sha2::{Digest, Sha256};
use std::fs::{self, Metadata};
use std::io;
use std::path::Path;
use std::time::UNIX_EPOCH;

/// The length of a file, and the time of its last change in nanoseconds since 1970.
pub(super) fn length_and_change(found: &Metadata) -> io::Result<(u64, u128)> {
    Ok((found.len(), found.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos()))
}

/// Adds name, length and time of the last change of one file.
pub(super) fn stamp_file(path: &Path, hash: &mut Sha256) -> Result<(), DataError> {
    let found = fs::metadata(path).and_then(|found| length_and_change(&found));
    let (bytes, changed) = found.map_err(|error| DataError::raw(path, error.into()))?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    hash.update(format!("{name}\0{bytes} {changed}\n"));
    Ok(())
}
