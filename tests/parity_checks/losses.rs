//! `losses_*`: value and gradients of the contrastive loss. A folder of tensors is a case; its
//! options are the metadata of that name.

use super::golden::Golden;
use super::options::LossOptions;
use super::report::{Case, Report};
use crate::exchanges::SingleRank;
use anyhow::{Context, Result};
use serde_json::Value;
use std::path::Path;
use tch::Kind;
use thanos_worker::loss::Tile;
use thanos_worker::{Comparison, contrast_globally};

/// Relative tolerances of a value.
const DOUBLE: f64 = 1e-6;
const SINGLE: f64 = 1e-5;

pub(crate) fn check(path: &Path, report: &mut Report) -> Result<()> {
    let golden = Golden::read(path)?;
    for name in golden.folders() {
        report.case(&name, |case| check_case(&golden, &name, case));
    }
    Ok(())
}

fn check_case(golden: &Golden, name: &str, case: &mut Case) -> Result<()> {
    let metadata: Value = golden.metadata(name)?;
    let options =
        LossOptions::parse(metadata.get("options").context("the metadata has no `options`")?)?;
    let tensor = |part: &str| golden.tensor(&format!("{name}/{part}"));
    let input = |part: &str| golden.input(&format!("{name}/{part}"));
    let labels = options.labels(&input("labels")?);
    let (view0, view1) = (input("view0")?, input("view1")?);
    let expected = tensor("loss")?.double_value(&[0]);
    let gradients = [tensor("grad_view0")?, tensor("grad_view1")?];
    for (kind, tile) in [
        (Kind::Double, Tile::square(1024)),
        (Kind::Double, Tile::square(5)),
        (Kind::Float, Tile::square(1024)),
    ] {
        let comparison = Comparison { tile, ..options.comparison };
        let found = contrast_globally(
            &SingleRank,
            &view0.to_kind(kind),
            &view1.to_kind(kind),
            &labels,
            &comparison,
        )?;
        let value = found.value.double_value(&[]);
        let found = [("grad_view0", found.view0_gradient), ("grad_view1", found.view1_gradient)];
        if kind == Kind::Double {
            case.number("loss", value, expected, DOUBLE);
            found
                .iter()
                .zip(&gradients)
                .for_each(|((name, found), expected)| case.tensor(name, found, expected));
        } else {
            case.near("loss in float32", value, expected, SINGLE);
            found
                .iter()
                .zip(&gradients)
                .for_each(|((name, found), expected)| case.elements(name, found, expected));
        }
    }
    Ok(())
}
