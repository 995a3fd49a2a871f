//! `Plan`: the validated form of a `RunConfig`, built once. Every rule that spans keys lives here, and a plan's
//! digest must be equal on every process of a run. It must not know how many workers there are.

use crate::dataset::DataSet;
use crate::digest::hex;
use crate::error::ConfigErrors;
use crate::load;
use crate::order::split_train_validation;
use crate::run_config::{
    BackboneConfig, EncoderConfig, Features, FrozenMode, ObjectiveConfig, ObjectivePatch, RunConfig, Schedule,
    Similarity, TrainConfig,
};
use sha2::{Digest, Sha256};
use std::path::Path;

/// Bounds on what a run may ask for: beyond them a number is a slip of the keyboard.
const MOST_BATCH: u64 = 1 << 20;
const MOST_EPOCHS: u64 = 1_000_000;
const MOST_WIDTH: usize = 1 << 14;
const MOST_DEPTH: usize = 256;
const MOST_BACKBONES: usize = 16;
const MOST_ROWS: usize = 256;
const MOST_WEIGHT: f64 = 1e6;

/// A broken rule: the dotted key it hangs on and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {message}")]
pub struct PlanError {
    pub key: String,
    pub message: String,
}

/// A run that makes sense: what is trained, on what, in which order.
#[derive(Clone, Debug)]
pub struct Plan {
    config: RunConfig,
    data: DataSet,
    stages: Vec<StagePlan>,
    digest: String,
}

/// One training inside the run.
#[derive(Clone, Debug, PartialEq)]
pub enum StagePlan {
    Backbone(BackbonePlan),
    Transfer(TransferPlan),
}

impl StagePlan {
    /// Unique in the run; also the name of the stage's folder of checkpoints.
    pub fn name(&self) -> &str {
        match self {
            StagePlan::Backbone(stage) => &stage.name,
            StagePlan::Transfer(stage) => &stage.name,
        }
    }
}

/// An encoder to train on coarse labels.
#[derive(Clone, Debug, PartialEq)]
pub struct BackbonePlan {
    pub name: String,
    pub objective: Objective,
}

/// A linear probe on fine labels over frozen backbones, whose embeddings are concatenated in this order.
#[derive(Clone, Debug, PartialEq)]
pub struct TransferPlan {
    pub name: String,
    pub method: String,
    pub backbones: Vec<String>,
}

/// A backbone's loss; a term that is `None` or 0 is not computed.
#[derive(Clone, Debug, PartialEq)]
pub struct Objective {
    /// Weight of the coarse cross-entropy.
    pub cross_entropy: f64,
    pub contrastive: Option<Contrastive>,
    /// Weight of the reconstruction's mean squared error.
    pub reconstruction: Option<f64>,
}

/// The contrastive term: the mean over anchors of (attract x attraction + spread x InfoNCE within the class) / (attract
/// + spread).
#[derive(Clone, Debug, PartialEq)]
pub struct Contrastive {
    /// Weight of the whole term in the backbone's loss.
    pub weight: f64,
    pub attract: f64,
    pub spread: f64,
    pub temperature: f64,
    pub similarity: Similarity,
    pub clamp_positive_logits: Option<f64>,
    pub positives_in_denominator: bool,
    pub both_directions: bool,
}

