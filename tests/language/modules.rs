//! Which modules of a crate import which, at every level of its tree, read from the paths `crate::`
//! and `super::` in its sources. A name that the root of the crate re-exports counts as the module
//! that it comes from; what the root defines counts as the module `lib`. A module and its own
//! submodules may use each other.

use super::rust_text::{Token, tokens};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// The root of a crate, where it defines what modules import.
const ROOT: &str = "lib";

/// A module, or another item, as the names from the root of the crate to it.
type ItemPath = Vec<String>;

/// The modules of a crate, without unit tests, and what each imports.
pub(super) struct Modules {
    imports: BTreeMap<ItemPath, BTreeSet<ItemPath>>,
}

impl Modules {
    /// Reads the sources below the folder that has the root of a crate.
    pub(super) fn read(folder: &Path) -> Self {
        let mut found = Vec::new();
        super::files(folder, "rs", &mut found);
        let mut sources = BTreeMap::new();
        for path in found {
            let relative = path.strip_prefix(folder).expect("below the folder").with_extension("");
            let mut module: ItemPath =
                relative.iter().map(|part| part.to_string_lossy().into_owned()).collect();
            if module.last().is_some_and(|part| part == "mod") {
                module.pop();
            }
            if module.iter().all(|part| part != "tests") && module != ["main"] {
                sources.insert(module, fs::read_to_string(&path).expect("a source"));
            }
        }
        Self::of(&sources)
    }

    fn of(sources: &BTreeMap<ItemPath, String>) -> Self {
        let is_module = |name: &str| sources.keys().any(|module| module[0] == name);
        let root = sources.get(&vec![ROOT.to_owned()]).map(|text| code(text)).unwrap_or_default();
        let mut origins = reexported(&root);
        // Functions may have the name of a module.
        origins.retain(|name, _| !is_module(name));
        let mut imports = BTreeMap::new();
        for (module, text) in sources.iter().filter(|(module, _)| *module != &[ROOT]) {
            let resolved =
                imported(&code(text), module).into_iter().map(|path| match origins.get(&path[0]) {
                    Some(origin) => origin.clone(),
                    None if is_module(&path[0]) => path,
                    None => vec![ROOT.to_owned()],
                });
            imports.insert(module.clone(), resolved.collect());
        }
        let of_root = names_before_paths(&root)
            .into_iter()
            .filter(|name| is_module(name))
            .map(|name| vec![name]);
        imports.insert(vec![ROOT.to_owned()], of_root.collect());
        Self { imports }
    }

    /// Sets of modules of one level each of which reaches all others of its set.
    pub(super) fn cycles(&self) -> Vec<BTreeSet<String>> {
        let parents =
            self.imports.keys().flat_map(|module| (0..module.len()).map(|len| &module[..len]));
        let parents: BTreeSet<&[String]> = parents.collect();
        parents.into_iter().flat_map(|parent| cycles(&self.level(parent))).collect()
    }

    /// What the modules directly below one, with all that is below them, import of each other.
    fn level(&self, parent: &[String]) -> BTreeMap<String, BTreeSet<String>> {
        let child = |path: &ItemPath| path.strip_prefix(parent)?.first().cloned();
        let mut level: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (module, imported) in &self.imports {
            if let Some(name) = child(module) {
                level.entry(name).or_default().extend(imported.iter().filter_map(child));
            }
        }
        let known: BTreeSet<String> = level.keys().cloned().collect();
        for (name, imported) in &mut level {
            imported.retain(|other| other != name && known.contains(other));
        }
        level
    }
}

fn cycles(imports: &BTreeMap<String, BTreeSet<String>>) -> Vec<BTreeSet<String>> {
    let reached: BTreeMap<&String, BTreeSet<String>> =
        imports.keys().map(|module| (module, reached_from(imports, module))).collect();
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
fn reached_from(imports: &BTreeMap<String, BTreeSet<String>>, module: &str) -> BTreeSet<String> {
    let mut reached = BTreeSet::new();
    let mut ahead = vec![module];
    while let Some(next) = ahead.pop() {
        for other in &imports[next] {
            if reached.insert(other.clone()) {
                ahead.push(other);
            }
        }
    }
    reached
}

/// A source without comments, texts and unit tests, and without spaces between the parts of a path.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    let code: String = tokens(text)
        .into_iter()
        .filter_map(|token| if let Token::Code(code) = token { Some(code) } else { None })
        .collect();
    let mut joined = String::new();
    for word in code.split_whitespace() {
        let is_path = joined.ends_with(['{', ',', ':']) || word.starts_with(['{', '}', ',', ':']);
        joined.push_str(if is_path { "" } else { " " });
        joined.push_str(word);
    }
    joined
}

