//! The rules of a valid run, section by section; those that span keys among them. It must not know
//! what is made of a configuration that keeps them.

use super::{PlanError, transfer_name};
use crate::dataset::{DataKind, DataSet};
use crate::objective::{LossTerm, ObjectiveConfig, ObjectivePatch};
use crate::run_config::{EncoderConfig, Features, FrozenMode, RunConfig};
use serde_json::Value;

/// Bounds on what a run may ask for: beyond them a number is a slip of the keyboard.
const MAX_BATCH: u64 = 1 << 20;
const MAX_EPOCHS: u64 = 1_000_000;
const MAX_SIDE: usize = 1024;
const MAX_IMAGES: u64 = u32::MAX as u64;
const MAX_WIDTH: usize = 1 << 14;
const MAX_DEPTH: usize = 256;
const MAX_BACKBONES: usize = 16;
const MAX_ROWS: usize = 256;
const MAX_WEIGHT: f64 = 1e6;
const MAX_TIMEOUT_SECONDS: f64 = 1e7;
const MAX_RESTARTS: f64 = 16.0;

/// A character that ends a line in YAML, or that no YAML file holds.
pub(crate) fn is_separator(character: char) -> bool {
    character.is_control() || matches!(character, '\u{2028}' | '\u{2029}')
}

/// Collects broken rules; each method holds the rules of one section.
#[derive(Default)]
pub(super) struct Rules {
    pub(super) broken: Vec<PlanError>,
}

impl Rules {
    pub(super) fn refuse(&mut self, key: &str, message: impl Into<String>) {
        self.broken.push(PlanError { key: key.into(), message: message.into() });
    }

    pub(super) fn require(&mut self, holds: bool, key: &str, message: impl FnOnce() -> String) {
        if !holds {
            self.refuse(key, message());
        }
    }

    fn between(&mut self, key: &str, value: f64, min: f64, max: f64) {
        let inside = value.is_finite() && (min..=max).contains(&value);
        self.require(inside, key, || format!("must be between {min} and {max}, got {value}"));
    }

    fn count(&mut self, key: &str, value: u64, max: u64) {
        self.require((1..=max).contains(&value), key, || {
            format!("must be between 1 and {max}, got {value}")
        });
    }

    /// Texts are written to YAML, which keeps neither control characters nor its own line
    /// separators in them.
    pub(super) fn texts(&mut self, config: &RunConfig) {
        let tree = serde_json::to_value(config).expect("a configuration is plain data");
        self.text_of("", &tree);
    }

    fn text_of(&mut self, key: &str, value: &Value) {
        let below =
            |name: &str| if key.is_empty() { name.to_owned() } else { format!("{key}.{name}") };
        match value {
            Value::String(text) => {
                let separator = text.chars().find(|character| is_separator(*character));
                if let Some(separator) = separator {
                    let code = u32::from(separator);
                    self.refuse(
                        key,
                        format!("has the character U+{code:04X}, which YAML cannot represent"),
                    );
                }
            }
            Value::Object(fields) => {
                fields.iter().for_each(|(name, value)| self.text_of(&below(name), value))
            }
            Value::Array(items) => {
                items
                    .iter()
                    .enumerate()
                    .for_each(|(index, item)| self.text_of(&below(&index.to_string()), item));
            }
            _ => {}
        }
    }

    pub(super) fn data(&mut self, config: &RunConfig) {
        let share = config.data.validation_fraction;
        self.require(share > 0.0 && share < 1.0, "data.validation_fraction", || {
            format!("must be between 0 and 1, both excluded, got {share}")
        });
        if let Some(max) = config.data.max_images {
            self.count("data.max_images", max, MAX_IMAGES);
        }
        let folder = config.data.kind == DataKind::ImageFolder;
        if let Some(side) = config.data.side {
            self.require(folder, "data.side", || {
                "only `data.kind: image_folder` has a configurable side".into()
            });
            self.require((8..=MAX_SIDE).contains(&side), "data.side", || {
                format!("must be between 8 and {MAX_SIDE}, got {side}")
            });
        }
        self.require(folder || config.data.coarse_map.is_none(), "data.coarse_map", || {
            "only `data.kind: image_folder` takes a map: other data sets have a published one"
                .into()
        });
        self.folders(config);
    }

