//! A transfer stage: one linear layer on fine labels over frozen backbones, whose embeddings are
//! concatenated.

use crate::checkpoint::{EMBEDDINGS, PREDICTIONS};
use crate::embedding_map::{MapSample, embedding_map};
use crate::error::Result;
use crate::evaluate::{Embedded, Evaluator, embed, unit};
use crate::model::{Mode, Model, linear};
use crate::probe_weights::{DEVIATION, MEAN};
use crate::stage::{Inputs, Losses, Measured, Stage};
use crate::tensors::{StateDict, broadcast};
use anyhow::Context;
use tch::nn::{self, Module, VarStore};
use tch::{Device, Kind, Reduction, Tensor};
use thanos_configs::{Features, FrozenMode, LossTerm, RunConfig};

pub(crate) struct Transfer<'a> {
    backbones: Vec<Model>,
    variables: VarStore,
    /// d of all backbones -> fine classes, `cls.*` in checkpoints.
    head: nn::Linear,
    source: Source,
    evaluator: Evaluator<'a>,
    /// Images of the embedding map, and the seed that chooses them.
    map: MapSample,
}

/// Where a step's features come from.
enum Source {
    /// Features of the whole training pack, [N, d], and of this rank's slice of the validation
    /// images, [own, d]; and how they, and others, are standardised.
    Cached { features: Tensor, validation: Tensor, standard: Standard },
    /// One augmented view through the encoders in this mode. Encoders that training leaves as they
    /// are have features of this rank's slice of the validation images, [own, d], that are computed
    /// once.
    Augmented { mode: FrozenMode, validation: Option<Tensor> },
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

    /// As it is in the stage's state; the tensors share memory.
    fn named(&self) -> StateDict {
        let tensors = [(MEAN, &self.mean), (DEVIATION, &self.deviation)];
        tensors
            .into_iter()
            .map(|(name, tensor)| (name.to_owned(), tensor.shallow_clone()))
            .collect()
    }
}

impl<'a> Transfer<'a> {
    /// The head's initial weights come from torch's generator of the CPU: seed it first, equally on
    /// all ranks.
    ///
    /// # Errors
    /// [`crate::error::WorkerError::StopRequested`] while features are cached, on all ranks alike.
    pub(crate) fn new(
        run: &RunConfig,
        backbones: Vec<Model>,
        evaluator: Evaluator<'a>,
    ) -> Result<Self> {
        let (config, data) = (&run.transfer, evaluator.data);
        let width: i64 = backbones.iter().map(|model| model.encoder.width()).sum();
        let classes = data.facts.labels.fine_names.len() as i64;
        let mut variables = VarStore::new(Device::Cpu);
        let head = linear(&(variables.root() / "cls"), width, classes, true);
        variables.set_device(data.device());
        if data.kind() == Kind::Double {
            variables.double();
        }
        let source = match config.features {
            Features::Cached => cached(&backbones, &evaluator)?,
            Features::Augmented => augmented(config.frozen_mode, &backbones, &evaluator)?,
        };
        let map = MapSample { images: run.log.embedding_images, seed: run.seed };
        Ok(Self { backbones, variables, head, source, evaluator, map })
    }

    fn models(&self) -> Vec<&Model> {
        self.backbones.iter().collect()
    }

    /// What a report shows of the test images: files of the last checkpoint, on rank 0. Directions
    /// [own, d] and scores [own, classes] are those of this rank's slice.
    fn test_files(
        &self,
        directions: &Tensor,
        scores: &Tensor,
    ) -> Result<Vec<(&'static str, StateDict)>> {
        let evaluator = &self.evaluator;
        let predictions = predictions(evaluator, scores)?;
        let mut files = vec![(PREDICTIONS, predictions)];
        if self.map.images > 0 {
            let may_continue = || {
                evaluator.stop.progressed();
                !evaluator.stop.is_set()
            };
            let (data, group) = (evaluator.data, evaluator.group.as_ref());
            let map = embedding_map(data, group, directions, self.map, may_continue)?;
            // Rank 0 may have left it unfinished.
            evaluator.continue_together()?;
            files.extend(map.map(|map| (EMBEDDINGS, map)));
        }
        Ok(if evaluator.group.rank() == 0 { files } else { Vec::new() })
    }

    /// Fine scores of features as the encoders make them, [n, d] to [n, classes].
    fn scores(&self, features: &Tensor) -> Tensor {
        tch::no_grad(|| match &self.source {
            Source::Cached { standard, .. } => self.head.forward(&standard.apply(features)),
            Source::Augmented { .. } => self.head.forward(features),
        })
    }
}

