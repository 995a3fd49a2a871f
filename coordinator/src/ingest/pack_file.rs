//! Packs on disk: written whole or not at all, read back, and checked against their fingerprint.
//! It knows the tensors' bytes; what the header says is `pack_header`'s, raw files are others'.

use super::error::PackFault;
use super::pack_header::{self, Header};
use super::{Samples, Skipped};
use sha2::{Digest, Sha256};
use std::fs::{self, File, Permissions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use thanos_configs::{DataSet, hex};

/// The tensors of a pack.
pub(super) struct Contents {
    /// [N, H, W, C].
    pub(super) images: Vec<u8>,
    /// [N].
    pub(super) fine: Vec<i64>,
    /// [N].
    pub(super) coarse: Vec<i64>,
    pub(super) skipped: Vec<Skipped>,
}

impl Contents {
    /// Adds the coarse labels, by the data set's map.
    pub(super) fn new(data: &DataSet, samples: Samples) -> Self {
        let Samples { images, fine, skipped } = samples;
        let coarse = fine.iter().map(|fine| data.labels.coarse_of[*fine as usize]).collect();
        Self { images, fine, coarse, skipped }
    }

    /// SHA-256 over the header without its fingerprint, images, fine and coarse labels, all numbers little-endian.
    fn fingerprint(&self, data: &DataSet, split: &str) -> String {
        let mut hash = Sha256::new();
        hash.update(pack_header::to_bytes(data, split, &self.skipped, (self.fine.len(), "")));
        hash.update(&self.images);
        hash.update(to_le_bytes(&self.fine));
        hash.update(to_le_bytes(&self.coarse));
        hex(&hash.finalize())
    }
}

/// Writes a pack beside its final name and renames it, so that no reader sees a part of one and a second writer does
/// no harm; makes the folder if need be. The header that was written comes back.
///
/// # Errors
/// If the folder cannot be made, or the file not written; nothing is left behind.
pub(super) fn write(path: &Path, data: &DataSet, split: &str, contents: &Contents) -> io::Result<Header> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let fingerprint = contents.fingerprint(data, split);
    let header = pack_header::to_bytes(data, split, &contents.skipped, (contents.fine.len(), &fingerprint));
    let mut file = tempfile::Builder::new()
        .prefix(".pack-")
        .suffix(".tmp")
        // Less the umask, as for any file: a temporary one is its owner's alone, but workers may be another user's.
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(folder)?;
    file.write_all(&header)?;
    file.write_all(&to_le_bytes(&contents.coarse))?;
    file.write_all(&to_le_bytes(&contents.fine))?;
    file.write_all(&contents.images)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    File::open(folder)?.sync_all()?;
    Header::read(path).map_err(|fault| io::Error::other(format!("it was written, but {fault}")))
}

/// Reads a pack whole, without checking its fingerprint.
///
/// # Errors
/// If it is no pack, or cut off.
pub(super) fn read(path: &Path) -> Result<(Header, Contents), PackFault> {
    let header = Header::read(path)?;
    let mut file = File::open(path)?;
    let mut tensor = |at: &Range<u64>| -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; (at.end - at.start) as usize];
        file.seek(SeekFrom::Start(at.start))?;
        file.read_exact(&mut bytes)?;
        Ok(bytes)
    };
    let fine = from_le_bytes(&tensor(&header.fine_at)?);
    let coarse = from_le_bytes(&tensor(&header.coarse_at)?);
    let images = tensor(&header.images_at)?;
    let skipped = header.skipped.clone();
    Ok((header, Contents { images, fine, coarse, skipped }))
}

/// The fine labels of a pack, without its images.
///
/// # Errors
/// As [`read`].
pub(super) fn read_fine(path: &Path) -> Result<Vec<i64>, PackFault> {
    let header = Header::read(path)?;
    let mut bytes = vec![0; (header.fine_at.end - header.fine_at.start) as usize];
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(header.fine_at.start))?;
    file.read_exact(&mut bytes)?;
    Ok(from_le_bytes(&bytes))
}

/// Recomputes the fingerprint.
///
/// # Errors
/// As [`read`], and if the header names another fingerprint.
pub(super) fn verify(path: &Path) -> Result<(), PackFault> {
    let (header, contents) = read(path)?;
    let got = contents.fingerprint(&header.facts(), &header.split);
    if got == header.fingerprint {
        return Ok(());
    }
    Err(PackFault::Fingerprint { expected: header.fingerprint, got })
}

fn to_le_bytes(labels: &[i64]) -> Vec<u8> {
    labels.iter().flat_map(|label| label.to_le_bytes()).collect()
}

fn from_le_bytes(bytes: &[u8]) -> Vec<i64> {
    bytes.as_chunks::<8>().0.iter().map(|label| i64::from_le_bytes(*label)).collect()
}
