//! docs/configuration.md, the reference of every key: made of the types and doc comments of
//! `RunConfig`, and checked. A sentence `Unit: ...` at the end of a doc comment is its column of
//! units.

use crate::run_config::RunConfig;
use serde_json::Value;
use std::fmt::Write;

const INTRO: &str = "\
# Configuration

Every key of a run, with its type, default, unit and effect. This file is generated from \
`configs/src/run_config.rs`:
`UPDATE_SNAPSHOTS=1 cargo test --release -p thanos-configs` regenerates it.

A run is configured by a preset (`thanos-coord presets`) or a YAML file, which may have `extends: \
PRESET`, and by overrides
on the command line, `KEY=VALUE`, with sections joined by dots: `train.epochs=10`. `thanos-coord \
show PRESET` prints
what results, with all defaults.

- The value of a key that holds text is everything after the `=`, as typed: `data.dir='/data/set \
#1'`. `~/` at the start of a
  path is the home directory. Other values are YAML: `rows.0.backbones=[cnce, cae]`, \
  `train.max_steps=null`.
- Backbones and rows are addressed by name or by number: \
`backbones.cae.objective.reconstruction=0.5`.
- An unknown key, a value of the wrong type, and a value out of range are refused. So is a key \
that another key leaves
  without effect, such as `train.cosine_period` with `train.schedule: constant`, unless a preset \
  set it.
- An `objective` key is for backbones without a value of their own; where some backbone has one, \
as in `*_thanos` and
  `*_table`, the shared key is refused as an override: name the backbone.
- `extends` is the one key that is only read in files.
";

/// A key, as a line of a table.
#[derive(Debug)]
struct Row {
    key: String,
    kind: String,
    default: String,
    unit: String,
    effect: String,
}

impl Row {
    fn section(&self) -> &str {
        self.key.split_once('.').map_or("", |(section, _)| section)
    }
}

struct Reference {
    schema: Value,
    defaults: Value,
    rows: Vec<Row>,
}

impl Reference {
    fn new() -> Self {
        let schema = schemars::schema_for!(RunConfig).to_value();
        let defaults = serde_json::to_value(RunConfig::default()).expect("plain data");
        let mut reference = Self { schema: schema.clone(), defaults, rows: Vec::new() };
        reference.properties("", &schema);
        reference
    }

    /// What a node refers to.
    fn resolved(&self, node: &Value) -> Value {
        let target =
            node.get("$ref").and_then(Value::as_str).and_then(|name| name.strip_prefix('#'));
        target.and_then(|path| self.schema.pointer(path)).unwrap_or(node).clone()
    }

    /// The keys of a map.
    fn properties(&mut self, prefix: &str, map: &Value) {
        for (name, node) in map["properties"].as_object().into_iter().flatten() {
            self.key(&format!("{prefix}{name}"), node);
        }
    }

    fn key(&mut self, key: &str, node: &Value) {
        let target = self.resolved(node);
        let item = self.resolved(&target["items"]);
        if target.get("properties").is_some() {
            return self.properties(&format!("{key}."), &target);
        }
        if item.get("properties").is_some() {
            self.rows.push(self.row(key, node, &target));
            return self.properties(&format!("{key}.NAME."), &item);
        }
        self.rows.push(self.row(key, node, &target));
        for choice in choices(&target) {
            for (name, node) in choice["properties"].as_object().into_iter().flatten() {
                self.properties(&format!("{key}.{name}."), node);
            }
        }
    }

    fn row(&self, key: &str, node: &Value, target: &Value) -> Row {
        let text = text(node).or_else(|| text(target)).unwrap_or_default();
        let (effect, unit) = match text.split_once("Unit: ") {
            Some((effect, unit)) => (effect.trim(), unit.trim_end_matches('.')),
            None if key.ends_with("_seconds") => (text.trim(), "seconds"),
            None => (text.trim(), ""),
        };
        let mut effect = effect.to_owned();
        for choice in choices(target) {
            let names = names(&choice);
            match self::text(&choice) {
                Some(text) => _ = write!(effect, " `{}`: {text}", names.join("`, `")),
                None => _ = write!(effect, " `{}`.", names.join("`, `")),
            }
        }
        let pointer = format!("/{}", key.replace(".NAME.", "/0/").replace('.', "/"));
        let default = match self.defaults.pointer(&pointer) {
            Some(Value::Object(choice)) => choice.keys().next().cloned().unwrap_or_default(),
            Some(value) => value.to_string().replace('"', ""),
            None if key.starts_with("model.encoder.") => "required".into(),
            None if key.ends_with(".checkpoint") || key.contains(".objective.") => "null".into(),
            None => "required".into(),
        };
        Row {
            key: key.into(),
            kind: kind(target),
            default,
            unit: unit.into(),
            effect: effect.trim().into(),
        }
    }
}

