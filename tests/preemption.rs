//! Who is asked to leave does so at a common step, wherever the run is: in an evaluation, while a
//! transfer is set up, in a start. What was not finished is done when the run continues, and the
//! result is the same to the bit. A stop that takes longer than its grace ends with the last
//! checkpoint.

use crate::recovery::assert_equal;
use nix::sys::signal::Signal;
use std::time::{Duration, Instant};
use thanos_tests::processes::send;
use thanos_tests::{Running, Scene, lines};

/// Twenty-one steps per epoch, evaluated after each.
const TARGET: [&str; 5] = [
    "digits_cnce",
    "train.max_steps=63",
    "transfer.max_steps=30",
    "transfer.features=cached",
    "checkpoint.every_steps=21",
];

fn start(scene: &Scene, slow: &str, more: &[&str]) -> Running {
    let arguments = ["launch", "--nodes", "2", "--threads-per-worker", "1", "--run-dir", "run"];
    scene.start_with(&[&arguments[..], more, &TARGET].concat(), &[("FAILPOINTS", slow)])
}

fn resume(scene: &Scene) {
    scene.launch("run", 2, &["--resume"]).expect(0);
}

fn stop(running: Running, most: Duration) -> String {
    let asked = Instant::now();
    send(running.pid(), Signal::SIGTERM);
    let output = running.wait().expect(75).stderr;
    assert!(asked.elapsed() < most, "{:?}: {output}", asked.elapsed());
    output
}

/// Stopped where `until` says, and resumed.
fn check(whole: &Scene, slow: &str, until: impl FnOnce(&mut Running), at: &str) {
    let scene = Scene::new();
    let mut running = start(&scene, slow, &[]);
    until(&mut running);
    let output = stop(running, Duration::from_secs(4));
    assert!(output.contains(at), "{output}");
    resume(&scene);
    assert_equal(&scene, &whole.path("whole"), &scene.path("run"), &["cnce", "transfer_cnce"]);
}

#[test]
fn a_stop_is_obeyed_wherever_the_run_is() {
    let whole = Scene::new();
    whole.launch("whole", 2, &TARGET).expect(0);
    let slow = "embed=sleep(1500)";
    check(
        &whole,
        "",
        |running| running.wait_for_line("run directory"),
        "stopped before the first step",
    );
    check(
        &whole,
        slow,
        |running| running.wait_for_steps("run", 21),
        "stopped after step 21 of stage cnce",
    );
    check(
        &whole,
        slow,
        |running| running.wait_for_steps("run", 42),
        "stopped after step 42 of stage cnce",
    );
    // The last evaluation, the measures on the test images, and the features of a transfer come
    // after it.
    check(
        &whole,
        slow,
        |running| running.wait_for_steps("run", 63),
        "stopped after step 63 of stage cnce",
    );
    let set_up = |running: &mut Running| running.wait_for_line("cnce: done in");
    check(&whole, slow, set_up, "stopped after step 0 of stage transfer_cnce");
}

#[test]
fn a_stop_that_takes_longer_than_its_grace_ends_with_the_last_checkpoint() {
    let scene = Scene::alone();
    let mut running = start(&scene, "embed=1*sleep(0)->sleep(30000)", &["--grace", "4s"]);
    running.wait_for_steps("run", 42);
    let output = stop(running, Duration::from_secs(5));
    assert!(
        output.contains("the grace period is over: the run ends at its last checkpoint"),
        "{output}"
    );
    assert!(output.contains("stopped after step 21 of stage cnce"), "{output}");
    assert!(
        lines(&scene.path("run"), "events.jsonl")
            .iter()
            .any(|event| event["event"] == "grace_over")
    );
    resume(&scene);
}
