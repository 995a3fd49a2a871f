//! The lock of a run directory: at most one coordinator writes to it.
//!
//! Where the file system has `flock`, the kernel holds the lock and drops it with the process;
//! nothing can be left over. Where it has not (some FUSE and NFS mounts answer ENOSYS, EOPNOTSUPP
//! or ENOLCK), `fcntl` locks fail as well, since they go through the same lock operation, and POSIX
//! ones would be lost whenever any part of the program closes the file. What works on all of them
//! is to create a file that must not exist (O_EXCL): `lock.held` names its holder, and the holder
//! renews it every few seconds. Such a file outlives a holder that is killed, so a process that
//! finds it decides: on the same machine exactly, by the process and its start time; from another
//! one by the age of the last renewal. Both the renewal and the time that it is compared with are
//! the file server's, so that no two clocks are compared.

use super::cannot;
use crate::exit::{EXIT_IO, EXIT_USAGE, Fatal};
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

/// The file that is locked, and names the holder for people.
const LOCK: &str = "lock";
/// The file that is the lock where there is no `flock`.
const HELD: &str = "lock.held";
const RENEWAL_INTERVAL: Duration = Duration::from_secs(2);
/// A holder on another machine whose file is older is taken for dead: many missed renewals, as file
/// servers pause.
const STALE_AFTER: Duration = Duration::from_secs(30);
/// Attempts to take over a stale lock while others try the same.
const MAX_ATTEMPTS: u32 = 5;

/// A lock that this process holds, until it is dropped.
#[derive(Debug)]
pub(super) struct Lock {
    /// Locked while it is open.
    _file: File,
    _renewed: Option<Renewed>,
}

impl Lock {
    /// # Errors
    /// 64, naming the holder, if another coordinator has it; 74 if the file cannot be written.
    pub(super) fn take(run_dir: &Path) -> Result<Self, Fatal> {
        let path = run_dir.join(LOCK);
        let failed = |error: io::Error| cannot("lock", &path, &error);
        let options = File::options().create(true).truncate(false).read(true).write(true).clone();
        let mut file = options.open(&path).map_err(failed)?;
        let renewed = match file.try_lock() {
            Ok(()) => None,
            Err(TryLockError::Error(error)) if is_unsupported(&error) => {
                Some(Renewed::take(run_dir)?)
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                _ = file.read_to_string(&mut holder);
                return Err(in_use(run_dir, holder.trim()));
            }
        };
        let holder = format!("pid {} on {}", std::process::id(), host());
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| file.write_all(holder.as_bytes()))
            .map_err(failed)?;
        Ok(Self { _file: file, _renewed: renewed })
    }
}

/// The holder of the lock of a run directory, if there is one.
pub(crate) fn holder(run_dir: &Path) -> Option<String> {
    let path = run_dir.join(LOCK);
    let held = match File::open(&path).ok()?.try_lock_shared() {
        Ok(()) => false,
        Err(TryLockError::WouldBlock) => true,
        Err(TryLockError::Error(error)) => {
            is_unsupported(&error) && {
                let held = run_dir.join(HELD);
                read(&held).is_ok_and(|holder| {
                    holder_state(&holder, &Holder::this(), age(&held)) != Judgement::Stale
                })
            }
        }
    };
    held.then(|| fs::read_to_string(&path).unwrap_or_else(|_| "at work".into()))
}

fn in_use(run_dir: &Path, holder: &str) -> Fatal {
    Fatal::new(
        EXIT_USAGE,
        format!("{} is in use by another coordinator ({holder})", run_dir.display()),
    )
}

fn is_unsupported(error: &io::Error) -> bool {
    let unsupported = [Errno::ENOSYS, Errno::EOPNOTSUPP, Errno::ENOLCK].map(|errno| errno as i32);
    error.raw_os_error().is_some_and(|errno| unsupported.contains(&errno))
}

/// What `lock.held` records of its holder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Holder {
    host: String,
    /// Which start of which machine: names of hosts are not unique.
    boot: String,
    /// The namespace in which `pid` is a number: containers of a machine do not see each other's
    /// processes.
    pid_namespace: String,
    pid: u32,
    /// In ticks after the machine's start: numbers of processes are used again.
    started_ticks: u64,
}

impl Holder {
    fn this() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let namespace = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
        let pid = std::process::id();
        Self {
            host: host(),
            boot: read("/proc/sys/kernel/random/boot_id"),
            pid_namespace: namespace.display().to_string(),
            pid,
            started_ticks: started_ticks(pid).unwrap_or_default(),
        }
    }
}