    /// The keys that only trees of pictures have.
    fn folders(&mut self, config: &RunConfig) {
        let data = &config.data;
        let is_folder = data.kind == DataKind::ImageFolder;
        for (key, name) in
            [("data.train_folder", &data.train_folder), ("data.test_folder", &data.test_folder)]
        {
            let Some(name) = name else { continue };
            self.require(is_folder, key, || {
                "only `data.kind: image_folder` has configurable folders".into()
            });
            let is_normal = |part: &str| !part.is_empty() && part != "." && part != "..";
            self.require(name.split('/').all(is_normal), key, || {
                format!(
                    "must be the name of a folder below data.dir, such as `Train` or \
                    `images/train`, got `{name}`"
                )
            });
        }
        let folders = (&data.train_folder, &data.test_folder);
        self.require(folders.0.is_none() || folders.0 != folders.1, "data.test_folder", || {
            "is the folder of the training images: the test images must be in another one".into()
        });
        let has_pictures = is_folder || data.kind == DataKind::Tinyimagenet;
        self.require(has_pictures || !data.exif_orientation, "data.exif_orientation", || {
            "only `data.kind: image_folder` and `tinyimagenet` have images with EXIF data".into()
        });
    }

    pub(super) fn views(&mut self, config: &RunConfig) {
        let views = &config.views;
        for (key, value) in [
            ("views.horizontal_flip", views.horizontal_flip),
            ("views.jitter", views.jitter),
            ("views.grayscale", views.grayscale),
            ("views.brightness", views.brightness),
            ("views.contrast", views.contrast),
            ("views.saturation", views.saturation),
        ] {
            self.between(key, value, 0.0, 1.0);
        }
        self.between("views.hue", views.hue, 0.0, 0.5);
        let [min, max] = views.crop_scale;
        self.require(0.0 < min && min <= max && max <= 1.0, "views.crop_scale", || {
            format!("must be [min, max] with 0 < min <= max <= 1, got [{min}, {max}]")
        });
        let [min, max] = views.crop_ratio;
        self.require(0.1 <= min && min <= max && max <= 10.0, "views.crop_ratio", || {
            format!("must be [min, max] with 0.1 <= min <= max <= 10, got [{min}, {max}]")
        });
    }

    pub(super) fn model(&mut self, config: &RunConfig, data: &DataSet) {
        let model = &config.model;
        for (key, value) in [
            ("model.dropout", model.dropout),
            ("model.embedding_dropout", model.embedding_dropout),
            ("model.query_dropout", model.query_dropout),
        ] {
            self.between(key, value, 0.0, 0.9);
        }
        let decoder = model.decoder.width;
        self.require(
            decoder >= 8 && decoder.is_multiple_of(8) && decoder <= MAX_WIDTH,
            "model.decoder.width",
            || format!("must be a multiple of 8 up to {MAX_WIDTH}, got {decoder}"),
        );
        let EncoderConfig::Vit { patch, width, depth, heads, mlp } = model.encoder else { return };
        for (key, value, max) in [
            ("model.encoder.vit.width", width, MAX_WIDTH),
            ("model.encoder.vit.mlp", mlp, MAX_WIDTH),
            ("model.encoder.vit.depth", depth, MAX_DEPTH),
            ("model.encoder.vit.heads", heads, MAX_WIDTH),
            ("model.encoder.vit.patch", patch, MAX_WIDTH),
        ] {
            self.count(key, value as u64, max as u64);
        }
        let side = data.side;
        self.require(patch == 0 || side.is_multiple_of(patch), "model.encoder.vit.patch", || {
            format!("{patch} does not divide the {side} pixels of {}", data.name)
        });
        self.require(heads == 0 || width.is_multiple_of(heads), "model.encoder.vit.heads", || {
            format!("{heads} does not divide the width {width}")
        });
    }

    pub(super) fn training(&mut self, config: &RunConfig) {
        let train = &config.train;
        self.count("train.epochs", train.epochs, MAX_EPOCHS);
        self.count("train.batch_size", train.batch_size, MAX_BATCH);
        self.count("train.evaluate_every", train.evaluate_every, MAX_EPOCHS);
        self.between("train.learning_rate", train.learning_rate, 0.0, 10.0);
        self.between("train.weight_decay", train.weight_decay, 0.0, 10.0);
        if let Some(period) = train.cosine_period {
            self.count("train.cosine_period", period, MAX_EPOCHS);
        }
        if let Some(steps) = train.max_steps {
            self.count("train.max_steps", steps, u64::MAX);
        }
        if let Some(steps) = config.checkpoint.every_steps {
            self.count("checkpoint.every_steps", steps, u64::MAX);
        }
        if let Some(seconds) = config.checkpoint.every_seconds {
            self.require(seconds.is_finite() && seconds > 0.0, "checkpoint.every_seconds", || {
                format!("must be a positive, finite number of seconds or null, got {seconds}")
            });
        }
        if let Some(steps) = config.checks.compare_ranks_every {
            self.count("checks.compare_ranks_every", steps, u64::MAX);
        }
        let keep = config.checkpoint.keep_last;
        self.require((2..=1000).contains(&keep), "checkpoint.keep_last", || {
            format!(
                "must be between 2 and 1000, got {keep}: a corrupt checkpoint needs an older \
                one to fall back on"
            )
        });
    }

