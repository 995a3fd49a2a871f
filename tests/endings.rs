//! How runs end when they do not end by themselves: a killed worker is reported and replaced, a
//! killed launch leaves no process, a second signal ends at once. And how fast a run begins.

use crate::print_line;
use nix::sys::signal::Signal;
use std::time::{Duration, Instant};
use thanos_tests::processes::{coordinator, exit_within, is_alive, send};
use thanos_tests::{Running, Scene, lines};

const LONG: [&str; 2] = ["digits_supcon", "train.epochs=100000"];

fn start(scene: &Scene, workers: &str) -> Running {
    let arguments = ["launch", "--nodes", workers, "--threads-per-worker", "1", "--run-dir", "run"];
    scene.start(&[&arguments[..], &LONG].concat())
}

/// Process ids of all workers that have joined.
fn joined(scene: &Scene) -> Vec<i32> {
    let joined = lines(&scene.path("run"), "events.jsonl")
        .into_iter()
        .filter(|line| line["event"] == "joined");
    joined.map(|line| line["pid"].as_i64().expect("a pid") as i32).collect()
}

#[test]
fn a_killed_worker_is_reported_and_the_run_continues() {
    let scene = Scene::new();
    let mut running = start(&scene, "3");
    running.wait_for_steps("run", 3);
    let killed = joined(&scene)[1];
    send(killed, Signal::SIGKILL);
    running.wait_for_line("generation 2 continues after step");
    let ran = running.interrupt().expect(75);
    let named = format!("pid {killed}");
    for part in
        [named.as_str(), "disconnected unexpectedly", "was killed by signal 9", "of stage supcon"]
    {
        assert!(ran.stderr.contains(part), "no `{part}` in {}", ran.stderr);
    }
    let pids = joined(&scene);
    assert_eq!(pids.len(), 4, "three at the start, and one again: {pids:?}");
    exit_within(&pids, Duration::from_secs(1));
}

/// The terminal was closed: no supervisor is left to restart the coordinator.
#[test]
fn a_killed_launch_leaves_no_process() {
    let scene = Scene::new();
    let mut running = start(&scene, "3");
    running.wait_for_steps("run", 3);
    let mut pids = joined(&scene);
    pids.extend(coordinator(&scene.path("run")));
    assert!(pids.len() == 4 && pids.iter().all(|pid| is_alive(*pid)), "{pids:?}");
    send(running.pid(), Signal::SIGKILL);
    let took = exit_within(&pids, Duration::from_secs(5));
    print_line(&format!("coordinator and workers were gone {took:?} after the launch was killed"));
}

#[test]
fn a_second_signal_ends_at_once() {
    let scene = Scene::new();
    let mut running = start(&scene, "2");
    running.wait_for_steps("run", 1);
    let pids = joined(&scene);
    // Stopped workers cannot reach a common step: only the second signal can end this.
    for pid in &pids {
        send(*pid, Signal::SIGSTOP);
    }
    send(running.pid(), Signal::SIGINT);
    send(running.pid(), Signal::SIGTERM);
    running.wait().expect(75);
    for pid in &pids {
        send(*pid, Signal::SIGKILL);
    }
}

/// From `launch` to the first step with four workers, on a pack that is there.
#[test]
fn a_run_of_four_workers_begins_within_three_seconds() {
    let scene = Scene::alone();
    // The pack is made by the first run of a user, and is there from then on.
    scene.coord(&["data", "pack", "digits"]).expect(0);
    let started = Instant::now();
    let mut running = start(&scene, "4");
    running.wait_for_steps("run", 1);
    let took = started.elapsed();
    print_line(&format!(
        "the first step of four workers was committed {took:.2?} after the launch"
    ));
    assert!(took < Duration::from_secs(3), "{took:?}");
}
