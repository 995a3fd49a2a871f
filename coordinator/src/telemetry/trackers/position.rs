//! How far a tracker that is reached over a network has got, as a file below `trackers/` in the run
//! directory. It never holds credentials.

use crate::run_dir::write_durably;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The file of one tracker.
pub(super) struct PositionFile(PathBuf);

impl PositionFile {
    pub(super) fn new(run_dir: &Path, tracker: &str) -> Self {
        Self(run_dir.join("trackers").join(format!("{tracker}.json")))
    }

    /// `None`: there is none, or it cannot be read.
    pub(super) fn read<T: DeserializeOwned>(&self) -> Option<T> {
        serde_json::from_slice(&fs::read(&self.0).ok()?).ok()
    }

    /// # Errors
    /// If it cannot be written; then it is as before.
    pub(super) fn write(&self, position: &impl Serialize) -> io::Result<()> {
        self.0.parent().map_or(Ok(()), fs::create_dir_all)?;
        let bytes = serde_json::to_vec(position).expect("plain data is always JSON");
        write_durably(&self.0, &bytes).map_err(|fatal| io::Error::other(fatal.message))
    }
}
