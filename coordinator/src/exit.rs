//! An error that ends the coordinator, with its exit code.

use thanos_configs::PlanError;
use thanos_data::DataError;

pub(crate) use thanos_formats::EXIT_SOFTWARE;
pub use thanos_formats::{
    EXIT_CONFIG, EXIT_DATA, EXIT_IO, EXIT_NO_PERMISSION, EXIT_STOPPED, EXIT_UNREACHABLE, EXIT_USAGE,
};

/// After these a retry would fail in the same way.
pub(crate) const PERMANENT: [u8; 5] =
    [EXIT_USAGE, EXIT_DATA, EXIT_SOFTWARE, EXIT_NO_PERMISSION, EXIT_CONFIG];

/// An error with the exit code that classifies it.
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

impl From<DataError> for Fatal {
    fn from(error: DataError) -> Self {
        Self::new(error.exit_code(), error.to_string())
    }
}

impl Fatal {
    pub fn new(exit_code: u8, message: impl Into<String>) -> Self {
        Self { message: message.into(), exit_code }
    }
}
