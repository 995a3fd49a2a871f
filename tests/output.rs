//! A write that fails has no effect on a run: terminals that are closed or paused, pipes whose
//! reader has exited, full disks, closed descriptors. Commands that only print end quietly when
//! their reader has read enough, and with exit code 74 when the output is lost. The progress bar,
//! on a real terminal.

use crate::signals::{TARGET, assert_stopped_and_resumable, undisturbed};
use nix::sys::signal::Signal;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use thanos_tests::processes::{coordinator, send};
use thanos_tests::terminal::{Terminal, coord, shell, start, start_into_pipe};
use thanos_tests::{Running, Scene, lines, packs, program};

const LAUNCH: [&str; 7] =
    ["launch", "--nodes", "2", "--threads-per-worker", "1", "--run-dir", "run"];
const SHORT: [&str; 3] = ["digits_supcon", "train.max_steps=21", "rows=[]"];
const CTRL_C: &str = "\u{3}";
const CTRL_S: &str = "\u{13}";

fn arguments<'a>(target: &[&'a str]) -> Vec<&'a str> {
    [&LAUNCH[..], target].concat()
}

/// The run is complete, and its coordinator was never restarted.
#[track_caller]
fn assert_done(scene: &Scene) {
    let events = lines(&scene.path("run"), "events.jsonl");
    assert_eq!(events.iter().filter(|event| event["event"] == "coordinator").count(), 1);
    assert_eq!(events.last().expect("events")["how"], "done");
}

#[test]
fn a_finished_run_without_working_output_is_finished() {
    for redirection in [">/dev/full 2>/dev/full", ">&- 2>&-", "2>/dev/full"] {
        let scene = Scene::new();
        let (terminal, slave) = Terminal::new();
        let running = start(&scene, shell(&scene, "", redirection, &arguments(&SHORT)), slave);
        let (code, shown) = terminal.read_to_end(running);
        assert_eq!(code, Some(0), "{redirection}: {shown}");
        assert_done(&scene);
    }
}

#[test]
fn a_stop_ends_with_a_checkpoint_whatever_the_terminal_does() {
    let whole = undisturbed();
    ctrl_c_without_a_reader(&whole);
    ctrl_c_of_a_pipeline(&whole);
    a_terminal_that_is_closed(&whole);
    a_terminal_that_is_paused(&whole);
}

/// The reader exits first, so that the line about the stop cannot be written.
fn ctrl_c_without_a_reader(whole: &Scene) {
    let scene = Scene::new();
    let (mut terminal, slave) = Terminal::new();
    let (mut running, reader) = start_into_pipe(&scene, coord(&scene, &arguments(&TARGET)), slave);
    running.wait_for_steps("run", 20);
    drop(reader);
    terminal.press(CTRL_C);
    running.wait().expect(75);
    assert_stopped_and_resumable(whole, &scene);
}

/// `launch ... 2>&1 | tee log`, all of it in the terminal's foreground.
fn ctrl_c_of_a_pipeline(whole: &Scene) {
    let scene = Scene::new();
    let (mut terminal, slave) = Terminal::new();
    let pipeline = "set -m; \"$0\" \"$@\" 2>&1 | tee log; exit 0; ";
    let mut running = start(&scene, shell(&scene, pipeline, "", &arguments(&TARGET)), slave);
    running.wait_for_steps("run", 20);
    terminal.press(CTRL_C);
    let started = Instant::now();
    while coordinator(&scene.path("run")).is_some() {
        assert!(started.elapsed() < Duration::from_secs(30), "the coordinator still runs");
        std::thread::sleep(Duration::from_millis(5));
    }
    drop(running);
    assert_stopped_and_resumable(whole, &scene);
}

#[test]
fn a_reader_that_read_one_line_costs_nothing() {
    let scene = Scene::new();
    let (_terminal, slave) = Terminal::new();
    let (running, reader) = start_into_pipe(&scene, coord(&scene, &arguments(&SHORT)), slave);
    let mut line = String::new();
    BufReader::new(reader).read_line(&mut line).expect("a line");
    assert!(line.starts_with("run directory"), "{line}");
    running.wait().expect(0);
    assert_done(&scene);
}

fn a_terminal_that_is_closed(whole: &Scene) {
    let scene = Scene::new();
    let (terminal, slave) = Terminal::new();
    let mut running = start(&scene, coord(&scene, &arguments(&TARGET)), slave);
    running.wait_for_steps("run", 20);
    drop(terminal);
    running.wait().expect(75);
    assert_stopped_and_resumable(whole, &scene);
}

#[test]
fn a_run_with_nohup_outlives_its_terminal() {
    let scene = Scene::new();
    let (terminal, slave) = Terminal::new();
    // As `nohup` does, without its redirection.
    let mut running = start(&scene, shell(&scene, "trap '' HUP;", "", &arguments(&TARGET)), slave);
    running.wait_for_steps("run", 20);
    drop(terminal);
    running.wait().expect(0);
    assert_done(&scene);
}

