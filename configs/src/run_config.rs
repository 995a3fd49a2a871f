//! `RunConfig`: the YAML file as the user wrote it, key by key, with the defaults of the reference
//! recipe. It must not know what is sensible: rules that span keys are in `plan.rs`.

use crate::checks_config::ChecksConfig;
use crate::dataset::{DataKind, DataSet};
use crate::log_config::LogConfig;
use crate::objective::{ObjectiveConfig, ObjectivePatch};
use crate::timeouts::TimeoutsConfig;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// One launch of an experiment. Every key has a default: the CIFAR-10 recipe of the paper's
/// published code.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct RunConfig {
    /// Shown in tables and in `results.json`; a preset's own name unless the file says otherwise.
    pub name: String,
    /// Decides initial weights, the order of samples, every view and every dropout mask. Unit: any
    /// integer.
    pub seed: u64,
    /// What is trained on.
    pub data: DataConfig,
    pub views: ViewsConfig,
    /// The networks.
    pub model: ModelConfig,
    /// What every backbone is trained on, unless the backbone says otherwise.
    pub objective: ObjectiveConfig,
    /// How backbones are trained.
    pub train: TrainConfig,
    /// Encoders trained on coarse labels, in this order.
    pub backbones: Vec<BackboneConfig>,
    /// The linear probe on fine labels, the same for every row.
    pub transfer: TransferConfig,
    /// Rows of the result table: each a probe on one or more frozen backbones.
    pub rows: Vec<RowConfig>,
    /// When checkpoints are written.
    pub checkpoint: CheckpointConfig,
    pub checks: ChecksConfig,
    pub timeouts: TimeoutsConfig,
    pub log: LogConfig,
}

