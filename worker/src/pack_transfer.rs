//! A pack that is not on this machine: it comes from the coordinator into a folder of this host,
//! once for all workers of the host, resumes where an earlier transfer broke off, and gets its name
//! only when its SHA-256 is right. What is in a pack is `pack.rs`'s.

use crate::error::{Result, WorkerError};
use crate::session::{PackParts, Session};
use anyhow::{Context, anyhow};
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
/// How often a transfer is reported to the coordinator.
const REPORT_INTERVAL: Duration = Duration::from_secs(2);

/// The file of a pack on this machine: the coordinator's own, where it can be seen and no other
/// folder is asked for; else one in `folder`, to which it is fetched if need be.
pub(crate) fn local_file(
    session: &Session,
    pack: &PackRef,
    folder: Option<&Path>,
) -> Result<PathBuf> {
    if folder.is_none() && Path::new(&pack.path).is_file() {
        return Ok(pack.path.clone().into());
    }
    let folder = match folder {
        Some(folder) => folder.to_owned(),
        None => default_packs_dir(std::env::var_os).context("HOME is not set: pass --packs-dir")?,
    };
    // A coordinator that restarts misses a report, and nothing else.
    let report = |fetching| match session.send(WorkerEvent::Fetching(fetching)) {
        Err(error) if error.ends_generation() => Ok(()),
        sent => sent,
    };
    let open = |offset| session.fetch_pack(&pack.fingerprint, offset);
    let place = || format!("the {} pack in {}", pack.split, folder.display());
    fetch(pack, &folder, open, report).map_err(|error| error.context(place()))
}

/// Whether this is the answer of a file system that cannot lock files (some NFS and FUSE mounts).
fn has_no_locks(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::Unsupported || error.raw_os_error() == Some(ENOLCK)
}

/// Fetches a pack into `folder`, unless it is there. `open` starts a stream at an offset.
fn fetch(
    pack: &PackRef,
    folder: &Path,
    mut open: impl FnMut(u64) -> anyhow::Result<PackParts>,
    mut report: impl FnMut(Fetching) -> Result<()>,
) -> Result<PathBuf> {
    let fingerprint = &pack.fingerprint;
    let plain = fingerprint.len() == 64 && fingerprint.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !plain {
        return Err(anyhow!("`{}` is not a fingerprint", fingerprint.escape_debug()).into());
    }
    let path = folder.join(format!("{fingerprint}.safetensors"));
    fs::create_dir_all(folder)?;
    // One worker of a host fetches it; the others wait here, and find it.
    let lock = File::create(folder.join(format!("{fingerprint}.lock")))?;
    let own = match lock.lock() {
        // Without locks each worker fetches a copy of its own; the last one to finish gives it its
        // name.
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
    let mut part =
        File::options().create(true).truncate(false).read(true).write(true).open(&part_path)?;
    let mut breaks = 0;
    loop {
        let from = part.seek(SeekFrom::End(0))?;
        let progress = |done, total| Fetching { split: pack.split.clone(), from, done, total };
        match receive(&mut part, from, &mut open, |done, total| report(progress(done, total))) {
            Ok((bytes, sha256)) => {
                part.seek(SeekFrom::Start(0))?;
                if sha256_of(&part)?.1 == sha256 {
                    part.sync_all()?;
                    fs::rename(&part_path, &path)?;
                    File::open(folder)?.sync_all()?;
                    report(progress(bytes, bytes))?;
                    return Ok(path);
                }
                // What an earlier transfer had left was no part of this file.
                part.set_len(0)?;
                if from == 0 {
                    return Err(anyhow!(
                        "its SHA-256 is not the coordinator's: it was damaged on the way"
                    )
                    .into());
                }
                tracing::warn!("what was left of an earlier transfer is damaged: it starts over");
            }
            Err(error) => {
                breaks += 1;
                let failed =
                    format!("it could not be brought from the coordinator in {breaks} attempts");
                match error {
                    // Of this machine's disk.
                    WorkerError::Io(error) => return Err(WorkerError::Io(error.context(failed))),
                    error if breaks == MAX_INTERRUPTIONS => {
                        return Err(WorkerError::NotTransferred(
                            anyhow::Error::from(error).context(failed),
                        ));
                    }
                    error => tracing::warn!(
                        "the transfer of a pack was interrupted, and continues: {error}"
                    ),
                }
                thread::sleep(MIN_PAUSE * (1 << (breaks - 1)));
            }
        }
    }
}

/// Appends what comes, up to the length that the head names. Returns the head.
fn receive(
    part: &mut File,
    from: u64,
    open: &mut impl FnMut(u64) -> anyhow::Result<PackParts>,
    mut at: impl FnMut(u64, u64) -> Result<()>,
) -> Result<(u64, String)> {
    let mut stream = open(from)?;
    let (bytes, sha256) = stream.head()?;
    if bytes > MAX_BYTES {
        return Err(anyhow!("a pack of {bytes} bytes: at most {MAX_BYTES} are allowed").into());
    }
    let mut done = from;
    let mut reported = Instant::now();
    while let Some(chunk) = stream.chunk()? {
        done += chunk.len() as u64;
        if done > bytes {
            return Err(anyhow!("more than the {bytes} bytes that were announced").into());
        }
        part.write_all(&chunk)?;
        if reported.elapsed() >= REPORT_INTERVAL && done < bytes {
            at(done, bytes)?;
            reported = Instant::now();
        }
    }
    if done < bytes {
        return Err(anyhow!("it ended after {done} of {bytes} bytes").into());
    }
    Ok((bytes, sha256))
}
