//! A disk that is full or read-only costs checkpoints, not the run: a save that fails is reported
//! and given up, the last good checkpoint stays, and only several in a row end the run, with exit
//! code 74. A slow one costs nothing. The disk is a small tmpfs, mounted over a stage's folder in
//! the middle of a run, which needs root; without it these tests say that they were skipped.

use crate::print_line;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use thanos_tests::{Running, Scene, checkpoints, lines, weights_sha256};

const TARGET: [&str; 4] =
    ["digits_supcon", "train.max_steps=400", "checkpoint.every_steps=40", "rows=[]"];

/// A disk with room for nothing, and one that takes nothing.
pub(crate) const FULL: &str = "size=8k";
const READ_ONLY: &str = "ro";

/// A bad disk; unmounted when this is dropped.
pub(crate) struct BadDisk(PathBuf);

impl BadDisk {
    pub(crate) fn mount(over: &Path, options: &str) -> Option<Self> {
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(over).output();
        mounted.is_ok_and(|output| output.status.success()).then(|| Self(over.into()))
    }
}

impl Drop for BadDisk {
    fn drop(&mut self) {
        // Detached: a writer may still be in it.
        _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// A run whose disk is bad from its 50th step on; `None`: nothing can be mounted here.
fn start(scene: &Scene, options: &str, more: &[&str]) -> Option<(Running, BadDisk)> {
    let arguments = ["launch", "--nodes", "2", "--threads-per-worker", "1", "--run-dir", "run"];
    let mut running = scene.start(&[&arguments[..], &TARGET, more].concat());
    running.wait_for_steps("run", 50);
    let stage = scene.path("run/checkpoints/supcon");
    let Some(disk) = BadDisk::mount(&stage, options) else {
        print_line("skipped: no tmpfs can be mounted here (it needs root)");
        return None;
    };
    Some((running, disk))
}

fn failed_saves(scene: &Scene) -> usize {
    lines(&scene.path("run"), "events.jsonl")
        .iter()
        .filter(|event| event["event"] == "checkpoint_failed")
        .count()
}

fn a_save_that_fails_is_given_up(options: &str, reason: &str) {
    let scene = Scene::new();
    scene.launch("whole", 2, &TARGET).expect(0);
    let Some((running, disk)) = start(&scene, options, &[]) else { return };
    let started = Instant::now();
    while failed_saves(&scene) == 0 {
        assert!(started.elapsed() < Duration::from_secs(60), "no save has failed");
        std::thread::sleep(Duration::from_millis(2));
    }
    drop(disk);
    let ran = running.wait().expect(0);
    assert!(ran.stderr.contains("checkpoint save failed: step "), "{}", ran.stderr);
    assert!(ran.stderr.contains(reason), "{}", ran.stderr);
    assert_eq!(
        weights_sha256(&scene.path("whole"), "supcon"),
        weights_sha256(&scene.path("run"), "supcon")
    );
    let unfinished = std::fs::read_dir(scene.path("run/checkpoints/supcon")).expect("a folder");
    let unfinished = unfinished.filter(|entry| {
        entry.as_ref().is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with('.'))
    });
    assert_eq!(unfinished.count(), 0);
}

#[test]
fn a_full_disk_costs_a_checkpoint_and_the_run_continues() {
    a_save_that_fails_is_given_up(FULL, "No space left on device");
}

#[test]
fn a_read_only_disk_costs_a_checkpoint_and_the_run_continues() {
    a_save_that_fails_is_given_up(READ_ONLY, "Read-only file system");
}

/// Each of a checkpoint's files takes a second to be written, and steps continue meanwhile.
#[test]
fn a_slow_disk_makes_no_step_wait() {
    let scene = Scene::new();
    let arguments = ["launch", "--nodes", "2", "--threads-per-worker", "1", "--run-dir", "run"];
    let target = ["digits_supcon", "rows=[]", "train.epochs=100000", "checkpoint.every_steps=300"];
    let variables = [("FAILPOINTS", "save-written=sleep(1000)")];
    let mut running = scene.start_with(&[&arguments[..], &target].concat(), &variables);
    let run = scene.path("run");
    running.wait_for_steps("run", 300);
    let began = Instant::now();
    running.wait_until("a checkpoint", || run.join("LATEST").exists());
    let (took, steps) = (began.elapsed(), lines(&run, "steps.jsonl").len() - 300);
    print_line(&format!("a save took {took:.1?}, and {steps} steps were made meanwhile"));
    assert!(took >= Duration::from_secs(2) && steps > 50, "{took:?}, {steps} steps");
    // Its last checkpoint is as slow.
    running.interrupt().expect(75);
}

#[test]
fn a_disk_that_stays_full_ends_the_run_with_the_last_good_checkpoint() {
    let scene = Scene::new();
    let Some((running, disk)) = start(&scene, FULL, &["timeouts.storage_seconds=2"]) else {
        return;
    };
    let ran = running.wait().expect(74);
    assert!(ran.stderr.contains("3 saves in a row failed"), "{}", ran.stderr);
    // And the last one, of what the other worker held when the first gave up.
    assert!(failed_saves(&scene) > 3);
    drop(disk);
    let last = checkpoints(&scene.path("run"), "supcon").pop().expect("a checkpoint");
    assert!(last.ends_with("step-00000040"), "{}", last.display());
    scene.coord(&["launch", "--resume", "--nodes", "2", "--run-dir", "run"]).expect(0);
}

/// A run whose whole run directory is on a small disk of its own; `None`: nothing can be mounted
/// here.
fn start_on_small_disk(scene: &Scene, target: &[&str]) -> Option<(Running, BadDisk)> {
    let place = scene.path("small");
    std::fs::create_dir(&place).expect("a folder");
    let Some(disk) = BadDisk::mount(&place, "size=24m") else {
        print_line("skipped: no tmpfs can be mounted here (it needs root)");
        return None;
    };
    let arguments =
        ["launch", "--nodes", "2", "--threads-per-worker", "1", "--run-dir", "small/run"];
    let mut running = scene.start(&[&arguments[..], target].concat());
    running.wait_for_steps("small/run", 50);
    Some((running, disk))
}

/// Takes all the room that there is.
fn fill(scene: &Scene) -> PathBuf {
    let filler = scene.path("small/filler");
    let mut file = std::fs::File::create(&filler).expect("a file");
    let error = std::io::copy(&mut std::io::repeat(7), &mut file).expect_err("it is small");
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    filler
}

const SMALL: [&str; 4] =
    ["digits_supcon", "train.max_steps=300", "checkpoint.every_steps=1000", "rows=[]"];

/// The ledger itself cannot be written: training pauses until it can, and nothing is lost.
#[test]
fn a_full_run_directory_pauses_the_run() {
    let scene = Scene::new();
    scene.launch("whole", 2, &SMALL).expect(0);
    let Some((mut running, _disk)) = start_on_small_disk(&scene, &SMALL) else { return };
    let filler = fill(&scene);
    running.wait_for_line("cannot write");
    // Training has come to its pause, and goes no further.
    let steps = || lines(&scene.path("small/run"), "steps.jsonl").len();
    std::thread::sleep(Duration::from_secs(2));
    let paused = steps();
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(steps(), paused);
    std::fs::remove_file(filler).expect("removed");
    let ran = running.wait().expect(0);
    assert!(ran.stderr.contains("the run directory can be written again"), "{}", ran.stderr);
    crate::recovery::assert_equal(
        &scene,
        &scene.path("whole"),
        &scene.path("small/run"),
        &["supcon"],
    );
    let lost = lines(&scene.path("small/run"), "events.jsonl")
        .iter()
        .filter(|event| event["event"] == "lost")
        .count();
    assert_eq!(lost, 0, "no worker was terminated meanwhile");
}

/// It stays full: the run ends with 74, its workers leave, and a resume continues from what is
/// there.
#[test]
fn a_run_directory_that_stays_full_ends_the_run() {
    let scene = Scene::new();
    let target = [&SMALL[..], &["timeouts.storage_seconds=3"]].concat();
    let Some((mut running, _disk)) = start_on_small_disk(&scene, &target) else { return };
    running.wait_until("a step", || lines(&scene.path("small/run"), "steps.jsonl").len() > 60);
    let filler = fill(&scene);
    let ran = running.wait().expect(74);
    assert!(
        ran.stderr.contains("the run directory could not be written for 3s: cannot write "),
        "{}",
        ran.stderr
    );
    std::fs::remove_file(filler).expect("removed");
    scene.coord(&["launch", "--resume", "--nodes", "2", "--run-dir", "small/run"]).expect(0);
}

/// Each sync of the ledger takes seconds, and the first one, after which workers are sent their
/// generation, longer than a worker may be silent: no worker is terminated, and steps continue.
#[test]
fn a_slow_sync_makes_no_worker_hang() {
    let scene = Scene::new();
    let arguments = ["launch", "--nodes", "2", "--threads-per-worker", "1", "--run-dir", "run"];
    let variables = [("FAILPOINTS", "ledger-sync=1*sleep(4000)->sleep(1500)")];
    let target = ["digits_supcon", "train.max_steps=120", "checkpoint.every_steps=40", "rows=[]"];
    let ran = scene.start_with(&[&arguments[..], &target].concat(), &variables).wait().expect(0);
    let lost = lines(&scene.path("run"), "events.jsonl")
        .iter()
        .filter(|event| event["event"] == "lost")
        .count();
    assert_eq!(lost, 0, "{}", ran.stderr);
}
