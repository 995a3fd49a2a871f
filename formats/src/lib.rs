//! What several programs of this workspace read and write, each declared once. A leaf crate,
//! without libtorch and without an asynchronous runtime.
//!
//! - `exit_code`: how the programs end.
//! - `run_files`: names of a run directory's files; `identity`: its `run.json`.
//! - `checkpoint`: names and manifest of checkpoints.
//! - `pack`, `pack_fault`: the header of packs of images and labels, and what can be wrong with
//!   one.

mod checkpoint;
mod exit_code;
mod identity;
mod pack;
mod pack_fault;
mod run_files;

pub use checkpoint::{
    BEST, BEST_STATE, CHECKPOINTS, EMBEDDINGS, MANIFEST, MANIFEST_FORMAT, MANIFEST_SHA256, MODEL,
    Manifest, ManifestBest, ManifestData, ManifestFile, ManifestResult, OPTIMIZER, PREDICTIONS,
    UNFINISHED, committed_folder, committed_name, unfinished_folder, unfinished_name,
};
pub use exit_code::{
    EXIT_CONFIG, EXIT_DATA, EXIT_IO, EXIT_NO_PERMISSION, EXIT_SOFTWARE, EXIT_STOPPED,
    EXIT_UNREACHABLE, EXIT_USAGE,
};
pub use identity::{DataIdentity, Identity, RecordedChange, StartedWith, THREADS_OPTION};
pub use pack::{PACK_FORMAT, PackHeader, PackNotes, Skipped, SkippedImages};
pub use pack_fault::PackFault;
pub use run_files::{CONFIG_YAML, EVENTS_JSONL, RESULTS_JSON, RUN_JSON, STEPS_JSONL};