impl Default for RunConfig {
    fn default() -> Self {
        Self {
            name: "custom".into(),
            seed: 0,
            data: DataConfig::default(),
            views: ViewsConfig::default(),
            model: ModelConfig::default(),
            objective: ObjectiveConfig::default(),
            train: TrainConfig::default(),
            backbones: Vec::new(),
            transfer: TransferConfig::default(),
            rows: Vec::new(),
            checkpoint: CheckpointConfig::default(),
            checks: ChecksConfig::default(),
            timeouts: TimeoutsConfig::default(),
            log: LogConfig::default(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct DataConfig {
    /// Which data set.
    pub kind: DataKind,
    /// Folder of the raw files; `digits` is embedded and needs none.
    pub dir: Option<PathBuf>,
    /// `image_folder`: images are resized and cut to this size; null: 64. Other data sets have
    /// their own. Unit: pixels per side.
    pub side: Option<usize>,
    /// `image_folder`: a YAML file of `CLASS: COARSE CLASS` lines; null: coarse classes are the
    /// fine ones.
    pub coarse_map: Option<PathBuf>,
    /// `image_folder`: the folder of the training images below `data.dir`; null: `train` or another
    /// common name.
    pub train_folder: Option<String>,
    /// The same of the test images; null: `test`, `val` or another common name.
    pub test_folder: Option<String>,
    /// Apply the EXIF orientation of images. Off, as in torchvision.
    pub exif_orientation: bool,
    /// What to do with an image that cannot be decoded.
    pub on_bad_image: OnBadImage,
    /// Drop an epoch's last, short batch. Off: it is trained on like every other.
    pub drop_last: bool,
    /// On which images the best epoch is selected.
    pub validation: Validation,
    /// Share of the official training set held out to select the best epoch, with
    /// `validation: held_out`. Unit: a share between 0 and 1, both excluded.
    pub validation_fraction: f64,
    /// Use at most this many training, validation and test images each, drawn evenly; null: all.
    /// For a quick look at new data: accuracies on few images are not reliable. Unit: images.
    pub max_images: Option<u64>,
}

impl DataConfig {
    /// What is known of the data set before its files are read.
    pub fn facts(&self) -> DataSet {
        DataSet::of(self.kind, self.side)
    }
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            kind: DataKind::Cifar10,
            dir: None,
            side: None,
            coarse_map: None,
            train_folder: None,
            test_folder: None,
            exif_orientation: false,
            on_bad_image: OnBadImage::Fail,
            drop_last: false,
            validation: Validation::HeldOut,
            validation_fraction: 0.1,
            max_images: None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum OnBadImage {
    /// Report it and exit.
    Fail,
    /// Skip it, and report how many were skipped: the same on all workers, since they read the same
    /// pack.
    Skip,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Validation {
    /// A part of the official training set, which is not trained on.
    HeldOut,
    /// The test images, as the reference does for TinyImageNet: what is selected on them is also
    /// reported on them.
    Test,
}

/// Training augmentation, in the order of the fields; probabilities in [0, 1], strengths as
/// torchvision's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct ViewsConfig {
    /// Probability of a horizontal flip. Unit: a probability.
    pub horizontal_flip: f64,
    /// Share of the image's area that a crop covers: [min, max]. Unit: a share of the area.
    pub crop_scale: [f64; 2],
    /// Aspect ratio of a crop: [min, max]. Unit: width over height.
    pub crop_ratio: [f64; 2],
    /// Probability that the colour jitter is applied at all. Unit: a probability.
    pub jitter: f64,
    /// Strength of the brightness jitter: a factor in [1 - x, 1 + x]. Unit: a relative change, 0 to
    /// 1.
    pub brightness: f64,
    /// Strength of the contrast jitter. Unit: a relative change, 0 to 1.
    pub contrast: f64,
    /// Strength of the saturation jitter. Without effect on one-channel images, like hue and
    /// grayscale. Unit: a relative change, 0 to 1.
    pub saturation: f64,
    /// Strength of the hue jitter, at most 0.5. Unit: turns of the colour wheel.
    pub hue: f64,
    /// Probability that the image is turned to grey. Unit: a probability.
    pub grayscale: f64,
}

impl Default for ViewsConfig {
    fn default() -> Self {
        Self {
            horizontal_flip: 0.5,
            crop_scale: [0.2, 1.0],
            crop_ratio: [0.75, 4.0 / 3.0],
            jitter: 0.8,
            brightness: 0.4,
            contrast: 0.4,
            saturation: 0.4,
            hue: 0.1,
            grayscale: 0.2,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct ModelConfig {
    /// The network whose embeddings are trained: a choice as its only key.
    pub encoder: EncoderConfig,
    /// Precision of all computation.
    pub precision: Precision,
    /// ViT: dropout of the blocks, and the greatest stochastic depth. 0 turns every kind of dropout
    /// off. Unit: a probability, at most 0.9.
    pub dropout: f64,
    /// ViT: dropout after the patch embedding. Unit: a probability, at most 0.9.
    pub embedding_dropout: f64,
    /// ViT: probability that a query token attends uniformly. Unit: a probability, at most 0.9.
    pub query_dropout: f64,
    /// Used by backbones with a reconstruction term.
    pub decoder: DecoderConfig,
}

impl Default for ModelConfig {
    fn default() -> Self {
        Self {
            encoder: EncoderConfig::Vit { patch: 4, width: 256, depth: 7, heads: 8, mlp: 512 },
            precision: Precision::Float32,
            dropout: 0.05,
            embedding_dropout: 0.1,
            query_dropout: 0.1,
            decoder: DecoderConfig::default(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// On GPUs without TensorFloat-32, so that results agree with those of the CPU.
    Float32,
    /// float32 whose products and convolutions use TensorFloat-32 (10 bits of mantissa) on GPUs
    /// that have it; on the CPU the same as float32.
    Tf32,
    /// Matrix products, convolutions and attention of factors rounded to bfloat16 (8 bits of
    /// mantissa). Weights, the optimiser, norms, losses and sums over ranks stay float32. Faster on
    /// GPUs and on CPUs with AMX or AVX512-BF16; slower on others.
    Bfloat16,
    /// For verification, not for speed.
    Float64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum EncoderConfig {
    /// A vision transformer.
    Vit {
        /// Side of a patch; it divides the images' side. Unit: pixels.
        patch: usize,
        /// Width of the embedding. Unit: features.
        width: usize,
        /// Number of blocks. Unit: blocks.
        depth: usize,
        /// Attention heads; they divide the width. Unit: heads.
        heads: usize,
        /// Width of the hidden layer of a block's MLP. Unit: features.
        mlp: usize,
    },
    /// ResNet-18. The paper trains ResNets for 200 epochs: set `train.epochs: 200`.
    Resnet18 {
        /// The layers before the first block.
        stem: Stem,
    },
    /// ResNet-50. The paper trains ResNets for 200 epochs: set `train.epochs: 200`.
    Resnet50 {
        /// The layers before the first block.
        stem: Stem,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Stem {
    /// 7 x 7 convolution of stride 2 and a max-pool, as torchvision's.
    Imagenet,
    /// 3 x 3 convolution of stride 1, no pool.
    Cifar,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct DecoderConfig {
    /// Channels of the first stage, a multiple of 8; the next ones have a half, a quarter and an
    /// eighth. Unit: channels.
    pub width: usize,
}

impl Default for DecoderConfig {
    fn default() -> Self {
        Self { width: 512 }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// Length of a backbone's training. The paper trains a ViT for 600, a ResNet for 200. Unit:
    /// epochs.
    pub epochs: u64,
    /// Global batch of a step, over all workers; each image gives two views. Unit: images.
    pub batch_size: u64,
    /// End a backbone's training after this many steps, whatever `epochs` is; null: by `epochs`
    /// alone. Unit: steps.
    pub max_steps: Option<u64>,
    /// Learning rate of AdamW at its highest. Unit: none.
    pub learning_rate: f64,
    /// Decoupled weight decay of AdamW. Unit: none.
    pub weight_decay: f64,
    /// How the learning rate changes from epoch to epoch.
    pub schedule: Schedule,
    /// `schedule: cosine`: length of half a cosine; null: all of `epochs`. Shorter than `epochs`,
    /// the rate rises again (the reference). Unit: epochs.
    pub cosine_period: Option<u64>,
    /// Interval of evaluations on the validation images; the last epoch is always evaluated. Unit:
    /// epochs.
    pub evaluate_every: u64,
    /// Which evaluated epoch's weights a backbone keeps as its result.
    pub select: Select,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            epochs: 600,
            batch_size: 128,
            max_steps: None,
            learning_rate: 3e-4,
            weight_decay: 0.01,
            schedule: Schedule::Cosine,
            cosine_period: Some(100),
            evaluate_every: 1,
            select: Select::Best,
        }
    }
}

/// Which evaluated epoch's weights are the result of a stage: `best.safetensors`, and what
/// transfers use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Select {
    /// The first with the highest validation accuracy: of the coarse head, or, without a trained
    /// coarse head (`objective.cross_entropy: 0`), of the nearest neighbours' coarse labels; of a
    /// probe's own head.
    Best,
    /// The last one.
    Last,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// It falls in half a cosine.
    Cosine,
    /// It does not change.
    Constant,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct BackboneConfig {
    /// Also the name of its stage and of its folder of checkpoints.
    pub name: String,
    /// What it changes in the shared `objective`.
    pub objective: ObjectivePatch,
    /// Take the encoder from this safetensors file or checkpoint folder instead of training it.
    pub checkpoint: Option<PathBuf>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct TransferConfig {
    /// Length of a probe's training, over which its learning rate falls in half a cosine. Unit:
    /// epochs.
    pub epochs: u64,
    /// Global batch of a step, over all workers. Unit: images.
    pub batch_size: u64,
    /// Learning rate of AdamW at its highest. Unit: none.
    pub learning_rate: f64,
    /// Decoupled weight decay of AdamW. Unit: none.
    pub weight_decay: f64,
    /// End a probe's training after this many steps, whatever `epochs` is; null: by `epochs` alone.
    /// Unit: steps.
    pub max_steps: Option<u64>,
    /// What the probe is trained on.
    pub features: Features,
    /// With `features: augmented`: whether the frozen encoders keep dropout and moving batch
    /// statistics.
    pub frozen_mode: FrozenMode,
    /// Which epoch's weights a probe keeps as its result.
    pub select: Select,
}

impl Default for TransferConfig {
    fn default() -> Self {
        Self {
            epochs: 100,
            batch_size: 128,
            learning_rate: 1e-3,
            weight_decay: 0.01,
            max_steps: None,
            features: Features::Augmented,
            frozen_mode: FrozenMode::Eval,
            select: Select::Best,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Features {
    /// One augmented view per image and step through the frozen encoders (the reference's way).
    Augmented,
    /// Each image once through the frozen encoders, without augmentation; standardised, kept in
    /// memory.
    Cached,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum FrozenMode {
    /// No dropout, batch statistics as trained.
    Eval,
    /// Dropout and moving batch statistics: the reference's way.
    Train,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct RowConfig {
    /// First column of the table.
    pub method: String,
    /// Names of backbones; their embeddings are concatenated in this order.
    pub backbones: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct CheckpointConfig {
    /// Interval of a stage's checkpoints, from the start of one to that of the next; null: no
    /// limit. None starts while another one is being written. The end of a stage and a stop are
    /// always saved. Unit: seconds.
    pub every_seconds: Option<f64>,
    /// The same in steps; null: any number. Unit: steps.
    pub every_steps: Option<u64>,
    /// Newest checkpoints kept in each stage, at least 2. Unit: checkpoints.
    pub keep_last: usize,
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        Self { every_seconds: Some(60.0), every_steps: None, keep_last: 2 }
    }
}
