//! Checkpoints are what a PyTorch user expects: safetensors files with the names of the published code, which load as a
//! backbone and come out again unchanged. The published names are those of the golden file `vit_gray28`.

use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use std::collections::BTreeSet;
use std::fs;
use thanos_tests::{Scene, checkpoints, idx, results, root};

/// The shape of the golden file's encoder, as in its metadata.
const ENCODER: &str = "model.encoder.vit={width: 32, depth: 2, heads: 4, mlp: 64, patch: 4}";

/// The weights of the published code, as one file with the published names.
fn published() -> Vec<u8> {
    let bytes = fs::read(root().join("tests/parity/vit_gray28.safetensors")).expect("the golden file");
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

    let short = ["train.max_steps=2", "transfer.epochs=1", "transfer.features=cached", &dir, ENCODER];
    scene.launch("trained", 1, &[&["mnist_cnce"][..], &short].concat()).expect(0);
    let last = checkpoints(&scene.path("trained"), "cnce").pop().expect("a checkpoint");
    for name in ["model.safetensors", "best.safetensors"] {
        assert_eq!(names(&fs::read(last.join(name)).expect(name)), names(&published()), "{name}");
    }

    // A transfer alone, from the published file and from the run before; the checkpoint folder itself will do.
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
    let coarse = |run_dir: &str| results(&scene.path(run_dir))["rows"][0]["coarse_test_accuracy"].clone();
    assert_eq!(coarse("from_run"), coarse("trained"));
}

#[test]
fn weights_that_do_not_fit_are_refused_by_name() {
    let scene = Scene::new();
    fs::write(scene.path("published.safetensors"), published()).expect("written");
    let ran = scene.launch("run", 1, &["digits_cnce", "backbones.0.checkpoint=published.safetensors"]).expect(65);
    for part in ["published.safetensors", "has shape", "expected"] {
        assert!(ran.stderr.contains(part), "no `{part}` in {}", ran.stderr);
    }
}
