//! Pixels of any depth and colour to RGB of eight bits, as Pillow's `convert("RGB")` does it.

use image::{DynamicImage, ImageBuffer, Luma, RgbImage};

/// Red, green and blue; transparency is dropped.
pub(super) fn of(picture: DynamicImage) -> RgbImage {
    match picture {
        // Pillow keeps the upper byte of a channel, and cuts a lone grey of 16 bits at 255.
        DynamicImage::ImageRgb16(picture) => upper_bytes(&picture, [0, 1, 2]),
        DynamicImage::ImageRgba16(picture) => upper_bytes(&picture, [0, 1, 2]),
        DynamicImage::ImageLumaA16(picture) => upper_bytes(&picture, [0, 0, 0]),
        DynamicImage::ImageLuma16(picture) => grey(&picture),
        other => other.into_rgb8(),
    }
}

fn upper_bytes<P: image::Pixel<Subpixel = u16>>(
    picture: &ImageBuffer<P, Vec<u16>>,
    channels: [usize; 3],
) -> RgbImage {
    RgbImage::from_fn(picture.width(), picture.height(), |x, y| {
        let pixel = picture.get_pixel(x, y).channels();
        image::Rgb(channels.map(|channel| (pixel[channel] >> 8) as u8))
    })
}

fn grey(picture: &ImageBuffer<Luma<u16>, Vec<u16>>) -> RgbImage {
    RgbImage::from_fn(picture.width(), picture.height(), |x, y| {
        image::Rgb([picture.get_pixel(x, y).0[0].min(255) as u8; 3])
    })
}
