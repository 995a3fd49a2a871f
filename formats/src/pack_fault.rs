//! What can be wrong with a pack; the reader adds the path.

use std::io;
use thiserror::Error;

/// What is wrong with a pack.
#[derive(Debug, Error)]
pub enum PackFault {
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    #[error("its header is damaged: {0}")]
    Header(String),
    #[error("expected {expected} bytes, got {got}: it was cut off, or something was appended")]
    Length { expected: u64, got: u64 },
    #[error("it was written in format {got}, this program reads format {expected}")]
    Format { expected: u32, got: String },
    #[error("its {set} label of image {image} is {got}, but it names {names} classes")]
    Label { set: &'static str, image: u64, got: i64, names: u64 },
    #[error(
        "its header has fingerprint {expected}, its images and labels have {got}: they were changed"
    )]
    Fingerprint { expected: String, got: String },
}
