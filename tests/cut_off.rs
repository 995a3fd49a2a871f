//! A worker whose network is cut off: no connection is closed, nothing answers. It is out within five seconds, the others
//! go on, it commits nothing, and it comes back when it can. Each worker is in a network namespace of its own, whose
//! link is taken down; that needs root, and without it this test says that it was skipped.

use crate::tell;
use std::process::Command;
use std::time::{Duration, Instant};
use thanos_tests::{Invitation, Running, Scene, lines, program};

const BRIDGE: &str = "thanos-test";
const GATEWAY: &str = "10.213.87.1";
const WORKERS: [&str; 3] = ["a", "b", "c"];

fn ip(arguments: &str) -> bool {
    Command::new("ip").args(arguments.split(' ')).output().is_ok_and(|output| output.status.success())
}

fn host(index: usize) -> String {
    format!("10.213.87.{}", index + 2)
}

/// A bridge, and a namespace a worker; gone when this is dropped.
struct Network;

impl Network {
    fn new() -> Option<Self> {
        let network = Self;
        let bridge = ip(&format!("link add {BRIDGE} type bridge"))
            && ip(&format!("addr add {GATEWAY}/24 dev {BRIDGE}"))
            && ip(&format!("link set {BRIDGE} up"));
        let joined = |(index, worker): (usize, &&str)| {
            let (space, near, host) = (format!("thanos-{worker}"), format!("thanos-{worker}-0"), host(index));
            ip(&format!("netns add {space}"))
                && ip(&format!("link add {near} type veth peer name eth0 netns {space}"))
                && ip(&format!("link set {near} master {BRIDGE} up"))
                && ip(&format!("-n {space} addr add {host}/24 dev eth0"))
                && ip(&format!("-n {space} link set eth0 up"))
                && ip(&format!("-n {space} link set lo up"))
        };
        (bridge && WORKERS.iter().enumerate().all(joined)).then_some(network)
    }

    fn set_link(&self, worker: &str, state: &str) {
        assert!(ip(&format!("link set thanos-{worker}-0 {state}")), "the link of {worker} cannot be set {state}");
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for worker in WORKERS {
            ip(&format!("netns del thanos-{worker}"));
        }
        ip(&format!("link del {BRIDGE}"));
    }
}

fn worker(scene: &Scene, invitation: &Invitation, index: usize) -> Running {
    let (id, program) = (WORKERS[index], program("thanos-worker").display().to_string());
    let space = format!("thanos-{id}");
    let credentials = invitation.credentials.as_deref().expect("it asks for some");
    let inside = ["netns", "exec", &space, &program, "--coordinator", &invitation.address, "--id", id];
    let inside = [&inside[..], &["--credentials", credentials]].concat();
    scene.spawn_program("ip".as_ref(), id, &inside, &[])
}

#[test]
fn a_worker_that_is_cut_off_is_out_within_five_seconds_and_comes_back() {
    let Some(network) = Network::new() else {
        tell("skipped: no network namespaces can be made here (it needs root)");
        return;
    };
    let scene = Scene::new();
    let listen = format!("{GATEWAY}:0");
    let arguments = ["serve", "--nodes", "2:3", "--patience", "1s", "--listen", &listen, "--run-dir", "run"];
    let mut serving = scene.start(&[&arguments[..], &["digits_supcon", "train.epochs=100000", "rows=[]"]].concat());
    let invitation = serving.invitation();
    let workers: Vec<Running> = (0..3).map(|index| worker(&scene, &invitation, index)).collect();
    serving.wait_for_steps("run", 30);
    network.set_link("c", "down");
    let cut = Instant::now();
    serving.wait_for_line("generation 2 goes on");
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
    let told = scene.coord(&["verify-run", "run"]).expect(0).stdout;
    assert!(told.contains("in 3 generations: every step once and in order"), "{told}");
    tell(&format!("a worker that was cut off was out after {out:.2?}, and back {back:.2?} later"));
    assert!(out < Duration::from_secs(5), "{out:?}");
}
