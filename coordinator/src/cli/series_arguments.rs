//! Options of `launch` that request several runs.

use crate::commands::series::Series;
use crate::commands::series::members::{Seeds, Sweep};
use clap::Args;
use std::path::Path;

#[derive(Args, Debug)]
pub(super) struct SeriesArguments {
    /// Train with each of these seeds, one run after the other, and print one table with mean and
    /// standard deviation: N is 0..N, the end of a range is excluded. --run-dir is then the
    /// directory of all the runs
    #[arg(long, value_name = "N|A..B")]
    pub(super) seeds: Option<Seeds>,
    /// Train with each of these values of a key, one run after the other, and compare them in one
    /// table; with several such options each combination is trained, with --seeds each with all
    /// seeds
    #[arg(long, value_name = "KEY=VALUE,VALUE")]
    pub(super) sweep: Vec<Sweep>,
    /// The process that runs the series which this run is part of
    #[arg(long, hide = true)]
    pub(super) member_of: Option<i32>,
}

impl SeriesArguments {
    /// Whether several runs are requested: by these options, or by resuming a directory of a
    /// series.
    pub(super) fn are_given(&self, run_dir: Option<&Path>) -> bool {
        let is_series = run_dir.is_some_and(Series::is_at);
        self.seeds.is_some() || !self.sweep.is_empty() || is_series && self.member_of.is_none()
    }
}
