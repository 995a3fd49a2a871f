//! Every key of the configuration acts, or is refused: for each one a change of it, and what that
//! changes in a run of two backbones and a probe on pictures of three classes, or the message that
//! refuses it. A key that only acts when something fails names the test that has it.

use image::{Rgb, RgbImage};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use thanos_tests::{Ran, Scene, lines, results, root};

/// As small as it can be while every key has something to act on.
const BASE: &str = "\
extends: image_folder_thanos
data: {dir: mine, side: 16, coarse_map: map.yaml}
model:
  encoder: {vit: {patch: 8, width: 16, depth: 2, heads: 2, mlp: 16}}
  decoder: {width: 8}
train: {epochs: 2, batch_size: 8}
transfer: {epochs: 2, batch_size: 8}
checkpoint: {every_seconds: null}
";

/// What shows that a changed key acts.
#[derive(Clone, Copy)]
enum Shown {
    /// The run is another one than without the change.
    Run,
    /// It is refused, with this part of the message.
    Refused(&'static str),
    /// Another test, or the code that reads it: in this file.
    In(&'static str),
}
use Shown::{In, Refused, Run};

/// A key, what else both runs have, and its change.
type Case = (&'static str, &'static [&'static str], &'static str, Shown);

const DATA: [Case; 14] = [
    ("name", &[], "other", Run),
    ("seed", &[], "1", Run),
    ("data.kind", &[], "cifar10", Refused("data.side: only `data.kind: image_folder`")),
    ("data.dir", &[], "broken", Run),
    ("data.side", &[], "32", Run),
    ("data.coarse_map", &[], "null", Run),
    ("data.train_folder", &[], "other", In("data/src/tests/class_folders.rs")),
    ("data.test_folder", &[], "other", In("data/src/tests/class_folders.rs")),
    ("data.exif_orientation", &[], "true", In("data/src/tests/pillow.rs")),
    ("data.on_bad_image", &["data.dir=broken"], "skip", Run),
    ("data.drop_last", &[], "true", Run),
    ("data.validation", &[], "test", Run),
    ("data.validation_fraction", &[], "0.3", Run),
    ("data.max_images", &[], "6", Run),
];

const VIEWS: [Case; 11] = [
    ("views.horizontal_flip", &[], "0", Run),
    ("views.crop_scale.0", &[], "0.9", Run),
    ("views.crop_scale.1", &[], "0.3", Run),
    ("views.crop_ratio.0", &[], "1", Run),
    ("views.crop_ratio.1", &[], "1", Run),
    ("views.jitter", &[], "0.1", Run),
    ("views.brightness", &[], "0", Run),
    ("views.contrast", &[], "0", Run),
    ("views.saturation", &[], "0", Run),
    ("views.hue", &[], "0", Run),
    ("views.grayscale", &[], "1", Run),
];

const MODEL: [Case; 10] = [
    ("model.encoder.vit.patch", &[], "4", Run),
    ("model.encoder.vit.width", &[], "32", Run),
    ("model.encoder.vit.depth", &[], "1", Run),
    ("model.encoder.vit.heads", &[], "4", Run),
    ("model.encoder.vit.mlp", &[], "32", Run),
    ("model.precision", &[], "bfloat16", Run),
    ("model.dropout", &[], "0.3", Run),
    ("model.embedding_dropout", &[], "0.3", Run),
    ("model.query_dropout", &[], "0.5", Run),
    ("model.decoder.width", &[], "16", Run),
];

const OBJECTIVE: [Case; 18] = [
    ("objective.cross_entropy", &[], "0.5", Run),
    ("objective.contrastive", &[], "0.5", Refused("name the backbone")),
    ("objective.reconstruction", &[], "0.5", Refused("backbones.cae.objective.reconstruction")),
    ("objective.attract", &[], "0.5", Run),
    ("objective.spread", &[], "0.5", Run),
    ("objective.temperature", &[], "0.3", Run),
    ("objective.similarity", &[], "dot", Run),
    ("objective.clamp_positive_logits", &[], "0.1", Run),
    ("objective.positives_in_denominator", &[], "true", Run),
    ("objective.both_directions", &[], "true", Run),
    ("backbones.cnce.objective.cross_entropy", &[], "0.5", Run),
    ("backbones.cnce.objective.contrastive", &[], "0.5", Run),
    ("backbones.cnce.objective.reconstruction", &[], "0.5", Run),
    ("backbones.cnce.objective.attract", &[], "0.5", Run),
    ("backbones.cnce.objective.spread", &[], "0.5", Run),
    ("backbones.cae.objective.contrastive", &[], "0.5", Run),
    ("backbones.cae.objective.reconstruction", &[], "0.5", Run),
    ("backbones.cae.objective.spread", &["backbones.cae.objective.contrastive=1"], "0.5", Run),
];

const TRAINING: [Case; 17] = [
    ("train.epochs", &[], "3", Run),
    ("train.batch_size", &[], "4", Run),
    ("train.max_steps", &[], "3", Run),
    ("train.learning_rate", &[], "1e-3", Run),
    ("train.weight_decay", &[], "0.5", Run),
    ("train.schedule", &[], "constant", Run),
    ("train.cosine_period", &[], "7", Run),
    ("train.evaluate_every", &[], "2", Run),
    ("train.select", &[], "last", Run),
    ("transfer.epochs", &[], "3", Run),
    ("transfer.batch_size", &[], "4", Run),
    ("transfer.learning_rate", &[], "1e-2", Run),
    ("transfer.weight_decay", &[], "0.5", Run),
    ("transfer.max_steps", &[], "3", Run),
    ("transfer.features", &[], "cached", Run),
    ("transfer.frozen_mode", &[], "train", Run),
    ("transfer.select", &[], "last", Run),
];

const NAMES: [Case; 7] = [
    ("backbones.0.name", &[], "x", Refused("no backbone is called `cnce`")),
    ("backbones.1.name", &[], "x", Refused("no backbone is called `cae`")),
    ("backbones.0.checkpoint", &[], "run-0/checkpoints/cnce/step-00000008", Run),
    ("backbones.1.checkpoint", &[], "run-0/checkpoints/cae/step-00000008", Run),
    ("rows.0.method", &[], "x", Run),
    ("rows.0.backbones.0", &[], "cae", Run),
    ("rows.0.backbones.1", &[], "cnce", Run),
];

const RUNNING: [Case; 29] = [
    ("checkpoint.every_seconds", &[], "0.001", Run),
    ("checkpoint.every_steps", &[], "2", Run),
    ("checkpoint.keep_last", &["checkpoint.every_steps=1"], "3", Run),
    ("checks.on_non_finite", &[], "skip", In("tests/checks.rs")),
    ("checks.compare_ranks_every", &[], "1", In("tests/checks.rs")),
    ("checks.on_divergence", &[], "repair", In("tests/checks.rs")),
    ("timeouts.rendezvous_seconds", &[], "1", In("coordinator/src/run/timeouts.rs")),
    ("timeouts.heartbeat_seconds", &[], "1", In("coordinator/src/run/timeouts.rs")),
    ("timeouts.hang_seconds", &[], "1", In("coordinator/src/run/timeouts.rs")),
    ("timeouts.progress_seconds", &[], "1", In("coordinator/src/run/timeouts.rs")),
    ("timeouts.drain_seconds", &[], "1", In("coordinator/src/run/timeouts.rs")),
    ("timeouts.reconnect_seconds", &[], "1", In("coordinator/src/run/timeouts.rs")),
    ("timeouts.collective_seconds", &[], "1", In("worker/src/run.rs")),
    ("timeouts.commit_seconds", &[], "1", In("coordinator/src/run/timeouts.rs")),
    ("timeouts.transfer_seconds", &[], "1", In("worker/src/session.rs")),
    ("timeouts.storage_seconds", &[], "1", In("tests/disks.rs")),
    ("timeouts.max_restarts", &[], "1", In("coordinator/src/run/timeouts.rs")),
    ("log.tensorboard", &[], "false", Run),
    ("log.csv", &[], "true", Run),
    ("log.embedding_images", &[], "0", Run),
    ("log.wandb.mode", &[], "offline", Run),
    ("log.wandb.project", &["wandb.mode=offline"], "x", In("tests/trackers.rs")),
    ("log.wandb.entity", &["wandb.mode=offline"], "x", In("tests/trackers.rs")),
    ("log.wandb.group", &["wandb.mode=offline"], "x", In("tests/trackers.rs")),
    ("log.wandb.tags", &["wandb.mode=offline"], "[x]", In("tests/trackers.rs")),
    ("log.mlflow.uri", &[], "http://127.0.0.1:1", In("tests/tracker_servers.rs")),
    (
        "log.mlflow.experiment",
        &["log.mlflow.uri=http://127.0.0.1:1"],
        "x",
        In("tests/tracker_servers.rs"),
    ),
    ("log.trackio.url", &[], "http://127.0.0.1:1", In("tests/tracker_servers.rs")),
    (
        "log.trackio.project",
        &["log.trackio.url=http://127.0.0.1:1"],
        "x",
        In("tests/tracker_servers.rs"),
    ),
];

fn cases() -> Vec<Case> {
    [&DATA[..], &VIEWS, &MODEL, &OBJECTIVE, &TRAINING, &NAMES, &RUNNING].concat()
}

/// Three classes of textured pictures: whatever a view does to one can be seen.
fn pictures(folder: &Path, shift: u32) {
    for (class, base) in
        [("red", [200, 40, 30]), ("yellow", [190, 180, 20]), ("blue", [30, 60, 210])]
    {
        for (split, pictures) in [("train", 10), ("test", 3)] {
            let folder = folder.join(split).join(class);
            fs::create_dir_all(&folder).expect("a folder");
            for picture in 0..pictures {
                let pixel = |x: u32, y: u32| {
                    let texture = (x * 7 + y * 13 + x * y * (picture + 1) + shift) % 40;
                    Rgb([0, 1, 2]
                        .map(|channel| base[channel] + (texture as u8) / (channel as u8 + 1)))
                };
                RgbImage::from_fn(40, 34, pixel)
                    .save(folder.join(format!("{picture}.png")))
                    .expect("a PNG");
            }
        }
    }
}

/// All that a run leaves that is not time or chance.
fn observed(ran: &Ran, run_dir: &Path) -> Value {
    if ran.code != Some(0) {
        return json!({ "code": ran.code });
    }
    let names = |folder: &Path| -> Vec<String> {
        let entries = fs::read_dir(folder).expect("a folder");
        let mut names: Vec<String> = entries
            .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    };
    let mut results = results(run_dir);
    let rows = results.as_object_mut().expect("a map");
    rows.remove("run");
    for list in ["rows", "backbones"] {
        for row in rows[list].as_array_mut().expect("a list") {
            let row = row.as_object_mut().expect("a map");
            row.retain(|key, _| !key.ends_with("seconds"));
        }
    }
    let kept: Vec<_> = names(&run_dir.join("checkpoints"))
        .into_iter()
        .map(|stage| json!([stage, names(&run_dir.join("checkpoints").join(&stage))]))
        .collect();
    let evaluated = lines(run_dir, "events.jsonl")
        .into_iter()
        .filter(|event| event["event"] == "evaluated")
        .count();
    json!({
        "steps": lines(run_dir, "steps.jsonl"),
        "results": results,
        "checkpoints": kept,
        "evaluated": evaluated,
        "files": names(run_dir),
        "report": names(&run_dir.join("report")),
    })
}

/// The dotted keys of a YAML document, as an override names them.
fn leaves(value: &serde_yaml::Value, key: &str, found: &mut Vec<String>) {
    let below = |part: &str| if key.is_empty() { part.to_owned() } else { format!("{key}.{part}") };
    match value {
        serde_yaml::Value::Mapping(entries) => {
            entries.iter().for_each(|(name, value)| {
                leaves(value, &below(name.as_str().expect("text")), found)
            });
        }
        serde_yaml::Value::Sequence(items) => {
            items
                .iter()
                .enumerate()
                .for_each(|(index, value)| leaves(value, &below(&index.to_string()), found));
        }
        _ => found.push(key.to_owned()),
    }
}

fn scene() -> Scene {
    let scene = Scene::new();
    pictures(&scene.path("mine"), 0);
    pictures(&scene.path("broken"), 1);
    fs::write(scene.path("broken/train/red/10.png"), b"no images").expect("a file");
    fs::write(scene.path("map.yaml"), "red: warm\nyellow: warm\nblue: cold\n").expect("a file");
    fs::write(scene.path("base.yaml"), BASE).expect("a file");
    scene
}

#[test]
fn every_key_has_a_case() {
    let shown = scene().coord(&["show", "base.yaml"]).expect(0).stdout;
    let mut keys = Vec::new();
    leaves(&serde_yaml::from_str(&shown).expect("YAML"), "", &mut keys);
    assert!(keys.len() > 70, "{keys:?}");
    let names = [("backbones.cnce.", "backbones.0."), ("backbones.cae.", "backbones.1.")];
    let numbered = |key: &str| {
        names.iter().fold(key.to_owned(), |key, (name, number)| key.replace(name, number))
    };
    let known: Vec<String> = cases().iter().map(|(key, ..)| numbered(key)).collect();
    for key in keys {
        assert!(known.contains(&key), "{key}: write a case of what it changes");
    }
}

#[test]
fn every_key_acts_or_is_refused() {
    let scene = scene();
    let mut runs = 0;
    let mut run = |overrides: &[&str]| {
        let name = format!("run-{runs}");
        runs += 1;
        let ran = scene.launch(&name, 1, &[&["base.yaml"], overrides].concat());
        observed(&ran, &scene.path(&name))
    };
    let base = run(&[]);
    assert!(base["steps"].as_array().is_some_and(|steps| steps.len() == 24), "{base}");
    assert_eq!(run(&[]), base, "what is compared does not change by itself");
    for (key, context, value, shown) in cases() {
        let change = format!("{key}={value}");
        match shown {
            Run => {
                let without = if context.is_empty() { base.clone() } else { run(context) };
                let with = run(&[context, &[&change]].concat());
                assert_ne!(with, without, "{change} changes nothing");
                let works = with["code"].is_null() || with["code"] == 65;
                assert!(works, "{change}: {with}");
            }
            Refused(part) => {
                let output = scene.coord(&["show", "base.yaml", &change]).expect(78).stderr;
                assert!(output.contains(part), "{change}: no `{part}` in {output}");
            }
            In(file) => {
                let text = fs::read_to_string(root().join(file)).expect(file);
                let name = key.rsplit('.').next().expect("a key");
                assert!(text.contains(name), "{key} is not in {file}");
            }
        }
    }
}
