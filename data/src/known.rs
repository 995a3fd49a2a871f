//! Packs of data that was packed before: found by what is in them, without reading raw files, and
//! the cheap sign by which raw files are known not to have changed. It decodes nothing.

use super::error::DataError;
use super::packs::{PackFile, Packs};
use super::samples::Split;
use super::stamp::stamp_file;
use super::{pack_file, sources};
use sha2::{Digest, Sha256};
use std::fs;
use std::path::{Path, PathBuf};
use thanos_configs::{DataConfig, DataKind, DataSet, hex};
use thanos_formats::PackHeader;

/// The packs with these fingerprints, of the training and of the test images; `None` if `packs_dir`
/// does not have both, each as long as its header says.
pub fn find_packs(
    config: &DataConfig,
    packs_dir: &Path,
    [train, test]: [&str; 2],
) -> Option<Packs> {
    let name = config.facts().name;
    let find = |split: Split, fingerprint: &str| {
        let mut packs = packs_of(&name, split, packs_dir);
        let (path, header) = packs.find(|(_, header)| header.fingerprint == fingerprint)?;
        Some(PackFile::of(split, path, header))
    };
    Some(Packs {
        train: find(Split::Train, train)?,
        test: find(Split::Test, test)?,
        reused: true,
        notes: Vec::new(),
    })
}

/// A whole pack of a split whose images were decoded from the same files in the same way, whatever
/// its coarse labels.
pub(super) fn with_pixels(
    facts: &DataSet,
    split: Split,
    pixels: &str,
    packs_dir: &Path,
) -> Option<(PathBuf, PackHeader)> {
    packs_of(&facts.name, split, packs_dir).find(|(path, header)| {
        let is_same = header.notes.pixels == pixels && header.fine_names == facts.labels.fine_names;
        // More may have been skipped than there was room to name.
        let all_named = header.skipped_images.images == header.skipped_images.named.len() as u64;
        // What is copied gets a new fingerprint: damage must not get a good one.
        is_same && all_named && pack_file::verify(path).is_ok()
    })
}

/// The packs of a data set's split in a folder, whole by their headers; none of a folder that is
/// not there.
fn packs_of(
    data_set: &str,
    split: Split,
    packs_dir: &Path,
) -> impl Iterator<Item = (PathBuf, PackHeader)> {
    let start = format!("{data_set}-{}-", split.name());
    let named = move |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&start))
    };
    let paths = fs::read_dir(packs_dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(named);
    let packs = paths.filter_map(|path| PackHeader::read(&path).ok().map(|header| (path, header)));
    packs.filter(move |(_, header)| header.split == split.name())
}

/// SHA-256 over names, lengths and times of the last change of a data set's raw files, none of
/// which is read; `None` for data that is part of this program.
///
/// # Errors
/// If files are missing.
pub fn raw_stamp(config: &DataConfig) -> Result<Option<String>, DataError> {
    if config.kind == DataKind::Digits {
        return Ok(None);
    }
    let mut hash = Sha256::new();
    sources::stamp_into(config, &mut hash)?;
    if let Some(map) = &config.coarse_map {
        stamp_file(map, &mut hash)?;
    }
    Ok(Some(hex(&hash.finalize())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{TestImages, pack};

    fn digits() -> DataConfig {
        DataConfig { kind: DataKind::Digits, ..DataConfig::default() }
    }

    #[test]
    fn packs_are_found_by_their_content_and_only_whole() {
        let folder = tempfile::tempdir().expect("a folder");
        let packs =
            pack(&digits(), folder.path(), TestImages::Required, &|_, _, _| {}).expect("packed");
        let prints = [packs.train.fingerprint.as_str(), packs.test.fingerprint.as_str()];
        let find = |prints| find_packs(&digits(), folder.path(), prints);
        assert_eq!(find(prints), Some(Packs { reused: true, ..packs.clone() }));
        assert_eq!(find([prints[1], prints[0]]), None, "each is of its own split");
        assert_eq!(find([prints[0], "another"]), None);
        let file = fs::File::options().write(true).open(&packs.test.path).expect("there");
        file.set_len(packs.test.path.metadata().expect("there").len() - 1).expect("cut");
        assert_eq!(find(prints), None, "it is cut off");
        assert_eq!(find_packs(&digits(), &folder.path().join("none"), prints), None);
    }

    #[test]
    fn a_stamp_changes_with_a_raw_file() {
        let folder = tempfile::tempdir().expect("a folder");
        for name in [
            "train-images-idx3-ubyte",
            "train-labels-idx1-ubyte",
            "t10k-images-idx3-ubyte",
            "t10k-labels-idx1-ubyte",
        ] {
            fs::write(folder.path().join(name), name).expect("written");
        }
        let dir = Some(folder.path().to_owned());
        let config = DataConfig { kind: DataKind::Mnist, dir, ..DataConfig::default() };
        let stamp = || raw_stamp(&config).expect("all are there").expect("raw files");
        let first = stamp();
        assert_eq!(stamp(), first);
        let file = folder.path().join("t10k-labels-idx1-ubyte");
        fs::write(&file, "longer than it was before").expect("written");
        assert_ne!(stamp(), first);
        fs::remove_file(&file).expect("there");
        assert!(raw_stamp(&config).is_err());
        assert_eq!(raw_stamp(&digits()).expect("embedded"), None);
    }
}
