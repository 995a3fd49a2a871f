//! A full disk costs checkpoints, not the run: a save that fails is told and given up, the last good checkpoint stays,
//! and only several in a row end the run, with exit code 74. The disk is a small tmpfs, mounted over a stage's folder
//! in the middle of a run, which needs root; without it these tests say that they were skipped.

use crate::tell;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use thanos_tests::{Running, Scene, checkpoints, lines, weights_sha256};

const TARGET: [&str; 4] = ["digits_supcon", "train.max_steps=400", "checkpoint.every_steps=40", "rows=[]"];

/// A disk with room for nothing; unmounted when this is dropped.
struct FullDisk(PathBuf);

impl FullDisk {
    fn mount(over: &Path) -> Option<Self> {
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=8k", "tmpfs"]).arg(over).output();
        mounted.is_ok_and(|output| output.status.success()).then(|| Self(over.into()))
    }
}

impl Drop for FullDisk {
    fn drop(&mut self) {
        // Detached: a writer may still be in it.
        _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// A run whose disk is full from its 50th step on; `None`: nothing can be mounted here.
fn start(scene: &Scene) -> Option<(Running, FullDisk)> {
    let arguments = ["launch", "--nodes", "2", "--threads-per-worker", "1", "--run-dir", "run"];
    let mut running = scene.start(&[&arguments[..], &TARGET].concat());
    running.wait_for_steps("run", 50);
    let stage = scene.path("run/checkpoints/supcon");
    let Some(disk) = FullDisk::mount(&stage) else {
        tell("skipped: no tmpfs can be mounted here (it needs root)");
        return None;
    };
    Some((running, disk))
}

fn failed_saves(scene: &Scene) -> usize {
    lines(&scene.path("run"), "events.jsonl").iter().filter(|event| event["event"] == "checkpoint_failed").count()
}

#[test]
fn a_save_that_fails_is_given_up_and_the_run_goes_on() {
    let scene = Scene::new();
    scene.launch("whole", 2, &TARGET).expect(0);
    let Some((running, disk)) = start(&scene) else { return };
    let started = Instant::now();
    while failed_saves(&scene) == 0 {
        assert!(started.elapsed() < Duration::from_secs(60), "no save has failed");
        std::thread::sleep(Duration::from_millis(2));
    }
    drop(disk);
    let ran = running.wait().expect(0);
    assert!(ran.stderr.contains("of stage supcon was not saved: "), "{}", ran.stderr);
    assert!(ran.stderr.contains("No space left on device"), "{}", ran.stderr);
    assert_eq!(weights_sha256(&scene.path("whole"), "supcon"), weights_sha256(&scene.path("run"), "supcon"));
    let unfinished = std::fs::read_dir(scene.path("run/checkpoints/supcon")).expect("a folder");
    let unfinished = unfinished
        .filter(|entry| entry.as_ref().is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with('.')));
    assert_eq!(unfinished.count(), 0);
}

#[test]
fn a_disk_that_stays_full_ends_the_run_with_the_last_good_checkpoint() {
    let scene = Scene::new();
    let Some((running, disk)) = start(&scene) else { return };
    let ran = running.wait().expect(74);
    assert!(ran.stderr.contains("3 saves in a row failed"), "{}", ran.stderr);
    assert_eq!(failed_saves(&scene), 3);
    drop(disk);
    let last = checkpoints(&scene.path("run"), "supcon").pop().expect("a checkpoint");
    assert!(last.ends_with("step-00000040"), "{}", last.display());
    scene.coord(&["launch", "--resume", "--nodes", "2", "--run-dir", "run"]).expect(0);
}