impl Plan {
    /// Checks every rule and reports all that are broken.
    pub fn new(config: RunConfig) -> Result<Self, Vec<PlanError>> {
        let data = DataSet::of(config.data.kind);
        let mut rules = Rules::default();
        rules.data(&config);
        rules.views(&config);
        rules.model(&config, &data);
        rules.training(&config);
        rules.transfer(&config);
        rules.objective(&config.objective);
        rules.names(&config);
        let mut stages = Vec::new();
        for (index, backbone) in config.backbones.iter().enumerate() {
            let patched = patch(&config.objective, backbone);
            rules.terms(&format!("backbones.{index}.objective"), &backbone.objective, &patched);
            if backbone.checkpoint.is_none() {
                let objective = Objective::of(&patched);
                stages.push(StagePlan::Backbone(BackbonePlan { name: backbone.name.clone(), objective }));
            }
        }
        stages.extend(config.rows.iter().map(|row| {
            StagePlan::Transfer(TransferPlan {
                name: transfer_name(&row.method),
                method: row.method.clone(),
                backbones: row.backbones.clone(),
            })
        }));
        if stages.is_empty() {
            rules.refuse("backbones", "nothing to train: give a backbone without `checkpoint`, or a row in `rows`");
        }
        if !rules.broken.is_empty() {
            return Err(rules.broken);
        }
        let digest = digest(&config);
        Ok(Self { config, data, stages, digest })
    }

    /// A configuration file's plan, as [`crate::load_file`] reads it: all mistakes in keys and types, or else all
    /// broken rules, each with its line or override.
    pub fn from_file(text: &str, source: &str, overrides: &[String]) -> Result<Self, ConfigErrors> {
        load::plan_file(text, source, overrides)
    }

    /// As [`Plan::from_file`], for a preset by name.
    pub fn from_preset(name: &str, overrides: &[String]) -> Result<Self, ConfigErrors> {
        load::plan_preset(name, overrides)
    }

    /// Checks what only the data can tell, given the number of official training images: that either part of the
    /// split has images and an epoch has a step. Errors: the key to change.
    pub fn check_images(&self, images: u64) -> Result<(), PlanError> {
        let split = split_train_validation(images, self.config.data.validation_fraction);
        let (train, validation) = (split.train.len() as u64, split.validation.len() as u64);
        if train == 0 || validation == 0 {
            let message = format!("{images} training images cannot be split into training and validation");
            return Err(PlanError { key: "data.dir".into(), message });
        }
        let batches = [("train", self.config.train.batch_size), ("transfer", self.config.transfer.batch_size)];
        for (section, batch) in batches.into_iter().filter(|_| self.config.data.drop_last) {
            if batch > train {
                let message = format!("no step is left: `{section}.batch_size` is {batch}, of {train} training images");
                return Err(PlanError { key: "data.drop_last".into(), message });
            }
        }
        Ok(())
    }

    pub fn config(&self) -> &RunConfig {
        &self.config
    }

    /// The numbers by which a stage is trained; a transfer's rate falls in one cosine over all its epochs.
    pub fn training(&self, stage: &StagePlan) -> TrainConfig {
        let transfer = &self.config.transfer;
        match stage {
            StagePlan::Backbone(_) => self.config.train.clone(),
            StagePlan::Transfer(_) => TrainConfig {
                epochs: transfer.epochs,
                batch_size: transfer.batch_size,
                max_steps: transfer.max_steps,
                learning_rate: transfer.learning_rate,
                weight_decay: transfer.weight_decay,
                schedule: Schedule::Cosine,
                cosine_period: None,
                evaluate_every: 1,
            },
        }
    }

    pub fn data(&self) -> &DataSet {
        &self.data
    }

    /// The stages in the order in which they run: backbones, then transfers.
    pub fn stages(&self) -> &[StagePlan] {
        &self.stages
    }

    /// SHA-256 of the resolved configuration, in hexadecimal: equal on every process of a run.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// The file that `backbones.N.checkpoint` names for a backbone, if it is not trained in this run.
    pub fn backbone_checkpoint(&self, name: &str) -> Option<&Path> {
        self.config.backbones.iter().find(|backbone| backbone.name == name)?.checkpoint.as_deref()
    }
}

impl Objective {
    fn of(config: &ObjectiveConfig) -> Self {
        Self {
            cross_entropy: config.cross_entropy,
            contrastive: (config.contrastive > 0.0).then_some(Contrastive {
                weight: config.contrastive,
                attract: config.attract,
                spread: config.spread,
                temperature: config.temperature,
                similarity: config.similarity,
                clamp_positive_logits: config.clamp_positive_logits,
                positives_in_denominator: config.positives_in_denominator,
                both_directions: config.both_directions,
            }),
            reconstruction: (config.reconstruction > 0.0).then_some(config.reconstruction),
        }
    }
}

