//! Checkpoints as the coordinator sees them: it commits what rank 0 has written, finds the newest
//! good ones when a run continues, and removes the old. A checkpoint is believed by its checksums,
//! never by being there.

mod transfer;

use crate::run_dir::write_durably;
use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use thanos_configs::hex;
use thanos_formats::{
    CHECKPOINTS, DataIdentity, MANIFEST, MANIFEST_FORMAT, MANIFEST_SHA256, Manifest, ManifestBest,
    ManifestData, ManifestFile, ManifestResult, committed_folder, unfinished_folder,
};
use thanos_proto::{Best, CheckpointRef, CheckpointWritten, StageResult};
pub(crate) use transfer::CheckpointFiles;

/// The checkpoints of one run.
#[derive(Clone, Debug)]
pub(crate) struct Checkpoints {
    pub run_dir: PathBuf,
    /// Of the run and of its configuration: a checkpoint of another one is not used.
    pub run: String,
    pub config_digest: String,
    /// What it is trained on, if that is known.
    pub data: Option<DataIdentity>,
    /// Newest checkpoints kept in each stage.
    pub keep_last: usize,
    /// Steps of the stages in all their epochs. A stage whose result was measured after fewer
    /// continues; one that is not here is complete when it has a result.
    pub total_steps: BTreeMap<String, u64>,
}

/// How far a run has come.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Found {
    /// The last checkpoints of the stages that are complete, and what they measured.
    pub complete: Vec<CheckpointRef>,
    pub results: Vec<StageResult>,
    /// Where the first stage that is not complete stands; `None`: at its start, or all are
    /// complete.
    pub resume: Option<CheckpointRef>,
    /// `resume` is the end of a stage that was complete, and is to make more steps.
    pub reopened: bool,
    /// Checkpoints that were passed over, and why.
    pub warnings: Vec<String>,
}

impl Checkpoints {
    /// Makes a checkpoint of the files that rank 0 has written and synced: manifest, rename,
    /// `LATEST`; then removes the old ones. A crash at any point leaves the checkpoint before it,
    /// or this one.
    pub(crate) fn commit(&self, written: &CheckpointWritten) -> Result<CheckpointRef> {
        let folder = unfinished_folder(&written.stage, written.step);
        ensure!(written.folder == folder, "rank 0 wrote {}, expected {folder}", written.folder);
        let temporary = self.run_dir.join(&folder);
        for file in &written.files {
            let plain = !file.name.contains('/') && !file.name.starts_with('.');
            ensure!(plain, "`{}` is not the name of a file of a checkpoint", file.name);
            let path = temporary.join(&file.name);
            let bytes = fs::metadata(&path).with_context(|| format!("{}", path.display()))?.len();
            ensure!(
                bytes == file.bytes,
                "{}: {bytes} bytes, rank 0 wrote {}",
                path.display(),
                file.bytes
            );
        }
        let manifest = serde_json::to_vec_pretty(&self.manifest(written))?;
        let mut file = File::create(temporary.join(MANIFEST))?;
        file.write_all(&manifest)?;
        file.sync_all()?;
        crash("commit-manifest");
        let mut file = File::create(temporary.join(MANIFEST_SHA256))?;
        file.write_all(format!("{}\n", sha256(&manifest)).as_bytes())?;
        file.sync_all()?;
        File::open(&temporary)?.sync_all()?;
        let name = committed_folder(&written.stage, written.step);
        let place = self.run_dir.join(&name);
        crash("commit-rename");
        rename_over(&temporary, &place)?;
        crash("commit-renamed");
        let stage = self.run_dir.join(CHECKPOINTS).join(&written.stage);
        File::open(&stage)?.sync_all()?;
        crash("commit-latest");
        write_durably(&self.run_dir.join("LATEST"), format!("{name}\n").as_bytes())?;
        let reference = CheckpointRef {
            stage: written.stage.clone(),
            folder: name,
            manifest_sha256: sha256(&manifest),
            step: written.step,
        };
        crash("commit-prune");
        self.prune(&stage, &place)?;
        Ok(reference)
    }

    fn manifest(&self, written: &CheckpointWritten) -> Manifest {
        let best = |best: Best| ManifestBest {
            epoch: best.epoch,
            validation_accuracy: best.validation_accuracy,
        };
        let file = |file: &thanos_proto::WrittenFile| ManifestFile {
            name: file.name.clone(),
            bytes: file.bytes,
            sha256: file.sha256.clone(),
        };
        Manifest {
            format: MANIFEST_FORMAT,
            run: self.run.clone(),
            config_digest: self.config_digest.clone(),
            data: self.data.as_ref().map(manifest_data),
            stage: written.stage.clone(),
            generation: written.generation,
            world_size: written.world_size,
            epoch: written.epoch,
            step: written.step,
            seconds: written.seconds,
            post_step_done: written.post_step_done,
            best: written.best.map(best),
            result: written.result.as_ref().map(manifest_result),
            files: written.files.iter().map(file).collect(),
        }
    }

