//! The result table: made from what each stage measured, kept as `results.json`, printed for
//! people.

use crate::exit::{EXIT_DATA, Fatal};
use crate::run_dir::write_durably;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::Path;
use thanos_configs::{Plan, StagePlan, TransferPlan, ValidationMeasure};
use thanos_formats::{Identity, RESULTS_JSON};
use thanos_proto::StageResult;

/// The first line of the table of a quick run.
pub(super) const QUICK_RUN: &str = "QUICK RUN: a few steps on a few images, to see that every \
    stage works; its numbers are not results";

/// `results.json`. Accuracies in percent of the test images; cosines are means over pairs of test
/// embeddings, null where no class has two test images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Results {
    pub run: String,
    pub preset: String,
    pub seed: u64,
    /// Made by `launch --quick`: a few steps on a few images, whose numbers are not results.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub quick: bool,
    /// One for each linear probe.
    pub rows: Vec<Row>,
    /// One for each backbone that was trained in this run.
    pub backbones: Vec<BackboneRow>,
}

/// A linear probe on fine labels over frozen backbones.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    pub method: String,
    pub fine_test_accuracy: f64,
    pub coarse_test_accuracy: f64,
    pub knn_fine_accuracy: f64,
    pub backbones: Vec<String>,
    /// Of the probe and of the backbones of this run that it stands on.
    pub seconds: f64,
    pub fine_validation_accuracy: f64,
    /// What selected the epoch of these numbers: the accuracy of `fine_head`, or `last_epoch`.
    #[serde(default)]
    pub selected_by: Option<String>,
    pub cosine_within_coarse: Option<f64>,
    pub cosine_within_fine: Option<f64>,
    pub cosine_between_views: f64,
    /// How long the probe's steps waited for their images.
    pub data_wait_seconds: f64,
}

/// A trained encoder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BackboneRow {
    pub name: String,
    /// Of the coarse head; with `selected_by: coarse_knn`, or without a trained head, of the
    /// nearest neighbours.
    pub coarse_validation_accuracy: f64,
    /// What selected the epoch of these numbers: the accuracy of `coarse_head` or `coarse_knn`, or
    /// `last_epoch`.
    #[serde(default)]
    pub selected_by: Option<String>,
    pub coarse_test_accuracy: f64,
    pub knn_fine_accuracy: f64,
    pub cosine_within_coarse: Option<f64>,
    pub cosine_within_fine: Option<f64>,
    pub cosine_between_views: f64,
    pub seconds: f64,
    /// How long its steps waited for their images.
    pub data_wait_seconds: f64,
}

impl Results {
    /// The table of the stages that are complete.
    pub fn new(identity: &Identity, plan: &Plan, results: &[StageResult]) -> Self {
        let of = |stage: &str| results.iter().find(|result| result.stage == stage);
        let mut rows = Vec::new();
        let mut backbones = Vec::new();
        for stage in plan.stages() {
            let Some(result) = of(stage.name()) else { continue };
            let selected_by = ValidationMeasure::of(stage).selected_by(plan.training(stage).select);
            match stage {
                StagePlan::Backbone(_) => backbones.push(backbone_row(result, selected_by)),
                StagePlan::Transfer(transfer) => {
                    let trained = transfer.backbones.iter().filter_map(|name| of(name));
                    let seconds =
                        result.seconds + trained.map(|result| result.seconds).sum::<f64>();
                    rows.push(row(transfer, result, (seconds, selected_by)));
                }
            }
        }
        let Identity { id, preset, seed, quick, .. } = identity.clone();
        Self { run: id, preset, seed, quick, rows, backbones }
    }

    /// Writes `results.json`.
    ///
    /// # Errors
    /// 74, naming the file.
    pub fn write(&self, run_dir: &Path) -> Result<(), Fatal> {
        write_durably(&run_dir.join(RESULTS_JSON), format!("{}\n", self.to_json()).as_bytes())
    }

    /// Reads `results.json`.
    ///
    /// # Errors
    /// 65, naming the file.
    pub fn read(run_dir: &Path) -> Result<Self, Fatal> {
        let path = run_dir.join(RESULTS_JSON);
        let text = std::fs::read_to_string(&path).map_err(|error| {
            Fatal::new(EXIT_DATA, format!("there are no results yet: {}: {error}", path.display()))
        })?;
        serde_json::from_str(&text)
            .map_err(|error| Fatal::new(EXIT_DATA, format!("{}: {error}", path.display())))
    }

    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("plain data is always JSON")
    }
}

fn row(transfer: &TransferPlan, result: &StageResult, (seconds, selected_by): (f64, &str)) -> Row {
    Row {
        method: transfer.method.clone(),
        fine_test_accuracy: percent(result.fine_test_accuracy.unwrap_or_default()),
        coarse_test_accuracy: percent(result.coarse_test_accuracy),
        knn_fine_accuracy: percent(result.knn_fine_accuracy),
        backbones: transfer.backbones.clone(),
        seconds: tenths(seconds),
        fine_validation_accuracy: percent(result.validation_accuracy),
        selected_by: Some(selected_by.into()),
        cosine_within_coarse: result.cosine_within_coarse,
        cosine_within_fine: result.cosine_within_fine,
        cosine_between_views: result.cosine_between_views,
        data_wait_seconds: thousandths(result.data_wait_seconds),
    }
}

