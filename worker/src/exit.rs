//! Which exit code (`thanos-formats`) an error of a worker has.

use crate::checkpoint::NotSaved;
use crate::device::Unusable;
use crate::pack_transfer::NotBrought;
use crate::run::NotHere;
use crate::session::{NotReached, Refused};

pub use thanos_formats::{
    EXIT_CONFIG, EXIT_DATA, EXIT_IO, EXIT_NO_PERMISSION, EXIT_SOFTWARE, EXIT_STOPPED, EXIT_UNREACHABLE, EXIT_USAGE,
};

/// Bad data or a bad checkpoint, as opposed to a fault of the program.
#[derive(Debug, thiserror::Error)]
#[error("{0:#}")]
pub(crate) struct BadData(pub anyhow::Error);

/// The exit code that tells what kind of error this is.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    if let Some(refused) = error.downcast_ref::<Refused>() {
        return refused.exit_code;
    }
    if error.is::<Unusable>() {
        return EXIT_CONFIG;
    }
    if error.downcast_ref::<BadData>().is_some() {
        return EXIT_DATA;
    }
    if error.downcast_ref::<NotSaved>().is_some() || error.downcast_ref::<std::io::Error>().is_some() {
        return EXIT_IO;
    }
    if error.is::<NotReached>()
        || error.downcast_ref::<NotBrought>().is_some()
        || error.downcast_ref::<NotHere>().is_some()
    {
        return EXIT_UNREACHABLE;
    }
    if error.downcast_ref::<thanos_c10d::Error>().is_some() || error.downcast_ref::<tonic::Status>().is_some() {
        return EXIT_UNREACHABLE;
    }
    EXIT_SOFTWARE
}
