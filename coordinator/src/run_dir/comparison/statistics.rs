//! Mean, sample standard deviation, and the confidence interval of paired differences by Student's
//! t.

use serde::Serialize;
use statrs::distribution::{ContinuousCDF, StudentsT};

/// Of the confidence interval; two-sided.
const CONFIDENCE: f64 = 0.95;

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Summary {
    pub(super) n: usize,
    pub(super) mean: f64,
    /// Of the sample, with n - 1; `None` of a single value.
    pub(super) sd: Option<f64>,
    pub(super) values: Vec<f64>,
}

impl Summary {
    /// `None` without any value.
    pub(super) fn of(values: &[f64]) -> Option<Self> {
        let n = values.len();
        if n == 0 {
            return None;
        }
        let mean = values.iter().sum::<f64>() / n as f64;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        let sd = (n > 1).then(|| (squares / (n - 1) as f64).sqrt());
        Some(Self { n, mean, sd, values: values.to_vec() })
    }
}

/// The mean of paired differences.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Difference {
    #[serde(flatten)]
    pub(super) summary: Summary,
    /// In which the mean of all differences is with a confidence of 95 %, if they are normally
    /// distributed; `None` of a single pair.
    pub(super) confidence_interval_95: Option<[f64; 2]>,
}

impl Difference {
    /// `None` without any pair.
    pub(super) fn of(differences: &[f64]) -> Option<Self> {
        let summary = Summary::of(differences)?;
        let interval = summary.sd.map(|sd| {
            let n = summary.n as f64;
            let half = t_quantile(summary.n - 1) * sd / n.sqrt();
            [summary.mean - half, summary.mean + half]
        });
        Some(Self { summary, confidence_interval_95: interval })
    }
}

/// The quantile of Student's t that a two-sided interval needs.
fn t_quantile(degrees_of_freedom: usize) -> f64 {
    let students_t = StudentsT::new(0.0, 1.0, degrees_of_freedom as f64)
        .expect("at least two values have been given");
    students_t.inverse_cdf(f64::midpoint(1.0, CONFIDENCE))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(found: f64, expected: f64) {
        assert!(
            (found - expected).abs() < 1e-6 * expected.abs().max(1.0),
            "{found}, expected {expected}"
        );
    }

    /// R: `qt(0.975, c(1, 2, 4, 9, 30, 999))`.
    #[test]
    fn quantiles_are_those_of_r() {
        for (degrees_of_freedom, expected) in [
            (1, 12.706_204_736),
            (2, 4.302_652_730),
            (4, 2.776_445_105),
            (9, 2.262_157_163),
            (30, 2.042_272_456),
            (999, 1.962_341_461),
        ] {
            close(t_quantile(degrees_of_freedom), expected);
        }
    }

    /// R: `x <- c(1.2, -0.3, 0.8, 0.5, 1.3); mean(x); sd(x); t.test(x)$conf.int`.
    #[test]
    fn a_paired_difference_is_that_of_r() {
        let found = Difference::of(&[1.2, -0.3, 0.8, 0.5, 1.3]).expect("five");
        close(found.summary.mean, 0.7);
        close(found.summary.sd.expect("five"), 0.644_204_936_336);
        let [low, high] = found.confidence_interval_95.expect("five");
        close(low, -0.099_886_077);
        close(high, 1.499_886_077);
    }

    #[test]
    fn a_single_value_has_no_deviation_and_none_has_no_mean() {
        let single = Difference::of(&[2.0]).expect("one");
        assert_eq!(
            (single.summary.mean, single.summary.sd, single.confidence_interval_95),
            (2.0, None, None)
        );
        assert_eq!(Summary::of(&[]), None);
    }
}
