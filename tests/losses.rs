//! The contrastive loss against itself: its closed-form gradient against finite differences of its
//! value, for every form; every size of tile; several ranks against one. The golden vectors say
//! that the value is the right one.

use crate::exchanges::{Ranks, SingleRank, Summing};
use crate::nearness::relative_error;
use crate::rerun::{NO_RECORDER, has_or_reran};
use std::ops::Range;
use tch::{Kind, Tensor};
use thanos_configs::{SplitMix64, rank_slice};
use thanos_worker::loss::{LossForm, Similarity, Tile, unlabelled_apart};
use thanos_worker::{Comparison, Contrasted, Exchange, contrast_globally};

/// Summation orders differ; nothing else may.
const SAME: f64 = 1e-12;

/// Values and gradients are either larger than this or zero, but for rounding.
const MIN_NORM: f64 = 1e-2;

/// A global batch as plain numbers, which threads can share.
struct Batch {
    d: usize,
    /// [B, d] each, uniform in [-1, 1).
    views: [Vec<f64>; 2],
    /// [B]; -1: unlabelled.
    labels: Vec<i64>,
}

impl Batch {
    fn new(labels: &[i64], d: usize) -> Self {
        let mut stream = SplitMix64::new(7);
        let mut view = || (0..labels.len() * d).map(|_| stream.uniform(-1.0, 1.0)).collect();
        Self { d, views: [view(), view()], labels: labels.to_vec() }
    }

    /// The loss of these rows, which must be what the exchange's rank holds.
    fn contrast(
        &self,
        exchange: &dyn Exchange,
        rows: Range<usize>,
        comparison: &Comparison,
    ) -> Contrasted {
        let view = |view: &[f64]| {
            let part = &view[rows.start * self.d..rows.end * self.d];
            Tensor::from_slice(part).reshape([rows.len() as i64, self.d as i64])
        };
        let labels = unlabelled_apart(&Tensor::from_slice(&self.labels), 0);
        let [view0, view1] = &self.views;
        contrast_globally(exchange, &view(view0), &view(view1), &labels, comparison)
            .expect("a loss")
    }

    fn contrast_alone(&self, comparison: &Comparison) -> Contrasted {
        self.contrast(&SingleRank, 0..self.labels.len(), comparison)
    }

    /// [2, B, d]: of view 0 and of view 1, by central differences.
    fn finite_differences(&mut self, comparison: &Comparison) -> Tensor {
        const STEP: f64 = 1e-5;
        let mut gradient = Vec::new();
        for view in 0..2 {
            for at in 0..self.views[view].len() {
                let held = self.views[view][at];
                let mut value_at = |moved: f64| {
                    self.views[view][at] = moved;
                    self.contrast_alone(comparison).value.double_value(&[])
                };
                gradient.push((value_at(held + STEP) - value_at(held - STEP)) / (2.0 * STEP));
                self.views[view][at] = held;
            }
        }
        Tensor::from_slice(&gradient).reshape([2, self.labels.len() as i64, self.d as i64])
    }
}

