//! The error of a message that does not have the form that the protocol requires.

/// A message that lacks a part, or holds a number out of its range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed {message}: {problem}")]
pub struct Malformed {
    pub message: &'static str,
    pub problem: String,
}
