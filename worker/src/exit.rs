//! Exit codes of a worker; the coordinator's are the same (README, "Exit codes").

use crate::checkpoint::NotSaved;
use crate::device::Unusable;
use crate::pack_transfer::NotBrought;
use crate::run::NotHere;
use crate::session::{NotReached, Refused};

/// The command line is wrong.
pub const EXIT_USAGE: u8 = 64;
/// A pack or a checkpoint is bad.
pub const EXIT_DATA: u8 = 65;
/// The coordinator or a peer cannot be reached, or is gone.
pub const EXIT_UNREACHABLE: u8 = 69;
/// Training itself went wrong: a loss that is no number, an error of libtorch.
pub const EXIT_SOFTWARE: u8 = 70;
/// A file could not be written: the disk is full, or not writable.
pub const EXIT_IO: u8 = 74;
/// Stopped on request; the run can be resumed.
pub const EXIT_STOPPED: u8 = 75;
/// This worker may not take part in the run.
pub const EXIT_NO_PERMISSION: u8 = 77;
/// The configuration is wrong, or not the coordinator's.
pub const EXIT_CONFIG: u8 = 78;

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
