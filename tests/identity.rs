//! A run is its recipe and the content of its data and weights. A resume continues as the run was
//! started, accepts what does not change that identity, records it, and refuses the rest by name; a
//! launch that is refused leaves no run.

use nix::sys::signal::Signal;
use safetensors::SafeTensors;
use serde_json::Value;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use thanos_tests::processes::{coordinator, send};
use thanos_tests::{
    Ran, Running, Scene, checkpoints, idx, lines, losses, numbers, root, weights_sha256,
};

/// The smallest network on images of MNIST's size; an epoch is one step.
const SMALL: [&str; 5] = [
    "mnist_cnce",
    "rows=[]",
    "model.encoder.vit={patch: 7, width: 16, depth: 1, heads: 2, mlp: 16}",
    "train.epochs=100000",
    "checkpoint.every_steps=1000",
];
const LAUNCH: [&str; 5] = ["launch", "--threads-per-worker", "1", "--run-dir", "run"];
const RESUME: [&str; 4] = ["launch", "--resume", "--run-dir", "run"];

#[track_caller]
fn refused(scene: &Scene, arguments: &[&str], exit_code: i32, parts: &[&str]) {
    let ran = scene.coord(arguments);
    assert_eq!(ran.code, Some(exit_code), "{arguments:?}: {}{}", ran.stdout, ran.stderr);
    for part in parts {
        assert!(ran.stderr.contains(part), "{arguments:?}: no `{part}` in\n{}", ran.stderr);
    }
}

fn resume(scene: &Scene, more: &[&str]) -> Ran {
    scene.coord(&[&RESUME[..], more].concat())
}

fn run_json(run_dir: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(run_dir.join("run.json")).expect("run.json"))
        .expect("JSON")
}

/// The keys that resumes have changed.
fn changed(run_dir: &Path) -> Vec<String> {
    let changes = run_json(run_dir)["changes"].as_array().expect("a list").clone();
    changes.iter().map(|change| change["key"].as_str().expect("a key").to_owned()).collect()
}

/// A run on small raw data in `data`, with some steps made.
fn start_on_raw_data(scene: &Scene) -> Running {
    idx::write(&scene.path("data"), 60, 20);
    let mut running = scene.start(&[&LAUNCH[..], &SMALL, &["data.dir=data"]].concat());
    running.wait_for_steps("run", 5);
    running
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("listed") {
        let entry = entry.expect("an entry");
        fs::copy(entry.path(), to.join(entry.file_name())).expect("copied");
    }
}

fn flip_last_byte(path: &Path) {
    let mut bytes = fs::read(path).expect("a file");
    *bytes.last_mut().expect("not empty") ^= 1;
    fs::write(path, bytes).expect("written");
}

#[test]
fn data_is_known_by_its_content_and_not_by_its_path() {
    let scene = Scene::new();
    start_on_raw_data(&scene).interrupt().expect(75);
    let run = scene.path("run");
    let data = run_json(&run)["data"].clone();
    copy(&scene.path("data"), &scene.path("other"));
    flip_last_byte(&scene.path("other/t10k-images-idx3-ubyte"));
    let expected = data["test"].as_str().expect("a fingerprint");
    let pack = "the test pack ";
    refused(
        &scene,
        &[&RESUME[..], &["data.dir=other"]].concat(),
        65,
        &[pack, expected, "another --run-dir"],
    );
    assert_eq!(changed(&run), [""; 0], "what was refused is not recorded");

    copy(&scene.path("data"), &scene.path("same"));
    fs::remove_dir_all(scene.path("data")).expect("removed");
    let steps = format!("train.max_steps={}", lines(&run, "steps.jsonl").len() + 3);
    resume(&scene, &["data.dir=same", &steps]).expect(0);
    assert_eq!(changed(&run), ["data.dir", "train.max_steps"]);
    assert_eq!(run_json(&run)["data"]["train"], data["train"]);
    let config = fs::read_to_string(run.join("config.yaml")).expect("there");
    assert!(config.contains(&format!("dir: {}", scene.path("same").display())), "{config}");
    let events = lines(&run, "events.jsonl");
    let reconfigured =
        events.iter().find(|event| event["event"] == "reconfigured").expect("an event");
    assert_eq!(reconfigured["changes"][0]["key"], "data.dir");
    scene.coord(&["verify-run", "run"]).expect(0);
    let manifest =
        fs::read_to_string(checkpoints(&run, "cnce").pop().expect("one").join("manifest.json"));
    let manifest: Value = serde_json::from_str(&manifest.expect("there")).expect("JSON");
    assert_eq!(
        (&manifest["data"]["train"], &manifest["data"]["test"]),
        (&data["train"], &data["test"])
    );
}

