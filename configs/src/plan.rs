//! `Plan`: the validated form of a `RunConfig`, built once. Every rule that spans keys lives here,
//! and a plan's digest must be equal on every process of a run. It must not know how many workers
//! there are.

mod log_rules;
mod rules;

use crate::dataset::{DataKind, DataSet, images_kept_of_cifar100_u};
use crate::objective::{LossTerm, Objective};
use crate::recipe::{recipe_digest, resolved_digest};
use crate::run_config::{RunConfig, Schedule, TrainConfig, Validation};
use crate::sample_order::{
    Split, first_of_each_class, permutation, split_train_validation, steps_per_epoch,
};
use rules::Rules;
#[cfg(test)]
pub(crate) use rules::is_separator;
use std::path::Path;

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
    resolved_digest: String,
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

    /// The terms of its loss.
    pub fn terms(&self) -> Vec<LossTerm> {
        match self {
            StagePlan::Backbone(stage) => stage.objective.terms(),
            StagePlan::Transfer(_) => vec![LossTerm::CrossEntropy],
        }
    }
}

/// An encoder to train on coarse labels.
#[derive(Clone, Debug, PartialEq)]
pub struct BackbonePlan {
    pub name: String,
    pub objective: Objective,
}

/// A linear probe on fine labels over frozen backbones, whose embeddings are concatenated in this
/// order.
#[derive(Clone, Debug, PartialEq)]
pub struct TransferPlan {
    pub name: String,
    pub method: String,
    pub backbones: Vec<String>,
}

