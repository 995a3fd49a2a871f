//! Jobs that Slurm takes away, with its default settings: tasks get SIGTERM at once. A job is
//! requeued as long as it comes
//! further, and no more often than it may be; the loss of a node is the loss of its workers.

use super::cluster::{Cluster, steps};
use nix::sys::signal::Signal;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use thanos_tests::processes::{send, workers};
use thanos_tests::{Scene, lines};

/// Long enough to be disturbed, and the only checkpoint is that of a stop.
const TARGET: [&str; 4] =
    ["digits_supcon", "train.max_steps=400", "checkpoint.every_steps=100000", "rows=[]"];

#[test]
fn jobs_are_preempted_requeued_and_lose_nodes_by_slurms_default_settings() {
    let scene = Scene::new();
    let Some(cluster) = Cluster::up(&scene, &["--preempt", "default"]) else { return };
    preempt(&cluster);
    requeue_no_more_often_than_allowed(&cluster);
    requeue_only_after_progress(&cluster);
    lose_a_node(&cluster);
}

/// One worker is drained: the others do not notice. Then the job is preempted: it saves, and
/// continues later.
fn preempt(cluster: &Cluster) {
    let job = cluster.submit(&["--nodes=2"], "train.sbatch", &TARGET);
    let run = cluster.path(&format!("runs/slurm-{job}"));
    cluster.wait("steps", || steps(&run) > 10);
    let drained = workers(&run)["n1-0"];
    send(drained, Signal::SIGTERM);
    cluster.wait("the notice", || {
        cluster.output(&job).contains("n1-0 received SIGTERM, most others did not")
    });
    let reported = steps(&run);
    cluster.wait("training to continue", || steps(&run) > reported + 2);
    send(drained, Signal::SIGKILL);
    cluster.wait("the recovery", || cluster.output(&job).contains("generation 2 continues"));
    let recovered = steps(&run);
    cluster.wait("training to continue", || steps(&run) > recovered + 2);
    let urgent =
        ["--partition=urgent", "--nodes=4", "--exclusive", "--output=urgent.out", "--wrap", "true"];
    cluster.ask("sbatch", &urgent);
    cluster.wait("the requeue", || {
        cluster.says(&job, "Restarts=1") && cluster.says(&job, "JobState=PENDING")
    });
    let printed = cluster.output(&job);
    assert!(printed.contains("SIGTERM received by n0-0 and 1 more of 2 workers"), "{printed}");
    assert!(printed.contains("is requeued"), "{printed}");
    let events = lines(&run, "events.jsonl");
    let ended = events.last().expect("events");
    assert_eq!(
        (&ended["event"], &ended["step"]),
        (&"ended".into(), &steps(&run).into()),
        "all steps are saved"
    );
    // Slurm would wait two minutes.
    cluster.ask("scontrol", &["update", &format!("jobid={job}"), "StartTime=now"]);
    cluster.wait("the end", || cluster.says(&job, "JobState=COMPLETED"));
    assert_eq!(steps(&run), 400);
}

fn requeue_no_more_often_than_allowed(cluster: &Cluster) {
    let job = cluster.submit(
        &["--nodes=1"],
        "train.sbatch",
        &[&["--max-requeues", "0"], &TARGET[..]].concat(),
    );
    let run = cluster.path(&format!("runs/slurm-{job}"));
    cluster.wait("steps", || steps(&run) > 10);
    cluster.signal_batch(&job, Signal::SIGUSR1);
    cluster.wait("the end", || cluster.says(&job, "JobState=FAILED"));
    assert!(cluster.says(&job, "ExitCode=75:0") && cluster.says(&job, "Restarts=0"));
    let printed = cluster.output(&job);
    assert!(
        printed.contains("is not requeued: it was restarted 0 times, and --max-requeues is 0"),
        "{printed}"
    );
    // Another job continues the run.
    let resumed = cluster.submit(
        &["--nodes=1", "--export", &format!("ALL,RUN_DIR={}", run.display())],
        "train.sbatch",
        &TARGET,
    );
    cluster.wait("the end", || cluster.says(&resumed, "JobState=COMPLETED"));
    assert_eq!(steps(&run), 400);
}

/// A worker that never joins: a job that has done nothing is not requeued.
fn requeue_only_after_progress(cluster: &Cluster) {
    let program = cluster.path("idle.sh");
    fs::write(&program, "#!/bin/sh\nexec sleep 600\n").expect("written");
    fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).expect("ours");
    let program = program.display().to_string();
    let job = cluster.submit(
        &["--nodes=1"],
        "train.sbatch",
        &["--worker-program", &program, "digits_supcon"],
    );
    cluster.wait("the start", || cluster.output(&job).contains("run directory"));
    cluster.signal_batch(&job, Signal::SIGUSR1);
    cluster.wait("the end", || cluster.says(&job, "JobState=FAILED"));
    let printed = cluster.output(&job);
    assert!(
        printed.contains("is not requeued: no checkpoint was committed since it started"),
        "{printed}"
    );
}

fn lose_a_node(cluster: &Cluster) {
    let arguments = [&["--nodes", "2:3", "--rendezvous-timeout", "1s"], &TARGET[..]].concat();
    let job = cluster.submit(
        &["--nodes=3", "--no-kill", "--nodelist=n0,n1,n2"],
        "train.sbatch",
        &arguments,
    );
    let run = cluster.path(&format!("runs/slurm-{job}"));
    cluster.wait("steps", || steps(&run) > 10);
    cluster.ask("scontrol", &["update", "nodename=n2", "state=down", "reason=test"]);
    cluster.wait("the end", || cluster.says(&job, "JobState=COMPLETED"));
    let two = serde_json::json!(["n0-0", "n1-0"]);
    let events = lines(&run, "events.jsonl");
    assert!(
        events.iter().any(|event| event["event"] == "began" && event["ranks"] == two),
        "{}",
        cluster.output(&job)
    );
    assert_eq!(steps(&run), 400);
}
