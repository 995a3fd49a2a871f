//! The run directory: the database of a run. The holder of its lock may write; its files are those
//! of ARCHITECTURE.md, "The run directory". What is in them is other modules' business.

pub(crate) mod checkpoints;
pub(crate) mod comparison;
pub(crate) mod ledger;
mod lock;
pub(crate) mod results;
pub(crate) mod superseded;
pub(crate) mod test_images;

use crate::exit::{EXIT_CONFIG, EXIT_DATA, EXIT_IO, EXIT_USAGE, Fatal};
use nix::errno::Errno;
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};
use thanos_configs::{Change, Plan, changes, hex, to_yaml};
use thanos_formats::{
    CHECKPOINTS, CONFIG_YAML, DataIdentity, Identity, RUN_JSON, RecordedChange, StartedWith,
};

use lock::Lock;
pub(crate) use lock::{holder, host};

/// Runs of one name that `launch` makes directories for by itself.
const MAX_NUMBER: u32 = 1_000_000;

/// What a run is trained on, and how it was started.
#[derive(Clone, Debug)]
pub(crate) struct Content {
    pub(crate) data: DataIdentity,
    /// SHA-256 of given weights, by backbone.
    pub(crate) weights: BTreeMap<String, String>,
    pub(crate) started_with: StartedWith,
    /// A new run's: it only shows that every stage works.
    pub(crate) quick: bool,
}

/// A run directory whose lock this process holds.
#[derive(Debug)]
pub(crate) struct RunDir {
    path: PathBuf,
    identity: Identity,
    _lock: Lock,
}

impl RunDir {
    /// Makes the directory of a new run, and writes its configuration. It is a run once
    /// [`RunDir::begin`] has been called.
    ///
    /// # Errors
    /// 64 if it is in use, or already contains a run; 74 if it cannot be written.
    pub(crate) fn create(path: &Path, plan: &Plan, content: Content) -> Result<Self, Fatal> {
        make_durably(path)?;
        let lock = Lock::take(path)?;
        if path.join(RUN_JSON).exists() {
            let message = format!(
                "{} already contains a run: add --resume to continue it, or choose another \
                --run-dir",
                path.display()
            );
            return Err(Fatal::new(EXIT_USAGE, message));
        }
        let config = plan.config();
        let Content { data, weights, started_with, quick } = content;
        let identity = Identity {
            id: new_id(path),
            preset: config.name.clone(),
            seed: config.seed,
            config_digest: plan.digest().into(),
            version: env!("CARGO_PKG_VERSION").into(),
            quick,
            data: Some(data),
            weights,
            started_with: Some(started_with),
            changes: Vec::new(),
        };
        for folder in [CHECKPOINTS, "logs"] {
            make_durably(&path.join(folder))?;
        }
        write_durably(&path.join(CONFIG_YAML), to_yaml(config).as_bytes())?;
        Ok(Self { path: path.into(), identity, _lock: lock })
    }

    /// Makes the directory a run: last of all, so that a launch that is refused leaves none.
    ///
    /// # Errors
    /// 74 if it cannot be written.
    pub(crate) fn begin(&self) -> Result<(), Fatal> {
        write_durably(&self.path.join(RUN_JSON), &json(&self.identity))
    }

    /// Undoes [`RunDir::begin`] of a run that could not start: the fixed command finds the
    /// directory free.
    ///
    /// # Errors
    /// 74 if it cannot be written.
    pub(crate) fn withdraw(&self) -> Result<(), Fatal> {
        let path = self.path.join(RUN_JSON);
        let removed = fs::remove_file(&path).and_then(|()| sync_folder(&self.path));
        removed.map_err(|error| cannot("remove", &path, &error))
    }

    /// Opens the directory of a run to continue it, and says which keys `plan` changes.
    ///
    /// # Errors
    /// 64 if it is in use or is not a run directory, 65 if its configuration cannot be read, 78 if
    /// `plan` changes a key of its recipe.
    pub(crate) fn open(path: &Path, plan: &Plan) -> Result<(Self, Vec<Change>), Fatal> {
        identity(path)?;
        let lock = Lock::take(path)?;
        let identity = identity(path)?;
        let changes = changes(plan_of_run(path, &[])?.config(), plan.config());
        let refused: Vec<String> =
            changes.iter().filter(|change| change.condition.is_none()).map(describe).collect();
        if !refused.is_empty() {
            let message = format!(
                "{} is a run of another recipe, which a resume cannot change:\n  {}\nresume it \
                without naming a preset \
                 or these keys, or start a new run in another --run-dir",
                path.display(),
                refused.join("\n  ")
            );
            return Err(Fatal::new(EXIT_CONFIG, message));
        }
        Ok((Self { path: path.into(), identity, _lock: lock }, changes))
    }