    /// Removes all but the newest, once the newest has been read back and found good.
    fn prune(&self, stage: &Path, newest: &Path) -> Result<()> {
        let folders = committed(stage)?;
        if folders.len() > self.keep_last {
            verify(newest).context("a checkpoint read back right after its commit")?;
            for folder in &folders[..folders.len() - self.keep_last] {
                // The new one is committed, whatever becomes of the old.
                if let Err(error) = remove(folder) {
                    tracing::warn!(
                        "an old checkpoint could not be removed: {}: {error}",
                        folder.display()
                    );
                }
            }
        }
        Ok(())
    }

    /// How far the run has come, by the checkpoints that verify.
    pub(crate) fn find(&self, stages: &[&str]) -> Result<Found> {
        let mut found = Found::default();
        for stage in stages {
            let newest = self.newest(stage, &mut found.warnings)?;
            match newest {
                Some((reference, Some(result))) if !self.is_short(&reference) => {
                    found.complete.push(reference);
                    found.results.push(result);
                }
                newest => {
                    found.reopened = matches!(newest, Some((_, Some(_))));
                    found.resume = newest.map(|(reference, _)| reference);
                    break;
                }
            }
        }
        Ok(found)
    }

    /// Whether a stage is to make more steps than this checkpoint holds.
    fn is_short(&self, reference: &CheckpointRef) -> bool {
        self.total_steps.get(&reference.stage).is_some_and(|total| reference.step < *total)
    }

    /// The newest good checkpoint of a stage, and its result if the stage is complete.
    fn newest(
        &self,
        stage: &str,
        warnings: &mut Vec<String>,
    ) -> Result<Option<(CheckpointRef, Option<StageResult>)>> {
        let folder = self.run_dir.join(CHECKPOINTS).join(stage);
        restore_set_aside(&folder).with_context(|| format!("{}", folder.display()))?;
        for place in committed(&folder)?.into_iter().rev() {
            match self.usable(&place, stage) {
                Ok(good) => return Ok(Some(good)),
                Err(error) => warnings.push(format!("skipping {}: {error:#}", place.display())),
            }
        }
        Ok(None)
    }

    fn usable(&self, place: &Path, stage: &str) -> Result<(CheckpointRef, Option<StageResult>)> {
        let (manifest, manifest_sha256) = verify(place)?;
        ensure!(
            manifest.run == self.run,
            "it belongs to run {}, not to {}",
            manifest.run,
            self.run
        );
        ensure!(
            manifest.config_digest == self.config_digest,
            "it belongs to another configuration"
        );
        if let (Some(data), Some(trained_on)) =
            (self.data.as_ref().map(manifest_data), &manifest.data)
        {
            ensure!(*trained_on == data, "it was trained on other data");
        }
        ensure!(manifest.stage == stage, "it belongs to stage {}", manifest.stage);
        let folder = committed_folder(stage, manifest.step);
        ensure!(place == self.run_dir.join(&folder), "it belongs to step {}", manifest.step);
        let result = manifest.result.as_ref().map(|result| stage_result(result, stage));
        Ok((
            CheckpointRef { stage: stage.into(), folder, manifest_sha256, step: manifest.step },
            result,
        ))
    }
}

fn manifest_data(data: &DataIdentity) -> ManifestData {
    ManifestData { train: data.train.clone(), test: data.test.clone() }
}

fn manifest_result(result: &StageResult) -> ManifestResult {
    ManifestResult {
        seconds: result.seconds,
        validation_accuracy: result.validation_accuracy,
        coarse_test_accuracy: result.coarse_test_accuracy,
        fine_test_accuracy: result.fine_test_accuracy,
        knn_fine_accuracy: result.knn_fine_accuracy,
        cosine_within_coarse: result.cosine_within_coarse,
        cosine_within_fine: result.cosine_within_fine,
        cosine_between_views: result.cosine_between_views,
        data_wait_seconds: result.data_wait_seconds,
    }
}

fn stage_result(kept: &ManifestResult, stage: &str) -> StageResult {
    StageResult {
        stage: stage.into(),
        seconds: kept.seconds,
        validation_accuracy: kept.validation_accuracy,
        coarse_test_accuracy: kept.coarse_test_accuracy,
        fine_test_accuracy: kept.fine_test_accuracy,
        knn_fine_accuracy: kept.knn_fine_accuracy,
        cosine_within_coarse: kept.cosine_within_coarse,
        cosine_within_fine: kept.cosine_within_fine,
        cosine_between_views: kept.cosine_between_views,
        data_wait_seconds: kept.data_wait_seconds,
    }
}

