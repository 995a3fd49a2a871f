//! Nothing stops a run: whichever worker is killed or stopped, at whatever moment, the others go on with it started
//! again, nobody touches anything, and every committed loss, the weights and the results are those of an undisturbed
//! run, to the bit. Moments and victims are drawn from a seed.

use crate::tell;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::path::Path;
use std::time::{Duration, Instant};
use thanos_configs::SplitMix64;
use thanos_tests::{Ran, Running, Scene, lines, results, weights_sha256};

const STAGES: [&str; 3] = ["cnce", "cae", "transfer_thanos"];

fn launch(scene: &Scene, run_dir: &str, workers: &str, target: &[&str]) -> Running {
    let arguments = ["launch", "--nodes", workers, "--threads-per-worker", "1", "--run-dir", run_dir];
    scene.start(&[&arguments[..], target].concat())
}

/// Process ids of the workers that have joined and were not lost since.
fn pids(run_dir: &Path) -> Vec<i32> {
    let text = std::fs::read_to_string(run_dir.join("events.jsonl")).unwrap_or_default();
    let events = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut pids = std::collections::BTreeMap::new();
    for event in events {
        let worker = event["worker"].as_str().unwrap_or_default().to_owned();
        match event["event"].as_str() {
            Some("joined") => _ = pids.insert(worker, event["pid"].as_i64().unwrap_or_default() as i32),
            Some("lost") => _ = pids.remove(&worker),
            _ => {}
        }
    }
    pids.into_values().collect()
}

