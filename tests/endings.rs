//! How runs end when they do not end by themselves: a killed worker is named and replaced, a killed coordinator
//! leaves nobody behind, a second signal ends at once. And how fast a run begins.

use crate::tell;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::time::{Duration, Instant};
use thanos_tests::{Running, Scene, lines};

const LONG: [&str; 2] = ["digits_supcon", "train.epochs=100000"];

fn start(scene: &Scene, workers: &str) -> Running {
    let arguments = ["launch", "--nodes", workers, "--threads-per-worker", "1", "--run-dir", "run"];
    scene.start(&[&arguments[..], &LONG].concat())
}

/// Process ids of the workers, by the run's own events.
fn workers(scene: &Scene) -> Vec<i32> {
    let joined = lines(&scene.path("run"), "events.jsonl").into_iter().filter(|line| line["event"] == "joined");
    joined.map(|line| line["pid"].as_i64().expect("a pid") as i32).collect()
}

fn alive(pid: i32) -> bool {
    // A zombie has a /proc entry, but no command line.
    std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|words| !words.is_empty())
}

fn signal(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).expect("it is running");
}

/// Waits until none of the processes is there.
fn gone_within(pids: &[i32], most: Duration) -> Duration {
    let started = Instant::now();
    while pids.iter().any(|pid| alive(*pid)) {
        assert!(started.elapsed() < most, "still there after {most:?}: {pids:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
    started.elapsed()
}

#[test]
fn a_killed_worker_is_named_and_the_run_goes_on() {
    let scene = Scene::new();
    let mut running = start(&scene, "3");
    running.wait_for_steps("run", 3);
    let killed = workers(&scene)[1];
    signal(killed, Signal::SIGKILL);
    running.wait_for_line("generation 2 goes on behind step");
    let ran = running.interrupt().expect(75);
    let named = format!("pid {killed}");
    for part in [named.as_str(), "is gone without a word", "was killed by signal 9", "of stage supcon"] {
        assert!(ran.stderr.contains(part), "no `{part}` in {}", ran.stderr);
    }
    let pids = workers(&scene);
    assert_eq!(pids.len(), 4, "three at the start, and one again: {pids:?}");
    gone_within(&pids, Duration::from_secs(1));
}

#[test]
fn a_killed_coordinator_leaves_no_worker_behind() {
    let scene = Scene::new();
    let mut running = start(&scene, "3");
    running.wait_for_steps("run", 3);
    let pids = workers(&scene);
    assert!(pids.len() == 3 && pids.iter().all(|pid| alive(*pid)), "{pids:?}");
    signal(running.pid(), Signal::SIGKILL);
    let took = gone_within(&pids, Duration::from_secs(5));
    tell(&format!("workers were gone {took:?} after their coordinator was killed"));
}

#[test]
fn a_second_signal_ends_at_once() {
    let scene = Scene::new();
    let mut running = start(&scene, "2");
    running.wait_for_steps("run", 1);
    let pids = workers(&scene);
    // Stopped workers cannot reach a common step: only the second signal can end this.
    for pid in &pids {
        signal(*pid, Signal::SIGSTOP);
    }
    signal(running.pid(), Signal::SIGINT);
    signal(running.pid(), Signal::SIGTERM);
    running.wait().expect(75);
    for pid in &pids {
        signal(*pid, Signal::SIGKILL);
    }
}

/// From `launch` to the first step with four workers, on a pack that is there.
#[test]
fn a_run_of_four_workers_begins_within_three_seconds() {
    let scene = Scene::new();
    // The pack is made by the first run of a user, and is there from then on.
    scene.coord(&["data", "pack", "digits"]).expect(0);
    let started = Instant::now();
    let mut running = start(&scene, "4");
    running.wait_for_steps("run", 1);
    let took = started.elapsed();
    tell(&format!("the first step of four workers was committed {took:.2?} after the launch"));
    assert!(took < Duration::from_secs(3), "{took:?}");
}
