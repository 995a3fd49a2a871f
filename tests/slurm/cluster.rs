//! A cluster of deploy/slurm/cluster.sh in a folder of the scene, and its commands as a user types
//! them.

use crate::print_line;
use nix::sys::signal::Signal;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use thanos_tests::{Scene, packs, program, root};

/// Until a job is as it should be.
const MAX_WAIT: Duration = Duration::from_secs(120);

/// The cluster is down when this is dropped.
pub(super) struct Cluster<'a> {
    scene: &'a Scene,
    /// Where jobs are submitted.
    folder: PathBuf,
    /// The user; `None`: root.
    user: Option<&'static str>,
    variables: Vec<(&'static str, String)>,
}

impl<'a> Cluster<'a> {
    /// A cluster with these options of the script; `None`, and a message: there can be none here.
    pub(super) fn up(scene: &'a Scene, options: &[&str]) -> Option<Self> {
        let installed = |name: &str| {
            Command::new("which").arg(name).output().is_ok_and(|printed| printed.status.success())
        };
        if std::fs::metadata("/proc/self").map_or(0, |own| own.uid()) != 0
            || !["slurmctld", "slurmd", "munged"].into_iter().all(installed)
        {
            print_line(
                "skipped: Slurm is not installed (deploy/slurm/cluster.sh install), or this is not \
                root",
            );
            return None;
        }
        link_programs(&scene.path(""));
        let variables =
            vec![("THANOS_PACKS", packs().display().to_string()), ("OMP_NUM_THREADS", "1".into())];
        let cluster = Self { scene, folder: scene.path(""), user: None, variables };
        let (good, printed) = cluster.script("up", options);
        assert!(good, "{printed}");
        Some(cluster)
    }

    /// The same cluster as an ordinary user sees it, with a folder of its own.
    pub(super) fn as_user(&self, name: &'static str) -> Self {
        std::fs::set_permissions(self.scene.path(""), PermissionsExt::from_mode(0o755))
            .expect("ours");
        let folder = self.scene.path(name);
        std::fs::create_dir(&folder).expect("a folder");
        link_programs(&folder);
        self.ask("chown", &[name, &folder.display().to_string()]);
        let variables = vec![
            ("THANOS_PACKS", folder.join("packs").display().to_string()),
            ("OMP_NUM_THREADS", "1".into()),
            // A filter that the user has for `sinfo` is not for this program.
            ("SINFO_PARTITION", "main".into()),
        ];
        Self { scene: self.scene, folder, user: Some(name), variables }
    }

    pub(super) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.variables.push((name, value.into()));
        self
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn script(&self, verb: &str, options: &[&str]) -> (bool, String) {
        let script = root().join("deploy/slurm/cluster.sh").display().to_string();
        let folder = self.scene.path("slurm").display().to_string();
        self.run("bash", &[&[script.as_str(), verb, &folder], options].concat())
    }

    pub(super) fn run(&self, program: &str, arguments: &[&str]) -> (bool, String) {
        let mut command = match self.user {
            None => Command::new(program),
            Some(user) => {
                let mut command = Command::new("setpriv");
                command.args([
                    &format!("--reuid={user}"),
                    "--regid=nogroup",
                    "--clear-groups",
                    program,
                ]);
                command
            }
        };
        let output = command
            .args(arguments)
            .current_dir(&self.folder)
            .env("SLURM_CONF", self.scene.path("slurm/slurm.conf"))
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .output()
            .unwrap_or_else(|error| panic!("{program}: {error}"));
        let printed = [output.stdout, output.stderr]
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .concat();
        (output.status.success(), printed)
    }

    pub(super) fn ask(&self, program: &str, arguments: &[&str]) -> String {
        let (good, printed) = self.run(program, arguments);
        assert!(good, "{program} {arguments:?}: {printed}");
        printed
    }

    /// Submits a script of deploy/slurm, and returns the job's number.
    pub(super) fn submit(&self, options: &[&str], script: &str, arguments: &[&str]) -> String {
        let script = root().join("deploy/slurm").join(script).display().to_string();
        let printed = self.ask("sbatch", &[options, &[&script], arguments].concat());
        printed.trim().rsplit(' ').next().expect("a number").to_owned()
    }

    /// What a job of train.sbatch has printed so far.
    pub(super) fn output(&self, job: &str) -> String {
        std::fs::read_to_string(self.path(&format!("thanos-{job}.out"))).unwrap_or_default()
    }

    pub(super) fn wait(&self, what: &str, mut holds: impl FnMut() -> bool) {
        let started = Instant::now();
        while !holds() {
            let (_, queue) = self.run("squeue", &["--all"]);
            let output = self.run("sh", &["-c", "tail -n 30 *.out"]).1;
            assert!(
                started.elapsed() < MAX_WAIT,
                "waited {MAX_WAIT:?} for {what}:\n{queue}\n{output}"
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    pub(super) fn says(&self, job: &str, field: &str) -> bool {
        self.ask("scontrol", &["--all", "show", "job", "--oneliner", job])
            .split_whitespace()
            .any(|word| word == field)
    }

    /// As the end of a time limit does: the signal of `--signal=B:USR1`, to the batch script only.
    pub(super) fn signal_batch(&self, job: &str, signal: Signal) {
        self.ask("scancel", &["--batch", "--signal", signal.as_str(), job]);
    }
}

impl Drop for Cluster<'_> {
    fn drop(&mut self) {
        if self.user.is_none() {
            self.script("down", &[]);
        }
    }
}

/// The scripts look for the programs below the folder that jobs are submitted from. What is built
/// may be in root's home folder, so that these are hard links, or copies where that is another file
/// system.
fn link_programs(folder: &Path) {
    let release = folder.join("target/release");
    std::fs::create_dir_all(&release).expect("a folder");
    for name in ["thanos-coord", "thanos-worker"] {
        let (built, here) = (program(name), release.join(name));
        std::fs::hard_link(&built, &here)
            .or_else(|_| std::fs::copy(&built, &here).map(drop))
            .expect("a program");
    }
}

pub(super) fn steps(run_dir: &Path) -> usize {
    std::fs::read_to_string(run_dir.join("steps.jsonl")).unwrap_or_default().lines().count()
}