impl Plan {
    /// Checks every rule and reports all that are broken.
    pub fn new(config: RunConfig) -> Result<Self, Vec<PlanError>> {
        let data = config.data.facts();
        let mut rules = Rules::default();
        rules.texts(&config);
        rules.data(&config);
        rules.views(&config);
        rules.model(&config, &data);
        rules.training(&config);
        rules.transfer(&config);
        rules.timeouts(&config);
        rules.objective(&config.objective);
        rules.names(&config);
        rules.log(&config.log);
        let mut stages = Vec::new();
        for (index, backbone) in config.backbones.iter().enumerate() {
            let patched = config.objective.patched(&backbone.objective);
            rules.terms(&format!("backbones.{index}.objective"), &backbone.objective, &patched);
            if backbone.checkpoint.is_none() {
                let objective = Objective::of(&patched);
                stages.push(StagePlan::Backbone(BackbonePlan {
                    name: backbone.name.clone(),
                    objective,
                }));
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
            rules.refuse(
                "backbones",
                "nothing to train: give a backbone without `checkpoint`, or a row in `rows`",
            );
        }
        if !rules.broken.is_empty() {
            return Err(rules.broken);
        }
        let (digest, resolved_digest) = (recipe_digest(&config), resolved_digest(&config));
        Ok(Self { config, data, stages, digest, resolved_digest })
    }

    /// Which training images are trained on and which are held out, given the fine labels of the
    /// official training set, [N]. Nothing is held out where the best epoch is selected on the test
    /// images.
    pub fn split(&self, fine: &[i64]) -> Split {
        let data = &self.config.data;
        let images = fine.len() as u64;
        let mut split = match data.validation {
            Validation::HeldOut => split_train_validation(images, data.validation_fraction),
            Validation::Test => Split { train: (0..images).collect(), validation: Vec::new() },
        };
        if data.kind == DataKind::Cifar100U {
            // Whatever is held out stays as it is; every image is kept or not, none is repeated. A
            // draw, not the first ones.
            let drawn = match data.validation {
                Validation::HeldOut => split.train,
                Validation::Test => permutation(images),
            };
            let kept = images_kept_of_cifar100_u(&self.data.labels.coarse_of);
            split.train = first_of_each_class(&drawn, fine, &kept);
        }
        Split { train: self.limited(split.train), validation: self.limited(split.validation) }
    }

    /// Ids of the test images that are used, of `images` in the official test set.
    pub fn test_ids(&self, images: u64) -> Vec<u64> {
        self.limited((0..images).collect())
    }

    /// At most `data.max_images` of some ids, evenly spaced: sorted by class, they still are of
    /// many classes.
    fn limited(&self, ids: Vec<u64>) -> Vec<u64> {
        let len = ids.len() as u64;
        match self.config.data.max_images {
            Some(most) if most < len => {
                (0..most).map(|index| ids[(index * len / most) as usize]).collect()
            }
            _ => ids,
        }
    }

    /// Checks what depends on the data, given the fine labels of the official training set: that
    /// either part of the split has images and an epoch has a step. Errors: the key to change.
    pub fn check_images(&self, fine: &[i64]) -> Result<(), PlanError> {
        let split = self.split(fine);
        let (train, validation) = (split.train.len() as u64, split.validation.len() as u64);
        if train == 0 || validation == 0 && self.config.data.validation == Validation::HeldOut {
            let message = format!(
                "{} training images cannot be split into training and validation",
                fine.len()
            );
            return Err(PlanError { key: "data.dir".into(), message });
        }
        let batches = [
            ("train", self.config.train.batch_size),
            ("transfer", self.config.transfer.batch_size),
        ];
        for (section, batch) in batches.into_iter().filter(|_| self.config.data.drop_last) {
            if batch > train {
                let message = format!(
                    "no step is left: `{section}.batch_size` is {batch}, of {train} training images"
                );
                return Err(PlanError { key: "data.drop_last".into(), message });
            }
        }
        Ok(())
    }

    pub fn config(&self) -> &RunConfig {
        &self.config
    }

    /// The numbers by which a stage is trained; a transfer's rate falls in one cosine over all its
    /// epochs.
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
                select: transfer.select,
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

    /// The steps of a stage in all its epochs, given the number of images that are trained on.
    pub fn total_steps(&self, stage: &StagePlan, images: u64) -> u64 {
        let train = self.training(stage);
        let epoch = steps_per_epoch(images, train.batch_size, self.config.data.drop_last);
        train.max_steps.unwrap_or(u64::MAX).min(train.epochs.saturating_mul(epoch))
    }

    /// SHA-256 of the recipe, in hexadecimal: equal as long as a run may be resumed (`recipe.rs`
    /// has the keys).
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// SHA-256 of the resolved configuration, in hexadecimal: equal on every process that trains at
    /// the same time.
    pub fn resolved_digest(&self) -> &str {
        &self.resolved_digest
    }

    /// The file that `backbones.N.checkpoint` names for a backbone, if it is not trained in this
    /// run.
    pub fn backbone_checkpoint(&self, name: &str) -> Option<&Path> {
        self.config.backbones.iter().find(|backbone| backbone.name == name)?.checkpoint.as_deref()
    }
}

/// The stage of a row of the table.
fn transfer_name(method: &str) -> String {
    format!("transfer_{method}")
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let plan = Plan::from_preset("digits_table", &["objective.temperature=0.25".into()])
            .expect("valid");
        let objective = |stage| match stage {
            &StagePlan::Backbone(BackbonePlan { ref objective, .. }) => Some(objective.clone()),
            StagePlan::Transfer(_) => None,
        };
        let objectives: Vec<Objective> = plan.stages().iter().filter_map(objective).collect();
        let contrastive = |index: usize| {
            objectives.get(index).and_then(|objective| objective.contrastive.as_ref())
        };
        let weights =
            |index| contrastive(index).map(|term| (term.attract, term.spread, term.temperature));
        assert_eq!(weights(0), Some((1.0, 0.0, 0.25)));
        assert_eq!(weights(1), Some((1.0, 1.0, 0.25)));
        assert_eq!(contrastive(2), None);
        let reconstruction: Vec<_> =
            objectives.iter().map(|objective| objective.reconstruction).collect();
        assert_eq!(reconstruction, [None, None, Some(1.0)]);
    }

    #[test]
    fn the_steps_of_a_stage_are_those_of_its_epochs_or_fewer() {
        let check = |overrides: &[&str], expected: [u64; 2]| {
            let plan = plan("digits_cae", overrides);
            let steps = plan.stages().iter().map(|stage| plan.total_steps(stage, 1293));
            assert_eq!(steps.collect::<Vec<_>>(), expected, "{overrides:?}");
        };
        check(&[], [50 * 21, 100 * 11]);
        check(&["data.drop_last=true"], [50 * 20, 100 * 10]);
        check(&["train.max_steps=30", "transfer.max_steps=9999"], [30, 1100]);
    }

