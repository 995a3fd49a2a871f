//! What the user asked for and what the program needs, without doing anything.
//!
//! In reading order:
//!
//! - `run_config`, `objective`, `checks_config`, `log_config`, `timeouts`: the keys of the YAML
//!   file, verbatim.
//! - `load`, `yaml`, `text`, `typed`, `overlays`: from a file or preset and its overrides to
//!   [`RunConfig`]; `error`: every mistake, with its line; `redacted`: without secrets.
//! - `presets`: the experiments of the paper; `recipe`: which keys a resume may change; `effect`
//!   and `shared_objective`: which keys have no effect.
//! - `plan`: [`Plan`], the validated form, the one place for rules that span several keys; its
//!   digest is equal on every process of a run.
//! - `sample_order`: which sample goes where: the global order of an epoch, a rank's slice of a
//!   batch, the split into training and validation images. `schedule`: the learning rate.
//! - `selection`: what the best checkpoint is chosen by. `weights`: what published weights must
//!   match.
//! - `dataset`, `class_map`, `packs_dir`, `digest`: what is known of a data set, and SHA-256.
//!
//! Pure: no tch, tokio, clock, environment or file system. Nothing of ours is imported here.

mod checks_config;
mod class_map;
mod dataset;
mod digest;
mod effect;
mod error;
mod load;
mod log_config;
mod objective;
mod overlays;
mod packs_dir;
mod plan;
mod presets;
#[cfg(test)]
mod properties;
mod recipe;
mod redacted;
#[cfg(test)]
mod reference;
mod run_config;
mod sample_order;
mod schedule;
mod selection;
mod shared_objective;
mod text;
mod timeouts;
mod typed;
mod weights;
mod yaml;

pub use checks_config::{ChecksConfig, OnDivergence, OnNonFinite};
pub use class_map::class_map;
pub use dataset::{DataKind, DataSet, Labels};
pub use digest::{hex, sha256_of};
pub use error::{ConfigError, ConfigErrors};
pub use load::{load_file, load_preset, to_yaml};
pub use log_config::{LogConfig, MlflowConfig, TrackioConfig, WandbConfig, WandbMode};
pub use objective::{
    Contrastive, LossTerm, Objective, ObjectiveConfig, ObjectivePatch, Similarity,
};
pub use packs_dir::default_packs_dir;
pub use plan::{BackbonePlan, Plan, PlanError, StagePlan, TransferPlan};
pub use presets::{preset_names, preset_summary};
pub use recipe::{Change, Condition, changes};
pub use run_config::{
    BackboneConfig, CheckpointConfig, DataConfig, DecoderConfig, EncoderConfig, Features,
    FrozenMode, ModelConfig, OnBadImage, Precision, RowConfig, RunConfig, Schedule, Select, Stem,
    TrainConfig, TransferConfig, Validation, ViewsConfig,
};
pub use sample_order::{
    EpochOrder, Position, Split, SplitMix64, init_key, rank_slice, samples_sha256,
    split_train_validation, stage_key, stage_steps, step_key, view_key,
};
pub use schedule::learning_rate;
pub use selection::ValidationMeasure;
pub use timeouts::TimeoutsConfig;
pub use weights::{Architecture, WEIGHTS_METADATA_KEY, pytorch_file_advice};
