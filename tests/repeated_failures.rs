//! A step that fails in the same way in two generations ends the run with its cause; what was made
//! until then is saved. One that fails once is made again.

use crate::recovery::assert_equal;
use serde_json::Value;
use thanos_tests::{Ran, Scene, checkpoints, lines, losses};

const TARGET: [&str; 4] =
    ["digits_cnce", "train.max_steps=60", "checkpoint.every_steps=1000", "rows=[]"];
const CAUSE: &str = "all_reduce: Tensors must be CUDA and dense";

fn launch(scene: &Scene, failpoint: &str) -> Ran {
    let arguments = ["launch", "--nodes", "2", "--threads-per-worker", "1", "--run-dir", "run"];
    scene.start_with(&[&arguments[..], &TARGET].concat(), &[("FAILPOINTS", failpoint)]).wait()
}

fn events(scene: &Scene, kind: &str) -> Vec<Value> {
    lines(&scene.path("run"), "events.jsonl")
        .into_iter()
        .filter(|event| event["event"] == kind)
        .collect()
}

#[test]
fn a_step_that_always_fails_ends_the_run_with_its_cause() {
    let scene = Scene::new();
    let output = launch(&scene, "broken-collective=return(any:40)").expect(70).stderr;
    for part in [
        format!("failed in step 40 of stage cnce: {CAUSE}\n"),
        format!("step 40 of stage cnce failed twice in the same way: {CAUSE} (worker-"),
    ] {
        assert!(output.contains(&part), "no `{part}` in {output}");
    }
    assert_eq!(events(&scene, "began").len(), 2, "no third generation: {output}");
    assert!(!events(&scene, "group_failed").is_empty() && events(&scene, "lost").is_empty());
    assert_eq!(losses(&scene.path("run"), "cnce").len(), 40);
    // The state in memory was saved, and the run continues from it once the cause has been removed.
    let last = checkpoints(&scene.path("run"), "cnce").pop().expect("a checkpoint");
    assert!(last.ends_with("step-00000040"), "{}", last.display());
    scene.coord(&["verify-run", "run"]).expect(0);
    scene.launch("whole", 2, &TARGET).expect(0);
    scene.launch("run", 2, &["--resume"]).expect(0);
    assert_equal(&scene, &scene.path("whole"), &scene.path("run"), &["cnce"]);
}

/// The rank that fails is named, although the first one to report lost its connection to it.
#[test]
fn the_failure_of_one_rank_is_the_cause() {
    let scene = Scene::new();
    let output = launch(&scene, "broken-collective=return(1:40)").expect(70).stderr;
    let cause = format!("step 40 of stage cnce failed twice in the same way: {CAUSE} (worker-1)");
    assert!(output.contains(&cause), "no `{cause}` in {output}");
    assert_eq!(losses(&scene.path("run"), "cnce").len(), 40);
}

#[test]
fn a_step_that_fails_once_is_made_again() {
    let scene = Scene::new();
    scene.launch("whole", 2, &TARGET).expect(0);
    launch(&scene, "broken-collective=40*off->1*return(any:40)->off").expect(0);
    assert_eq!((events(&scene, "began").len(), events(&scene, "lost").len()), (2, 0));
    assert_equal(&scene, &scene.path("whole"), &scene.path("run"), &["cnce"]);
}

/// An aborted collective returns on a GPU as if it were done: the update must not use what it left.
#[test]
fn the_result_of_an_aborted_collective_is_not_used() {
    let scene = Scene::new();
    scene.launch("whole", 2, &TARGET).expect(0);
    launch(&scene, "abort-collective=40*off->1*return(1:40)->off").expect(0);
    assert_eq!((events(&scene, "began").len(), events(&scene, "lost").len()), (2, 0));
    assert_equal(&scene, &scene.path("whole"), &scene.path("run"), &["cnce"]);
}
