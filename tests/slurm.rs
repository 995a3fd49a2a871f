//! The job scripts on a real Slurm of four nodes, all of them on this machine: a worker that is
//! killed, a job that is preempted while one of its nodes is drained, requeued, and ended with a
//! table; every common way to request GPUs, by an ordinary user in a hidden partition; Slurm's
//! default preemption, the limits of requeues, the loss of a node; and the table of an array.
//! Without Slurm, or without root, these tests say that they were skipped.

mod cluster;
mod preempted;
mod requests;

use cluster::{Cluster, steps};
use nix::sys::signal::Signal;
use thanos_tests::processes::{send, workers};
use thanos_tests::{Scene, lines, root};

#[test]
fn a_job_is_preempted_drained_requeued_and_ends_with_its_table() {
    let scene = Scene::new();
    let Some(cluster) = Cluster::up(&scene, &[]) else { return };
    let arguments = ["digits_table", "train.epochs=8", "checkpoint.every_steps=50"];
    let job = cluster.submit(&[], "train.sbatch", &arguments);
    let run = scene.path(&format!("runs/slurm-{job}"));
    cluster.wait("steps of four workers", || steps(&run) > 20);
    let began = |workers: &[&str]| {
        let ranks = serde_json::json!(workers);
        lines(&run, "events.jsonl")
            .iter()
            .any(|event| event["event"] == "began" && event["ranks"] == ranks)
    };
    assert!(
        began(&["n0-0", "n1-0", "n2-0", "n3-0"]),
        "a worker a node: {:?}",
        lines(&run, "events.jsonl")
    );
    let tasks = cluster.ask("squeue", &["--steps", "--noheader", "--format", "%i"]);
    assert_eq!(
        tasks.matches(&format!("{job}.")).count(),
        5,
        "four workers and the batch script: {tasks}"
    );

    // A worker that dies alone is restarted where it was.
    send(workers(&run)["n2-0"], Signal::SIGKILL);
    let printed =
        || std::fs::read_to_string(scene.path(&format!("thanos-{job}.out"))).unwrap_or_default();
    cluster.wait("the killed worker's return", || printed().contains("generation 2 continues"));
    assert!(printed().contains("n2-0 was killed by signal 9: restarting it"), "{}", printed());

    // A node is drained, and a job of more weight comes: this one has a minute to save and go.
    cluster.ask("scontrol", &["update", "nodename=n3", "state=drain", "reason=test"]);
    let urgent =
        ["--partition=urgent", "--nodes=3", "--exclusive", "--output=urgent.out", "--wrap", "true"];
    cluster.ask("sbatch", &urgent);
    cluster.wait("the job to be requeued", || {
        cluster.says(&job, "Restarts=1") && cluster.says(&job, "JobState=PENDING")
    });
    assert!(printed().contains("stopping at a common step: SIGUSR1"), "{}", printed());
    assert!(printed().contains("is requeued"), "{}", printed());
    // Slurm would wait two minutes, and then for the fourth node.
    cluster.ask(
        "scontrol",
        &["update", &format!("jobid={job}"), "NumNodes=3", "NumTasks=3", "StartTime=now"],
    );
    cluster.wait("the end", || cluster.says(&job, "JobState=COMPLETED"));
    assert!(began(&["n0-0", "n1-0", "n2-0"]), "the three nodes that were left");
    let printed = printed();
    assert!(
        printed.contains("\nthanos ") && printed.contains("cnce + cae"),
        "no table in {printed}"
    );
    assert!(printed.lines().count() < 120, "{} lines", printed.lines().count());
    let (checked, verified) = (
        scene.coord(&["verify-run", &run.display().to_string()]),
        "every step exactly once and in order",
    );
    assert!(checked.stdout.contains(verified), "{checked:?}");
}

#[test]
fn an_array_trains_the_backbones_and_its_dependent_job_makes_the_table() {
    let scene = Scene::new();
    let Some(cluster) = Cluster::up(&scene, &[]) else { return };
    let script = root().join("deploy/slurm/table.sh").display().to_string();
    let arguments = [
        "--nodes=2",
        "--mem=3G",
        "--comment=of all",
        "--",
        "--max-requeues=3",
        "digits",
        "train.epochs=3",
    ];
    let printed = cluster.ask("bash", &[&[script.as_str()], &arguments[..]].concat());
    let runs = printed.trim().rsplit(' ').next().expect("the folder of the runs");
    let queued = cluster.ask("squeue", &["--noheader", "--array", "--format", "%i %m %D %k"]);
    assert_eq!(queued.matches(" 3G 2 of all\n").count(), 4, "all jobs have all options: {queued}");
    let results = scene.path(&format!("{runs}/table/results.json"));
    cluster.wait("the table", || results.exists());
    cluster.wait("the jobs' end", || cluster.ask("squeue", &["--noheader"]).trim().is_empty());
    let text = std::fs::read_to_string(results).expect("results.json");
    let table: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let methods: Vec<&str> = table["rows"]
        .as_array()
        .expect("rows")
        .iter()
        .filter_map(|row| row["method"].as_str())
        .collect();
    assert_eq!(methods, ["supcon", "cnce", "cae", "supcon_cae", "thanos"]);
}

#[test]
fn outside_of_an_allocation_it_says_so() {
    let scene = Scene::new();
    let printed = scene.coord(&["launch", "--launcher", "srun", "digits_supcon"]).expect(64).stderr;
    assert!(printed.contains("--launcher srun runs inside a Slurm allocation"), "{printed}");
}
