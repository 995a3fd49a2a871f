//! A tree of files, as a folder or as a .zip: its names, and the content of each, without unpacking anything to disk.
//! Names that lead out of it are refused. It knows nothing of images or data sets.

use super::error::{DataError, RawFault};
use super::raw::{MOST_BYTES, at_most};
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::Cursor;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;
use walkdir::WalkDir;
use zip::ZipArchive;

/// Folders within each other.
const MOST_DEPTH: usize = 8;
/// Files of a tree: TinyImageNet has 120,609.
const MOST_FILES: usize = 8 << 20;
/// Bytes of one file of a tree, unpacked.
const MOST_FILE_BYTES: u64 = 64 << 20;
/// A file's type within the mode that Unix archivers keep.
const FILE_TYPE: u32 = 0o170_000;
const REGULAR_FILE: u32 = 0o100_000;

/// Files below one root, by name.
pub(super) struct Tree {
    root: PathBuf,
    store: Store,
    /// Sorted by name, each once.
    files: Vec<TreeFile>,
}

/// One file: its name is relative to the root, its parts joined by `/`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct TreeFile {
    pub(super) name: String,
    at: At,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum At {
    /// Length, and nanoseconds of the last change.
    Folder { bytes: u64, changed: u128 },
    /// Index in the archive.
    Zip(usize),
}

enum Store {
    Folder,
    /// A copy of the reader shares bytes and directory: one a thread.
    Zip {
        archive: ZipArchive<Cursor<Arc<[u8]>>>,
        sha256: Vec<u8>,
    },
}

impl Tree {
    /// Lists a folder, or a .zip whose bytes are read whole.
    ///
    /// # Errors
    /// If it cannot be read, or holds a name that leads out of it or that is there twice.
    pub(super) fn open(root: &Path) -> Result<Self, DataError> {
        let refuse = |fault| DataError::raw(root, fault);
        let (store, mut files) = if root.is_dir() {
            (Store::Folder, list_folder(root)?)
        } else {
            let file = File::open(root).map_err(|error| refuse(error.into()))?;
            let bytes = at_most(file, MOST_BYTES).map_err(|(_, fault)| refuse(fault))?;
            let sha256 = Sha256::digest(&bytes).to_vec();
            let archive = ZipArchive::new(Cursor::new(bytes.into())).map_err(|error| refuse(zip_fault(&error)))?;
            let files = list_zip(root, &archive)?;
            (Store::Zip { archive, sha256 }, files)
        };
        files.sort();
        Ok(Self { root: root.into(), store, files })
    }

    /// The files below a folder of the tree, with the rest of their names; `folder` ends with `/`.
    pub(super) fn below<'a>(&'a self, folder: &str) -> impl Iterator<Item = (&'a str, &'a TreeFile)> {
        let inside = move |file: &'a TreeFile| Some((file.name.strip_prefix(folder)?, file));
        self.files.iter().filter_map(inside)
    }

    /// A file by its name.
    pub(super) fn find(&self, name: &str) -> Option<&TreeFile> {
        let at = self.files.binary_search_by(|file| file.name.as_str().cmp(name)).ok()?;
        self.files.get(at)
    }

    /// What messages call a file.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The content of a file of this tree.
    ///
    /// # Errors
    /// If it cannot be read, is longer than a file of images may be, or is damaged in its archive.
    pub(super) fn read(&self, file: &TreeFile) -> Result<Vec<u8>, RawFault> {
        match (&self.store, &file.at) {
            (Store::Zip { archive, .. }, At::Zip(index)) => {
                let mut archive = archive.clone();
                let entry = archive.by_index(*index).map_err(|error| zip_fault(&error))?;
                at_most(entry, MOST_FILE_BYTES).map_err(|(_, fault)| fault)
            }
            _ => at_most(File::open(self.path(&file.name))?, MOST_FILE_BYTES).map_err(|(_, fault)| fault),
        }
    }

    /// Adds to a hash what tells this tree from another: the bytes of an archive; names, lengths and times of the last
    /// change of the files of a folder, since reading them all would take as long as packing them.
    pub(super) fn hash_into(&self, hash: &mut Sha256) {
        if let Store::Zip { sha256, .. } = &self.store {
            hash.update(sha256);
            return;
        }
        stamp_files(&self.files, hash);
    }
}