    pub(super) fn timeouts(&mut self, config: &RunConfig) {
        for (key, seconds) in config.timeouts.seconds() {
            self.between(key, seconds.unwrap_or(1.0), 0.1, MAX_TIMEOUT_SECONDS);
        }
        self.between(
            "timeouts.max_restarts",
            config.timeouts.max_restarts.into(),
            0.0,
            MAX_RESTARTS,
        );
    }

    pub(super) fn transfer(&mut self, config: &RunConfig) {
        let transfer = &config.transfer;
        self.count("transfer.epochs", transfer.epochs, MAX_EPOCHS);
        self.count("transfer.batch_size", transfer.batch_size, MAX_BATCH);
        self.between("transfer.learning_rate", transfer.learning_rate, 0.0, 10.0);
        self.between("transfer.weight_decay", transfer.weight_decay, 0.0, 10.0);
        if let Some(steps) = transfer.max_steps {
            self.count("transfer.max_steps", steps, u64::MAX);
        }
        let contradictory =
            transfer.features == Features::Cached && transfer.frozen_mode == FrozenMode::Train;
        self.require(!contradictory, "transfer.frozen_mode", || {
            "`train` contradicts `transfer.features: cached`: cached features are computed once, \
            in eval mode"
                .into()
        });
    }

    /// What every backbone starts from; whether its terms make sense together is seen on each
    /// backbone.
    pub(super) fn objective(&mut self, objective: &ObjectiveConfig) {
        let terms = LossTerm::ALL.map(|term| (term.name(), term.weight(objective)));
        let of_contrastive = [("attract", objective.attract), ("spread", objective.spread)];
        for (name, value) in terms.into_iter().chain(of_contrastive) {
            self.between(&format!("objective.{name}"), value, 0.0, MAX_WEIGHT);
        }
        self.between("objective.temperature", objective.temperature, 1e-3, 1e3);
        let clamp = objective.clamp_positive_logits;
        self.require(clamp.is_none_or(f64::is_finite), "objective.clamp_positive_logits", || {
            "must be a finite number or null".into()
        });
    }

    /// A backbone's own weights, and whether what it learns from (`patched`) makes sense.
    pub(super) fn terms(&mut self, key: &str, own: &ObjectivePatch, patched: &ObjectiveConfig) {
        let terms = LossTerm::ALL.map(|term| (term.name(), term.own_weight(own)));
        let of_contrastive = [("attract", own.attract), ("spread", own.spread)];
        for (name, value) in terms.into_iter().chain(of_contrastive) {
            if let Some(value) = value {
                self.between(&format!("{key}.{name}"), value, 0.0, MAX_WEIGHT);
            }
        }
        let contrastive = patched.contrastive > 0.0;
        self.require(
            !contrastive || patched.attract + patched.spread != 0.0,
            &format!("{key}.attract"),
            || {
                "`attract` and `spread` are both 0 while `contrastive` is not: the term would be 0 \
            / 0"
                .into()
            },
        );
        let is_any = LossTerm::ALL.iter().any(|term| term.weight(patched) != 0.0);
        self.require(is_any, &format!("{key}.cross_entropy"), || {
            let names = LossTerm::ALL.map(|term| format!("`{}`", term.name()));
            format!("{} are all 0: nothing to learn", names.join(", "))
        });
    }

