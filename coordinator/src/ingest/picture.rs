//! One picture: from the bytes of a JPEG or PNG file to [S, S, 3] u8. Its size is looked at before anything is
//! decoded. It knows neither files nor labels.

use super::error::RawFault;
use image::codecs::png::PngDecoder;
use image::imageops::{self, FilterType};
use image::{DynamicImage, ImageDecoder, Limits, RgbImage};
use std::io::Cursor;
use zune_core::bytestream::ZCursor;
use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;
use zune_jpeg::JpegDecoder;

/// Pixels of a side, before resizing.
const MOST_SIDE: u32 = 16_384;
/// Pixels of a picture: a decoder may need a dozen bytes for each.
const MOST_PIXELS: u64 = 100_000_000;
/// Bytes that a decoder may ask for.
const MOST_ALLOCATION: u64 = 1 << 30;

const JPEG_START: [u8; 2] = [0xff, 0xd8];
const JPEG_END: [u8; 2] = [0xff, 0xd9];
const PNG_START: [u8; 8] = *b"\x89PNG\r\n\x1a\n";

/// What size a picture must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Size {
    /// S x S already.
    Exact(usize),
    /// Whatever it has: its shorter side is resized to S, and the middle is cut out.
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

/// Decodes a picture into `out`, [S, S, 3]; grey ones get three equal channels, what is transparent becomes black.
///
/// # Errors
/// If it is neither JPEG nor PNG, is cut off or damaged, or has another size or one that is too large.
pub(super) fn decode(content: &[u8], size: Size, out: &mut [u8]) -> Result<(), RawFault> {
    if content.starts_with(&JPEG_START) {
        decode_jpeg(content, size, out)
    } else if content.starts_with(&PNG_START) {
        decode_png(content, size, out)
    } else {
        let start: Vec<String> = content.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        Err(RawFault::NoPicture { start: start.join(" ") })
    }
}

fn decode_jpeg(content: &[u8], size: Size, out: &mut [u8]) -> Result<(), RawFault> {
    // Some decoders fill what is missing with grey: a file that does not end like one is not decoded at all.
    let trimmed = content.iter().rposition(|byte| *byte != 0).map_or(content, |last| &content[..=last]);
    if !trimmed.ends_with(&JPEG_END) {
        return Err(RawFault::PictureCutOff { got: content.len() as u64 });
    }
    let damaged = |error: zune_jpeg::errors::DecodeErrors| RawFault::Picture(error.to_string());
    let options = DecoderOptions::default()
        .set_strict_mode(true)
        .set_max_width(MOST_SIDE as usize)
        .set_max_height(MOST_SIDE as usize)
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(content), options);
    decoder.decode_headers().map_err(damaged)?;
    let info = decoder.info().ok_or_else(|| RawFault::Picture("it has no header".into()))?;
    let (width, height) = (u32::from(info.width), u32::from(info.height));
    check_size(width, height, size)?;
    if decoder.output_buffer_size() == Some(out.len()) && matches!(size, Size::Exact(_)) {
        return decoder.decode_into(out).map_err(damaged);
    }
    let pixels = decoder.decode().map_err(damaged)?;
    let length = pixels.len();
    let picture = RgbImage::from_raw(width, height, pixels)
        .ok_or_else(|| RawFault::Picture(format!("{length} bytes for {width} x {height} pixels")))?;
    fit(&picture, size, out);
    Ok(())
}

fn decode_png(content: &[u8], size: Size, out: &mut [u8]) -> Result<(), RawFault> {
    let damaged = |error: image::ImageError| RawFault::Picture(error.to_string());
    let mut limits = Limits::default();
    limits.max_image_width = Some(MOST_SIDE);
    limits.max_image_height = Some(MOST_SIDE);
    limits.max_alloc = Some(MOST_ALLOCATION);
    let decoder = PngDecoder::with_limits(Cursor::new(content), limits).map_err(damaged)?;
    let (width, height) = decoder.dimensions();
    check_size(width, height, size)?;
    let picture = DynamicImage::from_decoder(decoder).map_err(damaged)?;
    fit(&picture.to_rgb8(), size, out);
    Ok(())
}

