//! A run with `--nodes 1:3` begins with the worker that is there, grows when more come, shrinks
//! when one goes, and its curve is that of one worker: the global batch is the same for every set
//! of workers.

use crate::print_line;
use thanos_tests::{Running, Scene, lines, losses};

const TARGET: [&str; 4] =
    ["digits_supcon", "train.max_steps=300", "checkpoint.every_steps=100", "rows=[]"];
/// A worker that joins meanwhile asks the others to regroup before they were sent their generation.
const SLOW_DISK: [(&str, &str); 1] = [("FAILPOINTS", "ledger-sync=sleep(300)")];
/// Steps in which the curve must agree, and how well.
const STEPS: usize = 50;
const MAX_DIFFERENCE: f64 = 1e-5;

fn wait_for_world_size(running: &mut Running, scene: &Scene, world_size: u64) {
    running.wait_until("a generation of that size", || {
        let text = std::fs::read_to_string(scene.path("run/steps.jsonl")).unwrap_or_default();
        text.lines()
            .last()
            .is_some_and(|line| line.contains(&format!("\"world_size\":{world_size},")))
    });
}

#[test]
fn it_grows_and_shrinks_and_keeps_its_curve() {
    let scene = Scene::new();
    scene.launch("whole", 1, &TARGET).expect(0);
    let arguments =
        ["serve", "--nodes", "1:3", "--rendezvous-timeout", "500ms", "--run-dir", "run"];
    let mut serving = scene.start_with(&[&arguments[..], &TARGET].concat(), &SLOW_DISK);
    let invitation = serving.invitation();
    let first = scene.worker(&invitation, "a", &[]);
    serving.wait_for_steps("run", 10);
    let (second, third) =
        (scene.worker(&invitation, "b", &[]), scene.worker(&invitation, "c", &[]));
    wait_for_world_size(&mut serving, &scene, 3);
    let steps = lines(&scene.path("run"), "steps.jsonl").len();
    serving.wait_for_steps("run", steps + 30);
    // Killed: this handle ends its process when it is dropped.
    drop(second);
    wait_for_world_size(&mut serving, &scene, 2);
    serving.wait().expect(0);
    first.wait().expect(0);
    third.wait().expect(0);
    let output = scene.coord(&["verify-run", "run"]).expect(0).stdout;
    assert!(output.contains("300 steps of 1 stages"), "{output}");
    let sizes = lines(&scene.path("run"), "steps.jsonl");
    let sizes: Vec<u64> =
        sizes.iter().map(|line| line["world_size"].as_u64().expect("a number")).collect();
    let (whole, elastic) =
        (losses(&scene.path("whole"), "supcon"), losses(&scene.path("run"), "supcon"));
    let pairs = whole.iter().zip(&elastic).take(STEPS);
    let apart = pairs.map(|(one, other)| ((one - other) / one).abs()).fold(0.0, f64::max);
    let count = |size| sizes.iter().filter(|of| **of == size).count();
    print_line(&format!(
        "{} steps with one worker, {} with two, {} with three: losses {apart:.1e} apart in {STEPS} \
        steps",
        count(1),
        count(2),
        count(3)
    ));
    assert!(count(1) >= 10 && count(2) > 0 && count(3) >= 30, "{sizes:?}");
    assert!(apart < MAX_DIFFERENCE, "{apart}");
}