    #[test]
    fn the_data_must_leave_a_step() {
        let check = |overrides: &[&str], images, key: Option<&str>| {
            let overrides: Vec<String> = overrides.iter().map(|&text| text.into()).collect();
            let plan = Plan::from_preset("digits_cae", &overrides).expect("valid");
            let broken = plan.check_images(&vec![0; images]).err();
            assert_eq!(
                broken.as_ref().map(|rule| rule.key.as_str()),
                key,
                "{overrides:?} {images}: {broken:?}"
            );
        };
        check(&[], 1437, None);
        check(&[], 2, None);
        check(&[], 1, Some("data.dir"));
        check(&["data.drop_last=true"], 1437, None);
        check(&["data.drop_last=true"], 128, Some("data.drop_last"));
    }

    fn plan(preset: &str, overrides: &[&str]) -> Plan {
        let overrides: Vec<String> = overrides.iter().map(|&text| text.into()).collect();
        Plan::from_preset(preset, &overrides).expect("valid")
    }

    /// 500 images of each of 100 classes, class by class: the validation images are CIFAR-100's,
    /// and of about 450 training images a class keeps 500 (all), 250, 100, 50 or 50.
    #[test]
    fn cifar100_u_thins_the_training_images_alone() {
        let fine: Vec<i64> = (0..50_000).map(|image| image / 500).collect();
        let whole = plan("cifar100_supcon", &[]).split(&fine);
        let thinned = plan("cifar100_u_supcon", &[]).split(&fine);
        assert_eq!(thinned.validation, whole.validation);
        let count =
            |class: i64, ids: &[u64]| ids.iter().filter(|id| fine[**id as usize] == class).count();
        assert_eq!(
            count(4, &thinned.train),
            count(4, &whole.train),
            "fewer than 500 are left: all are kept"
        );
        assert_eq!([30, 55, 72, 95].map(|class| count(class, &thinned.train)), [250, 100, 50, 50]);
        let mut once = thinned.train.clone();
        once.sort_unstable();
        once.dedup();
        assert_eq!(once.len(), thinned.train.len(), "without replacement");
        assert!(once.iter().all(|id| whole.train.contains(id)), "from the training images only");
        assert_eq!(
            plan("cifar100_u_supcon", &["seed=5"]).split(&fine),
            thinned,
            "a data set, whatever the seed"
        );
    }

    /// Where the best epoch is selected on the test images, the kept ones are drawn as well: files
    /// are often in some order.
    #[test]
    fn cifar100_u_draws_its_images_without_a_held_out_part() {
        let fine: Vec<i64> = (0..50_000).map(|image| image / 500).collect();
        let split = plan("cifar100_u_supcon", &["data.validation=test"]).split(&fine);
        let ids = |class: i64| -> Vec<u64> {
            split.train.iter().copied().filter(|id| fine[*id as usize] == class).collect()
        };
        assert_eq!([4, 30, 55, 72, 95].map(|class| ids(class).len()), [500, 250, 100, 50, 50]);
        let late = ids(95).iter().filter(|id| *id % 500 >= 50).count();
        assert!(
            late > 35,
            "{late} of 50 are not among the class's first 50: nine in ten of a draw"
        );
    }

    #[test]
    fn a_limit_of_images_is_spread_over_the_classes() {
        let fine: Vec<i64> = (0..1000).map(|image| image / 100).collect();
        for validation in ["held_out", "test"] {
            let limited = plan(
                "mnist_supcon",
                &[&format!("data.validation={validation}"), "data.max_images=50"],
            );
            let split = limited.split(&fine);
            let expected = if validation == "test" { 0 } else { 50 };
            assert_eq!((split.train.len(), split.validation.len()), (50, expected));
            let classes: std::collections::BTreeSet<i64> =
                split.train.iter().map(|id| fine[*id as usize]).collect();
            assert!(classes.len() > 8, "{validation}: {classes:?}");
            assert_eq!(limited.test_ids(200), (0..200).step_by(4).collect::<Vec<_>>());
            assert_eq!(limited.test_ids(9), (0..9).collect::<Vec<_>>());
        }
        assert_eq!(plan("mnist_supcon", &[]).test_ids(9), (0..9).collect::<Vec<_>>());
    }

    #[test]
    fn selection_on_the_test_images_holds_nothing_out() {
        let split = plan("digits_supcon", &["data.validation=test"]).split(&[0; 20]);
        assert_eq!((split.train.len(), split.validation.len()), (20, 0));
        let checked = plan("digits_supcon", &["data.validation=test"]).check_images(&[0]);
        assert_eq!(checked, Ok(()));
    }
}
