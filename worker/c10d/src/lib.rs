//! libtorch's own process groups for Rust: Gloo on CPU and, with the feature `cuda`, NCCL on GPUs.
//!
//! A [`ProcessGroup`] is one rank's membership in a group; its peers find each other through a
//! [`KeyValueStore`], which is the caller's. Three layers: `shim/` turns C++ exceptions into text,
//! `raw.rs` declares it, the other files are safe: `group.rs`, `store.rs` and `aborter.rs` are
//! groups, `buckets.rs` sums gradients while a backward pass makes them, `measure.rs` counts what a
//! step computes. Beside
//! `thanos-fused` this is the only crate of the workspace with `unsafe` code. It knows tensors and
//! ranks, nothing of training.

mod aborter;
mod buckets;
mod device;
mod error;
mod graph;
mod group;
mod measure;
mod process;
mod raw;
mod store;

pub use aborter::GroupAborter;
pub use buckets::GradientBuckets;
pub use device::{DeviceEvent, GpuMemory, gpu_memory, set_tf32, use_gpu, use_interface};
pub use error::{Error, ErrorKind};
pub use graph::Graph;
pub use group::{Address, Exchanged, ProcessGroup};
pub use measure::{Counted, count, count_kernels, cuda_name, cuda_peak_bytes, reset_cuda_peak};
pub use process::{
    AdamWParameter, AdamWRates, Collectives, LearningRate, collectives, exit_now, fused_adamw,
    keep_freed_memory,
};
pub use store::{KeyValueStore, MemoryStore};