impl Stage for Transfer<'_> {
    fn parameters(&self) -> StateDict {
        self.variables.variables().into_iter().collect()
    }

    /// Beside the head: of cached features, how they are standardised, which a resume takes over;
    /// in training mode, the encoders' moving statistics, as `encoder.N.NAME` in the order of the
    /// backbones.
    fn state(&self) -> StateDict {
        let mut state = self.parameters();
        match &self.source {
            Source::Cached { standard, .. } => state.extend(standard.named()),
            Source::Augmented { mode: FrozenMode::Eval, .. } => {}
            Source::Augmented { mode: FrozenMode::Train, .. } => {
                for (index, model) in self.backbones.iter().enumerate() {
                    let buffers = model.buffers().into_iter();
                    state.extend(
                        buffers.map(|(name, buffer)| (format!("encoder.{index}.{name}"), buffer)),
                    );
                }
            }
        }
        state
    }

    fn views(&self) -> u64 {
        match self.source {
            Source::Cached { .. } => 0,
            Source::Augmented { .. } => 1,
        }
    }

    fn labels(&self) -> &[i64] {
        &self.evaluator.data.train.fine
    }

    fn losses(&mut self, inputs: &Inputs) -> Result<Losses> {
        let features = match &self.source {
            Source::Cached { features, standard, .. } => {
                standard.apply(&features.index_select(0, &inputs.own_samples()))
            }
            Source::Augmented { mode, .. } => {
                let draws = inputs.draws();
                let mode = match mode {
                    FrozenMode::Eval => Mode::Eval,
                    FrozenMode::Train => Mode::Train(&draws),
                };
                embed(&self.models(), &inputs.images.flatten(0, 1), mode)?
            }
        }; // [b, d]
        let logits = self.head.forward(&features); // [b, classes]
        let sum = logits.cross_entropy_loss::<Tensor>(
            &inputs.own_labels(),
            None,
            Reduction::Sum,
            -100,
            0.0,
        );
        let mut losses = Losses::default();
        losses.add(LossTerm::CrossEntropy, 1.0, sum / inputs.sizes().1);
        Ok(losses)
    }

    fn validation_accuracy(&mut self) -> Result<f64> {
        let data = self.evaluator.data;
        let (pack, ids) = data.validation();
        let once = match &self.source {
            Source::Cached { validation, .. } => Some(validation),
            Source::Augmented { validation, .. } => validation.as_ref(),
        };
        let scores = match once {
            Some(features) => self.scores(features),
            None => self.scores(&self.evaluator.embed_own(&self.models(), pack, ids)?),
        };
        self.evaluator.accuracy(&scores, &pack.fine, ids)
    }

    fn measure(&mut self) -> Result<Measured> {
        let data = self.evaluator.data;
        let models = self.models();
        let embedded = match &self.source {
            Source::Cached { features, .. } => Embedded {
                test: self.evaluator.embed_own(&models, &data.test, &data.test_ids)?,
                train: features.index_select(
                    0,
                    &rows(self.evaluator.own_ids(&data.train_ids)).to_device(data.device()),
                ),
            },
            Source::Augmented { .. } => self.evaluator.embed_both(&models)?,
        };
        let scores = self.scores(&embedded.test);
        let fine = self.evaluator.accuracy(&scores, &data.test.fine, &data.test_ids)?;
        Ok(Measured {
            metrics: self.evaluator.measure(&models, &embedded)?,
            fine_test_accuracy: Some(fine),
            files: self.test_files(&unit(&models, &embedded.test), &scores)?,
        })
    }
}

/// Every test image with its fine label and the one that its scores rank first, and the names of
/// the labels as JSON.
fn predictions(evaluator: &Evaluator<'_>, scores: &Tensor) -> Result<StateDict> {
    let data = evaluator.data;
    let fine: Vec<i64> = data.test_ids.iter().map(|&id| data.test.fine[id as usize]).collect();
    let names = |names: &[String]| -> Result<Tensor> {
        Ok(Tensor::from_slice(&serde_json::to_vec(names).context("names of classes")?))
    };
    let labels = &data.facts.labels;
    let named = [
        ("ids", rows(&data.test_ids)),
        ("fine", Tensor::from_slice(&fine)),
        ("predicted", evaluator.predictions(scores)?.to_device(Device::Cpu)),
        ("fine_names", names(&labels.fine_names)?),
        ("coarse_names", names(&labels.coarse_names)?),
    ];
    Ok(named.into_iter().map(|(name, tensor)| (name.to_owned(), tensor)).collect())
}

/// Features of the training images, each at its row of the training pack, and of the validation
/// images, to be standardised by those that are trained on. The standardisation is rank 0's:
/// another machine's sums may differ in their last bits.
fn cached(backbones: &[Model], evaluator: &Evaluator<'_>) -> Result<Source> {
    let data = evaluator.data;
    let models: Vec<&Model> = backbones.iter().collect();
    let trained = evaluator.embed_all(&models, &data.train, &data.train_ids)?; // [trained, d]
    let standard = Standard {
        mean: trained.mean_dim(&[0_i64][..], true, None::<Kind>),
        deviation: trained.std_dim(&[0_i64][..], false, true).clamp_min(1e-6),
    };
    broadcast(&standard.named(), evaluator.group.as_ref(), 0)?;
    let (pack, ids) = data.validation();
    let validation = evaluator.embed_own(&models, pack, ids)?;
    // Rows of images that are not trained on stay 0, and are not read.
    let like = (trained.kind(), trained.device());
    let features = Tensor::zeros([data.train.len() as i64, trained.size()[1]], like); // [N, d]
    let features =
        features.index_copy(0, &rows(&data.train_ids).to_device(data.device()), &trained);
    Ok(Source::Cached { features, validation, standard })
}

/// Features are computed at every step. Those of the validation images change only with the
/// encoders' moving statistics.
fn augmented(mode: FrozenMode, backbones: &[Model], evaluator: &Evaluator<'_>) -> Result<Source> {
    let is_fixed =
        mode == FrozenMode::Eval || backbones.iter().all(|model| model.buffers().is_empty());
    let validation = is_fixed.then(|| {
        let (pack, ids) = evaluator.data.validation();
        evaluator.embed_own(&backbones.iter().collect::<Vec<_>>(), pack, ids)
    });
    Ok(Source::Augmented { mode, validation: validation.transpose()? })
}

/// Ids as the rows of a tensor of features, [n] i64.
fn rows(ids: &[u64]) -> Tensor {
    let rows: Vec<i64> = ids.iter().map(|&id| id as i64).collect();
    Tensor::from_slice(&rows)
}
