//! The report that every run leaves: the confusion counts are those of a forward pass over the test
//! images here, whatever the number of workers and whatever was killed; the embedding map is a
//! function of the weights and the seed; figures are drawn of what is there, and looked at in a
//! browser.

use crate::evaluation::{backbone, read};
use crate::page::{in_browser, playwright, shots};
use crate::print_line;
use nix::sys::signal::Signal;
use safetensors::SafeTensors;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use tch::Tensor;
use thanos_configs::Plan;
use thanos_tests::processes::{coordinator, send};
use thanos_tests::raw_files::image_folder;
use thanos_tests::{Scene, checkpoints, idx, numbers};
use thanos_worker::load_weights;
use thanos_worker::model::Mode;

/// Test images by true and predicted class.
type Counts = BTreeMap<(String, String), u64>;

const SHORT: [&str; 4] =
    ["digits_supcon", "train.max_steps=30", "transfer.max_steps=40", "model.precision=float64"];
const STAGE: &str = "transfer_supcon";

fn report(run_dir: &Path, name: &str) -> PathBuf {
    run_dir.join("report").join(name)
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A file of a stage's last checkpoint.
fn last(run_dir: &Path, stage: &str, name: &str) -> PathBuf {
    checkpoints(run_dir, stage).pop().expect("a checkpoint").join(name)
}

/// Integers of a safetensors file.
fn integers(path: &Path, name: &str) -> Vec<i64> {
    let bytes = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let file = SafeTensors::deserialize(&bytes).expect("safetensors");
    let data = file.tensor(name).expect(name).data().to_vec();
    data.as_chunks::<8>().0.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect()
}

/// `confusion.csv` of a run of one row by true and predicted class.
fn counts(run_dir: &Path) -> Counts {
    let table = text(&report(run_dir, "confusion.csv"));
    let lines = table.lines().skip(1).map(|line| {
        let [_, fine, predicted, images] = line.split(',').collect::<Vec<_>>()[..] else {
            panic!("{line}")
        };
        ((fine.to_owned(), predicted.to_owned()), images.parse().expect("a count"))
    });
    lines.collect()
}

/// The same by one forward pass over all test images, with the weights that the run has left.
fn counted(scene: &Scene, run_dir: &Path) -> Counts {
    let plan =
        Plan::from_file(&text(&run_dir.join("config.yaml")), "config.yaml", &[]).expect("valid");
    let packed = scene.coord(&["data", "pack", "digits"]).expect(0).stdout;
    let packs: Vec<&str> = packed.lines().filter_map(|line| line.rsplit(", ").next()).collect();
    let (images, labels) = read(Path::new(packs[1]), &plan, "fine");
    let model = backbone(&plan, &checkpoints(run_dir, "supcon").pop().expect("a checkpoint"));
    let head =
        load_weights(&checkpoints(run_dir, STAGE).pop().expect("a checkpoint")).expect("weights");
    let _no_graph = tch::no_grad_guard();
    let images = images.to_kind(head["cls.weight"].kind());
    let z = model.encoder.forward(&images, Mode::Eval).expect("embeddings");
    let predicted = (z.matmul(&head["cls.weight"].tr()) + &head["cls.bias"]).argmax(1, false);
    let mut counts = BTreeMap::new();
    let pairs = [labels, predicted].map(|of| Vec::<i64>::try_from(of).expect("labels"));
    for (fine, predicted) in pairs[0].iter().zip(&pairs[1]) {
        *counts.entry((fine.to_string(), predicted.to_string())).or_default() += 1;
    }
    counts
}

#[test]
fn counts_and_maps_are_the_same_at_any_number_of_workers() {
    let scene = Scene::new();
    let mut first: Option<(Counts, PathBuf)> = None;
    for workers in [1, 2, 4] {
        let name = format!("run-{workers}");
        scene.launch(&name, workers, &SHORT).expect(0);
        let run_dir = scene.path(&name);
        let found = counts(&run_dir);
        assert_eq!(found.values().sum::<u64>(), 360, "every test image once");
        let predictions = last(&run_dir, STAGE, "predictions.safetensors");
        assert_eq!(integers(&predictions, "ids"), (0..360).collect::<Vec<i64>>());
        let map = last(&run_dir, STAGE, "embeddings.safetensors");
        let Some((expected, of_one)) = &first else {
            assert_eq!(found, counted(&scene, &run_dir), "a direct count");
            first = Some((found, map));
            continue;
        };
        assert_eq!(&found, expected, "{workers} workers");
        for name in ["ids", "fine", "coarse"] {
            assert_eq!(integers(&map, name), integers(of_one, name), "{name}, {workers} workers");
        }
        // Of unit rows.
        for (name, tolerance) in [("vectors", 1e-6), ("pca", 1e-6)] {
            let (one, more) = (numbers(of_one, name), numbers(&map, name));
            let apart =
                one.iter().zip(&more).map(|(one, more)| (one - more).abs()).fold(0.0, f64::max);
            assert_eq!(one.len(), more.len());
            assert!(apart < tolerance, "{name} is {apart} apart with {workers} workers");
        }
    }
}

#[test]
fn a_killed_coordinator_changes_no_bit_of_them() {
    let scene = Scene::new();
    scene.launch("whole", 2, &SHORT).expect(0);
    let arguments = ["launch", "--nodes", "2", "--threads-per-worker", "1", "--run-dir", "killed"];
    let mut running = scene.start(&[&arguments[..], &SHORT].concat());
    running.wait_for_steps("killed", 40);
    send(coordinator(&scene.path("killed")).expect("it lives"), Signal::SIGKILL);
    running.wait().expect(0);
    let [whole, killed] = ["whole", "killed"].map(|name| scene.path(name));
    for name in ["predictions.safetensors", "embeddings.safetensors"] {
        let [one, other] =
            [&whole, &killed].map(|run_dir| fs::read(last(run_dir, STAGE, name)).expect(name));
        assert!(one == other, "{name} differs");
    }
    for name in
        ["confusion.csv", "confusion.svg", "embeddings.svg", "accuracy_per_class.svg", "views.png"]
    {
        let [one, other] =
            [&whole, &killed].map(|run_dir| fs::read(report(run_dir, name)).expect(name));
        assert!(one == other, "{name} differs");
    }
}

/// The principal components are those of the file's own vectors.
#[test]
fn a_map_can_be_made_again_of_its_vectors() {
    let scene = Scene::new();
    scene.launch("run", 1, &[&SHORT[..], &["log.embedding_images=100"]].concat()).expect(0);
    let map = last(&scene.path("run"), STAGE, "embeddings.safetensors");
    let [ids, fine] = ["ids", "fine"].map(|name| integers(&map, name));
    assert!(ids.len() == 100 && ids.windows(2).all(|pair| pair[0] < pair[1]), "{ids:?}");
    let all = integers(&last(&scene.path("run"), STAGE, "predictions.safetensors"), "fine");
    assert_eq!(fine, ids.iter().map(|id| all[*id as usize]).collect::<Vec<_>>());
    let vectors = Tensor::from_slice(&numbers(&map, "vectors")).reshape([100, -1]);
    let norms = vectors.square().sum_dim_intlist(&[1_i64][..], false, None::<tch::Kind>);
    assert!(norms.allclose(&norms.ones_like(), 0.0, 1e-5, false), "{norms}");
    let centred = &vectors - vectors.mean_dim(&[0_i64][..], true, None::<tch::Kind>);
    let (u, s, _) = centred.svd(true, true);
    let expected = (u * s).narrow(1, 0, 2).abs();
    let found = Tensor::from_slice(&numbers(&map, "pca")).reshape([100, 2]).abs();
    assert!(found.allclose(&expected, 1e-8, 1e-9, false), "{}", (found - expected).abs().max());
}

/// While a map is computed, which takes seconds, a run can be stopped; its resume computes the map.
#[test]
fn a_stop_does_not_wait_for_a_map() {
    let scene = Scene::new();
    idx::write(&scene.path("idx"), 100, 2000);
    let dir = format!("data.dir={}", scene.path("idx").display());
    let small = [
        "mnist_supcon",
        &dir,
        "model.encoder.vit={width: 8, depth: 1, heads: 1, mlp: 8, patch: 14}",
        "train.max_steps=2",
        "train.cosine_period=null",
        "transfer.max_steps=2",
        "log.embedding_images=2000",
    ];
    let arguments = ["launch", "--nodes", "2", "--threads-per-worker", "1", "--run-dir", "run"];
    let mut running = scene.start(&[&arguments[..], &small].concat());
    running.wait_for_steps("run", 4);
    running.interrupt().expect(75);
    assert!(!report(&scene.path("run"), "confusion.csv").exists());
    assert!(report(&scene.path("run"), "curves.svg").exists());
    scene.coord(&["launch", "--resume", "--run-dir", "run"]).expect(0);
    let places = numbers(&last(&scene.path("run"), STAGE, "embeddings.safetensors"), "tsne");
    assert!(places.len() == 4000 && places.iter().all(|place| place.is_finite()));
    assert!(report(&scene.path("run"), "embeddings.svg").exists());
}

/// Changes the manifest of a checkpoint, and its own checksum with it.
fn change_manifest(folder: &Path, change: impl Fn(&mut Value)) {
    let path = folder.join("manifest.json");
    let mut manifest: Value = serde_json::from_str(&text(&path)).expect("JSON");
    change(&mut manifest);
    fs::write(path, manifest.to_string()).expect("written");
}

#[test]
fn a_run_of_an_earlier_version_and_a_damaged_one_have_a_report() {
    let scene = Scene::new();
    scene.launch("run", 1, &SHORT).expect(0);
    let run_dir = scene.path("run");
    let written = fs::read(report(&run_dir, "embeddings.svg")).expect("a figure");
    scene.coord(&["report", "run", "--html"]).expect(0);
    assert!(
        fs::read(report(&run_dir, "embeddings.svg")).expect("a figure") == written,
        "the same again"
    );
    let file = last(&run_dir, STAGE, "predictions.safetensors");
    let mut bytes = fs::read(&file).expect("predictions");
    *bytes.last_mut().expect("not empty") ^= 1;
    fs::write(&file, bytes).expect("written");
    let damaged = scene.coord(&["report", "run", "--html"]).expect(0);
    assert!(
        damaged.stderr.contains("no figures of row supcon: ") && damaged.stderr.contains("SHA-256")
    );
    change_manifest(&checkpoints(&run_dir, STAGE).pop().expect("a checkpoint"), |manifest| {
        let files = manifest["files"].as_array_mut().expect("a list");
        let is_new =
            |name: &str| ["predictions.safetensors", "embeddings.safetensors"].contains(&name);
        files.retain(|file| !is_new(file["name"].as_str().expect("a name")));
    });
    let old = scene.coord(&["report", "run", "--html"]).expect(0);
    assert!(!old.stderr.contains("no figures"), "{}", old.stderr);
    for (name, is_there) in [
        ("index.html", true),
        ("curves.svg", true),
        ("collapse.svg", true),
        ("views.png", true),
        ("confusion.svg", false),
        ("confusion.csv", false),
        ("accuracy_per_class.svg", false),
        ("embeddings.svg", false),
    ] {
        assert_eq!(report(&run_dir, name).exists(), is_there, "{name}");
    }
}

/// Three classes of images in colour, two rows of the table, and no map.
#[test]
fn a_report_has_every_figure_within_its_page() {
    let scene = Scene::new();
    image_folder(&scene.path("mine"));
    let small = [
        "image_folder_thanos",
        "data.dir=mine",
        "data.side=16",
        "model.encoder.vit={width: 16, depth: 1, heads: 2, mlp: 16, patch: 8}",
        "train.epochs=2",
        "train.cosine_period=null",
        "transfer.epochs=2",
    ];
    scene.launch("with", 1, &small).expect(0);
    let page = text(&report(&scene.path("with"), "index.html"));
    let names = ["curves", "collapse", "accuracy_per_class", "confusion", "embeddings"];
    for name in names {
        let svg = text(&report(&scene.path("with"), &format!("{name}.svg")));
        let body = svg.split_once("fill=\"#fff\"/>").expect("its background").1;
        assert!(page.contains(body), "{name} is not within the page");
    }
    assert!(page.contains("data:image/png;base64,") && page.contains(">yellow<"));
    print_line(&format!("a report of three classes has {} bytes", page.len()));
    scene.launch("without", 1, &[&small[..], &["log.embedding_images=0"]].concat()).expect(0);
    let run_dir = scene.path("without");
    assert!(!report(&run_dir, "embeddings.svg").exists());
    let row = "transfer_thanos";
    assert!(!last(&run_dir, row, "embeddings.safetensors").exists());
    let [with, without] = ["with", "without"]
        .map(|name| fs::read(report(&scene.path(name), "confusion.csv")).expect("counts"));
    assert!(with == without, "a map changes no result");
    look_at(&report(&scene.path("with"), "index.html"), &scene);
}

/// Opens the file in a browser, on a desk and on a phone.
fn look_at(page: &Path, scene: &Scene) {
    let Some(python) = playwright() else {
        print_line(
            "skipped: chromium or playwright is not installed, the report was not looked at",
        );
        return;
    };
    let kept = shots(scene).join("report");
    fs::create_dir_all(&kept).expect("a folder");
    in_browser(&python, &format!("file://{}", page.display()), &kept, &["--ended"]);
}