fn check_size(width: u32, height: u32, size: Size) -> Result<(), RawFault> {
    if width == 0 || height == 0 || width > MOST_SIDE || height > MOST_SIDE {
        return Err(RawFault::PictureSides { width, height, most: MOST_SIDE });
    }
    if u64::from(width) * u64::from(height) > MOST_PIXELS {
        return Err(RawFault::PicturePixels { width, height, most: MOST_PIXELS });
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
    // The square in the middle, then to S x S: bilinear, over all pixels that a smaller one stands for.
    let square = width.min(height);
    let middle = imageops::crop_imm(picture, (width - square) / 2, (height - square) / 2, square, square);
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
        JpegEncoder::new_with_quality(&mut file, 90).write_image(&pixels, width, height, color).expect("a JPEG");
        file
    }

    fn png(picture: DynamicImage) -> Vec<u8> {
        let mut file = Cursor::new(Vec::new());
        picture.write_to(&mut file, ImageFormat::Png).expect("a PNG");
        file.into_inner()
    }

    #[track_caller]
    fn refused(content: &[u8], size: Size, part: &str) {
        let error = decode(content, size, &mut [0; 16 * 16 * 3]).expect_err("it is bad").to_string();
        assert!(error.contains(part), "no `{part}` in `{error}`");
    }

    #[test]
    fn png_pixels_come_through_as_they_are() {
        let picture = RgbImage::from_fn(16, 16, |x, y| Rgb([x as u8, y as u8, 200]));
        let mut out = [0; 16 * 16 * 3];
        decode(&png(picture.clone().into()), Size::Exact(16), &mut out).expect("good");
        assert_eq!(out.as_slice(), picture.as_raw().as_slice());
        decode(&png(picture.clone().into()), Size::Fit(16), &mut out).expect("good");
        assert_eq!(out.as_slice(), picture.as_raw().as_slice());
    }

    #[test]
    fn grey_pictures_get_three_equal_channels() {
        let equal = |content: &[u8]| {
            let mut out = [0; 16 * 16 * 3];
            decode(content, Size::Exact(16), &mut out).expect("good");
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
        decode(&png(picture.into()), Size::Fit(8), &mut out).expect("good");
        assert!(out.as_chunks::<3>().0.iter().all(|pixel| *pixel == [0, 255, 0]), "{out:?}");
        let clear = image::RgbaImage::from_pixel(8, 8, Rgba([9, 8, 7, 0]));
        decode(&png(clear.into()), Size::Fit(8), &mut out).expect("good");
    }

    #[test]
    fn bad_pictures_say_what_is_wrong() {
        let good = jpeg(16, 16, ExtendedColorType::Rgb8);
        refused(b"GIF89a", Size::Exact(16), "neither JPEG nor PNG: it begins with 47 49 46 38");
        refused(b"", Size::Exact(16), "neither JPEG nor PNG: it begins with nothing");
        refused(&good, Size::Exact(8), "expected 8 x 8 pixels, got 16 x 16");
        for cut in 2..good.len() {
            refused(&good[..cut], Size::Exact(16), "the JPEG is cut off after");
        }
        let good = png(RgbImage::new(16, 16).into());
        for cut in 8..good.len() - 12 {
            assert!(decode(&good[..cut], Size::Exact(16), &mut [0; 768]).is_err(), "{cut} of {} bytes", good.len());
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
        assert!(decode(&bomb, Size::Fit(16), &mut [0; 768]).is_err());
        let mut bomb = png(RgbImage::new(16, 16).into());
        bomb[16..24].copy_from_slice(&[0x7f, 0xff, 0xff, 0xff, 0x7f, 0xff, 0xff, 0xff]);
        assert!(decode(&bomb, Size::Fit(16), &mut [0; 768]).is_err());
    }
}
