//! Exact evaluation: every image is counted once, whatever the number of ranks and the batch; ranks
//! report integers. Also what shows how far classes have collapsed: a kNN accuracy and mean
//! cosines.

use crate::data::Data;
use crate::error::{Result, WorkerError};
use crate::failpoints;
use crate::gather::gather_rows;
use crate::model::{Mode, Model};
use crate::pack::Pack;
use crate::session::StopFlag;
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
pub(crate) struct EvalMetrics {
    pub coarse_accuracy: f64,
    pub knn_fine_accuracy: f64,
    /// `None`: no class has two test images.
    pub cosine_within_coarse: Option<f64>,
    pub cosine_within_fine: Option<f64>,
    pub cosine_between_views: f64,
}

/// Embeddings of this rank's slices of the test and training images, [own, d of all encoders
/// together] each.
pub(crate) struct Embedded {
    pub(crate) test: Tensor,
    pub(crate) train: Tensor,
}

/// What an evaluation needs beside models: the images, the other ranks, and whether it should
/// continue.
#[derive(Clone)]
pub(crate) struct Evaluator<'a> {
    pub(crate) data: &'a Data,
    pub(crate) group: Rc<ProcessGroup>,
    /// Looked at between two batches; ranks may see it at different ones.
    pub(crate) stop: StopFlag,
}

