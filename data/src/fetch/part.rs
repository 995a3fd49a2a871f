//! The part of a file on disk while it is downloaded: opened and locked, cut, appended to, hashed,
//! and in the end given its final name. It must not know about addresses, answers or published
//! sizes.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use md5::{Digest, Md5};

use super::{CHUNK, FetchError};

/// An open `.FILE.part` and its length. Its lock ends when it is dropped.
pub(super) struct Part {
    path: PathBuf,
    file: File,
    len: u64,
}

impl Part {
    /// Opens the part that an earlier run left, or makes an empty one, and locks it against other
    /// runs.
    pub(super) fn open(dir: &Path, file: &str) -> Result<Self, FetchError> {
        let path = dir.join(format!(".{file}.part"));
        let fail = |error| FetchError::io("open", &path, error);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(fail)?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => return Err(FetchError::Busy { path }),
            // A file system without locks is still good for one run at a time.
            Ok(()) | Err(TryLockError::Error(_)) => {}
        }
        let len = file.metadata().map_err(fail)?.len();
        Ok(Self { path, file, len })
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Shortens the part to its first `len` bytes; what is appended comes after them.
    pub(super) fn cut(&mut self, len: u64) -> Result<(), FetchError> {
        let cut = self.file.set_len(len).and_then(|()| self.file.seek(SeekFrom::Start(len)));
        cut.map_err(|error| FetchError::io("cut", &self.path, error))?;
        self.len = len;
        Ok(())
    }

    /// Appends `bytes`. It must follow a `cut`, which sets the place.
    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<(), FetchError> {
        self.file
            .write_all(bytes)
            .map_err(|error| FetchError::io("write to", &self.path, error))?;
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// The MD5 of what is on disk, read back so that the check covers what was written and what an
    /// earlier run left.
    pub(super) fn md5(&mut self) -> Result<String, FetchError> {
        let read = self.file.rewind().and_then(|()| md5_of(&mut self.file));
        read.map_err(|error| FetchError::io("read", &self.path, error))
    }

    /// Waits until the bytes are on the disk, so that the final name never stands for bytes that a
    /// crash can lose.
    pub(super) fn sync(&self) -> Result<(), FetchError> {
        self.file.sync_all().map_err(|error| FetchError::io("write to", &self.path, error))
    }

    /// Gives the part its final name. The caller has checked and synced it.
    pub(super) fn keep_as(self, path: &Path, dir: &Path) -> Result<(), FetchError> {
        fs::rename(&self.path, path).map_err(|error| FetchError::io("name", path, error))?;
        // The new name is on the disk only when the folder is.
        File::open(dir)
            .and_then(|dir| dir.sync_all())
            .map_err(|error| FetchError::io("sync the folder", dir, error))
    }

    /// Removes the part's name. The bytes are left alone: after a rename by another run they are
    /// the final file.
    pub(super) fn discard(&self) -> Result<(), FetchError> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(FetchError::io("remove", &self.path, error))
            }
            _ => Ok(()),
        }
    }
}

/// The MD5 of all that `from` gives, as 32 lower-case hex digits.
pub(super) fn md5_of(from: &mut impl Read) -> io::Result<String> {
    let mut hash = Md5::new();
    let mut buffer = vec![0; CHUNK];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(got) => hash.update(&buffer[..got]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
