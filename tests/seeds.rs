//! Several runs by one command: `launch --seeds` and `--sweep`, stopped, killed, failed and resumed
//! as a whole, and `report` over their directories.

use nix::sys::signal::Signal;
use std::fs;
use std::time::{Duration, Instant};
use thanos_tests::processes::{commands_in, send};
use thanos_tests::{Ran, Running, Scene, losses, results};

/// Short runs of one worker.
const TARGET: [&str; 7] = [
    "digits_cnce",
    "--nodes",
    "1",
    "--threads-per-worker",
    "1",
    "train.max_steps=40",
    "transfer.max_steps=2",
];
const MAX_EXIT: Duration = Duration::from_secs(6);

fn series(scene: &Scene, arguments: &[&str]) -> Running {
    scene.start(&[&["launch", "--run-dir", "all"], &TARGET[..], arguments].concat())
}

fn resume(scene: &Scene) -> Ran {
    scene.coord(&["launch", "--resume", "--run-dir", "all"])
}

/// Waits until every process of a killed series has exited: each ends with the one that started it.
fn wait_for_exit(scene: &Scene) {
    let started = Instant::now();
    while !commands_in(&scene.path("")).is_empty() {
        assert!(started.elapsed() < MAX_EXIT, "{:?}", commands_in(&scene.path("")));
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_series_that_was_killed_and_stopped_is_resumed_as_a_whole() {
    let scene = Scene::new();
    let mut killed = series(&scene, &["--seeds", "1..4"]);
    killed.wait_for_steps("all/seed-1", 5);
    send(killed.pid(), Signal::SIGKILL);
    _ = killed.wait();
    wait_for_exit(&scene);
    let mut stopped = scene.start(&["launch", "--resume", "--run-dir", "all"]);
    stopped.wait_for_steps("all/seed-2", 5);
    let stopped = stopped.interrupt().expect(75);
    assert!(stopped.stderr.contains(
        "seed-2: stopped; resume the series: thanos-coord launch --resume --run-dir all"
    ));
    assert_eq!(stopped.stdout, "", "the table is printed at the end");
    assert!(!scene.path("all/seed-3").exists());
    let ran = resume(&scene).expect(0);
    assert!(ran.stderr.contains("run 1 of 3, seed-1: it has finished already"), "{}", ran.stderr);
    assert!(ran.stdout.contains("digits_cnce: 3 runs, seeds 1 2 3"), "{}", ran.stdout);
    assert_eq!(ran.stdout.matches("kNN  ").count(), 1, "one table: {}", ran.stdout);
    assert_eq!(scene.coord(&["report", "all"]).expect(0).stdout, ran.stdout);
    // Each run is what a single launch of its seed is.
    scene
        .launch(
            "single",
            1,
            &["digits_cnce", "train.max_steps=40", "transfer.max_steps=2", "seed=2"],
        )
        .expect(0);
    assert_eq!(losses(&scene.path("all/seed-2"), "cnce"), losses(&scene.path("single"), "cnce"));
    let table = results(&scene.path("all"));
    let fine = &table["groups"][0]["rows"][0]["fine_test_accuracy"];
    assert_eq!(fine["n"], 3, "{table}");
    assert_eq!(fine["values"][1], results(&scene.path("single"))["rows"][0]["fine_test_accuracy"]);
    // Nothing is left to do.
    assert_eq!(resume(&scene).expect(0).stdout, ran.stdout);
}

#[test]
fn a_run_that_fails_ends_the_series_with_its_exit_code() {
    let scene = Scene::new();
    fs::create_dir(scene.path("all")).expect("made");
    fs::write(scene.path("all/seed-1"), "a file, where a directory has to be").expect("written");
    let failed = series(&scene, &["--seeds", "3"]).wait().expect(74);
    assert!(
        failed.stderr.contains("run 2 of 3, seed-1: it failed with exit code 74"),
        "{}",
        failed.stderr
    );
    assert_eq!(results(&scene.path("all"))["groups"][0]["seeds"], serde_json::json!([0]));
    assert!(!scene.path("all/seed-2").exists());
    fs::remove_file(scene.path("all/seed-1")).expect("removed");
    assert!(resume(&scene).expect(0).stdout.contains("3 runs, seeds 0 1 2"));
}

#[test]
fn a_sweep_is_compared_by_its_keys_and_paired_over_seeds() {
    let scene = Scene::new();
    let sweep = ["--sweep", "objective.temperature=0.3,0.9", "--seeds", "2", "--quick"];
    let ran = series(&scene, &sweep).wait().expect(0);
    for part in [
        "QUICK RUN",
        "objective.temperature=0.3: 2 runs, seeds 0 1",
        "0.3 | 0.9",
        "cnce: objective.temperature=0.9 - objective.temperature=0.3",
    ] {
        assert!(ran.stdout.contains(part), "no `{part}` in {}", ran.stdout);
    }
    let runs = ["all/objective.temperature=0.3/seed-1", "all/objective.temperature=0.9/seed-1"];
    let two = scene.coord(&[&["report", "--format", "csv"], &runs[..]].concat()).expect(0).stdout;
    let line = |line: &&str| {
        line.starts_with(
            "paired_difference,objective.temperature=0.9,objective.temperature=0.3,cnce,",
        )
    };
    assert_eq!(two.lines().filter(line).count(), 3, "{two}");
    assert!(
        scene.coord(&["report", "all", "--format", "latex"]).expect(0).stdout.contains("\\toprule")
    );
    assert!(
        scene.coord(&["report", runs[0]]).expect(0).stdout.contains("digits_cnce, seed 1 (run ")
    );
}

#[test]
fn what_cannot_run_is_refused_before_the_first_run() {
    let scene = Scene::new();
    let check = |arguments: &[&str], code: i32, part: &str| {
        let ran = scene.coord(arguments).expect(code);
        assert!(ran.stderr.contains(part), "{arguments:?}: no `{part}` in {}", ran.stderr);
        assert!(!scene.path("runs").exists() && !scene.path("all").exists(), "{arguments:?}");
    };
    check(&["launch", "digits_cnce", "--sweep", "train.batch_size=8,x"], 78, "train.batch_size");
    check(&["launch", "digits_cnce", "--seeds", "2", "seed=3"], 64, "seed is set and listed");
    check(&["launch", "digits_cnce", "--seeds", "0"], 64, "1 to 1000 seeds");
    check(&["serve", "digits_cnce", "--seeds", "2"], 64, "serve coordinates one run");
    check(
        &["launch", "digits_cnce", "--seeds", "2", "--resume", "--run-dir", "all"],
        64,
        "no series to resume",
    );
    fs::create_dir(scene.path("other")).expect("made");
    fs::write(scene.path("other/series.json"), "{}").expect("written");
    let other = ["launch", "digits_cnce", "--run-dir", "other"];
    check(&[&other[..], &["--seeds", "2"]].concat(), 64, "already contains a series");
    check(&other, 64, "already contains a series");
    check(&["report", "other"], 65, "series.json");
}
