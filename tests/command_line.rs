//! What the program prints when all is well: its help and its presets, held by snapshots; what a
//! finished run shows. `UPDATE_SNAPSHOTS=1 make test` writes the snapshots again.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use thanos_tests::{Scene, lines, results, root};

fn snapshot(name: &str, arguments: &[&str]) {
    let printed = Scene::new().coord(arguments).expect(0).stdout;
    let file = root().join("tests/snapshots").join(format!("{name}.txt"));
    if env::var_os("UPDATE_SNAPSHOTS").is_some() {
        fs::create_dir_all(root().join("tests/snapshots")).expect("a folder");
        fs::write(&file, &printed).expect("written");
    }
    let expected = fs::read_to_string(&file).unwrap_or_default();
    assert_eq!(printed, expected, "{arguments:?}: if this is meant, run with UPDATE_SNAPSHOTS=1");
}

#[test]
fn help_and_presets_are_as_they_were() {
    snapshot("help", &["--help"]);
    for verb in [
        "launch",
        "serve",
        "workers",
        "bench",
        "presets",
        "show",
        "data",
        "status",
        "view",
        "verify-run",
        "chaos",
        "credentials",
        "render",
        "report",
    ] {
        snapshot(&format!("help_{verb}"), &["help", verb]);
    }
    for verb in ["fetch", "pack", "info", "list", "prune", "verify"] {
        snapshot(&format!("help_data_{verb}"), &["data", "help", verb]);
    }
    for what in ["slurm", "kubernetes"] {
        snapshot(&format!("help_render_{what}"), &["render", "help", what]);
    }
    snapshot("presets", &["presets"]);
}

/// Scripts may have the former names of options; clap reads all options before it shows the help.
#[test]
fn former_names_of_options_are_accepted() {
    let scene = Scene::new();
    for arguments in [["launch", "--patience", "2s", "--help"], ["chaos", "--most", "3", "--help"]]
    {
        let help = scene.coord(&arguments).expect(0).stdout;
        assert!(!help.contains(arguments[1]), "{help}");
        scene.coord(&[arguments[0], arguments[1], "never", "--help"]).expect(64);
    }
}

#[test]
fn what_show_prints_loads_again() {
    let scene = Scene::new();
    let shown = scene.coord(&["show", "digits_table", "train.epochs=3"]).expect(0).stdout;
    assert!(shown.contains("\n  epochs: 3\n"), "{shown}");
    fs::write(scene.path("shown.yaml"), &shown).expect("written");
    assert_eq!(scene.coord(&["show", "shown.yaml"]).expect(0).stdout, shown);
}

#[test]
fn a_finished_run_has_its_files_and_its_table() {
    let scene = Scene::new();
    let ran = scene
        .launch("run", 2, &["digits_cnce", "train.max_steps=2", "transfer.epochs=1"])
        .expect(0);
    for text in [&ran.stdout, &ran.stderr] {
        assert!(!text.contains('\u{1b}'), "escape codes, and no terminal: {text}");
    }
    assert_eq!(scene.coord(&["report", "run"]).expect(0).stdout, ran.stdout);
    let json = scene.coord(&["report", "--json", "run"]).expect(0).stdout;
    let results = results(&scene.path("run"));
    assert_eq!(serde_json::from_str::<serde_json::Value>(&json).expect("JSON"), results);
    assert_eq!((&results["preset"], &results["seed"]), (&"digits_cnce".into(), &0.into()));
    let row = &results["rows"][0];
    assert_eq!((&row["method"], &row["backbones"]), (&"cnce".into(), &serde_json::json!(["cnce"])));
    for key in ["fine_test_accuracy", "coarse_test_accuracy", "knn_fine_accuracy"] {
        assert!(
            row[key].as_f64().is_some_and(|percent| (0.0..=100.0).contains(&percent)),
            "{key}: {row}"
        );
    }
    assert!(row["seconds"].as_f64().is_some_and(|seconds| seconds > 0.0), "{row}");

    let keys = "epoch generation images loss losses lr samples_sha256 stage step world_size";
    for line in lines(&scene.path("run"), "steps.jsonl") {
        let object = line.as_object().expect("an object");
        let found: BTreeSet<&str> = object.keys().map(String::as_str).collect();
        assert_eq!(found, keys.split(' ').collect());
        assert_eq!(line["world_size"], 2);
    }
    let status = scene.coord(&["status", "run"]).expect(0).stdout;
    for part in
        ["digits_cnce, seed 0", "11 steps of stage transfer_cnce", "ended        done", "method"]
    {
        assert!(status.contains(part), "no `{part}` in {status}");
    }
    // A run that is done is done: resuming prints its table.
    assert_eq!(
        scene.coord(&["launch", "--resume", "--run-dir", "run"]).expect(0).stdout,
        ran.stdout
    );
}

#[test]
fn packs_are_made_described_and_verified() {
    let scene = Scene::new();
    let packed = scene.coord(&["data", "pack", "digits", "--packs-dir", "packs"]).expect(0).stdout;
    assert!(
        packed.contains("packed: 1437 train images, ") && packed.contains("360 test images, "),
        "{packed}"
    );
    let again = scene.coord(&["data", "pack", "digits", "--packs-dir", "packs"]).expect(0).stdout;
    assert!(again.starts_with("already packed: 1437 train images, "), "{again}");
    let pack = packed.lines().next().and_then(|line| line.rsplit(", ").next()).expect("a path");
    let info = scene.coord(&["data", "info", pack]).expect(0).stdout;
    assert!(info.contains("digits train: 1437 images of 8 x 8 x 1"), "{info}");
    scene.coord(&["data", "verify", pack]).expect(0);
    let path = scene.path(pack);
    let mut bytes = fs::read(&path).expect("the pack");
    let last = bytes.len() - 20_000;
    bytes[last] ^= 1;
    fs::write(&path, bytes).expect("written");
    let refused = scene.coord(&["data", "verify", pack]).expect(65);
    assert!(refused.stderr.contains("fingerprint"), "{}", refused.stderr);
}
