//! Many pictures of a tree, decoded by all cores into one block of pixels. What cannot be decoded ends the packing, or
//! is left out and named, as `data.on_bad_image` says: either way the same pictures whatever the number of threads.

use super::error::{DataError, RawFault};
use super::pack_file::Sink;
use super::picture::{Size, decode};
use super::tree::{Tree, TreeFile};
use super::{Decoded, OnProgress, Skipped};
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use std::sync::atomic::{AtomicU64, Ordering};
use thanos_configs::OnBadImage;

/// Pictures that are decoded before they are written: at 64 x 64, 12 MB.
const CHUNK: usize = 1024;

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

/// Adds to a hash what tells the pictures of a pack from others: their tree, and whether bad ones are left out.
pub(super) fn hash_into(tree: &Tree, on_bad_image: OnBadImage, hash: &mut Sha256) {
    hash.update([u8::from(on_bad_image == OnBadImage::Skip)]);
    tree.hash_into(hash);
}

/// Decodes pictures in their order into a pack, [N, S, S, 3]: some thousands at a time, while the last ones are
/// written.
///
/// # Errors
/// The first bad picture, if bad ones are not to be skipped; or that none is good.
pub(super) fn decode_all(
    tree: &Tree,
    pictures: &[Picture<'_>],
    (size, on_bad_image): (Size, OnBadImage),
    sink: &mut Sink<'_>,
    progress: OnProgress<'_>,
) -> Result<Decoded, DataError> {
    sink.expect(pictures.len(), on_bad_image == OnBadImage::Skip)?;
    let mut decoded = Decoded { fine: Vec::with_capacity(pictures.len()), skipped: Vec::new() };
    let done = AtomicU64::new(0);
    let count = || progress(done.fetch_add(1, Ordering::Relaxed) + 1, pictures.len() as u64);
    let (mut ready, mut next) = (Vec::new(), Vec::new());
    for chunk in pictures.chunks(CHUNK) {
        let (written, faults) =
            rayon::join(|| sink.images(&ready), || decode_chunk(tree, chunk, (size, &mut next), &count));
        written?;
        keep_good(tree, chunk, faults, &mut next, (on_bad_image, &mut decoded))?;
        std::mem::swap(&mut ready, &mut next);
    }
    sink.images(&ready)?;
    match decoded.skipped.first() {
        Some(first) if decoded.fine.is_empty() => {
            let fault = RawFault::AllBad { count: pictures.len() as u64, first: first.reason.clone() };
            Err(DataError::raw(&tree.path(&first.name), fault))
        }
        _ => Ok(decoded),
    }
}

/// Decodes some pictures into `pixels`, one behind the other; says what is wrong with each, if anything.
fn decode_chunk(
    tree: &Tree,
    pictures: &[Picture<'_>],
    (size, pixels): (Size, &mut Vec<u8>),
    count: &(dyn Fn() + Sync),
) -> Vec<Option<RawFault>> {
    let bytes = size.bytes();
    pixels.resize(pictures.len() * bytes, 0);
    let one = |(out, picture): (&mut [u8], &Picture<'_>)| {
        let fault = read_and_decode(tree, picture.file, size, out).err();
        count();
        fault
    };
    pixels.par_chunks_exact_mut(bytes).zip(pictures).map(one).collect()
}

/// Moves what could be decoded together, and notes labels and what is skipped.
fn keep_good(
    tree: &Tree,
    pictures: &[Picture<'_>],
    faults: Vec<Option<RawFault>>,
    pixels: &mut Vec<u8>,
    (on_bad_image, decoded): (OnBadImage, &mut Decoded),
) -> Result<(), DataError> {
    let bytes = pixels.len() / pictures.len();
    let mut kept = 0;
    for (at, (picture, fault)) in pictures.iter().zip(faults).enumerate() {
        match fault {
            None => {
                if kept < at {
                    pixels.copy_within(at * bytes..(at + 1) * bytes, kept * bytes);
                }
                kept += 1;
                decoded.fine.push(picture.fine);
            }
            Some(fault) if on_bad_image == OnBadImage::Fail => {
                return Err(DataError::Picture { path: tree.path(&picture.file.name), fault });
            }
            Some(fault) => {
                decoded.skipped.push(Skipped { name: picture.file.name.clone(), reason: fault.to_string() });
            }
        }
    }
    pixels.truncate(kept * bytes);
    Ok(())
}

fn read_and_decode(tree: &Tree, file: &TreeFile, size: Size, out: &mut [u8]) -> Result<(), RawFault> {
    if !is_picture(&file.name) {
        return Err(RawFault::Ending { expected: ENDINGS.join(", ") });
    }
    decode(&tree.read(file)?, size, out)
}