    /// Records what a resume continues with: the configuration, what has changed in it, and what is
    /// known of the content. Returns the changes as recorded.
    ///
    /// # Errors
    /// 74 if it cannot be written.
    pub(crate) fn reconfigure(
        &mut self,
        plan: &Plan,
        changes: Vec<Change>,
        content: Content,
    ) -> Result<Vec<RecordedChange>, Fatal> {
        let Content { data, weights, started_with, .. } = content;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis()
            as f64
            / 1e3;
        let keys = changes.into_iter().map(|Change { key, old, new, .. }| (key, old, new));
        let before = self.identity.started_with.iter();
        let options = before.flat_map(|before| before.changes(&started_with));
        let options = options.map(|(name, old, new)| (name.to_owned(), old, new));
        let changes =
            keys.chain(options).map(|(key, old, new)| RecordedChange { time: now, key, old, new });
        let changes: Vec<RecordedChange> = changes.collect();
        let mut identity = self.identity.clone();
        (identity.data, identity.weights, identity.started_with) =
            (Some(data), weights, Some(started_with));
        identity.changes.extend(changes.iter().cloned());
        if identity != self.identity {
            write_durably(&self.path.join(CONFIG_YAML), to_yaml(plan.config()).as_bytes())?;
            write_durably(&self.path.join(RUN_JSON), &json(&identity))?;
            self.identity = identity;
        }
        Ok(changes)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn identity(&self) -> &Identity {
        &self.identity
    }
}

/// A change as a message names it.
fn describe(change: &Change) -> String {
    let Change { key, old, new, .. } = change;
    format!("{key}: the run has {old}, this command {new}")
}

/// `run.json` of a directory, without its lock.
///
/// # Errors
/// 64 if it is not a run directory.
pub(crate) fn identity(path: &Path) -> Result<Identity, Fatal> {
    let file = path.join(RUN_JSON);
    let text = fs::read_to_string(&file).map_err(|error| {
        Fatal::new(
            EXIT_USAGE,
            format!("{} is not a run directory ({}: {error})", path.display(), file.display()),
        )
    })?;
    serde_json::from_str(&text)
        .map_err(|error| Fatal::new(EXIT_USAGE, format!("{} is damaged: {error}", file.display())))
}

/// The plan of a run's own configuration, with overrides laid over it.
///
/// # Errors
/// 65 if it cannot be read, 78 if it, or an override, is not a configuration.
pub(crate) fn plan_of_run(run_dir: &Path, overrides: &[String]) -> Result<Plan, Fatal> {
    let file = run_dir.join(CONFIG_YAML);
    let text = fs::read_to_string(&file).map_err(|error| {
        Fatal::new(EXIT_DATA, format!("cannot read {}: {error}", file.display()))
    })?;
    Plan::from_resolved(&text, &file.display().to_string(), overrides)
        .map_err(|errors| Fatal::new(EXIT_CONFIG, errors.to_string()))
}

/// A directory that was made for a launch without `--run-dir`. It is removed when this is dropped,
/// unless something was put into it.
#[derive(Debug)]
pub(crate) struct Claimed(PathBuf);

impl Claimed {
    /// Makes `runs/NAME-1` in `parent`, or the first number that is free; of launches at the same
    /// time, each has its own.
    ///
    /// # Errors
    /// 74 if it cannot be made.
    pub(crate) fn new(parent: &Path, name: &str) -> Result<Self, Fatal> {
        let runs = parent.join("runs");
        fs::create_dir_all(&runs).map_err(|error| cannot("make", &runs, &error))?;
        for number in 1..MAX_NUMBER {
            let path = runs.join(format!("{name}-{number}"));
            let made = match fs::create_dir(&path) {
                // A launch that was refused has just removed its directory, and this one with it.
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    fs::create_dir_all(&runs).and_then(|()| fs::create_dir(&path))
                }
                made => made,
            };
            match made {
                Ok(()) => return Ok(Self(path)),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(cannot("make", &path, &error)),
            }
        }
        Err(Fatal::new(
            EXIT_IO,
            format!("{} has {MAX_NUMBER} runs of {name}: pass --run-dir", runs.display()),
        ))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Claimed {
    fn drop(&mut self) {
        // Only an empty directory can be removed so; `runs` itself goes, too, if this was the first
        // one.
        if fs::remove_dir(&self.0).is_ok() {
            _ = self.0.parent().map(fs::remove_dir);
        }
    }
}

/// Makes a directory, and those above it, so that a crash leaves them or not.
fn make_durably(path: &Path) -> Result<(), Fatal> {
    fs::create_dir_all(path).map_err(|error| cannot("make", path, &error))?;
    let absolute = std::path::absolute(path).map_err(|error| cannot("make", path, &error))?;
    let synced = absolute.parent().map_or(Ok(()), sync_folder);
    synced.map_err(|error| cannot("sync the folder of", path, &error))
}

/// Returns when the names in a folder are on the disk, where the file system can say so: some FUSE
/// and SMB mounts refuse to sync a folder, and are as durable as they are.
///
/// # Errors
/// If the folder cannot be opened, or its disk fails.
pub(crate) fn sync_folder(path: &Path) -> io::Result<()> {
    let unsupported = [Errno::EINVAL, Errno::ENOSYS, Errno::EOPNOTSUPP].map(|errno| errno as i32);
    match File::open(path)?.sync_all() {
        Err(error) if error.raw_os_error().is_some_and(|errno| unsupported.contains(&errno)) => {
            Ok(())
        }
        synced => synced,
    }
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
    path.parent().map_or(Ok(()), sync_folder)
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
    let now =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
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

    fn content() -> Content {
        let data = DataIdentity { train: "1".into(), test: "2".into(), raw_stamp: None };
        let started_with = StartedWith {
            min_nodes: 2,
            max_nodes: 2,
            workers_per_node: 1,
            threads_per_worker: Some(1),
            launcher: "local".into(),
            device: "auto".into(),
            collectives: "auto".into(),
        };
        Content { data, weights: BTreeMap::new(), started_with, quick: false }
    }

    fn create(path: &Path, overrides: &[&str]) -> Result<RunDir, Fatal> {
        RunDir::create(path, &plan(overrides), content())
    }

    #[track_caller]
    fn refused<T: std::fmt::Debug>(result: Result<T, Fatal>, exit_code: u8, part: &str) {
        let fatal = result.expect_err("refused");
        assert_eq!(fatal.exit_code, exit_code, "{fatal}");
        assert!(fatal.message.contains(part), "no `{part}` in {fatal}");
    }

    #[test]
    fn a_directory_is_one_run_and_one_coordinator() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("runs/one");
        refused(RunDir::open(&path, &plan(&[])), EXIT_USAGE, "is not a run directory");
        let run = create(&path, &[]).expect("new");
        refused(RunDir::open(&path, &plan(&[])), EXIT_USAGE, "is not a run directory");
        run.begin().expect("written");
        let id = run.identity().id.clone();
        refused(create(&path, &[]), EXIT_USAGE, "in use by another coordinator (pid ");
        drop(run);
        refused(create(&path, &[]), EXIT_USAGE, "add --resume");
        let (run, changes) = RunDir::open(&path, &plan(&[])).expect("its own");
        assert_eq!((&run.identity().id, changes), (&id, Vec::new()));
        run.withdraw().expect("removed");
        drop(run);
        create(&path, &["seed=1"]).expect("free again");
    }

