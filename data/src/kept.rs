//! The packs of a folder: what they are, when each was last used, and which may be removed. It
//! decodes nothing.

use super::error::DataError;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use thanos_formats::PackHeader;

/// One pack of a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptPack {
    pub path: PathBuf,
    /// Data set and split, and number of images; none of a file that is cut off, of another format,
    /// or not finished.
    pub what: Option<(String, String, u64)>,
    /// Bytes that it takes on disk.
    pub bytes: u64,
    /// When it was written or last used.
    pub used: SystemTime,
    /// Whether a process of this machine has it open.
    pub open: bool,
}

impl KeptPack {
    /// Time since it was last used.
    pub fn age(&self) -> Duration {
        self.used.elapsed().unwrap_or_default()
    }
}

/// The packs of a folder, the one last used first; none of a folder that is not there.
///
/// # Errors
/// If the folder cannot be read.
pub fn kept_packs(packs_dir: &Path) -> Result<Vec<KeptPack>, DataError> {
    let entries = match fs::read_dir(packs_dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(|error| DataError::raw(packs_dir, error.into()))?,
    };
    let open = open_files();
    let mut packs: Vec<KeptPack> =
        entries.flatten().filter_map(|entry| kept(&entry.path(), &open)).collect();
    packs.sort_by(|one, other| (other.used, &one.path).cmp(&(one.used, &other.path)));
    Ok(packs)
}

/// Removes the packs of a folder that were not used for some time and that no process of this
/// machine has open; with `dry_run`, only says which. Packs of a run that continues later are made
/// again from its raw files.
///
/// # Errors
/// If the folder cannot be read, or a file not removed.
pub fn prune(
    packs_dir: &Path,
    unused_for: Duration,
    dry_run: bool,
) -> Result<Vec<KeptPack>, DataError> {
    let mut old = kept_packs(packs_dir)?;
    old.retain(|pack| !pack.open && pack.age() >= unused_for);
    for pack in old.iter().filter(|_| !dry_run) {
        match fs::remove_file(&pack.path) {
            // Another process was quicker.
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(DataError::Write { path: pack.path.clone(), source: error });
            }
            _ => {}
        }
    }
    Ok(old)
}

/// Notes that a pack is used now, as the time of its last change: that of the last access is also
/// set by listing packs. Where it cannot be written, a pack's age is that of the file.
pub(super) fn note_use(path: &Path) {
    _ = File::open(path).and_then(|file| file.set_modified(SystemTime::now()));
}

fn kept(path: &Path, open: &BTreeSet<(u64, u64)>) -> Option<KeptPack> {
    let name = path.file_name()?.to_string_lossy().into_owned();
    let is_unfinished = name.starts_with(".pack-") && name.ends_with(".tmp");
    let found = fs::symlink_metadata(path).ok().filter(|found| found.is_file())?;
    if !is_unfinished && !name.ends_with(".safetensors") {
        return None;
    }
    let header = PackHeader::read(path).ok().filter(|_| !is_unfinished);
    let what = header.map(|header| (header.name.clone(), header.split.clone(), header.images()));
    let used = found.modified().ok()?;
    let is_open = open.contains(&(found.dev(), found.ino()));
    Some(KeptPack { path: path.into(), what, bytes: found.blocks() * 512, used, open: is_open })
}

/// Device and inode of the files that processes of this machine have open, as far as this user may
/// see.
fn open_files() -> BTreeSet<(u64, u64)> {
    let entries =
        |path: &Path| fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    let files = entries(Path::new("/proc"))
        .flat_map(|process| entries(&process.join("fd")).collect::<Vec<_>>());
    files
        .filter_map(|file| fs::metadata(file).ok())
        .map(|found| (found.dev(), found.ino()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{TestImages, pack};
    use thanos_configs::{DataConfig, DataKind};

    fn set_age(path: &Path, age: Duration) {
        let then = SystemTime::now() - age;
        let file = File::options().write(true).open(path).expect("there");
        file.set_modified(then).expect("set");
    }

    #[test]
    fn only_packs_that_are_old_and_not_open_are_removed() {
        let folder = tempfile::tempdir().expect("a folder");
        let config = DataConfig { kind: DataKind::Digits, ..DataConfig::default() };
        let pack =
            || pack(&config, folder.path(), TestImages::Required, &|_, _, _| {}).expect("packed");
        let packs = pack();
        fs::write(folder.path().join("notes.txt"), "not a pack").expect("written");
        fs::write(folder.path().join(".pack-x.tmp"), "unfinished").expect("written");
        let day = Duration::from_secs(86_400);
        let names =
            |packs: Vec<KeptPack>| packs.into_iter().map(|pack| pack.path).collect::<BTreeSet<_>>();
        let all = kept_packs(folder.path()).expect("read");
        assert_eq!(all.len(), 3);
        assert!(
            all.iter().any(
                |pack| pack.what == Some(("digits".into(), "train".into(), 1437)) && !pack.open
            )
        );
        assert_eq!(prune(folder.path(), day, false).expect("read"), []);
        for kept in &all {
            set_age(&kept.path, 2 * day);
        }
        let open = File::open(&packs.test.path).expect("there");
        let old = || names(prune(folder.path(), day, true).expect("read"));
        let expected = [packs.train.path.clone(), folder.path().join(".pack-x.tmp")].into();
        assert_eq!(old(), expected, "the one that is open stays");
        assert!(packs.train.path.is_file(), "a dry run removes nothing");
        // Used again, it is new.
        assert!(pack().reused);
        drop(open);
        assert_eq!(old(), [folder.path().join(".pack-x.tmp")].into());
        set_age(&packs.test.path, 2 * day);
        assert_eq!(names(prune(folder.path(), day, false).expect("removed")).len(), 2);
        assert!(packs.train.path.is_file() && !packs.test.path.exists());
        assert_eq!(kept_packs(&folder.path().join("none")).expect("none"), []);
    }
}
