//! Which raw files a published data set has, in which forms, and where they are in `data.dir`: in a
//! folder, or in an archive, as published, as torchvision and Kaggle lay them out, or repacked. It
//! knows nothing of what is in the files.

use super::archive::{self, is_archive};
use super::cifar::Cifar;
use super::error::DataError;
use super::raw::RawFile;
use super::samples::Split;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use thanos_configs::{DataConfig, DataKind};

/// Names that a message shows.
const MAX_SHOWN: usize = 8;

/// Where the images of a kind of data set come from.
pub(super) enum Source {
    /// This program.
    Embedded,
    /// A few files, in these published forms.
    Files(&'static Layouts),
    /// A tree of pictures, as TinyImageNet is published.
    TinyImageNet,
    /// A tree of pictures with a folder per class.
    ImageFolder,
}

impl Source {
    pub(super) fn of(kind: DataKind) -> Self {
        match kind {
            DataKind::Digits => Self::Embedded,
            DataKind::Mnist => Self::Files(&MNIST),
            DataKind::FashionMnist => Self::Files(&FASHION_MNIST),
            DataKind::Cifar10 => Self::Files(&CIFAR10),
            DataKind::Cifar100 | DataKind::Cifar100U => Self::Files(&CIFAR100),
            DataKind::Tinyimagenet => Self::TinyImageNet,
            DataKind::ImageFolder => Self::ImageFolder,
        }
    }
}

/// Names under which a file is known, the official one first.
type Spellings = &'static [&'static str];

/// How the content of a data set's files is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Idx,
    Binary(Cifar),
    Pickle(Cifar),
}

/// One published form of a data set.
pub(super) struct Layout {
    form: Form,
    /// The official archive; none where files are published one by one.
    archive: Option<&'static str>,
    /// Folders that the archive or a library makes.
    folders: &'static [&'static str],
    train: &'static [Spellings],
    test: &'static [Spellings],
}

/// All forms of a data set, the preferred one first.
pub(super) struct Layouts {
    forms: &'static [Layout],
    /// What its archive's name has in it, however it is written, and what that of a similar data
    /// set has.
    word: &'static str,
    other: &'static str,
    /// Whether the files themselves identify which of two similar data sets this is, so that any
    /// folder may have them.
    is_self_describing: bool,
    advice: &'static str,
}

/// Images before labels.
const fn idx(folders: &'static [&'static str]) -> Layout {
    Layout {
        form: Form::Idx,
        archive: None,
        folders,
        train: &[
            &["train-images-idx3-ubyte", "train-images.idx3-ubyte"],
            &["train-labels-idx1-ubyte", "train-labels.idx1-ubyte"],
        ],
        test: &[
            &["t10k-images-idx3-ubyte", "t10k-images.idx3-ubyte"],
            &["t10k-labels-idx1-ubyte", "t10k-labels.idx1-ubyte"],
        ],
    }
}

const IDX_ADVICE: &str = "get the four IDX files, gzipped (.gz) or not (`thanos-coord data fetch`)";

const MNIST: Layouts = Layouts {
    forms: &[idx(&["MNIST/raw", "raw"])],
    word: "mnist",
    other: "fashion",
    is_self_describing: false,
    advice: IDX_ADVICE,
};

const FASHION_MNIST: Layouts = Layouts {
    forms: &[idx(&["FashionMNIST/raw", "raw"])],
    word: "fashion",
    other: "",
    is_self_describing: false,
    advice: IDX_ADVICE,
};

const CIFAR10: Layouts = Layouts {
    forms: &[
        Layout {
            form: Form::Binary(Cifar::Ten),
            archive: Some("cifar-10-binary.tar.gz"),
            folders: &["cifar-10-batches-bin"],
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
            form: Form::Pickle(Cifar::Ten),
            archive: Some("cifar-10-python.tar.gz"),
            folders: &["cifar-10-batches-py"],
            train: &[
                &["data_batch_1"],
                &["data_batch_2"],
                &["data_batch_3"],
                &["data_batch_4"],
                &["data_batch_5"],
            ],
            test: &[&["test_batch"]],
        },
    ],
    word: "cifar",
    other: "cifar100",
    is_self_describing: true,
    advice: "get cifar-10-binary.tar.gz or cifar-10-python.tar.gz (`thanos-coord data fetch \
        cifar10`), unpacked or not",
};

const CIFAR100: Layouts = Layouts {
    forms: &[
        Layout {
            form: Form::Binary(Cifar::Hundred),
            archive: Some("cifar-100-binary.tar.gz"),
            folders: &["cifar-100-binary"],
            train: &[&["train.bin"]],
            test: &[&["test.bin"]],
        },
        Layout {
            form: Form::Pickle(Cifar::Hundred),
            archive: Some("cifar-100-python.tar.gz"),
            folders: &["cifar-100-python"],
            train: &[&["train"]],
            test: &[&["test"]],
        },
    ],
    word: "cifar100",
    other: "",
    is_self_describing: true,
    advice: "get cifar-100-binary.tar.gz or cifar-100-python.tar.gz (`thanos-coord data fetch \
        cifar100`), unpacked or not",
};

