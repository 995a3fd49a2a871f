//! Which epoch's weights a stage keeps: the best by something that is trained, or the last. And
//! what a stage's checkpoint must hold to continue to the same bits: everything that changes, which
//! in a probe may be more than its head.

use crate::recovery::{assert_equal, launch};
use nix::sys::signal::Signal;
use safetensors::SafeTensors;
use serde_json::Value;
use std::fs;
use std::path::Path;
use thanos_tests::processes::{send, workers};
use thanos_tests::{Scene, checkpoints, lines, losses, results, weights_sha256};

/// A ResNet-18 on images of 8 x 8, and a probe on it as the published code trains them: batch
/// statistics move on.
const MOVING: [&str; 7] = [
    "digits_cnce",
    "model.encoder={resnet18: {stem: imagenet}}",
    "train.max_steps=2",
    "transfer.features=augmented",
    "transfer.frozen_mode=train",
    "transfer.epochs=100",
    "checkpoint.every_steps=10",
];

/// The evaluations of a stage: epoch, accuracy, whether it was kept, and what was measured.
fn evaluations(run_dir: &Path, stage: &str) -> Vec<(u64, f64, bool, String)> {
    let events = lines(run_dir, "events.jsonl");
    let evaluated =
        events.iter().filter(|event| event["event"] == "evaluated" && event["stage"] == stage);
    let read = |event: &Value| {
        Some((
            event["epoch"].as_u64()?,
            event["validation_accuracy"].as_f64()?,
            event["best"].as_bool()?,
            event["measure"].as_str()?.to_owned(),
        ))
    };
    evaluated.map(|event| read(event).expect("a complete event")).collect()
}

fn weights(run_dir: &Path, stage: &str, name: &str) -> Vec<u8> {
    fs::read(checkpoints(run_dir, stage).pop().expect("a checkpoint").join(name)).expect(name)
}

/// Without cross-entropy the coarse head stays at its random start: its accuracy says nothing about
/// an epoch.
#[test]
fn an_untrained_head_selects_no_epoch() {
    let scene = Scene::new();
    let target =
        ["digits_supcon", "objective.cross_entropy=0", "train.epochs=4", "transfer.max_steps=2"];
    scene.launch("run", 2, &target).expect(0);
    let run = scene.path("run");
    let evaluated = evaluations(&run, "supcon");
    assert_eq!(evaluated.len(), 4);
    assert!(evaluated.iter().all(|(.., measure)| measure == "coarse_knn"), "{evaluated:?}");
    let best = evaluated.iter().map(|(_, accuracy, ..)| *accuracy).fold(0.0, f64::max);
    // Two coarse classes: a head that is not trained is right about half of the time, neighbours of
    // trained embeddings far more often.
    assert!(best > 0.75, "{evaluated:?}");
    let kept = evaluated.iter().rev().find(|(_, _, kept, _)| *kept).expect("one is kept");
    assert_eq!(kept.1, best, "{evaluated:?}");
    let (row, backbone) = (&results(&run)["rows"][0], &results(&run)["backbones"][0]);
    assert_eq!(
        (&row["selected_by"], &backbone["selected_by"]),
        (&"fine_head".into(), &"coarse_knn".into())
    );
    assert_eq!(backbone["coarse_validation_accuracy"], (best * 1e5).round() / 1e3);
}

#[test]
fn the_last_epoch_can_be_kept() {
    let scene = Scene::new();
    let target = [
        "digits_cnce",
        "train.epochs=9",
        "train.select=last",
        "transfer.epochs=3",
        "transfer.select=last",
    ];
    scene.launch("run", 1, &target).expect(0);
    let run = scene.path("run");
    for (stage, measure) in [("cnce", "coarse_head"), ("transfer_cnce", "fine_head")] {
        let evaluated = evaluations(&run, stage);
        assert!(evaluated.iter().all(|(_, _, kept, by)| *kept && by == measure), "{evaluated:?}");
    }
    assert_eq!(results(&run)["backbones"][0]["selected_by"], "last_epoch");
    assert_eq!(
        weights(&run, "cnce", "model.safetensors"),
        weights(&run, "cnce", "best.safetensors")
    );
    let accuracies: Vec<f64> =
        evaluations(&run, "cnce").iter().map(|(_, accuracy, ..)| *accuracy).collect();
    let best = accuracies.iter().copied().fold(0.0, f64::max);
    assert!(
        accuracies.iter().position(|accuracy| *accuracy == best) < Some(8),
        "the best epoch is an earlier one"
    );
}

/// The probe ends, is to make more steps, and is as one that was never interrupted: the encoders'
/// moving statistics, which its steps change, are a part of its state.
#[test]
fn a_probe_with_moving_statistics_resumes_bit_identically() {
    let scene = Scene::new();
    scene.launch("whole", 2, &[&MOVING[..], &["transfer.max_steps=22"]].concat()).expect(0);
    scene.launch("parts", 2, &[&MOVING[..], &["transfer.max_steps=11"]].concat()).expect(0);
    let resume = ["launch", "--resume", "--run-dir", "parts", "transfer.max_steps=22"];
    scene.coord(&resume).expect(0);
    let (whole, parts) = (scene.path("whole"), scene.path("parts"));
    assert_eq!(losses(&whole, "transfer_cnce"), losses(&parts, "transfer_cnce"));
    assert_eq!(weights_sha256(&whole, "transfer_cnce"), weights_sha256(&parts, "transfer_cnce"));
    let fine = |run_dir| results(run_dir)["rows"][0]["fine_test_accuracy"].clone();
    assert_eq!(fine(&whole), fine(&parts));
    let [first, last] =
        ["cnce", "transfer_cnce"].map(|stage| weights(&whole, stage, "model.safetensors"));
    let [first, last] =
        [&first, &last].map(|bytes| SafeTensors::deserialize(bytes).expect("safetensors"));
    let moved = last.tensor("encoder.0.bn1.running_mean").expect("it is saved");
    assert_ne!(
        moved.data(),
        first.tensor("bn1.running_mean").expect("it is saved").data(),
        "they do move"
    );
}

/// A worker is killed in the probe's steps: the one that replaces it takes the statistics over from
/// the others.
#[test]
fn a_worker_takes_over_moving_statistics() {
    let scene = Scene::new();
    let target =
        [&MOVING[..], &["transfer.max_steps=40", "checks.compare_ranks_every=10"]].concat();
    launch(&scene, "whole", "2", &target).wait().expect(0);
    let mut running = launch(&scene, "disturbed", "2", &target);
    running.wait_for_steps("disturbed", 2 + 14);
    send(workers(&scene.path("disturbed"))["worker-0"], Signal::SIGKILL);
    running.wait().expect(0);
    assert_equal(&scene, &scene.path("whole"), &scene.path("disturbed"), &["transfer_cnce"]);
}
