//! A file of lines that is appended to: it always ends in a whole line, and what was not durable
//! yet when a sync failed is written again. (After a failed fsync Linux may drop the pages and
//! report success the next time: fsync(2), NOTES.)

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

#[derive(Debug)]
pub(super) struct Lines {
    path: PathBuf,
    file: File,
    /// Bytes that are durable, and the lines after them.
    synced: u64,
    unsynced: Vec<u8>,
    /// The last write or sync failed: `unsynced` may be in the file, in part, or not.
    in_doubt: bool,
}

impl Lines {
    /// Opens a file, or makes it; a last line that a crash cut off is removed.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let mut file = File::options().create(true).append(true).read(true).open(path)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        if whole < bytes.len() {
            file.set_len(whole as u64)?;
        }
        Ok(Self {
            path: path.into(),
            file,
            synced: whole as u64,
            unsynced: Vec::new(),
            in_doubt: false,
        })
    }

    /// Appends in one write, so that a reader sees whole lines.
    pub(super) fn append(&mut self, mut line: String) -> io::Result<()> {
        line.push('\n');
        self.resolve()?;
        if let Err(error) = self.file.write_all(line.as_bytes()) {
            // A part of it may be there.
            self.in_doubt = self.file.set_len(self.synced + self.unsynced.len() as u64).is_err();
            return Err(self.cannot_write(&error));
        }
        self.unsynced.extend(line.into_bytes());
        Ok(())
    }

    pub(super) fn sync(&mut self) -> io::Result<()> {
        self.resolve()?;
        if self.unsynced.is_empty() {
            return Ok(());
        }
        if let Err(error) = sync(&self.file) {
            self.in_doubt = true;
            return Err(self.cannot_write(&error));
        }
        self.synced += self.unsynced.len() as u64;
        self.unsynced.clear();
        Ok(())
    }

    /// Brings the file to what it should hold, after a sync that failed.
    fn resolve(&mut self) -> io::Result<()> {
        if !self.in_doubt {
            return Ok(());
        }
        let rewritten =
            self.file.set_len(self.synced).and_then(|()| self.file.write_all(&self.unsynced));
        rewritten.map_err(|error| self.cannot_write(&error))?;
        self.in_doubt = false;
        Ok(())
    }

    fn cannot_write(&self, error: &io::Error) -> io::Error {
        io::Error::new(error.kind(), format!("cannot write {}: {error}", self.path.display()))
    }
}

fn sync(file: &File) -> io::Result<()> {
    fail::fail_point!("ledger-sync", |error| Err(io::Error::other(error.unwrap_or_default())));
    file.sync_data()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_failed_write_or_sync_are_written_again_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("lines");
        std::fs::write(&path, "one\ntw").expect("written");
        let mut lines = Lines::open(&path).expect("opened");
        lines.append("two".into()).expect("written");
        // As after a sync that failed halfway: the file holds something else than it should.
        lines.in_doubt = true;
        lines.file.set_len(5).expect("cut");
        lines.append("three".into()).expect("written");
        lines.sync().expect("synced");
        assert_eq!(std::fs::read_to_string(&path).expect("read"), "one\ntwo\nthree\n");
        assert!(lines.unsynced.is_empty());
    }
}
