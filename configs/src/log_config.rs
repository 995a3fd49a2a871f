//! `log`: what is written of a run in addition to its ledger, and for which experiment trackers.
//! It is not part of the recipe: it may change at a resume. It holds no credentials: these are
//! variables of the environment, since a configuration is written to the run directory.

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
    /// A server of MLflow.
    pub mlflow: MlflowConfig,
    /// A server of trackio.
    pub trackio: TrackioConfig,
}

impl Default for LogConfig {
    fn default() -> Self {
        let (wandb, mlflow, trackio) = Default::default();
        Self { tensorboard: true, csv: false, embedding_images: 1000, wandb, mlflow, trackio }
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

/// How a run appears in MLflow.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct MlflowConfig {
    /// Address of a tracking server, such as `http://127.0.0.1:5000`; null: none. Credentials are
    /// taken from `MLFLOW_TRACKING_USERNAME` and `MLFLOW_TRACKING_PASSWORD`, or
    /// `MLFLOW_TRACKING_TOKEN`.
    pub uri: Option<String>,
    /// The experiment that the run belongs to; created if it does not exist.
    pub experiment: String,
}

impl Default for MlflowConfig {
    fn default() -> Self {
        Self { uri: None, experiment: "thanos-trainer".into() }
    }
}

/// How a run appears in trackio.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct TrackioConfig {
    /// Address of a trackio server (0.43 or newer), such as `http://127.0.0.1:7860`; null: none.
    /// The write token is taken from `TRACKIO_WRITE_TOKEN`; of a Hugging Face Space, from
    /// `HF_TOKEN`.
    pub url: Option<String>,
    /// The project that the run belongs to: letters, digits, `-` and `_`.
    pub project: String,
}

impl Default for TrackioConfig {
    fn default() -> Self {
        Self { url: None, project: "thanos-trainer".into() }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum WandbMode {
    /// Nothing is written.
    Disabled,
    /// Files in the run directory's `wandb/`, which `wandb sync` (0.31 or newer) uploads when the
    /// run is stopped or done.
    Offline,
    /// The same files, uploaded meanwhile by the installed `wandb` client with its own credentials.
    Online,
}
