//! The wire between coordinator and workers: generated messages in [`v1`], domain types in [`message`].
//!
//! Wire types stop here: everything above speaks the domain types, converted both ways by hand.

mod convert;
mod message;

/// Generated from `thanos/v1/thanos.proto`.
#[allow(clippy::all, clippy::too_many_lines, unreachable_pub, missing_docs)]
pub mod v1 {
    tonic::include_proto!("thanos.v1");
}

pub use convert::Malformed;
pub use message::{
    Begin, Best, CheckpointRef, CheckpointWritten, Command, Evaluated, Failed, Fetching, Heartbeat, Held, Hello,
    PackRef, Rejoin, StageResult, StepDone, Welcome, WorkerEvent, WrittenFile,
};
