//! Whether all ranks hold the same state, bit by bit. They should by construction; memory that has
//! gone bad, a driver or a bug may say otherwise, and then the results are invalid.

use crate::tensors::{StateDict, common_device, devices};
use anyhow::Result;
use std::fmt;
use tch::{Kind, Tensor};
use thanos_c10d::ProcessGroup;

/// Ranks whose state is not that of the majority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Diverged {
    pub(crate) ranks: Vec<usize>,
    /// The lowest rank of the majority.
    pub(crate) trusted: usize,
    /// The first tensor that differs.
    pub(crate) tensor: String,
}

impl fmt::Display for Diverged {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ranks: Vec<String> = self.ranks.iter().map(ToString::to_string).collect();
        write!(
            out,
            "`{}` of rank {} is not that of rank {}",
            self.tensor,
            ranks.join(", "),
            self.trusted
        )
    }
}

/// Compares the ranks' tensors; all ranks get the same answer. `None`: they are equal. Only where
/// one sum over everything differs is it asked which tensor it is.
///
/// # Errors
/// If a peer is lost.
pub(crate) fn diverged(state: &StateDict, group: &ProcessGroup) -> Result<Option<Diverged>> {
    if group.size() == 1 {
        return Ok(None);
    }
    common_device(devices(state))?;
    let whole = group.gather(&[bit_sum(&state.values().collect::<Vec<_>>())])?;
    if whole.iter().all(|row| *row == whole[0]) {
        return Ok(None);
    }
    let sums: Vec<i64> = state.values().map(|tensor| bit_sum(&[tensor])).collect();
    let all = group.gather(&sums)?; // [ranks, tensors]
    Ok(minority(&all).map(|(ranks, trusted, tensor)| {
        let tensor = state.keys().nth(tensor).cloned().unwrap_or_default();
        Diverged { ranks, trusted, tensor }
    }))
}

/// The sum of the bits of tensors one after the other, as integers with weights by their place, so
/// that two that are exchanged are seen. A few kernels, however many tensors there are.
fn bit_sum(tensors: &[&Tensor]) -> i64 {
    let _no_graph = tch::no_grad_guard();
    let of = |kind: Kind| -> Option<Tensor> {
        let rows: Vec<Tensor> = tensors
            .iter()
            .filter(|tensor| tensor.kind() == kind)
            .map(|tensor| tensor.reshape(-1))
            .collect();
        (!rows.is_empty()).then(|| Tensor::cat(&rows, 0))
    };
    let bits = [
        of(Kind::Float).map(|row| row.view_dtype(Kind::Int).to_kind(Kind::Int64)),
        of(Kind::Double).map(|row| row.view_dtype(Kind::Int64)),
        of(Kind::Int64),
    ];
    let sums = bits.into_iter().flatten().map(|bits| {
        let places =
            Tensor::arange(bits.size()[0], (Kind::Int64, bits.device())).remainder(65_521) + 1;
        (bits * places).sum(Kind::Int64).int64_value(&[])
    });
    sums.fold(0, |sum, bits| sum.wrapping_mul(31).wrapping_add(bits))
}

/// Which rows are not the most frequent one (of equals, the one of the lowest rank), that one's
/// first rank, and the first column in which a row differs.
fn minority(rows: &[Vec<i64>]) -> Option<(Vec<usize>, usize, usize)> {
    let votes = |row: &Vec<i64>| rows.iter().filter(|other| *other == row).count();
    let trusted = (0..rows.len()).rev().max_by_key(|&rank| votes(&rows[rank]))?;
    let differs = |rank: &usize| rows[*rank] != rows[trusted];
    let ranks: Vec<usize> = (0..rows.len()).filter(differs).collect();
    let column =
        |rank: &usize| rows[*rank].iter().zip(&rows[trusted]).position(|(one, other)| one != other);
    let first = ranks.iter().filter_map(column).min()?;
    Some((ranks, trusted, first))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_majority_is_trusted_and_of_equals_the_lowest_rank() {
        let rows = |rows: &[[i64; 2]]| rows.iter().map(|row| row.to_vec()).collect::<Vec<_>>();
        assert_eq!(minority(&rows(&[[1, 2]])), None);
        assert_eq!(minority(&rows(&[[1, 2], [1, 2], [1, 2]])), None);
        assert_eq!(minority(&rows(&[[1, 3], [1, 2], [1, 2]])), Some((vec![0], 1, 1)));
        assert_eq!(minority(&rows(&[[1, 2], [0, 2]])), Some((vec![1], 0, 0)));
        assert_eq!(minority(&rows(&[[1, 2], [1, 4], [1, 2], [3, 2]])), Some((vec![1, 3], 0, 0)));
    }

    #[test]
    fn one_bit_and_an_exchange_are_seen() {
        let sum = |numbers: &[f32]| bit_sum(&[&Tensor::from_slice(numbers)]);
        let whole = sum(&[1.0, 2.0, 3.0]);
        assert_eq!(whole, sum(&[1.0, 2.0, 3.0]));
        assert_ne!(whole, sum(&[1.0, 2.0, f32::from_bits(3.0_f32.to_bits() ^ 1)]));
        assert_ne!(whole, sum(&[2.0, 1.0, 3.0]));
        let step =
            |step: i64| bit_sum(&[&Tensor::from_slice(&[1.0_f32]), &Tensor::from_slice(&[step])]);
        assert_ne!(step(1), step(2));
    }
}