    pub(super) fn names(&mut self, config: &RunConfig) {
        let (count, max) = (config.backbones.len(), MAX_BACKBONES);
        self.require(count <= max, "backbones", || {
            format!("at most {max} are allowed, got {count}")
        });
        self.name("name", &config.name, &mut Vec::new());
        let mut seen: Vec<&str> = Vec::new();
        for (index, backbone) in config.backbones.iter().enumerate() {
            self.name(&format!("backbones.{index}.name"), &backbone.name, &mut seen);
        }
        let rows = config.rows.len();
        self.require(rows <= MAX_ROWS, "rows", || {
            format!("at most {MAX_ROWS} are allowed, got {rows}")
        });
        let known: Vec<&str> =
            config.backbones.iter().map(|backbone| backbone.name.as_str()).collect();
        let mut methods: Vec<&str> = Vec::new();
        for (index, row) in config.rows.iter().enumerate() {
            self.name(&format!("rows.{index}.method"), &row.method, &mut methods);
            let stage = transfer_name(&row.method);
            self.require(!known.contains(&stage.as_str()), &format!("rows.{index}.method"), || {
                format!("its stage `{stage}` has the name of a backbone: rename one of them")
            });
            let key = format!("rows.{index}.backbones");
            self.require(!row.backbones.is_empty(), &key, || "name at least one backbone".into());
            for name in &row.backbones {
                self.require(known.contains(&name.as_str()), &key, || {
                    format!("no backbone is called `{name}`; there are: {}", known.join(", "))
                });
            }
        }
    }

    fn name<'a>(&mut self, key: &str, name: &'a str, seen: &mut Vec<&'a str>) {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        self.require(!name.is_empty() && name.len() <= 64 && name.chars().all(plain), key, || {
            format!("`{name}` must be 1 to 64 letters, digits, `_` or `-`: it names a folder")
        });
        self.require(!seen.contains(&name), key, || format!("`{name}` is defined twice"));
        seen.push(name);
    }
}

#[cfg(test)]
mod tests {
    use super::super::Plan;

    /// Lays overrides over the smallest preset; expects exactly these broken rules, as
    /// `key: part of the message`.
    fn check(overrides: &[&str], expected: &[(&str, &str)]) {
        let overrides: Vec<String> = overrides.iter().map(|&text| text.into()).collect();
        let config = crate::load_preset("digits_thanos", &overrides).expect("the types are right");
        let broken = Plan::new(config).err().unwrap_or_default();
        let keys: Vec<&str> = broken.iter().map(|rule| rule.key.as_str()).collect();
        assert_eq!(
            keys,
            expected.iter().map(|(key, _)| *key).collect::<Vec<_>>(),
            "{overrides:?}: {broken:?}"
        );
        for (rule, (_, part)) in broken.iter().zip(expected) {
            assert!(rule.message.contains(part), "{overrides:?}: no `{part}` in `{rule}`");
        }
    }

    #[test]
    fn numbers_have_bounds() {
        check(&[], &[]);
        check(
            &["backbones.0.checkpoint=/w\u{2028}x"],
            &[("backbones.0.checkpoint", "has the character U+2028")],
        );
        check(&["data.validation_fraction=0"], &[("data.validation_fraction", "got 0")]);
        check(&["data.validation_fraction=1.0"], &[("data.validation_fraction", "got 1")]);
        check(
            &["data={kind: image_folder, side: 4}"],
            &[("data.side", "between 8 and 1024, got 4")],
        );
        check(
            &["data.max_images=0"],
            &[("data.max_images", "must be between 1 and 4294967295, got 0")],
        );
        check(&["views.jitter=1.5"], &[("views.jitter", "must be between 0 and 1, got 1.5")]);
        check(&["views.hue=.6"], &[("views.hue", "0.5")]);
        check(&["views.crop_scale=[0, 1]"], &[("views.crop_scale", "got [0, 1]")]);
        check(&["views.crop_ratio=[2, 1]"], &[("views.crop_ratio", "min <= max")]);
        check(&["model.dropout=1"], &[("model.dropout", "must be between 0 and 0.9, got 1")]);
        check(&["model.decoder.width=12"], &[("model.decoder.width", "a multiple of 8")]);
        check(
            &["train.batch_size=0"],
            &[("train.batch_size", "must be between 1 and 1048576, got 0")],
        );
        check(&["train.epochs=10000000"], &[("train.epochs", "got 10000000")]);
        check(&["train.max_steps=0"], &[("train.max_steps", "got 0")]);
        check(&["train.cosine_period=0"], &[("train.cosine_period", "got 0")]);
        check(&["train.learning_rate=-1"], &[("train.learning_rate", "got -1")]);
        check(&["transfer.max_steps=0"], &[("transfer.max_steps", "got 0")]);
        check(
            &["checkpoint.keep_last=1"],
            &[("checkpoint.keep_last", "an older one to fall back on")],
        );
        check(&["checkpoint.every_steps=0"], &[("checkpoint.every_steps", "got 0")]);
        check(&["checkpoint={every_seconds: null, every_steps: null}"], &[]);
        check(&["checkpoint.every_seconds=0.5"], &[]);
        check(
            &["checkpoint.every_seconds=0"],
            &[("checkpoint.every_seconds", "positive, finite number of seconds")],
        );
        check(&["checkpoint.every_seconds=-1"], &[("checkpoint.every_seconds", "got -1")]);
        check(&["timeouts.hang_seconds=0"], &[("timeouts.hang_seconds", "between 0.1 and")]);
        check(&["timeouts.max_restarts=99"], &[("timeouts.max_restarts", "between 0 and 16")]);
        check(&["checks.compare_ranks_every=0"], &[("checks.compare_ranks_every", "got 0")]);
        check(&["objective.temperature=0"], &[("objective.temperature", "got 0")]);
        check(
            &["objective.spread=-1"],
            &[("objective.spread", "got -1"), ("backbones.0.objective.attract", "0 / 0")],
        );
        check(&["backbones.0.objective.spread=-2"], &[("backbones.0.objective.spread", "got -2")]);
    }

