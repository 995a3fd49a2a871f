//! Colour operations on one view [C, S, S] in [0, 1], as torchvision's functional API on float
//! tensors (torchvision/transforms/_functional_tensor.py): each result is clamped to [0, 1]. Loops
//! are without branches and inlined, so that the caller's vectors are used.

/// Weights of red, green and blue in a grey value, as torchvision's.
pub const LUMA: [f32; 3] = [0.2989, 0.587, 0.114];

/// Sums that are kept apart, so that they can be vectors; added in one order at the end.
const LANES: usize = 16;

#[inline(always)]
pub fn adjust_brightness(view: &mut [f32], factor: f32) {
    for value in view {
        *value = clamp(*value * factor);
    }
}

/// Blends with the mean grey value of the whole view.
#[inline(always)]
pub fn adjust_contrast(view: &mut [f32], channels: usize, factor: f32) {
    let area = view.len() / channels;
    let sum = match channels {
        3 => {
            let (red, green, blue) = planes(view);
            sum(area, |i| gray(red[i], green[i], blue[i]))
        }
        _ => sum(area, |i| view[i]),
    };
    let mean = sum / area as f32;
    for value in view {
        *value = blend(*value, mean, factor);
    }
}

/// Blends each pixel with its grey value; three channels.
#[inline(always)]
pub fn adjust_saturation(view: &mut [f32], factor: f32) {
    let (red, green, blue) = planes(view);
    for ((r, g), b) in red.iter_mut().zip(green).zip(blue) {
        let gray = gray(*r, *g, *b);
        (*r, *g, *b) = (blend(*r, gray, factor), blend(*g, gray, factor), blend(*b, gray, factor));
    }
}

/// Turns the hue by `turns` of the colour wheel, at most 0.5 either way; three channels.
#[inline(always)]
pub fn adjust_hue(view: &mut [f32], turns: f32) {
    let (red, green, blue) = planes(view);
    for ((r, g), b) in red.iter_mut().zip(green).zip(blue) {
        (*r, *g, *b) = turn_hue(*r, *g, *b, turns);
    }
}

/// Every channel becomes the grey value; three channels.
#[inline(always)]
pub fn to_gray(view: &mut [f32]) {
    let (red, green, blue) = planes(view);
    for ((r, g), b) in red.iter_mut().zip(green).zip(blue) {
        let gray = gray(*r, *g, *b);
        (*r, *g, *b) = (gray, gray, gray);
    }
}

#[inline(always)]
fn planes(view: &mut [f32]) -> (&mut [f32], &mut [f32], &mut [f32]) {
    let area = view.len() / 3;
    let (red, rest) = view.split_at_mut(area);
    let (green, blue) = rest.split_at_mut(area);
    (red, green, blue)
}

/// Sum of `value(0..len)`, the same whatever the width of the processor's vectors.
#[inline(always)]
fn sum(len: usize, value: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let whole = len / LANES * LANES;
    for from in (0..whole).step_by(LANES) {
        for (lane, sum) in lanes.iter_mut().enumerate() {
            *sum += value(from + lane);
        }
    }
    let rest: f32 = (whole..len).map(value).sum();
    lanes.iter().sum::<f32>() + rest
}

#[inline(always)]
fn gray(r: f32, g: f32, b: f32) -> f32 {
    LUMA[0] * r + LUMA[1] * g + LUMA[2] * b
}

#[inline(always)]
fn blend(value: f32, other: f32, factor: f32) -> f32 {
    clamp(factor * value + (1.0 - factor) * other)
}

/// Into [0, 1]. Written as choices, which are one instruction each; `f32::clamp` takes care of NaN,
/// and there is none.
#[inline(always)]
fn clamp(value: f32) -> f32 {
    smaller_of(larger_of(value, 0.0), 1.0)
}

#[inline(always)]
fn larger_of(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

#[inline(always)]
fn smaller_of(a: f32, b: f32) -> f32 {
    if a < b { a } else { b }
}

/// To hue, saturation and value, around the wheel, and back; choices are made by selecting between
/// two results.
///
/// On a wheel of six sectors, a channel is `min` plus the range times a trapezoid of the hue: red
/// is full around 0, green around 2, blue around 4, each for two sectors, and rises and falls in
/// one.
#[inline(always)]
fn turn_hue(r: f32, g: f32, b: f32, turns: f32) -> (f32, f32, f32) {
    let (max, min) = (larger_of(larger_of(r, g), b), smaller_of(smaller_of(r, g), b));
    let range = max - min;
    // A grey pixel has no hue: whatever is computed for it is multiplied by a range of 0.
    let divisor = if range == 0.0 { 1.0 } else { range };
    let (from_green, second) = if max == g { (2.0, b - r) } else { (4.0, r - g) };
    let (from, difference) = if max == r { (0.0, g - b) } else { (from_green, second) };
    let turned = from + difference / divisor + 6.0 * turns; // in -4..8
    let up = if turned < 0.0 { turned + 6.0 } else { turned };
    let hue = if up >= 6.0 { up - 6.0 } else { up };
    let channel = |trapezoid: f32| min + range * clamp(trapezoid);
    (
        channel((hue - 3.0).abs() - 1.0),
        channel(2.0 - (hue - 2.0).abs()),
        channel(2.0 - (hue - 4.0).abs()),
    )
}
