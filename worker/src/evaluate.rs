//! Exact evaluation: every image is counted once, whatever the number of ranks and the batch; ranks report integers.
//! Also what shows how far classes have collapsed: a kNN accuracy and mean cosines.

use crate::data::Data;
use crate::failpoints;
use crate::gather::gather_rows;
use crate::model::{Mode, Model};
use crate::pack::Pack;
use crate::session::StopFlag;
use anyhow::Result;
use std::ops::Range;
use std::rc::Rc;
use tch::{Kind, Tensor};
use thanos_c10d::ProcessGroup;
use thanos_configs::rank_slice;

/// Images through the encoder at a time.
const BATCH: usize = 256;
/// Neighbours that vote, and the temperature of their votes (Wu et al., CVPR 2018, section 4.1).
const NEIGHBOURS: i64 = 20;
const VOTE_TEMPERATURE: f64 = 0.07;
/// Test images whose neighbours are looked up at a time.
const KNN_ROWS: i64 = 256;

/// What evaluation asks of a set of frozen or trained encoders.
pub(crate) struct Measures {
    pub coarse_accuracy: f64,
    pub knn_fine_accuracy: f64,
    /// `None`: no class has two test images.
    pub cosine_within_coarse: Option<f64>,
    pub cosine_within_fine: Option<f64>,
    pub cosine_between_views: f64,
}

/// A stop was asked for while images were embedded: what was to be measured is left for another time, on all ranks.
#[derive(Debug, thiserror::Error)]
#[error("a stop was asked for")]
pub(crate) struct StopAsked;

/// What an evaluation needs beside models: the images, the other ranks, and whether it should go on.
#[derive(Clone)]
pub(crate) struct Judge<'a> {
    pub(crate) data: &'a Data,
    pub(crate) group: Rc<ProcessGroup>,
    /// Looked at between two batches; ranks may see it at different ones.
    pub(crate) stop: StopFlag,
}

