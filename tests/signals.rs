//! A stop request is honoured however it is delivered: to the whole process tree, as systemd and
//! Slurm do, to workers only, twice at once. Each ends with a checkpoint of the last step and exit
//! code 75, and the resumed run is the uninterrupted one to the bit. A checkpoint that cannot be
//! written for a moment is retried, within the grace period.

use crate::disks::{BadDisk, FULL};
use crate::print_line;
use crate::recovery::{assert_equal, launch};
use nix::sys::signal::Signal;
use std::fs;
use std::time::{Duration, Instant};
use thanos_tests::processes::{coordinator, exit_within, is_alive, send, workers};
use thanos_tests::{Invitation, Running, Scene, lines};

/// The only checkpoints are those of a stop and of the end.
pub(crate) const TARGET: [&str; 4] =
    ["digits_supcon", "train.max_steps=250", "checkpoint.every_steps=100000", "rows=[]"];
const SIGTERM_BIT: u64 = 1 << (Signal::SIGTERM as u64 - 1);

pub(crate) fn undisturbed() -> Scene {
    let scene = Scene::new();
    scene.launch("whole", 2, &TARGET).expect(0);
    scene
}

/// The run was stopped with a checkpoint of its last step, and continues to the end of the
/// uninterrupted one.
#[track_caller]
pub(crate) fn assert_stopped_and_resumable(whole: &Scene, scene: &Scene) {
    let run = scene.path("run");
    let events = lines(&run, "events.jsonl");
    let ended = events.last().expect("events");
    let steps = lines(&run, "steps.jsonl").len();
    assert!((20..250).contains(&steps), "{steps} steps");
    assert_eq!(
        (&ended["event"], &ended["how"], &ended["step"]),
        (&"ended".into(), &"stopped".into(), &steps.into())
    );
    let count = |kind: &str| events.iter().filter(|event| event["event"] == kind).count();
    assert_eq!((count("coordinator"), count("lost"), count("restarting")), (1, 0, 0), "{events:?}");
    scene.launch("run", 2, &["--resume"]).expect(0);
    assert_equal(scene, &whole.path("whole"), &run, &["supcon"]);
}

/// The processes of a run: its supervisor, its coordinator and its workers.
struct Tree {
    supervisor: i32,
    coordinator: i32,
    workers: Vec<i32>,
}

impl Tree {
    fn of(scene: &Scene, running: &Running) -> Self {
        let run = scene.path("run");
        let workers: Vec<i32> = workers(&run).into_values().collect();
        assert_eq!(workers.len(), 2);
        Self {
            supervisor: running.pid(),
            coordinator: coordinator(&run).expect("it runs"),
            workers,
        }
    }

    fn all(&self) -> Vec<i32> {
        [&[self.supervisor, self.coordinator], &self.workers[..]].concat()
    }
}

fn check(whole: &Scene, deliver: impl FnOnce(&Tree), reason: &str) {
    let scene = Scene::new();
    let mut running = launch(&scene, "run", "2", &TARGET);
    running.wait_for_steps("run", 20);
    deliver(&Tree::of(&scene, &running));
    let ran = running.wait().expect(75);
    assert!(ran.stderr.contains(&format!("stopping at a common step: {reason}")), "{}", ran.stderr);
    assert_stopped_and_resumable(whole, &scene);
}

fn send_all(pids: &[i32], signal: Signal) {
    pids.iter().for_each(|pid| send(*pid, signal));
}

#[test]
fn a_stop_is_honoured_however_it_is_delivered() {
    let whole = undisturbed();
    check(&whole, |tree| send_all(&tree.all(), Signal::SIGTERM), "SIGTERM");
    check(&whole, |tree| send_all(&tree.workers, Signal::SIGTERM), "SIGTERM received by worker-");
    check(&whole, |tree| send(tree.workers[1], Signal::SIGINT), "SIGINT received by worker-1");
    check(&whole, |tree| send(tree.workers[0], Signal::SIGUSR1), "SIGUSR1 received by worker-0");
    check(&whole, |tree| send(tree.supervisor, Signal::SIGHUP), "SIGHUP");
    let twice = |tree: &Tree| {
        send_all(&tree.all(), Signal::SIGTERM);
        // Pending signals of one kind are one: the second must come when the first was handled.
        std::thread::sleep(Duration::from_millis(80));
        send_all(&tree.all(), Signal::SIGTERM);
    };
    check(&whole, twice, "SIGTERM");
}