fn text(node: &Value) -> Option<String> {
    node["description"].as_str().map(|text| text.replace('\n', " "))
}

/// The values between which a key chooses, as their schemas.
fn choices(target: &Value) -> Vec<Value> {
    match target.get("oneOf").and_then(Value::as_array) {
        Some(choices) => choices.clone(),
        None if target.get("enum").is_some() => vec![target.clone()],
        None => Vec::new(),
    }
}

/// The names of a choice: several that have no description of their own are one.
fn names(choice: &Value) -> Vec<String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    match (&choice["const"], &choice["enum"], &choice["properties"]) {
        (Value::String(name), ..) => vec![name.clone()],
        (_, Value::Array(names), _) => names.iter().map(text).collect(),
        (.., Value::Object(entries)) => entries.keys().cloned().collect(),
        _ => Vec::new(),
    }
}

/// The type of a key, as people say it.
fn kind(target: &Value) -> String {
    let all = choices(target);
    if !all.is_empty() {
        let is_map = all.iter().any(|choice| choice.get("properties").is_some());
        return if is_map { "a map with one key".into() } else { "a choice".into() };
    }
    let types = match &target["type"] {
        Value::Array(types) => types.iter().filter_map(Value::as_str).collect(),
        one => vec![one.as_str().unwrap_or_default()],
    };
    let word = |one: &str| match one {
        "string" => "text",
        "integer" => "integer",
        "number" => "number",
        "boolean" => "true or false",
        "array" if target.get("maxItems").is_some() => "two numbers",
        "array" if target["items"]["type"] == "string" => "list of names",
        "array" => "list of maps",
        "null" => "null",
        other => panic!("a type without a word: {other} in {target}"),
    };
    types.into_iter().map(word).collect::<Vec<_>>().join(" or ")
}

fn document(reference: &Reference) -> String {
    let mut text = INTRO.to_owned();
    let mut section = None;
    for row in &reference.rows {
        if section != Some(row.section()) {
            section = Some(row.section());
            let title = if row.section().is_empty() { "The run" } else { row.section() };
            _ = write!(
                text,
                "\n## {title}\n\n| key | type | default | unit | effect |\n|---|---|---|---|---|\n"
            );
        }
        let Row { key, kind, default, unit, effect } = row;
        _ = writeln!(
            text,
            "| `{key}` | {kind} | {default} | {unit} | {} |",
            effect.replace('|', "\\|")
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// `UPDATE_SNAPSHOTS=1 cargo test -p thanos-configs` regenerates it.
    #[test]
    fn the_reference_is_the_code() {
        let made = document(&Reference::new());
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/configuration.md");
        if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
            std::fs::write(&file, &made).expect("written");
        }
        let written = std::fs::read_to_string(&file).unwrap_or_default();
        assert_eq!(made, written, "if this is meant, run with UPDATE_SNAPSHOTS=1");
    }

    #[test]
    fn every_key_has_an_effect_and_every_number_a_unit() {
        let reference = Reference::new();
        for row in &reference.rows {
            assert!(!row.effect.is_empty(), "{}: no doc comment", row.key);
            assert!(
                !row.kind.contains("number") || !row.unit.is_empty(),
                "{}: no `Unit:`",
                row.key
            );
        }
        // Every value of the defaults is in the table.
        let keys: Vec<&str> = reference.rows.iter().map(|row| row.key.as_str()).collect();
        for key in crate::recipe::keys(&RunConfig::default()) {
            // A range is one key.
            let key = key.trim_end_matches(".0").trim_end_matches(".1").to_owned();
            assert!(keys.contains(&key.as_str()), "{key} is not in the reference: {keys:?}");
        }
    }
}
