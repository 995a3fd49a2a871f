//! The part `checks` of a configuration.

use serde::{Deserialize, Serialize};

/// Checks while a stage trains, and what to do when one fails; all ranks decide alike.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct ChecksConfig {
    /// What to do at a non-finite loss or gradient, which is detected before the update.
    pub on_non_finite: OnNonFinite,
    /// Interval of comparisons of the ranks' weights and optimiser state, bit by bit; null: never.
    /// Unit: steps.
    pub compare_ranks_every: Option<u64>,
    /// What to do when a comparison finds ranks that differ from the others.
    pub on_divergence: OnDivergence,
}

impl Default for ChecksConfig {
    fn default() -> Self {
        Self {
            on_non_finite: OnNonFinite::Stop,
            compare_ranks_every: Some(100),
            on_divergence: OnDivergence::Stop,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum OnNonFinite {
    /// Report the step, the rank and the tensor, and end the run.
    Stop,
    /// Report them, skip the update, and continue; ten in a row end the run.
    Skip,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum OnDivergence {
    /// Report the ranks and the first tensor, and end the run: steps since the last comparison are
    /// suspect.
    Stop,
    /// Report them, give these ranks the state of the majority, and continue.
    Repair,
}
