//! `vit_*`: the encoder's outputs and gradients, and a few steps of training with a linear head:
//! the encoder, the cross-entropy, the contrastive loss's gradient carried into the encoder, and
//! AdamW together.

use super::golden::Golden;
use super::options::LossOptions;
use super::report::{Case, Report};
use crate::exchanges::SingleRank;
use crate::test_device::test_device;
use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::Value;
use std::path::Path;
use std::rc::Rc;
use tch::{Kind, Reduction, Tensor};
use thanos_configs::{DataSet, EncoderConfig, Labels, ModelConfig};
use thanos_fused::Draws;
use thanos_worker::model::{Alone, BatchSum, Mode, Model};
use thanos_worker::tensors::copy_into;
use thanos_worker::{AdamW, contrast_globally};

/// Relative tolerance of the losses of a trajectory.
const LOSSES: f64 = 1e-8;

/// The metadata `config`; sizes as the published code names them.
#[derive(Deserialize)]
struct Config {
    channels: usize,
    image_side: usize,
    d_model: usize,
    n_heads: usize,
    n_layers: usize,
    patch: usize,
    classes: usize,
    mlp_dim: usize,
    dropout: f64,
    optimizer: String,
    contrastive: Value,
}

impl Config {
    /// The number after `word` in the optimiser's description.
    fn rate(&self, word: &str) -> Result<f64> {
        let number = self.optimizer.split_whitespace().skip_while(|other| *other != word).nth(1);
        let number = number
            .with_context(|| format!("the optimizer `{}` has no `{word}`", self.optimizer))?;
        number.parse().with_context(|| format!("`{word}` of the optimizer `{}`", self.optimizer))
    }

    /// The model with the file's weights.
    fn model(&self, golden: &Golden, kind: Kind) -> Result<Model> {
        ensure!(self.dropout == 0.0, "dropout {} is random: nothing can be expected", self.dropout);
        let encoder = EncoderConfig::Vit {
            patch: self.patch,
            width: self.d_model,
            depth: self.n_layers,
            heads: self.n_heads,
            mlp: self.mlp_dim,
        };
        let config = ModelConfig { encoder, dropout: 0.0, ..ModelConfig::default() };
        let labels =
            Labels { coarse_names: vec!["a class".into(); self.classes], ..Labels::default() };
        let data = DataSet {
            name: "golden".into(),
            side: self.image_side,
            channels: self.channels,
            mean: Vec::new(),
            std: Vec::new(),
            labels,
        };
        let sum: Rc<dyn BatchSum> = Rc::new(Alone);
        let mut model = Model::new(&config, &data, false, test_device(), &sum);
        if kind == Kind::Double {
            model.double();
        }
        let unknown = copy_into(&model.state(), &golden.folder("weights"))?;
        ensure!(unknown.is_empty(), "the model has no {unknown:?}");
        Ok(model)
    }
}

pub(crate) fn check(path: &Path, report: &mut Report) -> Result<()> {
    let golden = Golden::read(path)?;
    let config: Config = golden.metadata("config")?;
    report.case("outputs", |case| check_outputs(&golden, &config, case));
    report.case("gradients", |case| check_gradients(&golden, &config, case));
    report.case("trajectory", |case| check_trajectory(&golden, &config, case));
    Ok(())
}

fn check_outputs(golden: &Golden, config: &Config, case: &mut Case) -> Result<()> {
    let _no_graph = tch::no_grad_guard();
    for kind in [Kind::Double, Kind::Float] {
        let model = config.model(golden, kind)?;
        // [B, d]
        let z = model.encoder.forward(&golden.input("images")?.to_kind(kind), Mode::Eval)?;
        for (name, found) in [("embedding", &z), ("logits", &model.logits(&z))] {
            match kind {
                Kind::Double => case.tensor(name, found, &golden.tensor(name)?),
                _ => case.elements(name, found, &golden.tensor(name)?),
            }
        }
    }
    Ok(())
}

