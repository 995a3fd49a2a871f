//! The views of `thanos-views`, for a batch at a time and in tensor operations, so that they are
//! made where the images are: on a GPU. Chance is drawn by the same code from the same keys; the
//! arithmetic agrees to float tolerance.
//!
//! Here n is a number of views, each with its image.

use crate::tensors::upload;
use tch::{Device, Kind, Tensor};
use thanos_fused::Error;
use thanos_fused::gpu::{Normalization, VIEW_WORDS, ViewParameters, views};
use thanos_views::{Adjustment, Augmentation, Crop, Draw, LUMA, Tap, taps};

/// One view of each of `images`, [n, S, S, C] u8, by its key: [n, C, S, S] f32 on the images'
/// device.
pub fn views_on_device(augmentation: &Augmentation, images: &Tensor, keys: &[u64]) -> Tensor {
    let _no_graph = tch::no_grad_guard();
    let draws: Vec<Draw> = keys.iter().map(|&key| augmentation.draw(key)).collect();
    let mut views = crop(images, &draws); // [n, C, S, S]
    for place in 0..4 {
        for kind in
            [Adjustment::Brightness, Adjustment::Contrast, Adjustment::Saturation, Adjustment::Hue]
        {
            let amount = |draw: &Draw| {
                draw.adjustments[place].filter(|(of, _)| *of == kind).map(|(_, amount)| amount)
            };
            adjust(&mut views, &draws, amount, |views, amounts| adjusted(kind, views, amounts));
        }
    }
    adjust(
        &mut views,
        &draws,
        |draw| draw.gray.then_some(0.0),
        |views, _| gray(views).expand_as(views),
    );
    normalised(augmentation, &views)
}

/// The same by one kernel of the GPU: a view of `images[rows[i]]` by `keys[i]`, of `images` [N, S,
/// S, C] u8.
///
/// # Errors
/// If the images do not fit the augmentation.
pub fn views_by_kernel(
    augmentation: &Augmentation,
    images: &Tensor,
    rows: &[i64],
    keys: &[u64],
) -> Result<Tensor, Error> {
    let (device, count) = (images.device(), images.size()[0]);
    if let Some(row) = rows.iter().find(|row| !(0..count).contains(*row)) {
        return Err(Error {
            operation: "views",
            message: format!("there is no image {row} among {count}"),
        });
    }
    let words: Vec<i32> =
        keys.iter().flat_map(|&key| parameters(&augmentation.draw(key)).words()).collect();
    let (size, n) = (images.size(), keys.len() as i64);
    let mut made = Tensor::empty([n, size[3], size[1], size[2]], (Kind::Float, device));
    let parameters = upload(&words, device).reshape([n, VIEW_WORDS as i64]);
    let (scale, shift) = augmentation.normalisation();
    let normalization = Normalization { scale, shift };
    views(images, &upload(rows, device), &parameters, normalization, &mut made)?;
    Ok(made)
}

fn parameters(draw: &Draw) -> ViewParameters {
    let Draw { crop: Crop { top, left, height, width }, flip, adjustments, gray } = draw;
    let kind = |adjustment| match adjustment {
        Adjustment::Brightness => 1,
        Adjustment::Contrast => 2,
        Adjustment::Saturation => 3,
        Adjustment::Hue => 4,
    };
    ViewParameters {
        top: *top as i32,
        left: *left as i32,
        height: *height as i32,
        width: *width as i32,
        flip: i32::from(*flip),
        gray: i32::from(*gray),
        kinds: adjustments.map(|place| place.map_or(0, |(adjustment, _)| kind(adjustment))),
        amounts: adjustments.map(|place| place.map_or(0.0, |(_, amount)| amount)),
    }
}

/// Pixels in [0, 1], [n, C, S, S], by the data set's mean and deviation.
fn normalised(augmentation: &Augmentation, pixels: &Tensor) -> Tensor {
    let (scale, shift) = augmentation.normalisation();
    let channels = |values: &[f32]| {
        Tensor::from_slice(values).reshape([1, -1, 1, 1]).to_device(pixels.device())
    };
    pixels * channels(scale) + channels(shift)
}

/// Images as evaluation sees them, by the same arithmetic as [`Augmentation::plain`]: [n, S, S, C]
/// u8 to [n, C, S, S] f32 on the images' device.
pub fn plain_on_device(augmentation: &Augmentation, images: &Tensor) -> Tensor {
    let _no_graph = tch::no_grad_guard();
    let pixels = images.permute([0, 3, 1, 2]).to_kind(Kind::Float) / 255.0; // [n, C, S, S]
    normalised(augmentation, &pixels).contiguous()
}

