//! Many pictures of a tree, decoded by all cores into one block of pixels. What cannot be decoded
//! ends the packing, or is skipped and named, as `data.on_bad_image` says: either way the same
//! pictures whatever the number of threads.

use super::error::{DataError, RawFault};
use super::pack_file::Sink;
use super::picture::{Oddity, Rules, decode};
use super::samples::{Decoded, OnProgress};
use super::tree::{Tree, TreeFile};
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use thanos_configs::OnBadImage;
use thanos_formats::Skipped;

/// Pictures that are decoded before they are written: at 64 x 64, 12 MB.
const CHUNK: usize = 1024;

/// Endings of the files that are pictures, in lower case: torchvision's `IMG_EXTENSIONS`.
const ENDINGS: [&str; 9] =
    [".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"];

/// Version of the decoders: the pixels that they make of a picture, and the order of the pictures.
const DECODERS: u8 = 3;

/// One picture to decode, and its fine label.
#[derive(Clone, Debug)]
pub(super) struct Picture<'a> {
    pub(super) file: &'a TreeFile,
    pub(super) fine: i64,
}

/// What to do with pictures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Handling {
    pub(super) rules: Rules,
    pub(super) on_bad_image: OnBadImage,
}

impl Handling {
    /// Adds to a hash what decides about the pixels of a pack in addition to its pictures.
    pub(super) fn hash_into(self, hash: &mut Sha256) {
        let skips = u8::from(self.on_bad_image == OnBadImage::Skip);
        hash.update([DECODERS, skips, u8::from(self.rules.exif_orientation)]);
    }
}

/// Whether a file's name is that of a picture.
pub(super) fn is_picture(name: &str) -> bool {
    ENDINGS.iter().any(|ending| {
        let start = name.len().checked_sub(ending.len());
        start
            .and_then(|start| name.get(start..))
            .is_some_and(|end| end.eq_ignore_ascii_case(ending))
    })
}

/// Adds to a hash what identifies the pictures of a split.
pub(super) fn hash_into(pictures: &[Picture<'_>], hash: &mut Sha256) {
    hash.update((pictures.len() as u64).to_le_bytes());
    for picture in pictures {
        picture.file.hash_into(hash);
        hash.update(picture.fine.to_le_bytes());
    }
}

/// Decodes pictures in their order into a pack, [N, S, S, 3]: some thousands at a time, while the
/// last ones are written.
///
/// # Errors
/// The first bad picture, if bad ones are not to be skipped; or that none is good.
pub(super) fn decode_all(
    tree: &Tree,
    pictures: &[Picture<'_>],
    handling: Handling,
    sink: &mut Sink<'_>,
    progress: OnProgress<'_>,
) -> Result<Decoded, DataError> {
    let Handling { rules, on_bad_image } = handling;
    sink.expect(pictures.len(), on_bad_image == OnBadImage::Skip)?;
    let mut decoded = Decoded { fine: Vec::with_capacity(pictures.len()), ..Decoded::default() };
    let mut oddities = BTreeMap::new();
    let done = AtomicU64::new(0);
    let count = || progress(done.fetch_add(1, Ordering::Relaxed) + 1, pictures.len() as u64);
    let (mut ready, mut next) = (Vec::new(), Vec::new());
    for pictures in pictures.chunks(CHUNK) {
        let chunk = Chunk { tree, pictures };
        let (written, outcomes) =
            rayon::join(|| sink.images(&ready), || chunk.decode(rules, &mut next, &count));
        written?;
        chunk.note_oddities(&outcomes, &mut oddities);
        chunk.keep_good(outcomes, on_bad_image, &mut next, &mut decoded)?;
        std::mem::swap(&mut ready, &mut next);
    }
    sink.images(&ready)?;
    decoded.warnings = oddities.into_iter().map(|(oddity, found)| warning(oddity, found)).collect();
    match decoded.skipped.first() {
        Some(first) if decoded.fine.is_empty() => {
            let fault =
                RawFault::AllBad { count: pictures.len() as u64, first: first.reason.clone() };
            Err(DataError::raw(&tree.path(&first.name), fault))
        }
        _ => Ok(decoded),
    }
}

/// How many pictures are odd in one way, and the first of them.
type Found<'a> = (u64, &'a str);

fn warning(oddity: Oddity, (count, first): Found<'_>) -> String {
    let (images, verb) = if count == 1 { ("image", "has") } else { ("images", "have") };
    format!("{count} {images} {verb} {}; the first is {first}", oddity.text())
}

type Outcome = Result<Option<Oddity>, RawFault>;

/// Pictures that are decoded together.
struct Chunk<'a> {
    tree: &'a Tree,
    pictures: &'a [Picture<'a>],
}

impl<'a> Chunk<'a> {
    /// Decodes them into `pixels`, one after the other.
    fn decode(
        &self,
        rules: Rules,
        pixels: &mut Vec<u8>,
        count: &(dyn Fn() + Sync),
    ) -> Vec<Outcome> {
        let bytes = rules.size.bytes();
        pixels.resize(self.pictures.len() * bytes, 0);
        let one = |(out, picture): (&mut [u8], &Picture<'_>)| {
            let content = self.tree.read(picture.file);
            let outcome = content.and_then(|content| decode(&content, rules, out));
            count();
            outcome
        };
        pixels.par_chunks_exact_mut(bytes).zip(self.pictures).map(one).collect()
    }

    fn note_oddities(&self, outcomes: &[Outcome], noted: &mut BTreeMap<Oddity, Found<'a>>) {
        for (picture, outcome) in self.pictures.iter().zip(outcomes) {
            if let Ok(Some(oddity)) = outcome {
                noted.entry(*oddity).or_insert((0, picture.file.name.as_str())).0 += 1;
            }
        }
    }

    /// Moves what could be decoded together, and notes labels and what is skipped.
    fn keep_good(
        &self,
        outcomes: Vec<Outcome>,
        on_bad_image: OnBadImage,
        pixels: &mut Vec<u8>,
        decoded: &mut Decoded,
    ) -> Result<(), DataError> {
        let bytes = pixels.len() / self.pictures.len();
        let mut kept = 0;
        for (at, (picture, outcome)) in self.pictures.iter().zip(outcomes).enumerate() {
            let name = &picture.file.name;
            match outcome {
                Ok(_) => {
                    if kept < at {
                        pixels.copy_within(at * bytes..(at + 1) * bytes, kept * bytes);
                    }
                    kept += 1;
                    decoded.fine.push(picture.fine);
                }
                Err(fault) if on_bad_image == OnBadImage::Fail => {
                    return Err(DataError::Picture { path: self.tree.path(name), fault });
                }
                Err(fault) => {
                    let skipped = Skipped { name: name.clone(), reason: fault.to_string() };
                    decoded.skipped.push(skipped);
                }
            }
        }
        pixels.truncate(kept * bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_are_known_by_their_endings() {
        for name in ["a.jpg", "a/b.JPEG", "é.WebP", "x.y.tif", ".png"] {
            assert!(is_picture(name), "{name}");
        }
        for name in ["jpg", "a.jpg.txt", "a.gif", "é", "a.jpeg2"] {
            assert!(!is_picture(name), "{name}");
        }
    }
}
