//! Checkpoints in a run directory: the names of their folders and files, and `manifest.json`. The
//! coordinator writes the manifest; it and the workers read it.

use serde::{Deserialize, Serialize};

/// The folder of all checkpoints, in the run directory.
pub const CHECKPOINTS: &str = "checkpoints";
/// What a checkpoint is, and the checksums of its files.
pub const MANIFEST: &str = "manifest.json";
/// The manifest covers every other file, and this one covers the manifest.
pub const MANIFEST_SHA256: &str = "manifest.sha256";
/// The last weights, those of the selected epoch, and the optimiser's state.
pub const MODEL: &str = "model.safetensors";
pub const BEST: &str = "best.safetensors";
/// The selected epoch's weights as they are trained, where [`BEST`] has them in another form, for
/// use.
pub const BEST_STATE: &str = "best_state.safetensors";
pub const OPTIMIZER: &str = "optimizer.safetensors";
/// Of a complete transfer: the test images with their labels and what the probe predicts, and the
/// embedding map. Both are for the report; no stage reads them.
pub const PREDICTIONS: &str = "predictions.safetensors";
pub const EMBEDDINGS: &str = "embeddings.safetensors";

/// The version of `manifest.json`.
pub const MANIFEST_FORMAT: u32 = 3;

/// How the name of the folder of a checkpoint begins that is not committed yet.
pub const UNFINISHED: &str = ".tmp-";

/// The folder of a committed checkpoint after so many updates, within that of its stage.
pub fn committed_name(step: u64) -> String {
    format!("step-{step:08}")
}

/// The same of a checkpoint that is not committed yet.
pub fn unfinished_name(step: u64) -> String {
    format!("{UNFINISHED}{}", committed_name(step))
}

/// The folder of a committed checkpoint, relative to the run directory.
pub fn committed_folder(stage: &str, step: u64) -> String {
    format!("{CHECKPOINTS}/{stage}/{}", committed_name(step))
}

/// The same of a checkpoint that is not committed yet.
pub fn unfinished_folder(stage: &str, step: u64) -> String {
    format!("{CHECKPOINTS}/{stage}/{}", unfinished_name(step))
}

/// `manifest.json`: what a checkpoint is, and the checksums of its files.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    pub format: u32,
    pub run: String,
    pub config_digest: String,
    /// Fingerprints of the packs that it was trained on; earlier versions did not record them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<ManifestData>,
    pub stage: String,
    pub generation: u64,
    pub world_size: u32,
    pub epoch: u64,
    /// Updates made.
    pub step: u64,
    /// Training time of the stage so far.
    pub seconds: f64,
    /// What follows the last update (an evaluation) is done, too.
    #[serde(alias = "settled")]
    pub post_step_done: bool,
    pub best: Option<ManifestBest>,
    /// There if the stage is complete.
    pub result: Option<ManifestResult>,
    pub files: Vec<ManifestFile>,
}

/// Fingerprints of the packs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestData {
    pub train: String,
    pub test: String,
}

/// The best validation epoch so far; accuracy as a share in 0..1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ManifestBest {
    pub epoch: u64,
    pub validation_accuracy: f64,
}

/// A file of the checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ManifestFile {
    pub name: String,
    pub bytes: u64,
    pub sha256: String,
}

/// What a complete stage measured, as it is kept: accuracies as shares in 0..1, cosines of test
/// embeddings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ManifestResult {
    pub seconds: f64,
    pub validation_accuracy: f64,
    pub coarse_test_accuracy: f64,
    pub fine_test_accuracy: Option<f64>,
    pub knn_fine_accuracy: f64,
    pub cosine_within_coarse: Option<f64>,
    pub cosine_within_fine: Option<f64>,
    pub cosine_between_views: f64,
    pub data_wait_seconds: f64,
}