/// Cuts, resizes and mirrors each image by its own draw: [n, S, S, C] u8 to [n, C, S, S] in [0, 1].
fn crop(images: &Tensor, draws: &[Draw]) -> Tensor {
    let size = images.size();
    let (n, s, c) = (size[0], size[1], size[3]);
    let device = images.device();
    let taps_of =
        |of: &dyn Fn(&Draw) -> Vec<Tap>| -> Vec<Tap> { draws.iter().flat_map(of).collect() };
    let side = s as usize;
    let columns = taps_of(&|Draw { crop: Crop { left, width, .. }, flip, .. }| {
        taps(*left, *width, side, *flip).collect()
    });
    let rows = taps_of(&|Draw { crop: Crop { top, height, .. }, .. }| {
        taps(*top, *height, side, false).collect()
    });
    let images = images.permute([0, 3, 1, 2]).to_kind(Kind::Float); // [n, C, S, S]
    let along = resize(&images, 3, &Taps::new(&columns, &[n, 1, 1, s], device), &[n, c, s, s]);
    resize(&along, 2, &Taps::new(&rows, &[n, 1, s, 1], device), &[n, c, s, s]) / 255.0
}

/// Taps of one dimension of all views.
struct Taps {
    first: Tensor,
    second: Tensor,
    weight: Tensor,
}

impl Taps {
    fn new(taps: &[Tap], shape: &[i64], device: Device) -> Self {
        let places = |of: fn(&Tap) -> usize| {
            let places: Vec<i64> = taps.iter().map(|tap| of(tap) as i64).collect();
            Tensor::from_slice(&places).reshape(shape).to_device(device)
        };
        let weights: Vec<f32> = taps.iter().map(|tap| tap.weight).collect();
        Self {
            first: places(|tap| tap.first),
            second: places(|tap| tap.second),
            weight: Tensor::from_slice(&weights).reshape(shape).to_device(device),
        }
    }
}

fn resize(images: &Tensor, dim: i64, taps: &Taps, shape: &[i64]) -> Tensor {
    let at = |places: &Tensor| images.gather(dim, &places.expand(shape, false), false);
    let (first, second) = (at(&taps.first), at(&taps.second));
    &first + (second - &first) * &taps.weight
}

/// Changes the views whose draw has a value: `change` is given them, [m, C, S, S], and their
/// values, [m, 1, 1, 1]. Results are clamped to [0, 1].
fn adjust(
    views: &mut Tensor,
    draws: &[Draw],
    value: impl Fn(&Draw) -> Option<f32>,
    change: impl Fn(&Tensor, &Tensor) -> Tensor,
) {
    let (rows, values): (Vec<i64>, Vec<f32>) =
        draws.iter().enumerate().filter_map(|(row, draw)| Some((row as i64, value(draw)?))).unzip();
    if rows.is_empty() {
        return;
    }
    let rows = Tensor::from_slice(&rows).to_device(views.device());
    let values = Tensor::from_slice(&values).reshape([-1, 1, 1, 1]).to_device(views.device());
    let changed = change(&views.index_select(0, &rows), &values).clamp(0.0, 1.0);
    _ = views.index_copy_(0, &rows, &changed);
}

/// What an adjustment makes of views, [m, C, S, S], by their amounts, [m, 1, 1, 1]; not clamped
/// yet.
fn adjusted(kind: Adjustment, views: &Tensor, amounts: &Tensor) -> Tensor {
    match kind {
        Adjustment::Brightness => views * amounts,
        Adjustment::Contrast => {
            blend(views, &gray(views).mean_dim(&[1_i64, 2, 3][..], true, None::<Kind>), amounts)
        }
        Adjustment::Saturation => blend(views, &gray(views), amounts),
        Adjustment::Hue => turn_hue(views, amounts),
    }
}

/// Grey values, [n, 1, S, S]; of one channel, itself.
fn gray(views: &Tensor) -> Tensor {
    match views.size()[1] {
        3 => {
            let luma = Tensor::from_slice(&LUMA).reshape([1, 3, 1, 1]).to_device(views.device());
            (views * luma).sum_dim_intlist(&[1_i64][..], true, None::<Kind>)
        }
        _ => views.shallow_clone(),
    }
}

fn blend(views: &Tensor, others: &Tensor, factor: &Tensor) -> Tensor {
    views * factor + others * (1.0 - factor)
}

/// As `adjust_hue` of `thanos-views`, whose comments say why.
fn turn_hue(views: &Tensor, turns: &Tensor) -> Tensor {
    let channel = |c: i64| views.narrow(1, c, 1); // [n, 1, S, S]
    let (r, g, b) = (channel(0), channel(1), channel(2));
    let (most, least) = (r.maximum(&g).maximum(&b), r.minimum(&g).minimum(&b));
    let range = &most - &least;
    let divisor = range.where_self(&range.gt(0.0), &range.ones_like());
    let from_green =
        ((&b - &r) / &divisor + 2.0).where_self(&most.eq_tensor(&g), &((&r - &g) / &divisor + 4.0));
    let sixths = ((&g - &b) / &divisor).where_self(&most.eq_tensor(&r), &from_green);
    let hue = (sixths + turns * 6.0).remainder(6.0);
    let channel = |trapezoid: Tensor| &least + &range * trapezoid.clamp(0.0, 1.0);
    let away = |from: f64| (&hue - from).abs();
    Tensor::cat(&[channel(away(3.0) - 1.0), channel(2.0 - away(2.0)), channel(2.0 - away(4.0))], 1)
}