/// Waits until a process handles SIGTERM.
fn wait_until_handled(running: &mut Running) {
    let status = format!("/proc/{}/status", running.pid());
    running.wait_until("a handler of SIGTERM", || {
        let status = fs::read_to_string(&status).unwrap_or_default();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
        mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
            .is_some_and(|mask| mask & SIGTERM_BIT > 0)
    });
}

/// There is no run yet that it could have left in disorder.
#[test]
fn a_worker_that_is_signalled_before_it_has_joined_ends_at_once() {
    let scene = Scene::alone();
    let reserved = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = reserved.local_addr().expect("an address").to_string();
    // The port accepts, and never answers.
    let mut worker = scene.worker(&Invitation { address, credentials: None }, "early", &[]);
    wait_until_handled(&mut worker);
    let asked = Instant::now();
    send(worker.pid(), Signal::SIGTERM);
    let ran = worker.wait().expect(75);
    assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
    assert!(ran.stderr.contains("stopped while waiting for the coordinator"), "{}", ran.stderr);
}

#[test]
fn a_later_second_signal_ends_a_worker_at_once() {
    let scene = Scene::alone();
    let mut running =
        launch(&scene, "run", "2", &[&TARGET[..], &["train.max_steps=100000"]].concat());
    running.wait_for_steps("run", 20);
    let worker = workers(&scene.path("run"))["worker-1"];
    send(worker, Signal::SIGTERM);
    std::thread::sleep(Duration::from_millis(1200));
    assert!(is_alive(worker), "the first signal must not end it");
    send(worker, Signal::SIGTERM);
    exit_within(&[worker], Duration::from_secs(1));
    running.interrupt().expect(75);
}

/// A run that is asked to stop while its disk is full; `None`: nothing can be mounted here.
fn stop_on_a_full_disk(scene: &Scene, more: &[&str]) -> Option<(Running, BadDisk)> {
    let mut running = launch(scene, "run", "2", &[more, &TARGET].concat());
    running.wait_for_steps("run", 20);
    let stage = scene.path("run/checkpoints/supcon");
    fs::create_dir_all(&stage).expect("a folder");
    let Some(disk) = BadDisk::mount(&stage, FULL) else {
        print_line("skipped: no tmpfs can be mounted here (it needs root)");
        return None;
    };
    send(running.pid(), Signal::SIGTERM);
    running.wait_for_line("retrying in 1 s");
    Some((running, disk))
}

#[test]
fn a_stop_on_a_disk_that_was_full_for_a_moment_ends_with_a_checkpoint() {
    let (whole, scene) = (undisturbed(), Scene::new());
    let Some((running, disk)) = stop_on_a_full_disk(&scene, &[]) else { return };
    drop(disk);
    let ran = running.wait().expect(75);
    assert!(ran.stderr.contains("checkpoint save failed: step "), "{}", ran.stderr);
    assert_stopped_and_resumable(&whole, &scene);
}

#[test]
fn a_stop_on_a_full_disk_is_retried_within_its_grace_and_no_longer() {
    let scene = Scene::alone();
    let Some((running, disk)) = stop_on_a_full_disk(&scene, &["--grace", "6s"]) else { return };
    let asked = Instant::now();
    let ran = running.wait();
    let took = asked.elapsed();
    drop(disk);
    assert!(ran.stderr.contains("retrying in 2 s"), "{ran:?}");
    assert!(Duration::from_secs(2) < took && took < Duration::from_secs(7), "{took:?}: {ran:?}");
    assert!(
        ran.stderr.contains("the grace period is over: the run ends at its last checkpoint"),
        "{ran:?}"
    );
    ran.expect(75);
}