/// Sends signals to workers at random moments until the run has ended, at most so many.
fn disturb(mut running: Running, run_dir: &Path, most: usize, pause: (f64, f64), signals: &[Signal]) -> (Ran, usize) {
    let mut stream = SplitMix64::new(20_261_124);
    let mut sent = 0;
    let mut next = Instant::now() + Duration::from_secs_f64(1.0);
    while !running.has_ended() {
        if sent < most && Instant::now() >= next {
            let pids = pids(run_dir);
            if !pids.is_empty() {
                let pid = pids[stream.below(pids.len() as u64) as usize];
                let signal = signals[stream.below(signals.len() as u64) as usize];
                sent += usize::from(kill(Pid::from_raw(pid), signal).is_ok());
            }
            next = Instant::now() + Duration::from_secs_f64(stream.uniform(pause.0, pause.1));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    (running.wait(), sent)
}

/// Everything of two runs that must be equal; `verify-run` says so, too.
#[track_caller]
fn assert_equal(scene: &Scene, whole: &Path, disturbed: &Path, stages: &[&str]) {
    let ledger = |run_dir| {
        let mut steps = lines(run_dir, "steps.jsonl");
        steps.iter_mut().for_each(|step| step["generation"] = 0.into());
        steps
    };
    assert_eq!(ledger(whole), ledger(disturbed));
    let [one, other] = [whole, disturbed].map(|run_dir| run_dir.display().to_string());
    let told = scene.coord(&["verify-run", &one, &other]).expect(0).stdout;
    assert!(told.contains("every step once and in order, every sample of an epoch once"), "{told}");
    assert!(told.contains("\nidentical in all "), "{told}");
    for stage in stages {
        assert_eq!(weights_sha256(whole, stage), weights_sha256(disturbed, stage), "stage {stage}");
    }
    let rows = |run_dir| {
        let mut rows = results(run_dir)["rows"].clone();
        for row in rows.as_array_mut().expect("rows") {
            (row["seconds"], row["data_wait_seconds"]) = (0.into(), 0.into());
        }
        rows
    };
    assert_eq!(rows(whole), rows(disturbed));
}

/// Seconds from each loss to the generation behind it, and how many losses there were.
fn recoveries(run_dir: &Path) -> (Vec<f64>, usize) {
    let events = lines(run_dir, "events.jsonl");
    let lost = events.iter().filter(|event| event["event"] == "lost").count();
    let recovered = events.iter().filter(|event| event["event"] == "recovered");
    let mut seconds: Vec<f64> = recovered.map(|event| event["seconds"].as_f64().expect("a number")).collect();
    seconds.sort_by(f64::total_cmp);
    (seconds, lost)
}

fn check_kills(most: usize, pause: (f64, f64), signals: &[Signal], target: &[&str]) {
    let scene = Scene::new();
    launch(&scene, "whole", "4", target).wait().expect(0);
    let (ran, sent) = disturb(launch(&scene, "disturbed", "4", target), &scene.path("disturbed"), most, pause, signals);
    ran.expect(0);
    assert_equal(&scene, &scene.path("whole"), &scene.path("disturbed"), &STAGES);
    let (seconds, lost) = recoveries(&scene.path("disturbed"));
    assert!(lost > 0 && !seconds.is_empty(), "nothing was disturbed");
    let at = |share: f64| seconds[((seconds.len() - 1) as f64 * share).round() as usize];
    tell(&format!(
        "{sent} signals, {lost} workers lost, {} recoveries: median {:.2} s, 95 % {:.2} s, most {:.2} s; bit-equal",
        seconds.len(),
        at(0.5),
        at(0.95),
        at(1.0)
    ));
}

#[test]
fn killed_workers_change_no_bit() {
    let target = ["digits_thanos", "train.max_steps=60", "transfer.max_steps=100", "checkpoint.every_steps=20"];
    check_kills(12, (0.3, 1.2), &[Signal::SIGKILL], &target);
}

#[test]
fn stopped_workers_are_named_and_started_again() {
    let target = ["digits_thanos", "train.max_steps=30", "transfer.max_steps=30", "checkpoint.every_steps=20"];
    check_kills(2, (4.0, 5.0), &[Signal::SIGSTOP], &target);
}

/// `make chaos`: a hundred kills in one run of four workers.
#[test]
#[ignore = "takes minutes: make chaos"]
fn a_hundred_kills_change_no_bit() {
    let target = ["digits_thanos", "train.max_steps=1050", "transfer.max_steps=1000", "checkpoint.every_steps=100"];
    check_kills(100, (0.5, 2.0), &[Signal::SIGKILL], &target);
}

/// The only worker has nobody who holds its state: the last checkpoint does.
#[test]
fn when_all_workers_are_lost_the_last_checkpoint_is_taken() {
    let scene = Scene::new();
    let target = ["digits_cae", "train.max_steps=60", "transfer.max_steps=30", "checkpoint.every_steps=7"];
    launch(&scene, "whole", "1", &target).wait().expect(0);
    let mut running = launch(&scene, "disturbed", "1", &target);
    running.wait_for_steps("disturbed", 25);
    kill(Pid::from_raw(pids(&scene.path("disturbed"))[0]), Signal::SIGKILL).expect("it is running");
    running.wait().expect(0);
    assert_equal(&scene, &scene.path("whole"), &scene.path("disturbed"), &["cae", "transfer_cae"]);
    let recovered = lines(&scene.path("disturbed"), "events.jsonl");
    let recovered: Vec<&Value> = recovered.iter().filter(|event| event["event"] == "recovered").collect();
    assert_eq!((recovered.len(), &recovered[0]["from"]), (1, &"checkpoint".into()));
    assert!(recovered[0]["step"].as_u64().is_some_and(|step| step % 7 == 0 && step > 0), "{recovered:?}");
}

/// `chaos` disturbs a run that somebody else has started, and reports what it cost.
#[test]
fn chaos_on_demand_is_reported() {
    let scene = Scene::new();
    let ended = scene.coord(&["chaos", "none"]).expect(64);
    assert!(ended.stderr.contains("none holds no run"), "{}", ended.stderr);
    let mut running = launch(&scene, "run", "3", &["digits_supcon", "train.epochs=100000"]);
    running.wait_for_steps("run", 3);
    let disturbing =
        scene.spawn("thanos-coord", "chaos", &["chaos", "run", "--every", "300ms", "--most", "3", "--seed", "7"], &[]);
    let told = disturbing.wait().expect(0).stdout;
    assert_eq!(told.matches("  killed worker-").count(), 3, "{told}");
    assert!(told.contains("3 kills and 0 stops in ") && told.contains("; the run goes on"), "{told}");
    running.interrupt().expect(75);
    scene.coord(&["chaos", "run"]).expect(65);
}