/// The run's objective with what one backbone changes in it.
fn patch(base: &ObjectiveConfig, backbone: &BackboneConfig) -> ObjectiveConfig {
    let patch = &backbone.objective;
    ObjectiveConfig {
        cross_entropy: patch.cross_entropy.unwrap_or(base.cross_entropy),
        contrastive: patch.contrastive.unwrap_or(base.contrastive),
        reconstruction: patch.reconstruction.unwrap_or(base.reconstruction),
        attract: patch.attract.unwrap_or(base.attract),
        spread: patch.spread.unwrap_or(base.spread),
        ..base.clone()
    }
}

/// The stage of a row of the table.
fn transfer_name(method: &str) -> String {
    format!("transfer_{method}")
}

fn digest(config: &RunConfig) -> String {
    let canonical = serde_json::to_vec(config).expect("a RunConfig holds only what JSON can");
    hex(&Sha256::digest(&canonical))
}

/// Collects broken rules; each method holds the rules of one section.
#[derive(Default)]
struct Rules {
    broken: Vec<PlanError>,
}

impl Rules {
    fn refuse(&mut self, key: &str, message: impl Into<String>) {
        self.broken.push(PlanError { key: key.into(), message: message.into() });
    }

    fn require(&mut self, holds: bool, key: &str, message: impl FnOnce() -> String) {
        if !holds {
            self.refuse(key, message());
        }
    }

    fn between(&mut self, key: &str, value: f64, least: f64, most: f64) {
        let inside = value.is_finite() && (least..=most).contains(&value);
        self.require(inside, key, || format!("must be between {least} and {most}, got {value}"));
    }

    fn count(&mut self, key: &str, value: u64, most: u64) {
        self.require((1..=most).contains(&value), key, || format!("must be between 1 and {most}, got {value}"));
    }

    fn data(&mut self, config: &RunConfig) {
        let share = config.data.validation_fraction;
        self.require(share > 0.0 && share < 1.0, "data.validation_fraction", || {
            format!("must lie between 0 and 1, both excluded, got {share}")
        });
    }

    fn views(&mut self, config: &RunConfig) {
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
        let [least, most] = views.crop_scale;
        self.require(0.0 < least && least <= most && most <= 1.0, "views.crop_scale", || {
            format!("must be [least, most] with 0 < least <= most <= 1, got [{least}, {most}]")
        });
        let [least, most] = views.crop_ratio;
        self.require(0.1 <= least && least <= most && most <= 10.0, "views.crop_ratio", || {
            format!("must be [least, most] with 0.1 <= least <= most <= 10, got [{least}, {most}]")
        });
    }

    fn model(&mut self, config: &RunConfig, data: &DataSet) {
        let model = &config.model;
        for (key, value) in [
            ("model.dropout", model.dropout),
            ("model.embedding_dropout", model.embedding_dropout),
            ("model.query_dropout", model.query_dropout),
        ] {
            self.between(key, value, 0.0, 0.9);
        }
        let decoder = model.decoder.width;
        self.require(decoder >= 8 && decoder.is_multiple_of(8) && decoder <= MOST_WIDTH, "model.decoder.width", || {
            format!("must be a multiple of 8 up to {MOST_WIDTH}, got {decoder}")
        });
        let EncoderConfig::Vit { patch, width, depth, heads, mlp } = model.encoder else { return };
        for (key, value, most) in [
            ("model.encoder.vit.width", width, MOST_WIDTH),
            ("model.encoder.vit.mlp", mlp, MOST_WIDTH),
            ("model.encoder.vit.depth", depth, MOST_DEPTH),
            ("model.encoder.vit.heads", heads, MOST_WIDTH),
            ("model.encoder.vit.patch", patch, MOST_WIDTH),
        ] {
            self.count(key, value as u64, most as u64);
        }
        let side = data.side;
        self.require(patch == 0 || side.is_multiple_of(patch), "model.encoder.vit.patch", || {
            format!("{patch} does not divide the {side} pixels of {}", data.name)
        });
        self.require(heads == 0 || width.is_multiple_of(heads), "model.encoder.vit.heads", || {
            format!("{heads} does not divide the width {width}")
        });
    }

