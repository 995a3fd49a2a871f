//! Keys that have no effect because of another key: a constant rate has no period, a ResNet no
//! dropout. Such a key holds its neutral value in a resolved configuration; one that a user sets to
//! another value is refused, with both names.

use crate::dataset::DataKind;
use crate::error::Mistake;
use crate::log_config::{LogConfig, WandbMode};
use crate::run_config::{BackboneConfig, EncoderConfig, RunConfig, Schedule, Validation};
use serde_json::{Value, json};
use std::borrow::Cow;

/// Which sources may set a key that has no effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    /// No source: the two keys contradict each other, in a file as well.
    Contradiction,
    /// A preset or a file, where a complete configuration has every key. An override asks for an
    /// effect.
    OverrideOnly,
}

/// A key that has no effect in a configuration.
#[derive(Clone, Debug, PartialEq)]
struct Idle {
    key: Cow<'static, str>,
    /// The key that is the reason.
    by: &'static str,
    /// The value that does not contradict the other key.
    neutral: Value,
    /// Continues "has no effect: ".
    why: String,
    scope: Scope,
}

/// Layers in the order in which they are laid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Layer {
    /// The defaults or the preset.
    Preset,
    File,
    Override,
}

/// Resets the keys without effect that were set before what makes them so, and reports those that
/// were set with it or after it. `layer` is the last layer that set a key.
pub(crate) fn settle(
    config: RunConfig,
    layer: impl Fn(&str) -> Layer,
) -> (RunConfig, Vec<Mistake>) {
    let mut value = to_value(&config);
    let mut mistakes = Vec::new();
    for Idle { key, by, neutral, why, scope } in idle(&config) {
        let Some(place) = value.pointer_mut(&pointer(&key)) else { continue };
        if *place == neutral {
            continue;
        }
        let set_in = layer(&key);
        match scope {
            Scope::Contradiction if set_in == Layer::Preset || set_in < layer(by) => {
                *place = neutral
            }
            Scope::OverrideOnly if set_in != Layer::Override => {}
            _ => {
                let message = format!(
                    "{place} has no effect: {why} (`{by}`); remove it or set it to {neutral}"
                );
                mistakes.push(Mistake { line: None, key: key.into_owned(), message });
            }
        }
    }
    (serde_json::from_value(value).expect("neutral values have the types of their keys"), mistakes)
}

/// The configuration with every contradiction resolved: equal for configurations that only differ
/// in keys without effect.
pub(crate) fn normalized(config: &RunConfig) -> RunConfig {
    settle(config.clone(), |_| Layer::Preset).0
}

fn to_value(config: &RunConfig) -> Value {
    serde_json::to_value(config).expect("a RunConfig holds only what JSON can")
}

fn pointer(key: &str) -> String {
    format!("/{}", key.replace('.', "/"))
}

/// Every key without effect in this configuration, each once.
fn idle(config: &RunConfig) -> Vec<Idle> {
    let mut found = contradictions(config);
    found.extend(for_nothing(config));
    found
}

fn contradictions(config: &RunConfig) -> Vec<Idle> {
    let mut found = Vec::new();
    let mut add = |key: &'static str, by, neutral, why: &str| {
        found.push(Idle {
            key: key.into(),
            by,
            neutral,
            why: why.into(),
            scope: Scope::Contradiction,
        });
    };
    if config.train.schedule == Schedule::Constant {
        add(
            "train.cosine_period",
            "train.schedule",
            Value::Null,
            "a constant learning rate has no period",
        );
    }
    if config.data.validation == Validation::Test {
        let why =
            "the best epoch is selected on the test images, and no training image is held out";
        add("data.validation_fraction", "data.validation", json!(0.1), why);
    }
    if config.checks.compare_ranks_every.is_none() {
        add(
            "checks.on_divergence",
            "checks.compare_ranks_every",
            json!("stop"),
            "ranks are never compared",
        );
    }
    match config.model.encoder {
        EncoderConfig::Resnet18 { .. } | EncoderConfig::Resnet50 { .. } => {
            for key in ["model.dropout", "model.embedding_dropout", "model.query_dropout"] {
                add(key, "model.encoder", json!(0.0), "a ResNet has no dropout");
            }
        }
        EncoderConfig::Vit { .. } if config.model.dropout == 0.0 => {
            for key in ["model.embedding_dropout", "model.query_dropout"] {
                add(key, "model.dropout", json!(0.0), "0 turns every kind of dropout off");
            }
        }
        EncoderConfig::Vit { .. } => {}
    }
    found
}

