//! The coordinator of a run. It never links libtorch.
//!
//! Reading order: `run.rs` (the rules, a pure function from events to effects), `conductor.rs` (the task that owns the
//! run and carries its effects out), `journal.rs` (what touches the run directory), `prepare.rs` and `launch.rs` (from a plan
//! to a result table), `supervise.rs` (the process above it), `signals.rs` (stop requests); around them `credentials.rs`,
//! `thanos-transport`, `server.rs`, `store.rs` and `packs.rs` (gRPC), `launcher.rs`, `local_workers.rs`, `devices.rs` and `slurm.rs`
//! (worker processes), `run_dir.rs`,
//! `ledger.rs` and `checkpoints.rs` (what is kept), `fetch.rs` and `ingest.rs` (published files, and raw data to packs),
//! `telemetry.rs`, `observe.rs`, `metrics.rs` and `tensorboard.rs` (what is scraped and drawn), `terminal.rs`, `progress.rs`, `report.rs`, `status.rs` and `verify_run.rs` (what people see), `chaos.rs` (faults on demand), `bench.rs` (how fast a step is), `render.rs`
//! (job scripts and manifests),
//! `cli.rs`.

mod cli;
mod commands;
mod exit;
mod launch;
mod run;
mod run_dir;
mod server;
mod signals;
mod telemetry;
mod terminal;
mod workers;

pub use cli::{Arguments, run};
pub use exit::{
    EXIT_CONFIG, EXIT_DATA, EXIT_IO, EXIT_NO_PERMISSION, EXIT_STOPPED, EXIT_UNREACHABLE, EXIT_USAGE, Fatal,
};
pub use run_dir::checkpoints::{Manifest, verify};
pub use run_dir::ledger::{StepLine, read_steps};
pub use run_dir::results::{BackboneRow, Results, Row};
pub use telemetry::metrics::{COUNTERS, GAUGES, HISTOGRAMS, PHASE_SECONDS};
pub use telemetry::{Described, LIVE_METRICS};
pub use terminal::LogWriter;
