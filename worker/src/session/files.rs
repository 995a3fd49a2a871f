//! The files of checkpoints, with the coordinator, as blocking calls: for a worker that does not
//! see the run directory.

use super::stream::Client;
use crate::failpoints::crash;
use crate::run_files::{RunFiles, Unfinished};
use anyhow::{Context, Result, anyhow};
use std::time::Duration;
use thanos_proto::CheckpointRef;
use thanos_proto::v1::file_part::Part;
use thanos_proto::v1::{CheckpointFile, FileHead, FilePart};
use tokio::runtime::Handle;

/// Bytes of one chunk.
const CHUNK: usize = 1 << 20;

pub(super) struct Remote {
    pub(super) client: Client,
    pub(super) runtime: Handle,
    /// For one file, either way.
    pub(super) timeout: Duration,
}

impl Remote {
    fn wait<T>(&self, call: impl Future<Output = Result<T, tonic::Status>>) -> Result<T> {
        let done = self.runtime.block_on(async { tokio::time::timeout(self.timeout, call).await });
        let done = done.map_err(|_| anyhow!("it took longer than {:?}", self.timeout))?;
        done.map_err(|status| anyhow!("{}", status.message()))
    }
}

impl RunFiles for Remote {
    fn read(&self, checkpoint: &CheckpointRef, name: &str) -> Result<Vec<u8>> {
        let (stage, step) = (checkpoint.stage.clone(), checkpoint.step);
        let mut client = self.client.clone();
        let read = self.wait(async {
            let file = CheckpointFile { stage, step, name: name.into() };
            let mut chunks = client.fetch_file(file).await?.into_inner();
            let mut bytes = Vec::new();
            while let Some(chunk) = chunks.message().await? {
                bytes.extend(chunk.bytes);
            }
            Ok(bytes)
        });
        read.with_context(|| format!("{}/{name} from the coordinator", checkpoint.folder))
    }

    fn write(&self, checkpoint: Unfinished<'_>, files: &[(&str, Vec<u8>)]) -> Result<()> {
        let Unfinished { stage, step, generation } = checkpoint;
        for (index, (name, bytes)) in files.iter().enumerate() {
            let file = CheckpointFile { stage: stage.into(), step, name: (*name).into() };
            let head = Part::Head(FileHead { generation, file: Some(file), first: index == 0 });
            let chunks: Vec<Vec<u8>> = bytes.chunks(CHUNK).map(Into::into).collect();
            let parts = std::iter::once(head).chain(chunks.into_iter().map(Part::Chunk));
            let parts = tokio_stream::iter(parts.map(|part| FilePart { part: Some(part) }));
            let mut client = self.client.clone();
            self.wait(client.store_file(parts))
                .with_context(|| format!("{name} to the coordinator"))?;
            crash("save-written");
        }
        crash("save-synced");
        Ok(())
    }

    fn place(&self) -> String {
        "the coordinator's".into()
    }
}
