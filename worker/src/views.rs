//! Views: one augmentation of an image, from u8 pixels to normalised floats, as torchvision's float path computes it.
//! Each view's randomness is a stream keyed by what the view is: no other view, rank or thread can change it.
//!
//! Legend: S side, C channels; an image is [S, S, C] u8, a view [C, S, S] f32.

mod color;
mod draw;

pub use color::{adjust_brightness, adjust_contrast, adjust_hue, adjust_saturation, to_gray};
pub use draw::{Adjustment, Crop, Draw};

use thanos_configs::{DataSet, SplitMix64, ViewsConfig};

/// Makes views of one data set's images.
#[derive(Clone, Debug)]
pub struct Augmentation {
    config: ViewsConfig,
    side: usize,
    channels: usize,
    /// Per channel: normalised = pixel * scale + shift, for pixels in [0, 1].
    scale: Vec<f32>,
    shift: Vec<f32>,
}

impl Augmentation {
    pub fn new(config: &ViewsConfig, data: &DataSet) -> Self {
        let scale = data.std.iter().map(|std| (1.0 / std) as f32).collect();
        let shift = data.mean.iter().zip(data.std).map(|(mean, std)| (-mean / std) as f32).collect();
        Self { config: config.clone(), side: data.side, channels: data.channels, scale, shift }
    }

    /// Pixels of an image, and floats of a view: C * S * S.
    pub fn pixels(&self) -> usize {
        self.channels * self.side * self.side
    }

    /// Writes the view of `key` to `out`.
    pub fn view(&self, pixels: &[u8], key: u64, out: &mut [f32]) {
        let draw = Draw::new(&self.config, self.side, self.channels, &mut SplitMix64::new(key));
        let image = Image { pixels, side: self.side, channels: self.channels };
        crop(image, &draw.crop, draw.flip, out);
        for adjustment in draw.adjustments.iter().flatten() {
            match *adjustment {
                Adjustment::Brightness(factor) => adjust_brightness(out, factor),
                Adjustment::Contrast(factor) => adjust_contrast(out, self.channels, factor),
                Adjustment::Saturation(factor) => adjust_saturation(out, factor),
                Adjustment::Hue(turns) => adjust_hue(out, turns),
            }
        }
        if draw.gray {
            to_gray(out);
        }
        self.normalise(out);
    }

    /// Writes the image itself, normalised: what evaluation sees.
    pub fn plain(&self, image: &[u8], out: &mut [f32]) {
        let area = self.side * self.side;
        for (c, plane) in out.chunks_exact_mut(area).enumerate() {
            for (value, pixel) in plane.iter_mut().zip(image.iter().skip(c).step_by(self.channels)) {
                *value = f32::from(*pixel) / 255.0;
            }
        }
        self.normalise(out);
    }

    fn normalise(&self, out: &mut [f32]) {
        let area = self.side * self.side;
        for ((plane, scale), shift) in out.chunks_exact_mut(area).zip(&self.scale).zip(&self.shift) {
            for value in plane {
                *value = *value * scale + shift;
            }
        }
    }
}

/// One output row or column of a bilinear resize: two source positions and the weight of the second.
struct Tap {
    first: usize,
    second: usize,
    weight: f32,
}

/// Bilinear taps from `len` source pixels at `from` to `side`, with half-pixel centres.
///
/// A crop is never larger than the image, so nothing shrinks and antialiasing would not act.
fn taps(from: usize, len: usize, side: usize, reversed: bool) -> Vec<Tap> {
    let scale = len as f64 / side as f64;
    let tap = |i: usize| {
        let at = ((i as f64 + 0.5) * scale - 0.5).max(0.0);
        let first = (at as usize).min(len - 1);
        let second = (first + 1).min(len - 1);
        Tap { first: from + first, second: from + second, weight: (at - first as f64) as f32 }
    };
    if reversed { (0..side).rev().map(tap).collect() } else { (0..side).map(tap).collect() }
}

/// A square image: `pixels` is [S, S, C].
#[derive(Clone, Copy, Debug)]
pub struct Image<'a> {
    pub pixels: &'a [u8],
    pub side: usize,
    pub channels: usize,
}

/// Cuts `crop` out of `image`, resizes it to S x S, mirrors it if `flip`, and scales pixels to [0, 1].
pub fn crop(image: Image<'_>, crop: &Crop, flip: bool, out: &mut [f32]) {
    let Image { pixels, side, channels } = image;
    let rows = taps(crop.top, crop.height, side, false);
    let columns = taps(crop.left, crop.width, side, flip);
    for (c, plane) in out.chunks_exact_mut(side * side).enumerate() {
        for (row, line) in rows.iter().zip(plane.chunks_exact_mut(side)) {
            let pixel = |y: usize, x: usize| f32::from(pixels[(y * side + x) * channels + c]);
            for (column, value) in columns.iter().zip(line) {
                let along = |y: usize| {
                    let (left, right) = (pixel(y, column.first), pixel(y, column.second));
                    left + (right - left) * column.weight
                };
                let (upper, lower) = (along(row.first), along(row.second));
                *value = (upper + (lower - upper) * row.weight) / 255.0;
            }
        }
    }
}
