//! What chance decides about a view, drawn before anything is computed, by torchvision's rules.

use thanos_configs::{SplitMix64, ViewsConfig};

/// Crops that are tried before the whole image is taken, as torchvision's RandomResizedCrop.
const TRIES: usize = 10;

/// A rectangle of the image, in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crop {
    pub top: usize,
    pub left: usize,
    pub height: usize,
    pub width: usize,
}

/// One operation of the colour jitter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Adjustment {
    Brightness,
    Contrast,
    Saturation,
    Hue,
}

/// Everything random about one view.
#[derive(Clone, Debug, PartialEq)]
pub struct Draw {
    pub crop: Crop,
    pub flip: bool,
    /// In the order in which they act, each with its factor, or turns of the colour wheel for the
    /// hue; an empty place is an operation that is off.
    pub adjustments: [Option<(Adjustment, f32)>; 4],
    pub gray: bool,
}

impl Draw {
    /// Draws from `stream` for an image of `side` x `side`; a one-channel image has no colour to
    /// change.
    pub fn new(
        config: &ViewsConfig,
        side: usize,
        channels: usize,
        stream: &mut SplitMix64,
    ) -> Self {
        let flip = stream.unit() < config.horizontal_flip;
        let crop = draw_crop(config, side, stream);
        let colour = channels == 3;
        let mut adjustments = [None; 4];
        if stream.unit() < config.jitter {
            let around_one = |stream: &mut SplitMix64, strength: f64| {
                stream.uniform(1.0 - strength, 1.0 + strength) as f32
            };
            if config.brightness > 0.0 {
                adjustments[0] =
                    Some((Adjustment::Brightness, around_one(stream, config.brightness)));
            }
            if config.contrast > 0.0 {
                adjustments[1] = Some((Adjustment::Contrast, around_one(stream, config.contrast)));
            }
            if colour && config.saturation > 0.0 {
                adjustments[2] =
                    Some((Adjustment::Saturation, around_one(stream, config.saturation)));
            }
            if colour && config.hue > 0.0 {
                adjustments[3] =
                    Some((Adjustment::Hue, stream.uniform(-config.hue, config.hue) as f32));
            }
            for i in (1..adjustments.len()).rev() {
                adjustments.swap(i, stream.below(i as u64 + 1) as usize);
            }
        }
        let gray = colour && stream.unit() < config.grayscale;
        Self { crop, flip, adjustments, gray }
    }
}

/// torchvision's `RandomResizedCrop.get_params` for a square image.
fn draw_crop(config: &ViewsConfig, side: usize, stream: &mut SplitMix64) -> Crop {
    let [min, max] = config.crop_scale;
    let [narrow, wide] = config.crop_ratio;
    for _ in 0..TRIES {
        let area = (side * side) as f64 * stream.uniform(min, max);
        let ratio = stream.uniform(narrow.ln(), wide.ln()).exp();
        let width = (area * ratio).sqrt().round_ties_even() as usize;
        let height = (area / ratio).sqrt().round_ties_even() as usize;
        if (1..=side).contains(&width) && (1..=side).contains(&height) {
            let top = stream.below((side - height + 1) as u64) as usize;
            let left = stream.below((side - width + 1) as u64) as usize;
            return Crop { top, left, height, width };
        }
    }
    central_crop(narrow, wide, side)
}

/// The largest central rectangle within the range of ratios.
fn central_crop(narrow: f64, wide: f64, side: usize) -> Crop {
    let rounded = |value: f64| (value.round_ties_even() as usize).clamp(1, side);
    let (height, width) = if narrow > 1.0 {
        (rounded(side as f64 / narrow), side)
    } else if wide < 1.0 {
        (side, rounded(side as f64 * wide))
    } else {
        (side, side)
    };
    Crop { top: (side - height) / 2, left: (side - width) / 2, height, width }
}
