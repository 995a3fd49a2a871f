//! A pack's stream as blocking calls, for the thread that waits for it anyway.

use super::stream::Client;
use anyhow::{Context, Result, bail};
use std::time::Duration;
use thanos_proto::v1::{PackHead, PackPart, PackRequest, pack_part::Part};
use tokio::runtime::Handle;
use tonic::Streaming;

/// How long the coordinator may send nothing. It hashes the whole file before its first part.
const MAX_SILENCE: Duration = Duration::from_secs(60);

pub(crate) struct PackParts {
    parts: Streaming<PackPart>,
    runtime: Handle,
}

impl PackParts {
    pub(super) fn open(
        mut client: Client,
        runtime: Handle,
        fingerprint: &str,
        offset: u64,
    ) -> Result<Self> {
        let request = PackRequest { fingerprint: fingerprint.into(), offset };
        let parts = runtime
            .block_on(async { tokio::time::timeout(MAX_SILENCE, client.fetch_pack(request)).await })
            .with_context(|| format!("the coordinator did not answer within {MAX_SILENCE:?}"))?;
        let parts = parts.map_err(|status| anyhow::anyhow!("{}", status.message()))?.into_inner();
        Ok(Self { parts, runtime })
    }

    fn next(&mut self) -> Result<Option<Part>> {
        let message = self
            .runtime
            .block_on(async { tokio::time::timeout(MAX_SILENCE, self.parts.message()).await });
        let message =
            message.with_context(|| format!("no chunk was received for {MAX_SILENCE:?}"))?;
        Ok(message
            .map_err(|status| anyhow::anyhow!("{}", status.message()))?
            .and_then(|part| part.part))
    }

    /// Length and SHA-256 of the whole file.
    pub(crate) fn head(&mut self) -> Result<(u64, String)> {
        match self.next()? {
            Some(Part::Head(PackHead { bytes, sha256 })) => Ok((bytes, sha256)),
            _ => bail!("the coordinator sent no header of the pack"),
        }
    }

    /// The next chunk; `None` at the end.
    pub(crate) fn chunk(&mut self) -> Result<Option<Vec<u8>>> {
        match self.next()? {
            Some(Part::Chunk(chunk)) => Ok(Some(chunk)),
            Some(Part::Head(_)) => bail!("a second header in the middle of a pack"),
            None => Ok(None),
        }
    }
}