    #[test]
    fn keys_that_contradict_each_other_are_refused() {
        check(
            &["model.encoder.vit.patch=3"],
            &[("model.encoder.vit.patch", "3 does not divide the 8 pixels of digits")],
        );
        check(
            &["model.encoder.vit.heads=5"],
            &[("model.encoder.vit.heads", "5 does not divide the width 48")],
        );
        check(&["data.side=32"], &[("data.side", "only `data.kind: image_folder`")]);
        check(
            &["data.coarse_map=x.yaml"],
            &[("data.coarse_map", "only `data.kind: image_folder`")],
        );
        check(
            &["data.train_folder=Train"],
            &[("data.train_folder", "only `data.kind: image_folder`")],
        );
        check(
            &["data.exif_orientation=true"],
            &[("data.exif_orientation", "`tinyimagenet` have images")],
        );
        let folders = |keys: &str| format!("data={{kind: image_folder, {keys}}}");
        check(&[&folders("train_folder: ../x")], &[("data.train_folder", "below data.dir")]);
        check(&[&folders("test_folder: /x")], &[("data.test_folder", "below data.dir")]);
        check(
            &[&folders("train_folder: x, test_folder: x")],
            &[("data.test_folder", "the test images must be in another one")],
        );
        check(
            &["transfer.frozen_mode=train"],
            &[("transfer.frozen_mode", "contradicts `transfer.features: cached`")],
        );
        let nothing = ["objective.cross_entropy=0", "backbones.1.objective.reconstruction=0"];
        check(&nothing, &[("backbones.1.objective.cross_entropy", "nothing to learn")]);
        check(
            &["objective={attract: 0, spread: 0}"],
            &[("backbones.0.objective.attract", "0 / 0")],
        );
    }

    #[test]
    fn names_are_plain_unique_and_known() {
        check(&["name=../x"], &[("name", "it names a folder")]);
        check(&["backbones.0.name=../x", "rows=[]"], &[("backbones.0.name", "it names a folder")]);
        check(
            &["backbones.0.name=cae"],
            &[("backbones.1.name", "twice"), ("rows.0.backbones", "no backbone is called")],
        );
        check(
            &["rows.0.backbones=[cnc]"],
            &[("rows.0.backbones", "no backbone is called `cnc`; there are: cnce, cae")],
        );
        check(&["rows.0.backbones=[]"], &[("rows.0.backbones", "at least one")]);
        let clash = ["backbones.1.name=transfer_x", "rows=[{method: x, backbones: [cnce]}]"];
        check(&clash, &[("rows.0.method", "the name of a backbone")]);
        check(&["backbones=[]", "rows=[]"], &[("backbones", "nothing to train")]);
    }

    #[test]
    fn all_broken_rules_are_reported_at_once() {
        check(
            &["train.epochs=0", "views.hue=2", "model.encoder.vit={patch: 0, heads: 0}"],
            &[
                ("views.hue", ""),
                ("model.encoder.vit.heads", "must be between 1"),
                ("model.encoder.vit.patch", "must be between 1"),
                ("train.epochs", ""),
            ],
        );
    }
}
