//! A worker whose connection to the coordinator is bad: slow, cut, or half-open, so that neither
//! end is notified. Its peers reach it all the while; every step is in the ledger once.

use crate::print_line;
use std::time::{Duration, Instant};
use thanos_tests::proxy::{Mode, Proxy};
use thanos_tests::{Invitation, Scene, lines};

const AT_ONCE: Mode = Mode::After(Duration::ZERO);

#[test]
fn a_bad_line_to_the_coordinator_costs_time_and_no_step() {
    let scene = Scene::alone();
    let target =
        ["digits_supcon", "rows=[]", "train.epochs=100000", "timeouts.heartbeat_seconds=3"];
    let arguments = ["serve", "--nodes", "1:2", "--rendezvous-timeout", "2s", "--run-dir", "run"];
    let mut serving = scene.start(&[&arguments[..], &target].concat());
    let invitation = serving.invitation();
    let near = scene.worker(&invitation, "a", &[]);
    let proxy = Proxy::before(&invitation.address, Mode::After(Duration::from_millis(100)));
    let through_proxy = Invitation { address: proxy.address(), ..invitation };
    let far = scene.worker(&through_proxy, "b", &[]);
    let steps = || {
        std::fs::read_to_string(scene.path("run/steps.jsonl")).unwrap_or_default().lines().count()
    };

    // Slow: a fifth of a second there and back.
    serving.wait_for_line("generation 1: 2 workers");
    serving.wait_for_steps("run", 60);
    // Cut: both are notified, and the worker reconnects.
    proxy.set(AT_ONCE);
    proxy.cut();
    serving.wait_for_line("generation 2");
    let before = steps();
    serving.wait_for_steps("run", before + 30);
    // Half-open: neither end is notified.
    proxy.set(Mode::Silent);
    let silent = Instant::now();
    serving.wait_for_line("b (rank 1");
    serving.wait_until("one worker alone", || {
        lines(&scene.path("run"), "events.jsonl")
            .iter()
            .any(|event| event["event"] == "began" && event["ranks"] == serde_json::json!(["a"]))
    });
    let out = silent.elapsed();
    let before = steps();
    serving.wait_for_steps("run", before + 30);
    proxy.set(AT_ONCE);
    let began = || {
        lines(&scene.path("run"), "events.jsonl")
            .iter()
            .rev()
            .find(|event| event["event"] == "began")
            .cloned()
    };
    serving.wait_until("both again", || {
        began().is_some_and(|event| event["ranks"] == serde_json::json!(["a", "b"]))
    });
    let before = steps();
    serving.wait_for_steps("run", before + 30);
    serving.interrupt().expect(75);
    near.wait().expect(75);
    far.wait().expect(75);
    let output = scene.coord(&["verify-run", "run"]).expect(0).stdout;
    assert!(output.contains("every step exactly once and in order"), "{output}");
    print_line(&format!(
        "a worker whose line was half-open was out after {out:.1?}, and came back"
    ));
    assert!(out < Duration::from_secs(8), "{out:?}");
}
