//! Packs for workers that do not see this machine's disk: their files, as streams of bounded chunks
//! from any offset. It knows paths and bytes, nothing of what a pack holds.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use thanos_configs::sha256_of;
use thanos_data::PackFile;
use thanos_proto::v1::{PackHead, PackPart, PackRequest, pack_part::Part};
use tokio::sync::mpsc;
use tonic::Status;

/// Bytes of one chunk.
const CHUNK: usize = 1 << 20;
/// Chunks that may wait for the network; a slow worker makes its own stream wait.
const MAX_WAITING: usize = 4;

/// The packs of a run.
pub(crate) struct PackServer {
    packs: Vec<ServedPack>,
}

struct ServedPack {
    fingerprint: String,
    path: PathBuf,
    head: Head,
}

/// Length and SHA-256 of a whole file, computed when the first worker asks; others that ask
/// meanwhile wait for it.
#[derive(Default)]
struct Head(Mutex<Option<PackHead>>);

impl Head {
    fn get_or_compute(
        &self,
        compute: impl FnOnce() -> io::Result<PackHead>,
    ) -> io::Result<PackHead> {
        // A panic here leaves no partial state.
        let mut head = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if head.is_none() {
            *head = Some(compute()?);
        }
        Ok(head.clone().unwrap_or_default())
    }
}

impl PackServer {
    pub(crate) fn new<'a>(packs: impl IntoIterator<Item = &'a PackFile>) -> Self {
        let shelve = |pack: &PackFile| ServedPack {
            fingerprint: pack.fingerprint.clone(),
            path: pack.path.clone(),
            head: Head::default(),
        };
        Self { packs: packs.into_iter().map(shelve).collect() }
    }

    /// The parts of a pack's file: its head, then chunks from the offset to the end. They are read
    /// on a thread of their own, no faster than they are taken.
    ///
    /// # Errors
    /// If it is none of this run's packs. A file that cannot be read ends the stream with the
    /// reason.
    pub(crate) fn send(
        self: Arc<Self>,
        request: PackRequest,
    ) -> Result<mpsc::Receiver<Result<PackPart, Status>>, Status> {
        let PackRequest { fingerprint, offset } = request;
        let Some(at) = self.packs.iter().position(|pack| pack.fingerprint == fingerprint) else {
            return Err(Status::not_found("this run has no pack of this fingerprint"));
        };
        let (parts, receiver) = mpsc::channel(MAX_WAITING);
        tokio::task::spawn_blocking(move || {
            let pack = &self.packs[at];
            if let Err(error) = pack.send(offset, &parts) {
                let reason =
                    format!("the coordinator cannot read {}: {error}", pack.path.display());
                _ = parts.blocking_send(Err(Status::unavailable(reason)));
            }
        });
        Ok(receiver)
    }
}

impl ServedPack {
    /// Ends early, and without an error, when the receiver is dropped.
    fn send(&self, offset: u64, parts: &mpsc::Sender<Result<PackPart, Status>>) -> io::Result<()> {
        let head = self.head.get_or_compute(|| {
            let (bytes, sha256) = sha256_of(File::open(&self.path)?)?;
            Ok(PackHead { bytes, sha256 })
        })?;
        let part = |part| Ok(PackPart { part: Some(part) });
        let mut left = head.bytes.saturating_sub(offset);
        if parts.blocking_send(part(Part::Head(head))).is_err() {
            return Ok(());
        }
        let mut file = File::open(&self.path)?;
        file.seek(SeekFrom::Start(offset))?;
        while left > 0 {
            let mut chunk = vec![0; left.min(CHUNK as u64) as usize];
            file.read_exact(&mut chunk)?;
            left -= chunk.len() as u64;
            if parts.blocking_send(part(Part::Chunk(chunk))).is_err() {
                return Ok(());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::thread;

    #[test]
    fn a_pack_is_hashed_once_however_many_ask_at_the_same_time() {
        let (head, hashed, all) = (Head::default(), AtomicU32::new(0), Barrier::new(8));
        let failed = head.get_or_compute(|| Err(io::Error::other("not there yet")));
        assert!(failed.is_err(), "an error is not kept");
        let ask = || {
            all.wait();
            let computed = head.get_or_compute(|| {
                hashed.fetch_add(1, Ordering::Relaxed);
                // The others come meanwhile.
                thread::yield_now();
                Ok(PackHead { bytes: 7, sha256: "print".into() })
            });
            assert_eq!(computed.expect("there").bytes, 7);
        };
        thread::scope(|scope| (0..8).for_each(|_| _ = scope.spawn(ask)));
        assert_eq!(hashed.into_inner(), 1);
    }
}
