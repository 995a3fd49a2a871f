//! A worker whose network is cut off: no connection is closed, nothing answers. It is evicted
//! within five seconds, the others continue, it commits nothing, and it comes back when it can.
//! Each worker is in a network namespace of its own, whose link is taken down; that needs root, and
//! without it this test says that it was skipped.

use crate::print_line;
use std::time::{Duration, Instant};
use thanos_tests::network::Network;
use thanos_tests::{Invitation, Running, Scene, lines, program};

const WORKERS: [&str; 3] = ["a", "b", "c"];

fn worker(scene: &Scene, invitation: &Invitation, index: usize) -> Running {
    let (id, program) = (WORKERS[index], program("thanos-worker").display().to_string());
    let space = format!("thanos-{id}");
    let credentials = invitation.credentials.as_deref().expect("it asks for some");
    let inside =
        ["netns", "exec", &space, &program, "--coordinator", &invitation.address, "--id", id];
    let inside = [&inside[..], &["--credentials", credentials]].concat();
    scene.spawn_program("ip".as_ref(), id, &inside, &[])
}

#[test]
fn a_partitioned_worker_is_evicted_within_five_seconds_and_rejoins() {
    let Some(network) = Network::new("thanos-test", "10.213.87", &WORKERS) else {
        print_line("skipped: no network namespaces can be made here (it needs root)");
        return;
    };
    let scene = Scene::alone();
    let arguments = [
        "serve",
        "--nodes",
        "2:3",
        "--rendezvous-timeout",
        "1s",
        "--listen",
        "10.213.87.1:0",
        "--run-dir",
        "run",
    ];
    let target =
        ["digits_supcon", "train.epochs=100000", "rows=[]", "timeouts.heartbeat_seconds=3"];
    let mut serving = scene.start(&[&arguments[..], &target].concat());
    let invitation = serving.invitation();
    let workers: Vec<Running> = (0..3).map(|index| worker(&scene, &invitation, index)).collect();
    serving.wait_for_steps("run", 30);
    network.set_link("c", "down");
    let cut = Instant::now();
    serving.wait_for_line("generation 2 continues");
    let out = cut.elapsed();
    let steps = lines(&scene.path("run"), "steps.jsonl").len();
    serving.wait_for_steps("run", steps + 10);
    network.set_link("c", "up");
    serving.wait_for_line("generation 3: 3 workers");
    let back = cut.elapsed() - out;
    let steps = lines(&scene.path("run"), "steps.jsonl").len();
    serving.wait_for_steps("run", steps + 10);
    serving.interrupt().expect(75);
    for worker in workers {
        worker.wait().expect(75);
    }
    let output = scene.coord(&["verify-run", "run"]).expect(0).stdout;
    assert!(output.contains("in 3 generations: every step exactly once and in order"), "{output}");
    print_line(&format!(
        "a worker that was cut off was out after {out:.2?}, and back {back:.2?} later"
    ));
    assert!(out < Duration::from_secs(5), "{out:?}");
}
