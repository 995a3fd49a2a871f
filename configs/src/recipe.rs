//! What makes two runs the same run: the recipe, which is a configuration without the keys that a
//! resume may change. The list of those keys is here, once, with what must hold of the run when one
//! of them changes. It compares values; whether the data or the weights are the same is for their
//! owner to check.

use crate::digest::hex;
use crate::effect::normalized;
use crate::run_config::RunConfig;
use serde_json::Value;
use sha2::{Digest, Sha256};

/// What must hold of a run whose key changes at a resume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Nothing: the key decides what is written, checked or waited for, not what is computed.
    Nothing,
    /// The packs have the same content: the key says where raw data is and how it is read.
    SameData,
    /// Both values name a file, and the weights in it are the same.
    SameWeights,
    /// No stage has made more steps than the new value allows. Where the learning rate falls over
    /// all epochs (`train.cosine_period: null`, and every transfer), it follows the new length from
    /// the resume on.
    NotShorterThanMade,
}

/// The keys that a resume may change, with all keys below them; `*` is any item of a list. Every
/// other key is a part of the recipe.
const MAY_CHANGE: [(&str, Condition); 15] = [
    ("data.dir", Condition::SameData),
    ("data.coarse_map", Condition::SameData),
    ("data.train_folder", Condition::SameData),
    ("data.test_folder", Condition::SameData),
    ("data.exif_orientation", Condition::SameData),
    ("data.on_bad_image", Condition::SameData),
    ("backbones.*.checkpoint", Condition::SameWeights),
    ("train.epochs", Condition::NotShorterThanMade),
    ("train.max_steps", Condition::NotShorterThanMade),
    ("transfer.epochs", Condition::NotShorterThanMade),
    ("transfer.max_steps", Condition::NotShorterThanMade),
    ("checkpoint", Condition::Nothing),
    ("checks", Condition::Nothing),
    ("timeouts", Condition::Nothing),
    ("log", Condition::Nothing),
];

/// Sections by which no worker trains: they are in no digest.
const NOT_FOR_WORKERS: [&str; 2] = ["log", "timeouts"];

/// A key whose value is not what the run has; null: it has none.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// Dotted, list items by number.
    pub key: String,
    pub old: Value,
    pub new: Value,
    /// What must hold for it; `None`: the key may not change.
    pub condition: Option<Condition>,
}

/// What is different in `new`, key by key in the order of `old`.
/// Keys without effect in either are not a difference.
pub fn changes(old: &RunConfig, new: &RunConfig) -> Vec<Change> {
    let (old, new) = (leaves(&normalized(old)), leaves(&normalized(new)));
    let value = |leaves: &[(String, Value)], key: &str| {
        leaves.iter().find(|(name, _)| name == key).map_or(Value::Null, |(_, value)| value.clone())
    };
    let added = new.iter().filter(|(key, _)| old.iter().all(|(name, _)| name != key));
    let keys = old.iter().chain(added).map(|(key, _)| key.clone());
    let change = |key: String| {
        let (old, new) = (value(&old, &key), value(&new, &key));
        let condition = condition(&key).filter(|condition| {
            *condition != Condition::SameWeights || !old.is_null() && !new.is_null()
        });
        (old != new).then_some(Change { key, old, new, condition })
    };
    keys.filter_map(change).collect()
}

/// SHA-256 of the recipe, in hexadecimal.
pub(crate) fn recipe_digest(config: &RunConfig) -> String {
    let mut hash = Sha256::new();
    for (key, value) in leaves(config) {
        let value = match condition(&key) {
            None => value,
            // Where the weights are is not part of the recipe; that they are not trained is.
            Some(Condition::SameWeights) => Value::Bool(!value.is_null()),
            Some(_) => continue,
        };
        hash.update(format!("{key}={value}\n"));
    }
    hex(&hash.finalize())
}

/// SHA-256 of all that a worker computes by, in hexadecimal.
pub(crate) fn resolved_digest(config: &RunConfig) -> String {
    let mut value = to_value(config);
    if let Some(sections) = value.as_object_mut() {
        NOT_FOR_WORKERS.into_iter().for_each(|section| _ = sections.shift_remove(section));
    }
    hex(&Sha256::digest(value.to_string().as_bytes()))
}

fn to_value(config: &RunConfig) -> Value {
    serde_json::to_value(config).expect("a RunConfig holds only what JSON can")
}

