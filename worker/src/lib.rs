//! One rank of a run: it joins its coordinator, opens the packs, and trains the plan's stages with
//! its peers.
//!
//! In reading order:
//!
//! - `run`: a worker from its start to its end, through all generations; `error`: why it ends, and
//!   its exit code.
//! - `train`: the training loop of one stage: batch, losses, gradients, update, commit.
//! - `stage`: what a batch becomes; `backbone` and `transfer` are the two kinds. `bench` measures
//!   one instead.
//! - `gather` and `loss`: the contrastive loss, over all ranks. `model`: the networks. `optimizer`:
//!   AdamW.
//! - `data`, `pack`, `pack_transfer`, `batch_loader`, `device_views`: images, and which views come
//!   next.
//! - `evaluate`: accuracies, kNN and collapse measures.
//! - `checkpoint`, `saver`, `save_schedule`, `run_files`, `given_weights`, `probe_weights`: what is
//!   saved, and read.
//! - `replica_state`, `divergence`, `tensors`: state in memory, and whether all ranks have the
//!   same.
//! - `session`: the connection to the coordinator. `metrics`: the page of this process. `device`:
//!   what it trains on.
//! - `failpoints`: where tests break the program. `panics`: those of tch as errors.
//!
//! Shapes, everywhere: n images or rows, b rows of this rank, B rows of the global batch, d width
//! of an embedding, C channels, S side in pixels, N images of a data set. Images are [n, C, S, S]
//! f32, normalised; embeddings [n, d]; labels [n] i64. A batch of two views is flattened as (image,
//! view): an image's views are neighbours.

mod backbone;
mod batch_loader;
mod bench;
mod checkpoint;
mod data;
mod device;
pub mod device_views;
mod divergence;
mod embedding_map;
mod error;
mod evaluate;
mod failpoints;
mod gather;
mod given_weights;
pub mod loss;
mod metrics;
pub mod model;
mod optimizer;
mod pack;
mod pack_transfer;
mod panics;
mod probe_weights;
mod replica_state;
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

pub use error::WorkerError;
pub use gather::{Comparison, Contrasted, Exchange, contrast_globally, gather_rows};
pub use given_weights::load_weights;
pub use metrics::{WORKER_COUNTERS, WORKER_GAUGES, WORKER_PHASE_SECONDS};
pub use optimizer::AdamW;
pub use pack::Pack;
pub use run::{Options, Outcome, work};
pub use thanos_c10d::Address;
pub use thanos_formats::{EXIT_SOFTWARE, EXIT_STOPPED, EXIT_USAGE};
pub use thanos_transport::{DeviceChoice, parse_duration};
