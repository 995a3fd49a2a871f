//! What can be wrong with raw files and packs: each message says where, what was expected and
//! found, and what to do. Decoders return a `RawFault` and know no path; the reader of the file
//! adds the path.

use std::io;
use std::path::{Path, PathBuf};
use thanos_formats::{EXIT_DATA, EXIT_IO, PackFault};
use thiserror::Error;

/// Why there is no pack, or why a pack is refused.
#[derive(Debug, Error)]
pub enum DataError {
    #[error(
        "data set {dataset} needs a folder, but none is given: set data.dir=DIR, the folder of \
        {files}"
    )]
    NoDir { dataset: String, files: String },
    #[error(
        "data.dir={dir}: {fault}; set data.dir=DIR to the folder of {files}, or to an archive of \
        them"
    )]
    NotAFolder { dir: PathBuf, fault: String, files: String },
    /// `files` are all the missing ones, `places` the folders in which they were looked for.
    #[error(
        "data set {dataset}: missing {files}; looked in {places}; {advice}, and set data.dir=DIR \
        to their folder"
    )]
    Missing { dataset: String, files: String, places: String, advice: &'static str },
    #[error(
        "{archive}: missing {files}{}; get the official archive again, and set data.dir=DIR to its \
        folder",
        if others.is_empty() { String::new() } else { format!("; it has {others}") }
    )]
    MissingInArchive { archive: PathBuf, files: String, others: String },
    /// There are files, but not where they are looked for.
    #[error("data.dir={dir}: {found}; {advice}")]
    Layout { dir: PathBuf, found: String, advice: String },
    /// The same of a folder in it.
    #[error("{dir}: {found}; {advice}")]
    Place { dir: PathBuf, found: String, advice: String },
    #[error("{path}: {fault}; replace the file, or set data.dir=DIR to a folder with a good one")]
    Raw { path: PathBuf, fault: RawFault },
    #[error(
        "{path}: {fault}; replace it, or skip what cannot be decoded with data.on_bad_image=skip"
    )]
    Picture { path: PathBuf, fault: RawFault },
    #[error("data.coarse_map={path}: {fault}")]
    CoarseMap { path: PathBuf, fault: String },
    #[error(
        "{labels}: {label_count} labels, but {images} has {image_count} images; the two belong \
         together: replace them, or set data.dir=DIR to a folder with a matching pair"
    )]
    Counts { images: PathBuf, image_count: u64, labels: PathBuf, label_count: u64 },
    #[error(
        "pack {path}: {fault}; if it exists, delete it: `thanos-coord data pack` writes a good one"
    )]
    Pack { path: PathBuf, fault: PackFault },
    #[error("cannot write contact sheet {path}: {reason}")]
    Sheet { path: PathBuf, reason: String },
    #[error(
        "cannot write pack {path}: {source}; free some space, or choose a folder that can be \
        written"
    )]
    Write { path: PathBuf, source: io::Error },
}

impl DataError {
    /// The process's exit code (sysexits): 74 if a pack could not be written, 65 if data is bad or
    /// missing.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Write { .. } | Self::Sheet { .. } => EXIT_IO,
            _ => EXIT_DATA,
        }
    }

    pub(super) fn raw(path: &Path, fault: RawFault) -> Self {
        Self::Raw { path: path.to_owned(), fault }
    }
}

