//! The files of a .zip of any size: its directory is read at once, each file when it is asked for.
//! Archives come from elsewhere, so names that lead out, names that are there twice, and links are
//! refused.

use super::super::error::{DataError, RawFault};
use super::super::raw::at_most;
use super::{At, MAX_FILE_BYTES, MAX_FILES, Top, TreeFile, is_system_file};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Component, Path};
use std::sync::Arc;
use zip::ZipArchive;

/// A file's type within the mode that Unix archivers keep.
const FILE_TYPE: u32 = 0o170_000;
const REGULAR_FILE: u32 = 0o100_000;
/// Folders around all others that are looked through.
const MAX_WRAPPERS: usize = 3;

pub(super) struct Zip {
    /// A copy of the reader shares file and directory: one a thread.
    archive: ZipArchive<SharedFile>,
    /// Sorted; names in the archive.
    entries: Vec<TreeFile>,
    /// The folder that holds all, with a `/` at its end, or nothing.
    prefix: String,
}

impl Zip {
    pub(super) fn open(root: &Path) -> Result<Self, DataError> {
        let refuse = |fault| DataError::raw(root, fault);
        let file =
            File::open(root).and_then(SharedFile::new).map_err(|error| refuse(error.into()))?;
        let archive = ZipArchive::new(file).map_err(|error| refuse(fault(&error)))?;
        let mut entries = list(root, &archive)?;
        entries.sort();
        Ok(Self { archive, entries, prefix: String::new() })
    }

    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    pub(super) fn top(&mut self, splits: &[&str]) -> Top {
        for _ in 0..MAX_WRAPPERS {
            let top = self.directly_in("");
            let mut folders = top.folders.iter();
            match (folders.next(), folders.next(), top.files.is_empty()) {
                (Some(only), None, true)
                    if !splits.iter().any(|split| split.eq_ignore_ascii_case(only)) =>
                {
                    self.prefix = format!("{}{only}/", self.prefix);
                }
                _ => return top,
            }
        }
        self.directly_in("")
    }

    pub(super) fn has_folder(&self, name: &str) -> bool {
        let start = format!("{}{name}/", self.prefix);
        let from = self.entries.partition_point(|entry| entry.name < start);
        self.entries.get(from).is_some_and(|entry| entry.name.starts_with(&start))
    }

    /// The names directly in a folder, which has a `/` at its end, or in the root.
    pub(super) fn directly_in(&self, folder: &str) -> Top {
        let mut top = Top::default();
        let start = format!("{}{folder}", self.prefix);
        for name in self.entries.iter().filter_map(|entry| entry.name.strip_prefix(&start)) {
            match name.split_once('/') {
                Some((folder, _)) if !top.folders.contains(folder) => {
                    _ = top.folders.insert(folder.into())
                }
                Some(_) => {}
                None => _ = top.files.insert(name.into()),
            }
        }
        top
    }

    pub(super) fn list(&self, name: &str) -> Vec<TreeFile> {
        let inside = |entry: &TreeFile| {
            let own = entry.name.strip_prefix(&self.prefix)?;
            let rest = own.strip_prefix(name)?;
            (name.is_empty() || rest.is_empty() || rest.starts_with('/'))
                .then(|| TreeFile { name: own.into(), at: entry.at.clone() })
        };
        self.entries.iter().filter_map(inside).collect()
    }

    pub(super) fn read(&self, index: usize) -> Result<Vec<u8>, RawFault> {
        let mut archive = self.archive.clone();
        let entry = archive.by_index(index).map_err(|error| fault(&error))?;
        at_most(entry, MAX_FILE_BYTES).map_err(|(_, fault)| fault)
    }
}

/// A file that several readers read, each at a position of its own.
#[derive(Clone)]
struct SharedFile {
    file: Arc<File>,
    bytes: u64,
    at: u64,
}

impl SharedFile {
    fn new(file: File) -> io::Result<Self> {
        let bytes = file.metadata()?.len();
        Ok(Self { file: Arc::new(file), bytes, at: 0 })
    }
}

impl Read for SharedFile {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(into, self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

impl Seek for SharedFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let to = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(offset) => self.bytes.checked_add_signed(offset),
            SeekFrom::Current(offset) => self.at.checked_add_signed(offset),
        };
        self.at = to.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

fn list(root: &Path, archive: &ZipArchive<SharedFile>) -> Result<Vec<TreeFile>, DataError> {
    let refuse = |fault| DataError::raw(root, fault);
    if archive.has_duplicate_names() {
        return Err(refuse(RawFault::ZipNamesTwice));
    }
    if archive.len() > MAX_FILES {
        return Err(refuse(RawFault::TooManyFiles { max: MAX_FILES }));
    }
    let mut archive = archive.clone();
    let mut files = Vec::new();
    for index in 0..archive.len() {
        let entry = archive.by_index_raw(index).map_err(|error| refuse(fault(&error)))?;
        let name = entry.name().map_err(|error| refuse(fault(&error)))?.into_owned();
        let path = root.join(&name);
        let stays = |part: Component<'_>| matches!(part, Component::Normal(_));
        if name.contains(['\\', '\0']) || !Path::new(&name).components().all(stays) {
            return Err(refuse(RawFault::Outside { name }));
        }
        if entry.is_dir() || name.split('/').any(is_system_file) {
            continue;
        }
        if entry.unix_mode().is_some_and(|mode| ![0, REGULAR_FILE].contains(&(mode & FILE_TYPE))) {
            return Err(DataError::raw(&path, RawFault::NotRegular));
        }
        if entry.size() > MAX_FILE_BYTES {
            return Err(DataError::raw(&path, RawFault::TooLarge { max: MAX_FILE_BYTES }));
        }
        files.push(TreeFile {
            name,
            at: At::Zip { index, bytes: entry.size(), crc32: entry.crc32() },
        });
    }
    Ok(files)
}

fn fault(error: &zip::result::ZipError) -> RawFault {
    RawFault::Zip(error.to_string())
}
