//! Many pictures of a tree, decoded by all cores into one block of pixels. What cannot be decoded ends the packing, or
//! is left out and named, as `data.on_bad_image` says: either way the same pictures whatever the number of threads.

use super::error::{DataError, RawFault};
use super::picture::{Size, decode};
use super::tree::{Tree, TreeFile};
use super::{OnProgress, Samples, Skipped};
use rayon::prelude::*;
use std::sync::atomic::{AtomicU64, Ordering};
use thanos_configs::OnBadImage;

/// Endings of the files that are pictures, in lower case.
const ENDINGS: [&str; 3] = [".jpeg", ".jpg", ".png"];

/// One picture to decode, and its fine label.
#[derive(Clone, Debug)]
pub(super) struct Picture<'a> {
    pub(super) file: &'a TreeFile,
    pub(super) fine: i64,
}

/// Whether a file's name is that of a picture.
pub(super) fn is_picture(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    ENDINGS.iter().any(|ending| name.ends_with(ending))
}

/// Decodes pictures in their order, [N, S, S, 3].
///
/// # Errors
/// The first bad picture, if bad ones are not to be skipped; or that none is good.
pub(super) fn decode_all(
    tree: &Tree,
    pictures: &[Picture<'_>],
    size: Size,
    on_bad_image: OnBadImage,
    progress: OnProgress<'_>,
) -> Result<Samples, DataError> {
    let (Size::Exact(side) | Size::Fit(side)) = size;
    let bytes = side * side * 3;
    let total = pictures.len() as u64;
    let mut images = vec![0; pictures.len() * bytes];
    let done = AtomicU64::new(0);
    let faults: Vec<Option<RawFault>> = images
        .par_chunks_exact_mut(bytes)
        .zip(pictures)
        .map(|(out, picture)| {
            let fault = read_and_decode(tree, picture.file, size, out).err();
            progress(done.fetch_add(1, Ordering::Relaxed) + 1, total);
            fault
        })
        .collect();
    let mut samples = Samples { images: Vec::new(), fine: Vec::new(), skipped: Vec::new() };
    let mut kept = 0;
    for (at, (picture, fault)) in pictures.iter().zip(faults).enumerate() {
        match fault {
            None => {
                images.copy_within(at * bytes..(at + 1) * bytes, kept * bytes);
                kept += 1;
                samples.fine.push(picture.fine);
            }
            Some(fault) if on_bad_image == OnBadImage::Fail => {
                return Err(DataError::Picture { path: tree.path(&picture.file.name), fault });
            }
            Some(fault) => {
                samples.skipped.push(Skipped { name: picture.file.name.clone(), reason: fault.to_string() });
            }
        }
    }
    images.truncate(kept * bytes);
    samples.images = images;
    match samples.skipped.first() {
        Some(first) if kept == 0 => {
            Err(DataError::raw(&tree.path(&first.name), RawFault::AllBad { count: total, first: first.reason.clone() }))
        }
        _ => Ok(samples),
    }
}

fn read_and_decode(tree: &Tree, file: &TreeFile, size: Size, out: &mut [u8]) -> Result<(), RawFault> {
    if !is_picture(&file.name) {
        return Err(RawFault::Ending { expected: ENDINGS.join(", ") });
    }
    decode(&tree.read(file)?, size, out)
}
