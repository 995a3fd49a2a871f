//! The documents are true: the tour and every path exist, every command of README.md works, every
//! code is in its table, every link leads to a file, and every fence is closed.

use std::collections::BTreeSet;
use std::fs;
use thanos_configs::{Plan, preset_names, preset_summary};
use thanos_tests::{Scene, root};

fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Words in backticks.
fn quoted(text: &str) -> Vec<&str> {
    text.lines().flat_map(|line| line.split('`').skip(1).step_by(2)).collect()
}

/// Lines of the fenced blocks of shell commands, without comments.
fn commands(text: &str) -> Vec<&str> {
    let blocks = text.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next());
    let lines =
        blocks.flat_map(str::lines).map(|line| line.split(" #").next().unwrap_or(line).trim());
    lines.filter(|line| !line.is_empty() && !line.starts_with('#')).collect()
}

#[test]
fn the_tour_has_six_files_that_exist() {
    let readme = read("README.md");
    let tour =
        readme.split("## A tour in six files").nth(1).and_then(|rest| rest.split("\n## ").next());
    let stops: Vec<&str> =
        tour.expect("a tour").lines().filter(|line| line.starts_with(char::is_numeric)).collect();
    assert_eq!(stops.len(), 6, "{stops:?}");
    for stop in stops {
        let path = quoted(stop).first().copied().unwrap_or_default();
        assert!(root().join(path).is_file(), "{stop}");
    }
}

#[test]
fn every_path_exists() {
    let architecture = read("ARCHITECTURE.md");
    let is_path = |word: &&str| {
        let ends = [".rs", ".cpp", ".proto", ".yaml", ".md", "/"];
        word.contains('/')
            && !word.contains(char::is_whitespace)
            && ends.iter().any(|end| word.ends_with(end))
    };
    let documents = [architecture, read("docs/guarantees.md")].join("\n");
    let paths: Vec<&str> = quoted(&documents).into_iter().filter(is_path).collect();
    assert!(paths.len() > 40, "{paths:?}");
    for path in paths {
        assert!(root().join(path).exists(), "{path}");
    }
}

#[test]
fn every_exit_code_is_in_the_table() {
    let reference = read("docs/reference.md");
    let first_cell = |line: &str| line.strip_prefix("| ")?.split(" |").next()?.parse::<u8>().ok();
    let codes: Vec<u8> = reference.lines().filter_map(first_cell).collect();
    assert_eq!(codes, [0, 64, 65, 69, 70, 74, 75, 77, 78]);
}

#[test]
fn every_preset_that_is_named_exists() {
    let text = read("README.md");
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let looks_like = |word: &&str| {
        [
            "digits_",
            "mnist_",
            "fashion_mnist_",
            "cifar10_",
            "cifar100_",
            "tinyimagenet_",
            "image_folder_",
        ]
        .iter()
        .any(|start| word.starts_with(start))
            && word
                .split('_')
                .next_back()
                .is_some_and(|end| ["supcon", "cnce", "cae", "thanos", "table"].contains(&end))
    };
    let named: BTreeSet<&str> = words.filter(looks_like).collect();
    assert!(named.len() >= 6, "{named:?}");
    for name in named {
        assert!(preset_summary(name).is_some(), "{name} is none of {:?}", preset_names());
    }
}

/// In a folder of their own, in order. Launches on the embedded digits are cut to four steps a
/// backbone and one epoch a probe, and run; those that need data are resolved; a `make` line must
/// name a target.
#[test]
fn every_command_of_the_readme_works() {
    let readme = read("README.md");
    let makefile = read("Makefile");
    let scene = Scene::new();
    let mut launched = 0;
    for line in commands(&readme) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            // Nothing is downloaded here: a folder that cannot be made comes before the network.
            [
                "target/release/thanos-coord",
                "data",
                "fetch",
                dataset,
                "--dir",
                _,
                ref rest @ ..,
            ] => {
                scene
                    .coord(&[&["data", "fetch", dataset, "--dir", "/dev/null/x"], rest].concat())
                    .expect(74);
            }
            // PACK is for the reader to name.
            ["target/release/thanos-coord", "data", verb, "PACK", ref rest @ ..] => {
                let packed = scene.coord(&["data", "pack", "digits"]).expect(0).stdout;
                let pack = packed
                    .lines()
                    .next()
                    .and_then(|line| line.rsplit(", ").next())
                    .expect("a path");
                scene.coord(&[&["data", verb, pack], rest].concat()).expect(0);
            }
            ["make", target] => assert!(makefile.contains(&format!("\n{target}:")), "{line}"),
            ["target/release/thanos-coord", "launch", ref rest @ ..]
                if line.contains("data.dir=") =>
            {
                let target: Vec<&str> =
                    rest.iter().copied().skip_while(|word| !word.contains('_')).collect();
                scene.coord(&[&["show"], &target[..]].concat()).expect(0);
            }
            ["target/release/thanos-coord", "launch", ref rest @ ..] => {
                let cut: &[&str] = match line.contains("--resume") {
                    true => &[],
                    false => &["train.max_steps=4", "transfer.epochs=1"],
                };
                let ran = scene.coord(&[&["launch"], rest, cut].concat());
                assert_eq!(ran.code, Some(0), "{line}: {}", ran.stderr);
                launched += 1;
            }
            ["target/release/thanos-coord", ref rest @ ..] => {
                let ran = scene.coord(rest);
                assert_eq!(ran.code, Some(0), "{line}: {}", ran.stderr);
            }
            _ => panic!("README.md has a command that this test does not know: {line}"),
        }
    }
    assert!(launched >= 2, "{launched} launches");
}

