//! Why a worker ends, or leaves its generation. Code that computes or reads files reports `anyhow`
//! errors; code that acts on an error matches on [`WorkerError`].

use crate::device::Unusable;
use std::io;
use std::time::Duration;
use tch::TchError;
use thanos_formats::{EXIT_CONFIG, EXIT_DATA, EXIT_IO, EXIT_SOFTWARE, EXIT_UNREACHABLE};

pub(crate) type Result<T, E = WorkerError> = std::result::Result<T, E>;

/// Why a worker ends, or leaves its generation.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The coordinator does not accept this worker.
    #[error("refused by the coordinator: {reason}")]
    Refused { reason: String, exit_code: u8 },
    /// A stop signal arrived before there was a session.
    #[error("stopped while waiting for the coordinator")]
    StoppedWaiting,
    /// The coordinator is not there, or what is there is none.
    #[error("no coordinator at {coordinator} within {within:?}: {reason}")]
    NotReached { coordinator: String, within: Duration, reason: String },
    /// An address or interface that this machine does not have.
    #[error("{0}")]
    NotHere(String),
    /// The device that was asked for cannot be used, or GPUs that are there cannot.
    #[error("{0}")]
    UnusableDevice(String),
    /// Bad data or a bad checkpoint, as opposed to a fault of the program.
    #[error("{0:#}")]
    BadData(anyhow::Error),
    /// A pack did not come from the coordinator.
    #[error("{0:#}")]
    NotTransferred(anyhow::Error),
    /// A checkpoint could not be saved, in all attempts.
    #[error("{0}")]
    NotSaved(String),
    /// The stream to the coordinator has broken, and another one is being opened.
    #[error("the coordinator cannot be reached")]
    Disconnected,
    /// The generation ended while this rank was in no collective.
    #[error("the generation is over")]
    GenerationOver,
    /// A collective, or creating a group, failed.
    #[error(transparent)]
    Group(#[from] thanos_c10d::Error),
    /// A stop was requested while images were embedded: nothing is measured, on all ranks alike.
    #[error("a stop was requested")]
    StopRequested,
    /// A file could not be read or written.
    #[error("{0:#}")]
    Io(anyhow::Error),
    #[error("{0:#}")]
    Other(anyhow::Error),
}

impl WorkerError {
    /// The process's exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Refused { exit_code, .. } => *exit_code,
            Self::UnusableDevice(_) => EXIT_CONFIG,
            Self::BadData(_) => EXIT_DATA,
            Self::NotSaved(_) | Self::Io(_) => EXIT_IO,
            Self::NotReached { .. }
            | Self::NotTransferred(_)
            | Self::NotHere(_)
            | Self::Group(_) => EXIT_UNREACHABLE,
            Self::StoppedWaiting
            | Self::Disconnected
            | Self::GenerationOver
            | Self::StopRequested
            | Self::Other(_) => EXIT_SOFTWARE,
        }
    }

    /// Whether a generation is over and this worker's state is not: a peer or the coordinator is
    /// lost.
    pub(crate) fn ends_generation(&self) -> bool {
        matches!(self, Self::Group(_) | Self::Disconnected | Self::GenerationOver)
    }

    /// The same kind of error, with what was being done before its message. Kinds whose message is
    /// fixed stay as they are.
    #[must_use]
    pub(crate) fn context(self, doing: String) -> Self {
        match self {
            Self::BadData(error) => Self::BadData(error.context(doing)),
            Self::NotTransferred(error) => Self::NotTransferred(error.context(doing)),
            Self::Io(error) => Self::Io(error.context(doing)),
            Self::Other(error) => Self::Other(error.context(doing)),
            named => named,
        }
    }
}

impl From<anyhow::Error> for WorkerError {
    /// The one place where the kind of an error is read from its type: code that computes with a
    /// group, or reads files, reports several kinds by `anyhow`.
    fn from(error: anyhow::Error) -> Self {
        let error = match error.downcast::<Self>() {
            Ok(own) => return own,
            Err(error) => error,
        };
        match error.downcast::<thanos_c10d::Error>() {
            Ok(error) => Self::Group(error),
            Err(error) if error.is::<io::Error>() => Self::Io(error),
            Err(error) => Self::Other(error),
        }
    }
}

impl From<io::Error> for WorkerError {
    fn from(error: io::Error) -> Self {
        Self::Io(error.into())
    }
}

impl From<TchError> for WorkerError {
    fn from(error: TchError) -> Self {
        Self::Other(error.into())
    }
}

impl From<Unusable> for WorkerError {
    fn from(error: Unusable) -> Self {
        Self::UnusableDevice(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::{Context, anyhow};
    use thanos_c10d::ErrorKind;

    #[test]
    fn an_error_of_several_kinds_is_found_again() {
        let check = |error: anyhow::Error, exit_code: u8, message: &str| {
            let error = WorkerError::from(error);
            assert_eq!(
                (error.exit_code(), error.to_string().as_str()),
                (exit_code, message),
                "{error:?}"
            );
        };
        let full = || Err::<(), _>(io::Error::other("disk full"));
        check(full().context("pack a").expect_err("full"), EXIT_IO, "pack a: disk full");
        check(anyhow!("shape").context("pack a"), EXIT_SOFTWARE, "pack a: shape");
        let (operation, message) = ("broadcast", "connection reset".to_owned());
        let lost = thanos_c10d::Error { operation, message, kind: ErrorKind::PeerLost };
        check(lost.into(), EXIT_UNREACHABLE, "broadcast: connection reset");
        check(
            WorkerError::Refused { reason: "full".into(), exit_code: 75 }.into(),
            75,
            "refused by the coordinator: full",
        );
        let bad = WorkerError::BadData(anyhow!(io::Error::other("damaged")));
        check(bad.context("checkpoint a".into()).into(), EXIT_DATA, "checkpoint a: damaged");
    }
}