fn backbone_row(result: &StageResult, selected_by: &str) -> BackboneRow {
    BackboneRow {
        name: result.stage.clone(),
        coarse_validation_accuracy: percent(result.validation_accuracy),
        selected_by: Some(selected_by.into()),
        coarse_test_accuracy: percent(result.coarse_test_accuracy),
        knn_fine_accuracy: percent(result.knn_fine_accuracy),
        cosine_within_coarse: result.cosine_within_coarse,
        cosine_within_fine: result.cosine_within_fine,
        cosine_between_views: result.cosine_between_views,
        seconds: tenths(result.seconds),
        data_wait_seconds: thousandths(result.data_wait_seconds),
    }
}

/// A share in 0..1 in percent, to a thousandth: a test set of 10,000 images has steps of a
/// hundredth.
fn percent(share: f64) -> f64 {
    (share * 1e5).round() / 1e3
}

fn thousandths(seconds: f64) -> f64 {
    (seconds * 1e3).round() / 1e3
}

fn tenths(seconds: f64) -> f64 {
    (seconds * 10.0).round() / 10.0
}

impl fmt::Display for Results {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "{}, seed {} (run {})", self.preset, self.seed, self.run)?;
        if self.quick {
            writeln!(out, "{QUICK_RUN}")?;
        }
        if self.rows.is_empty() {
            return write!(out, "\nNo linear probe has been trained yet.");
        }
        let width =
            self.rows.iter().map(|row| row.method.len()).max().unwrap_or(0).max("method".len());
        writeln!(
            out,
            "\n{:width$}  {:^24}  {:^26}",
            "", "test accuracy, %", "mean cosine of test images"
        )?;
        writeln!(
            out,
            "{:width$}  {:>6}  {:>7}  {:>7}  {:>8}  {:>8}  {:>8}  {:>7}  backbones",
            "method", "fine", "coarse", "kNN", "coarse", "fine", "views", "time"
        )?;
        for row in &self.rows {
            writeln!(
                out,
                "{:width$}  {:>6.1}  {:>7.1}  {:>7.1}  {:>8}  {:>8}  {:>8.3}  {:>7}  {}",
                row.method,
                row.fine_test_accuracy,
                row.coarse_test_accuracy,
                row.knn_fine_accuracy,
                cosine(row.cosine_within_coarse),
                cosine(row.cosine_within_fine),
                row.cosine_between_views,
                clock(row.seconds),
                row.backbones.join(" + "),
            )?;
        }
        write!(
            out,
            "\nfine: a linear layer on the frozen embeddings; coarse: the backbones' own heads; \
            kNN: fine labels by 20 nearest neighbours.\n\
             Cosines within a coarse class, within a fine class, between two views of an image: 1 \
             = fully collapsed."
        )
    }
}

/// As the table shows it.
fn cosine(mean: Option<f64>) -> String {
    mean.map_or_else(|| "n/a".into(), |mean| format!("{mean:.3}"))
}

/// Minutes and seconds.
fn clock(seconds: f64) -> String {
    let seconds = seconds.round() as u64;
    format!("{}:{:02}", seconds / 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(stage: &str, fine: Option<f64>, seconds: f64) -> StageResult {
        StageResult {
            stage: stage.into(),
            seconds,
            validation_accuracy: 0.5,
            coarse_test_accuracy: 0.98765,
            fine_test_accuracy: fine,
            knn_fine_accuracy: 0.75,
            cosine_within_coarse: Some(0.9),
            cosine_within_fine: None,
            cosine_between_views: 1.0,
            data_wait_seconds: 0.125,
        }
    }

    #[test]
    fn a_row_is_a_probe_with_the_time_of_its_backbones() {
        let plan = Plan::from_preset("digits_thanos", &[]).expect("valid");
        let identity = Identity {
            id: "r".into(),
            preset: "digits_thanos".into(),
            seed: 3,
            ..Identity::default()
        };
        let stages = [
            result("cnce", None, 10.0),
            result("cae", None, 20.04),
            result("transfer_thanos", Some(0.9512), 3.0),
        ];
        let results = Results::new(&identity, &plan, &stages);
        assert_eq!(results.rows.len(), 1);
        let row = &results.rows[0];
        assert_eq!(
            (row.fine_test_accuracy, row.coarse_test_accuracy, row.seconds),
            (95.12, 98.765, 33.0)
        );
        assert_eq!(row.backbones, ["cnce", "cae"]);
        assert_eq!(results.backbones.len(), 2);
        let text = results.to_string();
        for part in [
            "digits_thanos, seed 3",
            "thanos    95.1     98.8",
            "0:33  cnce + cae",
            "   0.900       n/a     1.000",
        ] {
            assert!(text.contains(part), "no `{part}` in\n{text}");
        }
        assert!(!text.contains("QUICK RUN"), "{text}");
        let quick = Results::new(&Identity { quick: true, ..identity.clone() }, &plan, &stages);
        assert!(
            quick.to_string().lines().nth(1).is_some_and(|line| line.starts_with("QUICK RUN: ")),
            "{quick}"
        );
        assert_eq!(Results::new(&identity, &plan, &stages[..1]).rows, []);
        let folder = tempfile::tempdir().expect("a folder");
        results.write(folder.path()).expect("written");
        assert_eq!(Results::read(folder.path()).expect("read"), results);
    }
}