/// Adds names, lengths and times of the files of a folder to a hash, without reading any.
///
/// # Errors
/// As [`Tree::open`]'s.
pub(super) fn stamp_into(root: &Path, hash: &mut Sha256) -> Result<(), DataError> {
    let mut files = list_folder(root)?;
    files.sort();
    stamp_files(&files, hash);
    Ok(())
}

fn stamp_files(files: &[TreeFile], hash: &mut Sha256) {
    for file in files {
        hash.update((file.name.len() as u64).to_le_bytes());
        hash.update(file.name.as_bytes());
        if let At::Folder { bytes, changed } = file.at {
            hash.update(bytes.to_le_bytes());
            hash.update(changed.to_le_bytes());
        }
    }
}

/// Hidden files are not listed: systems leave them in every folder.
fn list_folder(root: &Path) -> Result<Vec<TreeFile>, DataError> {
    let whole_root = fs::canonicalize(root).map_err(|error| DataError::raw(root, error.into()))?;
    let hidden = |name: &std::ffi::OsStr| name.to_string_lossy().starts_with('.');
    let mut files = Vec::new();
    let walk = WalkDir::new(root).min_depth(1).max_depth(MOST_DEPTH).into_iter();
    for entry in walk.filter_entry(|entry| entry.depth() == 0 || !hidden(entry.file_name())) {
        let entry = entry.map_err(|error| DataError::raw(root, RawFault::Io(error.into())))?;
        let refuse = |fault| Err(DataError::raw(entry.path(), fault));
        if entry.path_is_symlink() {
            match fs::canonicalize(entry.path()) {
                Err(error) => return refuse(error.into()),
                Ok(to) if !to.starts_with(&whole_root) || to.is_dir() => return refuse(RawFault::Link { to }),
                Ok(_) => {}
            }
        } else if entry.file_type().is_dir() {
            if entry.depth() == MOST_DEPTH {
                return refuse(RawFault::TooDeep { most: MOST_DEPTH });
            }
            continue;
        }
        let name = entry.path().strip_prefix(root).unwrap_or(entry.path());
        let Some(name) = name.to_str() else { return refuse(RawFault::NotUtf8) };
        let at = fs::metadata(entry.path()).and_then(|found| {
            let changed = found.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
            Ok(At::Folder { bytes: found.len(), changed: changed.as_nanos() })
        });
        match at {
            Ok(at) => files.push(TreeFile { name: name.into(), at }),
            Err(error) => return refuse(error.into()),
        }
        if files.len() > MOST_FILES {
            return Err(DataError::raw(root, RawFault::TooManyFiles { most: MOST_FILES }));
        }
    }
    Ok(files)
}

fn list_zip(root: &Path, archive: &ZipArchive<Cursor<Arc<[u8]>>>) -> Result<Vec<TreeFile>, DataError> {
    let refuse = |fault| DataError::raw(root, fault);
    if archive.has_duplicate_names() {
        return Err(refuse(RawFault::ZipNamesTwice));
    }
    if archive.len() > MOST_FILES {
        return Err(refuse(RawFault::TooManyFiles { most: MOST_FILES }));
    }
    let mut archive = archive.clone();
    let mut files = Vec::new();
    for index in 0..archive.len() {
        let entry = archive.by_index_raw(index).map_err(|error| refuse(zip_fault(&error)))?;
        let name = entry.name().map_err(|error| refuse(zip_fault(&error)))?.into_owned();
        let path = root.join(&name);
        let stays = |part: Component<'_>| matches!(part, Component::Normal(_));
        if name.contains(['\\', '\0']) || !Path::new(&name).components().all(stays) {
            return Err(refuse(RawFault::Outside { name }));
        }
        if entry.is_dir() || name.rsplit('/').any(|part| part.starts_with('.')) {
            continue;
        }
        if entry.unix_mode().is_some_and(|mode| ![0, REGULAR_FILE].contains(&(mode & FILE_TYPE))) {
            return Err(DataError::raw(&path, RawFault::NotRegular));
        }
        if entry.size() > MOST_FILE_BYTES {
            return Err(DataError::raw(&path, RawFault::TooLarge { most: MOST_FILE_BYTES }));
        }
        files.push(TreeFile { name, at: At::Zip(index) });
    }
    Ok(files)
}

fn zip_fault(error: &zip::result::ZipError) -> RawFault {
    RawFault::Zip(error.to_string())
}
