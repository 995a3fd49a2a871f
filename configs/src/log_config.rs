//! `log`: what is written of a run in addition to its ledger, and for which experiment trackers. It is not part of the recipe: it
//! may change at a resume.

use serde::{Deserialize, Serialize};

/// Trackers are fed from the committed steps, and can neither slow a run nor end it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// Event files in the run directory's `tensorboard/`.
    pub tensorboard: bool,
    /// The committed steps as a table, `log.csv` in the run directory.
    pub csv: bool,
    /// Test images in the embedding map of each row, at most 2000, the same ones for every row;
    /// 0: no map. Unit: images.
    pub embedding_images: u64,
    /// Weights & Biases. As an override, `wandb.KEY` is the same as `log.wandb.KEY`.
    pub wandb: WandbConfig,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { tensorboard: true, csv: false, embedding_images: 1000, wandb: WandbConfig::default() }
    }
}

impl LogConfig {
    /// Nothing but the ledger.
    pub fn nothing() -> Self {
        Self { tensorboard: false, embedding_images: 0, ..Self::default() }
    }
}

/// How a run appears in Weights & Biases.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct WandbConfig {
    /// Whether files for it are written, and uploaded.
    pub mode: WandbMode,
    /// The project that the run belongs to.
    pub project: String,
    /// The user or team of the project; null: the client's default.
    pub entity: Option<String>,
    /// Runs of a group are shown together.
    pub group: Option<String>,
    /// Labels to filter by.
    pub tags: Vec<String>,
}

impl Default for WandbConfig {
    fn default() -> Self {
        Self {
            mode: WandbMode::Disabled,
            project: "thanos-trainer".into(),
            entity: None,
            group: None,
            tags: Vec::new(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum WandbMode {
    /// Nothing is written.
    Disabled,
    /// Files in the run directory's `wandb/`, which `wandb sync` (0.31 or newer) uploads when the run is stopped or done.
    Offline,
    /// The same files, uploaded meanwhile by the installed `wandb` client with its own credentials.
    Online,
}
