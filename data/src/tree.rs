//! A tree of files, as a folder or as a .zip: its names, and the content of each, without unpacking
//! anything to disk. In a folder links are followed, as by torchvision; in an archive, links and
//! names that lead out are refused. It knows nothing of images or data sets.

mod folder;
mod zipped;

use super::error::{DataError, RawFault};
use super::raw::at_most;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use zipped::Zip;

/// Folders within each other.
const MAX_DEPTH: usize = 32;
/// Files of a tree: TinyImageNet has 120,609, ImageNet 1.3 million.
const MAX_FILES: usize = 8 << 20;
/// Bytes of one file of a tree, unpacked.
pub(super) const MAX_FILE_BYTES: u64 = 64 << 20;

/// Files below one root, by name: those of the folders that were listed.
pub(super) struct Tree {
    root: PathBuf,
    store: Store,
    /// Sorted by name, each once.
    files: Vec<TreeFile>,
    skipped: Vec<Passed>,
}

/// One file: its name is relative to the root, its parts joined by `/`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct TreeFile {
    pub(super) name: String,
    at: At,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum At {
    Folder {
        bytes: u64,
        /// Nanoseconds of the last change.
        changed: u128,
        /// Where the name is not UTF-8.
        path: Option<Box<Path>>,
    },
    Zip {
        index: usize,
        bytes: u64,
        crc32: u32,
    },
}

/// A file of a folder that cannot be one of the data set, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Passed {
    pub(super) name: String,
    pub(super) reason: &'static str,
}

enum Store {
    Folder,
    Zip(Zip),
}

/// What is directly in the root, each sorted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Top {
    pub(super) folders: BTreeSet<String>,
    pub(super) files: BTreeSet<String>,
}

impl Tree {
    /// Opens a folder, of which nothing is listed yet, or a .zip, of which the directory is read.
    ///
    /// # Errors
    /// If an archive cannot be read, or has a name that leads out of it or that occurs twice.
    pub(super) fn open(root: &Path) -> Result<Self, DataError> {
        let store = if root.is_dir() { Store::Folder } else { Store::Zip(Zip::open(root)?) };
        Ok(Self { root: root.into(), store, files: Vec::new(), skipped: Vec::new() })
    }

    /// The names directly in the root, hidden ones and those that systems leave in folders apart. A
    /// .zip in which all is in one folder has that folder as its root, unless it is one of
    /// `splits`.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub(super) fn top(&mut self, splits: &[&str]) -> Result<Top, DataError> {
        match &mut self.store {
            Store::Folder => folder::top(&self.root),
            Store::Zip(zip) => Ok(zip.top(splits)),
        }
    }

    /// Whether there is a folder of this name (`a/b`).
    pub(super) fn has_folder(&self, name: &str) -> bool {
        match &self.store {
            Store::Folder => self.root.join(name).is_dir(),
            Store::Zip(zip) => zip.has_folder(name),
        }
    }

    /// The folders directly in a folder of the tree, as [`Tree::top`].
    ///
    /// # Errors
    /// If it cannot be read.
    pub(super) fn folders_in(&self, name: &str) -> Result<BTreeSet<String>, DataError> {
        match &self.store {
            Store::Folder => Ok(folder::top(&self.root.join(name))?.folders),
            Store::Zip(zip) => Ok(zip.directly_in(&format!("{name}/")).folders),
        }
    }

    /// Lists the files below a folder of the tree (`a/b`), or one file, in addition to what is
    /// listed already.
    ///
    /// # Errors
    /// If a folder cannot be read, is nested too deeply or has too many files. One that is not
    /// there has no files.
    pub(super) fn list(&mut self, name: &str) -> Result<(), DataError> {
        let found = match &self.store {
            Store::Folder => folder::list(&self.root, name, &mut self.skipped)?,
            Store::Zip(zip) => zip.list(name),
        };
        self.files.extend(found);
        if self.files.len() > MAX_FILES {
            return Err(DataError::raw(&self.root, RawFault::TooManyFiles { max: MAX_FILES }));
        }
        self.files.sort();
        self.files.dedup();
        Ok(())
    }

    /// The listed files below a folder, with the rest of their names; `folder` ends with `/`.
    pub(super) fn below<'a>(
        &'a self,
        folder: &str,
    ) -> impl Iterator<Item = (&'a str, &'a TreeFile)> {
        let from = self.files.partition_point(|file| file.name.as_str() < folder);
        let inside = move |file: &'a TreeFile| Some((file.name.strip_prefix(folder)?, file));
        self.files[from..].iter().map_while(inside)
    }

    /// A listed file by its name.
    pub(super) fn find(&self, name: &str) -> Option<&TreeFile> {
        let at = self.files.binary_search_by(|file| file.name.as_str().cmp(name)).ok()?;
        self.files.get(at)
    }

    /// What messages call a file.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        match &self.store {
            Store::Folder => self.root.join(name),
            Store::Zip(zip) => self.root.join(zip.prefix()).join(name),
        }
    }

    /// What was found in the listed folders and is not a file: links to nothing, links in a circle,
    /// sockets.
    pub(super) fn skipped(&self) -> &[Passed] {
        &self.skipped
    }

    /// The content of a file of this tree.
    ///
    /// # Errors
    /// If it cannot be read, is longer than a file of images may be, or is damaged in its archive.
    pub(super) fn read(&self, file: &TreeFile) -> Result<Vec<u8>, RawFault> {
        match (&self.store, &file.at) {
            (Store::Zip(zip), At::Zip { index, .. }) => zip.read(*index),
            (_, At::Folder { path: Some(path), .. }) => read_file(&self.root.join(path)),
            _ => read_file(&self.root.join(&file.name)),
        }
    }
}

fn read_file(path: &Path) -> Result<Vec<u8>, RawFault> {
    at_most(File::open(path)?, MAX_FILE_BYTES).map_err(|(_, fault)| fault)
}

impl TreeFile {
    /// Adds to a hash what identifies this file: its name, and its length and time of the last
    /// change in a folder, since reading all would take as long as packing them; its length and
    /// CRC-32 in an archive.
    pub(super) fn hash_into(&self, hash: &mut Sha256) {
        hash.update((self.name.len() as u64).to_le_bytes());
        hash.update(self.name.as_bytes());
        match &self.at {
            At::Folder { bytes, changed, .. } => {
                hash.update(bytes.to_le_bytes());
                hash.update(changed.to_le_bytes());
            }
            At::Zip { bytes, crc32, .. } => {
                hash.update(bytes.to_le_bytes());
                hash.update(crc32.to_le_bytes());
            }
        }
    }
}

/// Whether operating systems, desktops and file servers leave a file or folder of this name next to
/// a user's own.
fn is_system_file(name: &str) -> bool {
    const NAMES: [&str; 7] = [
        "Thumbs.db",
        "desktop.ini",
        "lost+found",
        "__MACOSX",
        "@eaDir",
        "$RECYCLE.BIN",
        "System Volume Information",
    ];
    name.starts_with('.') || NAMES.iter().any(|known| known.eq_ignore_ascii_case(name))
}