impl Evaluator<'_> {
    /// Embeddings of this rank's slice of `ids`, [own, d of all encoders together].
    ///
    /// # Errors
    /// [`WorkerError::StopRequested`], on all ranks alike.
    pub(crate) fn embed_own(&self, models: &[&Model], pack: &Pack, ids: &[u64]) -> Result<Tensor> {
        let data = self.data;
        let width: i64 = models.iter().map(|model| model.encoder.width()).sum();
        let mut parts = vec![Tensor::zeros([0, width], (data.kind(), data.device()))];
        for chunk in self.own_ids(ids).chunks(BATCH).take_while(|_| !self.stop.is_set()) {
            failpoints::pass("embed");
            self.stop.progressed();
            parts.push(embed(models, &data.plain(pack, chunk)?, Mode::Eval)?);
        }
        self.continue_together()?;
        Ok(Tensor::cat(&parts, 0))
    }

    /// Embeddings of this rank's slices of the test and training images.
    ///
    /// # Errors
    /// [`WorkerError::StopRequested`], on all ranks alike.
    pub(crate) fn embed_both(&self, models: &[&Model]) -> Result<Embedded> {
        let data = self.data;
        let test = self.embed_own(models, &data.test, &data.test_ids)?;
        Ok(Embedded { test, train: self.embed_own(models, &data.train, &data.train_ids)? })
    }

    /// Embeddings of `ids` on every rank, [ids, d of all encoders together]; each rank computes its
    /// slice.
    ///
    /// # Errors
    /// [`WorkerError::StopRequested`], on all ranks alike.
    pub(crate) fn embed_all(&self, models: &[&Model], pack: &Pack, ids: &[u64]) -> Result<Tensor> {
        Ok(gather_rows(self.group.as_ref(), &self.embed_own(models, pack, ids)?, ids.len() as i64)?)
    }

    /// Share of the images `ids` whose label of `of` their scores rank first; `scores` [own,
    /// classes] are those of this rank's slice.
    pub(crate) fn accuracy(&self, scores: &Tensor, of: &[i64], ids: &[u64]) -> Result<f64> {
        let labels = self.data.labels(of, self.own_ids(ids));
        let correct = scores.argmax(1, false).eq_tensor(&labels).sum(Kind::Int64).int64_value(&[]);
        Ok(self.sum(correct as f64)? / ids.len() as f64)
    }

    /// Everything that is measured on the test images. `embedded` are this rank's slices, by the
    /// models as they are.
    pub(crate) fn measure(&self, models: &[&Model], embedded: &Embedded) -> Result<EvalMetrics> {
        let _no_graph = tch::no_grad_guard();
        let data = self.data;
        let (test, names) = (&data.test, &data.facts.labels);
        let coarse_accuracy =
            self.accuracy(&coarse_scores(models, &embedded.test), &test.coarse, &data.test_ids)?;
        let tested =
            Labelled { directions: unit(models, &embedded.test), pack: test, ids: &data.test_ids };
        let trained = unit(models, &embedded.train);
        Ok(EvalMetrics {
            coarse_accuracy,
            knn_fine_accuracy: self.knn(
                &tested,
                &trained,
                |pack| &pack.fine,
                names.fine_names.len() as i64,
            )?,
            cosine_within_coarse: self.mean_cosine_within(
                &tested,
                &test.coarse,
                names.coarse_names.len() as i64,
            )?,
            cosine_within_fine: self.mean_cosine_within(
                &tested,
                &test.fine,
                names.fine_names.len() as i64,
            )?,
            cosine_between_views: self.mean_cosine_between_views(models, &data.test_ids)?,
        })
    }

    /// Accuracy on the validation images of the nearest training images' coarse labels: what
    /// selects the best epoch of a backbone whose head is not trained.
    ///
    /// # Errors
    /// [`WorkerError::StopRequested`], on all ranks alike.
    pub(crate) fn validation_knn(&self, models: &[&Model]) -> Result<f64> {
        let _no_graph = tch::no_grad_guard();
        let (pack, ids) = self.data.validation();
        let validation =
            Labelled { directions: unit(models, &self.embed_own(models, pack, ids)?), pack, ids };
        let train = unit(models, &self.embed_own(models, &self.data.train, &self.data.train_ids)?);
        self.knn(
            &validation,
            &train,
            |pack| &pack.coarse,
            self.data.facts.labels.coarse_names.len() as i64,
        )
    }

    /// Accuracy of a vote of the nearest training images by cosine, weighted by exp(cosine / 0.07),
    /// among so many classes of one kind of label.
    ///
    /// Each rank classifies its slice of `queries`, and holds the directions of its slice of the
    /// training images, `train` [own, d].
    /// The slices are broadcast one after the other: no rank holds all of them.
    fn knn(
        &self,
        queries: &Labelled<'_>,
        train: &Tensor,
        labels: impl Fn(&Pack) -> &[i64],
        classes: i64,
    ) -> Result<f64> {
        let ids = &self.data.train_ids;
        let mut nearest = Nearest::to(&queries.directions);
        let size = self.group.size();
        let slices = (0..size).map(|rank| (rank, &ids[rank_slice(ids.len(), rank, size)]));
        // Collectives need at least one row.
        for (rank, slice) in slices.filter(|(_, slice)| !slice.is_empty()) {
            let mut directions = if rank == self.group.rank() {
                train.contiguous()
            } else {
                Tensor::empty([slice.len() as i64, train.size()[1]], like(train))
            };
            self.group.broadcast(&mut directions, rank)?;
            nearest.look_in(
                &directions,
                &self.data.labels(labels(&self.data.train), slice),
                || self.stop.progressed(),
            );
        }
        self.accuracy(&nearest.votes(classes), labels(queries.pack), queries.ids)
    }

    /// Mean cosine over all pairs of different images of one class; `None`: there is no pair.
    fn mean_cosine_within(
        &self,
        images: &Labelled<'_>,
        of: &[i64],
        classes: i64,
    ) -> Result<Option<f64>> {
        let labels = self.data.labels(of, self.own_ids(images.ids));
        let mut sums = class_sums(&images.directions, &labels, classes);
        self.group.all_reduce(&mut sums)?;
        self.group.synchronize()?;
        Ok(mean_cosine(&sums))
    }

    /// Mean cosine between two views of the same test image.
    fn mean_cosine_between_views(&self, models: &[&Model], ids: &[u64]) -> Result<f64> {
        let data = self.data;
        let mut sum = Tensor::zeros([1], (Kind::Double, data.device()));
        for chunk in self.own_ids(ids).chunks(BATCH / 2).take_while(|_| !self.stop.is_set()) {
            self.stop.progressed();
            let views = data.views(&data.test, chunk, 0, 2)?; // [n, 2, C, S, S]
            let directions = unit(models, &embed(models, &views.flatten(0, 1), Mode::Eval)?);
            let pairs = directions.reshape([chunk.len() as i64, 2, -1]);
            sum += (pairs.select(1, 0) * pairs.select(1, 1)).sum(Kind::Double);
        }
        self.continue_together()?;
        Ok(self.sum(sum.double_value(&[0]))? / ids.len() as f64)
    }

    /// This rank's slice of some images.
    pub(crate) fn own_ids<'i>(&self, ids: &'i [u64]) -> &'i [u64] {
        &ids[rank_slice(ids.len(), self.group.rank(), self.group.size())]
    }

    /// The label that their scores rank first of each of the test images, on every rank, [ids];
    /// `scores` [own, classes] are those of this rank's slice.
    pub(crate) fn predictions(&self, scores: &Tensor) -> Result<Tensor> {
        let own = scores.argmax(1, false);
        Ok(gather_rows(self.group.as_ref(), &own, self.data.test_ids.len() as i64)?)
    }

    /// The sum of a number over the ranks; of counts it is exact.
    fn sum(&self, number: f64) -> Result<f64> {
        Ok(self.group.sum(&[number])?.into_iter().sum())
    }

    /// Whether some rank has skipped images, so that all give up what they measure.
    pub(crate) fn continue_together(&self) -> Result<()> {
        let set = self.sum(f64::from(u8::from(self.stop.is_set())))?;
        if set > 0.0 { Err(WorkerError::StopRequested) } else { Ok(()) }
    }
}

