//! The harness: it starts the real programs as a user does, waits for what they write, and reads
//! their run directories. It knows file names and exit codes, nothing of how they come about.

pub mod idx;
pub mod network;
pub mod processes;
pub mod proxy;
pub mod raw_files;
pub mod terminal;
mod turns;

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use turns::Turn;

/// How long processes may outlive their test: a worker's lease is 4 s.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(6);
/// Lines of each log that a failed test prints.
const MAX_LOG_LINES: usize = 40;
/// No test's program may run longer.
const RUN_TIMEOUT: Duration = Duration::from_secs(300);

/// A folder for one test: run directories in it, packs shared by all tests.
pub struct Scene {
    folder: TempDir,
    _turn: Turn,
}

/// Where and with what workers may join a run.
pub struct Invitation {
    pub address: String,
    /// A folder; none for an insecure run.
    pub credentials: Option<String>,
}

/// How a program ended, and what it printed.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    /// # Panics
    /// With all that it printed, if it did not end with this exit code.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }
}

impl Default for Scene {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Scene {
    /// Every process that was started in the folder of a passed test must have exited with it, at
    /// the latest when a lease ends.
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.print_logs();
            return;
        }
        let started = Instant::now();
        loop {
            let left = processes::commands_in(self.folder.path());
            if left.is_empty() {
                break;
            }
            assert!(started.elapsed() < LEAVE_TIMEOUT, "still running: {left:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Starts a program that SIGHUP stops, also where the tests run under `nohup`: it would inherit
/// that the signal is ignored.
pub(crate) const DEFAULT_SIGNALS: [&str; 2] = ["env", "--default-signal=HUP"];

impl Scene {
    /// Prints how the log of every program and the events of every run end: a failed test leaves no
    /// folder that could be read.
    #[expect(clippy::print_stderr, reason = "captured with the rest of a test's output")]
    fn print_logs(&self) {
        let is_log = |path: &Path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.ends_with("stderr") || name == "events.jsonl"
        };
        for path in files_in(self.folder.path(), 2).into_iter().filter(|path| is_log(path)) {
            let bytes = fs::read(&path).unwrap_or_default();
            let text = String::from_utf8_lossy(&bytes);
            let lines: Vec<&str> = text.lines().collect();
            let last = &lines[lines.len().saturating_sub(MAX_LOG_LINES)..];
            if !last.is_empty() {
                eprintln!("{}:\n{}\n", path.display(), last.join("\n"));
            }
        }
    }

    /// # Panics
    /// If there is no room for temporary files.
    pub fn new() -> Self {
        Self::with(Turn::shared())
    }

    /// For a test that measures time or what processes take of the machine: no other one with a
    /// scene runs meanwhile.
    ///
    /// # Panics
    /// As [`Scene::new`], and if the test has a scene already.
    pub fn alone() -> Self {
        Self::with(Turn::alone())
    }

    fn with(turn: Turn) -> Self {
        Self { folder: tempfile::tempdir().expect("a temporary folder"), _turn: turn }
    }

    /// A path in the test's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs `thanos-coord` in the test's folder to its end.
    pub fn coord(&self, arguments: &[&str]) -> Ran {
        self.start(arguments).wait()
    }

    /// Launches a run into `run_dir` (a name in the test's folder) with this many workers, to its
    /// end.
    pub fn launch(&self, run_dir: &str, workers: usize, target: &[&str]) -> Ran {
        let workers = workers.to_string();
        let mut arguments =
            vec!["launch", "--nodes", &workers, "--threads-per-worker", "1", "--run-dir", run_dir];
        arguments.extend(target);
        self.coord(&arguments)
    }

    /// Starts `thanos-coord` in the test's folder.
    ///
    /// # Panics
    /// If the program is not there: `make test` builds it first.
    pub fn start(&self, arguments: &[&str]) -> Running {
        self.start_with(arguments, &[])
    }

    /// As [`Scene::start`], with more environment variables.
    ///
    /// # Panics
    /// As there.
    pub fn start_with(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Running {
        self.spawn("thanos-coord", "", arguments, variables)
    }

    /// Starts `thanos-worker` with this id in the test's folder, as another program than the
    /// coordinator does.
    ///
    /// # Panics
    /// As [`Scene::start`].
    pub fn worker(&self, coordinator: &Invitation, id: &str, arguments: &[&str]) -> Running {
        let Invitation { address, credentials } = coordinator;
        let invited = match credentials {
            Some(credentials) => vec!["--credentials", credentials],
            None => vec!["--insecure"],
        };
        let arguments = [&["--coordinator", address, "--id", id], &invited[..], arguments].concat();
        self.spawn("thanos-worker", id, &arguments, &[])
    }

    /// Starts a program of this workspace. `log` distinguishes the files of its output from those
    /// of others in the folder.
    ///
    /// # Panics
    /// As [`Scene::start`].
    pub fn spawn(
        &self,
        name: &str,
        log: &str,
        arguments: &[&str],
        variables: &[(&str, &str)],
    ) -> Running {
        let program = program(name);
        assert!(program.exists(), "no {}; run `make build` first", program.display());
        self.spawn_program(&program, log, arguments, variables)
    }

    /// As [`Scene::spawn`], any program.
    ///
    /// # Panics
    /// As [`Scene::start`].
    pub fn spawn_program(
        &self,
        program: &Path,
        log: &str,
        arguments: &[&str],
        variables: &[(&str, &str)],
    ) -> Running {
        let log = self.path(&format!(".{log}"));
        let child = Command::new(DEFAULT_SIGNALS[0])
            .args(&DEFAULT_SIGNALS[1..])
            .arg(program)
            .args(arguments)
            .current_dir(self.folder.path())
            .env("THANOS_PACKS", packs())
            // Help is as wide as no terminal.
            .env_remove("COLUMNS")
            // On a machine with GPUs as elsewhere, unless the whole test run is to be on them.
            .env("THANOS_DEVICE", env::var_os("THANOS_DEVICE").unwrap_or_else(|| "cpu".into()))
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(fs::File::create(with_end(&log, "stdout")).expect("a file"))
            .stderr(fs::File::create(with_end(&log, "stderr")).expect("a file"))
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", program.display()));
        Running { child, folder: self.folder.path().into(), log }
    }

    /// A program that was started elsewhere, with its output elsewhere, in the test's folder.
    pub fn running(&self, child: Child) -> Running {
        Running { child, folder: self.folder.path().into(), log: self.path(".elsewhere") }
    }
}

/// The files of a folder and of the folders in it, `levels` deep, in order.
fn files_in(folder: &Path, levels: usize) -> Vec<PathBuf> {
    let mut entries: Vec<PathBuf> =
        fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    entries.sort();
    let files = entries.into_iter().flat_map(|path| match path.is_dir() {
        true if levels > 1 => files_in(&path, levels - 1),
        true => Vec::new(),
        false => vec![path],
    });
    files.collect()
}

fn with_end(log: &Path, end: &str) -> PathBuf {
    PathBuf::from(format!("{}{end}", log.display()))
}

/// A program that was started; it is killed when this is dropped.
pub struct Running {
    child: Child,
    folder: PathBuf,
    /// What the names of its output files begin with.
    log: PathBuf,
}

impl Running {
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("process ids fit")
    }

    /// Whether the program has ended; [`Running::wait`] says how.
    ///
    /// # Panics
    /// If the system does not say.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("our child").is_some()
    }

    /// Asks the program to stop, as Ctrl-C does, and waits for it to end.
    ///
    /// # Panics
    /// If it has ended already, or takes too long.
    pub fn interrupt(self) -> Ran {
        let pid = nix::unistd::Pid::from_raw(self.pid());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).expect("it is running");
        self.wait()
    }

