//! Random resized crop, the part after the drawing: bilinear, with half-pixel centres, mirrored on
//! the way. It knows nothing of chance or colour.

use crate::draw::Crop;

/// One output row or column of a bilinear resize: two source positions and the weight of the
/// second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tap {
    pub first: usize,
    pub second: usize,
    pub weight: f32,
}

/// Room for one view in the making; one a thread.
#[derive(Clone, Debug, Default)]
pub struct Scratch {
    /// Rows of the crop, resized along their length: [height, C, S].
    rows: Vec<f32>,
    columns: Vec<Tap>,
}

/// Bilinear taps from `len` source pixels at `from` to `side`, with half-pixel centres.
///
/// A crop is never larger than the image, so nothing shrinks and antialiasing would not act.
pub fn taps(from: usize, len: usize, side: usize, reversed: bool) -> impl Iterator<Item = Tap> {
    let scale = len as f64 / side as f64;
    (0..side).map(move |i| {
        let i = if reversed { side - 1 - i } else { i };
        let at = ((i as f64 + 0.5) * scale - 0.5).max(0.0);
        let first = (at as usize).min(len - 1);
        let second = (first + 1).min(len - 1);
        Tap { first: from + first, second: from + second, weight: (at - first as f64) as f32 }
    })
}

/// A square image: `pixels` is [S, S, C].
#[derive(Clone, Copy, Debug)]
pub struct Image<'a> {
    pub pixels: &'a [u8],
    pub side: usize,
    pub channels: usize,
}

/// Cuts `crop` out of `image`, resizes it to S x S, mirrors it if `flip`, and scales pixels to [0,
/// 1].
pub fn crop(image: Image<'_>, crop: &Crop, flip: bool, out: &mut [f32]) {
    crop_with(image, crop, flip, &mut Scratch::default(), out);
}

/// Along the rows of the crop first, since it has at most S of them, then down its columns.
#[inline(always)]
pub(crate) fn crop_with(
    image: Image<'_>,
    crop: &Crop,
    flip: bool,
    scratch: &mut Scratch,
    out: &mut [f32],
) {
    let Image { pixels, side, channels } = image;
    scratch.columns.clear();
    scratch.columns.extend(taps(crop.left, crop.width, side, flip));
    scratch.rows.resize(crop.height * channels * side, 0.0);
    let lines = pixels.chunks_exact(side * channels).skip(crop.top).take(crop.height);
    for (line, row) in lines.zip(scratch.rows.chunks_exact_mut(channels * side)) {
        for (c, resized) in row.chunks_exact_mut(side).enumerate() {
            for (value, column) in resized.iter_mut().zip(&scratch.columns) {
                let left = f32::from(line[column.first * channels + c]);
                let right = f32::from(line[column.second * channels + c]);
                *value = left + (right - left) * column.weight;
            }
        }
    }
    for (y, row) in taps(0, crop.height, side, false).enumerate() {
        let rows = |at: usize| &scratch.rows[at * channels * side..(at + 1) * channels * side];
        let (upper, lower) = (rows(row.first), rows(row.second));
        for (c, plane) in out.chunks_exact_mut(side * side).enumerate() {
            let (upper, lower) =
                (&upper[c * side..(c + 1) * side], &lower[c * side..(c + 1) * side]);
            let line = &mut plane[y * side..(y + 1) * side];
            for ((value, upper), lower) in line.iter_mut().zip(upper).zip(lower) {
                *value = (upper + (lower - upper) * row.weight) / 255.0;
            }
        }
    }
}
