//! A file of lines that another thread or process appends to, read as it grows. It may be replaced,
//! or be cut back; a last line that is not whole yet is read later. It knows nothing of what the
//! lines mean.

use std::fs::{File, Metadata};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::UNIX_EPOCH;

/// The file, and how far it has been read.
#[derive(Debug)]
pub(in crate::telemetry) struct Tail {
    path: PathBuf,
    /// What is read at a time; no line is longer.
    max_bytes: u64,
    /// `None`: there was no file.
    identity: Option<FileIdentity>,
    offset: u64,
}

/// A number of a file is used again; with the time at which it was made it is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::telemetry) struct FileIdentity {
    pub(in crate::telemetry) inode: u64,
    /// Nanoseconds since 1970; 0 where the file system does not record it.
    pub(in crate::telemetry) created: u128,
}

impl FileIdentity {
    fn of(file: &Metadata) -> Self {
        let created = file.created().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        Self { inode: file.ino(), created: created.map_or(0, |since| since.as_nanos()) }
    }
}

/// What a file has gained since it was last read.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::telemetry) struct Growth {
    /// Whole lines.
    pub(in crate::telemetry) text: String,
    /// What was read before is not in the file any more: `text` begins at its start.
    pub(in crate::telemetry) replaced: bool,
    /// There is more to read.
    pub(in crate::telemetry) more: bool,
}

impl Tail {
    /// `max_bytes`: what is read at a time. A longer line is skipped.
    pub(in crate::telemetry) fn new(path: PathBuf, max_bytes: u64) -> Self {
        Self { path, max_bytes, identity: None, offset: 0 }
    }

    /// The file that was read last.
    pub(in crate::telemetry) fn identity(&self) -> Option<FileIdentity> {
        self.identity
    }

    /// Reads the next part.
    ///
    /// # Errors
    /// If the file is there and cannot be read.
    pub(in crate::telemetry) fn read(&mut self) -> io::Result<Growth> {
        let mut file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let replaced = self.offset > 0;
                (self.identity, self.offset) = (None, 0);
                return Ok(Growth { replaced, ..Growth::default() });
            }
            Err(error) => return Err(error),
        };
        let metadata = file.metadata()?;
        let identity = FileIdentity::of(&metadata);
        let replaced =
            self.offset > 0 && (self.identity != Some(identity) || metadata.len() < self.offset);
        if replaced {
            self.offset = 0;
        }
        self.identity = Some(identity);
        file.seek(SeekFrom::Start(self.offset))?;
        let mut bytes = Vec::new();
        let read = file.take(self.max_bytes).read_to_end(&mut bytes)? as u64;
        let is_full = read == self.max_bytes;
        match bytes.iter().rposition(|byte| *byte == b'\n') {
            Some(end) => bytes.truncate(end + 1),
            // No line of ours is that long: it is skipped.
            None if is_full => bytes.fill(b' '),
            None => bytes.clear(),
        }
        self.offset += bytes.len() as u64;
        Ok(Growth { text: String::from_utf8_lossy(&bytes).into_owned(), replaced, more: is_full })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Write;

    const MAX_BYTES: u64 = 1 << 10;

    #[test]
    fn whole_lines_are_read_once_and_a_replaced_file_from_its_start() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("steps.jsonl");
        let mut tail = Tail::new(path.clone(), MAX_BYTES);
        let check = |tail: &mut Tail, text: &str, replaced: bool| {
            let expected = Growth { text: text.into(), replaced, more: false };
            assert_eq!(tail.read().expect("readable"), expected);
        };
        check(&mut tail, "", false);
        let append = |text: &str| {
            let file = fs::File::options().append(true).create(true).open(&path);
            file.and_then(|mut file| file.write_all(text.as_bytes())).expect("written");
        };
        append("one\ntw");
        check(&mut tail, "one\n", false);
        check(&mut tail, "", false);
        append("o\n");
        check(&mut tail, "two\n", false);
        let before = tail.identity();
        // As a ledger is cut: by a rename.
        fs::write(folder.path().join("new"), "one\n")
            .and_then(|()| fs::rename(folder.path().join("new"), &path))
            .expect("cut");
        check(&mut tail, "one\n", true);
        assert_ne!(tail.identity(), before);
        fs::write(&path, "").expect("cut");
        check(&mut tail, "", true);
        append("three\n");
        check(&mut tail, "three\n", false);
        fs::remove_file(&path).expect("removed");
        check(&mut tail, "", true);
    }

    #[test]
    fn a_line_without_an_end_holds_up_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("steps.jsonl");
        let long = "x".repeat(MAX_BYTES as usize + 1);
        fs::write(&path, format!("{long}\nnext\n")).expect("written");
        let mut tail = Tail::new(path, MAX_BYTES);
        let first = tail.read().expect("readable");
        assert!(first.more && first.text.trim().is_empty());
        assert_eq!(tail.read().expect("readable").text, "x\nnext\n");
    }
}
