//! Errors of libtorch's process groups, as the shim reports them.

use crate::raw;
use std::ffi::{CStr, CString, c_char};

/// What libtorch said when a collective, or the making of a group, failed: a dead peer, a timeout,
/// a wrong shape.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{operation}: {message}")]
pub struct Error {
    pub operation: &'static str,
    pub message: String,
    pub kind: ErrorKind,
}

/// Whether another group of the same ranks may succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The connection to a peer, or to the rendezvous, was lost, or timed out.
    PeerLost,
    /// Anything else: the same call may fail again in the same way.
    Other,
}

impl Error {
    /// A collective that failed within a backward pass, which libtorch reports as an error of the
    /// whole pass.
    pub fn in_backward(message: &str) -> Option<Self> {
        let at = message.find(LOST_IN_BACKWARD)?;
        let first_line = message[at + LOST_IN_BACKWARD.len()..].lines().next().unwrap_or_default();
        Some(Self::parse("all_reduce", first_line))
    }

    /// An error as the shim describes it: its kind, then its message.
    fn parse(operation: &'static str, description: &str) -> Self {
        let (kind, message) = match description.strip_prefix(PEER_LOST) {
            Some(message) => (ErrorKind::PeerLost, message),
            None => {
                (ErrorKind::Other, description.strip_prefix(OTHER_ERROR).unwrap_or(description))
            }
        };
        Self { operation, message: message.into(), kind }
    }
}

/// As the shim begins its messages.
const PEER_LOST: char = 'P';
const OTHER_ERROR: char = 'O';

/// As the shim begins such a message.
const LOST_IN_BACKWARD: &str = "a collective of the backward pass failed: ";

pub(crate) fn c_string(operation: &'static str, text: &str) -> Result<CString, Error> {
    let invalid =
        |error| Error { operation, message: format!("`{text}`: {error}"), kind: ErrorKind::Other };
    CString::new(text).map_err(invalid)
}

/// Turns the shim's message, if there is one, into an error, and frees it.
pub(crate) fn check(operation: &'static str, message: *mut c_char) -> Result<(), Error> {
    if message.is_null() {
        return Ok(());
    }
    // SAFETY: the shim returns null or a NUL-terminated string from malloc that is ours.
    let text = unsafe { CStr::from_ptr(message) }.to_string_lossy().into_owned();
    // SAFETY: as above; not used again.
    unsafe { raw::free(message.cast()) };
    Err(Error::parse(operation, &text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_description_is_a_kind_and_a_message() {
        for (description, kind, message) in [
            ("PConnection closed by peer", ErrorKind::PeerLost, "Connection closed by peer"),
            ("OTensors must be CUDA and dense", ErrorKind::Other, "Tensors must be CUDA and dense"),
            ("O", ErrorKind::Other, ""),
        ] {
            let error = Error::parse("all_reduce", description);
            assert_eq!((error.kind, error.message.as_str()), (kind, message));
            let in_backward = Error::in_backward(&format!(
                "{LOST_IN_BACKWARD}{description}\nException raised from"
            ));
            let error = in_backward.expect("a collective of a backward pass");
            assert_eq!(
                (error.operation, error.kind, error.message.as_str()),
                ("all_reduce", kind, message)
            );
        }
        assert!(Error::in_backward("element 0 of tensors does not require grad").is_none());
    }
}