/// Reads a committed checkpoint and checks every file's length and checksum, the manifest's among
/// them, which is returned.
pub fn verify(folder: &Path) -> Result<(Manifest, String)> {
    let bytes = fs::read(folder.join(MANIFEST)).context(MANIFEST)?;
    let expected = fs::read_to_string(folder.join(MANIFEST_SHA256)).context(MANIFEST_SHA256)?;
    let (found_manifest, expected) = (sha256(&bytes), expected.trim_end());
    ensure!(
        expected == found_manifest,
        "manifest.json: its SHA-256 is {found_manifest}, expected {expected}"
    );
    let manifest: Manifest = serde_json::from_slice(&bytes).context(MANIFEST)?;
    let format = manifest.format;
    ensure!(
        format == MANIFEST_FORMAT,
        "its format is {format}, this program reads {MANIFEST_FORMAT}"
    );
    for file in &manifest.files {
        let content = fs::read(folder.join(&file.name)).with_context(|| file.name.clone())?;
        let found = content.len() as u64;
        ensure!(found == file.bytes, "{}: {found} bytes, expected {}", file.name, file.bytes);
        let (found, expected) = (sha256(&content), &file.sha256);
        ensure!(&found == expected, "{}: its SHA-256 is {found}, expected {expected}", file.name);
    }
    Ok((manifest, found_manifest))
}

/// A file of the newest checkpoint of a stage that is complete, as it was committed; `None` if the
/// stage is not complete, or its version of the program wrote no such file.
///
/// # Errors
/// If it cannot be read, or is not what was committed.
pub(super) fn file_of_complete(run_dir: &Path, stage: &str, name: &str) -> Result<Option<Vec<u8>>> {
    let Some(folder) = committed(&run_dir.join(CHECKPOINTS).join(stage))?.pop() else {
        return Ok(None);
    };
    let place = || format!("{}", folder.join(name).display());
    let manifest = fs::read(folder.join(MANIFEST)).with_context(place)?;
    let manifest: Manifest = serde_json::from_slice(&manifest).with_context(place)?;
    let entry = manifest.files.iter().find(|file| file.name == name);
    let Some(entry) = entry.filter(|_| manifest.result.is_some()) else { return Ok(None) };
    let content = fs::read(folder.join(name)).with_context(place)?;
    let (found, expected) = (sha256(&content), &entry.sha256);
    ensure!(&found == expected, "{}: its SHA-256 is {found}, expected {expected}", place());
    Ok(Some(content))
}

/// Folders `step-N` of a stage, oldest first; none if the stage has no folder.
fn committed(stage: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(stage) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => bail!("cannot list {}: {error}", stage.display()),
    };
    let mut folders = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let name =
            path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if name.strip_prefix("step-").is_some_and(|number| number.parse::<u64>().is_ok()) {
            folders.push(path);
        }
    }
    folders.sort();
    Ok(folders)
}

/// Gives a folder its name. One that has the name already, of the same step, keeps it until this
/// very moment where the file system can exchange two names; elsewhere (NFS, some FUSE file
/// systems) it is set aside first, and [`restore_set_aside`] brings it back if a crash comes in
/// between.
fn rename_over(temporary: &Path, place: &Path) -> io::Result<()> {
    if !place.exists() {
        return fs::rename(temporary, place);
    }
    match renameat2(AT_FDCWD, temporary, AT_FDCWD, place, RenameFlags::RENAME_EXCHANGE) {
        Ok(()) => return remove(temporary),
        Err(Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP) => {}
        Err(error) => return Err(error.into()),
    }
    let aside = set_aside(place);
    remove(&aside)?;
    fs::rename(place, &aside)?;
    crash("commit-set-aside");
    fs::rename(temporary, place)?;
    remove(&aside)
}

const SET_ASIDE: &str = ".replaced-";

fn set_aside(place: &Path) -> PathBuf {
    let name =
        place.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    place.with_file_name(format!("{SET_ASIDE}{name}"))
}

/// Gives checkpoints that a crash left set aside their names back, unless their replacements have
/// them.
fn restore_set_aside(stage: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(stage) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(name) = name.strip_prefix(SET_ASIDE) else { continue };
        match stage.join(name) {
            place if place.exists() => remove(&entry.path())?,
            place => fs::rename(entry.path(), place)?,
        }
    }
    Ok(())
}

/// The sudden end of this process where a test has armed it, as by a loss of power.
fn crash(point: &str) {
    fail::fail_point!(point, |_| std::process::abort());
}

fn remove(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

#[cfg(test)]
mod tests;