    fn training(&mut self, config: &RunConfig) {
        let train = &config.train;
        self.count("train.epochs", train.epochs, MOST_EPOCHS);
        self.count("train.batch_size", train.batch_size, MOST_BATCH);
        self.count("train.evaluate_every", train.evaluate_every, MOST_EPOCHS);
        self.between("train.learning_rate", train.learning_rate, 0.0, 10.0);
        self.between("train.weight_decay", train.weight_decay, 0.0, 10.0);
        if let Some(period) = train.cosine_period {
            self.count("train.cosine_period", period, MOST_EPOCHS);
        }
        if let Some(steps) = train.max_steps {
            self.count("train.max_steps", steps, u64::MAX);
        }
        if let Some(steps) = config.checkpoint.every_steps {
            self.count("checkpoint.every_steps", steps, u64::MAX);
        }
        let keep = config.checkpoint.keep_last;
        self.require((2..=1000).contains(&keep), "checkpoint.keep_last", || {
            format!("must be between 2 and 1000, got {keep}: a corrupt checkpoint needs an older one to fall back on")
        });
    }

    fn transfer(&mut self, config: &RunConfig) {
        let transfer = &config.transfer;
        self.count("transfer.epochs", transfer.epochs, MOST_EPOCHS);
        self.count("transfer.batch_size", transfer.batch_size, MOST_BATCH);
        self.between("transfer.learning_rate", transfer.learning_rate, 0.0, 10.0);
        self.between("transfer.weight_decay", transfer.weight_decay, 0.0, 10.0);
        if let Some(steps) = transfer.max_steps {
            self.count("transfer.max_steps", steps, u64::MAX);
        }
        let contradictory = transfer.features == Features::Cached && transfer.frozen_mode == FrozenMode::Train;
        self.require(!contradictory, "transfer.frozen_mode", || {
            "`train` contradicts `transfer.features: cached`: cached features are computed once, in eval mode".into()
        });
    }

    /// What every backbone starts from; whether its terms make sense together is seen on each backbone.
    fn objective(&mut self, objective: &ObjectiveConfig) {
        for (key, value) in [
            ("objective.cross_entropy", objective.cross_entropy),
            ("objective.contrastive", objective.contrastive),
            ("objective.reconstruction", objective.reconstruction),
            ("objective.attract", objective.attract),
            ("objective.spread", objective.spread),
        ] {
            self.between(key, value, 0.0, MOST_WEIGHT);
        }
        self.between("objective.temperature", objective.temperature, 1e-3, 1e3);
        let clamp = objective.clamp_positive_logits;
        self.require(clamp.is_none_or(f64::is_finite), "objective.clamp_positive_logits", || {
            "must be a finite number or null".into()
        });
    }

    /// A backbone's own weights, and whether what it learns from (`patched`) makes sense.
    fn terms(&mut self, key: &str, own: &ObjectivePatch, patched: &ObjectiveConfig) {
        for (name, value) in [
            ("cross_entropy", own.cross_entropy),
            ("contrastive", own.contrastive),
            ("reconstruction", own.reconstruction),
            ("attract", own.attract),
            ("spread", own.spread),
        ] {
            if let Some(value) = value {
                self.between(&format!("{key}.{name}"), value, 0.0, MOST_WEIGHT);
            }
        }
        let contrastive = patched.contrastive > 0.0;
        self.require(!contrastive || patched.attract + patched.spread != 0.0, &format!("{key}.attract"), || {
            "`attract` and `spread` are both 0 while `contrastive` is not: the term would be 0 / 0".into()
        });
        let terms = patched.cross_entropy + patched.contrastive + patched.reconstruction;
        self.require(terms != 0.0, &format!("{key}.cross_entropy"), || {
            "`cross_entropy`, `contrastive` and `reconstruction` are all 0: nothing to learn".into()
        });
    }

