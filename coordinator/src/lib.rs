//! The coordinator of a run. It never links libtorch.
//!
//! - `run`: the rules of a run, a pure function from events to effects. Read this first.
//! - `launch`: from a plan to a result table; the event loop that owns the run and carries its
//!   effects out, the journal that writes the run directory, and the supervisor process.
//! - `server`: gRPC sessions, the rendezvous of process groups, credentials, packs for workers that
//!   do not see them.
//! - `workers`: worker processes on this machine, by Slurm, or adopted from an earlier coordinator;
//!   their devices.
//! - `run_dir`: what a run leaves: its identity, ledger, checkpoints and results.
//! - `report`: the page of a run as a file, with figures.
//! - `telemetry`: metrics, status pages, progress, experiment trackers. It changes nothing.
//! - `commands`: what `bench`, `chaos`, `render`, `status`, `verify-run` and `workers` do.
//! - `cli`: what is typed. `terminal`: all output. `signals`: stop requests. `exit`: errors with
//!   their exit codes.

mod cli;
mod commands;
mod exit;
mod launch;
mod report;
mod run;
mod run_dir;
mod server;
mod signals;
mod telemetry;
mod terminal;
mod workers;

pub use cli::{Arguments, run};
pub use exit::{
    EXIT_CONFIG, EXIT_DATA, EXIT_IO, EXIT_NO_PERMISSION, EXIT_STOPPED, EXIT_UNREACHABLE,
    EXIT_USAGE, Fatal,
};
pub use run_dir::checkpoints::verify;
pub use run_dir::ledger::{StepLine, read_steps};
pub use run_dir::results::{BackboneRow, Results, Row};
pub use telemetry::metrics::{COUNTERS, GAUGES, HISTOGRAMS, PHASE_SECONDS};
pub use telemetry::{Described, LIVE_METRICS};
pub use terminal::LogWriter;
pub use thanos_formats::Manifest;
