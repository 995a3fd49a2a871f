//! A plain value to a `RunConfig`, with every mistake at once: read, note the first mistake, put
//! something valid in its place, read again. It must not know where the value came from.

use crate::error::{Mistake, nearest};
use crate::overlays::{CHOICE, EXTENDS};
use crate::run_config::{BackboneConfig, RowConfig, RunConfig};
use serde_json::Value;
use serde_path_to_error::Segment;

/// Mistakes reported for one configuration; a user with more of them will run it again anyway.
const MAX_MISTAKES: usize = 64;
/// Bytes of a wrong value that are shown.
const MAX_SHOWN_CHARS: usize = 60;

/// The configuration, or all that is wrong with its types and keys, by dotted key.
pub(crate) fn typed(value: Value) -> Result<RunConfig, Vec<Mistake>> {
    let mut value = value;
    let pattern = pattern();
    let mut mistakes = Vec::new();
    require_maps(&mut Vec::new(), &mut value, &pattern, &mut mistakes);
    // A mistake may take several rounds: its place is filled at one level after the other.
    for _ in 0..4 * MAX_MISTAKES {
        let (path, message) = match read(&value) {
            Ok(config) if mistakes.is_empty() => return Ok(config),
            Ok(_) => break,
            Err(failure) => failure,
        };
        let mistake = describe(&value, &pattern, path.clone(), &message);
        // What only our own filling made wrong is not the user's mistake.
        if !mistakes.iter().any(|(known, _)| known.starts_with(&mistake.0)) {
            mistakes.push(mistake);
        }
        if mistakes.len() >= MAX_MISTAKES {
            break;
        }
        fill(&mut value, &pattern, &path);
    }
    Err(mistakes
        .into_iter()
        .map(|(path, message)| Mistake { line: None, key: path.join("."), message })
        .collect())
}

/// What a configuration looks like: the defaults, and one item in each list of maps.
fn pattern() -> Value {
    let pattern = RunConfig {
        backbones: vec![BackboneConfig::default()],
        rows: vec![RowConfig::default()],
        ..RunConfig::default()
    };
    serde_json::to_value(pattern).expect("a RunConfig holds only what JSON can")
}

/// A key that holds text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TextKey {
    Required,
    /// It may be null.
    Optional,
}

/// Whether the key at `path` holds any text: it is read with a text there, and not with a number.
pub(crate) fn text_key(path: &[String]) -> Option<TextKey> {
    let rows = vec![RowConfig { backbones: vec![String::new()], ..RowConfig::default() }];
    let config =
        RunConfig { backbones: vec![BackboneConfig::default()], rows, ..RunConfig::default() };
    let pattern = serde_json::to_value(config).expect("a RunConfig holds only what JSON can");
    // The items of a list are alike.
    let path: Vec<String> = path
        .iter()
        .map(|part| part.parse::<usize>().map_or(part.clone(), |_| "0".into()))
        .collect();
    let reads = |value: Value| {
        let mut probed = pattern.clone();
        get_mut(&mut probed, &path).map(|place| *place = value).is_some() && read(&probed).is_ok()
    };
    if !reads("any text".into()) || reads(0.into()) {
        return None;
    }
    Some(if reads(Value::Null) { TextKey::Optional } else { TextKey::Required })
}

/// Notes and fills every place that is not a map where the pattern has one: serde would also read a
/// list of the fields' values there.
fn require_maps(
    path: &mut Vec<String>,
    value: &mut Value,
    pattern: &Value,
    mistakes: &mut Vec<(Vec<String>, String)>,
) {
    match (value, pattern) {
        (Value::Object(entries), Value::Object(patterns)) => {
            for (key, pattern) in patterns {
                let Some(value) = entries.get_mut(key) else { continue };
                path.push(key.clone());
                require_maps(path, value, pattern, mistakes);
                path.pop();
            }
        }
        (Value::Array(items), Value::Array(patterns)) => {
            let Some(pattern) = patterns.first() else { return };
            for (index, item) in items.iter_mut().enumerate() {
                path.push(index.to_string());
                require_maps(path, item, pattern, mistakes);
                path.pop();
            }
        }
        // serde's own words about a choice name what there is to choose from.
        (value, Value::Object(_)) if *path != CHOICE => {
            mistakes.push((path.clone(), format!("expected a map of keys, got {}", show(value))));
            *value = pattern.clone();
        }
        _ => {}
    }
}