    /// Waits for the program to end.
    ///
    /// # Panics
    /// If it takes too long.
    pub fn wait(mut self) -> Ran {
        let code = self
            .wait_for("the program to end", |running| running.child.try_wait().expect("our child"));
        Ran { code: code.code(), stdout: self.output("stdout"), stderr: self.output("stderr") }
    }

    /// Waits until a `serve` says where and with what its workers may come.
    ///
    /// # Panics
    /// If the program ends before, or it takes too long.
    pub fn invitation(&mut self) -> Invitation {
        self.wait_for("an address", |running| {
            let stderr = running.output("stderr");
            let ended = running.child.try_wait().expect("our child");
            assert!(ended.is_none(), "it ended with {ended:?} before it listened:\n{stderr}");
            let (output, _) = stderr.split("waiting at ").nth(1)?.split_once('\n')?;
            let address = output.split_once(" for ")?.0.to_owned();
            Some(Invitation {
                address,
                credentials: output.split("--credentials ").nth(1).map(Into::into),
            })
        })
    }

    /// Waits until the program has said this on standard error.
    ///
    /// # Panics
    /// If the program ends before, or it takes too long.
    pub fn wait_for_line(&mut self, part: &str) {
        self.wait_for(part, |running| {
            let stderr = running.output("stderr");
            let ended = running.child.try_wait().expect("our child");
            let said = stderr.contains(part);
            assert!(
                said || ended.is_none(),
                "it ended with {ended:?} and did not say `{part}`:\n{stderr}"
            );
            said.then_some(())
        });
    }

    fn output(&self, end: &str) -> String {
        fs::read_to_string(with_end(&self.log, end)).unwrap_or_default()
    }

    /// Waits until the ledger of a run in the test's folder has `lines` lines.
    ///
    /// # Panics
    /// If the program ends before, or it takes too long.
    pub fn wait_for_steps(&mut self, run_dir: &str, lines: usize) {
        let ledger = self.folder.join(run_dir).join("steps.jsonl");
        self.wait_for("steps", |running| {
            let ended = running.child.try_wait().expect("our child");
            let stderr = running.output("stderr");
            assert!(ended.is_none(), "it ended with {ended:?} before {lines} steps:\n{stderr}");
            let text = fs::read_to_string(&ledger).unwrap_or_default();
            (text.lines().count() >= lines).then_some(())
        });
    }

