//! A pack that is not on this machine: it comes from the coordinator into a folder of this host, once for all workers
//! of the host, resumes where an earlier transfer broke off, and gets its name only when its SHA-256 is right.
//! What is in a pack is `pack.rs`'s.

use crate::session::{Session, ends_generation};
use anyhow::{Context, Result, bail, ensure};
use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};
use thanos_configs::{default_packs_dir, sha256_of};
use thanos_proto::{Fetching, PackRef, WorkerEvent};

/// Streams that may break before a transfer fails; each resumes where the last one ended.
const MAX_INTERRUPTIONS: u32 = 5;
/// Pause after the first of them; it doubles each time.
const MIN_PAUSE: Duration = Duration::from_millis(200);
/// Bytes of the largest pack.
const MAX_BYTES: u64 = 1 << 40;
/// No locks available; it has no [`io::ErrorKind`].
const ENOLCK: i32 = 37;
/// How often the coordinator hears how far a transfer is.
const REPORT_INTERVAL: Duration = Duration::from_secs(2);

/// A pack did not come.
#[derive(Debug, thiserror::Error)]
#[error("it could not be brought from the coordinator in {breaks} attempts")]
pub(crate) struct NotBrought {
    breaks: u32,
}

/// Bytes that come in, one part after the other.
pub(crate) trait PackStream {
    /// Length and SHA-256 of the whole file.
    fn head(&mut self) -> Result<(u64, String)>;
    /// The next chunk; `None` at the end.
    fn chunk(&mut self) -> Result<Option<Vec<u8>>>;
}

/// The file of a pack on this machine: the coordinator's own, where it can be seen and no other folder is asked for;
/// else one in `folder`, to which it is brought if need be.
pub(crate) fn local_file(session: &Session, pack: &PackRef, folder: Option<&Path>) -> Result<PathBuf> {
    if folder.is_none() && Path::new(&pack.path).is_file() {
        return Ok(pack.path.clone().into());
    }
    let folder = match folder {
        Some(folder) => folder.to_owned(),
        None => default_packs_dir(std::env::var_os).context("HOME is not set: pass --packs-dir")?,
    };
    // A coordinator that is gone for a moment misses a report, and nothing else.
    let told = |fetching| match session.send(WorkerEvent::Fetching(fetching)) {
        Err(error) if ends_generation(&error) => Ok(()),
        told => told,
    };
    let open = |offset| session.fetch_pack(&pack.fingerprint, offset);
    bring(pack, &folder, open, told).with_context(|| format!("the {} pack in {}", pack.split, folder.display()))
}

/// Whether this is the answer of a file system that cannot lock files (some NFS and FUSE mounts).
fn has_no_locks(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::Unsupported || error.raw_os_error() == Some(ENOLCK)
}

/// Brings a pack into `folder`, unless it is there. `open` starts a stream at an offset.
fn bring<S: PackStream>(
    pack: &PackRef,
    folder: &Path,
    mut open: impl FnMut(u64) -> Result<S>,
    mut told: impl FnMut(Fetching) -> Result<()>,
) -> Result<PathBuf> {
    let fingerprint = &pack.fingerprint;
    let plain = fingerprint.len() == 64 && fingerprint.bytes().all(|byte| byte.is_ascii_hexdigit());
    ensure!(plain, "`{}` is not a fingerprint", fingerprint.escape_debug());
    let path = folder.join(format!("{fingerprint}.safetensors"));
    fs::create_dir_all(folder)?;
    // One worker of a host brings it; the others wait here, and find it.
    let lock = File::create(folder.join(format!("{fingerprint}.lock")))?;
    let own = match lock.lock() {
        // Without locks each worker brings a copy of its own; the last one to finish gives it its name.
        Err(error) if has_no_locks(&error) => format!(".{}", std::process::id()),
        locked => {
            locked?;
            String::new()
        }
    };
    if path.is_file() {
        return Ok(path);
    }
    let part_path = folder.join(format!("{fingerprint}{own}.part"));
    let mut part = File::options().create(true).truncate(false).read(true).write(true).open(&part_path)?;
    let mut breaks = 0;
    loop {
        let from = part.seek(SeekFrom::End(0))?;
        let report = |done, total| Fetching { split: pack.split.clone(), from, done, total };
        match receive(&mut part, from, &mut open, |done, total| told(report(done, total))) {
            Ok((bytes, sha256)) => {
                part.seek(SeekFrom::Start(0))?;
                if sha256_of(&part)?.1 == sha256 {
                    part.sync_all()?;
                    fs::rename(&part_path, &path)?;
                    File::open(folder)?.sync_all()?;
                    told(report(bytes, bytes))?;
                    return Ok(path);
                }
                // What an earlier transfer had left was no part of this file.
                part.set_len(0)?;
                ensure!(from > 0, "its SHA-256 is not the coordinator's: it was damaged on the way");
                tracing::warn!("what was left of an earlier transfer is damaged: it starts over");
            }
            Err(error) => {
                breaks += 1;
                if breaks == MAX_INTERRUPTIONS || error.downcast_ref::<io::Error>().is_some() {
                    return Err(error.context(NotBrought { breaks }));
                }
                tracing::warn!("the transfer of a pack was interrupted, and continues: {error:#}");
                thread::sleep(MIN_PAUSE * (1 << (breaks - 1)));
            }
        }
    }
}

/// Appends what comes, up to the length that the head names. Returns the head.
fn receive<S: PackStream>(
    part: &mut File,
    from: u64,
    open: &mut impl FnMut(u64) -> Result<S>,
    mut at: impl FnMut(u64, u64) -> Result<()>,
) -> Result<(u64, String)> {
    let mut stream = open(from)?;
    let (bytes, sha256) = stream.head()?;
    ensure!(bytes <= MAX_BYTES, "a pack of {bytes} bytes: at most {MAX_BYTES} are allowed");
    let mut done = from;
    let mut told = Instant::now();
    while let Some(chunk) = stream.chunk()? {
        done += chunk.len() as u64;
        ensure!(done <= bytes, "more than the {bytes} bytes that were announced");
        part.write_all(&chunk)?;
        if told.elapsed() >= REPORT_INTERVAL && done < bytes {
            at(done, bytes)?;
            told = Instant::now();
        }
    }
    if done < bytes {
        bail!("it ended after {done} of {bytes} bytes");
    }
    Ok((bytes, sha256))
}