/// Reads the value; an error is its path and serde's words.
fn read(value: &Value) -> Result<RunConfig, (Vec<String>, String)> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().iter().filter_map(|segment| match segment {
            Segment::Seq { index } => Some(index.to_string()),
            Segment::Map { key } => Some(key.clone()),
            Segment::Enum { variant } => Some(variant.clone()),
            Segment::Unknown => None,
        });
        (path.collect(), error.inner().to_string())
    })
}

/// Puts something valid at a path: the pattern's value, else nothing; where neither helps, at what
/// holds it.
fn fill(value: &mut Value, pattern: &Value, path: &[String]) {
    for depth in (0..=path.len()).rev() {
        let path = &path[..depth];
        if let (Some(place), Some(valid)) = (get_mut(value, path), get_like(pattern, path)) {
            if place != valid {
                *place = valid.clone();
                return;
            }
        } else if let Some((last, parent)) = path.split_last()
            && get_mut(value, parent).is_some_and(|parent| clear(parent, last))
        {
            return;
        }
    }
}

/// Takes an entry out of a map, or empties a list's item; false: there was nothing to do.
fn clear(parent: &mut Value, last: &str) -> bool {
    match parent {
        Value::Object(entries) => entries.shift_remove(last).is_some(),
        Value::Array(items) => {
            // Removing an item would renumber the ones after it. Items that are in no pattern are
            // strings.
            let Some(item) = last.parse::<usize>().ok().and_then(|index| items.get_mut(index))
            else {
                return false;
            };
            let empty = Value::String(String::new());
            let done = *item != empty;
            *item = empty;
            done
        }
        _ => false,
    }
}

fn get<'a>(value: &'a Value, path: &[String]) -> Option<&'a Value> {
    path.iter().try_fold(value, |place, part| match place {
        Value::Object(entries) => entries.get(part),
        Value::Array(items) => items.get(part.parse::<usize>().ok()?),
        _ => None,
    })
}

/// As [`get`]; an item after the pattern's last is like its first.
fn get_like<'a>(pattern: &'a Value, path: &[String]) -> Option<&'a Value> {
    path.iter().try_fold(pattern, |place, part| match place {
        Value::Object(entries) => entries.get(part),
        Value::Array(items) => items.get(part.parse::<usize>().ok()?).or(items.first()),
        _ => None,
    })
}

fn get_mut<'a>(value: &'a mut Value, path: &[String]) -> Option<&'a mut Value> {
    path.iter().try_fold(value, |place, part| match place {
        Value::Object(entries) => entries.get_mut(part),
        Value::Array(items) => items.get_mut(part.parse::<usize>().ok()?),
        _ => None,
    })
}

/// serde's words about a path in ours, and the path of the key that they are about.
fn describe(
    value: &Value,
    pattern: &Value,
    path: Vec<String>,
    message: &str,
) -> (Vec<String>, String) {
    let quoted = quoted(message);
    let (word, known) = quoted.split_first().map_or(("", &[][..]), |(word, known)| (*word, known));
    let with_word = || match path.last() {
        Some(last) if last == word => path.clone(),
        _ => path.iter().cloned().chain([word.to_owned()]).collect(),
    };
    if message.starts_with("unknown field") {
        let path = with_word();
        let known: Vec<&str> =
            known.iter().copied().chain((path.len() == 1).then_some(EXTENDS)).collect();
        return (path, unknown_key(word, &known, pattern));
    }
    if message.starts_with("missing field") {
        return (with_word(), "is missing: it has no default".into());
    }
    if message.starts_with("unknown variant") {
        return (path, unknown_choice(word, known));
    }
    // Of `encoder: vit` serde says that `vit` within `encoder` is wrong.
    let there =
        (0..=path.len()).rev().map(|depth| &path[..depth]).find(|path| get(value, path).is_some());
    let path = there.unwrap_or_default().to_vec();
    let expected = message.rsplit_once("expected ").map_or(message, |(_, expected)| expected);
    let expected = plain_words(expected).unwrap_or_else(|| choices(value, &path));
    let found = get(value, &path);
    let got = found.map_or_else(|| "nothing".into(), show);
    // YAML reads 12, 1e3 and true as other than text.
    let is_plain = matches!(found, Some(Value::Number(_) | Value::Bool(_)));
    let hint = match path.last() {
        Some(last) if expected == "a string" && is_plain => {
            let key =
                if last.parse::<usize>().is_ok() { String::new() } else { format!("{}: ", last) };
            format!(
                "; quote it: `{key}'{got}'` in a file, \"{}='{got}'\" on a command line",
                path.join(".")
            )
        }
        _ => String::new(),
    };
    (path, format!("expected {expected}, got {got}{hint}"))
}

