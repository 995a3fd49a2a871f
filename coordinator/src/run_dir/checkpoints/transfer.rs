//! Checkpoints of workers that do not see the run directory: a file of a committed one is sent to
//! them, and what their rank 0 writes is written here. Stages and names are those of the plan and
//! of the format, so that no request chooses a path. What is committed is not decided here.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use thanos_formats::{
    BEST, BEST_STATE, CHECKPOINTS, EMBEDDINGS, MANIFEST, MODEL, OPTIMIZER, PREDICTIONS, UNFINISHED,
    committed_name, unfinished_name,
};
use thanos_proto::v1::file_part::Part;
use thanos_proto::v1::{CheckpointFile, FileChunk, FileHead, FilePart};
use tokio::sync::mpsc;
use tokio_stream::{Stream, StreamExt};
use tonic::Status;

/// Bytes of one chunk.
const CHUNK: usize = 1 << 20;
/// Chunks that may wait for the network; a slow worker makes its own stream wait.
const MAX_WAITING: usize = 4;
/// Files of a checkpoint; the first one is the coordinator's own.
const NAMES: [&str; 7] = [MANIFEST, MODEL, BEST, BEST_STATE, OPTIMIZER, PREDICTIONS, EMBEDDINGS];

/// The checkpoints of a run, as files.
pub(crate) struct CheckpointFiles {
    run_dir: PathBuf,
    stages: Vec<String>,
}

impl CheckpointFiles {
    pub(crate) fn new<'a>(run_dir: &Path, stages: impl IntoIterator<Item = &'a str>) -> Self {
        Self { run_dir: run_dir.into(), stages: stages.into_iter().map(Into::into).collect() }
    }

    /// The folder of a stage, if there is one of this name.
    fn stage(&self, file: &CheckpointFile) -> Result<PathBuf, Status> {
        let known = self.stages.contains(&file.stage) && NAMES.contains(&file.name.as_str());
        let path = self.run_dir.join(CHECKPOINTS).join(&file.stage);
        known.then_some(path).ok_or_else(|| {
            Status::invalid_argument("no such stage, or no such file of a checkpoint")
        })
    }

    /// A file of a committed checkpoint, in chunks.
    ///
    /// # Errors
    /// If a checkpoint has no such file. One that cannot be read ends the stream with the reason.
    pub(crate) fn send(
        &self,
        file: &CheckpointFile,
    ) -> Result<mpsc::Receiver<Result<FileChunk, Status>>, Status> {
        let path = self.stage(file)?.join(committed_name(file.step)).join(&file.name);
        let (chunks, receiver) = mpsc::channel(MAX_WAITING);
        tokio::task::spawn_blocking(move || {
            if let Err(error) = read(&path, &chunks) {
                let reason = format!("the coordinator cannot read {}: {error}", path.display());
                _ = chunks.blocking_send(Err(Status::unavailable(reason)));
            }
        });
        Ok(receiver)
    }

    /// Writes and syncs a file that comes in parts. `may_write` says whether its sender is rank 0
    /// of the newest generation, which the file must be of.
    ///
    /// # Errors
    /// If the sender may not write it, or it has no head, ends too early, or cannot be written.
    pub(crate) async fn take(
        self: Arc<Self>,
        mut parts: impl Stream<Item = Result<FilePart, Status>> + Unpin,
        may_write: impl Fn(u64) -> bool,
    ) -> Result<(), Status> {
        let Some(FilePart {
            part: Some(Part::Head(FileHead { generation, file: Some(file), first })),
        }) = parts.next().await.transpose()?
        else {
            return Err(Status::invalid_argument("a file without a header"));
        };
        let stage = self.stage(&file)?;
        if !may_write(generation) {
            let reason =
                format!("generation {generation} is over, or this worker is not its rank 0");
            return Err(Status::failed_precondition(reason));
        }
        let (chunks, taken) = mpsc::channel(MAX_WAITING);
        let written = tokio::task::spawn_blocking(move || write(&stage, &file, first, taken));
        while let Some(part) = parts.next().await.transpose()? {
            let Some(Part::Chunk(chunk)) = part.part else {
                return Err(Status::invalid_argument("a second header in the middle of a file"));
            };
            // The writer has failed, and reports why.
            if chunks.send(Chunk::Bytes(chunk)).await.is_err() {
                break;
            }
        }
        _ = chunks.send(Chunk::End).await;
        drop(chunks);
        let written = written.await.map_err(|error| Status::internal(error.to_string()))?;
        written.map_err(|error| {
            Status::resource_exhausted(format!("the coordinator cannot write it: {error}"))
        })
    }
}

