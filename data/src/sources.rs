//! Which reader reads `data.dir`. Where the files of a published data set are in it is `layouts`'.

use super::error::DataError;
use super::layouts::{FoundFiles, Source, dir, directly_in, find};
use super::raw_set::{RawSet, TestImages};
use super::samples::Split;
use super::sets::{Digits, Files};
use super::stamp::stamp_file;
use super::{image_folder, tinyimagenet};
use sha2::Sha256;
use std::path::{Path, PathBuf};
use thanos_configs::DataConfig;

/// Finds a data set's raw files.
///
/// # Errors
/// If `data.dir` is not given or is not a folder, or a file is not there; all missing ones are
/// named.
pub(super) fn locate(config: &DataConfig, test: TestImages) -> Result<Box<dyn RawSet>, DataError> {
    let facts = config.facts();
    Ok(match Source::of(config.kind) {
        Source::Embedded => Box::new(Digits::new(facts)),
        Source::Files(layouts) => Box::new(Files::new(facts, find(config, layouts)?)),
        Source::TinyImageNet => {
            Box::new(tinyimagenet::TinyImageNet::open(&tinyimagenet_root(config)?, config)?)
        }
        Source::ImageFolder => {
            let root = dir(config, "train/ and test/ with one folder per class", &[".zip"])?;
            Box::new(image_folder::ImageFolder::open(&root, config, test)?)
        }
    })
}

/// Adds names, lengths and times of a data set's raw files to a hash, without reading any.
///
/// # Errors
/// As [`locate`]'s.
pub(super) fn stamp_into(config: &DataConfig, hash: &mut Sha256) -> Result<(), DataError> {
    match Source::of(config.kind) {
        Source::Embedded => Ok(()),
        Source::Files(layouts) => match find(config, layouts)?.place {
            FoundFiles::Archive(path) => stamp_file(&path, hash),
            FoundFiles::Files(_, paths) => paths.iter().try_for_each(|path| stamp_file(path, hash)),
        },
        Source::TinyImageNet | Source::ImageFolder => {
            let set = locate(config, TestImages::Optional)?;
            let mut splits = [Split::Train, Split::Test].into_iter();
            splits.try_for_each(|split| set.hash_into(split, hash))
        }
    }
}

/// The folder or archive of TinyImageNet.
fn tinyimagenet_root(config: &DataConfig) -> Result<PathBuf, DataError> {
    let archive = format!("{}.zip", tinyimagenet::FOLDER);
    let given = dir(
        config,
        &format!("wnids.txt, train/, val/val_annotations.txt, or {archive}"),
        &[".zip"],
    )?;
    let is_root = |folder: &Path| {
        folder.join(tinyimagenet::CLASSES).is_file() || folder.join("train").is_dir()
    };
    let places = [given.clone(), given.join(tinyimagenet::FOLDER)];
    let found =
        places.into_iter().find(|place| is_root(place)).or_else(|| only_file(&given, &archive));
    Ok(found.unwrap_or(given))
}

/// An archive by its name, or else the only .zip of a folder.
fn only_file(folder: &Path, name: &str) -> Option<PathBuf> {
    let official = folder.join(name);
    if official.is_file() {
        return Some(official);
    }
    let names = directly_in(folder).1;
    let mut zips = names.iter().filter(|name| name.to_ascii_lowercase().ends_with(".zip"));
    zips.next().filter(|_| zips.next().is_none()).map(|name| folder.join(name))
}