/// Name of this machine.
pub(crate) fn host() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned()
}

/// When a process of this machine started; `None`: there is no such process.
fn started_ticks(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Field 22; the name in parentheses, field 2, may have spaces in it. A zombie has ended.
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    fields.get(19).filter(|_| fields.first() != Some(&"Z"))?.parse().ok()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Judgement {
    Alive,
    /// It renewed the lock this long ago, and cannot be asked.
    Renewed(Duration),
    Stale,
}

/// Whether the holder of a lock lives, seen by `this` process.
fn holder_state(holder: &Holder, this: &Holder, age: Duration) -> Judgement {
    if (&holder.boot, &holder.pid_namespace) == (&this.boot, &this.pid_namespace)
        && !holder.boot.is_empty()
    {
        let alive = started_ticks(holder.pid) == Some(holder.started_ticks);
        return if alive { Judgement::Alive } else { Judgement::Stale };
    }
    if age < STALE_AFTER { Judgement::Renewed(age) } else { Judgement::Stale }
}

fn read(path: &Path) -> io::Result<Holder> {
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

/// Time since a file was last written, by the clock of its file system: that of a file written now.
fn age(path: &Path) -> Duration {
    let probe = path.with_extension(format!("probe-{}", std::process::id()));
    let modified = |path: &Path| fs::metadata(path)?.modified();
    let now = fs::write(&probe, "now")
        .and_then(|()| modified(&probe))
        .unwrap_or_else(|_| SystemTime::now());
    _ = fs::remove_file(&probe);
    modified(path).map_or(Duration::ZERO, |written| now.duration_since(written).unwrap_or_default())
}

/// `lock.held`, renewed by a thread as long as this lives.
#[derive(Debug)]
struct Renewed {
    path: PathBuf,
    holder: Holder,
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Renewed {
    fn take(run_dir: &Path) -> Result<Self, Fatal> {
        let path = run_dir.join(HELD);
        let failed = |error: io::Error| cannot("lock", &path, &error);
        let this = Holder::this();
        for _ in 0..MAX_ATTEMPTS {
            match create(&path, &this) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                created => {
                    created.map_err(failed)?;
                    return Ok(Self::renew(path, this));
                }
            }
            match read(&path) {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                // Still empty, or torn: only its age shows whether its owner lives.
                Err(error) => {
                    let age = age(&path);
                    if age < STALE_AFTER {
                        return Err(in_use(run_dir, &remedy(&path, &format!("{error}"), age)));
                    }
                    take_away(&path, None).map_err(failed)?;
                }
                Ok(holder) => {
                    let named = format!("pid {} on {}", holder.pid, holder.host);
                    match holder_state(&holder, &this, age(&path)) {
                        Judgement::Alive => return Err(in_use(run_dir, &named)),
                        Judgement::Renewed(age) => {
                            return Err(in_use(run_dir, &remedy(&path, &named, age)));
                        }
                        Judgement::Stale => take_away(&path, Some(&holder)).map_err(failed)?,
                    }
                }
            }
        }
        Err(failed(io::Error::other(format!(
            "{MAX_ATTEMPTS} attempts failed, as other processes took it meanwhile"
        ))))
    }

    fn renew(path: PathBuf, holder: Holder) -> Self {
        let (stop, stopped) = channel();
        let (renewed, own) = (path.clone(), holder.clone());
        let thread = thread::spawn(move || {
            while stopped.recv_timeout(RENEWAL_INTERVAL) == Err(RecvTimeoutError::Timeout) {
                match read(&renewed) {
                    Ok(holder) if holder == own => _ = write(&renewed, &own),
                    // Two coordinators must not write: this one was taken for dead, and another has
                    // begun.
                    Ok(holder) => end(
                        &format!("now belongs to pid {} on {}", holder.pid, holder.host),
                        &renewed,
                    ),
                    Err(error) if error.kind() == ErrorKind::NotFound => {
                        end("was removed", &renewed)
                    }
                    Err(error) => {
                        tracing::warn!("{} cannot be renewed: {error}", renewed.display())
                    }
                }
            }
        });
        Self { path, holder, stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Renewed {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            _ = thread.join();
        }
        if read(&self.path).is_ok_and(|holder| holder == self.holder) {
            _ = fs::remove_file(&self.path);
        }
    }
}

fn remedy(path: &Path, named: &str, age: Duration) -> String {
    format!(
        "{named}, renewed {} s ago; if it is dead, wait until {} s have passed, or remove {}",
        age.as_secs(),
        STALE_AFTER.as_secs(),
        path.display()
    )
}

/// This process no longer owns the run: it must not write another byte.
fn end(how: &str, path: &Path) -> ! {
    tracing::error!("the lock {} {how}: this coordinator exits", path.display());
    std::process::exit(i32::from(EXIT_IO));
}

fn create(path: &Path, holder: &Holder) -> io::Result<()> {
    let mut file = File::options().write(true).create_new(true).open(path)?;
    file.write_all(&to_bytes(holder))?;
    file.sync_all()
}

/// The same bytes again, which makes the file new; closed, so that other clients of a file server
/// see it.
fn write(path: &Path, holder: &Holder) -> io::Result<()> {
    let mut file = File::options().write(true).open(path)?;
    file.write_all(&to_bytes(holder))?;
    file.sync_all()
}

fn to_bytes(holder: &Holder) -> Vec<u8> {
    serde_json::to_vec(holder).expect("plain data is always JSON")
}

/// Removes a stale lock. Of several that try, one renames it; should that have been a new one
/// already, it is put back.
fn take_away(path: &Path, stale: Option<&Holder>) -> io::Result<()> {
    let aside = path.with_extension(format!("stale-{}", std::process::id()));
    match fs::rename(path, &aside) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        renamed => renamed?,
    }
    if read(&aside).ok().as_ref() != stale {
        fs::hard_link(&aside, path)?;
    }
    fs::remove_file(&aside)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder_of(pid: u32) -> Holder {
        Holder { pid, started_ticks: started_ticks(pid).unwrap_or(1), ..Holder::this() }
    }

    #[test]
    fn a_local_holder_is_checked_and_a_remote_one_ages() {
        let this = Holder::this();
        let check = |holder: Holder, age: u64, expected| {
            assert_eq!(
                holder_state(&holder, &this, Duration::from_secs(age)),
                expected,
                "{holder:?}"
            );
        };
        check(this.clone(), 1000, Judgement::Alive);
        // The number of a process that lives, and started at another time.
        check(
            Holder { started_ticks: this.started_ticks + 1, ..this.clone() },
            0,
            Judgement::Stale,
        );
        check(Holder { pid: u32::MAX, ..this.clone() }, 0, Judgement::Stale);
        let elsewhere = Holder { boot: "another".into(), pid: u32::MAX, ..this.clone() };
        check(elsewhere.clone(), 5, Judgement::Renewed(Duration::from_secs(5)));
        check(elsewhere, 30, Judgement::Stale);
        let container = Holder { pid_namespace: "another".into(), pid: u32::MAX, ..this.clone() };
        check(container, 5, Judgement::Renewed(Duration::from_secs(5)));
    }

    #[test]
    fn without_flock_one_holder_excludes_others_until_it_is_dropped() {
        let folder = tempfile::tempdir().expect("a folder");
        let held = Renewed::take(folder.path()).expect("free");
        let refused = Renewed::take(folder.path()).expect_err("held");
        let named = format!("in use by another coordinator (pid {} on ", std::process::id());
        assert!(refused.exit_code == EXIT_USAGE && refused.message.contains(&named), "{refused}");
        drop(held);
        let left: Vec<_> = fs::read_dir(folder.path()).expect("listed").collect();
        assert!(left.is_empty(), "{left:?}");
    }

    #[test]
    fn a_stale_lock_is_taken_over_and_one_of_another_machine_is_explained() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join(HELD);
        fs::write(&path, to_bytes(&Holder { pid: u32::MAX, ..Holder::this() })).expect("written");
        drop(Renewed::take(folder.path()).expect("its holder is dead"));
        let elsewhere = Holder { host: "other".into(), boot: "another".into(), ..holder_of(1) };
        fs::write(&path, to_bytes(&elsewhere)).expect("written");
        let refused = Renewed::take(folder.path()).expect_err("it was renewed just now").message;
        assert!(
            refused.contains("pid 1 on other, renewed 0 s ago") && refused.contains("remove "),
            "{refused}"
        );
        let old = SystemTime::now() - 2 * STALE_AFTER;
        File::options()
            .write(true)
            .open(&path)
            .and_then(|file| file.set_modified(old))
            .expect("made old");
        drop(Renewed::take(folder.path()).expect("too old to be held"));
        assert!(!path.exists());
    }
}
