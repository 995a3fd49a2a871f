//! Data ingestion: raw files are read, checked and decoded once into a pack a split, which every worker maps.
//! A pack is a safetensors file: `images` u8 [N, H, W, C], `fine` and `coarse` i64 [N], and a header that describes
//! them. Pixels are stored as they are: mean, std and views are the worker's. This module knows no run and no network.

mod cifar;
mod digits;
mod error;
mod idx;
mod info;
mod pack_file;
mod pack_header;
mod raw;
mod sources;

pub use error::{DataError, PackFault, RawFault};
pub use info::PackInfo;

use pack_file::Contents;
use pack_header::Header;
use raw::RawFile;
use sha2::{Digest, Sha256};
use sources::Sources;
use std::path::{Path, PathBuf};
use std::thread;
use thanos_configs::{DataKind, DataSet, hex};

/// One split's pack on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackFile {
    /// `train` or `test`.
    pub split: String,
    pub path: PathBuf,
    /// SHA-256 over shape, images and labels, in hexadecimal: equal wherever and whenever the same data is packed.
    pub fingerprint: String,
    /// Number of images.
    pub images: u64,
}

/// The packs of a data set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packs {
    pub train: PackFile,
    pub test: PackFile,
    /// Both were there already and nothing was decoded.
    pub reused: bool,
}

/// Packs a data set's raw files into `packs_dir`, which is made if need be; a pack of the same raw bytes is reused.
/// `dir` is `data.dir`; an embedded data set ignores it. Several processes may do this at once.
///
/// # Errors
/// If raw files are missing or bad, or a pack cannot be written.
pub fn pack(kind: DataKind, dir: Option<&Path>, packs_dir: &Path) -> Result<Packs, DataError> {
    let sources = Sources::locate(kind, dir)?;
    // One split after the other: only one is in memory.
    let split = |split| pack_split(kind, split, &sources.read(split)?, packs_dir);
    let (train, train_reused) = split(Split::Train)?;
    let (test, test_reused) = split(Split::Test)?;
    Ok(Packs { train, test, reused: train_reused && test_reused })
}

/// What `thanos-coord data info` prints about a pack; mean and std are measured. It does not check the fingerprint.
///
/// # Errors
/// If the file is no pack, or is cut off.
pub fn info(path: &Path) -> Result<PackInfo, DataError> {
    let read = || PackInfo::of(pack_file::read(path)?);
    read().map_err(|fault| DataError::Pack { path: path.to_owned(), fault })
}

/// Recomputes a pack's fingerprint from its images and labels.
///
/// # Errors
/// If the file is no pack, is cut off, or holds something else than when it was written.
pub fn verify(path: &Path) -> Result<(), DataError> {
    pack_file::verify(path).map_err(|fault| DataError::Pack { path: path.to_owned(), fault })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Split {
    Train,
    Test,
}

impl Split {
    fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Test => "test",
        }
    }
}

/// Decoded images, [N, H, W, C] u8, and their fine labels, [N], each below the number of classes.
struct Samples {
    images: Vec<u8>,
    fine: Vec<i64>,
}

/// Also says whether the pack was there.
fn pack_split(
    kind: DataKind,
    split: Split,
    files: &[RawFile],
    packs_dir: &Path,
) -> Result<(PackFile, bool), DataError> {
    let data = DataSet::of(kind);
    let source = source_sha256(&data, split, files);
    let path = packs_dir.join(format!("{}-{}-{}.safetensors", data.name, split.name(), &source[..16]));
    let (header, reused) = match Header::read(&path) {
        Ok(header) if header.describes(&data, split.name()) => (header, true),
        // None yet, or one that is damaged: it is replaced.
        _ => {
            let contents = Contents::new(&data, decode(kind, split, files)?);
            let header = pack_file::write(&path, &data, split.name(), &contents)
                .map_err(|source| DataError::Write { path: path.clone(), source })?;
            (header, false)
        }
    };
    let split = split.name().to_owned();
    Ok((PackFile { split, path, images: header.images(), fingerprint: header.fingerprint }, reused))
}

/// Decides whether a pack may be reused: over the raw bytes, the header's words (format, names, mean and std among
/// them) and the map to coarse labels, so that a corrected fact makes a new pack.
fn source_sha256(data: &DataSet, split: Split, files: &[RawFile]) -> String {
    let mut hash = Sha256::new();
    hash.update(pack_header::to_bytes(data, split.name(), 0, ""));
    data.labels.coarse_of.iter().for_each(|coarse| hash.update(coarse.to_le_bytes()));
    files.iter().for_each(|file| file.hash_into(&mut hash));
    hex(&hash.finalize())
}

/// `files` are in the order of `Sources`.
fn decode(kind: DataKind, split: Split, files: &[RawFile]) -> Result<Samples, DataError> {
    let data = DataSet::of(kind);
    let classes = data.labels.fine_names.len();
    match kind {
        DataKind::Digits => decode_file(&files[0], |content| digits::decode(content, split)),
        DataKind::Mnist | DataKind::FashionMnist => decode_idx(&data, &files[0], &files[1]),
        DataKind::Cifar10 => thread::scope(|scope| {
            let decode_batch = |file| scope.spawn(move || decode_file(file, |content| cifar::decode(content, classes)));
            let batches: Vec<_> = files.iter().map(decode_batch).collect();
            let mut all = Samples { images: Vec::new(), fine: Vec::new() };
            for batch in batches {
                let batch = batch.join().expect("a decoder does not panic")?;
                all.images.extend(batch.images);
                all.fine.extend(batch.fine);
            }
            Ok(all)
        }),
    }
}

fn decode_idx(data: &DataSet, images: &RawFile, labels: &RawFile) -> Result<Samples, DataError> {
    let classes = data.labels.fine_names.len();
    let pixels = decode_file(images, |content| idx::images(content, data.side).map(<[u8]>::to_vec))?;
    let fine = decode_file(labels, |content| idx::labels(content, classes))?;
    let (image_count, label_count) = ((pixels.len() / (data.side * data.side)) as u64, fine.len() as u64);
    if image_count != label_count {
        let (images, labels) = (images.path.clone(), labels.path.clone());
        return Err(DataError::Counts { images, image_count, labels, label_count });
    }
    Ok(Samples { images: pixels, fine })
}

fn decode_file<T>(file: &RawFile, decode: impl FnOnce(&[u8]) -> Result<T, RawFault>) -> Result<T, DataError> {
    decode(&file.content()?).map_err(|fault| DataError::raw(&file.path, fault))
}

#[cfg(test)]
mod tests;
