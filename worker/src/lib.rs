//! One rank of a run: it joins its coordinator, opens the packs, and trains the plan's stages with its peers.
//!
//! Reading order: `run.rs` (a worker's life), `train.rs` (the training loop of one stage: batch, losses, gradients, update,
//! commit), `stage.rs`, `backbone.rs` and `transfer.rs` (what a batch becomes in either kind of stage), `gather.rs` and `loss`
//! (the contrastive loss over all ranks), `model`, `feed.rs` and `data.rs` (which views come next).
//!
//! Shapes, everywhere: n images or rows, b rows of this rank, B rows of the global batch, d width of an embedding,
//! C channels, S side in pixels, N images of a data set. Images are [n, C, S, S] f32, normalised; embeddings [n, d];
//! labels [n] i64. A batch of two views is flattened as (image, view): an image's views are neighbours.

mod backbone;
mod bench;
mod checkpoint;
mod data;
mod device;
pub mod device_views;
mod embedding_map;
mod evaluate;
mod exit;
mod failpoints;
mod feed;
mod gather;
mod given_weights;
pub mod loss;
mod memory;
mod metrics;
pub mod model;
mod optimizer;
mod pack;
mod pack_transfer;
mod panics;
mod probe_weights;
mod replicas;
mod run;
mod run_files;
mod save_schedule;
mod saver;
mod session;
mod stage;
pub mod tensors;
mod train;
mod transfer;
mod tsne;

pub use exit::{
    EXIT_CONFIG, EXIT_DATA, EXIT_IO, EXIT_NO_PERMISSION, EXIT_SOFTWARE, EXIT_STOPPED, EXIT_UNREACHABLE, EXIT_USAGE,
    exit_code,
};
pub use gather::{Comparison, Contrasted, Exchange, contrast_globally, gather_rows};
pub use given_weights::load_weights;
pub use metrics::{WORKER_COUNTERS, WORKER_GAUGES, WORKER_PHASE_SECONDS};
pub use optimizer::AdamW;
pub use pack::Pack;
pub use run::{Options, Outcome, work};
pub use thanos_c10d::Address;
pub use thanos_transport::{DeviceChoice, parse_duration};
