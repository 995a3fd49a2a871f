//! What can be wrong with raw files and packs: each message says where, what was expected and found, and what to do.
//! Decoders return a `RawFault` and know no path; who reads the file puts the path to it.

use std::io;
use std::path::{Path, PathBuf};
use thiserror::Error;

const EXIT_DATA: u8 = 65;
const EXIT_IO: u8 = 74;

/// Why there is no pack, or why a pack is refused.
#[derive(Debug, Error)]
pub enum DataError {
    #[error("data set {dataset} is read from a folder and none is given: set data.dir=DIR, the folder of {files}")]
    NoDir { dataset: &'static str, files: String },
    #[error("data.dir={dir}: {fault}; set data.dir=DIR to the folder of {files}")]
    NotAFolder { dir: PathBuf, fault: String, files: String },
    /// `files` are all the missing ones, `places` the folders in which they were looked for.
    #[error("data set {dataset}: missing {files}; looked in {places}; {advice}, and set data.dir=DIR to their folder")]
    Missing { dataset: &'static str, files: String, places: String, advice: &'static str },
    #[error("{path}: {fault}; replace the file, or set data.dir=DIR to a folder with a good one")]
    Raw { path: PathBuf, fault: RawFault },
    #[error(
        "{labels}: {label_count} labels, but {images} has {image_count} images; \
         the two belong together: replace them, or set data.dir=DIR to a folder with a matching pair"
    )]
    Counts { images: PathBuf, image_count: u64, labels: PathBuf, label_count: u64 },
    #[error("pack {path}: {fault}; if it is there, delete it: `thanos-coord data pack` writes a good one")]
    Pack { path: PathBuf, fault: PackFault },
    #[error("cannot write pack {path}: {source}; free some space, or choose a folder that can be written")]
    Write { path: PathBuf, source: io::Error },
}

impl DataError {
    /// The process's exit code (sysexits): 74 if a pack could not be written, 65 if data is bad or missing.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Write { .. } => EXIT_IO,
            _ => EXIT_DATA,
        }
    }

    pub(super) fn raw(path: &Path, fault: RawFault) -> Self {
        Self::Raw { path: path.to_owned(), fault }
    }
}

/// What is wrong inside one raw file. Records and offsets count from 0; offsets and lengths are bytes, unpacked if
/// the file is gzipped.
#[derive(Debug, Error)]
pub enum RawFault {
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    #[error("more than {most} bytes (unpacked, if it is gzipped): not a file of this data set")]
    TooLarge { most: u64 },
    #[error("the gzip stream is cut off after {unpacked} unpacked bytes")]
    GzipCutOff { unpacked: u64 },
    #[error("the gzip stream is damaged after {unpacked} unpacked bytes: {source}")]
    Gzip { unpacked: u64, source: io::Error },
    #[error("it holds no records")]
    Empty,
    #[error("its header is cut off: expected {expected} bytes, got {got}")]
    HeaderCutOff { expected: u64, got: u64 },
    #[error("offset 0: expected magic number {expected:#010x} (IDX {what}), got {got:#010x}")]
    Magic { what: &'static str, expected: u32, got: u32 },
    #[error("offset 8: expected images of {side} x {side} pixels, got {rows} x {columns}")]
    Sides { side: u32, rows: u32, columns: u32 },
    #[error("its header promises {records} records, which is {expected} bytes in all, got {got} bytes")]
    Length { records: u64, expected: u64, got: u64 },
    #[error("expected a whole number of records of {record_bytes} bytes, got {got} bytes: record {record} is cut off")]
    PartialRecord { record_bytes: u64, record: u64, got: u64 },
    #[error("{got} bytes are records of 3074 bytes, not 3073: this is CIFAR-100, expected the binary CIFAR-10")]
    Cifar100 { got: u64 },
    #[error("record {record} at offset {offset}: expected a label in 0..={most}, got {got}")]
    Label { record: u64, offset: u64, most: u64, got: i64 },
    #[error("row {row}: expected {expected}, got `{got}`")]
    Row { row: u64, expected: &'static str, got: String },
    #[error("expected {expected} rows, got {got}")]
    Rows { expected: u64, got: u64 },
}

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
    #[error("its header says fingerprint {expected}, its images and labels have {got}: they were changed")]
    Fingerprint { expected: String, got: String },
}
