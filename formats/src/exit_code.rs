//! Exit codes of both programs (docs/reference.md); the numbers are those of BSD's sysexits.h.

/// The command line is wrong.
pub const EXIT_USAGE: u8 = 64;
/// A data file, pack or checkpoint is missing or bad.
pub const EXIT_DATA: u8 = 65;
/// The coordinator, a worker or a peer cannot be reached, or was lost.
pub const EXIT_UNREACHABLE: u8 = 69;
/// Training itself failed: an error of libtorch, a non-finite loss.
pub const EXIT_SOFTWARE: u8 = 70;
/// A file could not be written: the disk is full, or not writable.
pub const EXIT_IO: u8 = 74;
/// Stopped on request; the run can be resumed.
pub const EXIT_STOPPED: u8 = 75;
/// A worker or a client is not allowed to do what it asked for.
pub const EXIT_NO_PERMISSION: u8 = 77;
/// The configuration is wrong, or is not the run's.
pub const EXIT_CONFIG: u8 = 78;
