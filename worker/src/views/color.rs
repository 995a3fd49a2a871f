//! Colour operations on one view [C, S, S] in [0, 1], as torchvision's functional API on float tensors
//! (torchvision/transforms/_functional_tensor.py): each result is clamped to [0, 1].

/// Weights of red, green and blue in a grey value.
const LUMA: [f32; 3] = [0.2989, 0.587, 0.114];

pub fn adjust_brightness(view: &mut [f32], factor: f32) {
    for value in view {
        *value = (*value * factor).clamp(0.0, 1.0);
    }
}

/// Blends with the mean grey value of the whole view.
pub fn adjust_contrast(view: &mut [f32], channels: usize, factor: f32) {
    let area = view.len() / channels;
    let sum: f64 = match channels {
        3 => {
            let (red, green, blue) = planes(view);
            (0..area).map(|i| f64::from(gray(red[i], green[i], blue[i]))).sum()
        }
        _ => view.iter().map(|&value| f64::from(value)).sum(),
    };
    let mean = (sum / area as f64) as f32;
    for value in view {
        *value = blend(*value, mean, factor);
    }
}

/// Blends each pixel with its grey value; three channels.
pub fn adjust_saturation(view: &mut [f32], factor: f32) {
    let (red, green, blue) = planes(view);
    for ((r, g), b) in red.iter_mut().zip(green).zip(blue) {
        let gray = gray(*r, *g, *b);
        (*r, *g, *b) = (blend(*r, gray, factor), blend(*g, gray, factor), blend(*b, gray, factor));
    }
}

/// Turns the hue by `turns` of the colour wheel; three channels.
pub fn adjust_hue(view: &mut [f32], turns: f32) {
    let (red, green, blue) = planes(view);
    for ((r, g), b) in red.iter_mut().zip(green).zip(blue) {
        let (hue, saturation, value) = to_hsv(*r, *g, *b);
        (*r, *g, *b) = from_hsv((hue + turns).rem_euclid(1.0), saturation, value);
    }
}

/// Every channel becomes the grey value; three channels.
pub fn to_gray(view: &mut [f32]) {
    let (red, green, blue) = planes(view);
    for ((r, g), b) in red.iter_mut().zip(green).zip(blue) {
        let gray = gray(*r, *g, *b);
        (*r, *g, *b) = (gray, gray, gray);
    }
}

fn planes(view: &mut [f32]) -> (&mut [f32], &mut [f32], &mut [f32]) {
    let area = view.len() / 3;
    let (red, rest) = view.split_at_mut(area);
    let (green, blue) = rest.split_at_mut(area);
    (red, green, blue)
}

fn gray(r: f32, g: f32, b: f32) -> f32 {
    LUMA[0] * r + LUMA[1] * g + LUMA[2] * b
}

fn blend(value: f32, other: f32, factor: f32) -> f32 {
    (factor * value + (1.0 - factor) * other).clamp(0.0, 1.0)
}

fn to_hsv(r: f32, g: f32, b: f32) -> (f32, f32, f32) {
    let (most, least) = (r.max(g).max(b), r.min(g).min(b));
    if most == least {
        return (0.0, 0.0, most);
    }
    let range = most - least;
    let (rc, gc, bc) = ((most - r) / range, (most - g) / range, (most - b) / range);
    let sixths = if most == r {
        bc - gc
    } else if most == g {
        2.0 + rc - bc
    } else {
        4.0 + gc - rc
    };
    ((sixths / 6.0 + 1.0).fract(), range / most, most)
}

fn from_hsv(hue: f32, saturation: f32, value: f32) -> (f32, f32, f32) {
    let sixths = hue * 6.0;
    let sector = sixths.floor();
    let part = sixths - sector;
    let clamp = |x: f32| x.clamp(0.0, 1.0);
    let p = clamp(value * (1.0 - saturation));
    let q = clamp(value * (1.0 - saturation * part));
    let t = clamp(value * (1.0 - saturation * (1.0 - part)));
    match sector as i32 % 6 {
        0 => (value, t, p),
        1 => (q, value, p),
        2 => (p, value, t),
        3 => (p, q, value),
        4 => (t, p, value),
        _ => (value, p, q),
    }
}
