//! Stopped and resumed is not stopped, to the bit: two workers, dropout on, stopped by SIGTERM at
//! steps drawn from a seed, in a backbone and in a transfer.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::path::Path;
use thanos_configs::SplitMix64;
use thanos_tests::{Scene, checkpoints, lines, losses, results, weights_sha256};

const TARGET: [&str; 4] =
    ["digits_cae", "train.max_steps=40", "transfer.epochs=40", "model.dropout=0.1"];
const FLOAT32: &str = "model.precision=float32";
const BFLOAT16: &str = "model.precision=bfloat16";
const STEPS_OF_BACKBONE: usize = 40;
const STEPS: usize = STEPS_OF_BACKBONE + 40 * 11;

/// Launches with two workers in a precision, or resumes with `None`; SIGTERM when the ledger has
/// `stop_at` lines. True: it ended by itself.
fn run(scene: &Scene, run_dir: &str, precision: Option<&str>, stop_at: Option<usize>) -> bool {
    let mut arguments =
        vec!["launch", "--nodes", "2", "--threads-per-worker", "1", "--run-dir", run_dir];
    match precision {
        None => arguments.push("--resume"),
        Some(precision) => {
            arguments.extend(TARGET);
            arguments.push(precision);
        }
    }
    let mut running = scene.start(&arguments);
    let Some(lines) = stop_at else {
        running.wait().expect(0);
        return true;
    };
    running.wait_for_steps(run_dir, lines);
    kill(Pid::from_raw(running.pid()), Signal::SIGTERM).expect("it is running");
    let ran = running.wait();
    if ran.code == Some(0) {
        return true;
    }
    let ran = ran.expect(75);
    assert!(
        ran.stderr.contains("resume with: thanos-coord launch --resume --run-dir"),
        "{}",
        ran.stderr
    );
    false
}

#[test]
fn stopped_and_resumed_is_not_stopped_to_the_bit() {
    let scene = Scene::new();
    run(&scene, "whole", Some(FLOAT32), None);
    let mut chance = SplitMix64::new(11);
    // In the first and in the second half of the backbone, not at an epoch's end, and somewhere in
    // the transfer.
    let stops = [
        3 + chance.below(8) as usize,
        STEPS_OF_BACKBONE / 2 + 5 + chance.below(8) as usize,
        STEPS_OF_BACKBONE + 60 + chance.below(100) as usize,
    ];
    let mut ended = run(&scene, "parts", Some(FLOAT32), Some(stops[0]));
    for stop in [Some(stops[1]), Some(stops[2]), None] {
        assert!(!ended, "it ended before it was stopped at {stops:?}");
        ended = run(&scene, "parts", None, stop);
    }
    let (whole, parts) = (scene.path("whole"), scene.path("parts"));
    for stage in ["cae", "transfer_cae"] {
        assert_eq!(weights_sha256(&whole, stage), weights_sha256(&parts, stage), "stage {stage}");
    }
    let ledger = |run_dir| {
        let mut steps = lines(run_dir, "steps.jsonl");
        for step in &mut steps {
            step["generation"] = 0.into();
        }
        steps
    };
    assert_eq!(ledger(&whole).len(), STEPS);
    assert_eq!(ledger(&whole), ledger(&parts));
    let accuracies = |run_dir| {
        let mut row = results(run_dir)["rows"][0].clone();
        row["seconds"] = 0.into();
        row["data_wait_seconds"] = 0.into();
        row
    };
    assert_eq!(accuracies(&whole), accuracies(&parts));
    let generations: Vec<u64> = lines(&parts, "steps.jsonl")
        .iter()
        .map(|line| line["generation"].as_u64().expect("a number"))
        .collect();
    assert!(generations.is_sorted() && generations.last() == Some(&4), "{:?}", generations.last());
}

#[test]
fn stopped_and_resumed_is_not_stopped_to_the_bit_in_bfloat16() {
    let scene = Scene::new();
    run(&scene, "whole", Some(BFLOAT16), None);
    assert!(!run(&scene, "parts", Some(BFLOAT16), Some(9)), "it ended before it was stopped");
    run(&scene, "parts", None, None);
    let (whole, parts) = (scene.path("whole"), scene.path("parts"));
    for stage in ["cae", "transfer_cae"] {
        assert_eq!(weights_sha256(&whole, stage), weights_sha256(&parts, stage), "stage {stage}");
    }
    assert_eq!(losses(&whole, "cae"), losses(&parts, "cae"));
}

/// Factors of 8 bits: the first losses are those of float32 to their resolution, and are not the
/// same.
#[test]
fn bfloat16_is_near_float32() {
    let scene = Scene::new();
    for precision in [FLOAT32, BFLOAT16] {
        scene
            .launch(
                precision,
                1,
                &["digits_thanos", "train.max_steps=5", "transfer.max_steps=1", precision],
            )
            .expect(0);
    }
    for stage in ["cnce", "cae"] {
        let [exact, rounded] =
            [FLOAT32, BFLOAT16].map(|precision| losses(&scene.path(precision), stage));
        assert_eq!((exact.len(), rounded.len()), (5, 5));
        assert_ne!(exact, rounded, "{stage}: nothing was rounded");
        let apart = ((exact[0] - rounded[0]) / exact[0]).abs();
        assert!(apart < 5e-3, "{stage}: the first losses are {} and {}", exact[0], rounded[0]);
    }
}

fn spoil(file: &Path) {
    let mut bytes = fs::read(file).expect("a file");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(file, bytes).expect("written");
}

/// One flipped bit in the newest checkpoint: the one before is used, and the end is the same. In
/// all of them: no silent start over.
#[test]
fn a_corrupt_checkpoint_is_skipped_and_no_valid_one_is_an_error() {
    let scene = Scene::new();
    let target = ["digits_cnce", "train.max_steps=6", "checkpoint.every_steps=2", "rows=[]"];
    scene.launch("run", 2, &target).expect(0);
    let run_dir = scene.path("run");
    let (weights, steps) = (weights_sha256(&run_dir, "cnce"), losses(&run_dir, "cnce"));
    let resume =
        ["launch", "--nodes", "2", "--threads-per-worker", "1", "--resume", "--run-dir", "run"];

    spoil(&checkpoints(&run_dir, "cnce").pop().expect("a checkpoint").join("model.safetensors"));
    let ran = scene.coord(&resume).expect(0);
    assert!(ran.stderr.contains("step-00000006: model.safetensors: its SHA-256"), "{}", ran.stderr);
    assert_eq!((weights_sha256(&run_dir, "cnce"), losses(&run_dir, "cnce")), (weights, steps));

    for checkpoint in checkpoints(&run_dir, "cnce") {
        spoil(&checkpoint.join("model.safetensors"));
    }
    let ran = scene.coord(&resume).expect(65);
    for part in ["no checkpoint of run is valid", "model.safetensors", "choose another --run-dir"] {
        assert!(ran.stderr.contains(part), "no `{part}` in {}", ran.stderr);
    }
}
