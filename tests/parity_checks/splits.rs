//! `splits*`: the train / validation split of data sets of several lengths; a length is a case.
//! Integers, computed on the CPU on every machine.

use super::report::{Case, Report};
use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use thanos_configs::split_train_validation;

/// The reference's share.
const VALIDATION: f64 = 0.1;

#[derive(Deserialize)]
struct Expected {
    train_len: usize,
    val_len: usize,
    train_first: Vec<u64>,
    val_first: Vec<u64>,
    train_sha256_le_u64: String,
    val_sha256_le_u64: String,
}

pub(crate) fn check(path: &Path, report: &mut Report) -> Result<()> {
    let cases: BTreeMap<String, Expected> = serde_json::from_str(&fs::read_to_string(path)?)?;
    for (len, expected) in &cases {
        report.case(len, |case| {
            let split = split_train_validation(len.parse().context("a length")?, VALIDATION);
            let train = (expected.train_len, &expected.train_first, &expected.train_sha256_le_u64);
            check_part("train", &split.train, train, case)?;
            let validation = (expected.val_len, &expected.val_first, &expected.val_sha256_le_u64);
            check_part("validation", &split.validation, validation, case)
        });
    }
    Ok(())
}

fn check_part(
    name: &str,
    found: &[u64],
    expected: (usize, &Vec<u64>, &String),
    case: &mut Case,
) -> Result<()> {
    let (len, first, sha256) = expected;
    case.equal(&format!("length of {name}"), found.len(), len);
    ensure!(first.len() <= found.len(), "{name} has fewer indices than are expected of its start");
    case.equal(&format!("start of {name}"), &found[..first.len()], first);
    let mut hash = Sha256::new();
    found.iter().for_each(|index| hash.update(index.to_le_bytes()));
    let hash: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    case.equal(&format!("SHA-256 of {name}"), &hash, sha256);
    Ok(())
}
