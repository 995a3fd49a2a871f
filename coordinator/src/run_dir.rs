//! The run directory: the database of a run. Who holds its lock may write; its files are those of ARCHITECTURE.md,
//! "The run directory". What is in them is other modules' business.

use crate::exit::{EXIT_CONFIG, EXIT_IO, EXIT_USAGE, Fatal};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use thanos_configs::{Plan, hex, to_yaml};

/// `run.json`: what the run is, written once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Identity {
    /// Unique to this run: it is in every checkpoint's manifest.
    pub id: String,
    pub preset: String,
    pub seed: u64,
    pub config_digest: String,
    pub version: String,
}

/// A run directory whose lock this process holds.
#[derive(Debug)]
pub(crate) struct RunDir {
    path: PathBuf,
    identity: Identity,
    /// Locked while it is open.
    _lock: File,
}

impl RunDir {
    /// Makes the directory of a new run, and writes its configuration down.
    ///
    /// # Errors
    /// 64 if it is in use, or holds a run already; 74 if it cannot be written.
    pub(crate) fn create(path: &Path, plan: &Plan) -> Result<Self, Fatal> {
        fs::create_dir_all(path).map_err(|error| cannot("make", path, &error))?;
        let lock = lock(path)?;
        if path.join("run.json").exists() {
            let message = format!(
                "{} holds a run already: add --resume to go on with it, or name another --run-dir",
                path.display()
            );
            return Err(Fatal::new(EXIT_USAGE, message));
        }
        let config = plan.config();
        let identity = Identity {
            id: new_id(path),
            preset: config.name.clone(),
            seed: config.seed,
            config_digest: plan.digest().into(),
            version: env!("CARGO_PKG_VERSION").into(),
        };
        for folder in ["checkpoints", "logs"] {
            let folder = path.join(folder);
            fs::create_dir_all(&folder).map_err(|error| cannot("make", &folder, &error))?;
        }
        write_durably(&path.join("config.yaml"), to_yaml(config).as_bytes())?;
        // Last: a directory without it is no run.
        write_durably(&path.join("run.json"), &json(&identity))?;
        Ok(Self { path: path.into(), identity, _lock: lock })
    }

    /// Opens the directory of a run to go on with it.
    ///
    /// # Errors
    /// 64 if it is in use or holds no run, 78 if its configuration is not `plan`'s.
    pub(crate) fn open(path: &Path, plan: &Plan) -> Result<Self, Fatal> {
        let identity = identity(path)?;
        let lock = lock(path)?;
        if identity.config_digest != plan.digest() {
            let message = format!(
                "{} is a run of another configuration (its digest is {}, this one's {}): resume it without naming a \
                 preset, or start a new run in another --run-dir",
                path.display(),
                short(&identity.config_digest),
                short(plan.digest()),
            );
            return Err(Fatal::new(EXIT_CONFIG, message));
        }
        Ok(Self { path: path.into(), identity, _lock: lock })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn identity(&self) -> &Identity {
        &self.identity
    }
}

/// `run.json` of a directory, without its lock.
///
/// # Errors
/// 64 if the directory holds no run.
pub(crate) fn identity(path: &Path) -> Result<Identity, Fatal> {
    let file = path.join("run.json");
    let text = fs::read_to_string(&file).map_err(|error| {
        Fatal::new(EXIT_USAGE, format!("{} holds no run ({}: {error})", path.display(), file.display()))
    })?;
    serde_json::from_str(&text)
        .map_err(|error| Fatal::new(EXIT_USAGE, format!("{} is damaged: {error}", file.display())))
}

/// `runs/NAME-1`, or the first number that is free.
pub(crate) fn fresh_path(name: &str) -> PathBuf {
    (1..).map(|number| PathBuf::from(format!("runs/{name}-{number}"))).find(|path| !path.exists()).unwrap_or_default()
}

/// Replaces a file so that a crash leaves the old one or the new one.
///
/// # Errors
/// 74, naming the file.
pub(crate) fn write_durably(path: &Path, bytes: &[u8]) -> Result<(), Fatal> {
    write_and_rename(path, bytes).map_err(|error| cannot("write", path, &error))
}

fn write_and_rename(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    let mut file = File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

/// Takes the lock, or names who holds it.
fn lock(path: &Path) -> Result<File, Fatal> {
    let file = path.join("lock");
    let failed = |error: io::Error| cannot("lock", &file, &error);
    let mut lock = File::options().create(true).truncate(false).read(true).write(true).open(&file).map_err(failed)?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::Error(error)) => return Err(failed(error)),
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            _ = lock.read_to_string(&mut holder);
            let message = format!("{} is in use by another coordinator ({})", path.display(), holder.trim());
            return Err(Fatal::new(EXIT_USAGE, message));
        }
    }
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    lock.set_len(0)
        .and_then(|()| lock.rewind())
        .and_then(|()| write!(lock, "pid {} on {}", std::process::id(), host.trim()))
        .map_err(failed)?;
    Ok(lock)
}

fn cannot(verb: &str, path: &Path, error: &io::Error) -> Fatal {
    Fatal::new(EXIT_IO, format!("cannot {verb} {}: {error}", path.display()))
}

fn json(value: &impl Serialize) -> Vec<u8> {
    let mut bytes = serde_json::to_vec_pretty(value).expect("plain data is always JSON");
    bytes.push(b'\n');
    bytes
}

/// Sixteen digits that no other run has.
fn new_id(path: &Path) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let seed = format!("{} {} {}", path.display(), std::process::id(), now.as_nanos());
    short(&hex(&Sha256::digest(seed.as_bytes()))).into()
}

fn short(digest: &str) -> &str {
    digest.get(..16).unwrap_or(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(overrides: &[&str]) -> Plan {
        let overrides: Vec<String> = overrides.iter().map(|text| (*text).into()).collect();
        Plan::from_preset("digits_cae", &overrides).expect("valid")
    }

    fn refused(result: Result<RunDir, Fatal>, exit_code: u8, part: &str) {
        let fatal = result.expect_err("refused");
        assert_eq!(fatal.exit_code, exit_code, "{fatal}");
        assert!(fatal.message.contains(part), "no `{part}` in {fatal}");
    }

    #[test]
    fn a_directory_is_one_run_and_one_coordinator() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("runs/one");
        refused(RunDir::open(&path, &plan(&[])), EXIT_USAGE, "holds no run");
        let run = RunDir::create(&path, &plan(&[])).expect("new");
        let id = run.identity().id.clone();
        refused(RunDir::create(&path, &plan(&[])), EXIT_USAGE, "in use by another coordinator (pid ");
        drop(run);
        refused(RunDir::create(&path, &plan(&[])), EXIT_USAGE, "add --resume");
        refused(RunDir::open(&path, &plan(&["seed=1"])), EXIT_CONFIG, "another configuration");
        assert_eq!(RunDir::open(&path, &plan(&[])).expect("its own").identity().id, id);
    }

    #[test]
    fn its_configuration_loads_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let plan = plan(&["seed=7", "train.epochs=3"]);
        RunDir::create(folder.path(), &plan).expect("new");
        let text = fs::read_to_string(folder.path().join("config.yaml")).expect("written");
        assert_eq!(Plan::from_file(&text, "config.yaml", &[]).expect("valid").digest(), plan.digest());
    }
}
