//! Nothing stops a run: whichever worker is killed or stopped, at whatever moment, the others
//! continue, it is restarted without any intervention, and every committed loss, the weights and
//! the results are bit-identical to those of an uninterrupted run. Moments and victims are drawn
//! from a seed.

use crate::print_line;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};
use thanos_configs::SplitMix64;
use thanos_tests::processes::{commands_in, coordinator, descriptors, send, workers};
use thanos_tests::{Ran, Running, Scene, lines, program, results, weights_sha256};

/// Descriptors that a worker of four may have open.
const MAX_OPEN: usize = 64;
const STAGES: [&str; 3] = ["cnce", "cae", "transfer_thanos"];

pub(crate) fn launch(scene: &Scene, run_dir: &str, workers: &str, target: &[&str]) -> Running {
    let arguments =
        ["launch", "--nodes", workers, "--threads-per-worker", "1", "--run-dir", run_dir];
    scene.start(&[&arguments[..], target].concat())
}

/// Sends signals to workers at random moments until the run has ended, at most this many.
fn disturb(
    mut running: Running,
    run_dir: &Path,
    most: usize,
    pause: (f64, f64),
    signals: &[Signal],
) -> (Ran, usize) {
    let mut stream = SplitMix64::new(20_261_124);
    let (mut sent, mut most_open) = (0, 0);
    let mut next = Instant::now() + Duration::from_secs_f64(1.0);
    while !running.has_ended() {
        if sent < most && Instant::now() >= next {
            let pids: Vec<i32> = workers(run_dir).into_values().collect();
            // However many generations there were: a group that is over has closed what it had
            // opened.
            most_open = pids.iter().copied().map(descriptors).fold(most_open, usize::max);
            if !pids.is_empty() {
                let pid = pids[stream.below(pids.len() as u64) as usize];
                let signal = signals[stream.below(signals.len() as u64) as usize];
                sent += usize::from(kill(Pid::from_raw(pid), signal).is_ok());
            }
            next = Instant::now() + Duration::from_secs_f64(stream.uniform(pause.0, pause.1));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(most_open < MAX_OPEN, "a worker had {most_open} descriptors open");
    (running.wait(), sent)
}

/// Everything of two runs that must be equal; `verify-run` says so, too.
#[track_caller]
pub(crate) fn assert_equal(scene: &Scene, whole: &Path, disturbed: &Path, stages: &[&str]) {
    let ledger = |run_dir| {
        let mut steps = lines(run_dir, "steps.jsonl");
        steps.iter_mut().for_each(|step| step["generation"] = 0.into());
        steps
    };
    assert_eq!(ledger(whole), ledger(disturbed));
    let [one, other] = [whole, disturbed].map(|run_dir| run_dir.display().to_string());
    let output = scene.coord(&["verify-run", &one, &other]).expect(0).stdout;
    assert!(
        output.contains(
            "every step exactly once and in order, every sample of an epoch exactly once"
        ),
        "{output}"
    );
    assert!(output.contains("\nidentical in all "), "{output}");
    for stage in stages {
        assert_eq!(weights_sha256(whole, stage), weights_sha256(disturbed, stage), "stage {stage}");
    }
    let rows = |run_dir| {
        let mut rows = results(run_dir)["rows"].clone();
        for row in rows.as_array_mut().expect("rows") {
            (row["seconds"], row["data_wait_seconds"]) = (0.into(), 0.into());
        }
        rows
    };
    assert_eq!(rows(whole), rows(disturbed));
}

/// Seconds from each loss to the next generation, and how many losses there were.
fn recoveries(run_dir: &Path) -> (Vec<f64>, usize) {
    let events = lines(run_dir, "events.jsonl");
    let lost = events.iter().filter(|event| event["event"] == "lost").count();
    let recovered = events.iter().filter(|event| event["event"] == "recovered");
    let mut seconds: Vec<f64> =
        recovered.map(|event| event["seconds"].as_f64().expect("a number")).collect();
    seconds.sort_by(f64::total_cmp);
    (seconds, lost)
}

fn check_kills(most: usize, pause: (f64, f64), signals: &[Signal], target: &[&str]) {
    let scene = Scene::new();
    launch(&scene, "whole", "4", target).wait().expect(0);
    let (ran, sent) = disturb(
        launch(&scene, "disturbed", "4", target),
        &scene.path("disturbed"),
        most,
        pause,
        signals,
    );
    ran.expect(0);
    assert_equal(&scene, &scene.path("whole"), &scene.path("disturbed"), &STAGES);
    let (seconds, lost) = recoveries(&scene.path("disturbed"));
    assert!(lost > 0 && !seconds.is_empty(), "nothing was disturbed");
    let at = |share: f64| seconds[((seconds.len() - 1) as f64 * share).round() as usize];
    print_line(&format!(
        "{sent} signals, {lost} workers lost, {} recoveries: median {:.2} s, 95 % {:.2} s, max \
        {:.2} s; bit-identical",
        seconds.len(),
        at(0.5),
        at(0.95),
        at(1.0)
    ));
}

#[test]
fn killed_workers_change_no_bit() {
    let target = [
        "digits_thanos",
        "train.max_steps=60",
        "transfer.max_steps=100",
        "checkpoint.every_steps=20",
    ];
    check_kills(12, (0.3, 1.2), &[Signal::SIGKILL], &target);
}

#[test]
fn stopped_workers_are_named_and_restarted() {
    let target = [
        "digits_thanos",
        "train.max_steps=30",
        "transfer.max_steps=30",
        "checkpoint.every_steps=20",
    ];
    check_kills(2, (4.0, 5.0), &[Signal::SIGSTOP], &target);
}

/// `make chaos`: a hundred kills in one run of four workers.
#[test]
#[ignore = "takes minutes: make chaos"]
fn a_hundred_kills_change_no_bit() {
    let target = [
        "digits_thanos",
        "train.max_steps=1050",
        "transfer.max_steps=1000",
        "checkpoint.every_steps=100",
    ];
    check_kills(100, (0.5, 2.0), &[Signal::SIGKILL], &target);
}

/// Two of four die in the same moment, a third while the others recover, and one before it has
/// joined at all.
#[test]
fn several_at_once_settle_in_one_generation() {
    let scene = Scene::new();
    let target = ["digits_cae", "train.max_steps=80", "checkpoint.every_steps=20", "rows=[]"];
    launch(&scene, "whole", "4", &target).wait().expect(0);
    let mut running = launch(&scene, "disturbed", "4", &target);
    let run_dir = scene.path("disturbed");
    // Its processes: the launch, the coordinator, and then the workers.
    let mut started = Vec::new();
    running.wait_until("a worker to be started", || {
        started = commands_in(scene.path("").as_path());
        started.iter().any(|(_, command)| command.contains("--id worker-3"))
    });
    let first =
        started.iter().find(|(_, command)| command.contains("--id worker-3")).expect("just seen");
    send(first.0, Signal::SIGKILL);
    running.wait_for_steps("disturbed", 30);
    let pids: Vec<i32> = workers(&run_dir).into_values().collect();
    pids[..2].iter().for_each(|pid| send(*pid, Signal::SIGKILL));
    running.wait_until("the loss to be reported", || workers(&run_dir).len() < 4);
    send(pids[2], Signal::SIGKILL);
    let ran = running.wait().expect(0);
    assert!(ran.stderr.contains("was killed by signal 9: restarting it"), "{}", ran.stderr);
    assert_equal(&scene, &scene.path("whole"), &run_dir, &["cae"]);
    let began =
        lines(&run_dir, "events.jsonl").iter().filter(|event| event["event"] == "began").count();
    assert!((2..=4).contains(&began), "{began} generations");
}

/// No other worker holds the state of the only one: the last checkpoint does.
#[test]
fn when_all_workers_are_lost_the_last_checkpoint_is_taken() {
    let scene = Scene::new();
    let target =
        ["digits_cae", "train.max_steps=60", "transfer.max_steps=30", "checkpoint.every_steps=7"];
    launch(&scene, "whole", "1", &target).wait().expect(0);
    let mut running = launch(&scene, "disturbed", "1", &target);
    running.wait_for_steps("disturbed", 25);
    send(workers(&scene.path("disturbed"))["worker-0"], Signal::SIGKILL);
    running.wait().expect(0);
    assert_equal(&scene, &scene.path("whole"), &scene.path("disturbed"), &["cae", "transfer_cae"]);
    let recovered = lines(&scene.path("disturbed"), "events.jsonl");
    let recovered: Vec<&Value> =
        recovered.iter().filter(|event| event["event"] == "recovered").collect();
    assert_eq!((recovered.len(), &recovered[0]["from"]), (1, &"checkpoint".into()));
    assert!(
        recovered[0]["step"].as_u64().is_some_and(|step| step % 7 == 0 && step > 0),
        "{recovered:?}"
    );
}

/// The coordinator is killed five times, and so is a worker each time, a moment before or after: a
/// process that is restarted finds the others, and what they hold.
#[test]
fn killed_coordinators_lose_no_step() {
    let scene = Scene::alone();
    let target = [
        "digits_thanos",
        "train.max_steps=120",
        "transfer.max_steps=150",
        "checkpoint.every_steps=50",
    ];
    launch(&scene, "whole", "4", &target).wait().expect(0);
    let mut running = launch(&scene, "disturbed", "4", &target);
    let run_dir = scene.path("disturbed");
    let mut stream = SplitMix64::new(5);
    let (mut back, mut killed) = (Vec::new(), 0);
    for steps in [20, 70, 130, 190, 250] {
        running.wait_for_steps("disturbed", steps);
        let worker = workers(&run_dir).into_values().nth(stream.below(4) as usize);
        let both = stream.below(2) == 0;
        if let Some(worker) = worker.filter(|_| both) {
            send(worker, Signal::SIGKILL);
        }
        let Some(pid) = coordinator(&run_dir) else { continue };
        send(pid, Signal::SIGKILL);
        let started = Instant::now();
        running.wait_until("the coordinator to be back", || {
            coordinator(&run_dir).is_some_and(|again| again != pid)
        });
        back.push(started.elapsed());
        killed += 1;
    }
    let ran = running.wait().expect(0);
    assert_eq!(
        (killed, ran.stderr.matches("was killed by SIGKILL: restarting it").count()),
        (5, 5),
        "{}",
        ran.stderr
    );
    assert_equal(&scene, &scene.path("whole"), &run_dir, &STAGES);
    let most = back.iter().max().copied().unwrap_or_default();
    let (seconds, _) = recoveries(&run_dir);
    let slowest = seconds.last().copied().unwrap_or_default();
    print_line(&format!(
        "five coordinators killed: each back within {most:.2?}, in training {slowest:.2} s later; \
        bit-identical"
    ));
    assert!(most < Duration::from_secs(2), "{back:?}");
    // From memory, or else steps were lost.
    let events = lines(&run_dir, "events.jsonl");
    let from = events
        .iter()
        .filter(|event| event["event"] == "recovered")
        .map(|event| event["from"].clone());
    assert!(from.clone().all(|from| from["memory"].is_string()), "{:?}", from.collect::<Vec<_>>());
}

/// As the worker's program for GPUs is, whose name is another one.
#[test]
fn workers_of_any_program_are_taken_over_by_a_restarted_coordinator() {
    let scene = Scene::new();
    std::os::unix::fs::symlink(program("thanos-worker"), scene.path("my-worker")).expect("a link");
    let target = ["digits_supcon", "train.max_steps=120", "rows=[]"];
    let own = ["--worker-program", "./my-worker"];
    let mut running = launch(&scene, "run", "2", &[&own[..], &target].concat());
    running.wait_for_steps("run", 40);
    let run_dir = scene.path("run");
    send(coordinator(&run_dir).expect("it runs"), Signal::SIGKILL);
    running.wait().expect(0);
    let events = lines(&run_dir, "events.jsonl");
    let joined = events.iter().filter(|event| event["event"] == "joined");
    let processes: BTreeSet<i64> = joined.filter_map(|event| event["pid"].as_i64()).collect();
    assert_eq!(processes.len(), 2, "the same processes: {events:?}");
    assert!(events.iter().all(|event| event["event"] != "lost"), "{events:?}");
}

/// Another program starts coordinator and workers, and the coordinator again; the workers wait
/// meanwhile.
#[test]
fn workers_wait_for_a_coordinator_that_is_restarted() {
    let scene = Scene::new();
    let target = ["digits_supcon", "train.max_steps=120", "checkpoint.every_steps=50", "rows=[]"];
    scene.launch("whole", 2, &target).expect(0);
    let serve = |listen: &str, more: &[&str]| {
        let arguments = ["serve", "--nodes", "2", "--run-dir", "run", "--listen", listen];
        scene.start(&[&arguments[..], more, &target].concat())
    };
    let mut serving = serve("127.0.0.1:0", &[]);
    let invitation = serving.invitation();
    let both = ["a", "b"].map(|id| scene.worker(&invitation, id, &[]));
    serving.wait_for_steps("run", 70);
    drop(serving);
    // Longer than a local lease.
    std::thread::sleep(Duration::from_secs(5));
    serve(&invitation.address, &["--resume"]).wait().expect(0);
    for worker in both {
        worker.wait().expect(0);
    }
    assert_equal(&scene, &scene.path("whole"), &scene.path("run"), &["supcon"]);
}

/// A worker was stopped, lost, and another started in its place: when it continues, it is refused,
/// and has done nothing.
#[test]
fn a_worker_that_returns_too_late_is_refused() {
    let scene = Scene::new();
    let target = ["digits_supcon", "train.max_steps=150", "checkpoint.every_steps=50", "rows=[]"];
    let target = [&target[..], &["timeouts.heartbeat_seconds=3"]].concat();
    scene.launch("whole", 2, &target).expect(0);
    let mut serving =
        scene.start(&[&["serve", "--nodes", "2", "--run-dir", "run"][..], &target].concat());
    let invitation = serving.invitation();
    let (first, stale) = (scene.worker(&invitation, "a", &[]), scene.worker(&invitation, "b", &[]));
    serving.wait_for_steps("run", 30);
    send(stale.pid(), Signal::SIGSTOP);
    serving.wait_for_line("b (rank 1");
    let second = scene.worker(&invitation, "b", &[]);
    serving.wait_for_line("generation 2 continues");
    send(stale.pid(), Signal::SIGCONT);
    let output = stale.wait().expect(75).stderr;
    assert!(
        output.contains("sent no heartbeat for 3s")
            || output.contains("a worker named b has joined already"),
        "{output}"
    );
    serving.wait().expect(0);
    first.wait().expect(0);
    second.wait().expect(0);
    assert_equal(&scene, &scene.path("whole"), &scene.path("run"), &["supcon"]);
}

/// `chaos` disturbs a run that another program has started, and reports what it cost.
#[test]
fn chaos_on_demand_is_reported() {
    let scene = Scene::new();
    let ended = scene.coord(&["chaos", "none"]).expect(64);
    assert!(ended.stderr.contains("none is not a run directory"), "{}", ended.stderr);
    let mut running = launch(&scene, "run", "3", &["digits_supcon", "train.epochs=100000"]);
    running.wait_for_steps("run", 3);
    let disturbing = scene.spawn(
        "thanos-coord",
        "chaos",
        &["chaos", "run", "--every", "300ms", "--max-faults", "3", "--seed", "7"],
        &[],
    );
    let output = disturbing.wait().expect(0).stdout;
    assert_eq!(output.matches("  killed worker-").count(), 3, "{output}");
    assert!(
        output.contains("3 kills and 0 stops in ") && output.contains("; the run continues"),
        "{output}"
    );
    running.interrupt().expect(75);
    scene.coord(&["chaos", "run"]).expect(65);
}
