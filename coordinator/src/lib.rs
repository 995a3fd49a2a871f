//! The coordinator of a run. It never links libtorch.
//!
//! Reading order: `run.rs` (the rules, a pure function from events to effects), `conductor.rs` (the task that owns the
//! run and carries its effects out), `journal.rs` (what touches the run directory), `prepare.rs` and `launch.rs` (from a plan
//! to a result table), `supervise.rs` (the process above it), `signals.rs` (stop requests); around them `credentials.rs`,
//! `thanos-door`, `server.rs`, `store.rs` and `packs.rs` (gRPC), `launcher.rs`, `local_workers.rs`, `devices.rs` and `slurm.rs`
//! (worker processes), `run_dir.rs`,
//! `ledger.rs` and `checkpoints.rs` (what is kept), `fetch.rs` and `ingest.rs` (published files, and raw data to packs),
//! `telemetry.rs`, `observe.rs`, `metrics.rs` and `tensorboard.rs` (what is scraped and drawn), `terminal.rs`, `progress.rs`, `report.rs`, `status.rs` and `verify_run.rs` (what people see), `chaos.rs` (faults on demand), `bench.rs` (how fast a step is), `render.rs`
//! (job scripts and manifests),
//! `cli.rs`.

mod bench;
mod chaos;
mod checkpoints;
mod cli;
mod conductor;
mod credentials;
mod devices;
mod exit;
mod fetch;
pub mod ingest;
mod journal;
mod launch;
mod launcher;
mod ledger;
mod local_workers;
mod metrics;
mod observe;
mod packs;
mod prepare;
mod progress;
mod render;
mod report;
mod run;
mod run_dir;
mod server;
mod signals;
mod slurm;
mod status;
mod store;
mod superseded;
mod supervise;
mod telemetry;
mod tensorboard;
mod terminal;
mod verify_run;
mod weights;

pub use checkpoints::{Manifest, verify};
pub use cli::{Arguments, run};
pub use exit::{
    EXIT_CONFIG, EXIT_DATA, EXIT_IO, EXIT_NO_PERMISSION, EXIT_STOPPED, EXIT_UNREACHABLE, EXIT_USAGE, Fatal,
};
pub use ledger::{StepLine, read_steps};
pub use metrics::{COUNTERS, GAUGES, HISTOGRAMS, PHASE_SECONDS};
pub use report::{BackboneRow, Results, Row};
pub use telemetry::{Described, LIVE_METRICS};
pub use terminal::LogWriter;
