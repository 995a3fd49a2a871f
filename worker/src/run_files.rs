//! Where the files of checkpoints are: in the run directory, for a worker that sees it, else with
//! the coordinator. What is in them is `checkpoint.rs`'s.

use crate::failpoints::crash;
use anyhow::{Context, Result};
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use thanos_formats::{CHECKPOINTS, Identity, RUN_JSON, UNFINISHED, unfinished_name};
use thanos_proto::CheckpointRef;

/// A checkpoint that is not committed yet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unfinished<'a> {
    pub(crate) stage: &'a str,
    /// Updates made.
    pub(crate) step: u64,
    /// In which they were made: one that is over must not write.
    pub(crate) generation: u64,
}

/// The files of a run's checkpoints.
pub(crate) trait RunFiles: Send + Sync {
    /// A file of a committed checkpoint.
    fn read(&self, checkpoint: &CheckpointRef, name: &str) -> Result<Vec<u8>>;

    /// Writes and syncs the files of a checkpoint: name and content.
    fn write(&self, checkpoint: Unfinished<'_>, files: &[(&str, Vec<u8>)]) -> Result<()>;

    /// Where they are, for people.
    fn place(&self) -> String;
}

/// The run directory, on a disk that all see who need to.
pub(crate) struct Disk(PathBuf);

impl Disk {
    /// The coordinator's run directory, if this machine sees it under the same path.
    pub(crate) fn of_run(run_dir: &Path, run_id: &str) -> Option<Self> {
        let text = fs::read(run_dir.join(RUN_JSON)).ok()?;
        let identity: Identity = serde_json::from_slice(&text).ok()?;
        (identity.id == run_id).then(|| Self(run_dir.into()))
    }
}

impl RunFiles for Disk {
    fn read(&self, checkpoint: &CheckpointRef, name: &str) -> Result<Vec<u8>> {
        let path = self.0.join(&checkpoint.folder).join(name);
        fs::read(&path).with_context(|| format!("{}", path.display()))
    }

    fn write(
        &self,
        Unfinished { stage, step, .. }: Unfinished<'_>,
        files: &[(&str, Vec<u8>)],
    ) -> Result<()> {
        let stage = self.0.join(CHECKPOINTS).join(stage);
        let folder = stage.join(unfinished_name(step));
        remove_unfinished(&stage)?;
        let written = write_files(&folder, files);
        if written.is_err() {
            _ = fs::remove_dir_all(&folder);
        }
        written.with_context(|| format!("checkpoint {}", folder.display()))
    }

    fn place(&self) -> String {
        self.0.display().to_string()
    }
}

/// What a rank 0 was writing when it died: no other rank writes, and what was reported to the
/// coordinator is committed before another generation begins.
fn remove_unfinished(stage: &Path) -> Result<()> {
    let entries = match fs::read_dir(stage) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries.with_context(|| format!("{}", stage.display()))?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

fn write_files(folder: &Path, files: &[(&str, Vec<u8>)]) -> Result<()> {
    fs::create_dir_all(folder)?;
    for (name, bytes) in files {
        let mut file = File::create(folder.join(name))?;
        file.write_all(bytes)?;
        crash("save-written");
        file.sync_all()?;
    }
    File::open(folder)?.sync_all()?;
    crash("save-synced");
    Ok(())
}