/// What is wrong inside one raw file. Records and offsets count from 0; offsets and lengths are
/// bytes, unpacked if the file is gzipped.
#[derive(Debug, Error)]
pub enum RawFault {
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    #[error("more than {max} bytes (unpacked, if it is gzipped): not a file of this data set")]
    TooLarge { max: u64 },
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
    #[error(
        "its header declares {records} records, which is {expected} bytes in all, got {got} bytes"
    )]
    Length { records: u64, expected: u64, got: u64 },
    #[error(
        "expected a whole number of records of {record_bytes} bytes, got {got} bytes: record \
        {record} is cut off"
    )]
    PartialRecord { record_bytes: u64, record: u64, got: u64 },
    #[error("this is {got}, expected {expected}")]
    OtherCifar { expected: &'static str, got: &'static str },
    #[error("record {record} at offset {offset}: expected a label in 0..={max}, got {got}")]
    Label { record: u64, offset: u64, max: u64, got: i64 },
    #[error(
        "record {record} at offset {offset}: fine label {fine} has coarse label {expected}, got \
        {got}"
    )]
    CoarseLabel { record: u64, offset: u64, fine: i64, expected: i64, got: i64 },
    #[error("it has the same content as {as_file}: one batch occurs twice, and another is missing")]
    SameContent { as_file: PathBuf },
    #[error("{0}")]
    Pickle(String),
    #[error("not the published structure: key `{key}`: expected {expected}, got {got}")]
    Structure { key: String, expected: String, got: String },
    #[error("row {row}: expected {expected}, got `{got}`")]
    Row { row: u64, expected: &'static str, got: String },
    #[error("expected {expected} rows, got {got}")]
    Rows { expected: u64, got: u64 },
    // Archives and folders of files.
    #[error("the archive is cut off")]
    ArchiveCutOff,
    #[error("the archive is damaged: {0}")]
    Archive(String),
    #[error("the .zip is damaged: {0}")]
    Zip(String),
    #[error(
        "a name occurs twice in the .zip: the training data would depend on the program that reads \
        it"
    )]
    ZipNamesTwice,
    #[error("it occurs twice in the archive")]
    TwiceInArchive,
    #[error("it is not a regular file in the archive")]
    NotRegular,
    #[error("the entry `{name}` leads out of the archive's folder", name = name.escape_debug())]
    Outside { name: String },
    #[error("folders are nested deeper than {max}")]
    TooDeep { max: usize },
    #[error("more than {max} files")]
    TooManyFiles { max: usize },
    #[error("it is not UTF-8")]
    NotUtf8,
    #[error("it does not exist")]
    NotThere,
    // Lists of classes and files; lines count from 1.
    #[error("line {line}: `{name}` occurs twice, first in line {first}")]
    Twice { line: u64, first: u64, name: String },
    #[error("{place}expected a wnid such as n01443537, got `{got}`", place = at_line(*line))]
    BadWnid { line: Option<u64>, got: String },
    #[error("{place}expected a wnid of wnids.txt, got `{got}`", place = at_line(*line))]
    UnknownWnid { line: Option<u64>, got: String },
    #[error("expected {expected} classes, got {got}")]
    Classes { expected: u64, got: u64 },
    #[error("line {line}: expected a file and a wnid separated by a tab, got `{got}`")]
    Columns { line: u64, got: String },
    #[error("line {line}: there is no file {name}")]
    NoSuchFile { line: u64, name: String },
    #[error("it has no line in {list}")]
    NotAnnotated { list: String },
    #[error("`{class}` is not a class of the training images, which are in {train}: {classes}")]
    UnknownClass { class: String, train: String, classes: String },
    #[error(
        "its name and that of `{other}` differ only in how an accent is encoded (Unicode \
         normalisation): rename one of them"
    )]
    SameName { other: String },
    #[error("there are no images in it")]
    NoPictures,
    #[error("none of {count} images can be decoded; the first: {first}")]
    AllBad { count: u64, first: String },
    // Pictures.
    #[error(
        "it is not a JPEG, PNG, WebP, BMP, TIFF, GIF or PNM file: it begins with {}",
        if start.is_empty() { "nothing" } else { start }
    )]
    NoPicture { start: String },
    #[error("the JPEG is cut off after {got} bytes")]
    PictureCutOff { got: u64 },
    #[error("the image is damaged: {0}")]
    Picture(String),
    #[error("expected {side} x {side} pixels, got {width} x {height}")]
    PictureSize { side: u32, width: u32, height: u32 },
    #[error("{width} x {height} pixels: a side may have 1 to {max}")]
    PictureSides { width: u32, height: u32, max: u32 },
    #[error("{width} x {height} pixels are more than {max}: it is not decoded")]
    PicturePixels { width: u32, height: u32, max: u64 },
}

/// Where in a list, if in one.
fn at_line(line: Option<u64>) -> String {
    line.map_or_else(String::new, |line| format!("line {line}: "))
}