/// Images of a pack, and the unit directions of this rank's slice of them, [own, d].
struct Labelled<'a> {
    directions: Tensor,
    pack: &'a Pack,
    ids: &'a [u64],
}

/// The nearest of the images that were looked at so far, for each of some unit directions.
struct Nearest<'a> {
    /// [n, d].
    directions: &'a Tensor,
    /// For each [`KNN_ROWS`] rows: cosines and labels of their neighbours, [rows, at most
    /// [`NEIGHBOURS`]].
    chunks: Vec<(Tensor, Tensor)>,
}

impl<'a> Nearest<'a> {
    fn to(directions: &'a Tensor) -> Self {
        let none = |rows: i64, kind: Kind| Tensor::zeros([rows, 0], (kind, directions.device()));
        let n = directions.size()[0];
        let rows = (0..n).step_by(KNN_ROWS as usize).map(|from| KNN_ROWS.min(n - from));
        let chunks =
            rows.map(|rows| (none(rows, directions.kind()), none(rows, Kind::Int64))).collect();
        Self { directions, chunks }
    }

    /// Looks among more images, of directions [m, d] and labels [m]. `progressed` is called for
    /// each chunk.
    fn look_in(&mut self, directions: &Tensor, labels: &Tensor, progressed: impl Fn()) {
        for (at, (cosines, neighbours)) in self.chunks.iter_mut().enumerate() {
            progressed();
            let rows = self.directions.narrow(0, at as i64 * KNN_ROWS, cosines.size()[0]);
            let found = rows.matmul(&directions.tr()); // [rows, m]
            // [rows, k]
            let (found, at) = found.topk(NEIGHBOURS.min(labels.size()[0]), 1, true, true);
            let all = Tensor::cat(&[&*cosines, &found], 1);
            let all_labels = Tensor::cat(&[&*neighbours, &labels.take(&at)], 1);
            let (best, at) = all.topk(NEIGHBOURS.min(all.size()[1]), 1, true, true);
            (*cosines, *neighbours) = (best, all_labels.gather(1, &at, false));
        }
    }

