//! What a user does to a configuration, and what is said about it: files, presets and overrides
//! together.

use super::*;
use crate::run_config::{EncoderConfig, Stem};

fn texts(overrides: &[&str]) -> Vec<String> {
    overrides.iter().map(|&text| text.to_owned()).collect()
}

/// Expects the displayed mistakes, in order: each line starts and ends as given (`start...end`) or
/// is equal.
fn check_errors(result: Result<impl std::fmt::Debug, ConfigErrors>, expected: &[&str]) {
    let shown = result.expect_err("there are mistakes").to_string();
    let lines: Vec<&str> = shown.lines().collect();
    assert_eq!(lines.len(), expected.len(), "{shown}");
    for (line, expected) in lines.iter().zip(expected) {
        let (start, end) = expected.split_once("...").unwrap_or((expected, ""));
        assert!(
            line.starts_with(start) && line.ends_with(end),
            "expected `{expected}`, got `{line}`"
        );
    }
}

#[test]
fn a_file_lies_over_its_preset_and_overrides_over_both() {
    let text = "extends: digits_table\nseed: 3\ntrain:\n  epochs: 5\n  cosine_period: 7\n\
                backbones:\n- name: a\nrows:\n- {method: m, backbones: [a]}\n";
    let config = load_file(text, "f", &texts(&["train.epochs=6", "data.dir=/d", "name='12'"]))
        .expect("valid");
    let preset = load_preset("digits_table", &[]).expect("valid");
    assert_eq!((config.seed, config.train.epochs, config.train.cosine_period), (3, 6, Some(7)));
    assert_eq!(config.train.learning_rate, preset.train.learning_rate);
    assert_eq!((config.backbones.len(), config.rows.len()), (1, 1));
    assert_eq!(config.data.dir.as_deref(), Some(std::path::Path::new("/d")));
    assert_eq!(config.name, "12");
}

/// A run directory that was made when `every_steps` was the only interval, and null meant once an
/// epoch.
#[test]
fn a_file_without_an_interval_in_seconds_has_the_default() {
    let config =
        load_file("checkpoint:\n  every_steps: null\n  keep_last: 2\n", "f", &[]).expect("valid");
    assert_eq!(
        (config.checkpoint.every_steps, config.checkpoint.every_seconds),
        (None, Some(60.0))
    );
}

#[test]
fn a_file_without_a_preset_has_the_defaults() {
    assert_eq!(load_file("", "f", &[]), Ok(RunConfig::default()));
    assert_eq!(load_file("# nothing\n", "f", &[]), Ok(RunConfig::default()));
}

#[test]
fn another_encoder_replaces_the_one_before() {
    let resnet = EncoderConfig::Resnet18 { stem: Stem::Cifar };
    let file = "extends: cifar10_supcon\nmodel:\n  encoder:\n    resnet18:\n      stem: cifar\n";
    assert_eq!(load_file(file, "f", &[]).expect("valid").model.encoder, resnet);
    for over in ["model.encoder.resnet18.stem=cifar", "model.encoder={resnet18: {stem: cifar}}"] {
        assert_eq!(
            load_preset("cifar10_supcon", &texts(&[over])).expect("valid").model.encoder,
            resnet,
            "{over}"
        );
    }
    let narrow =
        load_preset("cifar10_supcon", &texts(&["model.encoder.vit.width=64"])).expect("valid");
    let expected = EncoderConfig::Vit { patch: 4, width: 64, depth: 7, heads: 8, mlp: 512 };
    assert_eq!(narrow.model.encoder, expected);
}

#[test]
fn every_mistake_has_its_line_or_its_override() {
    let text = "\
# a run
name: x
data:
  kind: digit
train:
  epochs: ten
  bach_size: 3
  learning_rate: 1e-3
  epochs: 4
backbones:
  - name: a
  - nam: b
modle: {}
";
    let overrides =
        texts(&["train.weight_decay=heavy", "train.epoch=3", "train.schedule", "rows.0.method=x"]);
    check_errors(
        load_file(text, "f.yaml", &overrides),
        &[
            "f.yaml:4: data.kind: expected one of digits, mnist, ...got `digit`; did you mean \
            `digits`?",
            "f.yaml:6: train.epochs: expected a non-negative integer, got the string `ten`",
            "f.yaml:7: train.bach_size: unknown key; did you mean `batch_size`? (known here: \
            epochs,...)",
            "f.yaml:9: train.epochs: this key is already on line 6: keep one of the two",
            "f.yaml:12: backbones.1.nam: unknown key; did you mean `name`? (known here: name, \
            objective, checkpoint)",
            "f.yaml:13: modle: unknown key; did you mean `model`?...)",
            "override 'train.weight_decay=heavy': train.weight_decay: expected a number, got the \
            string `heavy`",
            "override 'train.epoch=3': train.epoch: unknown key; did you mean `epochs`?...)",
            "override 'train.schedule': missing `=`: write key=value, such as train.epochs=10",
            "override 'rows.0.method=x': rows.0.method: `rows` is an empty list: it has no `0`",
        ],
    );
}

