//! Checkpoints are what a PyTorch user expects: safetensors files with the names of the published
//! code, which load as a backbone and come out again unchanged. The published names are those of
//! the golden file `vit_gray28`.

use crate::evaluation::{backbone, read};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use tch::{Kind, Tensor};
use thanos_configs::Plan;
use thanos_tests::{Scene, checkpoints, idx, results, root};
use thanos_worker::load_weights;
use thanos_worker::model::Mode;

/// The shape of the golden file's encoder, as in its metadata.
const ENCODER: &str = "model.encoder.vit={width: 32, depth: 2, heads: 4, mlp: 64, patch: 4}";

/// The weights of the published code, as one file with the published names.
fn published() -> Vec<u8> {
    let bytes =
        fs::read(root().join("tests/parity/vit_gray28.safetensors")).expect("the golden file");
    let file = SafeTensors::deserialize(&bytes).expect("safetensors");
    let weights: Vec<(String, TensorView<'_>)> = file
        .tensors()
        .into_iter()
        .filter_map(|(name, view)| Some((name.strip_prefix("weights/")?.to_owned(), view)))
        .collect();
    assert!(weights.len() > 20, "{} weights", weights.len());
    safetensors::serialize(weights, None).expect("a file")
}

fn names(bytes: &[u8]) -> BTreeSet<(String, Vec<usize>)> {
    let file = SafeTensors::deserialize(bytes).expect("safetensors");
    file.tensors().into_iter().map(|(name, view)| (name, view.shape().to_vec())).collect()
}

#[test]
fn a_checkpoint_has_the_published_names_and_published_weights_load() {
    let scene = Scene::new();
    idx::write(&scene.path("idx"), 120, 30);
    let dir = format!("data.dir={}", scene.path("idx").display());
    fs::write(scene.path("published.safetensors"), published()).expect("written");

    let short =
        ["train.max_steps=2", "transfer.epochs=1", "transfer.features=cached", &dir, ENCODER];
    scene.launch("trained", 1, &[&["mnist_cnce"][..], &short].concat()).expect(0);
    let last = checkpoints(&scene.path("trained"), "cnce").pop().expect("a checkpoint");
    for name in ["model.safetensors", "best.safetensors"] {
        assert_eq!(names(&fs::read(last.join(name)).expect(name)), names(&published()), "{name}");
    }

    // A transfer alone, from the published file and from the run before; the checkpoint folder
    // itself will do.
    let folder = last.display().to_string();
    for (run_dir, path) in [("from_file", "published.safetensors"), ("from_run", &folder)] {
        let checkpoint = format!("backbones.0.checkpoint={path}");
        let target = [&["mnist_cnce", &checkpoint][..], &short].concat();
        scene.launch(run_dir, 2, &target).expect(0);
        let results = results(&scene.path(run_dir));
        assert_eq!(results["backbones"], serde_json::json!([]), "nothing but the probe is trained");
        assert_eq!(results["rows"][0]["backbones"], serde_json::json!(["cnce"]));
    }
    // The same backbone gives the same coarse accuracy as where it was trained.
    let coarse =
        |run_dir: &str| results(&scene.path(run_dir))["rows"][0]["coarse_test_accuracy"].clone();
    assert_eq!(coarse("from_run"), coarse("trained"));
}

#[test]
fn weights_that_do_not_fit_are_refused_by_name() {
    let scene = Scene::new();
    fs::write(scene.path("published.safetensors"), published()).expect("written");
    let ran = scene
        .launch("run", 1, &["digits_cnce", "backbones.0.checkpoint=published.safetensors"])
        .expect(65);
    for part in ["published.safetensors", "has shape", "expected"] {
        assert!(ran.stderr.contains(part), "no `{part}` in {}", ran.stderr);
    }
}

/// The same tensors with another record in the metadata.
fn rewrite(bytes: &[u8], record: impl Fn(String) -> String) -> Vec<u8> {
    let (_, header) = SafeTensors::read_metadata(bytes).expect("safetensors");
    let entries = header.metadata().clone().expect("it has a record");
    let entries = entries.into_iter().map(|(key, value)| (key, record(value))).collect();
    safetensors::serialize(
        SafeTensors::deserialize(bytes).expect("safetensors").tensors(),
        Some(entries),
    )
    .expect("a file")
}

/// The number of heads changes no shape, and everything that an encoder computes.
#[test]
fn weights_with_another_number_of_heads_are_refused_by_key() {
    let scene = Scene::new();
    scene.launch("trained", 1, &["digits_cnce", "train.max_steps=2", "rows=[]"]).expect(0);
    let best = checkpoints(&scene.path("trained"), "cnce")
        .pop()
        .expect("a checkpoint")
        .join("best.safetensors");
    let bytes = fs::read(&best).expect("weights");
    assert_eq!(
        rewrite(&bytes, |record| record),
        bytes,
        "what a run saves is what safetensors writes"
    );
    fs::write(scene.path("w.safetensors"), bytes).expect("written");
    let target = ["digits_cnce", "backbones.0.checkpoint=w.safetensors", "transfer.max_steps=2"];
    let ran = scene
        .launch("other", 1, &[&target[..], &["model.encoder.vit.heads=2"]].concat())
        .expect(65);
    for part in
        ["w.safetensors", "model.encoder.vit.heads: found 4 in the file, expected 2 as in this run"]
    {
        assert!(ran.stderr.contains(part), "no `{part}` in {}", ran.stderr);
    }
    let ran = scene.launch("same", 1, &target).expect(0);
    assert!(!ran.stderr.contains("records no architecture"), "{}", ran.stderr);
}

/// A probe on cached features is trained on standardised ones; what it saves takes the encoder's
/// own features.
#[test]
fn the_weights_of_a_cached_probe_work_by_themselves() {
    let scene = Scene::new();
    let target = [
        "digits_cnce",
        "train.max_steps=30",
        "transfer.max_steps=60",
        "transfer.features=cached",
        "model.precision=float64",
    ];
    scene.launch("run", 2, &target).expect(0);
    let run_dir = scene.path("run");
    let text = fs::read_to_string(run_dir.join("config.yaml")).expect("config.yaml");
    let plan = Plan::from_file(&text, "config.yaml", &[]).expect("valid");
    let packed = scene.coord(&["data", "pack", "digits"]).expect(0).stdout;
    let test =
        packed.lines().filter_map(|line| line.rsplit(", ").next()).nth(1).expect("two packs");
    let (images, labels) = read(Path::new(test), &plan, "fine");
    let [encoder, probe] = ["cnce", "transfer_cnce"]
        .map(|stage| checkpoints(&run_dir, stage).pop().expect("a checkpoint"));
    let _no_graph = tch::no_grad_guard();
    let encoder = backbone(&plan, &encoder).encoder;
    // [n, d]
    let features = encoder.forward(&images.to_kind(Kind::Double), Mode::Eval).expect("features");
    let logits = |file: &str| {
        let weights = load_weights(&probe.join(file)).expect(file);
        features.linear(&weights["cls.weight"], Some(&weights["cls.bias"]))
    };
    let count = |logits: &Tensor| {
        logits.argmax(1, false).eq_tensor(&labels).sum(Kind::Int64).int64_value(&[])
    };
    let percent = |right: i64| (right as f64 / labels.size()[0] as f64 * 1e5).round() / 1e3;
    assert_eq!(
        results(&run_dir)["rows"][0]["fine_test_accuracy"],
        percent(count(&logits("best.safetensors")))
    );
    // In the state, the standardisation is apart.
    let state = load_weights(&probe.join("best_state.safetensors")).expect("the state");
    let standardised = (&features - &state["features.mean"]) / &state["features.deviation"];
    let expected = standardised.linear(&state["cls.weight"], Some(&state["cls.bias"]));
    let error = (logits("best.safetensors") - expected).abs().max().double_value(&[]);
    assert!(error < 1e-10, "{error}");
}
