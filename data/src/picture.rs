//! One picture: from the bytes of a file to [S, S, 3] u8, as Pillow's `convert("RGB")` gives them.
//! What it is, is known by its bytes and not by its name; its size is looked at before anything is
//! decoded. It knows neither files nor labels.

mod jpeg;
mod rgb;

use super::error::RawFault;
use image::imageops::{self, FilterType};
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits, RgbImage};
use std::io::Cursor;

/// Pixels of a side, before resizing.
const MAX_SIDE: u32 = 16_384;
/// Pixels of a picture: a decoder may need a dozen bytes for each.
const MAX_PIXELS: u64 = 100_000_000;
/// Bytes that a decoder may ask for.
const MAX_ALLOCATION: u64 = 1 << 30;

const JPEG_START: [u8; 2] = [0xff, 0xd8];

/// The last chunk of a PNG: Pillow does without.
const PNG_END: [u8; 12] = *b"\0\0\0\0IEND\xaeB`\x82";

/// What size a picture must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Size {
    /// S x S already.
    Exact(usize),
    /// Any: its shorter side is resized to S, and the middle is cut out.
    Fit(usize),
}

impl Size {
    fn side(self) -> usize {
        match self {
            Self::Exact(side) | Self::Fit(side) => side,
        }
    }

    /// Bytes of a decoded picture.
    pub(super) fn bytes(self) -> usize {
        self.side() * self.side() * 3
    }
}

/// How pictures become pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rules {
    pub(super) size: Size,
    /// Whether a picture is turned as its EXIF orientation says.
    pub(super) exif_orientation: bool,
}

/// What is unusual about a picture that was decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Oddity {
    BytesAfterEnd,
    Damaged,
}

impl Oddity {
    /// What such images have, for a message.
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::BytesAfterEnd => "bytes after the end of the image, which are ignored",
            Self::Damaged => "damaged data, which is decoded as far as it goes",
        }
    }
}

/// Decodes a picture into `out`, [S, S, 3]; grey ones get three equal channels, transparency is
/// ignored.
///
/// # Errors
/// If it has none of the known formats, is cut off or damaged, or has another size or one that is
/// too large.
pub(super) fn decode(
    content: &[u8],
    rules: Rules,
    out: &mut [u8],
) -> Result<Option<Oddity>, RawFault> {
    let (picture, oddity) = decode_rgb(content, rules)?;
    fit(&picture, rules.size, out);
    Ok(oddity)
}

/// A picture in its own size.
///
/// # Errors
/// As [`decode`].
pub(super) fn decode_rgb(
    content: &[u8],
    rules: Rules,
) -> Result<(RgbImage, Option<Oddity>), RawFault> {
    if content.starts_with(&JPEG_START) {
        return jpeg::decode(content, rules);
    }
    let format = image::guess_format(content).ok().filter(|format| is_read(*format));
    let Some(format) = format else {
        let start: Vec<String> = content.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        return Err(RawFault::NoPicture { start: start.join(" ") });
    };
    match decode_as(content, format, rules) {
        Err(RawFault::Picture(_)) if format == ImageFormat::Png => {
            Ok((decode_as(&[content, &PNG_END].concat(), format, rules)?, Some(Oddity::Damaged)))
        }
        decoded => Ok((decoded?, None)),
    }
}

fn decode_as(content: &[u8], format: ImageFormat, rules: Rules) -> Result<RgbImage, RawFault> {
    let damaged = |error: image::ImageError| RawFault::Picture(error.to_string());
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    limits.max_alloc = Some(MAX_ALLOCATION);
    let mut reader = ImageReader::with_format(Cursor::new(content), format);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(damaged)?;
    let (width, height) = decoder.dimensions();
    check_size(width, height, rules.size)?;
    // Pillow turns a TIFF by itself, as the format asks for.
    let is_turned = rules.exif_orientation || format == ImageFormat::Tiff;
    let orientation =
        if is_turned { decoder.orientation().map_err(damaged)? } else { Orientation::NoTransforms };
    let mut picture = DynamicImage::from_decoder(decoder).map_err(damaged)?;
    picture.apply_orientation(orientation);
    Ok(rgb::of(picture))
}

fn is_read(format: ImageFormat) -> bool {
    use ImageFormat::{Bmp, Gif, Png, Pnm, Tiff, WebP};
    matches!(format, Bmp | Gif | Png | Pnm | Tiff | WebP)
}

fn check_size(width: u32, height: u32, size: Size) -> Result<(), RawFault> {
    if width == 0 || height == 0 || width > MAX_SIDE || height > MAX_SIDE {
        return Err(RawFault::PictureSides { width, height, max: MAX_SIDE });
    }
    if u64::from(width) * u64::from(height) > MAX_PIXELS {
        return Err(RawFault::PicturePixels { width, height, max: MAX_PIXELS });
    }
    match size {
        Size::Exact(side) if (width as usize, height as usize) != (side, side) => {
            Err(RawFault::PictureSize { side: side as u32, width, height })
        }
        _ => Ok(()),
    }
}

