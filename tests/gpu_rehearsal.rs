//! `gpu/run.sh`, the half hour on a GPU, rehearsed on the CPU: every section ends with its verdict
//! and the report is complete; what fails or hangs is reported as that, and the sections after it
//! still run.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use thanos_tests::processes::is_alive;
use thanos_tests::{Ran, Scene, program, root};

/// Every section with the verdicts that it may have on a CPU, and a part of the reason for a SKIP.
const SECTIONS: [(&str, &[&str], &str); 12] = [
    ("ceilings", &["PASS", "SKIP"], "python3 cannot import torch"),
    ("digits", &["PASS"], ""),
    ("parity", &["PASS"], ""),
    ("views", &["PASS"], ""),
    ("losses", &["PASS"], ""),
    ("resume", &["PASS"], ""),
    ("gloo", &["PASS"], ""),
    ("nccl", &["SKIP"], "needs CUDA"),
    ("cifar", &["SKIP"], "needs CUDA"),
    // Its measurements need PyTorch, and at full length a GPU.
    ("bench-128", &["PASS", "SKIP"], ""),
    ("bench-512", &["SKIP"], "needs CUDA"),
    ("bench-2048", &["SKIP"], "needs CUDA"),
];

/// Runs the script on the CPU with its report in `out` and the programs in `programs`.
fn rehearse(scene: &Scene, programs: &Path, more: &[&str]) -> Ran {
    let (programs, this) =
        (programs.display().to_string(), env::current_exe().expect("the path of this binary"));
    let this = this.display().to_string();
    let fixed = ["--device", "cpu", "--out", "out", "--bin", &programs, "--tests", &this];
    scene.spawn_program(&root().join("gpu/run.sh"), "run", &[&fixed[..], more].concat(), &[]).wait()
}

/// Verdict and figures by section, of the lines that the script printed.
fn verdicts(ran: &Ran) -> BTreeMap<&str, (&str, &str)> {
    let verdict = |line| {
        let (head, figures): (&str, &str) =
            str::split_once(line, " s  ").expect("seconds before the figures");
        let words: Vec<&str> = head.split_whitespace().collect();
        (words[1], (words[0], figures))
    };
    ran.stdout.lines().map(verdict).collect()
}

/// A folder whose `thanos-coord` is this script.
fn fake_programs(scene: &Scene, script: &str) -> std::path::PathBuf {
    let (folder, path) = (scene.path("fake"), scene.path("fake/thanos-coord"));
    fs::create_dir(&folder).expect("a folder");
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("a file");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("it is ours");
    folder
}

fn check_all_sections(extent: &[&str], device_fact: &str) {
    let scene = Scene::new();
    let programs = program("thanos-coord");
    let ran = rehearse(&scene, programs.parent().expect("in a folder"), extent).expect(0);
    let found = verdicts(&ran);
    let report = fs::read_to_string(scene.path("out/report.md")).expect("a report");
    for (section, allowed, reason) in SECTIONS {
        let (verdict, figures) =
            found.get(section).unwrap_or_else(|| panic!("{section}: no verdict\n{}", ran.stdout));
        assert!(allowed.contains(verdict), "{section}: {verdict} {figures}");
        assert!(*verdict != "SKIP" || figures.contains(reason), "{section}: {figures}");
        assert!(
            !figures.is_empty() && report.contains(&format!("| {section} | {verdict} |")),
            "{section}:\n{report}"
        );
        assert!(scene.path(&format!("out/{section}.log")).is_file(), "{section} has no log");
    }
    assert_eq!(found.len(), SECTIONS.len(), "{}", ran.stdout);
    for fact in [device_fact, "Processor: ", "Date (UTC): 20", "Commit: ", "PyTorch: ", "Card, "] {
        assert!(report.contains(fact), "no {fact}\n{report}");
    }
}

#[test]
fn every_section_ends_with_its_verdict() {
    check_all_sections(&["--short"], "Device: cpu, shortened\n");
}

#[test]
#[ignore = "takes minutes: make chaos"]
fn every_section_ends_with_its_verdict_at_full_length() {
    check_all_sections(&[], "Device: cpu\n");
}

#[test]
fn a_section_that_fails_does_not_stop_the_next() {
    let scene = Scene::new();
    let ran = rehearse(
        &scene,
        &fake_programs(&scene, "exit 70"),
        &["--short", "--only", "digits,views,nccl"],
    )
    .expect(1);
    let found = verdicts(&ran);
    assert_eq!(found["digits"], ("FAIL", "thanos-coord ended with exit code 70, expected 0"));
    assert_eq!((found["views"].0, found["nccl"].0), ("PASS", "SKIP"));
    // Another call adds to the same report, and a program that does not exist is a failure, too.
    let ran = rehearse(&scene, &scene.path("nowhere"), &["--only", "gloo"]).expect(1);
    assert!(verdicts(&ran)["gloo"].1.contains("No such file or directory"), "{}", ran.stdout);
    let report = fs::read_to_string(scene.path("out/report.md")).expect("a report");
    for row in ["| digits | FAIL |", "| views | PASS |", "| gloo | FAIL |", "| resume | not run |"]
    {
        assert!(report.contains(row), "no {row}\n{report}");
    }
}

#[test]
fn a_section_that_hangs_is_ended_with_its_processes() {
    let scene = Scene::new();
    let pid_file = scene.path("pid");
    let programs =
        fake_programs(&scene, &format!("echo $$ > {}\nexec sleep 600", pid_file.display()));
    let ran = rehearse(&scene, &programs, &["--only", "digits,nccl", "--limit", "2"]).expect(1);
    let found = verdicts(&ran);
    assert_eq!((found["digits"].0, found["nccl"].0), ("TIMEOUT", "SKIP"), "{}", ran.stdout);
    let pid = fs::read_to_string(pid_file).expect("it ran").trim().parse().expect("a process id");
    assert!(!is_alive(pid), "the hanging program still runs");
}

#[test]
fn what_cannot_be_meant_is_refused() {
    let scene = Scene::new();
    for (arguments, message) in [
        (&["--only", "digits,nothing"][..], "unknown section nothing"),
        (&["--device", "tpu"], "--device is cuda or cpu, not tpu"),
        (&["--limit", "1m"], "--limit is a number of seconds, not 1m"),
        (&["--fast"], "unknown argument --fast"),
        (&["--out"], "--out needs a value"),
    ] {
        let ran = scene
            .spawn_program(&root().join("gpu/run.sh"), "usage", arguments, &[])
            .wait()
            .expect(64);
        assert!(ran.stderr.contains(message), "{arguments:?}: {}", ran.stderr);
    }
}