/// Labels of batches that no tile below divides and in which a mask, a mean or a logarithm may be
/// empty.
fn labellings() -> [(&'static str, Vec<i64>); 5] {
    [
        ("three classes", vec![0, 2, 1, 1, 0, 2, 2, 0, 1, 0, 0]),
        ("one class", vec![4; 11]),
        ("a class a point", (0..11).collect()),
        ("some unlabelled", vec![0, -1, 1, 1, -1, 0, -1, 0, 1, 0, -1]),
        ("none labelled", vec![-1; 11]),
    ]
}

/// Every form of the loss.
fn comparisons() -> Vec<(String, Comparison)> {
    let form = |attract: f64, spread: f64, clamp: Option<f64>, positives_in_denominator: bool| {
        LossForm { attract, spread, clamp_positive_logits: clamp, positives_in_denominator }
    };
    let forms = [
        form(1.0, 0.0, None, false),
        form(0.0, 1.0, None, false),
        form(1.0, 1.0, None, false),
        form(0.75, 0.25, Some(0.3), false),
        form(2.0, 0.0, Some(0.3), false),
        form(1.0, 0.0, None, true),
        form(1.0, 1.0, Some(0.3), true),
    ];
    let mut comparisons = Vec::new();
    for form in forms {
        for similarity in [Similarity::Cosine, Similarity::Dot, Similarity::Reference] {
            for both_directions in [false, true] {
                let comparison = Comparison {
                    form,
                    similarity,
                    temperature: 0.5,
                    both_directions,
                    tile: Tile::square(1024),
                };
                comparisons.push((format!("{comparison:?}"), comparison));
            }
        }
    }
    comparisons
}

/// The greatest relative error of value and gradients; parts of a global loss are put together
/// first.
fn deviation(parts: &[&Contrasted], expected: &Contrasted) -> f64 {
    let value = parts.iter().map(|part| part.value.double_value(&[])).sum::<f64>();
    let joined = |of: fn(&Contrasted) -> &Tensor| {
        let rows: Vec<&Tensor> = parts.iter().map(|part| of(part)).collect();
        relative_error(&Tensor::cat(&rows, 0), of(expected), MIN_NORM)
    };
    relative_error(&Tensor::from(value), &expected.value, MIN_NORM)
        .max(joined(|part| &part.view0_gradient))
        .max(joined(|part| &part.view1_gradient))
}

#[test]
fn the_gradient_is_that_of_the_value() {
    for (labelling, labels) in labellings() {
        for (name, comparison) in comparisons() {
            let comparison = Comparison { tile: Tile::square(4), ..comparison };
            let mut batch = Batch::new(&labels[..6], 3);
            let expected = batch.finite_differences(&comparison);
            let found = batch.contrast_alone(&comparison);
            let found = Tensor::stack(&[found.view0_gradient, found.view1_gradient], 0);
            let worst = (&found - &expected).abs().max().double_value(&[]);
            assert!(
                worst < 1e-8,
                "{labelling}, {name}: off by {worst:.1e} from finite differences"
            );
        }
    }
}

#[test]
fn the_tile_changes_nothing() {
    for (labelling, labels) in labellings() {
        let batch = Batch::new(&labels, 4);
        let all = labels.len() as i64;
        for (name, comparison) in comparisons() {
            let expected = batch.contrast_alone(&comparison);
            let square = [1, 2, 3, 5, 7, all, all + 1].map(Tile::square);
            for tile in square
                .into_iter()
                .chain([Tile { rows: 2, columns: 5 }, Tile { rows: 4, columns: all }])
            {
                let found = batch.contrast_alone(&Comparison { tile, ..comparison });
                let off = deviation(&[&found], &expected);
                assert!(off < SAME, "{labelling}, {tile:?}, {name}: off by {off:.1e}");
            }
        }
    }
}

/// The deviation of `size` ranks from one, for every form in turn.
fn deviations_of_ranks(ranks: Ranks, size: usize, batch: &Batch) -> Vec<(String, f64)> {
    let found: Vec<Vec<Contrasted>> = ranks.run(size, |exchange| {
        let rows = rank_slice(batch.labels.len(), exchange.rank(), exchange.size());
        let contrast = |comparison| {
            batch.contrast(
                exchange,
                rows.clone(),
                &Comparison { tile: Tile::square(3), ..comparison },
            )
        };
        comparisons().into_iter().map(|(_, comparison)| contrast(comparison)).collect()
    });
    let deviation_of = |at: usize, comparison: &Comparison| {
        let parts: Vec<&Contrasted> = found.iter().map(|rank| &rank[at]).collect();
        deviation(&parts, &batch.contrast_alone(comparison))
    };
    comparisons()
        .into_iter()
        .enumerate()
        .map(|(at, (name, form))| (name, deviation_of(at, &form)))
        .collect()
}

fn check_ranks(ranks: Ranks, labellings: &[(&str, Vec<i64>)]) {
    for size in [2, 3, 5] {
        for (labelling, labels) in labellings {
            for images in [11, 4] {
                let batch = Batch::new(&labels[..images], 4);
                for (name, off) in deviations_of_ranks(ranks, size, &batch) {
                    assert!(
                        off < SAME,
                        "{size} x {ranks:?}, {images} images, {labelling}, {name}: off by {off:.1e}"
                    );
                }
            }
        }
    }
}

#[test]
fn ranks_agree_with_one() {
    check_ranks(Ranks::Channels(Summing::Right), &labellings());
}

#[test]
fn ranks_of_a_gloo_group_agree_with_one() {
    if has_or_reran("losses::ranks_of_a_gloo_group_agree_with_one", NO_RECORDER) {
        check_ranks(Ranks::Gloo, &labellings()[..1]);
    }
}

/// The comparison above can fail: both usual mistakes are eight orders of magnitude outside what it
/// allows.
#[test]
fn a_wrong_sum_over_ranks_is_noticed() {
    let (labelling, labels) = &labellings()[0];
    let batch = Batch::new(labels, 4);
    for size in [2, 3, 5] {
        for summing in [Summing::Mean, Summing::OwnShare] {
            for (name, off) in deviations_of_ranks(Ranks::Channels(summing), size, &batch) {
                assert!(
                    off > 1e8 * SAME,
                    "{size} ranks, {summing:?}, {labelling}, {name}: only off by {off:.1e}"
                );
            }
        }
    }
}

/// float32 is what trains: the gradient's error stays at that type's resolution, also over many
/// tiles.
#[test]
fn single_precision_is_near_double() {
    let labels: Vec<i64> = (0..300).map(|i| i * i % 7).collect();
    let batch = Batch::new(&labels, 16);
    let [view0, view1] =
        batch.views.each_ref().map(|view| Tensor::from_slice(view).reshape([300, 16]));
    let labels = Tensor::from_slice(&labels);
    for (name, comparison) in comparisons() {
        let comparison = Comparison { tile: Tile::square(64), ..comparison };
        let contrast = |kind| {
            contrast_globally(
                &SingleRank,
                &view0.to_kind(kind),
                &view1.to_kind(kind),
                &labels,
                &comparison,
            )
            .expect("a loss")
        };
        let off = deviation(&[&contrast(Kind::Float)], &contrast(Kind::Double));
        assert!(off < 1e-5, "{name}: off by {off:.1e}");
    }
}
