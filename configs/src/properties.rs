//! Properties of the configuration on random values: what is written is read back, an override sets
//! the key that it names and no other, and text is taken as typed.

use crate::dataset::DataKind;
use crate::load::{load_file, load_preset, to_yaml};
use crate::objective::{ObjectivePatch, Similarity};
use crate::plan::{Plan, is_separator};
use crate::recipe::changes;
use crate::run_config::{
    BackboneConfig, EncoderConfig, Features, OnBadImage, Precision, RowConfig, RunConfig, Schedule,
    Stem, Validation,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use std::path::PathBuf;

const TRICKY: [&str; 15] = [
    "", "null", "~", "true", "12", "1e3", "0x1F", "#1", "a #b", "a: b", "- a", "[x]", "'x'", "\"",
    " x ",
];

/// Any number that JSON and YAML hold.
fn number() -> impl Strategy<Value = f64> {
    prop_oneof![
        any::<f64>().prop_filter("a finite number", |number| number.is_finite()),
        Just(0.1),
        Just(3e-4),
        Just(1.0)
    ]
}

/// Texts that YAML might take for something else, and any others that a run may have.
fn word() -> impl Strategy<Value = String> {
    let text = any::<String>().prop_map(|text| text.replace(is_separator, "-"));
    prop_oneof![text, proptest::sample::select(&TRICKY[..]).prop_map(str::to_owned)]
}

fn path() -> impl Strategy<Value = Option<PathBuf>> {
    option::of(word().prop_map(PathBuf::from))
}

fn encoder() -> impl Strategy<Value = EncoderConfig> {
    let stem = || prop_oneof![Just(Stem::Imagenet), Just(Stem::Cifar)];
    prop_oneof![
        any::<[usize; 5]>().prop_map(|[patch, width, depth, heads, mlp]| EncoderConfig::Vit {
            patch,
            width,
            depth,
            heads,
            mlp
        }),
        stem().prop_map(|stem| EncoderConfig::Resnet18 { stem }),
        stem().prop_map(|stem| EncoderConfig::Resnet50 { stem }),
    ]
}

fn patch() -> impl Strategy<Value = ObjectivePatch> {
    [option::of(number()), option::of(number()), option::of(number())].prop_map(
        |[contrastive, reconstruction, spread]| ObjectivePatch {
            contrastive,
            reconstruction,
            spread,
            ..Default::default()
        },
    )
}

fn backbone() -> impl Strategy<Value = BackboneConfig> {
    (word(), patch(), path()).prop_map(|(name, objective, checkpoint)| BackboneConfig {
        name,
        objective,
        checkpoint,
    })
}

prop_compose! {
    /// Configurations of the right types, most of them of no valid run.
    fn config()(
        (name, seed, dir, coarse_map, side) in
            (word(), any::<u64>(), path(), path(), option::of(any::<usize>())),
        (kind, on_bad_image) in (
            prop_oneof![
                Just(DataKind::Digits),
                Just(DataKind::Cifar100U),
                Just(DataKind::ImageFolder),
            ],
            prop_oneof![Just(OnBadImage::Fail), Just(OnBadImage::Skip)],
        ),
        (validation, validation_fraction) in prop_oneof![
            Just((Validation::Test, 0.1)),
            number().prop_map(|fraction| (Validation::HeldOut, fraction)),
        ],
        (numbers, drop_last, crop_scale) in
            ([number(), number(), number(), number()], any::<bool>(), [number(), number()]),
        encoder in encoder(),
        (schedule, cosine_period) in prop_oneof![
            Just((Schedule::Constant, None)),
            option::of(any::<u64>()).prop_map(|period| (Schedule::Cosine, period)),
        ],
        (max_steps, epochs, clamp, tensorboard) in
            (option::of(any::<u64>()), any::<u64>(), option::of(number()), any::<bool>()),
        backbones in vec(backbone(), 0..4),
        rows in vec((word(), vec(word(), 0..3)), 0..3),
    ) -> RunConfig {
        let mut config = RunConfig { name, seed, backbones, ..RunConfig::default() };
        (config.data.dir, config.data.coarse_map, config.data.side) = (dir, coarse_map, side);
        (config.data.kind, config.data.on_bad_image) = (kind, on_bad_image);
        config.data.drop_last = drop_last;
        config.data.validation = validation;
        config.data.validation_fraction = validation_fraction;
        let [jitter, weight, rate, temperature] = numbers;
        (config.views.jitter, config.views.crop_scale) = (jitter, crop_scale);
        config.model.precision = Precision::Float64;
        if !matches!(encoder, EncoderConfig::Vit { .. }) {
            (config.model.dropout, config.model.embedding_dropout) = (0.0, 0.0);
            config.model.query_dropout = 0.0;
        }
        config.model.encoder = encoder;
        (config.objective.contrastive, config.objective.temperature) = (weight, temperature);
        config.objective.similarity = Similarity::Reference;
        config.objective.clamp_positive_logits = clamp;
        (config.train.schedule, config.train.cosine_period) = (schedule, cosine_period);
        (config.train.learning_rate, config.train.max_steps) = (rate, max_steps);
        config.train.epochs = epochs;
        config.transfer.features = Features::Cached;
        let row = |(method, backbones)| RowConfig { method, backbones };
        config.rows = rows.into_iter().map(row).collect();
        config.log.tensorboard = tensorboard;
        config
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 200,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn what_is_written_is_read_back(config in config()) {
        let text = to_yaml(&config);
        let loaded = load_file(&text, "f", &[]).map_err(|errors| errors.to_string());
        prop_assert_eq!(loaded, Ok(config), "{}", text);
    }

    /// Whatever is planned has a digest that its own YAML has as well: a worker reads that.
    #[test]
    fn a_plan_is_the_plan_of_its_yaml(
        seed in any::<u64>(),
        rate in 0.0..10.0,
        steps in option::of(1_u64..),
        scale in 0.01..1.0,
    ) {
        let overrides = [
            format!("seed={seed}"),
            format!("train.learning_rate={rate:e}"),
            format!("train.max_steps={}", steps.map_or("null".into(), |steps| steps.to_string())),
            format!("views.crop_scale=[{scale}, 1]"),
        ];
        let plan = Plan::from_preset("digits_table", &overrides);
        let plan = plan.map_err(|errors| TestCaseError::fail(errors.to_string()))?;
        prop_assert_eq!(plan.config().seed, seed);
        prop_assert_eq!(plan.config().train.learning_rate, rate);
        let again = Plan::from_resolved(&to_yaml(plan.config()), "f", &[]).expect("it was planned");
        prop_assert_eq!(again.digest(), plan.digest());
        prop_assert_eq!(again.resolved_digest(), plan.resolved_digest());
    }

    #[test]
    fn an_override_sets_what_it_names(number in 0_u64..1_000_000, share in 0.0_f64..0.9) {
        let before = load_preset("cifar10_table", &[]).expect("a preset");
        for (key, value) in [
            ("seed", number.to_string()),
            ("train.batch_size", number.to_string()),
            ("transfer.max_steps", number.to_string()),
            ("data.validation_fraction", share.to_string()),
            ("model.dropout", (share + 0.06).to_string()),
            ("backbones.2.objective.reconstruction", share.to_string()),
            ("model.encoder.vit.mlp", (number + 513).to_string()),
        ] {
            let after = load_preset("cifar10_table", &[format!("{key}={value}")]);
            let after = after.expect("the types are right");
            let changed = changes(&before, &after).into_iter().map(|change| change.key);
            let changed: Vec<String> = changed.collect();
            let expected: &[&str] = if before == after { &[] } else { &[key] };
            prop_assert_eq!(changed, expected, "{}={}", key, value);
        }
    }

    #[test]
    fn text_is_taken_as_typed(text in "[^'\"].*") {
        let config = load_preset("mnist_cae", &[format!("data.dir={text}")]);
        let config = config.expect("any text is a path");
        let expected = if text == "null" { None } else { Some(PathBuf::from(&text)) };
        prop_assert_eq!(config.data.dir, expected);
    }

    #[test]
    fn nothing_panics(text in any::<String>(), key in "[a-z.0-9]{0,20}") {
        _ = Plan::from_file(&text, "f", &[]);
        _ = Plan::from_preset("digits_table", &[format!("{key}={text}"), text]);
    }
}
