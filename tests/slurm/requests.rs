//! Every common way to request GPUs, CPUs and memory, by an ordinary user in a hidden partition:
//! which workers start, and what each sees. The worker is a script that writes that down; then a
//! run of real workers on nodes with different numbers of GPUs.

use super::cluster::{Cluster, steps};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use thanos_tests::{Scene, lines, program};

/// A worker that records its place and what Slurm gave it, waits for the others, and ends the run.
const RECORDER: &str = r#"#!/bin/bash
while [[ $# -gt 0 ]]; do
    case $1 in
    --id) id=$2 ;;
    --local-rank) place=$2 ;;
    --threads) threads=$2 ;;
    esac
    shift
done
gpus=${CUDA_VISIBLE_DEVICES:-none}
echo "$place $gpus $SLURM_CPUS_ON_NODE $threads $OMP_NUM_THREADS" >"$RECORDS/$id"
for _ in {1..600}; do
    [[ $(ls "$RECORDS" | wc -l) -ge $EXPECTED ]] && break
    sleep 0.1
done
exit 78
"#;

/// A request, the workers that it must start, the cores of each node and the threads of a worker.
struct Request {
    options: &'static [&'static str],
    workers: usize,
    cores: usize,
    threads: usize,
    has_gpus: bool,
}

const fn gpus(
    options: &'static [&'static str],
    workers: usize,
    cores: usize,
    threads: usize,
) -> Request {
    Request { options, workers, cores, threads, has_gpus: true }
}

const REQUESTS: [Request; 8] = [
    gpus(
        &[
            "--nodelist=n0,n1",
            "--nodes=2",
            "--gpus-per-node=2",
            "--cpus-per-gpu=2",
            "--mem-per-gpu=1G",
        ],
        4,
        4,
        2,
    ),
    // Different numbers on the nodes.
    gpus(
        &["--nodelist=n0,n2", "--nodes=2", "--gpus=6", "--ntasks-per-node=1", "--cpus-per-task=8"],
        6,
        8,
        2,
    ),
    gpus(&["--nodelist=n1,n3", "--nodes=2", "--gres=gpu:3", "--ntasks-per-node=3"], 6, 3, 1),
    gpus(
        &[
            "--nodelist=n1,n3",
            "--nodes=2",
            "--gpus-per-task=1",
            "--ntasks-per-node=4",
            "--mem-per-cpu=500",
        ],
        8,
        4,
        1,
    ),
    // Whole nodes, with all their GPUs.
    gpus(
        &["--nodelist=n0,n2", "--nodes=2", "--gpus-per-node=1", "--exclusive", "--mem=0"],
        6,
        8,
        2,
    ),
    // Too few cores, which is reported.
    gpus(&["--nodelist=n3", "--nodes=1", "--gpus-per-node=4", "--ntasks-per-node=1"], 4, 1, 1),
    Request {
        options: &[
            "--nodelist=n0,n1",
            "--nodes=2",
            "--ntasks-per-node=2",
            "--cpus-per-task=3",
            "--mem=3G",
        ],
        workers: 4,
        cores: 6,
        threads: 3,
        has_gpus: false,
    },
    // Nothing but what is named is exported to the job, and all of that to its workers.
    Request {
        options: &[
            "--nodelist=n1",
            "--nodes=1",
            "--ntasks-per-node=2",
            "--export=PATH,SLURM_CONF,RECORDS,EXPECTED,THANOS_PACKS",
        ],
        workers: 2,
        cores: 2,
        threads: 1,
        has_gpus: false,
    },
];

/// What the workers of a job have written down: place, visible GPUs, cores of the node, threads,
/// OpenMP's threads.
fn records(folder: &Path) -> BTreeMap<String, Vec<String>> {
    let entries = fs::read_dir(folder).expect("a folder").flatten();
    let record = |path: &Path| -> Vec<String> {
        fs::read_to_string(path).expect("a record").split_whitespace().map(Into::into).collect()
    };
    entries
        .map(|entry| (entry.file_name().to_string_lossy().into_owned(), record(&entry.path())))
        .collect()
}

fn check(request: &Request, records: &BTreeMap<String, Vec<String>>, printed: &str) {
    let Request { options, workers, cores, threads, has_gpus } = request;
    assert_eq!(records.len(), *workers, "{options:?}: {records:?}\n{printed}");
    let mut of_node: BTreeMap<&str, usize> = BTreeMap::new();
    for worker in records.keys() {
        *of_node.entry(worker.rsplit_once('-').expect("NODE-PLACE").0).or_default() += 1;
    }
    for (worker, record) in records {
        let (node, place) = worker.rsplit_once('-').expect("NODE-PLACE");
        assert_eq!(record[0], place, "{options:?} {worker}");
        let visible = if record[1] == "none" { 0 } else { record[1].split(',').count() };
        // All GPUs of its node, of which it takes that of its place.
        let expected = if *has_gpus { of_node[node] } else { 0 };
        assert_eq!(visible, expected, "{options:?} {worker}: {record:?}\n{printed}");
        let numbers = [cores, threads, threads].map(ToString::to_string);
        assert_eq!(record[2..], numbers, "{options:?} {worker}\n{printed}");
    }
    let is_starved = cores < of_node.values().max().expect("a node");
    assert_eq!(
        printed.contains("which will be slow: request more with"),
        is_starved,
        "{options:?}\n{printed}"
    );
    assert!(!printed.contains("Invalid generic resource"), "{printed}");
}

