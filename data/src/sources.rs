//! Which reader reads `data.dir`. Where the files of a published data set are in it is `layouts`'.

use super::error::DataError;
use super::layouts::{FoundFiles, dir, directly_in, find, layouts};
use super::raw_set::{RawSet, TestImages};
use super::samples::Split;
use super::sets::{Digits, Files};
use super::stamp::stamp_file;
use super::{image_folder, tinyimagenet};
use sha2::Sha256;
use std::path::{Path, PathBuf};
use thanos_configs::{DataConfig, DataKind};

/// Finds a data set's raw files.
///
/// # Errors
/// If `data.dir` is not given or is not a folder, or a file is not there; all missing ones are
/// named.
pub(super) fn locate(config: &DataConfig, test: TestImages) -> Result<Box<dyn RawSet>, DataError> {
    let facts = config.facts();
    Ok(match layouts(config.kind) {
        Some(layouts) => Box::new(Files::new(facts, find(config, layouts)?)),
        None if config.kind == DataKind::Digits => Box::new(Digits::new(facts)),
        None => tree(config, test)?,
    })
}

/// A data set that is a tree of pictures.
fn tree(config: &DataConfig, test: TestImages) -> Result<Box<dyn RawSet>, DataError> {
    let root = tree_root(config)?;
    Ok(match config.kind {
        DataKind::Tinyimagenet => Box::new(tinyimagenet::TinyImageNet::open(&root, config)?),
        _ => Box::new(image_folder::ImageFolder::open(&root, config, test)?),
    })
}

/// Adds names, lengths and times of a data set's raw files to a hash, without reading any.
///
/// # Errors
/// As [`locate`]'s.
pub(super) fn stamp_into(config: &DataConfig, hash: &mut Sha256) -> Result<(), DataError> {
    let Some(layouts) = layouts(config.kind) else {
        if config.kind == DataKind::Digits {
            return Ok(());
        }
        let set = tree(config, TestImages::Optional)?;
        return [Split::Train, Split::Test]
            .into_iter()
            .try_for_each(|split| set.hash_into(split, hash));
    };
    match find(config, layouts)?.place {
        FoundFiles::Archive(path) => stamp_file(&path, hash),
        FoundFiles::Files(_, paths) => paths.iter().try_for_each(|path| stamp_file(path, hash)),
    }
}

/// The folder or archive of a data set that is a tree of pictures.
fn tree_root(config: &DataConfig) -> Result<PathBuf, DataError> {
    if config.kind == DataKind::ImageFolder {
        return dir(config, "train/ and test/ with one folder per class", &[".zip"]);
    }
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