/// What one configuration of many has no use for.
fn for_nothing(config: &RunConfig) -> Vec<Idle> {
    let mut found = Vec::new();
    let mut add = |key: &'static str, by, neutral, why: String| {
        found.push(Idle { key: key.into(), by, neutral, why, scope: Scope::OverrideOnly });
    };
    let data = config.data.facts();
    if data.channels == 1 {
        for key in ["views.saturation", "views.hue", "views.grayscale"] {
            add(
                key,
                "data.kind",
                json!(0.0),
                format!("the images of {} have one channel", data.name),
            );
        }
    }
    if config.data.kind == DataKind::Digits {
        add("data.dir", "data.kind", Value::Null, "the digits are embedded in the program".into());
    }
    if !matches!(config.data.kind, DataKind::ImageFolder | DataKind::Tinyimagenet) {
        add(
            "data.on_bad_image",
            "data.kind",
            json!("fail"),
            format!("{} has no images to decode", data.name),
        );
    }
    let trained = || config.backbones.iter().filter(|backbone| backbone.checkpoint.is_none());
    let term = |own: fn(&BackboneConfig) -> Option<f64>, base: f64| {
        trained().any(|backbone| own(backbone).unwrap_or(base) > 0.0)
    };
    if !term(|backbone| backbone.objective.reconstruction, config.objective.reconstruction) {
        add(
            "model.decoder.width",
            "objective.reconstruction",
            json!(512),
            "no backbone reconstructs images".into(),
        );
    }
    if !term(|backbone| backbone.objective.contrastive, config.objective.contrastive) {
        for (key, neutral) in [
            ("objective.attract", json!(1.0)),
            ("objective.spread", json!(0.0)),
            ("objective.temperature", json!(0.5)),
            ("objective.similarity", json!("cosine")),
            ("objective.clamp_positive_logits", Value::Null),
            ("objective.positives_in_denominator", json!(false)),
            ("objective.both_directions", json!(false)),
        ] {
            add(key, "objective.contrastive", neutral, "no backbone has a contrastive loss".into());
        }
    }
    if config.rows.is_empty() {
        add("log.embedding_images", "rows", json!(1000), "there is no row to map".into());
    }
    found.extend(of_unused_trackers(&config.log));
    found.extend(of_given_weights(config));
    found
}