/// In place, so that the path is the same, and with the packs of the run still there.
#[test]
fn data_that_changed_is_refused() {
    let scene = Scene::new();
    start_on_raw_data(&scene).interrupt().expect(75);
    flip_last_byte(&scene.path("data/train-images-idx3-ubyte"));
    let expected =
        run_json(&scene.path("run"))["data"]["train"].as_str().expect("a fingerprint").to_owned();
    let parts = [
        "the train pack ",
        "mnist-train-",
        "has the fingerprint ",
        expected.as_str(),
        "data.dir=DIR",
    ];
    refused(&scene, &RESUME, 65, &parts);
}

/// The coordinator is killed, and the raw data is away: what serves the waiting workers is the
/// pack.
#[test]
fn a_coordinator_that_starts_again_reads_no_raw_data() {
    let scene = Scene::new();
    let mut running = start_on_raw_data(&scene);
    fs::rename(scene.path("data"), scene.path("away")).expect("renamed");
    send(coordinator(&scene.path("run")).expect("at work"), Signal::SIGKILL);
    let steps = lines(&scene.path("run"), "steps.jsonl").len();
    running.wait_for_steps("run", steps + 20);
    running.interrupt().expect(75);
}

/// Two backbones and a probe, complete, are to make more steps: the first backbone continues from
/// its end, as if it had never ended there, and what stood on it is made again.
#[test]
fn a_complete_run_makes_more_steps_and_never_fewer() {
    let scene = Scene::new();
    let target = ["digits_thanos", "transfer.max_steps=4", "checkpoint.every_steps=3"];
    scene.launch("run", 2, &[&target[..], &["train.max_steps=6"]].concat()).expect(0);
    scene.launch("whole", 2, &[&target[..], &["train.max_steps=9"]].concat()).expect(0);
    let (run, whole) = (scene.path("run"), scene.path("whole"));
    let table = resume(&scene, &["train.max_steps=9"]).expect(0).stdout;
    assert!(table.contains("thanos"), "{table}");
    for stage in ["cnce", "cae"] {
        assert_eq!(losses(&run, stage), losses(&whole, stage), "{stage}");
        let [ours, theirs] = [&run, &whole]
            .map(|run_dir| weights_sha256(run_dir, stage)["model.safetensors"].clone());
        assert_eq!(ours, theirs, "{stage}");
    }
    scene.coord(&["verify-run", "run"]).expect(0);
    for kept in [
        "checkpoints/cae/step-00000006/manifest.json",
        "checkpoints/transfer_thanos",
        "results.json",
    ] {
        assert!(run.join("superseded/1").join(kept).exists(), "{kept}");
    }
    assert_eq!(lines(&run, "superseded/1/steps.jsonl").len(), 6 + 6 + 4);

    let parts = ["train.max_steps=2 allows 2 steps", "stage cnce has already made 9", "keep 9"];
    refused(&scene, &[&RESUME[..], &["train.max_steps=2"]].concat(), 78, &parts);
    let config = fs::read_to_string(run.join("config.yaml")).expect("there");
    let other = [&RESUME[..], &["seed=1", "model.dropout=0.5", "train.epochs=99"]].concat();
    refused(
        &scene,
        &other,
        78,
        &[
            "seed: the run has 0, this command 1",
            "model.dropout: the run has 0.0, this command 0.5",
        ],
    );
    assert_eq!(
        fs::read_to_string(run.join("config.yaml")).expect("there"),
        config,
        "nothing was changed"
    );
    resume(&scene, &["checks.on_non_finite=skip", "checkpoint.keep_last=3"]).expect(0);
    assert_eq!(changed(&run), ["train.max_steps", "checkpoint.keep_last", "checks.on_non_finite"]);
}

