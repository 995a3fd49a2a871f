//! The job scripts on a real Slurm of four nodes, all of them on this machine: a worker that is killed, a job that is
//! preempted while one of its nodes is drained, queued again, and ended with a table; and the table of an array. Without
//! Slurm, or without root, these tests say that they were skipped.

use crate::tell;
use nix::sys::signal::Signal;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use thanos_tests::processes::{send, workers};
use thanos_tests::{Scene, lines, packs, program, root};

/// Until a job is as it should be.
const MOST_WAITING: Duration = Duration::from_secs(120);

/// A cluster in a folder of the scene; down when it is dropped.
struct Cluster<'a> {
    scene: &'a Scene,
}

impl<'a> Cluster<'a> {
    fn up(scene: &'a Scene) -> Option<Self> {
        let installed = |name: &str| Command::new("which").arg(name).output().is_ok_and(|told| told.status.success());
        if std::fs::metadata("/proc/self").map_or(0, |own| own.uid()) != 0
            || !["slurmctld", "slurmd", "munged"].into_iter().all(installed)
        {
            tell("skipped: Slurm is not installed (deploy/slurm/cluster.sh install), or this is not root");
            return None;
        }
        // The scripts look for the programs below the folder that jobs are submitted from.
        std::fs::create_dir(scene.path("target")).expect("a folder");
        let programs = program("thanos-coord").parent().expect("a folder").to_owned();
        symlink(programs, scene.path("target/release")).expect("a link");
        let cluster = Self { scene };
        let (good, told) = cluster.script("up");
        assert!(good, "{told}");
        Some(cluster)
    }

    fn script(&self, verb: &str) -> (bool, String) {
        let script = root().join("deploy/slurm/cluster.sh").display().to_string();
        self.run("bash", &[&script, verb, &self.scene.path("slurm").display().to_string()])
    }

    fn run(&self, program: &str, arguments: &[&str]) -> (bool, String) {
        let output = Command::new(program)
            .args(arguments)
            .current_dir(self.scene.path(""))
            .env("SLURM_CONF", self.scene.path("slurm/slurm.conf"))
            .env("THANOS_PACKS", packs())
            .env("OMP_NUM_THREADS", "1")
            .output()
            .unwrap_or_else(|error| panic!("{program}: {error}"));
        let told = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        (output.status.success(), told)
    }

    fn ask(&self, program: &str, arguments: &[&str]) -> String {
        let (good, told) = self.run(program, arguments);
        assert!(good, "{program} {arguments:?}: {told}");
        told
    }

    /// Submits a script of deploy/slurm, and returns the job's number.
    fn submit(&self, options: &[&str], script: &str, arguments: &[&str]) -> String {
        let script = root().join("deploy/slurm").join(script).display().to_string();
        let told = self.ask("sbatch", &[options, &[&script], arguments].concat());
        told.trim().rsplit(' ').next().expect("a number").to_owned()
    }