fn condition(key: &str) -> Option<Condition> {
    let inside = |pattern: &str| {
        let mut parts = key.split('.');
        pattern
            .split('.')
            .all(|wanted| parts.next().is_some_and(|part| wanted == "*" || wanted == part))
    };
    MAY_CHANGE.into_iter().find(|(pattern, _)| inside(pattern)).map(|(_, condition)| condition)
}

/// Every single value of a configuration by its dotted key; an empty list or map is a single value.
fn leaves(config: &RunConfig) -> Vec<(String, Value)> {
    let mut found = Vec::new();
    walk(String::new(), to_value(config), &mut found);
    found
}

/// The dotted key of every single value.
#[cfg(test)]
pub(crate) fn keys(config: &RunConfig) -> Vec<String> {
    leaves(config).into_iter().map(|(key, _)| key).collect()
}

fn walk(key: String, value: Value, found: &mut Vec<(String, Value)>) {
    let below = |part: &str| if key.is_empty() { part.to_owned() } else { format!("{key}.{part}") };
    match value {
        Value::Object(entries) if !entries.is_empty() => {
            entries.into_iter().for_each(|(name, value)| walk(below(&name), value, found));
        }
        Value::Array(items) if !items.is_empty() => {
            items
                .into_iter()
                .enumerate()
                .for_each(|(index, value)| walk(below(&index.to_string()), value, found));
        }
        value => found.push((key, value)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::load_preset;
    use serde_json::json;

    fn config(overrides: &[&str]) -> RunConfig {
        let overrides: Vec<String> = overrides.iter().map(|&text| text.into()).collect();
        load_preset("digits_thanos", &overrides).expect("valid")
    }

    /// One override: is the recipe another one, is what workers compute another thing, and what
    /// must hold?
    #[test]
    fn the_recipe_is_what_no_resume_may_change() {
        let check = |text: &str, same_recipe, same_for_workers, condition: Option<Condition>| {
            let (old, new) = (config(&[]), config(&[text]));
            assert_eq!(recipe_digest(&old) == recipe_digest(&new), same_recipe, "{text}");
            assert_eq!(resolved_digest(&old) == resolved_digest(&new), same_for_workers, "{text}");
            let changes = changes(&old, &new);
            assert!(!changes.is_empty(), "{text}");
            assert!(
                changes.iter().all(|change| change.condition == condition),
                "{text}: {changes:?}"
            );
        };
        check("seed=1", false, false, None);
        check("rows=[]", false, false, None);
        check("data.validation_fraction=0.2", false, false, None);
        check("train.evaluate_every=2", false, false, None);
        check("backbones.0.checkpoint=/weights", false, false, None);
        check("model.encoder={resnet18: {stem: cifar}}", false, false, None);
        check("data.dir=/elsewhere", true, false, Some(Condition::SameData));
        check("train.epochs=99", true, false, Some(Condition::NotShorterThanMade));
        check("transfer.max_steps=99", true, false, Some(Condition::NotShorterThanMade));
        check("checks.on_non_finite=skip", true, false, Some(Condition::Nothing));
        check("checkpoint={every_steps: 3, keep_last: 5}", true, false, Some(Condition::Nothing));
        check("checkpoint.every_seconds=7.5", true, false, Some(Condition::Nothing));
        check("log.tensorboard=false", true, true, Some(Condition::Nothing));
    }

    #[test]
    fn a_change_is_named_by_its_key_with_both_values() {
        let change =
            |key: &str, old, new, condition| Change { key: key.into(), old, new, condition };
        assert_eq!(changes(&config(&[]), &config(&["train.epochs=50"])), [], "50 is the preset's");
        let found = changes(&config(&[]), &config(&["seed=1", "rows=[]", "data.dir=/a"]));
        let expected = [
            change("seed", json!(0), json!(1), None),
            change("data.dir", Value::Null, json!("/a"), Some(Condition::SameData)),
            change("rows.0.method", json!("thanos"), Value::Null, None),
            change("rows.0.backbones.0", json!("cnce"), Value::Null, None),
            change("rows.0.backbones.1", json!("cae"), Value::Null, None),
            change("rows", Value::Null, json!([]), None),
        ];
        assert_eq!(found, expected);
        let [old, new] =
            ["/old", "/new"].map(|path| config(&[&format!("backbones.0.checkpoint={path}")]));
        assert_eq!(recipe_digest(&old), recipe_digest(&new));
        let expected = change(
            "backbones.0.checkpoint",
            json!("/old"),
            json!("/new"),
            Some(Condition::SameWeights),
        );
        assert_eq!(changes(&old, &new), [expected]);
    }
}
