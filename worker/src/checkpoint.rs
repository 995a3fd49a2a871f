//! Checkpoints as a worker sees them: rank 0 writes files into a temporary folder and the coordinator commits it;
//! a loader is told path and hash, and believes no file before its checksum. Formats: `tensors.rs`.

use crate::failpoints::crash;
use crate::tensors::{Named, from_safetensors, to_safetensors};
use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use thanos_configs::hex;
use thanos_proto::{Best, CheckpointRef, WrittenFile};

/// The last weights, those of the best validation epoch, and the optimiser's state.
pub(crate) const MODEL: &str = "model.safetensors";
pub(crate) const BEST: &str = "best.safetensors";
pub(crate) const OPTIMIZER: &str = "optimizer.safetensors";

/// The part of `manifest.json` that a loader needs; the coordinator writes it.
#[derive(Deserialize)]
struct Manifest {
    stage: String,
    step: u64,
    seconds: f64,
    settled: bool,
    best: Option<ManifestBest>,
    files: Vec<ManifestFile>,
}

#[derive(Deserialize)]
struct ManifestBest {
    epoch: u64,
    validation_accuracy: f64,
}

#[derive(Deserialize)]
struct ManifestFile {
    name: String,
    bytes: u64,
    sha256: String,
}

/// A save that the coordinator gave up.
#[derive(Debug, thiserror::Error)]
#[error("the checkpoint of step {step} of stage {stage} was not saved: {reason}")]
pub(crate) struct NotSaved {
    pub(crate) stage: String,
    pub(crate) step: u64,
    pub(crate) reason: String,
}

/// What was written: the folder relative to the run directory, and its files.
pub(crate) struct Written {
    pub(crate) folder: String,
    pub(crate) files: Vec<WrittenFile>,
}

/// Writes and syncs the files of a checkpoint into a temporary folder of the stage.
///
/// # Errors
/// If the disk is full or not writable; the folder is removed again.
pub(crate) fn write(run_dir: &Path, stage: &str, step: u64, files: &[(&str, &Named)]) -> Result<Written> {
    let folder = format!("checkpoints/{stage}/.tmp-step-{step:08}");
    let path = run_dir.join(&folder);
    remove_unfinished(&run_dir.join("checkpoints").join(stage))?;
    let written = write_files(&path, files);
    if written.is_err() {
        _ = fs::remove_dir_all(&path);
    }
    let files = written.with_context(|| format!("checkpoint {}", path.display()))?;
    Ok(Written { folder, files })
}

/// What a rank 0 was writing when it died: nobody else writes, and what was told to the coordinator is committed before
/// another generation begins.
fn remove_unfinished(stage: &Path) -> Result<()> {
    let entries = match fs::read_dir(stage) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries.with_context(|| format!("{}", stage.display()))?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(".tmp-") {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

fn write_files(folder: &Path, files: &[(&str, &Named)]) -> Result<Vec<WrittenFile>> {
    _ = fs::remove_dir_all(folder);
    fs::create_dir_all(folder)?;
    let mut written = Vec::with_capacity(files.len());
    for (name, tensors) in files {
        let bytes = to_safetensors(tensors)?;
        let mut file = File::create(folder.join(name))?;
        file.write_all(&bytes)?;
        crash("save-written");
        file.sync_all()?;
        written.push(WrittenFile { name: (*name).into(), bytes: bytes.len() as u64, sha256: sha256(&bytes) });
    }
    File::open(folder)?.sync_all()?;
    crash("save-synced");
    Ok(written)
}

/// A committed checkpoint whose manifest is the one that the coordinator named.
pub(crate) struct Committed {
    folder: PathBuf,
    manifest: Manifest,
}

impl Committed {
    /// Reads and checks the manifest.
    ///
    /// # Errors
    /// Names both checksums if it is not the manifest that was committed.
    pub(crate) fn open(run_dir: &Path, checkpoint: &CheckpointRef) -> Result<Self> {
        let folder = run_dir.join(&checkpoint.folder);
        let place = || format!("checkpoint {}", folder.display());
        let bytes = fs::read(folder.join("manifest.json")).with_context(place)?;
        let found = sha256(&bytes);
        let expected = &checkpoint.manifest_sha256;
        ensure!(&found == expected, "{}: manifest.json has SHA-256 {found}, the coordinator's is {expected}", place());
        let manifest: Manifest = serde_json::from_slice(&bytes).with_context(place)?;
        let same = (&manifest.stage, manifest.step) == (&checkpoint.stage, checkpoint.step);
        ensure!(same, "{} is of step {} of stage {}", place(), manifest.step, manifest.stage);
        Ok(Self { folder, manifest })
    }

    /// Updates made when it was written.
    pub(crate) fn step(&self) -> u64 {
        self.manifest.step
    }

    /// Training time of its stage until then.
    pub(crate) fn seconds(&self) -> f64 {
        self.manifest.seconds
    }

    /// What is due behind the last update is done, too.
    pub(crate) fn settled(&self) -> bool {
        self.manifest.settled
    }

    pub(crate) fn best(&self) -> Option<Best> {
        let best = self.manifest.best.as_ref()?;
        Some(Best { epoch: best.epoch, validation_accuracy: best.validation_accuracy })
    }

    /// One verified file.
    ///
    /// # Errors
    /// Names the file and both checksums if it is not the one that was committed.
    pub(crate) fn tensors(&self, name: &str) -> Result<Named> {
        let path = self.folder.join(name);
        let Some(entry) = self.manifest.files.iter().find(|file| file.name == name) else {
            bail!("checkpoint {}: its manifest names no {name}", self.folder.display());
        };
        let bytes = fs::read(&path).with_context(|| format!("checkpoint file {}", path.display()))?;
        let found = sha256(&bytes);
        ensure!(
            bytes.len() as u64 == entry.bytes && found == entry.sha256,
            "{}: {} bytes of SHA-256 {found}, but {} bytes of {} were committed",
            path.display(),
            bytes.len(),
            entry.bytes,
            entry.sha256
        );
        from_safetensors(&bytes).with_context(|| format!("{}", path.display()))
    }
}

/// Weights that the user names by path: a safetensors file, or a checkpoint folder, whose best weights are taken.
pub fn load_weights(path: &Path) -> Result<Named> {
    let file = if path.is_dir() { path.join(BEST) } else { path.to_path_buf() };
    let bytes = fs::read(&file).with_context(|| format!("weights {}", file.display()))?;
    from_safetensors(&bytes).with_context(|| format!("weights {}", file.display()))
}

fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}
