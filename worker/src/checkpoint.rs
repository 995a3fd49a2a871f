//! Checkpoints as a worker sees them: rank 0 writes files into a temporary folder and the
//! coordinator commits it; a loader receives path and hash, and verifies each file by its checksum.
//! Formats: `tensors.rs`.

use crate::probe_weights::folded;
use crate::run_files::{RunFiles, Unfinished};
use crate::tensors::{StateDict, from_safetensors, to_safetensors};
use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};
use std::sync::Arc;
use thanos_configs::hex;
pub(crate) use thanos_formats::{BEST, EMBEDDINGS, MODEL, OPTIMIZER, PREDICTIONS};
use thanos_formats::{BEST_STATE, MANIFEST, Manifest, unfinished_folder};
use thanos_proto::{Best, CheckpointRef, WrittenFile};

/// What was written: the folder relative to the run directory, and its files.
pub(crate) struct Written {
    pub(crate) folder: String,
    pub(crate) files: Vec<WrittenFile>,
}

/// Writes and syncs the files of a checkpoint into a temporary folder of the stage; `record`
/// describes the network.
///
/// # Errors
/// If the disk is full or not writable.
pub(crate) fn write(
    place: &dyn RunFiles,
    checkpoint: Unfinished<'_>,
    files: &[(&str, &StateDict)],
    record: &str,
) -> Result<Written> {
    let mut contents = Vec::with_capacity(files.len() + 1);
    for (name, tensors) in files {
        let record = [MODEL, BEST].contains(name).then_some(record);
        match (*name == BEST).then(|| folded(tensors)).flatten() {
            Some(used) => {
                contents.push((BEST, to_safetensors(&used, record)?));
                contents.push((BEST_STATE, to_safetensors(tensors, record)?));
            }
            None => contents.push((*name, to_safetensors(tensors, record)?)),
        }
    }
    place.write(checkpoint, &contents)?;
    let written = |(name, bytes): &(&str, Vec<u8>)| WrittenFile {
        name: (*name).into(),
        bytes: bytes.len() as u64,
        sha256: sha256(bytes),
    };
    let Unfinished { stage, step, .. } = checkpoint;
    let folder = unfinished_folder(stage, step);
    Ok(Written { folder, files: contents.iter().map(written).collect() })
}

/// A committed checkpoint whose manifest is the one that the coordinator named.
pub(crate) struct Committed {
    files: Arc<dyn RunFiles>,
    checkpoint: CheckpointRef,
    manifest: Manifest,
}

impl Committed {
    /// Reads and checks the manifest.
    ///
    /// # Errors
    /// Names both checksums if it is not the manifest that was committed.
    pub(crate) fn open(files: &Arc<dyn RunFiles>, checkpoint: &CheckpointRef) -> Result<Self> {
        let place = || format!("checkpoint {} of {}", checkpoint.folder, files.place());
        let bytes = files.read(checkpoint, MANIFEST).with_context(place)?;
        let found = sha256(&bytes);
        let expected = &checkpoint.manifest_sha256;
        ensure!(
            &found == expected,
            "{}: manifest.json has SHA-256 {found}, the coordinator's is {expected}",
            place()
        );
        let manifest: Manifest = serde_json::from_slice(&bytes).with_context(place)?;
        let same = (&manifest.stage, manifest.step) == (&checkpoint.stage, checkpoint.step);
        ensure!(same, "{} is of step {} of stage {}", place(), manifest.step, manifest.stage);
        Ok(Self { files: files.clone(), checkpoint: checkpoint.clone(), manifest })
    }

    /// Updates made when it was written.
    pub(crate) fn step(&self) -> u64 {
        self.manifest.step
    }

    /// Training time of its stage until then.
    pub(crate) fn seconds(&self) -> f64 {
        self.manifest.seconds
    }

    /// What is due after the last update is done, too.
    pub(crate) fn post_step_done(&self) -> bool {
        self.manifest.post_step_done
    }

    pub(crate) fn best(&self) -> Option<Best> {
        let best = self.manifest.best.as_ref()?;
        Some(Best { epoch: best.epoch, validation_accuracy: best.validation_accuracy })
    }

    /// The selected epoch's weights as they are trained.
    ///
    /// # Errors
    /// As [`Self::tensors`].
    pub(crate) fn best_state(&self) -> Result<StateDict> {
        let is_apart = self.manifest.files.iter().any(|file| file.name == BEST_STATE);
        self.tensors(if is_apart { BEST_STATE } else { BEST })
    }

    /// One verified file.
    ///
    /// # Errors
    /// Names the file and both checksums if it is not the one that was committed.
    pub(crate) fn tensors(&self, name: &str) -> Result<StateDict> {
        let folder = &self.checkpoint.folder;
        let Some(entry) = self.manifest.files.iter().find(|file| file.name == name) else {
            bail!("checkpoint {folder}: its manifest names no {name}");
        };
        let bytes = self
            .files
            .read(&self.checkpoint, name)
            .with_context(|| format!("checkpoint {folder}"))?;
        let found = sha256(&bytes);
        ensure!(
            bytes.len() as u64 == entry.bytes && found == entry.sha256,
            "{folder}/{name} of {}: {} bytes of SHA-256 {found}, but {} bytes of {} were committed",
            self.files.place(),
            bytes.len(),
            entry.bytes,
            entry.sha256
        );
        from_safetensors(&bytes).with_context(|| format!("{folder}/{name}"))
    }
}

fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}
