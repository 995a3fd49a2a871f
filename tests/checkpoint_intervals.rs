//! When a stage is saved: after so many seconds, after this many steps, and always at its end.

use serde_json::Value;
use thanos_tests::{Scene, lines};

/// Steps of 50 ms, on both ranks.
const SLOW: (&str, &str) = ("FAILPOINTS", "step=sleep(50)");

/// The steps after which a run saved its one stage, which has sixty.
fn saved(overrides: &[&str], variables: &[(&str, &str)]) -> Vec<u64> {
    let scene = Scene::new();
    let arguments = ["launch", "--nodes", "2", "--threads-per-worker", "1", "--run-dir", "run"];
    let target = ["digits_supcon", "train.max_steps=60", "rows=[]"];
    scene.start_with(&[&arguments[..], &target, overrides].concat(), variables).wait().expect(0);
    let events = lines(&scene.path("run"), "events.jsonl").into_iter();
    let step = |event: Value| event["step"].as_u64().expect("a step");
    events.filter(|event| event["event"] == "checkpoint").map(step).collect()
}

#[test]
fn a_short_stage_is_saved_at_its_end_alone() {
    assert_eq!(saved(&[], &[]), [60], "three epochs within the first minute");
    assert_eq!(saved(&["checkpoint={every_seconds: null, every_steps: null}"], &[]), [60]);
}

#[test]
fn a_save_starts_after_so_many_seconds() {
    let saved = saved(&["checkpoint.every_seconds=0.5"], &[SLOW]);
    // The stage takes 3 s or more.
    assert!(saved.len() >= 3 && saved.is_sorted() && saved.last() == Some(&60), "{saved:?}");
}

/// Writing takes longer than the interval: the next save starts when that one is committed, and no
/// step waits for it.
#[test]
fn no_step_waits_for_a_save_that_is_due_by_time() {
    let slow = ("FAILPOINTS", "step=sleep(50);save-written=1*sleep(2500)->off");
    let saved = saved(&["checkpoint.every_seconds=0.1"], &[slow]);
    let [first, second, ..] = saved[..] else { panic!("two saves at least: {saved:?}") };
    assert!(first < 10, "{saved:?}");
    // With steps that waited it would be two or three.
    assert!(second - first >= 8, "2.5 s are many steps, and none of them waited: {saved:?}");
}

#[test]
fn either_interval_starts_a_save() {
    let saved = saved(&["checkpoint={every_seconds: 3600, every_steps: 25}"], &[]);
    assert_eq!(saved, [25, 50, 60]);
}
