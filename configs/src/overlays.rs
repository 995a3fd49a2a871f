//! A configuration is layers: a preset, the file over it, overrides over that. Here one plain value
//! is laid over another, and a dotted key is set. It must not know which keys exist, only which one
//! is a choice.

use serde_json::{Map, Value};

/// The map with one entry, whose key is the choice: another choice replaces it, with its
/// parameters.
pub(crate) const CHOICE: [&str; 2] = ["model", "encoder"];

/// The key that lays a file over a preset; it is gone when layers are laid.
pub(crate) const EXTENDS: &str = "extends";

/// Lays `over` on `base`: maps key by key, everything else (lists too) as a whole.
pub(crate) fn merge(base: &mut Value, over: Value) {
    merge_at(&mut Vec::new(), base, over);
}

fn merge_at(path: &mut Vec<String>, base: &mut Value, over: Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            if *path == CHOICE && over.keys().any(|choice| !base.contains_key(choice)) {
                base.clear();
            }
            for (key, value) in over {
                path.push(key.clone());
                merge_at(path, base.entry(key).or_insert(Value::Null), value);
                path.pop();
            }
        }
        (base, over) => *base = over,
    }
}

/// Keys that name an item of a list of maps: a backbone, a row of the table.
const NAMES: [&str; 2] = ["name", "method"];

/// The path with the names of list items replaced by their numbers: of `digits_thanos`,
/// `backbones.cae` is `backbones.1`. A number is a number, even where an item has it as its name.
pub(crate) fn numbered(root: &Value, path: &[String]) -> Vec<String> {
    let mut place = Some(root);
    let mut found = Vec::with_capacity(path.len());
    for part in path {
        let number = match place {
            Some(Value::Array(items)) if part.parse::<usize>().is_err() => {
                items.iter().position(|item| name_of(item) == Some(part))
            }
            _ => None,
        };
        let part = number.map_or_else(|| part.clone(), |number| number.to_string());
        place = place.and_then(|place| match place {
            Value::Object(entries) => entries.get(&part),
            Value::Array(items) => items.get(part.parse::<usize>().ok()?),
            _ => None,
        });
        found.push(part);
    }
    found
}

fn name_of(item: &Value) -> Option<&str> {
    NAMES.iter().find_map(|key| item.get(key)?.as_str())
}

/// The names of a list's items as a message shows them.
fn names_of(items: &[Value]) -> String {
    let names: Vec<&str> =
        items.iter().filter_map(name_of).filter(|name| !name.is_empty()).collect();
    if names.is_empty() { String::new() } else { format!(", or {}", names.join(", ")) }
}

/// Sets the value at `path`, making the maps on the way. Errors: what stands in the way.
pub(crate) fn set(root: &mut Value, path: &[String], value: Value) -> Result<(), String> {
    let mut place = root;
    for (depth, part) in path.iter().enumerate() {
        let walked = path[..depth].join(".");
        if place.is_null() {
            *place = Value::Object(Map::new());
        }
        place = match place {
            Value::Object(entries) => {
                if path[..depth] == CHOICE && !entries.contains_key(part) {
                    entries.clear();
                }
                entries.entry(part.clone()).or_insert(Value::Null)
            }
            Value::Array(items) => {
                let (len, names) = (items.len(), names_of(items));
                let index = part.parse::<usize>().ok().filter(|index| *index < len);
                index.and_then(|index| items.get_mut(index)).ok_or_else(|| match len {
                    0 => format!("`{walked}` is an empty list: it has no `{part}`"),
                    _ => format!(
                        "`{walked}` is a list of {len}: its items are 0 to {}{names}, got `{part}`",
                        len - 1
                    ),
                })?
            }
            _ => return Err(format!("`{walked}` is a single value, it has no key `{part}`")),
        };
    }
    // Laid over, not put in place: `objective={spread: 1}` changes one key, as in a file.
    merge_at(&mut path.to_vec(), place, value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn maps_merge_lists_and_choices_replace() {
        let check = |base: Value, over: Value, expected: Value| {
            let mut merged = base.clone();
            merge(&mut merged, over.clone());
            assert_eq!(merged, expected, "{base} + {over}");
        };
        check(
            json!({"a": {"b": 1, "c": 2}}),
            json!({"a": {"c": 3}}),
            json!({"a": {"b": 1, "c": 3}}),
        );
        check(json!({"a": [1, 2]}), json!({"a": [3]}), json!({"a": [3]}));
        check(json!({"a": 1}), json!({"a": null}), json!({"a": null}));
        check(json!({"a": {"b": 1}}), json!({"a": null}), json!({"a": null}));
        let vit = json!({"model": {"encoder": {"vit": {"patch": 4, "width": 8}}}});
        let smaller = json!({"model": {"encoder": {"vit": {"patch": 4, "width": 4}}}});
        let resnet = json!({"model": {"encoder": {"resnet18": {"stem": "cifar"}}}});
        check(vit.clone(), json!({"model": {"encoder": {"vit": {"width": 4}}}}), smaller);
        check(vit, resnet.clone(), resnet);
    }

    #[test]
    fn a_dotted_key_is_set_or_says_what_stands_in_the_way() {
        let base = json!({"a": 1, "list": [{"x": 1}], "none": [],
            "model": {"encoder": {"vit": {"patch": 4, "width": 8}}}});
        let check = |key: &str, pointer: &str, expected: Result<Value, &str>| {
            let mut root = base.clone();
            let path: Vec<String> = key.split('.').map(str::to_owned).collect();
            let done = set(&mut root, &path, json!(7));
            match expected {
                Ok(value) => {
                    assert_eq!((done, root.pointer(pointer)), (Ok(()), Some(&value)), "{key}")
                }
                Err(part) => assert!(
                    done.as_ref().is_err_and(|message| message.contains(part)),
                    "{key}: {done:?}"
                ),
            }
        };
        check("a", "/a", Ok(json!(7)));
        check("b.c", "/b/c", Ok(json!(7)));
        check("list.0.x", "/list/0/x", Ok(json!(7)));
        check("list", "/list", Ok(json!(7)));
        check("model.encoder.vit.patch", "/model/encoder/vit", Ok(json!({"patch": 7, "width": 8})));
        check(
            "model.encoder.resnet18.stem",
            "/model/encoder",
            Ok(json!({"resnet18": {"stem": 7}})),
        );
        check("list.1.x", "", Err("its items are 0 to 0, got `1`"));
        check("list.x", "", Err("got `x`"));
        check("none.0", "", Err("empty list"));
        check("a.b", "", Err("`a` is a single value"));
    }
}
