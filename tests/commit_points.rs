//! A checkpoint is written in many small steps, and its writer may be killed after each of them:
//! afterwards there is the old one or the new one, the run continues by itself, and its result is
//! the same.

use crate::recovery::{assert_equal, launch};
use std::path::Path;
use thanos_coord::verify;
use thanos_tests::{Scene, checkpoints};

const TARGET: [&str; 4] =
    ["digits_supcon", "train.max_steps=40", "checkpoint.every_steps=10", "rows=[]"];

/// `point`, reached for the second time, ends the process that is there: rank 0, or the
/// coordinator.
fn check(scene: &Scene, point: &str, who: &str) {
    let arguments = ["launch", "--nodes", "2", "--threads-per-worker", "1", "--run-dir", point];
    let armed = format!("{point}=1*sleep(0)->return");
    let ran = scene
        .start_with(&[&arguments[..], &TARGET].concat(), &[("FAILPOINTS", &armed)])
        .wait()
        .expect(0);
    assert!(ran.stderr.contains(who), "{point}: {}", ran.stderr);
    let run_dir = scene.path(point);
    assert_equal(scene, &scene.path("whole"), &run_dir, &["supcon"]);
    for folder in checkpoints(&run_dir, "supcon") {
        let name = folder.file_name().map(Path::new).expect("a name").display().to_string();
        assert!(name.starts_with("step-"), "{point}: {name} is left over");
        verify(&folder).unwrap_or_else(|error| panic!("{point}: {name}: {error:#}"));
    }
}

#[test]
fn a_kill_in_a_save_leaves_the_old_checkpoint_or_the_new_one() {
    let scene = Scene::new();
    launch(&scene, "whole", "2", &TARGET).wait().expect(0);
    for point in ["save-written", "save-synced"] {
        check(&scene, point, "worker-0 was killed by signal 6");
    }
    for point in
        ["commit-manifest", "commit-rename", "commit-renamed", "commit-latest", "commit-prune"]
    {
        check(&scene, point, "was killed by SIGABRT: restarting it");
    }
}