/// A stage that ends, by a resume, at a step that was not its last one is evaluated there.
#[test]
fn a_run_may_end_where_it_was_stopped() {
    let scene = Scene::new();
    let target = ["digits_cnce", "rows=[]", "train.evaluate_every=1000"];
    let mut running = scene.start(&[&LAUNCH[..], &target].concat());
    running.wait_for_steps("run", 3);
    running.interrupt().expect(75);
    let made = lines(&scene.path("run"), "steps.jsonl").len();
    resume(&scene, &[&format!("train.max_steps={made}")]).expect(0);
    assert_eq!(losses(&scene.path("run"), "cnce").len(), made);
}

/// The command that a stopped run prints continues with as many workers, and so to the same bits.
#[test]
fn the_printed_command_continues_as_the_run_was_started() {
    let scene = Scene::new();
    let target = ["digits_cae", "train.max_steps=40", "rows=[]", "model.dropout=0.1"];
    scene.launch("whole", 2, &target).expect(0);
    let mut running = scene.start(&[&LAUNCH[..], &["--nodes", "2"], &target].concat());
    running.wait_for_steps("run", 10);
    let output = running.interrupt().expect(75).stderr;
    let command =
        output.split("resume with: thanos-coord ").nth(1).and_then(|rest| rest.lines().next());
    let words: Vec<&str> = command.expect("a command").split(' ').collect();
    assert_eq!(words, RESUME);
    scene.coord(&words).expect(0);
    let steps = lines(&scene.path("run"), "steps.jsonl");
    assert!(steps.len() == 40 && steps.iter().all(|step| step["world_size"] == 2), "{steps:?}");
    assert_eq!(
        weights_sha256(&scene.path("run"), "cae"),
        weights_sha256(&scene.path("whole"), "cae")
    );
    let with = run_json(&scene.path("run"))["started_with"].clone();
    assert_eq!(
        (&with["min_nodes"], &with["threads_per_worker"], &with["launcher"]),
        (&2.into(), &1.into(), &"local".into())
    );
    // Served, the same run waits for others' workers, and says so when it is stopped.
    let mut served = scene.start(&["serve", "--resume", "--run-dir", "run", "train.max_steps=50"]);
    served.wait_for_line("waiting at ");
    let output = served.interrupt().expect(75).stderr;
    assert!(output.contains("for 2 worker(s)"), "{output}");
    assert!(output.contains("resume with: thanos-coord serve --resume --run-dir run"), "{output}");
    refused(
        &scene,
        &["serve", "--launcher", "srun", "digits_cnce"],
        64,
        &["serve starts no workers"],
    );
}

/// Another number of threads adds in another order: a run keeps its own, and says what it means to
/// change it.
#[test]
fn a_run_keeps_its_threads_and_warns_of_others() {
    let scene = Scene::new();
    let target = ["digits_cnce", "rows=[]", "train.max_steps=2"];
    scene.coord(&[&LAUNCH[..], &target].concat()).expect(0);
    let threads = || run_json(&scene.path("run"))["started_with"]["threads_per_worker"].clone();
    let output = resume(&scene, &["train.max_steps=3"]).expect(0).stderr;
    assert!(threads() == 1 && !output.contains("bit-identical"), "{output}");
    let output =
        resume(&scene, &["--threads-per-worker", "2", "train.max_steps=4"]).expect(0).stderr;
    assert!(output.contains("each worker now has 2 threads instead of 1: "), "{output}");
    assert_eq!(
        (threads(), changed(&scene.path("run")).last().map(String::as_str)),
        (2.into(), Some("--threads-per-worker"))
    );
}

/// A safetensors file without its `__metadata__`.
fn without_metadata(bytes: &[u8]) -> Vec<u8> {
    safetensors::serialize(SafeTensors::deserialize(bytes).expect("safetensors").tensors(), None)
        .expect("a file")
}