fn check_gradients(golden: &Golden, config: &Config, case: &mut Case) -> Result<()> {
    let expected = golden.folder("grads");
    for kind in [Kind::Double, Kind::Float] {
        let model = config.model(golden, kind)?;
        let images = golden.input("images")?.to_kind(kind);
        let z = model.encoder.forward(&images, Mode::Train(&draws_of(images.size()[0])))?; // [B, d]
        (z * golden.input("cotangent")?).sum(None::<Kind>).backward();
        let found = model.parameters();
        let with_gradient = found.iter().filter(|(_, parameter)| parameter.grad().defined());
        case.equal("parameters with a gradient", with_gradient.map(|(name, _)| name).collect(), {
            expected.keys().collect::<Vec<_>>()
        });
        for (name, expected) in &expected {
            let parameter =
                found.get(name).with_context(|| format!("the model has no `{name}`"))?;
            let (name, found) = (format!("gradient of {name}"), parameter.grad());
            match kind {
                Kind::Double => case.tensor(&name, &found, expected),
                // Sums over all tokens whose terms cancel: single elements are lost in their
                // rounding.
                _ => case.whole(&name, &found, expected),
            }
        }
    }
    Ok(())
}

fn check_trajectory(golden: &Golden, config: &Config, case: &mut Case) -> Result<()> {
    let options = LossOptions::parse(&config.contrastive)?;
    for (word, ours) in [("betas", 0.9), ("0.9", 0.999), ("eps", 1e-8)] {
        ensure!(config.rate(word)? == ours, "the optimizer `{}` is not ours", config.optimizer);
    }
    let (images, labels) = (golden.input("trajectory/images")?, golden.input("trajectory/labels")?);
    let expected = golden.tensor("trajectory/losses_total_ce_contrastive")?; // [T, 3]
    let model = config.model(golden, Kind::Double)?;
    let mut optimizer = AdamW::new(model.parameters(), config.rate("weight_decay")?);
    case.equal("steps", images.size()[0], expected.size()[0]);
    for step in 0..expected.size()[0] {
        let found =
            train(&model, &options, &images.get(step).to_kind(Kind::Double), &labels.get(step))?;
        for (at, name) in ["total", "cross-entropy", "contrastive"].into_iter().enumerate() {
            let expected = expected.double_value(&[step, at as i64]);
            case.number(&format!("{name} loss of step {step}"), found[at], expected, LOSSES);
        }
        optimizer.update(&optimizer.flat_gradient(), config.rate("lr")?)?;
        optimizer.zero_grad()?;
    }
    let found = model.state();
    let expected = golden.folder("trajectory/final_weights");
    case.equal("weights", found.keys().collect::<Vec<_>>(), expected.keys().collect());
    for (found, (name, expected)) in found.values().zip(&expected) {
        case.tensor(&format!("final {name}"), found, expected);
    }
    Ok(())
}

/// Of this many images; without dropout nothing is drawn.
fn draws_of(images: i64) -> Draws {
    Draws::new(0, &(0..images as u64).collect::<Vec<_>>(), 1)
}

/// Gradients and losses (total, cross-entropy, contrastive) of images [B, 2, C, S, S] with labels
/// [B].
fn train(
    model: &Model,
    options: &LossOptions,
    images: &Tensor,
    labels: &Tensor,
) -> Result<[f64; 3]> {
    let b = labels.size()[0];
    let z = model.encoder.forward(&images.flatten(0, 1), Mode::Train(&draws_of(2 * b)))?; // [2B, d]
    let both = labels.repeat_interleave_self_int(2, 0, None); // [2B]
    let cross_entropy =
        model.logits(&z).cross_entropy_loss::<Tensor>(&both, None, Reduction::Mean, -100, 0.0);
    let pairs = z.detach().reshape([b, 2, -1]); // [B, view, d]
    let (view0, view1) = (pairs.select(1, 0), pairs.select(1, 1));
    let contrasted = contrast_globally(
        &SingleRank,
        &view0,
        &view1,
        &options.labels(labels),
        &options.comparison,
    )?;
    let dz =
        Tensor::stack(&[contrasted.view0_gradient, contrasted.view1_gradient], 1).reshape_as(&z);
    (&cross_entropy + (z * dz).sum(None::<Kind>)).backward();
    let (cross_entropy, contrastive) =
        (cross_entropy.double_value(&[]), contrasted.value.double_value(&[]));
    Ok([cross_entropy + contrastive, cross_entropy, contrastive])
}
