//! What the user asked for and what the program needs, without doing anything.
//!
//! [`RunConfig`] is the YAML file, verbatim; [`load`] reads it and names every mistake with its
//! line; [`Plan`] is the validated form, the one place for rules that span several keys, and its
//! digest must be equal on every process of a run. `sample_order` says which sample goes where: the
//! global order of an epoch, a rank's slice of a batch, the train / validation split. [`presets`]
//! holds the experiments of the paper.
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
mod overlays;
mod packs_dir;
mod plan;
mod presets;
#[cfg(test)]
mod properties;
mod recipe;
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
pub use dataset::{DataSet, Labels};
pub use digest::{hex, sha256_of};
pub use error::{ConfigError, ConfigErrors};
pub use load::{load_file, load_preset, to_yaml};
pub use log_config::{LogConfig, MlflowConfig, TrackioConfig, WandbConfig, WandbMode};
pub use packs_dir::default_packs_dir;
pub use plan::{BackbonePlan, Contrastive, Objective, Plan, PlanError, StagePlan, TransferPlan};
pub use presets::{preset_names, preset_summary};
pub use recipe::{Change, Condition, changes};
pub use run_config::{
    BackboneConfig, CheckpointConfig, DataConfig, DataKind, DecoderConfig, EncoderConfig, Features,
    FrozenMode, ModelConfig, ObjectiveConfig, ObjectivePatch, OnBadImage, Precision, RowConfig,
    RunConfig, Schedule, Select, Similarity, Stem, TrainConfig, TransferConfig, Validation,
    ViewsConfig,
};
pub use sample_order::{
    EpochOrder, Position, Split, SplitMix64, init_key, rank_slice, samples_sha256,
    split_train_validation, stage_key, stage_steps, step_key, view_key,
};
pub use schedule::learning_rate;
pub use selection::ValidationMeasure;
pub use timeouts::TimeoutsConfig;
pub use weights::{Architecture, WEIGHTS_METADATA_KEY, pytorch_file_advice};