    /// Waits until something holds, while the program runs.
    ///
    /// # Panics
    /// If the program ends before, or it takes too long.
    pub fn wait_until(&mut self, what: &str, mut holds: impl FnMut() -> bool) {
        self.wait_for(what, |running| {
            let ended = running.child.try_wait().expect("our child");
            assert!(
                ended.is_none(),
                "it ended with {ended:?} before {what}:\n{}",
                running.output("stderr")
            );
            holds().then_some(())
        });
    }

    fn wait_for<T>(&mut self, what: &str, mut there: impl FnMut(&mut Self) -> Option<T>) -> T {
        let started = Instant::now();
        loop {
            if let Some(value) = there(self) {
                return value;
            }
            assert!(started.elapsed() < RUN_TIMEOUT, "waited {RUN_TIMEOUT:?} for {what}");
            // A poll, not a hope: the condition is looked at again until it holds.
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

/// A program of this workspace, in the target folder that this test binary is in.
///
/// # Panics
/// If this binary is in no target folder.
pub fn program(name: &str) -> PathBuf {
    let this = env::current_exe().expect("the path of this binary");
    this.parent()
        .and_then(Path::parent)
        .expect("a test binary is in target/release/deps")
        .join(name)
}

/// The repository's root.
///
/// # Panics
/// Never: this crate is in a folder of the repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ is in the repository")
}

/// Where tests keep packs, for all of them: in the target folder, so that nothing is left
/// elsewhere.
pub fn packs() -> PathBuf {
    program("test-packs")
}

/// The lines of a ledger.
///
/// # Panics
/// If the file is missing or holds something else than JSON lines.
pub fn lines(run_dir: &Path, name: &str) -> Vec<Value> {
    let path = run_dir.join(name);
    let text =
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

/// The losses of a stage's steps, in order.
///
/// # Panics
/// If the ledger skips or repeats a step.
pub fn losses(run_dir: &Path, stage: &str) -> Vec<f64> {
    let steps: Vec<Value> =
        lines(run_dir, "steps.jsonl").into_iter().filter(|line| line["stage"] == stage).collect();
    for (index, line) in steps.iter().enumerate() {
        assert_eq!(line["step"], index, "{}: stage {stage}", run_dir.display());
    }
    steps.iter().map(|line| line["loss"].as_f64().expect("a number")).collect()
}

/// `results.json`.
///
/// # Panics
/// If it is missing or no JSON.
pub fn results(run_dir: &Path) -> Value {
    let text = fs::read_to_string(run_dir.join("results.json")).expect("results.json");
    serde_json::from_str(&text).expect("JSON")
}

/// Folders of a stage's checkpoints, oldest first.
///
/// # Panics
/// If there is none.
pub fn checkpoints(run_dir: &Path, stage: &str) -> Vec<PathBuf> {
    let folder = run_dir.join("checkpoints").join(stage);
    let entries =
        fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut folders: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    folders.sort();
    assert!(!folders.is_empty(), "{} is empty", folder.display());
    folders
}

/// SHA-256 of every file of weights in a stage's last checkpoint.
///
/// # Panics
/// If there is none.
pub fn weights_sha256(run_dir: &Path, stage: &str) -> BTreeMap<String, String> {
    let last = checkpoints(run_dir, stage).pop().expect("not empty");
    ["model.safetensors", "best.safetensors", "optimizer.safetensors"]
        .into_iter()
        .map(|name| {
            let bytes = fs::read(last.join(name)).expect(name);
            let digest = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
            (name.to_owned(), digest)
        })
        .collect()
}

/// All numbers of a safetensors file's float tensors whose names start so, in the order of the
/// names.
///
/// # Panics
/// If the file is missing or damaged.
pub fn numbers(path: &Path, prefix: &str) -> Vec<f64> {
    let bytes = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let file = SafeTensors::deserialize(&bytes).expect("safetensors");
    let mut tensors: Vec<_> =
        file.tensors().into_iter().filter(|(name, _)| name.starts_with(prefix)).collect();
    tensors.sort_by(|left, right| left.0.cmp(&right.0));
    let floats = |view: &TensorView<'_>| -> Vec<f64> {
        let data = view.data();
        match view.dtype() {
            Dtype::F32 => data
                .as_chunks::<4>()
                .0
                .iter()
                .map(|four| f64::from(f32::from_le_bytes(*four)))
                .collect(),
            Dtype::F64 => {
                data.as_chunks::<8>().0.iter().map(|eight| f64::from_le_bytes(*eight)).collect()
            }
            _ => Vec::new(),
        }
    };
    tensors.iter().flat_map(|(_, view)| floats(view)).collect()
}