    /// Sums of the neighbours' votes, [n, classes].
    fn votes(&self, classes: i64) -> Tensor {
        let like = like(self.directions);
        let mut votes = vec![Tensor::zeros([0, classes], like)];
        votes.extend(self.chunks.iter().map(|(cosines, labels)| {
            let none = Tensor::zeros([cosines.size()[0], classes], like);
            none.scatter_add(1, labels, &(cosines / VOTE_TEMPERATURE).exp())
        }));
        Tensor::cat(&votes, 0)
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
            Mode::Train(draws) => {
                model.encoder.forward(images, Mode::Train(&draws.of_network(network as u32)))?
            }
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

/// Rows of length 1, each encoder's part of length 1 / sqrt(encoders): a cosine is the mean of
/// theirs.
pub(crate) fn unit(models: &[&Model], embeddings: &Tensor) -> Tensor {
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

/// For each class the sum of its rows' directions, and their number in the last column:
/// [classes, d + 1], float64.
fn class_sums(directions: &Tensor, labels: &Tensor, classes: i64) -> Tensor {
    let directions = directions.to_kind(Kind::Double);
    let counted = Tensor::cat(
        &[&directions, &directions.new_ones([directions.size()[0], 1], like(&directions))],
        1,
    );
    Tensor::zeros([classes, counted.size()[1]], like(&directions)).index_add(0, labels, &counted)
}

/// Mean cosine over all pairs of different rows of one class, from [`class_sums`]: 1 where every
/// class is a point; `None`: there is no pair.
///
/// For a class of n unit rows with sum s, the pairs' cosines sum to |s|^2 - n.
fn mean_cosine(class_sums: &Tensor) -> Option<f64> {
    let width = class_sums.size()[1] - 1;
    let (sums, counts) = (class_sums.narrow(1, 0, width), class_sums.select(1, width));
    let cosines = sums.square().sum(Kind::Double) - counts.sum(Kind::Double);
    let pairs = (&counts * (&counts - 1.0)).sum(Kind::Double).double_value(&[]);
    (pairs > 0.0).then(|| cosines.double_value(&[]) / pairs)
}

/// Kind and device of a tensor.
fn like(tensor: &Tensor) -> (Kind, tch::Device) {
    (tensor.kind(), tensor.device())
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
        let mean = mean_cosine(&class_sums(&directions(&[0.0, 1.0, 0.5, 0.5, 3.0]), &labels, 3))
            .expect("two pairs");
        assert!((mean - (1.0_f64.cos() + 1.0) / 2.0).abs() < 1e-12, "{mean}");
    }

    #[test]
    fn without_a_pair_there_is_no_mean() {
        let labels = Tensor::from_slice(&[2_i64, 0, 1]);
        assert_eq!(mean_cosine(&class_sums(&directions(&[0.0, 1.0, 2.0]), &labels, 3)), None);
    }

    #[test]
    fn neighbours_of_slices_are_those_of_the_whole() {
        tch::manual_seed(1);
        let unit = |n: i64| {
            let rows = Tensor::randn([n, 5], (Kind::Double, tch::Device::Cpu));
            &rows / rows.norm_scalaropt_dim(2, &[1_i64][..], true)
        };
        let (queries, train) = (unit(KNN_ROWS + 3), unit(100));
        let labels = Tensor::randint(4, [100], (Kind::Int64, tch::Device::Cpu));
        let votes = |slices: &[i64]| {
            let mut nearest = Nearest::to(&queries);
            let mut from = 0;
            for len in slices {
                nearest.look_in(&train.narrow(0, from, *len), &labels.narrow(0, from, *len), || {});
                from += len;
            }
            nearest.votes(4)
        };
        let whole = votes(&[100]);
        // The same by hand: all cosines sorted, the first votes.
        let (cosines, order) = queries.matmul(&train.tr()).sort(1, true);
        let cast = (cosines.narrow(1, 0, NEIGHBOURS) / VOTE_TEMPERATURE).exp();
        let expected = Tensor::zeros([KNN_ROWS + 3, 4], (Kind::Double, tch::Device::Cpu))
            .scatter_add(1, &labels.take(&order.narrow(1, 0, NEIGHBOURS)), &cast);
        assert!(whole.allclose(&expected, 1e-12, 0.0, false));
        for slices in [&[50, 50][..], &[7, 0, 93], &[1, 2, 97], &[34, 33, 33]] {
            assert!(votes(slices).allclose(&expected, 1e-12, 0.0, false), "{slices:?}");
        }
    }
}