enum Chunk {
    Bytes(Vec<u8>),
    /// The file is whole.
    End,
}

fn read(path: &Path, chunks: &mpsc::Sender<Result<FileChunk, Status>>) -> io::Result<()> {
    let mut file = File::open(path)?;
    loop {
        let mut bytes = Vec::new();
        Read::by_ref(&mut file).take(CHUNK as u64).read_to_end(&mut bytes)?;
        if bytes.is_empty() || chunks.blocking_send(Ok(FileChunk { bytes })).is_err() {
            return Ok(());
        }
    }
}

fn write(
    stage: &Path,
    file: &CheckpointFile,
    first: bool,
    mut chunks: mpsc::Receiver<Chunk>,
) -> io::Result<()> {
    if first {
        remove_unfinished(stage)?;
    }
    let folder = stage.join(unfinished_name(file.step));
    fs::create_dir_all(&folder)?;
    let mut written = File::create(folder.join(&file.name))?;
    loop {
        match chunks.blocking_recv() {
            Some(Chunk::Bytes(bytes)) => written.write_all(&bytes)?,
            Some(Chunk::End) => break,
            None => return Err(ErrorKind::UnexpectedEof.into()),
        }
    }
    written.sync_all()?;
    File::open(&folder)?.sync_all()
}

/// What a rank 0 was sending when it died.
fn remove_unfinished(stage: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(stage) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio_stream::iter;

    fn file(stage: &str, step: u64, name: &str) -> CheckpointFile {
        CheckpointFile { stage: stage.into(), step, name: name.into() }
    }

    fn part(part: Part) -> Result<FilePart, Status> {
        Ok(FilePart { part: Some(part) })
    }

    fn head(file: CheckpointFile, first: bool) -> Result<FilePart, Status> {
        part(Part::Head(FileHead { generation: 2, file: Some(file), first }))
    }

    fn chunk(bytes: &[u8]) -> Result<FilePart, Status> {
        part(Part::Chunk(bytes.into()))
    }

    #[tokio::test]
    async fn what_is_stored_is_sent_again_in_chunks() {
        let folder = tempfile::tempdir().expect("a folder");
        let files = Arc::new(CheckpointFiles::new(folder.path(), ["cae"]));
        let stage = folder.path().join("checkpoints/cae");
        fs::create_dir_all(stage.join(".tmp-step-00000003")).expect("left by one that died");
        let bytes: Vec<u8> = (0..3 * CHUNK + 5).map(|at| at as u8).collect();
        let parts = [head(file("cae", 7, "model.safetensors"), true)].into_iter();
        let parts = parts.chain(bytes.chunks(CHUNK).map(chunk));
        files.clone().take(iter(parts), |generation| generation == 2).await.expect("stored");
        assert!(!stage.join(".tmp-step-00000003").exists());
        fs::rename(stage.join(".tmp-step-00000007"), stage.join("step-00000007"))
            .expect("committed");
        let mut chunks = files.send(&file("cae", 7, "model.safetensors")).expect("known");
        let mut sent = Vec::new();
        while let Some(chunk) = chunks.recv().await {
            sent.extend(chunk.expect("read").bytes);
        }
        assert!(sent == bytes, "{} bytes of {}", sent.len(), bytes.len());
        let mut none = files.send(&file("cae", 8, "model.safetensors")).expect("known");
        assert!(none.recv().await.expect("an answer").is_err());
    }

    #[tokio::test]
    async fn files_that_are_not_of_the_run_are_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let files = Arc::new(CheckpointFiles::new(folder.path(), ["cae"]));
        for other in [
            file("..", 1, "manifest.json"),
            file("cae", 1, "../x"),
            file("cae", 1, "x"),
            file("", 1, ""),
        ] {
            assert!(files.send(&other).is_err(), "{other:?}");
            assert!(
                files.clone().take(iter([head(other.clone(), true)]), |_| true).await.is_err(),
                "{other:?}"
            );
        }
        let model = || file("cae", 1, "model.safetensors");
        for (parts, is_current) in [
            (vec![head(model(), true), chunk(b"x")], false),
            (vec![chunk(b"x")], true),
            (vec![], true),
            (vec![head(model(), true), chunk(b"x"), head(model(), true)], true),
            (vec![head(model(), true), chunk(b"x"), Err(Status::cancelled("gone"))], true),
        ] {
            assert!(files.clone().take(iter(parts), |_| is_current).await.is_err());
        }
    }
}