/// Every timeout, with its default, is in the table of docs/fault-tolerance.md.
#[test]
fn every_timeout_is_documented() {
    let document = read("docs/fault-tolerance.md");
    let plan = Plan::from_preset("digits_supcon", &[]).expect("a preset");
    let timeouts = serde_json::to_value(&plan.config().timeouts).expect("plain data");
    for (key, default) in timeouts.as_object().expect("a map") {
        let row = document.lines().find(|line| line.starts_with(&format!("| `timeouts.{key}` |")));
        let row = row.unwrap_or_else(|| panic!("`timeouts.{key}` is not documented"));
        let default = default.as_f64().map_or_else(String::new, |default| format!("| {default} |"));
        assert!(row.contains(&default), "{row}: its default is {default}");
    }
}

/// docs/data.md: every launch resolves, every verb is there, and every key that says where images
/// are is explained.
#[test]
fn the_page_on_data_is_true() {
    let document = read("docs/data.md");
    let scene = Scene::new();
    let help = scene.coord(&["data", "--help"]).expect(0).stdout;
    for line in commands(&document) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["thanos-coord", "launch", ref rest @ ..] => {
                _ = scene.coord(&[&["show"], rest].concat()).expect(0)
            }
            ["thanos-coord", "data", verb, ..] => {
                assert!(help.contains(&format!("\n  {verb} ")), "{line}")
            }
            _ => panic!("docs/data.md has a command that this test does not know: {line}"),
        }
    }
    let plan = Plan::from_preset("digits_supcon", &[]).expect("a preset");
    let data = serde_json::to_value(&plan.config().data).expect("plain data");
    let is_about_files =
        |key: &&String| !["drop_last", "validation", "validation_fraction"].contains(&key.as_str());
    for key in data.as_object().expect("a map").keys().filter(is_about_files) {
        assert!(document.contains(&format!("`data.{key}")), "`data.{key}` is not explained");
    }
}

/// Pages that are read by people, with their folder.
fn pages() -> Vec<(String, String)> {
    let mut found = Vec::new();
    for folder in
        ["", "docs/", "deploy/", "deploy/slurm/", "deploy/kubernetes/", "deploy/container/"]
    {
        for entry in fs::read_dir(root().join(folder)).expect("a folder") {
            let name = entry.expect("an entry").file_name().to_string_lossy().into_owned();
            if name.ends_with(".md") {
                found.push((folder.into(), read(&format!("{folder}{name}"))));
            }
        }
    }
    assert!(found.len() > 12, "{} pages", found.len());
    found
}

#[test]
fn every_link_leads_to_a_file() {
    for (folder, page) in pages() {
        let targets = page.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        for target in
            targets.filter(|target| !target.starts_with("http") && !target.starts_with('#'))
        {
            let file = target.split('#').next().unwrap_or_default();
            assert!(root().join(&folder).join(file).exists(), "{folder}: {target}");
        }
    }
}

/// By CommonMark a fence is a whole line; one that is never closed makes code of the rest.
#[test]
fn every_fence_is_closed() {
    for (folder, page) in pages() {
        let fences = page.lines().filter(|line| line.trim_start().starts_with("```")).count();
        assert!(
            fences.is_multiple_of(2),
            "{folder}: {fences} fences in {}",
            page.lines().next().unwrap_or_default()
        );
    }
}
