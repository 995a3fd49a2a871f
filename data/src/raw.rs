//! Raw files as they come: read whole, hashed, unpacked if gzipped. It knows nothing of what is in
//! them, nor which a data set has.

use super::error::{DataError, RawFault};
use flate2::read::MultiGzDecoder;
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Most bytes of a raw file, as it is and unpacked: a small gzip file may claim to be endless.
pub(super) const MAX_BYTES: u64 = 1 << 30;

const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// The bytes of one raw file, as on disk.
pub(super) struct RawFile {
    pub(super) path: PathBuf,
    bytes: Cow<'static, [u8]>,
}

impl RawFile {
    /// Reads a file whole.
    pub(super) fn read(path: &Path) -> Result<Self, DataError> {
        let refused = |fault| DataError::raw(path, fault);
        let file = File::open(path).map_err(|error| refused(error.into()))?;
        let bytes = at_most(file, MAX_BYTES).map_err(|(_, fault)| refused(fault))?;
        Ok(Self { path: path.to_owned(), bytes: bytes.into() })
    }

    /// A file that was read from an archive.
    pub(super) fn of(path: &Path, bytes: Vec<u8>) -> Self {
        Self { path: path.to_owned(), bytes: bytes.into() }
    }

    /// The bytes as they are on disk.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// A file that is part of this program; `name` is for messages.
    pub(super) fn embedded(name: &str, bytes: &'static [u8]) -> Self {
        Self { path: name.into(), bytes: bytes.into() }
    }

    /// The content: unpacked if the bytes are gzip, whatever the file is called.
    pub(super) fn content(&self) -> Result<Cow<'_, [u8]>, DataError> {
        if !self.bytes.starts_with(&GZIP_MAGIC) {
            return Ok(Cow::Borrowed(&self.bytes));
        }
        gunzip(&self.bytes, MAX_BYTES)
            .map(Cow::Owned)
            .map_err(|fault| DataError::raw(&self.path, fault))
    }

    /// Whether two files have the same bytes on disk.
    pub(super) fn same_bytes(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }

    /// Adds length and bytes to a hash; the length, so that two files cannot pass for one.
    pub(super) fn hash_into(&self, hash: &mut Sha256) {
        hash.update((self.bytes.len() as u64).to_le_bytes());
        hash.update(&self.bytes);
    }
}

fn gunzip(bytes: &[u8], max: u64) -> Result<Vec<u8>, RawFault> {
    at_most(MultiGzDecoder::new(bytes), max).map_err(|(unpacked, fault)| match fault {
        RawFault::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            RawFault::GzipCutOff { unpacked }
        }
        RawFault::Io(source) => RawFault::Gzip { unpacked, source },
        other => other,
    })
}

/// Reads to the end. Errors: the fault, and how many bytes came before it.
pub(super) fn at_most(from: impl Read, max: u64) -> Result<Vec<u8>, (u64, RawFault)> {
    let mut bytes = Vec::new();
    let read = from.take(max + 1).read_to_end(&mut bytes);
    let got = bytes.len() as u64;
    match read {
        Err(error) => Err((got, error.into())),
        Ok(_) if got > max => Err((got, RawFault::TooLarge { max })),
        Ok(_) => Ok(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use std::io::Write;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn gzip_is_known_by_its_bytes() {
        let check = |bytes: Vec<u8>, expected: &[u8]| {
            let file = RawFile { path: "f".into(), bytes: bytes.into() };
            assert_eq!(file.content().unwrap(), expected);
        };
        check(b"bare".to_vec(), b"bare");
        check(Vec::new(), b"");
        check(gzip(b"packed"), b"packed");
        check([gzip(b"two "), gzip(b"members")].concat(), b"two members");
    }

    #[test]
    fn bad_gzip_says_what_is_wrong() {
        let content: Vec<u8> = (0..5000_u32).flat_map(u32::to_le_bytes).collect();
        let good = gzip(&content);
        let check = |bytes: &[u8], max: u64, expected: &str| {
            let error = gunzip(bytes, max).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        };
        for cut in [3, 9, good.len() / 2, good.len() - 9, good.len() - 1] {
            check(&good[..cut], MAX_BYTES, "the gzip stream is cut off after ");
        }
        check(
            &good[..good.len() - 1],
            MAX_BYTES,
            "the gzip stream is cut off after 20000 unpacked bytes",
        );
        let mut flipped = good.clone();
        let crc = flipped.len() - 8;
        flipped[crc] ^= 1;
        check(&flipped, MAX_BYTES, "the gzip stream is damaged after 20000 unpacked bytes: ");
        check(
            &[&good[..], b"something else"].concat(),
            MAX_BYTES,
            "the gzip stream is damaged after 20000 unpacked bytes: ",
        );
        check(&good, 19_999, "more than 19999 bytes");
        assert_eq!(gunzip(&good, 20_000).unwrap(), content);
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("none");
        let error = RawFile::read(&path).map(|_| ()).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{}: cannot be read: ", path.display())), "{error}");
    }
}