/// Weights that do not fit the model of a stage hours away are found before the first step, and the
/// fixed command is not refused.
#[test]
fn weights_are_checked_before_anything_is_trained() {
    let scene = Scene::new();
    let short = ["train.max_steps=2", "rows=[]"];
    scene.launch("good", 1, &[&["digits_cnce"][..], &short].concat()).expect(0);
    scene
        .launch("bad", 1, &[&["digits_cnce", "model.encoder.vit.depth=1"][..], &short].concat())
        .expect(0);
    for name in ["good", "bad"] {
        let best =
            checkpoints(&scene.path(name), "cnce").pop().expect("one").join("best.safetensors");
        fs::copy(best, scene.path(&format!("{name}.safetensors"))).expect("copied");
    }
    let target = ["digits_thanos", "train.max_steps=3", "transfer.max_steps=2"];
    let with = |weights: &str| format!("backbones.0.checkpoint={weights}.safetensors");
    let launch = |weights: &str| scene.launch("run", 2, &[&target[..], &[&with(weights)]].concat());
    let run = scene.path("run");
    let output = launch("bad").expect(65).stderr;
    for part in [
        "bad.safetensors",
        "model.encoder.vit.depth: found 1 in the file, expected 3 as in this run",
    ] {
        assert!(output.contains(part), "no `{part}` in {output}");
    }
    assert!(!run.exists(), "refused before there is a run directory");
    // Without the record, the workers find it by the names.
    let without = scene.path("bad.safetensors");
    fs::write(&without, without_metadata(&fs::read(&without).expect("there"))).expect("written");
    let output = launch("bad").expect(65).stderr;
    for part in
        ["records no architecture", "backbone cnce from ", "bad.safetensors", "it has no tensor `"]
    {
        assert!(output.contains(part), "no `{part}` in {output}");
    }
    assert!(
        !run.join("run.json").exists() && lines(&run, "steps.jsonl").is_empty(),
        "nothing was trained"
    );
    launch("good").expect(0);

    let more = ["train.max_steps=6"];
    let mut bytes = fs::read(scene.path("good.safetensors")).expect("there");
    *bytes.last_mut().expect("not empty") ^= 1;
    fs::rename(scene.path("good.safetensors"), scene.path("moved.safetensors")).expect("renamed");
    fs::write(scene.path("good.safetensors"), bytes).expect("written");
    let parts = [
        "the weights of backbone cnce have changed",
        "good.safetensors",
        "the run was started with",
    ];
    refused(&scene, &[&RESUME[..], &more].concat(), 65, &parts);
    resume(&scene, &[&with("moved"), more[0]]).expect(0);
    assert_eq!(changed(&run), ["train.max_steps", "backbones.0.checkpoint"]);
    assert!(!numbers(&scene.path("moved.safetensors"), "").is_empty());
}

fn check_refusals(run_dir: &[&str]) {
    let scene = Scene::new();
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("an address").to_string();
    fs::create_dir(scene.path("damaged")).expect("a folder");
    fs::write(scene.path("damaged/ca.pem"), "no certificate").expect("written");
    fs::write(scene.path("text.safetensors"), "no weights").expect("written");
    let short = ["digits_cnce", "train.max_steps=1", "rows=[]"];
    let given = ["digits_cnce", "transfer.max_steps=1", "backbones.0.checkpoint=text.safetensors"];
    let check = |options: &[&str], target: &[&str], exit_code, part: &str| {
        refused(&scene, &[&["launch"], run_dir, options, target].concat(), exit_code, &[part]);
        let left = ["run", "runs"].map(|name| scene.path(name).exists());
        assert_eq!(left, [false; 2], "{options:?} {target:?}");
    };
    check(&["--status", &address], &short, 69, "for --status");
    check(
        &["--interface", "nope0"],
        &short,
        69,
        "--interface nope0 is not on this machine, which has ",
    );
    check(&["--credentials", "damaged"], &short, 78, "damaged");
    check(&[], &given, 65, "not a safetensors file");
    check(&[], &["mnist_cnce"], 65, "data.dir=DIR");
    scene.coord(&[&["launch"], run_dir, &short].concat()).expect(0);
}

#[test]
fn a_launch_that_is_refused_leaves_nothing() {
    check_refusals(&[]);
    check_refusals(&["--run-dir", "run"]);
}

