//! The language of the project, and the shape of its code where no compiler checks it: what users read is in the field's
//! standard terms, no modules form a cycle, and no parameter is a tuple of many values.

mod modules;
mod rust_text;

use modules::Modules;
use rust_text::{Token, tokens};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use thanos_tests::root;

/// Phrases that users of PyTorch, tokio and Kubernetes would not know, and what to write instead. In lower case; matched as
/// whole words.
const DENIED: [(&str, &str); 28] = [
    ("nobody", "name the actor"),
    ("whoever", "name the actor"),
    ("whom", "name the actor"),
    ("no number", "non-finite"),
    ("come apart", "replica divergence"),
    ("is a collapse", "fully collapsed"),
    ("behind step", "after step"),
    ("left out", "skipped"),
    ("goes on", "continues"),
    ("go on with", "resume, continue"),
    ("started again", "restarted"),
    ("queued again", "requeued"),
    ("anew", "again"),
    ("least:most", "MIN:MAX"),
    ("patience", "timeout"),
    ("without a word", "unexpectedly"),
    ("holds a run", "contains a run"),
    ("holds no run", "is not a run directory"),
    ("stranger", "unauthenticated client"),
    ("strangers", "unauthenticated clients"),
    ("come to nothing", "failed"),
    ("to be had", "available"),
    ("is told", "is notified"),
    ("are told", "are notified"),
    ("somebody else", "name the actor"),
    ("farewell", "Leave"),
    ("the river", "the training loop"),
    ("at hand", "available"),
];

/// Former names that programs still accept, and keys of files that users have.
const ALIASES: [&str; 3] = ["patience", "left_out", "left_out_names"];

const CRATES: [&str; 10] = [
    "formats",
    "configs",
    "proto",
    "transport",
    "views",
    "data",
    "coordinator",
    "worker",
    "worker/c10d",
    "worker/fused",
];

/// Modules that import each other, each with the reason. Smaller sets only: a new cycle is an error.
const CYCLES: [(&str, &[&str], &str); 4] = [
    (
        "data",
        &["class_folders", "image_folder", "known", "pictures", "sets", "sources", "splits", "tinyimagenet", "tree"],
        "`sources` chooses the reader, and readers ask it for their files",
    ),
    (
        "worker",
        &[
            "backbone",
            "bench",
            "evaluate",
            "exit",
            "memory",
            "pack_transfer",
            "run",
            "saver",
            "session",
            "stage",
            "train",
            "transfer",
        ],
        "`exit` names the errors of all, and `session` ends by `exit`",
    ),
    ("worker/c10d", &["device", "group"], "a group is made for a device, and synchronises it"),
    ("worker/fused", &["calls", "draws", "gpu"], "the mask of a draw is a kernel, whose calls are checked in one file"),
];

/// Functions with a parameter that is a pattern of more than two values.
const TUPLES: [&str; 2] = ["worker/src/bench.rs: bench", "worker/src/train/bench.rs: updates"];

/// The files below a folder with this extension, except generated and third-party ones.
fn files(folder: &Path, extension: &str, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() && !path.ends_with("target") {
            files(&path, extension, found);
        } else if path.extension().is_some_and(|end| end == extension) {
            found.push(path);
        }
    }
}

fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    files(&root().join(folder), "rs", &mut found);
    found.sort();
    found.into_iter().map(|path| (path.clone(), fs::read_to_string(&path).expect("a source"))).collect()
}

/// The denied phrases in a text, each with what to write instead.
fn denied(text: &str) -> Vec<String> {
    let words: Vec<String> = text
        .split(|c: char| !c.is_alphanumeric() && c != ':')
        .filter(|word| !word.is_empty())
        .map(str::to_lowercase)
        .collect();
    let text = format!(" {} ", words.join(" "));
    let found = DENIED.iter().filter(|(phrase, _)| text.contains(&format!(" {phrase} ")));
    found.map(|(phrase, instead)| format!("`{phrase}` ({instead})")).collect()
}

#[test]
fn denied_phrases_are_found_as_whole_words() {
    assert_eq!(denied("The loss is no number.").len(), 1);
    assert_eq!(denied("--nodes <N|LEAST:MOST>").len(), 1);
    assert_eq!(denied("nobodys, renew, a new one"), [] as [String; 0]);
}

/// String literals and comments of all crates, and the pages.
#[test]
fn what_users_read_is_in_standard_terms() {
    let mut wrong = Vec::new();
    let mut check = |place: &str, text: &str| {
        wrong.extend(denied(text).into_iter().map(|phrase| format!("{place}: {phrase} in `{}`", text.trim())));
    };
    for crate_name in CRATES {
        for (path, text) in sources(&format!("{crate_name}/src")) {
            for token in tokens(&text) {
                match token {
                    Token::Text(text) if ALIASES.contains(&text.as_str()) => {}
                    Token::Text(text) => check(&path.display().to_string(), &text),
                    Token::Comment(text) => check(&path.display().to_string(), text),
                    Token::Code(_) => {}
                }
            }
        }
    }
    let mut pages = Vec::new();
    for folder in ["docs", "deploy", "tests/snapshots"] {
        files(&root().join(folder), "md", &mut pages);
        files(&root().join(folder), "txt", &mut pages);
        files(&root().join(folder), "yml", &mut pages);
    }
    pages.extend(["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md"].map(|page| root().join(page)));
    assert!(pages.len() > 30, "{} pages", pages.len());
    for page in pages {
        check(&page.display().to_string(), &fs::read_to_string(&page).expect("a page"));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The top-level modules of a crate that import each other are those that are listed, or fewer.
#[test]
fn no_modules_form_a_cycle() {
    for crate_name in CRATES {
        let modules = Modules::read(&root().join(crate_name).join("src"));
        for cycle in modules.cycles() {
            let listed = CYCLES.iter().filter(|(name, ..)| *name == crate_name);
            let known = listed.flat_map(|(_, modules, _)| modules.iter().copied()).collect::<BTreeSet<&str>>();
            assert!(cycle.iter().all(|module| known.contains(module.as_str())), "{crate_name}: {cycle:?} form a cycle");
        }
    }
}

/// A tuple is no way around the limit on the number of parameters.
#[test]
fn parameters_are_no_tuples_of_many_values() {
    let mut wrong = Vec::new();
    for crate_name in CRATES {
        for (path, text) in sources(&format!("{crate_name}/src")) {
            let name = path.strip_prefix(root()).expect("below the root").display().to_string();
            let found = rust_text::tuple_parameters(&text).into_iter().filter(|(_, values)| *values > 2);
            wrong.extend(found.map(|(function, _)| format!("{name}: {function}")));
        }
    }
    wrong.retain(|found| !TUPLES.contains(&found.as_str()));
    assert!(wrong.is_empty(), "{wrong:?}");
}
