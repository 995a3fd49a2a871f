//! What a user gets wrong, and what they read then: one clear message that names it, a documented exit code, no panic.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use thanos_tests::{Scene, idx};

const USAGE: i32 = 64;
const DATA: i32 = 65;
const UNREACHABLE: i32 = 69;
const CONFIG: i32 = 78;

/// Runs the program and expects this exit code and these parts of its error output.
fn check(scene: &Scene, arguments: &[&str], code: i32, parts: &[&str]) {
    let ran = scene.coord(arguments);
    let stderr = &ran.stderr;
    assert_eq!(ran.code, Some(code), "{arguments:?}: {stderr}");
    for part in parts {
        assert!(stderr.contains(part), "{arguments:?}: no `{part}` in {stderr}");
    }
    for never in ["panicked", "stack backtrace", "RUST_BACKTRACE"] {
        assert!(!stderr.contains(never), "{arguments:?}: {stderr}");
    }
}

/// As `check`, for `launch digits_cnce` with one override.
fn check_override(scene: &Scene, over: &str, parts: &[&str]) {
    check(scene, &["launch", "digits_cnce", over], CONFIG, parts);
}

#[test]
fn the_command_line() {
    let scene = Scene::new();
    check(&scene, &["lunch"], USAGE, &["lunch"]);
    check(&scene, &["launch", "--nods", "4", "digits_cnce"], USAGE, &["--nods"]);
    check(&scene, &["launch", "--nodes", "0", "digits_cnce"], USAGE, &["0 is not in 1..=4096"]);
    check(&scene, &["launch", "--nodes", "5000", "digits_cnce"], USAGE, &["5000 is not in 1..=4096"]);
    check(&scene, &["launch", "--threads-per-worker", "0", "digits_cnce"], USAGE, &["0 is not in 1..=1024"]);
    check(&scene, &["launch"], USAGE, &["name a preset or a YAML file"]);
    check(&scene, &["launch", "--resume"], USAGE, &["--run-dir"]);
    check(&scene, &["launch", "--listen", "localhost", "digits_cnce"], USAGE, &["--listen"]);
    check(&scene, &["status", "nowhere"], USAGE, &["nowhere holds no run"]);
    check(&scene, &["report", "nowhere"], USAGE, &["nowhere holds no run"]);
}

#[test]
fn the_configuration() {
    let scene = Scene::new();
    check(&scene, &["launch", "digit_table"], CONFIG, &["did you mean `digits_table`?"]);
    check(&scene, &["launch", "no/such.yaml"], CONFIG, &["cannot read no/such.yaml"]);
    check_override(&scene, "train.epoch=3", &["train.epoch: unknown key; did you mean `epochs`?"]);
    check_override(
        &scene,
        "train.epochs=ten",
        &["train.epochs: expected a whole number, 0 or more, got the text `ten`"],
    );
    check_override(&scene, "train.epochs", &["there is no `=`"]);
    check_override(&scene, "train.batch_size=0", &["train.batch_size: must be between 1 and 1048576, got 0"]);
    check_override(&scene, "train.epochs=99999999", &["train.epochs: must be between 1 and 1000000"]);
    check_override(&scene, "objective.temperature=0", &["objective.temperature"]);
    check_override(&scene, "model.encoder.vit.patch=3", &["3 does not divide the 8 pixels of digits"]);
    check_override(&scene, "transfer.frozen_mode=train", &["contradicts `transfer.features: cached`"]);
    check_override(&scene, "objective={attract: 0, spread: 0}", &["0 / 0"]);

    let text = "extends: digits_cnce\ntrain:\n  epochs: ten\n  bach_size: 3\nmodle: {}\n";
    fs::write(scene.path("f.yaml"), text).expect("written");
    let all = [
        "f.yaml:3: train.epochs: expected a whole number",
        "f.yaml:4: train.bach_size: unknown key; did you mean `batch_size`?",
        "f.yaml:5: modle: unknown key; did you mean `model`?",
    ];
    check(&scene, &["launch", "f.yaml"], CONFIG, &all);
}

