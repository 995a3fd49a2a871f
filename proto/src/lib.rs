//! The wire between coordinator and workers. Wire types stop here: everything above uses the domain
//! types.
//!
//! - [`v1`]: the generated messages.
//! - `message`: the domain types; `phase`: what a rank is doing.
//! - `convert`: from one to the other and back, by hand; `limits`: how much a message may hold.

mod convert;
mod limits;
mod malformed;
mod message;
mod phase;

/// Generated from `thanos/v1/thanos.proto`.
#[allow(clippy::all, clippy::too_many_lines, unreachable_pub, missing_docs)]
pub mod v1 {
    tonic::include_proto!("thanos.v1");
}

pub use limits::MAX_BENCH_STEPS;
pub use malformed::Malformed;
pub use message::{
    Begin, BenchReport, BenchRequest, Best, CheckpointRef, CheckpointWritten, Collectives, Command,
    Device, DeviceKind, Evaluated, Failed, Fetching, GroupFailure, Heartbeat, Held, Hello, PackRef,
    Rejoin, StageResult, StepDone, Welcome, WorkerEvent, WrittenFile,
};
pub use phase::{BEFORE_STAGES, RankPhase};

/// The name that the coordinator's certificate has, wherever it listens: clients that trust the
/// run's authority need no other.
pub const COORDINATOR_NAME: &str = "thanos-coordinator";

/// What a worker finds in its folder of credentials: the certificate of the run's authority, and
/// its join token.
pub const CA: &str = "ca.pem";
pub const TOKEN: &str = "token";

/// Whether this can be a worker's id: letters, digits, `-`, `_` and `.` inside, at most 63 of them.
/// It is in file names and certificates.
pub fn is_worker_id(id: &str) -> bool {
    let inside = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let bytes = id.as_bytes();
    id != COORDINATOR_NAME
        && bytes.len() <= 63
        && bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.iter().all(|byte| inside(*byte))
}