/// The paths, from the root of the crate, that the code of a module names.
fn imported(code: &str, module: &[String]) -> BTreeSet<ItemPath> {
    let mut found: BTreeSet<ItemPath> = named_after(code, "crate::").into_iter().collect();
    for depth in 1..=module.len() {
        let parent = &module[..module.len() - depth];
        let below = named_after(code, &"super::".repeat(depth))
            .into_iter()
            .filter(|path| path[0] != "super");
        found.extend(below.map(|path| [parent, &path[..]].concat()));
    }
    found
}

/// The paths that continue this start of one.
fn named_after(code: &str, start: &str) -> Vec<ItemPath> {
    let begins = |at: usize| {
        let before = &code[..at];
        !before.ends_with("::")
            && !before.ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$')
    };
    let places = code.match_indices(start).filter(|(at, _)| begins(*at));
    places.flat_map(|(at, _)| paths(&code[at + start.len()..])).collect()
}

/// The paths of an import: one of `a::b`, two of `a::{b, c::d}`.
fn paths(text: &str) -> Vec<ItemPath> {
    if let Some(list) = text.strip_prefix('{') {
        return parts(list).into_iter().flat_map(paths).collect();
    }
    let name: String = text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    let below = text[name.len()..].strip_prefix("::").map(paths).unwrap_or_default();
    match (name.is_empty(), below.is_empty()) {
        (true, _) => Vec::new(),
        (false, true) => vec![vec![name]],
        (false, false) => {
            below.into_iter().map(|path| [vec![name.clone()], path].concat()).collect()
        }
    }
}

/// What stands between the commas of a list whose bracket is open.
fn parts(list: &str) -> Vec<&str> {
    let (mut depth, mut begin, mut found) = (0, 0, Vec::new());
    for (at, character) in list.char_indices() {
        match character {
            '{' => depth += 1,
            '}' | ',' if depth == 0 => {
                found.push(&list[begin..at]);
                begin = at + 1;
                if character == '}' {
                    break;
                }
            }
            '}' => depth -= 1,
            _ => {}
        }
    }
    found
}

/// The names that the root of a crate re-exports, and where they come from.
fn reexported(root: &str) -> BTreeMap<String, ItemPath> {
    let exports = root.match_indices("pub use ").map(|(at, start)| &root[at + start.len()..]);
    let paths = exports.flat_map(|export| paths(export.trim_start_matches("crate::")));
    paths.filter_map(|path| Some((path.last()?.clone(), path))).collect()
}

/// The first names of the paths in the code of a root, except those that it re-exports.
fn names_before_paths(root: &str) -> BTreeSet<String> {
    let own: String = root
        .split("pub use ")
        .enumerate()
        .map(
            |(at, part)| {
                if at == 0 { part } else { part.split_once(';').map_or("", |(_, rest)| rest) }
            },
        )
        .collect();
    let words = own.split(|c: char| !c.is_alphanumeric() && !"_:".contains(c));
    words.filter_map(|word| Some(word.split_once("::")?.0.to_owned())).collect()
}

#[test]
fn imports_are_read_and_cycles_found() {
    let names = |text: &str, module: &[&str]| {
        let module: ItemPath = module.iter().map(|&name| name.to_owned()).collect();
        imported(&code(text), &module).into_iter().map(|path| path.join("::")).collect::<Vec<_>>()
    };
    let text = "use crate::{\n    a, b::{c, d},\n};\nfn f() { crate::e::g(); }\n// crate::h\n";
    assert_eq!(names(text, &["x"]), ["a", "b::c", "b::d", "e::g"]);
    assert_eq!(
        names("use super::a::B;\nuse super::super::c::D;", &["x", "y"]),
        ["c::D", "x::a::B"]
    );
    let check = |sources: &[(&str, &str)], expected: &[&[&str]]| {
        let sources = sources.iter().map(|(module, text)| {
            (module.split("::").map(str::to_owned).collect::<ItemPath>(), (*text).to_owned())
        });
        let found = Modules::of(&sources.collect()).cycles();
        let expected: Vec<BTreeSet<String>> =
            expected.iter().map(|set| set.iter().map(|&name| name.to_owned()).collect()).collect();
        assert_eq!(found, expected);
    };
    check(
        &[("a", "use crate::b;"), ("b", "use super::c::D;"), ("c", "use crate::b::E;")],
        &[&["b", "c"]],
    );
    // Through a name that the root re-exports, or defines itself.
    let root = ("lib", "mod a;\nmod b;\npub use b::C;\n");
    check(&[root, ("a", "use crate::C;"), ("b", "use crate::a::D;")], &[&["a", "b"]]);
    check(&[("lib", "mod a;\nstruct E(a::D);"), ("a", "use crate::E;")], &[&["a", "lib"]]);
    // Between the submodules of one module, which may use what is its own.
    check(
        &[("a", "use b::F;"), ("a::b", "use super::{E, c::D};"), ("a::c", "use super::b::F;")],
        &[&["b", "c"]],
    );
    check(&[("a", "use b::F;"), ("a::b", "use super::E;")], &[]);
}