/// What may stand at a path where serde wants a choice: serde lists the choices when it gets a
/// wrong one.
fn choices(value: &Value, path: &[String]) -> String {
    let mut probed = value.clone();
    if let Some(place) = get_mut(&mut probed, path) {
        *place = Value::String("?".into());
    }
    match read(&probed) {
        Err((at, message)) if at == path && message.starts_with("unknown variant") => {
            let as_key = if path == CHOICE { " as its only key" } else { "" };
            format!("one of {}{as_key}", quoted(&message)[1..].join(", "))
        }
        _ => "a map of keys".into(),
    }
}

fn unknown_key(key: &str, known: &[&str], pattern: &Value) -> String {
    let elsewhere = || sections_with(pattern, key).into_iter().next();
    let meant = nearest(key, known.iter().copied()).map(str::to_owned).or_else(elsewhere);
    let meant = meant.map_or_else(String::new, |meant| format!("; did you mean `{meant}`?"));
    match known {
        [] => format!("unknown key{meant}"),
        _ => format!("unknown key{meant} (known here: {})", known.join(", ")),
    }
}

fn unknown_choice(word: &str, known: &[&str]) -> String {
    let meant = nearest(word, known.iter().copied());
    let meant = meant.map_or_else(String::new, |meant| format!("; did you mean `{meant}`?"));
    format!("expected one of {}, got `{word}`{meant}", known.join(", "))
}

/// Full names of the keys called `key` one level down: the likely meaning of a key in the wrong
/// section.
fn sections_with(pattern: &Value, key: &str) -> Vec<String> {
    let sections = pattern.as_object().into_iter().flatten();
    sections
        .filter(|(_, keys)| keys.get(key).is_some())
        .map(|(section, _)| format!("{section}.{key}"))
        .collect()
}

/// The words between backticks.
fn quoted(message: &str) -> Vec<&str> {
    message.split('`').skip(1).step_by(2).collect()
}

/// What serde expected; `None`: a choice.
fn plain_words(expected: &str) -> Option<String> {
    Some(match expected {
        "u64" | "usize" => "a non-negative integer".into(),
        "f64" => "a number".into(),
        "a boolean" => "true or false".into(),
        "a string" | "path string" => "a string".into(),
        "a sequence" => "a list".into(),
        // The only lists of fixed length are ranges.
        "an array of length 2" | "fewer elements in array" => "a list of two numbers".into(),
        "string or map" | "map with a single key" => return None,
        _ if expected.starts_with("struct variant") => return None,
        _ if expected.starts_with("struct ") => "a map of keys".into(),
        _ => expected.to_owned(),
    })
}