#[test]
fn every_request_starts_a_worker_for_each_gpu_or_task() {
    let scene = Scene::new();
    let Some(cluster) = Cluster::up(&scene, &["--gpus", "4,4,2,4"]) else { return };
    let recorder = scene.path("recorder.sh");
    fs::write(&recorder, RECORDER).expect("written");
    fs::set_permissions(&recorder, PermissionsExt::from_mode(0o755)).expect("ours");
    let mut user = cluster.as_user("nobody");
    let shown = user.ask("sinfo", &["--noheader"]);
    assert!(!shown.contains("hidden"), "ordinary users do not see it: {shown}");
    for (index, request) in REQUESTS.iter().enumerate() {
        let folder = user.path(&format!("records-{index}"));
        user.ask("mkdir", &[&folder.display().to_string()]);
        user = user
            .with("RECORDS", folder.display().to_string())
            .with("EXPECTED", request.workers.to_string());
        let program = recorder.display().to_string();
        let arguments = ["--worker-program", &program, "digits_supcon"];
        let job = user.submit(
            &[&["--partition=hidden"], request.options].concat(),
            "train.sbatch",
            &arguments,
        );
        user.wait("the end of a job", || user.says(&job, "JobState=FAILED"));
        check(request, &records(&folder), &user.output(&job));
    }
    train_on_unequal_nodes(&scene, user);
}

/// Six workers on nodes with four and two GPUs, which are none: they train on CPUs.
fn train_on_unequal_nodes(scene: &Scene, user: Cluster) {
    let Some(libraries) = Libraries::for_user(scene, &user) else { return };
    let user = user.with("THANOS_DEVICE", "cpu").with("LD_LIBRARY_PATH", libraries.path());
    let options =
        ["--partition=hidden", "--nodelist=n0,n2", "--nodes=2", "--gpus=6", "--cpus-per-gpu=1"];
    let job =
        user.submit(&options, "train.sbatch", &["digits_supcon", "train.max_steps=6", "rows=[]"]);
    user.wait("the end of the run", || user.says(&job, "JobState=COMPLETED"));
    let run = user.path(&format!("runs/slurm-{job}"));
    let events = lines(&run, "events.jsonl");
    let began = events.iter().find(|event| event["event"] == "began").expect("a generation");
    assert_eq!(began["ranks"], serde_json::json!(["n0-0", "n0-1", "n0-2", "n0-3", "n2-0", "n2-1"]));
    assert_eq!(steps(&run), 6);
}

/// libtorch, and what comes with it, where an ordinary user can read it: it may be in root's home
/// folder.
struct Libraries {
    folders: Vec<String>,
}

impl Libraries {
    fn for_user(scene: &Scene, user: &Cluster) -> Option<Self> {
        let linked = String::from_utf8_lossy(
            &Command::new("ldd").arg(program("thanos-worker")).output().expect("ldd").stdout,
        )
        .into_owned();
        let files = linked.lines().filter_map(|line| line.split_once(" => ")?.1.split(' ').next());
        let sources: BTreeSet<&Path> = files.filter_map(|file| Path::new(file).parent()).collect();
        let is_of_the_system =
            |folder: &&Path| folder.starts_with("/lib") || folder.starts_with("/usr");
        let mut libraries = Self { folders: Vec::new() };
        for (at, source) in
            sources.into_iter().filter(|source| !is_of_the_system(source)).enumerate()
        {
            let folder = scene.path(&format!("lib{at}")).display().to_string();
            fs::create_dir(&folder).expect("a folder");
            let mounted = Command::new("mount")
                .args(["--bind", &source.display().to_string(), &folder])
                .status();
            if !mounted.is_ok_and(|status| status.success()) {
                crate::print_line(
                    "skipped: nothing can be mounted here, and an ordinary user may not read \
                    libtorch",
                );
                return None;
            }
            libraries.folders.push(folder);
        }
        let worker = user.path("target/release/thanos-worker").display().to_string();
        let (good, printed) = user
            .run("env", &[&format!("LD_LIBRARY_PATH={}", libraries.path()), &worker, "--version"]);
        assert!(good, "{printed}");
        Some(libraries)
    }

    /// As `LD_LIBRARY_PATH`.
    fn path(&self) -> String {
        self.folders.join(":")
    }
}

impl Drop for Libraries {
    fn drop(&mut self) {
        for folder in &self.folders {
            _ = Command::new("umount").args(["--lazy", folder]).status();
        }
    }
}
