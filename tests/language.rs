//! The language of the project, and the shape of its code where no compiler checks it: what users
//! read is in the field's standard terms, no modules form a cycle, and no parameter is a tuple of
//! many values.

mod modules;
mod rust_text;

use modules::Modules;
use rust_text::{Token, tokens};
use std::fs;
use std::path::{Path, PathBuf};
use thanos_tests::root;

/// Phrases that users of PyTorch, tokio and Kubernetes would not know, and what to write instead.
/// In lower case; matched as whole words.
const DENIED: [(&str, &str); 40] = [
    ("nobody", "name the actor"),
    ("whoever", "name the actor"),
    ("whom", "name the actor"),
    ("no number", "non-finite"),
    ("come apart", "replica divergence"),
    ("is a collapse", "fully collapsed"),
    ("behind step", "after step"),
    ("behind the last", "after the last"),
    ("last word", "last message"),
    ("left out", "skipped"),
    ("goes on", "continues"),
    ("go on", "continue"),
    ("going on", "continuing"),
    ("gone on", "resumed"),
    ("went on", "continued"),
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
    ("told", "notified"),
    ("tell", "notify, report, distinguish"),
    ("tells", "notifies, reports, distinguishes"),
    ("hears of", "is notified of"),
    ("hear of", "are notified of"),
    ("judge", "evaluate, check"),
    ("judged", "evaluated, checked"),
    ("judges", "evaluates, checks"),
    ("somebody", "name the actor"),
    ("farewell", "Leave"),
    ("the river", "the training loop"),
    ("at hand", "available"),
];

/// Former names that programs still accept, keys of files that users have, and a user of every
/// Unix.
const ALIASES: [&str; 5] = ["patience", "--patience", "left_out", "left_out_names", "nobody"];

/// The folders of the workspace's crates.
fn crates() -> Vec<String> {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).expect("a manifest");
    let members = manifest
        .split_once("members = [")
        .and_then(|(_, rest)| rest.split_once(']'))
        .expect("members")
        .0;
    members.split(',').map(|member| member.trim().trim_matches('"').to_owned()).collect()
}

/// Values of a function's parameters, as clippy limits the parameters themselves, and of one tuple
/// among them.
const MAX_VALUES: usize = 5;
const MAX_TUPLE: usize = 2;

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
    found
        .into_iter()
        .map(|path| (path.clone(), fs::read_to_string(&path).expect("a source")))
        .collect()
}

/// The sources of a crate and of its examples; all of the tests, except this file.
fn written(crate_name: &str) -> Vec<(PathBuf, String)> {
    let folders = match crate_name {
        "tests" => vec![crate_name.to_owned()],
        _ => vec![format!("{crate_name}/src"), format!("{crate_name}/examples")],
    };
    let folders = folders.into_iter().filter(|folder| root().join(folder).is_dir());
    let sources = folders.flat_map(|folder| sources(&folder));
    sources.filter(|(path, _)| !path.ends_with("tests/language.rs")).collect()
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

/// String literals, comments and names of all crates, of their examples and of the tests; and the
/// pages.
#[test]
fn what_users_read_is_in_standard_terms() {
    let mut wrong = Vec::new();
    let mut check = |place: &str, text: &str| {
        wrong.extend(
            denied(text)
                .into_iter()
                .map(|phrase| format!("{place}: {phrase} in `{}`", text.trim())),
        );
    };
    for (path, text) in crates().iter().flat_map(|crate_name| written(crate_name)) {
        let place = path.display().to_string();
        for token in tokens(&text) {
            match token {
                Token::Text(text) if ALIASES.contains(&text.as_str()) => {}
                Token::Text(text) => check(&place, &text),
                Token::Comment(text) => check(&place, text),
                Token::Code(code) => {
                    let names = code.split(|c: char| !c.is_alphanumeric() && c != '_');
                    names.for_each(|name| check(&place, &name.replace('_', " ")));
                }
            }
        }
    }
    let mut pages = Vec::new();
    for folder in ["docs", "deploy", "gpu", "benches", "tests/snapshots", "tests/parity"] {
        for extension in ["md", "txt", "yml", "yaml", "sh", "py", "json"] {
            files(&root().join(folder), extension, &mut pages);
        }
    }
    pages.extend(
        ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md"]
            .map(|page| root().join(page)),
    );
    assert!(pages.len() > 30, "{} pages", pages.len());
    for page in pages {
        check(&page.display().to_string(), &fs::read_to_string(&page).expect("a page"));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// No modules of one level import each other, directly or not.
#[test]
fn no_modules_form_a_cycle() {
    let crates = crates();
    assert!(crates.len() > 10, "{crates:?}");
    for crate_name in crates {
        let cycles = Modules::read(&root().join(&crate_name).join("src")).cycles();
        assert!(cycles.is_empty(), "modules of {crate_name} form a cycle: {cycles:?}");
    }
}

/// A tuple is no way around the limit on the number of parameters.
#[test]
fn parameters_are_no_tuples_of_many_values() {
    let mut wrong = Vec::new();
    for crate_name in crates() {
        for (path, text) in sources(&format!("{crate_name}/src")) {
            let name = path.strip_prefix(root()).expect("below the root").display().to_string();
            let found = rust_text::tuple_parameters(&text).into_iter();
            let found =
                found.filter(|tuples| tuples.longest > MAX_TUPLE || tuples.values > MAX_VALUES);
            wrong.extend(found.map(|tuples| format!("{name}: {}", tuples.function)));
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}
