//! Views: one augmentation of an image, from u8 pixels to normalised floats, as torchvision's float
//! path computes it. Each view's randomness is a stream keyed by what the view is: no other view,
//! rank or thread can change it. It knows no file, thread, tensor or device, so that the trainer
//! and a contact sheet show the same.
//!
//! Legend: S side, C channels; an image is [S, S, C] u8, a view [C, S, S] f32.

mod color;
mod crop;
mod draw;

pub use color::{LUMA, adjust_brightness, adjust_contrast, adjust_hue, adjust_saturation, to_gray};
pub use crop::{Image, Scratch, Tap, crop, taps};
pub use draw::{Adjustment, Crop, Draw};

use pulp::Arch;
use thanos_configs::{SplitMix64, ViewsConfig};

/// Makes views of one data set's images.
#[derive(Clone, Debug)]
pub struct Augmentation {
    config: ViewsConfig,
    side: usize,
    channels: usize,
    /// Per channel: normalised = pixel * scale + shift, for pixels in [0, 1].
    scale: Vec<f32>,
    shift: Vec<f32>,
    arch: Arch,
}

impl Augmentation {
    /// For square images of `side` pixels; `mean` and `std` per channel, of pixels in [0, 1].
    pub fn new(config: &ViewsConfig, side: usize, mean: &[f64], std: &[f64]) -> Self {
        let scale = std.iter().map(|std| (1.0 / std) as f32).collect();
        let shift = mean.iter().zip(std).map(|(mean, std)| (-mean / std) as f32).collect();
        Self { config: config.clone(), side, channels: mean.len(), scale, shift, arch: Arch::new() }
    }

    /// Pixels of an image, and floats of a view: C * S * S.
    pub fn pixels(&self) -> usize {
        self.channels * self.side * self.side
    }

    /// Scale and shift of each channel, [C]: normalised = pixel * scale + shift, for pixels in [0,
    /// 1].
    pub fn normalisation(&self) -> (&[f32], &[f32]) {
        (&self.scale, &self.shift)
    }

    /// What chance decides about the view of `key`.
    pub fn draw(&self, key: u64) -> Draw {
        Draw::new(&self.config, self.side, self.channels, &mut SplitMix64::new(key))
    }

    /// Writes the view of `key` to `out`.
    ///
    /// The widest vectors of this processor are used; multiplications and additions are never
    /// fused, so that every processor computes the same bits.
    pub fn view(&self, pixels: &[u8], key: u64, scratch: &mut Scratch, out: &mut [f32]) {
        let draw = self.draw(key);
        self.arch.dispatch(|| self.compute(pixels, &draw, scratch, out));
    }

    #[inline(always)]
    fn compute(&self, pixels: &[u8], draw: &Draw, scratch: &mut Scratch, out: &mut [f32]) {
        let image = Image { pixels, side: self.side, channels: self.channels };
        crop::crop_with(image, &draw.crop, draw.flip, scratch, out);
        for &(adjustment, amount) in draw.adjustments.iter().flatten() {
            match adjustment {
                Adjustment::Brightness => adjust_brightness(out, amount),
                Adjustment::Contrast => adjust_contrast(out, self.channels, amount),
                Adjustment::Saturation => adjust_saturation(out, amount),
                Adjustment::Hue => adjust_hue(out, amount),
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
            for (value, pixel) in plane.iter_mut().zip(image.iter().skip(c).step_by(self.channels))
            {
                *value = f32::from(*pixel) / 255.0;
            }
        }
        self.normalise(out);
    }

    #[inline(always)]
    fn normalise(&self, out: &mut [f32]) {
        let area = self.side * self.side;
        for ((plane, &scale), &shift) in
            out.chunks_exact_mut(area).zip(&self.scale).zip(&self.shift)
        {
            for value in plane {
                *value = *value * scale + shift;
            }
        }
    }
}

#[cfg(test)]
mod tests;
