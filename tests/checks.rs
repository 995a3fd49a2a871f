//! What all ranks check in a step, and decide alike: non-finite values, and replica divergence.
//! Both are made on purpose, on one rank.

use serde_json::Value;
use thanos_tests::{Ran, Scene, lines, losses};

fn run(scene: &Scene, run_dir: &str, failpoint: &str, overrides: &[&str]) -> Ran {
    let arguments = [
        "launch",
        "--nodes",
        "3",
        "--threads-per-worker",
        "1",
        "--run-dir",
        run_dir,
        "digits_cnce",
    ];
    let stage = ["train.max_steps=30", "rows=[]"];
    scene
        .start_with(&[&arguments[..], &stage, overrides].concat(), &[("FAILPOINTS", failpoint)])
        .wait()
}

/// The one event of a kind.
fn event(scene: &Scene, run_dir: &str, kind: &str) -> Value {
    let mut events = lines(&scene.path(run_dir), "events.jsonl");
    events.retain(|event| event["event"] == kind);
    assert_eq!(events.len(), 1, "{kind}: {events:?}");
    events.remove(0)
}

#[test]
fn a_non_finite_gradient_is_reported_and_ends_the_run_or_is_skipped() {
    let scene = Scene::new();
    let poison = "poison-gradient=return(1:7)";
    let ran = run(&scene, "stop", poison, &[]).expect(70);
    for part in [
        "the gradient of `",
        "is non-finite on rank 1 at step 7 of stage cnce",
        "checks.on_non_finite: skip",
    ] {
        assert!(ran.stderr.contains(part), "no `{part}` in {}", ran.stderr);
    }
    assert_eq!(
        losses(&scene.path("stop"), "cnce").len(),
        7,
        "nothing is reported of a step that was not made"
    );

    run(&scene, "skip", poison, &["checks.on_non_finite=skip"]).expect(0);
    let skipped = event(&scene, "skip", "skipped");
    assert_eq!((&skipped["stage"], &skipped["step"]), (&"cnce".into(), &7.into()));
    assert!(
        skipped["problem"].as_str().is_some_and(|problem| problem.ends_with("on rank 1")),
        "{skipped}"
    );
    let steps = lines(&scene.path("skip"), "steps.jsonl");
    let skipped_steps: Vec<&Value> =
        steps.iter().filter(|line| line["skipped"].is_string()).map(|line| &line["step"]).collect();
    assert_eq!((steps.len(), skipped_steps), (30, vec![&7.into()]));
    let output = scene.coord(&["verify-run", "skip"]).expect(0).stdout;
    assert!(output.contains("30 steps of 1 stages"), "{output}");
    // Whatever it was, it is not in the weights.
    assert!(losses(&scene.path("skip"), "cnce").iter().all(|loss| loss.is_finite()));
}

#[test]
fn replica_divergence_is_reported_and_ends_the_run_or_is_repaired() {
    let scene = Scene::new();
    let (change, every) = ("change-weight=return(2:12)", "checks.compare_ranks_every=10");
    let ran = run(&scene, "stop", change, &[every]).expect(70);
    for part in [
        "of rank 2 is not that of rank 0 after step 20 of stage cnce",
        "checks.on_divergence: repair",
    ] {
        assert!(ran.stderr.contains(part), "no `{part}` in {}", ran.stderr);
    }
    run(&scene, "repair", change, &[every, "checks.on_divergence=repair"]).expect(0);
    let repaired = event(&scene, "repair", "repaired");
    assert!(
        repaired["problem"].as_str().is_some_and(|problem| problem.contains("of rank 2")),
        "{repaired}"
    );
    assert_eq!(losses(&scene.path("repair"), "cnce").len(), 30);
}
