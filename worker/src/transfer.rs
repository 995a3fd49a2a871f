//! A transfer stage: one linear layer on fine labels over frozen backbones, whose embeddings are concatenated.

use crate::data::Data;
use crate::evaluate::{Measures, accuracy, embed, embed_all, measure};
use crate::model::{Mode, Model, linear};
use crate::pack::Pack;
use crate::tensors::Named;
use crate::train::{Batch, Losses, Stage};
use anyhow::Result;
use std::rc::Rc;
use tch::nn::{self, Module, VarStore};
use tch::{Kind, Reduction, Tensor};
use thanos_c10d::ProcessGroup;
use thanos_configs::{Features, FrozenMode, TransferConfig};

pub(crate) struct Transfer<'a> {
    backbones: Vec<Model>,
    variables: VarStore,
    /// d of all backbones -> fine classes, `cls.*` in checkpoints.
    head: nn::Linear,
    source: Source,
    data: &'a Data,
    group: Rc<ProcessGroup>,
}

/// Where a step's features come from.
enum Source {
    /// Standardised features of the whole training pack, [N, d], and the scale for others.
    Cached { features: Tensor, standard: Standard },
    /// One augmented view through the encoders in this mode.
    Augmented { mode: Mode },
}

/// (x - mean) / deviation, each [1, d], of the features of the images trained on.
struct Standard {
    mean: Tensor,
    deviation: Tensor,
}

impl Standard {
    fn apply(&self, features: &Tensor) -> Tensor {
        (features - &self.mean) / &self.deviation
    }
}

impl<'a> Transfer<'a> {
    /// The head's initial weights come from torch's generator: seed it first, equally on all ranks.
    pub(crate) fn new(
        config: &TransferConfig,
        backbones: Vec<Model>,
        data: &'a Data,
        group: &Rc<ProcessGroup>,
    ) -> Result<Self> {
        let width: i64 = backbones.iter().map(|model| model.encoder.width()).sum();
        let classes = data.facts.labels.fine_names.len() as i64;
        let mut variables = VarStore::new(data.device());
        let head = linear(&(variables.root() / "cls"), width, classes, true);
        if data.kind() == Kind::Double {
            variables.double();
        }
        let source = match config.features {
            Features::Cached => cached(&backbones, data, group)?,
            Features::Augmented => Source::Augmented {
                mode: match config.frozen_mode {
                    FrozenMode::Eval => Mode::Eval,
                    FrozenMode::Train => Mode::Train,
                },
            },
        };
        Ok(Self { backbones, variables, head, source, data, group: group.clone() })
    }

    fn models(&self) -> Vec<&Model> {
        self.backbones.iter().collect()
    }

    /// Fine scores of images of a pack as evaluation sees them, on every rank: [ids, classes].
    fn scores(&self, pack: &Pack, ids: &[u64]) -> Result<Tensor> {
        let features = embed_all(&self.models(), self.data, pack, ids, &self.group)?;
        let features = match &self.source {
            Source::Cached { standard, .. } => standard.apply(&features),
            Source::Augmented { .. } => features,
        };
        Ok(tch::no_grad(|| self.head.forward(&features)))
    }
}

impl Stage for Transfer<'_> {
    fn parameters(&self) -> Named {
        self.state()
    }

    fn state(&self) -> Named {
        self.variables.variables().into_iter().collect()
    }

    fn losses(&mut self, batch: &Batch<'_>) -> Result<Losses> {
        let data = self.data;
        let own = &batch.samples[batch.own.clone()];
        let features = match &self.source {
            Source::Cached { features, .. } => {
                let rows: Vec<i64> = own.iter().map(|&id| id as i64).collect();
                features.index_select(0, &Tensor::from_slice(&rows).to_device(data.device()))
            }
            Source::Augmented { mode } => {
                let images = data.views(&data.train, own, batch.epoch, 1)?.flatten(0, 1); // [b, C, S, S]
                embed(&self.models(), &images, *mode)?
            }
        }; // [b, d]
        let labels = data.labels(&data.train.fine, own);
        let logits = self.head.forward(&features); // [b, classes]
        let sum = logits.cross_entropy_loss::<Tensor>(&labels, None, Reduction::Sum, -100, 0.0);
        let mut losses = Losses::default();
        losses.add("cross_entropy", 1.0, sum / batch.samples.len() as i64);
        Ok(losses)
    }

    fn validation_accuracy(&mut self) -> Result<f64> {
        let data = self.data;
        let labels = data.labels(&data.train.fine, &data.split.validation);
        let scores = match &self.source {
            Source::Cached { features, .. } => {
                let rows: Vec<i64> = data.split.validation.iter().map(|&id| id as i64).collect();
                let rows = features.index_select(0, &Tensor::from_slice(&rows).to_device(data.device()));
                tch::no_grad(|| self.head.forward(&rows))
            }
            Source::Augmented { .. } => self.scores(&data.train, &data.split.validation)?,
        };
        accuracy(&scores, &labels, &self.group)
    }

    fn measure(&mut self) -> Result<(Measures, Option<f64>)> {
        let data = self.data;
        let ids: Vec<u64> = (0..data.test.len() as u64).collect();
        let labels = data.labels(&data.test.fine, &ids);
        let fine = accuracy(&self.scores(&data.test, &ids)?, &labels, &self.group)?;
        Ok((measure(&self.models(), data, &self.group)?, Some(fine)))
    }
}

/// Features of the whole training pack, standardised by those that are trained on.
fn cached(backbones: &[Model], data: &Data, group: &Rc<ProcessGroup>) -> Result<Source> {
    let models: Vec<&Model> = backbones.iter().collect();
    let all: Vec<u64> = (0..data.train.len() as u64).collect();
    let features = embed_all(&models, data, &data.train, &all, group)?; // [N, d]
    let trained: Vec<i64> = data.split.train.iter().map(|&id| id as i64).collect();
    let trained = features.index_select(0, &Tensor::from_slice(&trained).to_device(data.device()));
    let standard = Standard {
        mean: trained.mean_dim(&[0_i64][..], true, None::<Kind>),
        deviation: trained.std_dim(&[0_i64][..], false, true).clamp_min(1e-6),
    };
    Ok(Source::Cached { features: standard.apply(&features), standard })
}
