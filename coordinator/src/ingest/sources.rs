//! Which raw files a data set has, in which published forms, and where they are in `data.dir`: in a folder, or in the
//! official archive. It opens files but to read them whole, and knows nothing of what is in them.

use super::error::DataError;
use super::known::stamp_file;
use super::raw::{RawFile, unpack};
use super::sets::{Digits, Files};
use super::{RawSet, Split, image_folder, tinyimagenet, tree};
use sha2::Sha256;
use std::fs;
use std::path::{Path, PathBuf};
use thanos_configs::{DataConfig, DataKind, DataSet};

/// Finds a data set's raw files.
///
/// # Errors
/// If `data.dir` is not given or is no folder, or a file is not there; all missing ones are named.
pub(super) fn locate(config: &DataConfig) -> Result<Box<dyn RawSet>, DataError> {
    let facts = DataSet::of(config);
    Ok(match config.kind {
        DataKind::Digits => Box::new(Digits::new(facts)),
        DataKind::Mnist | DataKind::FashionMnist => Box::new(Files::new(facts, find(config, &IDX)?)),
        DataKind::Cifar10 => Box::new(Files::new(facts, find(config, &CIFAR10)?)),
        DataKind::Cifar100 | DataKind::Cifar100U => Box::new(Files::new(facts, find(config, &CIFAR100)?)),
        DataKind::Tinyimagenet => Box::new(tinyimagenet::TinyImageNet::open(&tree_root(config)?, config)?),
        DataKind::ImageFolder => Box::new(image_folder::ImageFolder::open(&tree_root(config)?, config)?),
    })
}

/// Adds names, lengths and times of a data set's raw files to a hash, without reading any.
///
/// # Errors
/// As [`locate`]'s.
pub(super) fn stamp_into(config: &DataConfig, hash: &mut Sha256) -> Result<(), DataError> {
    let found = match config.kind {
        DataKind::Digits => return Ok(()),
        DataKind::Mnist | DataKind::FashionMnist => find(config, &IDX)?,
        DataKind::Cifar10 => find(config, &CIFAR10)?,
        DataKind::Cifar100 | DataKind::Cifar100U => find(config, &CIFAR100)?,
        DataKind::Tinyimagenet | DataKind::ImageFolder => {
            let root = tree_root(config)?;
            return if root.is_dir() { tree::stamp_into(&root, hash) } else { stamp_file(&root, hash) };
        }
    };
    match &found.place {
        Place::Archive(path) => stamp_file(path, hash),
        Place::Files(paths) => paths.iter().try_for_each(|path| stamp_file(path, hash)),
    }
}

/// The folder or archive of a data set that is a tree of pictures.
fn tree_root(config: &DataConfig) -> Result<PathBuf, DataError> {
    match config.kind {
        DataKind::Tinyimagenet => {
            let wanted = "wnids.txt, train/, val/val_annotations.txt, or tiny-imagenet-200.zip";
            root(config, wanted, "tiny-imagenet-200.zip")
        }
        _ => root(config, "train/ and test/ with a folder a class", "images.zip"),
    }
}

/// Names under which a file is known, the official one first.
type Spellings = &'static [&'static str];

/// How the content of a data set's files is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Idx,
    Binary,
    Pickle,
}

/// One published form of a data set.
pub(super) struct Layout {
    pub(super) form: Form,
    /// The official archive; none where files are published one by one.
    archive: Option<&'static str>,
    /// Folder that the archive makes.
    folder: &'static str,
    train: &'static [Spellings],
    test: &'static [Spellings],
}

/// All forms of a data set, the preferred one first.
struct Layouts {
    forms: &'static [Layout],
    advice: &'static str,
}

