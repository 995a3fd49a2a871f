//! Kubernetes' strategic merge, as far as the patches of deploy/kubernetes use it: maps are merged,
//! entries of known lists are found by their key, `null` removes a field, and everything else is
//! replaced. kustomize does the same; a test compares both results.

use serde_yaml::{Mapping, Value};

/// The lists whose entries have a key, and that key. (Kubernetes has more of them.)
const KEYS: [(&str, &str); 5] = [
    ("containers", "name"),
    ("volumes", "name"),
    ("env", "name"),
    ("ports", "containerPort"),
    ("volumeMounts", "mountPath"),
];

/// Merges `patch` into `target`.
pub(super) fn merge(target: &mut Value, patch: &Value) {
    match (target, patch) {
        (Value::Mapping(target), Value::Mapping(patch)) => merge_maps(target, patch),
        (target, patch) => *target = patch.clone(),
    }
}

fn merge_maps(target: &mut Mapping, patch: &Mapping) {
    for (name, value) in patch {
        if value.is_null() {
            target.remove(name);
            continue;
        }
        let key = KEYS.iter().find(|(list, _)| name == list).map(|(_, key)| *key);
        match (target.get_mut(name), key) {
            (Some(Value::Sequence(entries)), Some(key)) => {
                value
                    .as_sequence()
                    .into_iter()
                    .flatten()
                    .for_each(|entry| merge_entry(entries, entry, key));
            }
            (Some(old), _) => merge(old, value),
            (None, _) => _ = target.insert(name.clone(), value.clone()),
        }
    }
}

fn merge_entry(entries: &mut Vec<Value>, entry: &Value, key: &str) {
    match entries.iter_mut().find(|old| old[key] == entry[key]) {
        Some(old) => merge(old, entry),
        None => entries.push(entry.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_lists_with_keys_and_nulls() {
        let check = |target: &str, patch: &str, expected: &str| {
            let read = |text: &str| serde_yaml::from_str::<Value>(text).expect("YAML");
            let mut merged = read(target);
            merge(&mut merged, &read(patch));
            assert_eq!(merged, read(expected), "{target} and {patch}");
        };
        check("{a: 1, b: {c: 2}}", "{b: {d: 3}}", "{a: 1, b: {c: 2, d: 3}}");
        check("{a: 1, b: 2}", "{b: null}", "{a: 1}");
        check("{args: [x, y]}", "{args: [z]}", "{args: [z]}");
        check(
            "{env: [{name: A, value: a}, {name: B, value: b}]}",
            "{env: [{name: B, value: c}, {name: C, value: d}]}",
            "{env: [{name: A, value: a}, {name: B, value: c}, {name: C, value: d}]}",
        );
        check(
            "{volumes: [{name: packs, emptyDir: {}}]}",
            "{volumes: [{name: packs, emptyDir: null, hostPath: {path: /p}}]}",
            "{volumes: [{name: packs, hostPath: {path: /p}}]}",
        );
        check("{}", "{env: [{name: A}]}", "{env: [{name: A}]}");
    }
}