impl Layout {
    fn names(&self) -> impl Iterator<Item = Spellings> {
        self.train.iter().chain(self.test).copied()
    }

    /// All files in a folder.
    fn all_in(&'static self, folder: &Path) -> Option<FoundFiles> {
        let paths: Vec<PathBuf> =
            self.names().map_while(|names| find_file(folder, names)).collect();
        (paths.len() == self.names().count()).then_some(FoundFiles::Files(self, paths))
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
    layouts: &'static Layouts,
    pub(super) place: FoundFiles,
}

pub(super) enum FoundFiles {
    /// Every file of the layout, training files first.
    Files(&'static Layout, Vec<PathBuf>),
    /// Which of the forms is in it is known when it is read.
    Archive(PathBuf),
}

impl Found {
    /// What a split's raw bytes are known by: its files, or the archive.
    pub(super) fn originals(&self, split: Split) -> Result<Vec<RawFile>, DataError> {
        match &self.place {
            FoundFiles::Archive(path) => Ok(vec![RawFile::read(path)?]),
            FoundFiles::Files(layout, paths) => {
                let (train, test) = paths.split_at(layout.train.len());
                let paths = if split == Split::Train { train } else { test };
                paths.iter().map(|path| RawFile::read(path)).collect()
            }
        }
    }

    /// The files of a split in the order of the layout, and how they are written.
    pub(super) fn files(&self, split: Split) -> Result<(Form, Vec<RawFile>), DataError> {
        let path = match &self.place {
            FoundFiles::Files(layout, _) => return Ok((layout.form, self.originals(split)?)),
            FoundFiles::Archive(path) => path,
        };
        let forms = self.layouts.forms;
        // Every spelling of every file of every form has a place of its own.
        let spelled: Vec<(usize, usize, &str)> = forms
            .iter()
            .enumerate()
            .flat_map(|(form, layout)| {
                let names = layout.of(split).iter().enumerate();
                names.flat_map(move |(name, spellings)| {
                    spellings.iter().map(move |word| (form, name, *word))
                })
            })
            .collect();
        let find = |name: &str| {
            let name = name.strip_suffix(".gz").unwrap_or(name);
            spelled.iter().position(|(_, _, spelling)| *spelling == name)
        };
        let (mut unpacked, others) = archive::unpack(&RawFile::read(path)?, spelled.len(), find)?;
        let mut missing = Vec::new();
        for (form, layout) in forms.iter().enumerate() {
            let take = |name| {
                let mut places = (0..spelled.len())
                    .filter(|at| (spelled[*at].0, spelled[*at].1) == (form, name));
                places.find_map(|at| unpacked[at].take())
            };
            let files: Vec<Option<RawFile>> = (0..layout.of(split).len()).map(take).collect();
            if files.iter().all(Option::is_some) {
                return Ok((layout.form, files.into_iter().flatten().collect()));
            }
            let absent = files.iter().zip(layout.of(split)).filter(|(file, _)| file.is_none());
            let absent: Vec<&str> = absent.map(|(_, names)| names[0]).collect();
            if missing.is_empty() || absent.len() < missing.len() {
                missing = absent;
            }
        }
        Err(DataError::MissingInArchive {
            archive: path.clone(),
            files: missing.join(", "),
            others: others.join(", "),
        })
    }
}

/// Looks for every form of a data set in `data.dir`: in its folder, in the folders that archives
/// and libraries make, and in archives. One place must have all files: a set put together from two
/// is more likely a mistake.
pub(super) fn find(config: &DataConfig, layouts: &'static Layouts) -> Result<Found, DataError> {
    let files: Vec<&str> = layouts.forms[0].names().map(|spellings| spellings[0]).collect();
    let given = dir(config, &files.join(", "), &archive::ENDINGS)?;
    let found = |place| Ok(Found { layouts, place });
    if given.is_file() {
        return found(FoundFiles::Archive(given));
    }
    let mut search = Search { layouts, missing: files, places: vec![given.components().collect()] };
    for layout in layouts.forms {
        if let Some(files) = search.files(layout, &given) {
            return found(files);
        }
        if let Some(archive) =
            layout.archive.map(|name| given.join(name)).filter(|path| path.is_file())
        {
            return found(FoundFiles::Archive(archive));
        }
    }
    let (folders, names) = directly_in(&given);
    let mut others: Vec<FoundFiles> = Vec::new();
    if layouts.is_self_describing {
        let inside = folders.iter().map(|folder| given.join(folder));
        others = inside
            .filter_map(|folder| layouts.forms.iter().find_map(|form| form.all_in(&folder)))
            .collect();
    }
    if others.is_empty() {
        others = search
            .archives(&names)
            .into_iter()
            .map(|name| FoundFiles::Archive(given.join(name)))
            .collect();
    }
    match others.len() {
        0 => Err(search.missing(config, (folders, names))),
        1 => found(others.remove(0)),
        _ => {
            let places: Vec<String> =
                others.iter().map(|place| place.path().display().to_string()).collect();
            let advice = format!("name the one that is meant, such as data.dir={}", places[0]);
            Err(DataError::Layout {
                dir: given,
                found: format!("found {}", places.join(" and ")),
                advice,
            })
        }
    }
}

struct Search {
    layouts: &'static Layouts,
    /// The fewest files that a place lacks.
    missing: Vec<&'static str>,
    places: Vec<PathBuf>,
}

impl Search {
    /// A form's files in one of its own folders.
    fn files(&mut self, layout: &'static Layout, given: &Path) -> Option<FoundFiles> {
        for folder in [""].iter().chain(layout.folders) {
            let place: PathBuf = given.join(folder).components().collect();
            if let Some(files) = layout.all_in(&place) {
                return Some(files);
            }
            let absent: Vec<&str> = layout
                .names()
                .filter(|names| find_file(&place, names).is_none())
                .map(|names| names[0])
                .collect();
            if absent.len() < self.missing.len() {
                self.missing = absent;
            }
            if !self.places.contains(&place) {
                self.places.push(place);
            }
        }
        None
    }

