//! Exit codes of the coordinator (README, "Exit codes"); the numbers are those of BSD's sysexits.h.

use thanos_configs::PlanError;

/// The command line is wrong.
pub const EXIT_USAGE: u8 = 64;
/// A data file, pack or checkpoint is bad.
pub const EXIT_DATA: u8 = 65;
/// A worker cannot be reached, or is gone.
pub const EXIT_UNREACHABLE: u8 = 69;
/// Training itself failed: an error of libtorch, a non-finite loss.
pub(crate) const EXIT_SOFTWARE: u8 = 70;
/// A file could not be written.
pub const EXIT_IO: u8 = 74;
/// Stopped on request; the run can be resumed.
pub const EXIT_STOPPED: u8 = 75;
/// Somebody may not do what it asked for.
pub const EXIT_NO_PERMISSION: u8 = 77;
/// The configuration is wrong.
pub const EXIT_CONFIG: u8 = 78;

/// After these a retry would fail in the same way.
pub(crate) const PERMANENT: [u8; 5] = [EXIT_USAGE, EXIT_DATA, EXIT_SOFTWARE, EXIT_NO_PERMISSION, EXIT_CONFIG];

/// An error with the exit code that tells what kind it is.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Fatal {
    pub message: String,
    pub exit_code: u8,
}

/// A configuration that breaks rules: each on a line.
impl From<Vec<PlanError>> for Fatal {
    fn from(broken: Vec<PlanError>) -> Self {
        let rules: Vec<String> = broken.iter().map(ToString::to_string).collect();
        Self::new(EXIT_CONFIG, rules.join("\n"))
    }
}

impl Fatal {
    pub fn new(exit_code: u8, message: impl Into<String>) -> Self {
        Self { message: message.into(), exit_code }
    }
}