#[test]
fn launches_at_the_same_time_get_directories_of_their_own() {
    let scene = Scene::new();
    scene.coord(&["data", "pack", "digits"]).expect(0);
    let arguments =
        ["launch", "--threads-per-worker", "1", "digits_cnce", "train.max_steps=1", "rows=[]"];
    let start = |number: usize| scene.spawn("thanos-coord", &number.to_string(), &arguments, &[]);
    #[expect(clippy::needless_collect, reason = "all are started before the first is waited for")]
    let running: Vec<Running> = (0..8).map(start).collect();
    running.into_iter().for_each(|running| _ = running.wait().expect(0));
    let ids = (1..=8).map(|number| {
        run_json(&scene.path(&format!("runs/digits_cnce-{number}")))["id"].to_string()
    });
    assert_eq!(ids.collect::<std::collections::BTreeSet<_>>().len(), 8);
}

/// As on some NFS and FUSE mounts: without `flock`, and without the flags of `renameat2`.
/// The library of a file system that has neither.
fn no_locks(scene: &Scene) -> String {
    let library = scene.path("no_locks.so");
    let source = root().join("tests/preload/no_locks.c");
    let built = Command::new("cc")
        .args(["-shared", "-fPIC", "-Wall", "-Werror", "-o"])
        .arg(&library)
        .arg(&source)
        .status();
    assert!(built.expect("a C compiler").success());
    library.to_str().expect("UTF-8").to_owned()
}

/// A stop in the last evaluation saves the last step; the resume saves it again, as the end of its
/// stage.
#[test]
fn a_checkpoint_is_replaced_where_names_cannot_be_exchanged() {
    let scene = Scene::new();
    let library = no_locks(&scene);
    let target = ["digits_cnce", "train.max_steps=42", "rows=[]"];
    let slow = [("LD_PRELOAD", library.as_str()), ("FAILPOINTS", "embed=sleep(1500)")];
    let mut running = scene.start_with(&[&LAUNCH[..], &target].concat(), &slow);
    running.wait_for_steps("run", 42);
    let stopped = running.interrupt().expect(75).stderr;
    assert!(stopped.contains("step 42 of stage cnce"), "{stopped}");
    scene.start_with(&RESUME, &[("LD_PRELOAD", library.as_str())]).wait().expect(0);
    let left = checkpoints(&scene.path("run"), "cnce");
    let is_hidden = |folder: &PathBuf| {
        folder.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'))
    };
    assert!(!left.iter().any(is_hidden), "{left:?}");
    assert!(left.last().is_some_and(|last| last.ends_with("step-00000042")), "{left:?}");
}

#[test]
fn a_run_needs_neither_flock_nor_flags_of_rename() {
    let scene = Scene::new();
    let library = no_locks(&scene);
    let preload = [("LD_PRELOAD", library.as_str())];
    let target = ["digits_cnce", "train.epochs=100000", "rows=[]"];
    let mut running = scene.start_with(&[&LAUNCH[..], &target].concat(), &preload);
    running.wait_for_steps("run", 30);
    let pid = coordinator(&scene.path("run")).expect("at work");
    let second = scene.spawn("thanos-coord", "second", &RESUME, &preload).wait().expect(64).stderr;
    assert!(second.contains(&format!("in use by another coordinator (pid {pid} on ")), "{second}");
    let status =
        scene.spawn("thanos-coord", "status", &["status", "run"], &preload).wait().expect(0).stdout;
    assert!(status.contains(&format!("coordinator  pid {pid} on ")), "{status}");
    // One that is killed leaves its lock; the one that is restarted takes it over at once.
    send(pid, Signal::SIGKILL);
    let made = lines(&scene.path("run"), "steps.jsonl").len();
    running.wait_for_steps("run", made + 30);
    running.interrupt().expect(75);
    assert!(!scene.path("run/lock.held").exists());
    let steps = format!("train.max_steps={}", lines(&scene.path("run"), "steps.jsonl").len() + 5);
    scene.start_with(&[&RESUME[..], &[&steps]].concat(), &preload).wait().expect(0);
}