/// `disown` and `setsid`: the terminal is not the controlling one of the run, and only its output
/// fails.
#[test]
fn a_disowned_run_outlives_its_terminal() {
    let scene = Scene::new();
    let (terminal, slave) = Terminal::new();
    let slave = std::os::fd::AsFd::as_fd(&slave).try_clone_to_owned().expect("a descriptor");
    let [stdout, stderr] = [slave.try_clone().expect("a descriptor"), slave].map(Stdio::from);
    let mut command = Command::new(program("thanos-coord"));
    command.args(arguments(&TARGET)).current_dir(scene.path("")).env("THANOS_PACKS", packs());
    command.stdin(Stdio::null()).stdout(stdout).stderr(stderr);
    let mut running = scene.running(command.spawn().expect("`make build` first"));
    drop(command);
    running.wait_for_steps("run", 20);
    drop(terminal);
    running.wait().expect(0);
    assert_done(&scene);
}

/// Ctrl-S: writes to the terminal block. Neither steps nor the stop wait for it.
fn a_terminal_that_is_paused(whole: &Scene) {
    let scene = Scene::new();
    let (mut terminal, slave) = Terminal::new();
    let mut running = start(&scene, coord(&scene, &arguments(&TARGET)), slave);
    running.wait_for_steps("run", 1);
    terminal.press(CTRL_S);
    running.wait_for_steps("run", 60);
    let asked = Instant::now();
    send(running.pid(), Signal::SIGTERM);
    running.wait().expect(75);
    assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
    assert_stopped_and_resumable(whole, &scene);
}

#[test]
fn the_progress_bar_begins_with_the_first_step_and_leaves_no_trace() {
    let scene = Scene::new();
    let (terminal, slave) = Terminal::new();
    let running = start(&scene, coord(&scene, &arguments(&TARGET)), slave);
    let (code, shown) = terminal.read_to_end(running);
    assert_eq!(code, Some(0), "{shown}");
    // Each state of the bar replaces the former one; a line that stays ends with a line feed.
    let kept: Vec<&str> = shown
        .split("\r\n")
        .map(|line| line.rsplit("\u{1b}[2K").next().unwrap_or_default())
        .collect();
    let bars = kept
        .iter()
        .filter(|line| line.contains('░') || line.contains('█') || line.contains("images/s"));
    assert_eq!(bars.count(), 0, "{kept:?}");
    assert!(!shown.contains("0/0"), "{shown}");
    assert!(shown.contains("/250"), "no bar in {shown}");
    assert!(shown.contains("ETA 0:00:0"), "no time left in {shown}");
    assert!(kept.iter().any(|line| line.contains("generation 1: 2 workers")), "{kept:?}");
}

#[test]
fn logs_in_a_file_have_no_colours() {
    let scene = Scene::new();
    let ran = scene.start_with(&arguments(&SHORT), &[("THANOS_LOG", "trace")]).wait().expect(0);
    assert!(ran.stderr.contains("TRACE") && !ran.stderr.contains('\u{1b}'), "{}", ran.stderr);
}

fn coord_into(scene: &Scene, arguments: &[&str], stdout: Stdio) -> (Option<i32>, String) {
    let mut command = Command::new(program("thanos-coord"));
    command.args(arguments).current_dir(scene.path("")).env("THANOS_PACKS", packs()).stdout(stdout);
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .and_then(|child| child.wait_with_output());
    let output = output.expect("`make build` first");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn commands_that_print_end_quietly_without_a_reader_and_with_74_on_a_full_disk() {
    let scene = Scene::new();
    scene.launch("run", 1, &SHORT).expect(0);
    let packed = scene.coord(&["data", "pack", "digits"]).expect(0).stdout;
    let pack = packed.lines().next().and_then(|line| line.rsplit(", ").next()).expect("a path");
    let commands: [&[&str]; 10] = [
        &["presets"],
        &["show", "digits_table"],
        &["report", "run"],
        &["report", "--json", "run"],
        &["status", "run"],
        &["verify-run", "run"],
        &["data", "info", pack],
        &["data", "pack", "digits"],
        &["render", "slurm", "digits_table"],
        &["--help"],
    ];
    for arguments in commands {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        assert_eq!(
            coord_into(&scene, arguments, writer.into()),
            (Some(0), String::new()),
            "{arguments:?}"
        );
        let full = File::options().write(true).open("/dev/full").expect("/dev/full");
        let (code, output) = coord_into(&scene, arguments, full.into());
        assert_eq!(code, Some(74), "{arguments:?}: {output}");
        assert!(output.contains("cannot write to standard output"), "{arguments:?}: {output}");
    }
}

#[test]
fn a_stopped_serve_and_a_complete_run_get_the_right_advice() {
    let scene = Scene::new();
    scene.launch("done", 1, &SHORT).expect(0);
    let status = scene.coord(&["status", "done"]).expect(0).stdout;
    assert!(
        status.contains("none: the run is complete") && !status.contains("--resume"),
        "{status}"
    );
    let mut serving: Running = scene.start(&[
        "serve",
        "--insecure",
        "--listen",
        "0.0.0.0:0",
        "--run-dir",
        "run",
        "digits_supcon",
    ]);
    serving.wait_for_line("stands for every address of this machine");
    let ran = serving.interrupt().expect(75);
    assert!(!ran.stderr.contains("--coordinator 0.0.0.0"), "{}", ran.stderr);
    let advice = "thanos-coord serve --resume --run-dir run";
    let status = scene.coord(&["status", "run"]).expect(0).stdout;
    assert!(ran.stderr.contains(advice) && status.contains(advice), "{}\n{status}", ran.stderr);
    let refused = scene.coord(&["serve", "--launcher", "srun", "digits_supcon"]).expect(64).stderr;
    assert!(refused.contains("serve starts no workers"), "{refused}");
}
