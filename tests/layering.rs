//! Rules that no compiler checks: which crate may import which, where `unsafe` and effects may be,
//! how files look.

use std::fs;
use std::path::{Path, PathBuf};
use thanos_tests::root;

const CRATES: [(&str, &[&str]); 11] = [
    ("formats", &[]),
    ("configs", &[]),
    ("data", &["thanos-configs", "thanos-formats", "thanos-views"]),
    ("proto", &[]),
    ("views", &["thanos-configs"]),
    ("worker/c10d", &[]),
    ("worker/fused", &[]),
    ("transport", &["thanos-configs"]),
    (
        "coordinator",
        &[
            "thanos-proto",
            "thanos-configs",
            "thanos-data",
            "thanos-formats",
            "thanos-views",
            "thanos-transport",
        ],
    ),
    (
        "worker",
        &[
            "thanos-proto",
            "thanos-configs",
            "thanos-formats",
            "thanos-views",
            "thanos-c10d",
            "thanos-fused",
            "thanos-transport",
        ],
    ),
    (
        "tests",
        &[
            "thanos-worker",
            "thanos-configs",
            "thanos-views",
            "thanos-c10d",
            "thanos-fused",
            "thanos-coord",
            "thanos-proto",
        ],
    ),
];
const MAX_LINES: usize = 600;
/// Of a line of Rust or C++, as rustfmt.toml has it; it leaves comments and long texts alone.
const MAX_COLUMNS: usize = 100;

/// Every Rust file of the repository that is ours, with its text.
fn sources() -> Vec<(PathBuf, String)> {
    let mut files = Vec::new();
    for (folder, _) in CRATES {
        collect(&root().join(folder), "rs", &mut files);
    }
    files.sort();
    files.dedup();
    assert!(files.len() > 60, "{} files", files.len());
    files
        .into_iter()
        .map(|path| (path.clone(), fs::read_to_string(&path).expect("a source")))
        .collect()
}

fn collect(folder: &Path, extension: &str, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() && !path.ends_with("target") {
            collect(&path, extension, files);
        } else if path.extension().is_some_and(|end| end == extension) {
            files.push(path);
        }
    }
}

/// The code of a file: no comments, and nothing after its unit tests.
fn code(text: &str) -> Vec<&str> {
    let code = text.split("#[cfg(test)]").next().unwrap_or_default();
    code.lines().filter(|line| !line.trim_start().starts_with("//")).collect()
}

fn below(path: &Path, folder: &str) -> bool {
    path.starts_with(root().join(folder))
}

#[test]
fn crates_depend_on_the_listed_ones_only() {
    for (folder, allowed) in CRATES {
        let manifest =
            fs::read_to_string(root().join(folder).join("Cargo.toml")).expect("a manifest");
        let ours = manifest
            .lines()
            .filter_map(|line| line.split('.').next())
            .filter(|name| name.starts_with("thanos-"));
        for name in ours {
            assert!(allowed.contains(&name), "{folder} depends on {name}");
        }
        let tch = manifest.lines().any(|line| line.starts_with("tch."));
        assert_eq!(
            tch,
            ["worker", "worker/c10d", "worker/fused", "tests"].contains(&folder),
            "{folder} and libtorch"
        );
    }
}

#[test]
fn effects_and_unsafe_code_stay_where_they_belong() {
    for (path, text) in sources() {
        let name = path.display();
        for line in code(&text) {
            let has = |word: &str| line.contains(word);
            assert!(
                !has("unsafe ")
                    || ["worker/c10d", "worker/fused"].iter().any(|folder| below(&path, folder))
                    || path.ends_with("tests/layering.rs"),
                "{name}: {line}"
            );
            if below(&path, "configs/src") {
                for effect in ["tch::", "tokio", "std::fs", "std::env", "std::time", "std::net"] {
                    assert!(!has(effect), "{name}: {line}");
                }
            }
            if below(&path, "worker/src/loss") {
                for word in ["ProcessGroup", "Exchange", "rank", "Session", "Plan"] {
                    assert!(!has(word), "{name}: {line}");
                }
            }
            let is_rule =
                path.ends_with("coordinator/src/run.rs") || below(&path, "coordinator/src/run");
            // The simulation is a test, which prints the run of a seed.
            if is_rule && !path.to_string_lossy().contains("/simulation") {
                for effect in [
                    "tokio",
                    "tonic",
                    "std::fs",
                    "std::env",
                    "std::net",
                    "Instant",
                    "SystemTime",
                    "tracing",
                    "Mutex",
                ] {
                    assert!(!has(effect), "{name}: {line}");
                }
            }
        }
    }
}

#[test]
fn lines_are_narrow() {
    let mut files = Vec::new();
    let folders = CRATES.iter().map(|(folder, _)| *folder).chain(["benches", "gpu"]);
    for folder in folders {
        for extension in ["rs", "h", "cpp", "cu", "py", "js"] {
            collect(&root().join(folder), extension, &mut files);
        }
    }
    files.retain(|path| !path.to_string_lossy().ends_with(".min.js"));
    let mut wide = Vec::new();
    for path in &files {
        let text = fs::read_to_string(path).expect("a source file");
        for (index, line) in text.lines().enumerate() {
            if line.chars().count() > MAX_COLUMNS {
                wide.push(format!("{}:{}", path.display(), index + 1));
            }
        }
    }
    assert!(files.len() > 400, "{} files", files.len());
    assert!(wide.is_empty(), "more than {MAX_COLUMNS} columns:\n{}", wide.join("\n"));
}

#[test]
fn files_are_short_introduced_and_named_for_what_they_are() {
    for (path, text) in sources() {
        let name = path.display();
        assert!(text.starts_with("//!"), "{name} does not say what it is for");
        assert!(text.lines().count() <= MAX_LINES, "{name} has {} lines", text.lines().count());
        let stem =
            path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        for vague in ["utils", "util", "common", "helpers", "manager", "misc"] {
            assert_ne!(stem, vague, "{name}");
        }
        if path.ends_with("tests/layering.rs") {
            continue;
        }
        for left_over in ["TODO", "FIXME", "todo!(", "dbg!(", "unimplemented!("] {
            assert!(!text.contains(left_over), "{name} has a {left_over}");
        }
    }
}
