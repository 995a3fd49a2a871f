//! `bench`: one line of JSON whose numbers belong together, for data that is not here, too; and no
//! files left, however it ends.

use nix::sys::signal::Signal;
use serde_json::Value;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;
use thanos_tests::processes::{exit_within, send, workers};
use thanos_tests::{Ran, Running, Scene};

/// A model of CIFAR's shape that takes milliseconds.
const SMALL_CIFAR: [&str; 3] = [
    "cifar10_cnce",
    "train.batch_size=8",
    "model.encoder={vit: {patch: 8, width: 32, depth: 1, heads: 2, mlp: 32}}",
];

/// Starts a benchmark whose temporary files go into a folder of the scene.
fn start(scene: &Scene, arguments: &[&str], failpoints: &str) -> Running {
    let folder = temporary(scene);
    fs::create_dir_all(&folder).expect("a folder");
    let folder = folder.to_str().expect("UTF-8");
    let arguments = [&["bench", "--threads-per-worker", "1"], arguments].concat();
    scene.start_with(&arguments, &[("TMPDIR", folder), ("FAILPOINTS", failpoints)])
}

fn temporary(scene: &Scene) -> PathBuf {
    scene.path("temporary")
}

fn temporary_entries(scene: &Scene) -> Vec<PathBuf> {
    let entries = fs::read_dir(temporary(scene)).expect("the folder");
    entries.map(|entry| entry.expect("an entry").path()).collect()
}

/// The run directory of a benchmark that has begun.
fn run_dir(scene: &Scene) -> PathBuf {
    let entries = temporary_entries(scene);
    assert_eq!(entries.len(), 1, "{entries:?}");
    entries[0].join("run")
}

/// Neither a run of the user nor a temporary file is there.
#[track_caller]
fn nothing_is_left(scene: &Scene) {
    assert_eq!(temporary_entries(scene), Vec::<PathBuf>::new());
    assert!(!scene.path("runs").exists());
}

/// The one line that a benchmark has printed.
#[track_caller]
fn result(ran: &Ran) -> Value {
    assert_eq!(ran.stdout.lines().count(), 1, "{}", ran.stdout);
    serde_json::from_str(&ran.stdout).expect("JSON")
}

#[track_caller]
fn number(result: &Value, pointer: &str) -> f64 {
    let number = result.pointer(pointer).and_then(Value::as_f64);
    number.filter(|number| *number > 0.0).unwrap_or_else(|| panic!("{pointer} of {result}"))
}

#[track_caller]
fn numbers_belong_together(result: &Value, (batch, workers, steps): (f64, u64, u64)) {
    for (key, expected) in [("batch", batch as u64), ("workers", workers), ("steps", steps)] {
        assert_eq!(result[key], expected, "{key} of {result}");
    }
    for (rate, time) in [("median", "median"), ("min", "max"), ("max", "min")] {
        let (rate, ms) = (
            number(result, &format!("/images_per_s/{rate}")),
            number(result, &format!("/ms_per_step/{time}")),
        );
        assert!(
            (rate * ms / 1e3 / batch - 1.0).abs() < 1e-9,
            "{rate} images/s and {ms} ms are not {batch} images"
        );
    }
    let (ms, mean) = (number(result, "/ms_per_step/median"), number(result, "/ms_per_step/mean"));
    let (flops, ceiling) =
        (number(result, "/flops_per_step"), number(result, "/ceiling_flops_per_s"));
    let mfu = flops / (workers as f64 * ceiling * ms / 1e3);
    assert!((number(result, "/mfu") / mfu - 1.0).abs() < 1e-9, "{result}");
    // Phases are all of a step until it is committed.
    let phases = ["data", "forward", "gather", "backward", "reduce", "update"];
    let sum: f64 =
        phases.iter().map(|phase| result["phase_ms"][phase].as_f64().expect("a phase")).sum();
    assert!(sum > 0.5 * mean && sum <= mean, "{sum} ms in phases of {mean} ms: {result}");
    for pointer in ["/peak_memory_bytes", "/operators_per_step", "/parameters"] {
        number(result, pointer);
    }
    for (key, expected) in
        [("program", "thanos"), ("precision", "float32"), ("collectives", "gloo")]
    {
        assert_eq!(result[key], expected, "{result}");
    }
    assert!(result["kernels_per_step"].is_null(), "{result}");
}