#[test]
fn the_data() {
    let scene = Scene::new();
    let launch = |dir: &str, code, parts: &[&str]| {
        let over = format!("data.dir={dir}");
        check(&scene, &["launch", "mnist_cnce", &over], code, parts);
    };
    check(&scene, &["launch", "mnist_cnce"], DATA, &["data.dir"]);
    launch("missing", DATA, &["missing"]);
    fs::create_dir(scene.path("empty")).expect("a folder");
    launch("empty", DATA, &["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"]);
    let spoiled = |name: &str, file: &str, spoil: &dyn Fn(&mut Vec<u8>)| {
        idx::write(&scene.path(name), 20, 10);
        edit(&scene.path(name).join(file), spoil);
    };
    spoiled("magic", "train-images-idx3-ubyte", &|bytes| bytes[3] = 9);
    launch("magic", DATA, &["magic/train-images-idx3-ubyte", "magic"]);
    spoiled("label", "train-labels-idx1-ubyte", &|bytes| bytes[8 + 4] = 10);
    launch("label", DATA, &["train-labels-idx1-ubyte", "label", "10", "12"]);
    spoiled("short", "t10k-images-idx3-ubyte", &|bytes| bytes.truncate(4000));
    launch("short", DATA, &["t10k-images-idx3-ubyte", "4000"]);
    spoiled("count", "train-labels-idx1-ubyte", &|bytes| {
        bytes[7] = 19;
        bytes.truncate(8 + 19);
    });
    launch("count", DATA, &["20", "19"]);

    fs::create_dir(scene.path("cifar")).expect("a folder");
    for name in ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"] {
        fs::write(scene.path("cifar").join(format!("{name}.bin")), vec![1; 3074]).expect("written");
    }
    let parts = ["data_batch_1.bin", "CIFAR-100"];
    check(&scene, &["launch", "cifar10_cnce", "data.dir=cifar"], DATA, &parts);
}

fn edit(path: &Path, change: &dyn Fn(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).expect("the file");
    change(&mut bytes);
    fs::write(path, bytes).expect("written");
}

#[test]
fn the_run_directory() {
    let scene = Scene::new();
    let target = ["digits_cnce", "train.epochs=100000", "rows=[]"];
    let launch = ["launch", "--run-dir", "run"];
    let mut running = scene.start(&[&launch[..], &target].concat());
    running.wait_for_steps("run", 1);
    let holder = format!("in use by another coordinator (pid {}", running.pid());
    check(
        &Scene::new(),
        &["launch", "--run-dir", &scene.path("run").display().to_string(), "digits_cnce"],
        USAGE,
        &[&holder],
    );
    let ended = running.interrupt();
    assert_eq!(ended.code, Some(75), "{}", ended.stderr);

    check(&scene, &[&launch[..], &target].concat(), USAGE, &["holds a run already: add --resume"]);
    let resume = ["launch", "--resume", "--run-dir", "run", "digits_cnce", "seed=1"];
    check(&scene, &resume, CONFIG, &["is a run of another configuration"]);
    check(&scene, &["launch", "--resume", "--run-dir", "other"], USAGE, &["other holds no run"]);
    check(&scene, &["report", "nowhere"], USAGE, &["holds no run"]);
    // Every checkpoint spoiled: nothing to resume from, and no silent start over.
    for place in thanos_tests::checkpoints(&scene.path("run"), "cnce") {
        edit(&place.join("model.safetensors"), &|bytes| bytes[100] ^= 1);
    }
    let resume = ["launch", "--resume", "--run-dir", "run"];
    check(&scene, &resume, DATA, &["no checkpoint of run is good", "model.safetensors", "SHA-256"]);
}

#[test]
fn the_checkpoint_of_a_backbone() {
    let scene = Scene::new();
    let launch = |path: &str, parts: &[&str]| {
        let over = format!("backbones.0.checkpoint={path}");
        check(&scene, &["launch", "--run-dir", &format!("run-{path}"), "digits_cnce", &over], DATA, parts);
    };
    launch("missing.safetensors", &["backbone cnce", "missing.safetensors", "No such file"]);
    fs::write(scene.path("text.safetensors"), "this is no safetensors file, whatever it says").expect("written");
    launch("text.safetensors", &["text.safetensors", "not a safetensors file"]);
}

#[test]
fn the_port() {
    let scene = Scene::new();
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    let message = format!("cannot listen on {address}");
    check(&scene, &["launch", "--listen", &address, "digits_cnce"], UNREACHABLE, &[&message]);
}
