//! `launch --quick`: every preset, on small files in its data set's published format, walks through
//! all its stages in less than a minute, and says everywhere that its numbers are not results.

use serde_json::Value;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};
use thanos_configs::preset_names;
use thanos_tests::raw_files::{cifar10, cifar100, image_folder, tinyimagenet_zip};
use thanos_tests::{Scene, checkpoints, idx, lines, results};

/// What a user waits for at most, on two cores.
const MAX_QUICK: Duration = Duration::from_secs(60);

/// Small raw data for every data set of the presets.
fn raw_files(scene: &Scene) {
    idx::write(&scene.path("idx"), 100, 40);
    cifar10(&scene.path("cifar10"), 20);
    cifar100(&scene.path("cifar100"), 200, 100);
    tinyimagenet_zip(&scene.path("tiny/tiny-imagenet-200.zip"));
    image_folder(&scene.path("mine"));
}

/// The folder with a preset's raw data; the digits have none.
fn folder(preset: &str) -> Option<&'static str> {
    let folders = [
        ("digits_", None),
        ("mnist_", Some("idx")),
        ("fashion_mnist_", Some("idx")),
        ("cifar100_", Some("cifar100")),
        ("cifar10_", Some("cifar10")),
        ("tinyimagenet_", Some("tiny")),
        ("image_folder_", Some("mine")),
    ];
    folders
        .into_iter()
        .find(|(start, _)| preset.starts_with(start))
        .expect("a preset of a known data set")
        .1
}

fn check(scene: &Scene, preset: &str) {
    let dir = folder(preset).map(|folder| format!("data.dir={}", scene.path(folder).display()));
    let mut arguments =
        vec!["launch", "--quick", "--nodes", "1", "--threads-per-worker", "2", preset];
    arguments.extend(dir.as_deref());
    let started = Instant::now();
    let ran = scene.coord(&arguments).expect(0);
    let taken = started.elapsed();
    assert!(taken < MAX_QUICK, "{preset}: {taken:?}");
    assert!(ran.stdout.contains("\nQUICK RUN: "), "{}", ran.stdout);
    let run_dir = scene.path(&format!("runs/{preset}-quick-1"));
    marked(&run_dir);
    let steps = lines(&run_dir, "steps.jsonl");
    let results = results(&run_dir);
    for row in results["rows"].as_array().expect("rows") {
        let stage = format!("transfer_{}", row["method"].as_str().expect("text"));
        let backbones =
            row["backbones"].as_array().expect("names").iter().filter_map(Value::as_str);
        for stage in backbones.chain([stage.as_str()]) {
            assert_eq!(
                steps.iter().filter(|step| step["stage"] == stage).count(),
                3,
                "{preset}: {stage}"
            );
            checkpoints(&run_dir, stage);
        }
    }
}

fn marked(run_dir: &Path) {
    for file in ["run.json", "results.json"] {
        let text = fs::read_to_string(run_dir.join(file)).expect(file);
        assert!(
            serde_json::from_str::<Value>(&text).is_ok_and(|value| value["quick"] == true),
            "{file}: {text}"
        );
    }
}

/// The tables have every backbone and every probe; the other presets are parts of them.
#[test]
#[ignore = "takes minutes: make chaos"]
fn every_table_is_trained_in_a_minute() {
    let scene = Scene::new();
    raw_files(&scene);
    for preset in preset_names().iter().filter(|name| name.ends_with("_table")) {
        check(&scene, preset);
    }
}

#[test]
fn a_table_and_single_methods_are_trained_in_a_minute() {
    let scene = Scene::new();
    raw_files(&scene);
    for preset in
        ["cifar10_table", "digits_supcon", "mnist_cnce", "image_folder_cae", "cifar100_u_thanos"]
    {
        check(&scene, preset);
    }
}

#[test]
fn a_quick_run_starts_new_and_resumes_without_the_option() {
    let scene = Scene::new();
    let refused = scene
        .coord(&["launch", "--quick", "--resume", "--run-dir", "run", "digits_cae"])
        .expect(64);
    assert!(refused.stderr.contains("omit --resume"), "{}", refused.stderr);
    let made = scene.launch("run", 1, &["--quick", "digits_cae"]).expect(0).stdout;
    marked(&scene.path("run"));
    assert_eq!(scene.coord(&["launch", "--resume", "--run-dir", "run"]).expect(0).stdout, made);
    assert_eq!(scene.coord(&["report", "run"]).expect(0).stdout, made);
    // What is typed takes precedence.
    scene.launch("longer", 1, &["--quick", "digits_cae", "train.max_steps=5"]).expect(0);
    let steps = lines(&scene.path("longer"), "steps.jsonl");
    assert_eq!(steps.iter().filter(|step| step["stage"] == "cae").count(), 5);
    let usual = scene
        .launch("usual", 1, &["digits_cae", "train.max_steps=2", "transfer.max_steps=2"])
        .expect(0)
        .stdout;
    assert!(!usual.contains("QUICK RUN"), "{usual}");
}