    fn wait(&self, what: &str, mut holds: impl FnMut() -> bool) {
        let started = Instant::now();
        while !holds() {
            let (_, queue) = self.run("squeue", &[]);
            let output = self.run("sh", &["-c", "tail -n 30 *.out"]).1;
            assert!(started.elapsed() < MOST_WAITING, "waited {MOST_WAITING:?} for {what}:\n{queue}\n{output}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn says(&self, job: &str, field: &str) -> bool {
        self.ask("scontrol", &["show", "job", "--oneliner", job]).split_whitespace().any(|word| word == field)
    }
}

impl Drop for Cluster<'_> {
    fn drop(&mut self) {
        self.script("down");
    }
}

fn steps(run_dir: &Path) -> usize {
    std::fs::read_to_string(run_dir.join("steps.jsonl")).unwrap_or_default().lines().count()
}

#[test]
fn a_job_is_preempted_drained_queued_again_and_ends_with_its_table() {
    let scene = Scene::new();
    let Some(cluster) = Cluster::up(&scene) else { return };
    let arguments = ["digits_table", "train.epochs=16", "checkpoint.every_steps=50"];
    let job = cluster.submit(&[], "train.sbatch", &arguments);
    let run = scene.path(&format!("runs/slurm-{job}"));
    cluster.wait("steps of four workers", || steps(&run) > 20);
    let began = |workers: &[&str]| {
        let ranks = serde_json::json!(workers);
        lines(&run, "events.jsonl").iter().any(|event| event["event"] == "began" && event["ranks"] == ranks)
    };
    assert!(began(&["n0-0", "n1-0", "n2-0", "n3-0"]), "a worker a node: {:?}", lines(&run, "events.jsonl"));
    let tasks = cluster.ask("squeue", &["--steps", "--noheader", "--format", "%i"]);
    assert_eq!(tasks.matches(&format!("{job}.")).count(), 5, "four workers and the batch script: {tasks}");

    // A worker that dies alone is started again where it was.
    send(workers(&run)["n2-0"], Signal::SIGKILL);
    let told = || std::fs::read_to_string(scene.path(&format!("thanos-{job}.out"))).unwrap_or_default();
    cluster.wait("the killed worker's return", || told().contains("generation 2 goes on"));
    assert!(told().contains("n2-0 was killed by signal 9: it is started again"), "{}", told());

    // A node is drained, and a job of more weight comes: this one has a minute to save and go.
    cluster.ask("scontrol", &["update", "nodename=n3", "state=drain", "reason=test"]);
    let urgent = ["--partition=urgent", "--nodes=3", "--exclusive", "--output=urgent.out", "--wrap", "true"];
    cluster.ask("sbatch", &urgent);
    cluster.wait("the job to be queued again", || {
        cluster.says(&job, "Restarts=1") && cluster.says(&job, "JobState=PENDING")
    });
    assert!(told().contains("stopping at a common step: SIGUSR1"), "{}", told());
    assert!(told().contains("is queued again"), "{}", told());
    // Slurm would wait two minutes, and then for the fourth node.
    cluster.ask("scontrol", &["update", &format!("jobid={job}"), "NumNodes=3", "NumTasks=3", "StartTime=now"]);
    cluster.wait("the end", || cluster.says(&job, "JobState=COMPLETED"));
    assert!(began(&["n0-0", "n1-0", "n2-0"]), "the three nodes that were left");
    let told = told();
    assert!(told.contains("\nthanos ") && told.contains("cnce + cae"), "no table in {told}");
    assert!(told.lines().count() < 120, "{} lines", told.lines().count());
    let (checked, verified) =
        (scene.coord(&["verify-run", &run.display().to_string()]), "every step once and in order");
    assert!(checked.stdout.contains(verified), "{checked:?}");
}

#[test]
fn an_array_trains_the_backbones_and_its_dependent_job_makes_the_table() {
    let scene = Scene::new();
    let Some(cluster) = Cluster::up(&scene) else { return };
    let job = cluster.submit(&["--nodes=2"], "table.sbatch", &["digits", "train.epochs=3"]);
    let results = scene.path(&format!("runs/table-{job}/table/results.json"));
    cluster.wait("the table", || results.exists());
    cluster.wait("the jobs' end", || cluster.ask("squeue", &["--noheader"]).trim().is_empty());
    let text = std::fs::read_to_string(results).expect("results.json");
    let table: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let methods: Vec<&str> =
        table["rows"].as_array().expect("rows").iter().filter_map(|row| row["method"].as_str()).collect();
    assert_eq!(methods, ["supcon", "cnce", "cae", "supcon_cae", "thanos"]);
}

#[test]
fn outside_of_an_allocation_it_says_so() {
    let scene = Scene::new();
    let told = scene.coord(&["launch", "--launcher", "srun", "digits_supcon"]).expect(64).stderr;
    assert!(told.contains("--launcher srun runs inside a Slurm allocation"), "{told}");
}
