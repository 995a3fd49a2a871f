//! The contrastive loss over the ranks: every rank's candidates to all, every candidate's gradient
//! back to its owner.
//!
//! The gather's backward is a SUM: each rank's loss is its anchors' share of the global mean, and a
//! candidate is in the rows of all ranks. Batches need not divide evenly: rows are padded to the
//! longest slice and cut again.

use crate::loss::{Contrast, LossForm, Similarity, Tile, contrast};
use anyhow::Result;
use tch::Tensor;
use thanos_c10d::ProcessGroup;
use thanos_configs::rank_slice;

/// What the loss needs of the group.
pub trait Exchange {
    fn rank(&self) -> usize;
    fn size(&self) -> usize;
    /// [n, ...] of every rank, concatenated in rank order.
    fn all_gather(&self, input: &Tensor) -> Result<Tensor>;
    /// This rank's [n, ...] of the sum over the ranks of [size * n, ...].
    fn reduce_scatter(&self, input: &Tensor) -> Result<Tensor>;
}

impl Exchange for ProcessGroup {
    fn rank(&self) -> usize {
        ProcessGroup::rank(self)
    }

    fn size(&self) -> usize {
        ProcessGroup::size(self)
    }

    fn all_gather(&self, input: &Tensor) -> Result<Tensor> {
        Ok(ProcessGroup::all_gather(self, input)?)
    }

    fn reduce_scatter(&self, input: &Tensor) -> Result<Tensor> {
        Ok(ProcessGroup::reduce_scatter(self, input)?)
    }
}

/// One rank's part of a global batch: the loss's share and its gradients.
pub struct Contrasted {
    /// Sum over this rank's anchors, divided by all anchors: the ranks' sum is the global loss.
    /// Float64 scalar.
    pub value: Tensor,
    /// [b, d], exact gradients of the *global* loss.
    pub view0_gradient: Tensor,
    pub view1_gradient: Tensor,
}

/// How views are compared.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Comparison {
    pub form: LossForm,
    pub similarity: Similarity,
    pub temperature: f64,
    /// Also take view 0 as anchors, and halve.
    pub both_directions: bool,
    pub tile: Tile,
}

/// The contrastive loss of a global batch of B images, of which this rank holds `rank_slice(B)`.
///
/// `view0` (candidates) and `view1` (anchors) [b, d]; `labels` [B] i64 of the *global* batch,
/// unlabelled points apart.
pub fn contrast_globally(
    exchange: &dyn Exchange,
    view0: &Tensor,
    view1: &Tensor,
    labels: &Tensor,
    comparison: &Comparison,
) -> Result<Contrasted> {
    let _no_graph = tch::no_grad_guard();
    let forward = one_direction(exchange, (view1, view0), labels, comparison)?;
    let (value, view1_gradient, view0_gradient) = forward;
    if !comparison.both_directions {
        return Ok(Contrasted { value, view0_gradient, view1_gradient });
    }
    let (back, back0, back1) = one_direction(exchange, (view0, view1), labels, comparison)?;
    Ok(Contrasted {
        value: (value + back) / 2.0,
        view0_gradient: (view0_gradient + back0) / 2.0,
        view1_gradient: (view1_gradient + back1) / 2.0,
    })
}

/// (value, gradient of the anchors, gradient of the candidates) with these roles.
fn one_direction(
    exchange: &dyn Exchange,
    (anchors, candidates): (&Tensor, &Tensor),
    labels: &Tensor,
    comparison: &Comparison,
) -> Result<(Tensor, Tensor, Tensor)> {
    let total = labels.size()[0];
    let prepared = comparison.similarity.prepare(anchors, candidates, comparison.temperature);
    let gathered = gather_rows(exchange, &prepared.candidates, total)?; // [B, d]
    let own = rank_slice(total as usize, exchange.rank(), exchange.size());
    let rows = Contrast {
        anchors: &prepared.anchors,
        candidates: &gathered,
        labels,
        own: own.start as i64,
    };
    let (value, anchors_gradient, shares) =
        contrast(rows, &comparison.form, total, comparison.tile);
    let candidates_gradient = sum_to_owners(exchange, &shares)?; // [b, d]
    let (du, dw) = prepared.finish(&anchors_gradient, &candidates_gradient);
    Ok((value, du, dw))
}

/// Rows of all ranks in rank order: this rank's [b, ...] to [total, ...].
pub fn gather_rows(exchange: &dyn Exchange, rows: &Tensor, total: i64) -> Result<Tensor> {
    let slices = slices(total, exchange.size());
    let longest = longest(&slices);
    if are_equal(&slices) {
        return exchange.all_gather(rows);
    }
    let gathered = exchange.all_gather(&padded(rows, longest))?;
    let parts: Vec<Tensor> = slices
        .iter()
        .enumerate()
        .map(|(rank, slice)| gathered.narrow(0, rank as i64 * longest, slice.1))
        .collect();
    Ok(Tensor::cat(&parts, 0))
}

/// The sum over the ranks of `rows` [total, ...], each rank receiving the slice that it owns.
fn sum_to_owners(exchange: &dyn Exchange, rows: &Tensor) -> Result<Tensor> {
    let slices = slices(rows.size()[0], exchange.size());
    let longest = longest(&slices);
    if are_equal(&slices) {
        return exchange.reduce_scatter(rows);
    }
    let parts: Vec<Tensor> =
        slices.iter().map(|&(start, len)| padded(&rows.narrow(0, start, len), longest)).collect();
    let summed = exchange.reduce_scatter(&Tensor::cat(&parts, 0))?;
    Ok(summed.narrow(0, 0, slices[exchange.rank()].1))
}

/// (first row, rows) of every rank.
fn slices(total: i64, size: usize) -> Vec<(i64, i64)> {
    (0..size)
        .map(|rank| rank_slice(total as usize, rank, size))
        .map(|slice| (slice.start as i64, slice.len() as i64))
        .collect()
}

/// Whether all ranks hold as many rows, so that nothing is padded.
fn are_equal(slices: &[(i64, i64)]) -> bool {
    slices.iter().all(|slice| slice.1 > 0 && slice.1 == slices[0].1)
}

/// Collectives need at least one row.
fn longest(slices: &[(i64, i64)]) -> i64 {
    slices.iter().map(|slice| slice.1).max().unwrap_or(0).max(1)
}

fn padded(rows: &Tensor, len: i64) -> Tensor {
    let mut shape = rows.size();
    shape[0] = len - shape[0];
    Tensor::cat(&[rows.shallow_clone(), Tensor::zeros(&shape, (rows.kind(), rows.device()))], 0)
}
