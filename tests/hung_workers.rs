//! Workers that hang although their sessions live: one that hangs is named with its phase and
//! replaced, one that is slow is named and left alone.

use crate::print_line;
use crate::recovery::{assert_equal, launch};
use nix::sys::signal::Signal;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use thanos_tests::processes::{send, workers};
use thanos_tests::{Scene, lines};

const TARGET: [&str; 4] =
    ["digits_cae", "train.max_steps=60", "checkpoint.every_steps=20", "rows=[]"];

#[test]
fn a_worker_that_hangs_is_named_and_replaced() {
    let scene = Scene::new();
    launch(&scene, "whole", "3", &TARGET).wait().expect(0);
    let arguments = ["launch", "--nodes", "3", "--threads-per-worker", "1", "--run-dir", "run"];
    let hangs = [("FAILPOINTS", "hang=return(1:30)")];
    let ran = scene.start_with(&[&arguments[..], &TARGET].concat(), &hangs).wait().expect(0);
    let named = "worker-1 (rank 1, pid ";
    for part in [
        named,
        "is hung (heartbeats continue, no progress",
        "last seen in forward of step 30 of stage cae",
    ] {
        assert!(ran.stderr.contains(part), "no `{part}` in {}", ran.stderr);
    }
    assert_equal(&scene, &scene.path("whole"), &scene.path("run"), &["cae"]);
    let events = lines(&scene.path("run"), "events.jsonl");
    let time = |kind: &str| {
        events.iter().find(|event| event["event"] == kind).and_then(|event| event["time"].as_f64())
    };
    let (lost, again) = (time("lost").expect("reported"), time("recovered").expect("reported"));
    print_line(&format!(
        "a worker that hung was ended, and the others were in training again {:.2} s later",
        again - lost
    ));
}

/// Four fifths of the time it is stopped, for a moment each.
#[test]
fn a_straggler_is_named_and_left_alone() {
    let scene = Scene::alone();
    let mut running = launch(&scene, "run", "2", &["digits_supcon", "train.epochs=100000"]);
    running.wait_for_steps("run", 20);
    let pid = workers(&scene.path("run"))["worker-1"];
    let enough = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !enough.load(Ordering::Relaxed) {
                send(pid, Signal::SIGSTOP);
                std::thread::sleep(Duration::from_millis(80));
                send(pid, Signal::SIGCONT);
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        running.wait_for_line("worker-1 is slow: the others wait for it");
        enough.store(true, Ordering::Relaxed);
    });
    let output = running.interrupt().expect(75).stderr;
    assert!(!output.contains("generation 2"), "it was not ended: {output}");
}