    fn names(&mut self, config: &RunConfig) {
        let (count, most) = (config.backbones.len(), MOST_BACKBONES);
        self.require(count <= most, "backbones", || format!("at most {most} are allowed, got {count}"));
        self.name("name", &config.name, &mut Vec::new());
        let mut seen: Vec<&str> = Vec::new();
        for (index, backbone) in config.backbones.iter().enumerate() {
            self.name(&format!("backbones.{index}.name"), &backbone.name, &mut seen);
        }
        let rows = config.rows.len();
        self.require(rows <= MOST_ROWS, "rows", || format!("at most {MOST_ROWS} are allowed, got {rows}"));
        let known: Vec<&str> = config.backbones.iter().map(|backbone| backbone.name.as_str()).collect();
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
        self.require(!seen.contains(&name), key, || format!("`{name}` is there twice"));
        seen.push(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lays overrides over the smallest preset; expects exactly these broken rules, as `key: part of the message`.
    fn check(overrides: &[&str], expected: &[(&str, &str)]) {
        let overrides: Vec<String> = overrides.iter().map(|&text| text.into()).collect();
        let config = crate::load_preset("digits_thanos", &overrides).expect("the types are right");
        let broken = Plan::new(config).err().unwrap_or_default();
        let keys: Vec<&str> = broken.iter().map(|rule| rule.key.as_str()).collect();
        assert_eq!(keys, expected.iter().map(|(key, _)| *key).collect::<Vec<_>>(), "{overrides:?}: {broken:?}");
        for (rule, (_, part)) in broken.iter().zip(expected) {
            assert!(rule.message.contains(part), "{overrides:?}: no `{part}` in `{rule}`");
        }
    }

    #[test]
    fn numbers_have_bounds() {
        check(&[], &[]);
        check(&["data.validation_fraction=0"], &[("data.validation_fraction", "got 0")]);
        check(&["data.validation_fraction=1.0"], &[("data.validation_fraction", "got 1")]);
        check(&["views.jitter=1.5"], &[("views.jitter", "must be between 0 and 1, got 1.5")]);
        check(&["views.hue=.6"], &[("views.hue", "0.5")]);
        check(&["views.crop_scale=[0, 1]"], &[("views.crop_scale", "got [0, 1]")]);
        check(&["views.crop_ratio=[2, 1]"], &[("views.crop_ratio", "least <= most")]);
        check(&["model.dropout=1"], &[("model.dropout", "must be between 0 and 0.9, got 1")]);
        check(&["model.decoder.width=12"], &[("model.decoder.width", "a multiple of 8")]);
        check(&["train.batch_size=0"], &[("train.batch_size", "must be between 1 and 1048576, got 0")]);
        check(&["train.epochs=10000000"], &[("train.epochs", "got 10000000")]);
        check(&["train.max_steps=0"], &[("train.max_steps", "got 0")]);
        check(&["train.cosine_period=0"], &[("train.cosine_period", "got 0")]);
        check(&["train.learning_rate=-1"], &[("train.learning_rate", "got -1")]);
        check(&["transfer.max_steps=0"], &[("transfer.max_steps", "got 0")]);
        check(&["checkpoint.keep_last=1"], &[("checkpoint.keep_last", "an older one to fall back on")]);
        check(&["checkpoint.every_steps=0"], &[("checkpoint.every_steps", "got 0")]);
        check(&["objective.temperature=0"], &[("objective.temperature", "got 0")]);
        check(&["objective.spread=-1"], &[("objective.spread", "got -1"), ("backbones.0.objective.attract", "0 / 0")]);
        check(&["backbones.0.objective.spread=-2"], &[("backbones.0.objective.spread", "got -2")]);
    }

    #[test]
    fn keys_that_contradict_each_other_are_refused() {
        check(
            &["model.encoder.vit.patch=3"],
            &[("model.encoder.vit.patch", "3 does not divide the 8 pixels of digits")],
        );
        check(&["model.encoder.vit.heads=5"], &[("model.encoder.vit.heads", "5 does not divide the width 48")]);
        check(&["transfer.frozen_mode=train"], &[("transfer.frozen_mode", "contradicts `transfer.features: cached`")]);
        let nothing = ["objective.cross_entropy=0", "backbones.1.objective.reconstruction=0"];
        check(&nothing, &[("backbones.1.objective.cross_entropy", "nothing to learn")]);
        check(&["objective={attract: 0, spread: 0}"], &[("backbones.0.objective.attract", "0 / 0")]);
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
    fn all_broken_rules_are_told_at_once() {
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

    #[test]
    fn a_backbone_with_a_checkpoint_is_not_trained() {
        let overrides = ["backbones.0.checkpoint=/runs/old".into()];
        let plan = Plan::from_preset("digits_thanos", &overrides).expect("valid");
        let names: Vec<&str> = plan.stages().iter().map(StagePlan::name).collect();
        assert_eq!(names, ["cae", "transfer_thanos"]);
        assert_eq!(plan.backbone_checkpoint("cnce"), Some(Path::new("/runs/old")));
        assert_eq!(plan.backbone_checkpoint("cae"), None);
    }

    #[test]
    fn a_backbone_has_its_own_objective() {
        let plan = Plan::from_preset("digits_table", &["objective.temperature=0.25".into()]).expect("valid");
        let objective = |stage| match stage {
            &StagePlan::Backbone(BackbonePlan { ref objective, .. }) => Some(objective.clone()),
            StagePlan::Transfer(_) => None,
        };
        let objectives: Vec<Objective> = plan.stages().iter().filter_map(objective).collect();
        let contrastive = |index: usize| objectives.get(index).and_then(|objective| objective.contrastive.as_ref());
        let weights = |index| contrastive(index).map(|term| (term.attract, term.spread, term.temperature));
        assert_eq!(weights(0), Some((1.0, 0.0, 0.25)));
        assert_eq!(weights(1), Some((1.0, 1.0, 0.25)));
        assert_eq!(contrastive(2), None);
        let reconstruction: Vec<_> = objectives.iter().map(|objective| objective.reconstruction).collect();
        assert_eq!(reconstruction, [None, None, Some(1.0)]);
    }

    #[test]
    fn a_digest_is_of_everything_and_of_nothing_else() {
        let digest = |overrides: &[&str]| {
            let overrides: Vec<String> = overrides.iter().map(|&text| text.into()).collect();
            Plan::from_preset("digits_cae", &overrides).expect("valid").digest().to_owned()
        };
        assert_eq!(digest(&[]), digest(&["train.epochs=50"]));
        assert_ne!(digest(&[]), digest(&["train.epochs=61"]));
        assert_ne!(digest(&[]), digest(&["seed=1"]));
        assert_eq!(digest(&[]).len(), 64);
    }

    #[test]
    fn the_data_must_leave_a_step() {
        let check = |overrides: &[&str], images, key: Option<&str>| {
            let overrides: Vec<String> = overrides.iter().map(|&text| text.into()).collect();
            let plan = Plan::from_preset("digits_cae", &overrides).expect("valid");
            let broken = plan.check_images(images).err();
            assert_eq!(broken.as_ref().map(|rule| rule.key.as_str()), key, "{overrides:?} {images}: {broken:?}");
        };
        check(&[], 1437, None);
        check(&[], 2, None);
        check(&[], 1, Some("data.dir"));
        check(&["data.drop_last=true"], 1437, None);
        check(&["data.drop_last=true"], 128, Some("data.drop_last"));
    }
}