/// Images before labels.
const IDX: Layouts = Layouts {
    forms: &[Layout {
        form: Form::Idx,
        archive: None,
        folder: "",
        train: &[
            &["train-images-idx3-ubyte", "train-images.idx3-ubyte"],
            &["train-labels-idx1-ubyte", "train-labels.idx1-ubyte"],
        ],
        test: &[
            &["t10k-images-idx3-ubyte", "t10k-images.idx3-ubyte"],
            &["t10k-labels-idx1-ubyte", "t10k-labels.idx1-ubyte"],
        ],
    }],
    advice: "get the four IDX files, gzipped (.gz) or not (`thanos-coord data fetch`)",
};

const CIFAR10: Layouts = Layouts {
    forms: &[
        Layout {
            form: Form::Binary,
            archive: Some("cifar-10-binary.tar.gz"),
            folder: "cifar-10-batches-bin",
            train: &[
                &["data_batch_1.bin"],
                &["data_batch_2.bin"],
                &["data_batch_3.bin"],
                &["data_batch_4.bin"],
                &["data_batch_5.bin"],
            ],
            test: &[&["test_batch.bin"]],
        },
        Layout {
            form: Form::Pickle,
            archive: Some("cifar-10-python.tar.gz"),
            folder: "cifar-10-batches-py",
            train: &[&["data_batch_1"], &["data_batch_2"], &["data_batch_3"], &["data_batch_4"], &["data_batch_5"]],
            test: &[&["test_batch"]],
        },
    ],
    advice: "get cifar-10-binary.tar.gz or cifar-10-python.tar.gz (`thanos-coord data fetch cifar10`), unpacked or not",
};

const CIFAR100: Layouts = Layouts {
    forms: &[
        Layout {
            form: Form::Binary,
            archive: Some("cifar-100-binary.tar.gz"),
            folder: "cifar-100-binary",
            train: &[&["train.bin"]],
            test: &[&["test.bin"]],
        },
        Layout {
            form: Form::Pickle,
            archive: Some("cifar-100-python.tar.gz"),
            folder: "cifar-100-python",
            train: &[&["train"]],
            test: &[&["test"]],
        },
    ],
    advice: "get cifar-100-binary.tar.gz or cifar-100-python.tar.gz (`thanos-coord data fetch cifar100`), unpacked or not",
};

impl Layout {
    fn names(&self) -> impl Iterator<Item = Spellings> {
        self.train.iter().chain(self.test).copied()
    }

    fn of(&self, split: Split) -> &'static [Spellings] {
        match split {
            Split::Train => self.train,
            Split::Test => self.test,
        }
    }
}

/// The raw files of a data set, found.
pub(super) struct Found {
    pub(super) layout: &'static Layout,
    place: Place,
}

enum Place {
    /// Every file of the layout, training files first.
    Files(Vec<PathBuf>),
    Archive(PathBuf),
}

impl Found {
    /// What a split's raw bytes are known by: its files, or the archive.
    pub(super) fn originals(&self, split: Split) -> Result<Vec<RawFile>, DataError> {
        match &self.place {
            Place::Archive(path) => Ok(vec![RawFile::read(path)?]),
            Place::Files(paths) => {
                let (train, test) = paths.split_at(self.layout.train.len());
                let paths = if split == Split::Train { train } else { test };
                paths.iter().map(|path| RawFile::read(path)).collect()
            }
        }
    }

    /// The files of a split in the order of the layout.
    pub(super) fn files(&self, split: Split) -> Result<Vec<RawFile>, DataError> {
        let originals = self.originals(split)?;
        let Place::Archive(path) = &self.place else { return Ok(originals) };
        let [archive] = originals.as_slice() else { return Ok(originals) };
        let (names, folder) = (self.layout.of(split), self.layout.folder);
        let find = |entry: &str| {
            let name = entry.strip_prefix(folder).and_then(|rest| rest.strip_prefix('/')).unwrap_or(entry);
            names.iter().position(|spellings| spellings.contains(&name))
        };
        let files = unpack(archive, names.len(), find)?;
        let missing: Vec<&str> =
            names.iter().zip(&files).filter(|(_, file)| file.is_none()).map(|(n, _)| n[0]).collect();
        if missing.is_empty() {
            return Ok(files.into_iter().flatten().collect());
        }
        Err(DataError::MissingInArchive { archive: path.clone(), files: missing.join(", ") })
    }
}

