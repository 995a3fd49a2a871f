//! Where steps take seconds, checkpoints and evaluations longer, and the coordinator pauses: no
//! healthy worker is terminated, what survivors hold is kept, and the run is that of an
//! uninterrupted one, to the bit. The short forms are here; `make chaos` has steps of eight
//! seconds, checkpoints of eighteen and evaluations of forty.

use crate::print_line;
use crate::recovery::assert_equal;
use nix::sys::signal::Signal;
use serde_json::Value;
use std::time::Duration;
use thanos_tests::processes::{coordinator, send, workers};
use thanos_tests::{Running, Scene, lines};

const LAUNCH: [&str; 5] = ["launch", "--threads-per-worker", "1", "--run-dir", "run"];

fn start(scene: &Scene, nodes: &str, slow: &str, target: &[&str]) -> Running {
    let arguments = [&LAUNCH[..], &["--nodes", nodes], target].concat();
    scene.start_with(&arguments, &[("FAILPOINTS", slow)])
}

fn whole(scene: &Scene, workers: usize, target: &[&str]) {
    scene.launch("whole", workers, target).expect(0);
}

/// Events of this kind, in order.
fn events(scene: &Scene, kind: &str) -> Vec<Value> {
    lines(&scene.path("run"), "events.jsonl")
        .into_iter()
        .filter(|event| event["event"] == kind)
        .collect()
}

/// One worker was lost, the others continued from memory, and nothing else happened.
#[track_caller]
fn assert_one_loss(scene: &Scene, stages: &[&str]) {
    let (lost, recovered) = (events(scene, "lost"), events(scene, "recovered"));
    assert_eq!((lost.len(), recovered.len()), (1, 1), "{lost:#?} {recovered:#?}");
    assert!(recovered[0]["from"]["memory"].is_string(), "{recovered:?}");
    assert_equal(scene, &scene.path("whole"), &scene.path("run"), stages);
    print_line(&format!(
        "in training again {:.1} s after the loss",
        recovered[0]["seconds"].as_f64().unwrap_or_default()
    ));
}

fn check_slow_steps(step_ms: u32, steps: &str, kill_after: usize) {
    let scene = Scene::new();
    let target = ["digits_cae", "train.epochs=1", &format!("train.max_steps={steps}"), "rows=[]"];
    whole(&scene, 3, &target);
    let mut running = start(&scene, "3", &format!("step=sleep({step_ms})"), &target);
    running.wait_for_steps("run", kill_after);
    send(workers(&scene.path("run"))["worker-1"], Signal::SIGKILL);
    running.wait().expect(0);
    assert_one_loss(&scene, &["cae"]);
}

#[test]
fn a_loss_among_slow_steps_costs_one_worker() {
    check_slow_steps(4000, "5", 2);
}

#[test]
#[ignore = "takes minutes: make chaos"]
fn a_loss_among_steps_of_eight_seconds_costs_one_worker() {
    check_slow_steps(8000, "12", 6);
}

/// A peer of rank 0 dies while rank 0 writes a checkpoint, each of whose three files takes so long.
fn check_slow_save(file_ms: u32, steps: &str) {
    let scene = Scene::new();
    let max_steps = format!("train.max_steps={steps}");
    let target = ["digits_cae", &max_steps, "checkpoint.every_steps=25", "rows=[]"];
    whole(&scene, 2, &target);
    let mut running = start(&scene, "2", &format!("save-written=sleep({file_ms})"), &target);
    running.wait_for_steps("run", 30);
    send(workers(&scene.path("run"))["worker-1"], Signal::SIGKILL);
    running.wait().expect(0);
    assert_one_loss(&scene, &["cae"]);
    assert_eq!(events(&scene, "checkpoint_failed").len(), 0);
}

#[test]
fn a_loss_during_a_slow_checkpoint_tears_nothing() {
    check_slow_save(2000, "40");
}

#[test]
#[ignore = "takes minutes: make chaos"]
fn a_loss_during_a_checkpoint_of_eighteen_seconds_tears_nothing() {
    check_slow_save(6000, "60");
}

/// A worker dies while all evaluate.
fn check_slow_evaluation(batch_ms: u32) {
    let scene = Scene::new();
    let target = ["digits_supcon", "train.max_steps=42", "rows=[]"];
    whole(&scene, 3, &target);
    let mut running =
        start(&scene, "3", &format!("embed=2*off->1*sleep({batch_ms})->off"), &target);
    running.wait_for_steps("run", 42);
    running.wait_until("an evaluation", || !events(&scene, "evaluated").is_empty());
    send(workers(&scene.path("run"))["worker-2"], Signal::SIGKILL);
    running.wait().expect(0);
    assert_one_loss(&scene, &["supcon"]);
}

#[test]
fn a_loss_during_a_slow_evaluation_costs_one_worker() {
    check_slow_evaluation(6000);
}

