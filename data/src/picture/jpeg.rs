//! JPEG as Pillow reads it: what follows the end marker is ignored, damaged data is decoded as far
//! as it goes, and a file without an end marker is cut off.

use super::super::error::RawFault;
use super::{MAX_SIDE, Oddity, Rules, check_size};
use image::metadata::Orientation;
use image::{DynamicImage, RgbImage};
use zune_core::bytestream::ZCursor;
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;
use zune_jpeg::JpegDecoder;
use zune_jpeg::errors::DecodeErrors;

const MARKER: u8 = 0xff;
const END: u8 = 0xd9;
const SCAN: u8 = 0xda;

/// As [`super::decode_rgb`].
pub(super) fn decode(content: &[u8], rules: Rules) -> Result<(RgbImage, Option<Oddity>), RawFault> {
    // Some decoders fill what is missing with grey: a file that does not end like one is not
    // decoded at all.
    let end = end(content).ok_or(RawFault::PictureCutOff { got: content.len() as u64 })?;
    let (content, rest) = content.split_at(end);
    match pixels(content, rules, true) {
        Err(RawFault::Picture(_)) => Ok((pixels(content, rules, false)?, Some(Oddity::Damaged))),
        // Padding to a whole block of a disk or a network is nothing unusual.
        decoded => {
            Ok((decoded?, rest.iter().any(|byte| *byte != 0).then_some(Oddity::BytesAfterEnd)))
        }
    }
}

fn pixels(content: &[u8], rules: Rules, strict: bool) -> Result<RgbImage, RawFault> {
    let damaged = |error: DecodeErrors| RawFault::Picture(error.to_string());
    let options = DecoderOptions::default()
        .set_strict_mode(strict)
        .set_max_width(MAX_SIDE as usize)
        .set_max_height(MAX_SIDE as usize)
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(content), options);
    decoder.decode_headers().map_err(damaged)?;
    let info = decoder.info().ok_or_else(|| RawFault::Picture("it has no header".into()))?;
    let (width, height) = (u32::from(info.width), u32::from(info.height));
    check_size(width, height, rules.size)?;
    let exif = decoder.exif().filter(|_| rules.exif_orientation);
    let orientation = exif
        .and_then(|exif| Orientation::from_exif_chunk(exif))
        .unwrap_or(Orientation::NoTransforms);
    let pixels = decoder.decode().map_err(damaged)?;
    let length = pixels.len();
    let picture = RgbImage::from_raw(width, height, pixels).ok_or_else(|| {
        RawFault::Picture(format!("{length} bytes for {width} x {height} pixels"))
    })?;
    let mut picture = DynamicImage::from(picture);
    picture.apply_orientation(orientation);
    Ok(picture.into_rgb8())
}

/// Where the picture ends, which is after its end marker; segments may hold markers of other
/// pictures (previews).
fn end(content: &[u8]) -> Option<usize> {
    let mut data = None;
    by_segments(content, &mut data).or_else(|| {
        // A damaged length leads past the end: the last end marker among compressed data is that of
        // the picture.
        let data = data?;
        content[data..].windows(2).rposition(|two| two == [MARKER, END]).map(|at| data + at + 2)
    })
}

/// The end marker that is found from segment to segment; `data` becomes where the first compressed
/// data begins.
fn by_segments(content: &[u8], data: &mut Option<usize>) -> Option<usize> {
    let mut at = 2;
    loop {
        // Bytes between segments, and fill bytes, are skipped.
        at += content.get(at..)?.iter().position(|byte| *byte == MARKER)?;
        at += content.get(at..)?.iter().position(|byte| *byte != MARKER)?;
        let marker = content[at];
        at += 1;
        match marker {
            END => return Some(at),
            // Without a length: a byte of data, restarts, starts.
            0 | 1 | 0xd0..=0xd8 => {}
            _ => {
                let length = content.get(at..at + 2)?;
                at += usize::from(u16::from_be_bytes([length[0], length[1]]).max(2));
                if marker == SCAN {
                    _ = content.get(at)?;
                    data.get_or_insert(at);
                    at = scan_end(content, at)?;
                }
            }
        }
    }
}

/// Where the compressed data that begins at `at` ends: at the next marker that is not a restart.
fn scan_end(content: &[u8], at: usize) -> Option<usize> {
    let is_end = |two: &[u8]| two[0] == MARKER && !matches!(two[1], 0 | 0xd0..=0xd7 | MARKER);
    content.get(at..)?.windows(2).position(is_end).map(|offset| at + offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_that_of_the_picture() {
        let segment = |marker: u8, body: &[u8]| {
            [&[MARKER, marker][..], &(body.len() as u16 + 2).to_be_bytes(), body].concat()
        };
        let preview = segment(0xe1, &[MARKER, 0xd8, MARKER, END]);
        let scan = [segment(SCAN, &[1]), vec![7, MARKER, 0, MARKER, 0xd3, 9]].concat();
        let whole =
            [&[MARKER, 0xd8][..], &preview, &[0, MARKER], &scan, &scan, &[MARKER, END]].concat();
        assert_eq!(end(&whole), Some(whole.len()));
        let next = [&whole[..], &whole].concat();
        assert_eq!(end(&next), Some(whole.len()), "of the first of two");
        assert_eq!(end(&whole[..whole.len() - 1]), None, "only the preview's is there");
        let mut damaged = whole.clone();
        damaged[2 + preview.len() + 2 + scan.len() + 2] = 0x40;
        assert_eq!(end(&damaged), Some(whole.len()), "the second scan's length leads past the end");
        assert_eq!(end(&[MARKER, 0xd8, MARKER]), None);
    }
}