impl Judge<'_> {
    /// Embeddings of `ids` on every rank, [ids, d of all encoders together]; each rank computes its slice.
    ///
    /// # Errors
    /// [`StopAsked`], on all ranks alike.
    pub(crate) fn embed_all(&self, models: &[&Model], pack: &Pack, ids: &[u64]) -> Result<Tensor> {
        let data = self.data;
        let width: i64 = models.iter().map(|model| model.encoder.width()).sum();
        let mut parts = vec![Tensor::zeros([0, width], (data.kind(), data.device()))];
        for chunk in ids[self.own(ids.len())].chunks(BATCH).take_while(|_| !self.stop.is_set()) {
            failpoints::pass("embed");
            self.stop.progressed();
            parts.push(embed(models, &data.plain(pack, chunk)?, Mode::Eval)?);
        }
        self.go_on_together()?;
        gather_rows(self.group.as_ref(), &Tensor::cat(&parts, 0), ids.len() as i64)
    }

    /// Share of `labels` [n] that `scores` [n, classes] rank first.
    ///
    /// Each rank counts its slice, and the counts are summed: rows are the same on all ranks.
    pub(crate) fn accuracy(&self, scores: &Tensor, labels: &Tensor) -> Result<f64> {
        let n = labels.size()[0];
        let own = self.own(n as usize);
        let (start, len) = (own.start as i64, own.len() as i64);
        let chosen = scores.narrow(0, start, len).argmax(1, false);
        let correct = chosen.eq_tensor(&labels.narrow(0, start, len)).sum(Kind::Int64).int64_value(&[]);
        Ok(self.sum(correct as f64)? / n as f64)
    }

    /// Everything that is measured on the test images, from the models' weights as they are.
    pub(crate) fn measure(&self, models: &[&Model]) -> Result<Measures> {
        let _no_graph = tch::no_grad_guard();
        let data = self.data;
        let test_ids = &data.test_ids;
        let test = self.embed_all(models, &data.test, test_ids)?;
        let train = self.embed_all(models, &data.train, &data.train_ids)?;
        let fine = data.labels(&data.test.fine, test_ids);
        let coarse = data.labels(&data.test.coarse, test_ids);
        let train_fine = data.labels(&data.train.fine, &data.train_ids);
        let directions = unit(models, &test);
        Ok(Measures {
            coarse_accuracy: self.accuracy(&coarse_scores(models, &test), &coarse)?,
            knn_fine_accuracy: {
                let classes = data.facts.labels.fine_names.len() as i64;
                self.knn((&directions, &fine), (&unit(models, &train), &train_fine), classes)?
            },
            cosine_within_coarse: mean_cosine_within(&directions, &coarse),
            cosine_within_fine: mean_cosine_within(&directions, &fine),
            cosine_between_views: self.mean_cosine_between_views(models, test_ids)?,
        })
    }

    /// Accuracy on the validation images of the nearest training images' coarse labels: what selects the best epoch of a
    /// backbone whose head is not trained.
    ///
    /// # Errors
    /// [`StopAsked`], on all ranks alike.
    pub(crate) fn validation_knn(&self, models: &[&Model]) -> Result<f64> {
        let _no_graph = tch::no_grad_guard();
        let data = self.data;
        let (pack, ids) = data.validation();
        let validation = unit(models, &self.embed_all(models, pack, ids)?);
        let train = unit(models, &self.embed_all(models, &data.train, &data.train_ids)?);
        let labels = data.labels(&pack.coarse, ids);
        let train_labels = data.labels(&data.train.coarse, &data.train_ids);
        self.knn((&validation, &labels), (&train, &train_labels), data.facts.labels.coarse_names.len() as i64)
    }

    /// Accuracy of a vote of the nearest training images by cosine, weighted by exp(cosine / 0.07).
    ///
    /// `test` and `train` are unit rows [n, d] with their labels [n], of so many classes; each rank judges its slice of
    /// `test`.
    fn knn(
        &self,
        (test, labels): (&Tensor, &Tensor),
        (train, train_labels): (&Tensor, &Tensor),
        classes: i64,
    ) -> Result<f64> {
        let n = test.size()[0];
        let own = self.own(n as usize);
        let neighbours = NEIGHBOURS.min(train.size()[0]);
        let mut correct = 0;
        for from in (own.start as i64..own.end as i64).step_by(KNN_ROWS as usize) {
            self.stop.progressed();
            let rows = KNN_ROWS.min(own.end as i64 - from);
            let (cosines, nearest) = test.narrow(0, from, rows).matmul(&train.tr()).topk(neighbours, 1, true, true); // [rows, k]
            let votes = Tensor::zeros([rows, classes], (test.kind(), test.device())).scatter_add(
                1,
                &train_labels.take(&nearest),
                &(cosines / VOTE_TEMPERATURE).exp(),
            );
            let chosen = votes.argmax(1, false);
            correct += chosen.eq_tensor(&labels.narrow(0, from, rows)).sum(Kind::Int64).int64_value(&[]);
        }
        Ok(self.sum(correct as f64)? / n as f64)
    }

    /// Mean cosine between two views of the same test image.
    fn mean_cosine_between_views(&self, models: &[&Model], ids: &[u64]) -> Result<f64> {
        let data = self.data;
        let mut sum = Tensor::zeros([1], (Kind::Double, data.device()));
        for chunk in ids[self.own(ids.len())].chunks(BATCH / 2).take_while(|_| !self.stop.is_set()) {
            self.stop.progressed();
            let views = data.views(&data.test, chunk, 0, 2)?; // [n, 2, C, S, S]
            let directions = unit(models, &embed(models, &views.flatten(0, 1), Mode::Eval)?);
            let pairs = directions.reshape([chunk.len() as i64, 2, -1]);
            sum += (pairs.select(1, 0) * pairs.select(1, 1)).sum(Kind::Double);
        }
        self.go_on_together()?;
        Ok(self.sum(sum.double_value(&[0]))? / ids.len() as f64)
    }

    /// This rank's part of n rows.
    fn own(&self, n: usize) -> Range<usize> {
        rank_slice(n, self.group.rank(), self.group.size())
    }

    /// The sum of a number over the ranks; of counts it is exact.
    fn sum(&self, number: f64) -> Result<f64> {
        Ok(self.group.sum(&[number])?.into_iter().sum())
    }

    /// Whether some rank has left images out, so that all give up what they measure.
    fn go_on_together(&self) -> Result<()> {
        let set = self.sum(f64::from(u8::from(self.stop.is_set())))?;
        if set > 0.0 { Err(StopAsked.into()) } else { Ok(()) }
    }
}