    #[test]
    fn its_configuration_loads_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let overrides = ["seed=7", "train.epochs=3"];
        create(folder.path(), &overrides).expect("new");
        let loaded = plan_of_run(folder.path(), &[]).expect("valid");
        assert_eq!(loaded.config(), plan(&overrides).config());
    }

    #[test]
    fn another_recipe_is_refused_key_by_key_and_other_changes_are_recorded() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path();
        create(path, &[]).and_then(|run| run.begin()).expect("new");
        let other = plan(&["seed=1", "model.dropout=0.5", "train.epochs=60"]);
        let expected = "model.dropout: the run has 0.0, this command 0.5\n";
        refused(RunDir::open(path, &other), EXIT_CONFIG, expected);
        refused(RunDir::open(path, &other), EXIT_CONFIG, "seed: the run has 0, this command 1\n");
        let longer = plan(&["train.epochs=60", "checks.on_non_finite=skip"]);
        let (mut run, changes) = RunDir::open(path, &longer).expect("the same recipe");
        let four = StartedWith { min_nodes: 4, max_nodes: 4, ..content().started_with };
        let recorded =
            run.reconfigure(&longer, changes, Content { started_with: four, ..content() });
        let recorded = recorded.expect("written");
        let keys: Vec<&str> = recorded.iter().map(|change| change.key.as_str()).collect();
        assert_eq!(keys, ["train.epochs", "checks.on_non_finite", "--nodes"]);
        assert_eq!((&recorded[0].old, &recorded[0].new), (&50.into(), &60.into()));
        drop(run);
        assert_eq!(identity(path).expect("it opens").changes, recorded);
        assert_eq!(plan_of_run(path, &[]).expect("valid").config(), longer.config());
    }

    #[test]
    fn launches_at_the_same_time_have_directories_of_their_own() {
        let folder = tempfile::tempdir().expect("a folder");
        let claim = || Claimed::new(folder.path(), "n").expect("made");
        let claimed: Vec<Claimed> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..16).map(|_| scope.spawn(claim)).collect();
            threads.into_iter().map(|thread| thread.join().expect("it made one")).collect()
        });
        let mut paths: Vec<&Path> = claimed.iter().map(Claimed::path).collect();
        paths.sort();
        paths.dedup();
        assert_eq!(paths.len(), 16);
        fs::write(claimed[0].path().join("file"), "").expect("written");
        let kept = claimed[0].path().to_owned();
        drop(claimed);
        let left: Vec<_> = fs::read_dir(folder.path().join("runs")).expect("listed").collect();
        assert!(left.len() == 1 && kept.is_dir(), "only what was used stays: {left:?}");
    }
}