#[test]
fn an_override_that_cannot_be_laid_says_why() {
    let check = |over: &str, expected: &str| {
        check_errors(load_preset("digits_cae", &texts(&[over])), &[expected])
    };
    check("train.epochs", "override 'train.epochs': missing `=`...");
    check("=3", "override '=3': the key `` has an empty part...");
    check(
        "train..epochs=3",
        "override 'train..epochs=3': the key `train..epochs` has an empty part...",
    );
    check(
        "rows.1.method=x",
        "override 'rows.1.method=x': rows.1.method: `rows` is a list of 1...got `1`",
    );
    check("seed.x=1", "override 'seed.x=1': seed.x: `seed` is a single value, it has no key `x`");
    check("seed=[1", "override 'seed=[1': seed: invalid YAML...");
    check(
        "train={epochs: 1, epochs: 2}",
        "override 'train={epochs: 1, epochs: 2}': train.epochs: duplicate key...",
    );
    check("epochs=3", "override 'epochs=3': epochs: unknown key; did you mean `train.epochs`?...");
    check(
        "extends=digits_cae",
        "override 'extends=digits_cae': extends: only a file can extend a preset...",
    );
    check("rows=", "override 'rows=': rows: expected a list, got null");
}

#[test]
fn what_is_no_configuration_is_refused() {
    let check = |text: &str, expected: &str| check_errors(load_file(text, "f", &[]), &[expected]);
    check("a: [", "f:2: invalid YAML...");
    check("- a\n", "f: expected a map of keys, got a list of 1");
    check("seed: 1\nmodel: !vit {}\n", "f:2: model: the tag `!vit` is not supported...");
    check(
        "\nextends: digit_cae\n",
        "f:2: extends: unknown preset `digit_cae`; did you mean `digits_cae`?...",
    );
    check("extends: 3\n", "f:1: extends: expected the name of a preset...");
    check("extend: digits_cae\n", "f:1: extend: unknown key; did you mean `extends`?...");
    check_errors(
        load_preset("digit_table", &[]),
        &["preset digit_table: unknown preset `digit_table`; did you mean \
            `digits_table`?...lists all 40)"],
    );
}

#[test]
fn broken_rules_have_lines_like_every_other_mistake() {
    let text = "extends: digits_cae\ntrain:\n  epochs: 0\nmodel:\n  encoder:\n    vit:\n      \
        patch: 3\ntransfer:\n  epochs: 0\n";
    let overrides = texts(&["views.hue=3", "transfer.epochs=-0", "transfer.frozen_mode=train"]);
    check_errors(
        Plan::from_file(text, "f.yaml", &overrides),
        &[
            "f.yaml:3: train.epochs: must be between 1 and 1000000, got 0",
            "f.yaml:7: model.encoder.vit.patch: 3 does not divide the 8 pixels of digits",
            "override 'views.hue=3': views.hue: must be between 0 and 0.5, got 3",
            "override 'transfer.epochs=-0': transfer.epochs: must be between 1 and 1000000, got 0",
            "override 'transfer.frozen_mode=train': transfer.frozen_mode: `train` contradicts...",
        ],
    );
    // A rule about a key that the file leaves to its preset points at what holds the key.
    check_errors(
        Plan::from_file(
            "extends: digits_cae\nmodel:\n  encoder:\n    vit: {width: 50}\n",
            "f.yaml",
            &[],
        ),
        &["f.yaml:4: model.encoder.vit.heads: 4 does not divide the width 50"],
    );
}

#[test]
fn nothing_panics_on_arbitrary_text() {
    let pieces = [
        "train",
        "epochs",
        "backbones",
        "extends",
        "digits_cae",
        ":",
        " ",
        "\n",
        "  ",
        "- ",
        "[",
        "]",
        "{",
        "}",
        ",",
        "1",
        "-",
        ".",
        "e",
        "x",
        "\"",
        "'",
        "|",
        ">",
        "&a",
        "*a",
        "!t",
        "#",
        "---",
        "?",
        "\t",
        "\u{0}",
        "é",
        "=",
    ];
    let mut stream = crate::SplitMix64::new(7);
    for _ in 0..3000 {
        let len = stream.below(30);
        let text: String =
            (0..len).map(|_| pieces[stream.below(pieces.len() as u64) as usize]).collect();
        let _ = Plan::from_file(&text, "f", &[]);
        let _ = Plan::from_preset("digits_table", &[format!("train={text}"), text]);
    }
}
