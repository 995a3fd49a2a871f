//! Which top-level modules of a crate import which, read from the paths `crate::`, `super::` and `self::` in its sources.

use super::rust_text::{Token, tokens};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// The imports between the top-level modules of a crate; those of its root, and of unit tests, are not counted.
pub(super) struct Modules {
    imports: BTreeMap<String, BTreeSet<String>>,
}

impl Modules {
    /// Reads the sources below a crate's `src`.
    pub(super) fn read(src: &Path) -> Self {
        let mut imports: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let mut found = Vec::new();
        super::files(src, "rs", &mut found);
        for path in found {
            let relative = path.strip_prefix(src).expect("below src").with_extension("");
            let module: Vec<String> = relative.iter().map(|part| part.to_string_lossy().into_owned()).collect();
            if ["lib", "main"].contains(&module[0].as_str()) || module.iter().any(|part| part == "tests") {
                continue;
            }
            let text = fs::read_to_string(&path).expect("a source");
            let depth = module.iter().filter(|part| *part != "mod").count();
            imports.entry(module[0].clone()).or_default().extend(imported(&text, depth));
        }
        let known: BTreeSet<String> = imports.keys().cloned().collect();
        for (module, imported) in &mut imports {
            imported.retain(|other| other != module && known.contains(other));
        }
        Self { imports }
    }

    /// Sets of modules each of which reaches all others of its set.
    pub(super) fn cycles(&self) -> Vec<BTreeSet<String>> {
        let reached: BTreeMap<&String, BTreeSet<String>> =
            self.imports.keys().map(|module| (module, self.reached_from(module))).collect();
        let mut cycles: Vec<BTreeSet<String>> = Vec::new();
        for (module, others) in &reached {
            let cycle: BTreeSet<String> =
                others.iter().filter(|other| reached[other].contains(*module)).cloned().collect();
            if !cycle.is_empty() && !cycles.contains(&cycle) {
                cycles.push(cycle);
            }
        }
        cycles
    }

    /// Modules that are imported from one, directly or not; itself only if it is one of them.
    fn reached_from(&self, module: &str) -> BTreeSet<String> {
        let mut reached = BTreeSet::new();
        let mut ahead = vec![module];
        while let Some(next) = ahead.pop() {
            for other in &self.imports[next] {
                if reached.insert(other.clone()) {
                    ahead.push(other);
                }
            }
        }
        reached
    }
}

/// The top-level modules that the source of a module at this depth (1: top level) names.
fn imported(text: &str, depth: usize) -> BTreeSet<String> {
    let text = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    let code: String = tokens(text)
        .into_iter()
        .filter_map(|token| if let Token::Code(code) = token { Some(code) } else { None })
        .collect();
    let supers = "super::".repeat(depth);
    let mut found = BTreeSet::new();
    for start in ["crate::", supers.as_str()] {
        for (at, _) in code.match_indices(start) {
            let is_longer = code[..at].ends_with("::")
                || code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$');
            if !is_longer {
                found.extend(first_names(&code[at + start.len()..]));
            }
        }
    }
    found
}

/// The first name of each path of an import: `a::b`, or `{a, b::{c, d}}`.
fn first_names(path: &str) -> Vec<String> {
    let name = |path: &str| path.trim().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let Some(list) = path.strip_prefix('{') else { return vec![name(path)] };
    let (mut depth, mut begin, mut names) = (0, 0, Vec::new());
    for (at, character) in list.char_indices() {
        match character {
            '{' => depth += 1,
            '}' | ',' if depth == 0 => {
                names.push(name(&list[begin..at]));
                begin = at + 1;
                if character == '}' {
                    break;
                }
            }
            '}' => depth -= 1,
            _ => {}
        }
    }
    names
}

#[test]
fn imports_are_read_and_cycles_found() {
    let names = |text, depth| imported(text, depth).into_iter().collect::<Vec<_>>();
    assert_eq!(names("use crate::{a, b::{c, d}};\nfn f() { crate::e::g(); }\n// crate::h\n", 1), ["a", "b", "e"]);
    assert_eq!(names("use super::a::B;\nuse super::super::c::D;", 2), ["c"]);
    let import =
        |module: &str, others: &[&str]| (module.to_owned(), others.iter().map(|&other| other.to_owned()).collect());
    let modules = Modules { imports: BTreeMap::from([import("a", &["b"]), import("b", &["c"]), import("c", &["b"])]) };
    assert_eq!(modules.cycles(), [BTreeSet::from(["b".to_owned(), "c".to_owned()])]);
}