/// Looks for every form of a data set in `data.dir`: in its folder, in the folder that the archive makes, and in the
/// archive. One place must have all files: a set put together from two is more likely a mistake.
fn find(config: &DataConfig, layouts: &Layouts) -> Result<Found, DataError> {
    let files: Vec<&str> = layouts.forms[0].names().map(|spellings| spellings[0]).collect();
    let dataset = DataSet::of(config).name;
    let archives: Vec<&str> = layouts.forms.iter().filter_map(|layout| layout.archive).collect();
    let given = dir(config, &files.join(", "), &archives)?;
    if given.is_file() {
        let layout = layouts.forms.iter().find(|layout| layout.archive.is_some_and(|name| given.ends_with(name)));
        let layout = layout.unwrap_or(&layouts.forms[0]);
        return Ok(Found { layout, place: Place::Archive(given) });
    }
    let mut missing: Vec<&str> = files;
    let mut places = Vec::new();
    for layout in layouts.forms {
        for folder in ["", layout.folder] {
            let place: PathBuf = given.join(folder).components().collect();
            if places.contains(&place) {
                continue;
            }
            let absent: Vec<&str> =
                layout.names().filter(|names| find_file(&place, names).is_none()).map(|names| names[0]).collect();
            if absent.is_empty() {
                let paths = layout.names().filter_map(|names| find_file(&place, names)).collect();
                return Ok(Found { layout, place: Place::Files(paths) });
            }
            if absent.len() < missing.len() {
                missing = absent;
            }
            if !folder.is_empty() {
                places.push(place);
            }
        }
        if let Some(archive) = layout.archive.map(|name| given.join(name)).filter(|path| path.is_file()) {
            return Ok(Found { layout, place: Place::Archive(archive) });
        }
    }
    places.insert(0, given.components().collect());
    let places: Vec<String> = places.iter().map(|place| place.display().to_string()).collect();
    let (files, places) = (missing.join(", "), places.join(" and "));
    Err(DataError::Missing { dataset, files, places, advice: layouts.advice })
}

/// `data.dir` of a tree of pictures: a folder, its official archive in it, or a .zip.
fn root(config: &DataConfig, files: &str, archive: &str) -> Result<PathBuf, DataError> {
    let given = dir(config, files, &[".zip"])?;
    let zip = given.join(archive);
    Ok(if config.kind == DataKind::Tinyimagenet && zip.is_file() { zip } else { given })
}

/// `data.dir`, which is there and is a folder, or a file whose name ends with one of `archives`.
fn dir(config: &DataConfig, files: &str, archives: &[&str]) -> Result<PathBuf, DataError> {
    let dataset = DataSet::of(config).name;
    let files = files.to_owned();
    let Some(dir) = &config.dir else { return Err(DataError::NoDir { dataset, files }) };
    let refuse = |fault: String| Err(DataError::NotAFolder { dir: dir.clone(), fault, files });
    let name = dir.to_string_lossy();
    match fs::metadata(dir) {
        Err(error) => refuse(error.to_string()),
        Ok(found) if !found.is_dir() && !archives.iter().any(|archive| name.ends_with(archive)) => {
            refuse("not a folder".into())
        }
        Ok(_) => Ok(dir.clone()),
    }
}

/// The first of a file's spellings that is there, bare before gzipped.
fn find_file(folder: &Path, spellings: &[&str]) -> Option<PathBuf> {
    let named = |suffix: &'static str| spellings.iter().map(move |name| folder.join(format!("{name}{suffix}")));
    named("").chain(named(".gz")).find(|path| path.is_file())
}
