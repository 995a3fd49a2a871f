//! The files of a folder on disk: links are followed wherever they lead, what is not a file is
//! noted and skipped.

use super::super::error::{DataError, RawFault};
use super::super::stamp::length_and_change;
use super::{At, MAX_DEPTH, MAX_FILES, Passed, Top, TreeFile, is_system_file};
use std::fs;
use std::io;
use std::path::Path;
use walkdir::{DirEntry, WalkDir};

const DANGLING: &str = "dangling links";
const CIRCULAR: &str = "circular links";
const SPECIAL: &str = "neither files nor folders";

/// The names directly in a folder.
pub(super) fn top(root: &Path) -> Result<Top, DataError> {
    let mut top = Top::default();
    let refuse = |error: io::Error| DataError::raw(root, error.into());
    for entry in fs::read_dir(root).map_err(refuse)? {
        let entry = entry.map_err(refuse)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if is_system_file(&name) {
            continue;
        }
        // A link to nothing is neither; it is none of this data set's concern either.
        let Ok(found) = fs::metadata(entry.path()) else { continue };
        _ = if found.is_dir() { top.folders.insert(name) } else { top.files.insert(name) };
    }
    Ok(top)
}

/// The files below `root/name`, or that file itself.
pub(super) fn list(
    root: &Path,
    name: &str,
    skipped: &mut Vec<Passed>,
) -> Result<Vec<TreeFile>, DataError> {
    let start = root.join(name);
    let mut files = Vec::new();
    if fs::symlink_metadata(&start).is_err() {
        return Ok(files);
    }
    let is_kept = |entry: &DirEntry| {
        entry.depth() == 0 || !is_system_file(&entry.file_name().to_string_lossy())
    };
    for entry in WalkDir::new(&start)
        .follow_links(true)
        .max_depth(MAX_DEPTH)
        .into_iter()
        .filter_entry(is_kept)
    {
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) => {
                skipped.push(not_walked(root, error)?);
                continue;
            }
        };
        if entry.file_type().is_dir() {
            if entry.depth() == MAX_DEPTH {
                return Err(DataError::raw(entry.path(), RawFault::TooDeep { max: MAX_DEPTH }));
            }
        } else if entry.file_type().is_file() {
            files.push(file(root, &entry)?);
        } else {
            skipped.push(passed(root, entry.path(), SPECIAL));
        }
        if files.len() > MAX_FILES {
            return Err(DataError::raw(&start, RawFault::TooManyFiles { max: MAX_FILES }));
        }
    }
    Ok(files)
}

fn file(root: &Path, entry: &DirEntry) -> Result<TreeFile, DataError> {
    let found =
        entry.metadata().map_err(io::Error::from).and_then(|found| length_and_change(&found));
    let (bytes, changed) = found.map_err(|error| DataError::raw(entry.path(), error.into()))?;
    let path = entry.path().strip_prefix(root).unwrap_or(entry.path());
    let name = name_of(path);
    let path = path.to_str().is_none().then(|| path.into());
    Ok(TreeFile { name, at: At::Folder { bytes, changed, path } })
}

/// A name as text; bytes that are not UTF-8 are written as `\xNN`, so that two such names stay two.
fn name_of(path: &Path) -> String {
    path.as_os_str().as_encoded_bytes().utf8_chunks().fold(String::new(), |mut name, chunk| {
        name += chunk.valid();
        chunk.invalid().iter().for_each(|byte| name += &format!("\\x{byte:02x}"));
        name
    })
}

fn passed(root: &Path, path: &Path, reason: &'static str) -> Passed {
    Passed { name: name_of(path.strip_prefix(root).unwrap_or(path)), reason }
}

/// A link that leads nowhere is skipped. Everything else that cannot be walked ends the listing.
fn not_walked(root: &Path, error: walkdir::Error) -> Result<Passed, DataError> {
    let path = error.path().unwrap_or(root).to_owned();
    let is_link = fs::symlink_metadata(&path).is_ok_and(|found| found.is_symlink());
    if error.loop_ancestor().is_some() {
        return Ok(passed(root, &path, CIRCULAR));
    }
    if is_link
        && fs::metadata(&path).is_err_and(|error| error.kind() != io::ErrorKind::PermissionDenied)
    {
        return Ok(passed(root, &path, DANGLING));
    }
    Err(DataError::raw(&path, RawFault::Io(error.into())))
}