#[test]
#[ignore = "takes minutes: make chaos"]
fn a_loss_during_an_evaluation_of_forty_seconds_costs_one_worker() {
    check_slow_evaluation(40_000);
}

/// The coordinator is stopped for some time: its workers keep what they hold, and come back to it.
fn check_pause(seconds: u64) {
    let scene = Scene::new();
    let target = ["digits_supcon", "train.max_steps=400", "checkpoint.every_steps=1000", "rows=[]"];
    whole(&scene, 2, &target);
    let mut running = start(&scene, "2", "", &target);
    running.wait_for_steps("run", 40);
    let before = workers(&scene.path("run"));
    let pid = coordinator(&scene.path("run")).expect("it runs");
    send(pid, Signal::SIGSTOP);
    std::thread::sleep(Duration::from_secs(seconds));
    send(pid, Signal::SIGCONT);
    running.wait().expect(0);
    assert_eq!(events(&scene, "restarting").len(), 0);
    assert_eq!(workers(&scene.path("run")), before, "the same processes");
    assert!(events(&scene, "recovered").iter().all(|event| event["from"]["memory"].is_string()));
    assert_equal(&scene, &scene.path("whole"), &scene.path("run"), &["supcon"]);
}

#[test]
fn a_pause_of_the_coordinator_terminates_no_worker() {
    check_pause(7);
}

#[test]
#[ignore = "takes minutes: make chaos"]
fn a_pause_of_the_coordinator_of_a_minute_terminates_no_worker() {
    check_pause(60);
}

/// Workers that were stopped when the coordinator died come back late, with steps that no
/// checkpoint has.
#[test]
fn workers_that_return_late_to_a_restarted_coordinator_keep_their_steps() {
    let scene = Scene::new();
    let target = ["digits_supcon", "train.max_steps=400", "checkpoint.every_steps=1000", "rows=[]"];
    whole(&scene, 2, &target);
    let mut running = start(&scene, "2", "", &target);
    running.wait_for_steps("run", 40);
    let pids: Vec<i32> = workers(&scene.path("run")).into_values().collect();
    pids.iter().for_each(|pid| send(*pid, Signal::SIGSTOP));
    send(coordinator(&scene.path("run")).expect("it runs"), Signal::SIGKILL);
    std::thread::sleep(Duration::from_secs(4));
    pids.iter().for_each(|pid| send(*pid, Signal::SIGCONT));
    running.wait().expect(0);
    assert_eq!(events(&scene, "restarting").len(), 0);
    assert!(events(&scene, "recovered").iter().all(|event| event["from"]["memory"].is_string()));
    assert_equal(&scene, &scene.path("whole"), &scene.path("run"), &["supcon"]);
}

/// A stop that reaches a run whose only peer has just died is saved from the survivor's memory,
/// without a replacement.
#[test]
fn a_stop_in_the_middle_of_a_recovery_keeps_what_the_survivor_holds() {
    let scene = Scene::new();
    let target = ["digits_cae", "train.epochs=1", "train.max_steps=6", "rows=[]"];
    whole(&scene, 2, &target);
    let mut running = start(&scene, "2", "step=sleep(3000)", &target);
    running.wait_for_steps("run", 3);
    send(workers(&scene.path("run"))["worker-1"], Signal::SIGKILL);
    running.wait_until("the loss", || !events(&scene, "lost").is_empty());
    let output = running.interrupt().expect(75).stderr;
    assert!(output.contains("saving the state of worker-0"), "{output}");
    let saved = events(&scene, "checkpoint");
    assert!(saved.last().is_some_and(|last| last["step"].as_u64() >= Some(3)), "{saved:?}");
    scene.launch("run", 2, &["--resume"]).expect(0);
    assert_equal(&scene, &scene.path("whole"), &scene.path("run"), &["cae"]);
}

/// A stop is requested, and the coordinator is killed before the step in flight is made: the one
/// that is restarted knows of the stop, and what the workers hold is saved.
#[test]
fn a_stop_survives_the_death_of_the_coordinator() {
    let scene = Scene::new();
    let target = ["digits_cae", "train.epochs=1", "train.max_steps=6", "rows=[]"];
    whole(&scene, 2, &target);
    let mut running = start(&scene, "2", "step=sleep(3000)", &target);
    running.wait_for_steps("run", 3);
    let pid = coordinator(&scene.path("run")).expect("it runs");
    send(running.pid(), Signal::SIGTERM);
    running.wait_until("the stop", || !events(&scene, "stopping").is_empty());
    send(pid, Signal::SIGKILL);
    running.wait().expect(75);
    let saved = events(&scene, "checkpoint");
    assert!(saved.last().is_some_and(|last| last["step"].as_u64() >= Some(3)), "{saved:?}");
    scene.coord(&["launch", "--resume", "--run-dir", "run"]).expect(0);
    assert_equal(&scene, &scene.path("whole"), &scene.path("run"), &["cae"]);
}
