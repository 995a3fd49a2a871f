//! A backbone stage: two views an image, embedded, contrasted with the global batch, classified
//! and, for autoencoders, reconstructed. Each term is this rank's share of the global mean: shares
//! are summed over the ranks.

use crate::error::Result;
use crate::evaluate::Evaluator;
use crate::gather::{Comparison, contrast_globally};
use crate::loss::{LossForm, Similarity, Tile, unlabelled_apart};
use crate::model::{BatchSum, Mode, Model};
use crate::stage::{Inputs, Losses, Measured, Stage, Term};
use crate::tensors::StateDict;
use std::rc::Rc;
use tch::{Reduction, Tensor};
use thanos_configs::{Contrastive, LossTerm, Objective, Plan, ValidationMeasure};

pub(crate) struct Backbone<'a> {
    model: Model,
    objective: Objective,
    evaluator: Evaluator<'a>,
}

impl<'a> Backbone<'a> {
    /// Initial weights come from torch's generator: seed it first, equally on all ranks.
    pub(crate) fn new(plan: &Plan, objective: &Objective, evaluator: Evaluator<'a>) -> Self {
        let (data, sum): (_, Rc<dyn BatchSum>) = (evaluator.data, evaluator.group.clone());
        let decoder = objective.reconstruction.is_some();
        let model = Model::new(&plan.config().model, &data.facts, decoder, data.device(), &sum);
        Self { model, objective: objective.clone(), evaluator }
    }
}

impl Stage for Backbone<'_> {
    fn parameters(&self) -> StateDict {
        self.model.parameters()
    }

    fn state(&self) -> StateDict {
        self.model.state()
    }

    fn views(&self) -> u64 {
        2
    }

    fn labels(&self) -> &[i64] {
        &self.evaluator.data.train.coarse
    }

    fn losses(&mut self, inputs: &Inputs) -> Result<Losses> {
        let draws = inputs.draws();
        let (b, total) = inputs.sizes();
        let images = inputs.images.flatten(0, 1); // [2b, C, S, S]
        let z = self.model.encoder.forward(&images, Mode::Train(&draws))?; // [2b, d]
        let mut losses = Losses::default();
        if self.objective.cross_entropy > 0.0 {
            // Without `repeat_interleave`, which waits for the device.
            let labels = inputs.own_labels().unsqueeze(1).expand([b, 2], false).reshape([2 * b]);
            let logits = self.model.logits(&z); // [2b, classes]
            let sum = logits.cross_entropy_loss::<Tensor>(&labels, None, Reduction::Sum, -100, 0.0);
            losses.add(LossTerm::CrossEntropy, self.objective.cross_entropy, sum / (2 * total));
        }
        if let Some(contrastive) = &self.objective.contrastive {
            let labels = unlabelled_apart(&inputs.labels(), 0); // [B]
            // With its width: a rank without images could not guess it.
            let pairs = z.detach().reshape([b, 2, z.size()[1]]); // [b, view, d]
            let (view0, view1) = (pairs.select(1, 0), pairs.select(1, 1));
            let contrasted = contrast_globally(
                self.evaluator.group.as_ref(),
                &view0,
                &view1,
                &labels,
                &comparison(contrastive, Tile::for_anchors(b, z.kind(), z.device())),
            )?;
            // [b, view, d]
            let gradient =
                Tensor::stack(&[contrasted.view0_gradient, contrasted.view1_gradient], 1);
            losses.add_gradient(
                Term {
                    term: LossTerm::Contrastive,
                    weight: contrastive.weight,
                    share: contrasted.value,
                },
                &z,
                &gradient.reshape_as(&z),
            );
        }
        if let (Some(weight), Some(decoder)) = (self.objective.reconstruction, &self.model.decoder)
        {
            let reconstructed = decoder.forward(&z, Mode::Train(&draws))?; // [2b, C, S, S]
            let pixels = total * 2 * images.size()[1..].iter().product::<i64>();
            losses.add(
                LossTerm::Reconstruction,
                weight,
                (reconstructed - &images).square().sum(images.kind()) / pixels,
            );
        }
        Ok(losses)
    }

    fn validation_accuracy(&mut self) -> Result<f64> {
        let data = self.evaluator.data;
        if ValidationMeasure::of_backbone(&self.objective) == ValidationMeasure::CoarseNeighbours {
            return self.evaluator.validation_knn(&[&self.model]);
        }
        let (pack, ids) = data.validation();
        let z = self.evaluator.embed_own(&[&self.model], pack, ids)?;
        self.evaluator.accuracy(&tch::no_grad(|| self.model.logits(&z)), &pack.coarse, ids)
    }

    fn measure(&mut self) -> Result<Measured> {
        let models = [&self.model];
        let metrics = self.evaluator.measure(&models, &self.evaluator.embed_both(&models)?)?;
        Ok(Measured { metrics, fine_test_accuracy: None, files: Vec::new() })
    }
}

fn comparison(contrastive: &Contrastive, tile: Tile) -> Comparison {
    Comparison {
        form: LossForm {
            attract: contrastive.attract,
            spread: contrastive.spread,
            clamp_positive_logits: contrastive.clamp_positive_logits,
            positives_in_denominator: contrastive.positives_in_denominator,
        },
        similarity: match contrastive.similarity {
            thanos_configs::Similarity::Cosine => Similarity::Cosine,
            thanos_configs::Similarity::Dot => Similarity::Dot,
            thanos_configs::Similarity::Reference => Similarity::Reference,
        },
        temperature: contrastive.temperature,
        both_directions: contrastive.both_directions,
        tile,
    }
}