/// How a run appears where it is not recorded.
fn of_unused_trackers(log: &LogConfig) -> Vec<Idle> {
    let wandb: &[&'static str] =
        &["log.wandb.project", "log.wandb.entity", "log.wandb.group", "log.wandb.tags"];
    let trackers = [
        (log.wandb.mode == WandbMode::Disabled, "log.wandb.mode", wandb, "Weights & Biases"),
        (log.mlflow.uri.is_none(), "log.mlflow.uri", &["log.mlflow.experiment"], "MLflow"),
        (log.trackio.url.is_none(), "log.trackio.url", &["log.trackio.project"], "trackio"),
    ];
    let default = to_value(&RunConfig::default());
    let unused = trackers.into_iter().filter(|(is_unused, ..)| *is_unused);
    let idle = unused.flat_map(|(_, by, keys, tracker)| {
        let neutral = |key: &str| default.pointer(&pointer(key)).cloned().unwrap_or_default();
        keys.iter().map(move |&key| Idle {
            key: key.into(),
            by,
            neutral: neutral(key),
            why: format!("nothing is recorded for {tracker}"),
            scope: Scope::OverrideOnly,
        })
    });
    idle.collect()
}

/// Objectives of backbones that are not trained.
fn of_given_weights(config: &RunConfig) -> impl Iterator<Item = Idle> {
    let given =
        config.backbones.iter().enumerate().filter(|(_, backbone)| backbone.checkpoint.is_some());
    given.map(|(index, backbone)| Idle {
        key: format!("backbones.{index}.objective").into(),
        by: "backbones.NAME.checkpoint",
        neutral: json!({}),
        why: format!("{} is not trained", backbone.name),
        scope: Scope::OverrideOnly,
    })
}

#[cfg(test)]
mod tests {
    use crate::load::load_preset;
    use crate::plan::Plan;
    use crate::run_config::RunConfig;

    fn texts(overrides: &[&str]) -> Vec<String> {
        overrides.iter().map(|&text| text.to_owned()).collect()
    }

    /// Expects one message with all of these parts.
    #[track_caller]
    fn refused(preset: &str, overrides: &[&str], parts: &[&str]) {
        let shown = Plan::from_preset(preset, &texts(overrides)).expect_err("refused").to_string();
        assert_eq!(shown.lines().count(), 1, "{shown}");
        for part in parts {
            assert!(shown.contains(part), "no `{part}` in {shown}");
        }
    }

    #[track_caller]
    fn resolved(preset: &str, overrides: &[&str]) -> RunConfig {
        Plan::from_preset(preset, &texts(overrides)).expect("valid").config().clone()
    }

    #[test]
    fn a_key_that_contradicts_another_is_refused_with_both_names() {
        let constant = ["train.schedule=constant", "train.cosine_period=7"];
        refused(
            "cifar10_supcon",
            &constant,
            &["train.cosine_period: 7 has no effect", "`train.schedule`"],
        );
        let dropout = ["model.dropout=0", "model.embedding_dropout=.4"];
        refused(
            "cifar10_supcon",
            &dropout,
            &["model.embedding_dropout: 0.4 has no effect", "`model.dropout`"],
        );
        refused(
            "digits_supcon",
            &["model.query_dropout=.4"],
            &["model.query_dropout", "`model.dropout`"],
        );
        let validation = ["data.validation=test", "data.validation_fraction=.2"];
        refused(
            "cifar10_supcon",
            &validation,
            &["data.validation_fraction: 0.2 has no", "`data.validation`"],
        );
        let resnet = ["model.encoder.resnet18.stem=cifar", "model.dropout=.3"];
        refused(
            "cifar10_supcon",
            &resnet,
            &["model.dropout: 0.3 has no effect: a ResNet", "`model.encoder`"],
        );
        let map = ["model={encoder: {resnet18: {stem: cifar}}, query_dropout: .3}"];
        refused(
            "cifar10_supcon",
            &map,
            &["model.query_dropout: 0.3 has no effect: a ResNet", "`model.encoder`"],
        );
        let checks = ["checks={compare_ranks_every: null, on_divergence: repair}"];
        refused(
            "digits_supcon",
            &checks,
            &["checks.on_divergence", "`checks.compare_ranks_every`"],
        );
    }

    #[test]
    fn an_override_without_effect_is_refused() {
        refused(
            "mnist_supcon",
            &["views.hue=.2"],
            &["views.hue: 0.2 has no effect: the images of mnist have one"],
        );
        refused("digits_supcon", &["data.dir=/x"], &["data.dir", "embedded"]);
        refused(
            "cifar10_supcon",
            &["data.on_bad_image=skip"],
            &["data.on_bad_image", "no images to decode"],
        );
        refused(
            "cifar10_supcon",
            &["model.decoder.width=64"],
            &["model.decoder.width", "no backbone reconstructs"],
        );
        refused(
            "cifar10_cae",
            &["objective.temperature=.1"],
            &["objective.temperature", "contrastive loss"],
        );
        let given = ["backbones.cnce.checkpoint=/w", "backbones.cnce.objective.spread=2"];
        refused(
            "cifar10_thanos",
            &given,
            &["backbones.0.objective: ", "has no effect: cnce is not trained"],
        );
        let map = ["rows=[]", "log.embedding_images=9"];
        refused("digits_cae", &map, &["log.embedding_images: 9", "no row to map", "`rows`"]);
        refused("digits_cae", &["log.wandb.tags=[a]"], &["log.wandb.tags", "`log.wandb.mode`"]);
        refused(
            "digits_cae",
            &["log.mlflow.experiment=a"],
            &["log.mlflow.experiment", "`log.mlflow.uri`"],
        );
        refused(
            "digits_cae",
            &["log.trackio.project=a"],
            &["log.trackio.project", "`log.trackio.url`"],
        );
        assert_eq!(
            resolved("digits_cae", &["wandb.mode=online", "wandb.group=7"]).log.wandb.group,
            Some("7".into())
        );
        resolved("cifar10_thanos", &["backbones.cae.checkpoint=/w"]);
        resolved("cifar10_cae", &["model.decoder.width=64"]);
        resolved("mnist_supcon", &["views.hue=0"]);
    }

    /// What was set before is not what the user means: another choice resets it.
    #[test]
    fn a_later_choice_resets_what_a_preset_or_file_says() {
        assert_eq!(
            resolved("cifar10_supcon", &["train.schedule=constant"]).train.cosine_period,
            None
        );
        let model = resolved("cifar10_supcon", &["model.encoder.resnet18.stem=cifar"]).model;
        assert_eq!((model.dropout, model.embedding_dropout, model.query_dropout), (0.0, 0.0, 0.0));
        let model = resolved("digits_supcon", &["model.dropout=0.1"]).model;
        assert_eq!((model.dropout, model.embedding_dropout), (0.1, 0.1), "the default acts again");
        let file = "extends: cifar10_supcon\ntrain:\n  cosine_period: 7\n";
        let plan = Plan::from_file(file, "f", &texts(&["train.schedule=constant"])).expect("valid");
        assert_eq!(plan.config().train.cosine_period, None);
        let both = format!("{file}  schedule: constant\n");
        let shown = Plan::from_file(&both, "f", &[]).expect_err("refused").to_string();
        assert!(shown.starts_with("f:3: train.cosine_period: 7 has no effect"), "{shown}");
    }

    #[test]
    fn what_is_shown_loads_again() {
        for overrides in [
            &["train.schedule=constant"][..],
            &["model.encoder.resnet50.stem=cifar"],
            &["model.dropout=0"],
        ] {
            let config = resolved("cifar10_table", overrides);
            let shown = crate::to_yaml(&config);
            assert_eq!(
                Plan::from_file(&shown, "f", &[]).expect("valid").config(),
                &config,
                "{overrides:?}"
            );
        }
    }

    /// A run directory of an earlier version may hold both keys: they are the same run.
    #[test]
    fn keys_without_effect_are_no_difference() {
        let old =
            load_preset("cifar10_supcon", &texts(&["train.schedule=constant"])).expect("valid");
        let mut new = old.clone();
        new.train.cosine_period = Some(100);
        assert_ne!(old, new);
        assert_eq!(crate::changes(&new, &old), []);
    }
}