fn show(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(value) => value.to_string(),
        Value::Number(number) => number.to_string(),
        Value::String(text) if text.len() <= MAX_SHOWN_CHARS => format!("the string `{text}`"),
        Value::String(text) => {
            let start: String = text.chars().take(MAX_SHOWN_CHARS / 2).collect();
            format!("a string of {} bytes, `{start}...`", text.len())
        }
        Value::Array(items) => format!("a list of {}", items.len()),
        Value::Object(entries) => {
            match entries.keys().map(String::as_str).take(5).collect::<Vec<_>>() {
                keys if keys.is_empty() => "an empty map".into(),
                keys => format!("a map with {}", keys.join(", ")),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Reads `value`; expects the mistakes, in any order, as `key: part of the message`.
    fn check(value: Value, expected: &[(&str, &str)]) {
        let mistakes = typed(value.clone()).map_or_else(|mistakes| mistakes, |_| Vec::new());
        assert_eq!(mistakes.len(), expected.len(), "{value}: {mistakes:#?}");
        for (key, part) in expected {
            let found = mistakes
                .iter()
                .any(|mistake| mistake.key == *key && mistake.message.contains(part));
            assert!(found, "{value}: no `{key}: ..{part}..` in {mistakes:#?}");
        }
    }

    #[test]
    fn what_is_right_has_no_mistakes() {
        check(json!({}), &[]);
        check(
            json!({
                "train": {"learning_rate": 1, "cosine_period": null},
                "views": {"crop_scale": [0.5, 1]},
            }),
            &[],
        );
        check(
            json!({
                "model": {"encoder": {"resnet18": {"stem": "cifar"}}},
                "rows": [],
                "data": {"dir": "/x"},
            }),
            &[],
        );
    }

    #[test]
    fn every_mistake_is_found_at_once() {
        check(
            json!({
                "trian": {}, "epochs": 3, "seed": -5, "name": 5,
                "train": {
                    "epochs": "x", "batch_size": 1.5, "learning_rate": true, "schedule": "cosin",
                    "max_steps": [],
                },
            }),
            &[
                ("trian", "unknown key; did you mean `train`?"),
                ("epochs", "unknown key; did you mean `train.epochs`?"),
                ("seed", "expected a non-negative integer, got -5"),
                ("name", "expected a string, got 5"),
                ("train.epochs", "expected a non-negative integer, got the string `x`"),
                ("train.batch_size", "got 1.5"),
                ("train.learning_rate", "expected a number, got true"),
                (
                    "train.schedule",
                    "expected one of cosine, constant, got `cosin`; did you mean `cosine`?",
                ),
                ("train.max_steps", "got a list of 0"),
            ],
        );
        check(
            json!({"backbones": ["x", {"name": 3, "objective": {"spred": 1}}, {"checkpoint": []}],
                "rows": [{"method": [], "backbones": [1, 2]}, 5]}),
            &[
                ("backbones.0", "expected a map of keys, got the string `x`"),
                ("backbones.1.name", "expected a string, got 3"),
                ("backbones.1.objective.spred", "did you mean `spread`?"),
                ("backbones.2.checkpoint", "expected a string"),
                ("rows.0.method", "expected a string"),
                ("rows.0.backbones.0", "expected a string, got 1"),
                ("rows.0.backbones.1", "expected a string, got 2"),
                ("rows.1", "expected a map of keys, got 5"),
            ],
        );
    }

    #[test]
    fn lists_maps_and_choices_say_what_belongs_there() {
        let encoders = "expected one of vit, resnet18, resnet50 as its only key";
        for encoder in
            [json!({}), json!("vit"), json!(3), json!(null), json!({"resnet18": {}, "vit": {}})]
        {
            check(json!({"model": {"encoder": encoder}}), &[("model.encoder", encoders)]);
        }
        check(
            json!({"model": {"encoder": {"vitt": 3}}}),
            &[("model.encoder", "did you mean `vit`?")],
        );
        check(
            json!({"model": {"encoder": {"vit": 3}}}),
            &[("model.encoder.vit", "expected a map of keys, got 3")],
        );
        check(
            json!({
                "model": {"encoder": {"vit": {"patch": "x", "widht": 3, "depth": 1, "heads": 1}}},
            }),
            &[
                ("model.encoder.vit.patch", "got the string `x`"),
                ("model.encoder.vit.widht", "did you mean `width`?"),
                ("model.encoder.vit.width", "is missing"),
            ],
        );
        check(
            json!({"model": {"encoder": {"resnet18": {"stem": 3}}}}),
            &[("model.encoder.resnet18.stem", "expected one of imagenet, cifar, got 3")],
        );
        check(
            json!({
                "views": {"crop_scale": [1, 2, 3], "crop_ratio": [1, "x"]},
                "data": null,
                "train": [1],
            }),
            &[
                ("views.crop_scale", "expected a list of two numbers, got a list of 3"),
                ("views.crop_ratio.1", "expected a number"),
                ("data", "expected a map of keys, got null"),
                ("train", "expected a map of keys, got a list of 1"),
            ],
        );
        check(json!(5), &[("", "expected a map of keys, got 5")]);
    }

    #[test]
    fn a_flood_of_mistakes_is_cut() {
        let rows: Vec<Value> = (0..500).map(|row| json!({ "method": row })).collect();
        let mistakes = typed(json!({ "rows": rows })).expect_err("500 mistakes");
        assert_eq!(mistakes.len(), MAX_MISTAKES);
    }
}
