//! What several programs of this workspace read and write, each declared once: exit codes,
//! checkpoints. A leaf crate, without libtorch and without an asynchronous runtime.

mod checkpoint;
mod exit_code;

pub use checkpoint::{
    BEST, BEST_STATE, CHECKPOINTS, EMBEDDINGS, MANIFEST, MANIFEST_FORMAT, MANIFEST_SHA256, MODEL,
    Manifest, ManifestBest, ManifestData, ManifestFile, ManifestResult, OPTIMIZER, PREDICTIONS,
    UNFINISHED, committed_folder, committed_name, unfinished_folder, unfinished_name,
};
pub use exit_code::{
    EXIT_CONFIG, EXIT_DATA, EXIT_IO, EXIT_NO_PERMISSION, EXIT_SOFTWARE, EXIT_STOPPED,
    EXIT_UNREACHABLE, EXIT_USAGE,
};
