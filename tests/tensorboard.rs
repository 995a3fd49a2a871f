//! TensorBoard's event files of a run whose coordinator is killed, or whose disk is full for a
//! while: its own reader, where it is installed, has every step of the ledger once. What is in the
//! files is tested next to their writer.

use crate::disks::BadDisk;
use crate::print_line;
use crate::recovery::launch;
use nix::sys::signal::Signal;
use std::fs;
use std::path::Path;
use std::process::Command;
use thanos_tests::processes::{coordinator, send};
use thanos_tests::{Scene, losses};

/// Prints the loss of every step, as a 32-bit float.
const READ: &str = "import sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
read = EventAccumulator(sys.argv[1], size_guidance={'scalars': 0})
read.Reload()
for event in read.Scalars('loss/total'):
    print(event.step, repr(event.value))";

#[test]
fn the_ledger_is_what_tensorboard_shows() {
    let scene = Scene::new();
    let target = ["digits_supcon", "rows=[]", "train.epochs=12"];
    let run = scene.path("run");
    // The files are switched off at first.
    let mut running =
        launch(&scene, "run", "2", &[&target[..], &["log.tensorboard=false"]].concat());
    running.wait_for_steps("run", 20);
    running.interrupt().expect(75);
    let arguments =
        ["launch", "--resume", "--run-dir", "run", "--nodes", "2", "--threads-per-worker", "1"];
    let mut running = scene.start(&[&arguments[..], &target, &["log.tensorboard=true"]].concat());
    for steps in [60, 110] {
        running.wait_for_steps("run", steps);
        send(coordinator(&run).expect("it lives"), Signal::SIGKILL);
    }
    running.wait().expect(0);
    let folder = run.join("tensorboard/supcon");
    let files = fs::read_dir(&folder).expect("a folder of the stage").count();
    assert_eq!(files, 3, "one a coordinator");
    assert_shows_ledger(&run);
}

/// The disk of the event files alone: the run continues meanwhile.
#[test]
fn steps_of_a_full_disk_are_written_when_there_is_space() {
    let scene = Scene::new();
    let (run, place) = (scene.path("run"), scene.path("run/tensorboard"));
    fs::create_dir_all(&place).expect("a folder");
    let Some(_disk) = BadDisk::mount(&place, "size=256k") else {
        print_line("skipped: no tmpfs can be mounted here (it needs root)");
        return;
    };
    let mut running = launch(&scene, "run", "2", &["digits_supcon", "rows=[]", "train.epochs=24"]);
    running.wait_until("an event file", || place.join("supcon").exists());
    let filler = place.join("filler");
    let mut file = fs::File::create(&filler).expect("a file");
    let error = std::io::copy(&mut std::io::repeat(7), &mut file).expect_err("it is small");
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    drop(file);
    running.wait_for_line("TensorBoard: ");
    let steps = losses(&run, "supcon").len();
    running.wait_for_steps("run", steps + 20);
    fs::remove_file(filler).expect("removed");
    let ran = running.wait().expect(0);
    assert!(ran.stderr.contains("No space left on device"), "{}", ran.stderr);
    assert!(ran.stderr.contains("TensorBoard: it has everything again"), "{}", ran.stderr);
    assert_eq!(
        fs::read_dir(place.join("supcon")).expect("a folder").count(),
        1,
        "the file continues"
    );
    assert_shows_ledger(&run);
}

/// Asks TensorBoard's reader, where it is installed.
fn assert_shows_ledger(run: &Path) {
    let folder = run.join("tensorboard/supcon");
    let cache = std::env::var("HOME").unwrap_or_default() + "/.cache/thanos/tensorboard/bin/python";
    let installed = |python: &&str| {
        let printed = Command::new(python).args(["-c", "import tensorboard"]).output();
        printed.is_ok_and(|printed| printed.status.success())
    };
    let Some(python) =
        [cache.as_str(), "/opt/tb/bin/python", "python3"].into_iter().find(installed)
    else {
        print_line("skipped: tensorboard (PyPI) is not installed, its reader was not asked");
        return;
    };
    let printed = Command::new(python).args(["-c", READ]).arg(&folder).output().expect("it runs");
    assert!(printed.status.success(), "{}", String::from_utf8_lossy(&printed.stderr));
    let printed = String::from_utf8_lossy(&printed.stdout).into_owned();
    let shown: Vec<(usize, f32)> = printed
        .lines()
        .map(|line| line.split_once(' ').expect("two numbers"))
        .map(|(step, loss)| {
            (step.parse().expect("a step"), loss.parse::<f64>().expect("a loss") as f32)
        })
        .collect();
    let ledger: Vec<(usize, f32)> =
        losses(run, "supcon").into_iter().map(|loss| loss as f32).enumerate().collect();
    assert_eq!(shown, ledger);
}
