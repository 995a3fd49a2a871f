//! An archive of a few files, whatever its name: .tar, .tar.gz (.tgz) or .zip, known by its bytes.
//! Files are looked up by their own names, in whichever folder they are. Nothing is unpacked to
//! disk.

use super::error::{DataError, RawFault};
use super::raw::{MAX_BYTES, RawFile, at_most};
use flate2::read::MultiGzDecoder;
use std::io::{self, Cursor, Read};
use std::path::Path;
use zip::ZipArchive;

/// Most bytes of an unpacked archive: those of CIFAR have 185 MB.
const MAX_UNPACKED: u64 = 2 << 30;
/// Most entries of an archive of a few files.
const MAX_ENTRIES: usize = 1 << 16;

const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
const ZIP_MAGIC: [u8; 4] = *b"PK\x03\x04";

/// Endings of archives' names.
pub(super) const ENDINGS: [&str; 4] = [".tar.gz", ".tgz", ".tar", ".zip"];

/// Whether a file's name is that of an archive.
pub(super) fn is_archive(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    ENDINGS.iter().any(|ending| name.ends_with(ending))
}

/// Names of files that a message shows.
const MAX_SHOWN: usize = 6;

/// The files of an archive that `find` gives a place among `places`, and the names of some others.
///
/// # Errors
/// A damaged archive; a file that occurs twice or is not a plain file. One that is not there is
/// `None`.
pub(super) fn unpack(
    archive: &RawFile,
    places: usize,
    find: impl Fn(&str) -> Option<usize>,
) -> Result<(Vec<Option<RawFile>>, Vec<String>), DataError> {
    let mut found =
        Found { archive, files: (0..places).map(|_| None).collect(), others: Vec::new(), find };
    let bytes = archive.bytes();
    if bytes.starts_with(&ZIP_MAGIC) {
        found.unzip(bytes)?;
    } else if bytes.starts_with(&GZIP_MAGIC) {
        found.untar(MultiGzDecoder::new(bytes))?;
    } else {
        found.untar(bytes)?;
    }
    Ok((found.files, found.others))
}

struct Found<'a, F> {
    archive: &'a RawFile,
    files: Vec<Option<RawFile>>,
    others: Vec<String>,
    find: F,
}

impl<F: Fn(&str) -> Option<usize>> Found<'_, F> {
    /// Where an entry belongs, by the last part of its name; one that operating systems add belongs
    /// nowhere.
    fn place(&mut self, entry: &str) -> Option<usize> {
        let name = entry.rsplit('/').next().unwrap_or(entry);
        let place = if entry.starts_with("__MACOSX/") { None } else { (self.find)(name) };
        if place.is_none() && !name.is_empty() && self.others.len() < MAX_SHOWN {
            self.others.push(entry.escape_debug().to_string());
        }
        place
    }

    fn put(&mut self, at: usize, path: &Path, bytes: Vec<u8>) -> Result<(), DataError> {
        if self.files[at].is_some() {
            return Err(DataError::raw(path, RawFault::TwiceInArchive));
        }
        self.files[at] = Some(RawFile::of(path, bytes));
        Ok(())
    }

    fn untar(&mut self, stream: impl Read) -> Result<(), DataError> {
        let root = self.archive.path.clone();
        let damaged = |error: io::Error| {
            let cut_off = error.kind() == io::ErrorKind::UnexpectedEof;
            DataError::raw(
                &root,
                if cut_off {
                    RawFault::ArchiveCutOff
                } else {
                    RawFault::Archive(error.to_string())
                },
            )
        };
        let mut tar = tar::Archive::new(stream.take(MAX_UNPACKED));
        for entry in tar.entries().map_err(damaged)? {
            let mut entry = entry.map_err(damaged)?;
            let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            let kind = entry.header().entry_type();
            let Some(at) = self.place(&name).filter(|_| !kind.is_dir()) else { continue };
            let path = root.join(&name);
            if !kind.is_file() {
                return Err(DataError::raw(&path, RawFault::NotRegular));
            }
            let bytes = at_most(&mut entry, MAX_BYTES).map_err(|(_, fault)| match fault {
                RawFault::Io(error) => damaged(error),
                other => DataError::raw(&path, other),
            })?;
            if bytes.len() as u64 != entry.size() {
                return Err(DataError::raw(&root, RawFault::ArchiveCutOff));
            }
            self.put(at, &path, bytes)?;
        }
        // The end of the stream has its checksum: what follows the last entry is read, too.
        io::copy(&mut tar.into_inner(), &mut io::sink()).map(|_| ()).map_err(damaged)
    }

    fn unzip(&mut self, bytes: &[u8]) -> Result<(), DataError> {
        let root = self.archive.path.clone();
        let refuse = |fault| DataError::raw(&root, fault);
        let fault = |error: &zip::result::ZipError| RawFault::Zip(error.to_string());
        let mut archive =
            ZipArchive::new(Cursor::new(bytes)).map_err(|error| refuse(fault(&error)))?;
        if archive.len() > MAX_ENTRIES {
            return Err(refuse(RawFault::TooManyFiles { max: MAX_ENTRIES }));
        }
        for index in 0..archive.len() {
            let entry = archive.by_index(index).map_err(|error| refuse(fault(&error)))?;
            let name = entry.name().map_err(|error| refuse(fault(&error)))?.into_owned();
            let Some(at) = self.place(&name).filter(|_| entry.is_file()) else { continue };
            let path = root.join(&name);
            let bytes =
                at_most(entry, MAX_BYTES).map_err(|(_, fault)| DataError::raw(&path, fault))?;
            self.put(at, &path, bytes)?;
        }
        Ok(())
    }
}