/// Embeddings of images by all encoders, concatenated: [n, C, S, S] to [n, d]. No graph is kept.
///
/// # Errors
/// If a peer is lost while the encoders sum their statistics.
pub(crate) fn embed(models: &[&Model], images: &Tensor, mode: Mode<'_>) -> Result<Tensor> {
    let _no_graph = tch::no_grad_guard();
    let mut parts = Vec::new();
    for (network, model) in models.iter().enumerate() {
        parts.push(match mode {
            Mode::Eval => model.encoder.forward(images, Mode::Eval)?,
            Mode::Train(draws) => model.encoder.forward(images, Mode::Train(&draws.of_network(network as u32)))?,
        });
    }
    Ok(Tensor::cat(&parts, 1))
}

/// Mean of the class probabilities of the models' own coarse heads, [n, coarse classes].
fn coarse_scores(models: &[&Model], embeddings: &Tensor) -> Tensor {
    let mut from = 0;
    let probabilities: Vec<Tensor> = models
        .iter()
        .map(|model| {
            let part = embeddings.narrow(1, from, model.encoder.width());
            from += model.encoder.width();
            model.logits(&part).softmax(1, part.kind())
        })
        .collect();
    Tensor::stack(&probabilities, 0).mean_dim(&[0_i64][..], false, None::<Kind>)
}

/// Rows of length 1, each encoder's part of length 1 / sqrt(encoders): a cosine is the mean of theirs.
fn unit(models: &[&Model], embeddings: &Tensor) -> Tensor {
    let mut from = 0;
    let share = 1.0 / (models.len() as f64).sqrt();
    let parts: Vec<Tensor> = models
        .iter()
        .map(|model| {
            let part = embeddings.narrow(1, from, model.encoder.width());
            from += model.encoder.width();
            let norm = part.norm_scalaropt_dim(2, &[1_i64][..], true).clamp_min(1e-12);
            part / norm * share
        })
        .collect();
    Tensor::cat(&parts, 1)
}

/// Mean cosine over all pairs of different images of one class: 1 where every class is a point; `None`: there is no pair.
///
/// For a class of n unit rows with sum s, the pairs' cosines sum to |s|^2 - n.
fn mean_cosine_within(directions: &Tensor, labels: &Tensor) -> Option<f64> {
    let classes = labels.max().int64_value(&[]) + 1;
    let like = (Kind::Double, directions.device());
    let directions = directions.to_kind(Kind::Double);
    let sums = Tensor::zeros([classes, directions.size()[1]], like).index_add(0, labels, &directions);
    let counts = labels.bincount::<Tensor>(None, classes).to_kind(Kind::Double);
    let cosines = sums.square().sum(Kind::Double) - counts.sum(Kind::Double);
    let pairs = (&counts * (&counts - 1.0)).sum(Kind::Double).double_value(&[]);
    (pairs > 0.0).then(|| cosines.double_value(&[]) / pairs)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows of length 1 in two dimensions, by their angles.
    fn directions(angles: &[f64]) -> Tensor {
        let rows: Vec<f64> = angles.iter().flat_map(|angle| [angle.cos(), angle.sin()]).collect();
        Tensor::from_slice(&rows).reshape([-1, 2])
    }

    #[test]
    fn a_mean_cosine_is_over_the_pairs_of_each_class() {
        let labels = Tensor::from_slice(&[0_i64, 0, 2, 2, 1]);
        let mean = mean_cosine_within(&directions(&[0.0, 1.0, 0.5, 0.5, 3.0]), &labels).expect("two pairs");
        assert!((mean - (1.0_f64.cos() + 1.0) / 2.0).abs() < 1e-12, "{mean}");
    }

    #[test]
    fn without_a_pair_there_is_no_mean() {
        let labels = Tensor::from_slice(&[2_i64, 0, 1]);
        assert_eq!(mean_cosine_within(&directions(&[0.0, 1.0, 2.0]), &labels), None);
    }
}