fn fit(picture: &RgbImage, size: Size, out: &mut [u8]) {
    let (width, height) = picture.dimensions();
    let side = size.side() as u32;
    if (width, height) == (side, side) {
        return out.copy_from_slice(picture.as_raw());
    }
    // The square in the middle, then to S x S: bilinear, over all pixels that a smaller one stands
    // for.
    let square = width.min(height);
    let middle =
        imageops::crop_imm(picture, (width - square) / 2, (height - square) / 2, square, square);
    let resized = imageops::resize(&*middle, side, side, FilterType::Triangle);
    out.copy_from_slice(resized.as_raw());
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::codecs::jpeg::JpegEncoder;
    use image::{ExtendedColorType, ImageEncoder, ImageFormat, Luma, Rgb, Rgba};

    fn jpeg(width: u32, height: u32, color: ExtendedColorType) -> Vec<u8> {
        let bytes = color.channel_count() as usize * (width * height) as usize;
        let pixels: Vec<u8> = (0..bytes).map(|i| (i * 7 % 251) as u8).collect();
        let mut file = Vec::new();
        JpegEncoder::new_with_quality(&mut file, 90)
            .write_image(&pixels, width, height, color)
            .expect("a JPEG");
        file
    }

    fn png(picture: DynamicImage) -> Vec<u8> {
        let mut file = Cursor::new(Vec::new());
        picture.write_to(&mut file, ImageFormat::Png).expect("a PNG");
        file.into_inner()
    }

    fn plain(size: Size) -> Rules {
        Rules { size, exif_orientation: false }
    }

    #[track_caller]
    fn refused(content: &[u8], size: Size, part: &str) {
        let error =
            decode(content, plain(size), &mut [0; 16 * 16 * 3]).expect_err("it is bad").to_string();
        assert!(error.contains(part), "no `{part}` in `{error}`");
    }

    #[test]
    fn png_pixels_come_through_as_they_are() {
        let picture = RgbImage::from_fn(16, 16, |x, y| Rgb([x as u8, y as u8, 200]));
        let mut out = [0; 16 * 16 * 3];
        decode(&png(picture.clone().into()), plain(Size::Exact(16)), &mut out).expect("good");
        assert_eq!(out.as_slice(), picture.as_raw().as_slice());
        decode(&png(picture.clone().into()), plain(Size::Fit(16)), &mut out).expect("good");
        assert_eq!(out.as_slice(), picture.as_raw().as_slice());
    }

    #[test]
    fn grey_pictures_get_three_equal_channels() {
        let equal = |content: &[u8]| {
            let mut out = [0; 16 * 16 * 3];
            decode(content, plain(Size::Exact(16)), &mut out).expect("good");
            assert!(out.as_chunks::<3>().0.iter().all(|[r, g, b]| r == g && g == b));
            assert!(out.iter().max() > Some(&100), "it is not all black");
        };
        equal(&jpeg(16, 16, ExtendedColorType::L8));
        equal(&png(image::GrayImage::from_fn(16, 16, |x, _| Luma([x as u8 * 15])).into()));
    }

    /// 32 x 16 with a red left, a green middle and a blue right part: the middle is what is left.
    #[test]
    fn the_middle_of_an_oblong_picture_is_cut_out() {
        let colour = |x: u32| {
            if x < 8 {
                [255, 0, 0]
            } else if x < 24 {
                [0, 255, 0]
            } else {
                [0, 0, 255]
            }
        };
        let picture = RgbImage::from_fn(32, 16, |x, _| Rgb(colour(x)));
        let mut out = [0; 8 * 8 * 3];
        decode(&png(picture.into()), plain(Size::Fit(8)), &mut out).expect("good");
        assert!(out.as_chunks::<3>().0.iter().all(|pixel| *pixel == [0, 255, 0]), "{out:?}");
        let clear = image::RgbaImage::from_pixel(8, 8, Rgba([9, 8, 7, 0]));
        decode(&png(clear.into()), plain(Size::Fit(8)), &mut out).expect("good");
    }

    #[test]
    fn bad_pictures_say_what_is_wrong() {
        let good = jpeg(16, 16, ExtendedColorType::Rgb8);
        refused(
            b"RIFF....AVI ",
            Size::Exact(16),
            "not a JPEG, PNG, WebP, BMP, TIFF, GIF or PNM file: it begins with 52 49 46 46",
        );
        refused(b"", Size::Exact(16), "it begins with nothing");
        refused(&good, Size::Exact(8), "expected 8 x 8 pixels, got 16 x 16");
        for cut in 2..good.len() {
            refused(&good[..cut], Size::Exact(16), "the JPEG is cut off after");
        }
        let good = png(RgbImage::new(16, 16).into());
        for cut in 8..good.len() - 12 {
            assert!(
                decode(&good[..cut], plain(Size::Exact(16)), &mut [0; 768]).is_err(),
                "{cut} of {} bytes",
                good.len()
            );
        }
    }

    /// A header that promises a billion pixels, in front of a few bytes.
    #[test]
    fn bombs_are_refused_before_they_are_decoded() {
        let mut bomb = jpeg(16, 16, ExtendedColorType::Rgb8);
        let frame = bomb.windows(2).position(|two| two == [0xff, 0xc0]).expect("a baseline frame");
        bomb[frame + 5..frame + 9].copy_from_slice(&[0x40, 0, 0x40, 0]);
        refused(&bomb, Size::Fit(16), "16384 x 16384 pixels are more than 100000000");
        bomb[frame + 5..frame + 9].copy_from_slice(&[0xff, 0xff, 0xff, 0xff]);
        assert!(decode(&bomb, plain(Size::Fit(16)), &mut [0; 768]).is_err());
        let mut bomb = png(RgbImage::new(16, 16).into());
        bomb[16..24].copy_from_slice(&[0x7f, 0xff, 0xff, 0xff, 0x7f, 0xff, 0xff, 0xff]);
        assert!(decode(&bomb, plain(Size::Fit(16)), &mut [0; 768]).is_err());
    }
}