    /// Archives whose name shows that they are of this data set; or else the only archive.
    fn archives<'a>(&self, names: &'a BTreeSet<String>) -> Vec<&'a String> {
        let archives: Vec<&String> = names.iter().filter(|name| is_archive(name)).collect();
        let Layouts { word, other, .. } = self.layouts;
        let is_ours = |name: &&&String| {
            let name = name.to_lowercase().replace(['-', '_', ' '], "");
            name.contains(word) && (other.is_empty() || !name.contains(other))
        };
        let ours: Vec<&String> = archives.iter().filter(is_ours).copied().collect();
        let is_other = |name: &String| {
            ["cifar", "mnist"].iter().any(|word| name.to_lowercase().contains(word))
        };
        match archives.as_slice() {
            [only] if ours.is_empty() && !is_other(only) => vec![*only],
            _ => ours,
        }
    }

    fn missing(
        self,
        config: &DataConfig,
        (folders, names): (BTreeSet<String>, BTreeSet<String>),
    ) -> DataError {
        let there: Vec<String> =
            folders.into_iter().map(|name| format!("{name}/")).chain(names).collect();
        let there = match there.len() {
            0 => "nothing".into(),
            1..=MAX_SHOWN => there.join(", "),
            more => format!("{} and {} more", there[..MAX_SHOWN].join(", "), more - MAX_SHOWN),
        };
        let mut places: Vec<String> =
            self.places.iter().map(|place| place.display().to_string()).collect();
        places[0] += &format!(" (there is {there})");
        let (files, places) = (self.missing.join(", "), places.join(" and "));
        DataError::Missing {
            dataset: config.facts().name,
            files,
            places,
            advice: self.layouts.advice,
        }
    }
}

impl FoundFiles {
    fn path(&self) -> &Path {
        match self {
            Self::Archive(path) => path,
            Self::Files(_, paths) => paths[0].parent().unwrap_or(&paths[0]),
        }
    }
}

/// The folders and the files directly in a folder; none of one that cannot be read, which is said
/// elsewhere.
pub(super) fn directly_in(folder: &Path) -> (BTreeSet<String>, BTreeSet<String>) {
    let mut names = (BTreeSet::new(), BTreeSet::new());
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with('.') {
            _ = if entry.path().is_dir() { names.0.insert(name) } else { names.1.insert(name) };
        }
    }
    names
}

/// `data.dir`, which is there and is a folder, or a file whose name ends with one of `archives`.
pub(super) fn dir(
    config: &DataConfig,
    files: &str,
    archives: &[&str],
) -> Result<PathBuf, DataError> {
    let dataset = config.facts().name;
    let files = files.to_owned();
    let Some(dir) = &config.dir else { return Err(DataError::NoDir { dataset, files }) };
    let refuse = |fault: String| Err(DataError::NotAFolder { dir: dir.clone(), fault, files });
    let name = dir.to_string_lossy().to_lowercase();
    match fs::metadata(dir) {
        Err(error) => refuse(error.to_string()),
        Ok(found) if !found.is_dir() && !archives.iter().any(|archive| name.ends_with(archive)) => {
            refuse("not a folder".into())
        }
        Ok(_) => Ok(dir.clone()),
    }
}

/// The first of a file's spellings that is there, bare before gzipped; or the file in a folder of
/// its own name, as Kaggle unpacks it.
fn find_file(folder: &Path, spellings: &[&str]) -> Option<PathBuf> {
    let named = |suffix: &'static str| {
        spellings.iter().map(move |name| folder.join(format!("{name}{suffix}")))
    };
    let nested = spellings.iter().map(|name| folder.join(name).join(name));
    named("").chain(named(".gz")).chain(nested).find(|path| path.is_file())
}
