//! What a complete linear probe leaves of the test images, in files of its last checkpoint:
//! `predictions.safetensors` and `embeddings.safetensors`. What is drawn of them is the report's.

use super::checkpoints::file_of_complete;
use anyhow::{Context, Result, ensure};
use safetensors::tensor::{Dtype, SafeTensors};
use std::collections::BTreeMap;
use std::path::Path;
use thanos_formats::{EMBEDDINGS, PREDICTIONS};

/// Every test image once: its fine label, and the one that a probe predicts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Predictions {
    pub(crate) fine: Vec<usize>,
    pub(crate) predicted: Vec<usize>,
    pub(crate) fine_names: Vec<String>,
    pub(crate) coarse_names: Vec<String>,
}

impl Predictions {
    /// Those of a transfer; `None` if it is not complete, or an earlier version has trained it.
    ///
    /// # Errors
    /// If the file is not what the stage wrote.
    pub(crate) fn read(run_dir: &Path, stage: &str) -> Result<Option<Self>> {
        let Some(bytes) = file_of_complete(run_dir, stage, PREDICTIONS)? else { return Ok(None) };
        let parsed = Self::parse(&bytes).with_context(|| format!("{PREDICTIONS} of {stage}"));
        parsed.map(Some)
    }

    fn parse(bytes: &[u8]) -> Result<Self> {
        let file = SafeTensors::deserialize(bytes)?;
        let names = |name: &str| -> Result<Vec<String>> {
            serde_json::from_slice(file.tensor(name)?.data()).context(name.to_owned())
        };
        let (fine_names, coarse_names) = (names("fine_names")?, names("coarse_names")?);
        let labels = |name: &str| labels(&file, name, fine_names.len());
        let (fine, predicted) = (labels("fine")?, labels("predicted")?);
        ensure!(
            fine.len() == predicted.len(),
            "{} labels, {} predictions",
            fine.len(),
            predicted.len()
        );
        Ok(Self { fine, predicted, fine_names, coarse_names })
    }

    /// Images by true and predicted label; pairs without an image have no entry.
    pub(crate) fn counts(&self) -> BTreeMap<(usize, usize), u64> {
        let mut counts = BTreeMap::new();
        for pair in self.fine.iter().copied().zip(self.predicted.iter().copied()) {
            *counts.entry(pair).or_default() += 1;
        }
        counts
    }

    /// Of each fine class the images, and those that are predicted right.
    pub(crate) fn of_classes(&self) -> Vec<(u64, u64)> {
        let mut classes = vec![(0, 0); self.fine_names.len()];
        for ((fine, predicted), count) in self.counts() {
            classes[fine].0 += count;
            classes[fine].1 += if fine == predicted { count } else { 0 };
        }
        classes
    }
}

/// Test images in two dimensions, [n] each.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct EmbeddingMap {
    pub(crate) fine: Vec<usize>,
    pub(crate) coarse: Vec<usize>,
    pub(crate) pca: Vec<[f64; 2]>,
    pub(crate) tsne: Vec<[f64; 2]>,
}

impl EmbeddingMap {
    /// That of a transfer, whose predictions have these names; `None` if it is not complete, or
    /// without a map.
    ///
    /// # Errors
    /// If the file is not what the stage wrote.
    pub(crate) fn read(run_dir: &Path, stage: &str, of: &Predictions) -> Result<Option<Self>> {
        let Some(bytes) = file_of_complete(run_dir, stage, EMBEDDINGS)? else { return Ok(None) };
        let parsed = Self::parse(&bytes, of).with_context(|| format!("{EMBEDDINGS} of {stage}"));
        parsed.map(Some)
    }

    fn parse(bytes: &[u8], of: &Predictions) -> Result<Self> {
        let file = SafeTensors::deserialize(bytes)?;
        let map = Self {
            fine: labels(&file, "fine", of.fine_names.len())?,
            coarse: labels(&file, "coarse", of.coarse_names.len())?,
            pca: places(&file, "pca")?,
            tsne: places(&file, "tsne")?,
        };
        let n = map.fine.len();
        let all = [map.coarse.len(), map.pca.len(), map.tsne.len()];
        ensure!(all == [n; 3], "{n} images, and {all:?} labels and places");
        Ok(map)
    }
}

/// A tensor of labels, all below `classes`.
fn labels(file: &SafeTensors<'_>, name: &str, classes: usize) -> Result<Vec<usize>> {
    let tensor = file.tensor(name)?;
    ensure!(tensor.dtype() == Dtype::I64, "{name} is {:?}, expected I64", tensor.dtype());
    let (numbers, _) = tensor.data().as_chunks();
    let labels = numbers.iter().map(|bytes| {
        let label = i64::from_le_bytes(*bytes);
        let known = usize::try_from(label).ok().filter(|label| *label < classes);
        known.with_context(|| format!("{name} has label {label} of {classes}"))
    });
    labels.collect()
}

/// A tensor of finite pairs, [n, 2].
fn places(file: &SafeTensors<'_>, name: &str) -> Result<Vec<[f64; 2]>> {
    let tensor = file.tensor(name)?;
    let is_pairs = tensor.dtype() == Dtype::F64 && tensor.shape().get(1) == Some(&2);
    ensure!(is_pairs, "{name} is {:?} {:?}", tensor.dtype(), tensor.shape());
    let (numbers, _) = tensor.data().as_chunks();
    let numbers: Vec<f64> = numbers.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect();
    ensure!(numbers.iter().all(|number| number.is_finite()), "{name} has non-finite places");
    Ok(numbers.chunks_exact(2).map(|pair| [pair[0], pair[1]]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_those_of_the_pairs() {
        let names = |names: [&str; 3]| names.map(str::to_owned).to_vec();
        let predictions = Predictions {
            fine: vec![0, 0, 0, 2, 2],
            predicted: vec![0, 1, 0, 2, 0],
            fine_names: names(["a", "b", "c"]),
            coarse_names: vec!["all".into()],
        };
        let counts = [((0, 0), 2), ((0, 1), 1), ((2, 0), 1), ((2, 2), 1)];
        assert_eq!(predictions.counts(), BTreeMap::from(counts));
        assert_eq!(predictions.of_classes(), [(3, 2), (0, 0), (2, 1)]);
    }
}