#[test]
fn a_benchmark_prints_one_line_and_leaves_nothing() {
    let scene = Scene::new();
    let mut flops = Vec::new();
    for workers in [1_u64, 2] {
        let count = workers.to_string();
        let arguments =
            ["digits_cnce", "seed=3", "--workers", &count, "--warmup", "2", "--steps", "6"];
        let ran = start(&scene, &arguments, "").wait().expect(0);
        let result = result(&ran);
        numbers_belong_together(&result, (64.0, workers, 6));
        assert_eq!(
            (&result["preset"], &result["overrides"]),
            (&"digits_cnce".into(), &serde_json::json!(["seed=3"]))
        );
        flops.push(number(&result, "/flops_per_step"));
        nothing_is_left(&scene);
    }
    // The network's products are shared out; the loss has all pairs on whichever rank.
    assert!((flops[1] / flops[0] - 1.0).abs() < 1e-9, "{flops:?}");
}

#[test]
fn data_need_not_be_on_this_machine() {
    let scene = Scene::new();
    let arguments = [&SMALL_CIFAR[..], &["--warmup", "1", "--steps", "3"]].concat();
    numbers_belong_together(&result(&start(&scene, &arguments, "").wait().expect(0)), (8.0, 1, 3));
    nothing_is_left(&scene);
}

#[test]
fn a_worker_that_dies_ends_the_benchmark_with_its_cause() {
    let scene = Scene::new();
    // The other one waits for it in a collective, and is freed.
    let arguments = [&SMALL_CIFAR[..], &["--workers", "2", "--steps", "100000"]].concat();
    let mut running = start(&scene, &arguments, "");
    running.wait_for_line("generation 1: 2 workers");
    let pids = workers(&run_dir(&scene));
    let ledger = run_dir(&scene).join("steps.jsonl");
    running.wait_until("steps", || {
        fs::read_to_string(&ledger).is_ok_and(|text| text.lines().count() > 20)
    });
    send(pids["worker-1"], Signal::SIGKILL);
    let ran = running.wait().expect(69);
    assert!(ran.stdout.is_empty(), "{}", ran.stdout);
    let cause = "worker-1 was killed by signal 9 and is not restarted";
    assert!(ran.stderr.contains(cause), "{}", ran.stderr);
    exit_within(&pids.into_values().collect::<Vec<i32>>(), Duration::from_secs(6));
    nothing_is_left(&scene);
}

#[test]
fn a_non_finite_loss_ends_the_benchmark() {
    let scene = Scene::new();
    let arguments = ["digits_cnce", "--warmup", "2", "--steps", "4"];
    let ran = start(&scene, &arguments, "poison-gradient=return(0:3)").wait();
    assert!(ran.code.is_some_and(|code| code != 0) && ran.stdout.is_empty(), "{ran:?}");
    assert!(ran.stderr.contains("at step 3 of stage cnce"), "{}", ran.stderr);
    nothing_is_left(&scene);
}

#[test]
fn a_benchmark_can_be_stopped() {
    let scene = Scene::new();
    let arguments = [&SMALL_CIFAR[..], &["--workers", "2", "--steps", "100000"]].concat();
    let mut running = start(&scene, &arguments, "");
    running.wait_for_line("generation 1: 2 workers");
    let ran = running.interrupt().expect(75);
    assert!(ran.stdout.is_empty(), "{}", ran.stdout);
    assert!(ran.stderr.contains("stopped: nothing was measured"), "{}", ran.stderr);
    nothing_is_left(&scene);
}

/// A worker that hangs keeps the first signal from ending it.
#[test]
fn a_second_signal_ends_a_benchmark_at_once() {
    let scene = Scene::new();
    let mut running = start(&scene, &["digits_cnce"], "hang=return(0:0)");
    running.wait_for_line("generation 1: 1 worker");
    let pids = workers(&run_dir(&scene));
    send(running.pid(), Signal::SIGINT);
    running.wait_for_line("stopping at a common step: Ctrl-C");
    send(running.pid(), Signal::SIGTERM);
    let ran = running.wait().expect(75);
    assert!(ran.stdout.is_empty(), "{}", ran.stdout);
    nothing_is_left(&scene);
    exit_within(&pids.into_values().collect::<Vec<i32>>(), Duration::from_secs(6));
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let scene = Scene::new();
    for (arguments, code, part) in [
        (vec!["no_such_preset"], 78, "unknown preset `no_such_preset`"),
        (vec![], 64, "name a preset"),
        (vec!["digits_cnce", "backbones.0.checkpoint=/weights"], 78, "every one has a checkpoint"),
        (vec!["digits_cnce", "--images", "10"], 64, "a batch has 64"),
        (vec!["digits_cnce", "--steps", "0"], 64, "--steps"),
        (vec!["digits_cnce", "train.batch=3"], 78, "train.batch"),
    ] {
        let ran = start(&scene, &arguments, "").wait().expect(code);
        assert!(
            ran.stdout.is_empty() && ran.stderr.contains(part),
            "{arguments:?}: {}",
            ran.stderr
        );
    }
    nothing_is_left(&scene);
}
