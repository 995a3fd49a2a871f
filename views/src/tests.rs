//! Views against their definition: what is drawn follows its distribution, keys are independent of
//! each other, and vectors change no bit.

use super::*;
use thanos_configs::view_key;

const DRAWS: usize = 20_000;

fn config() -> ViewsConfig {
    ViewsConfig::default()
}

fn draws(config: &ViewsConfig, side: usize, channels: usize) -> Vec<Draw> {
    let draw =
        |id| Draw::new(config, side, channels, &mut SplitMix64::new(view_key(7, 0, id as u64, 0)));
    (0..DRAWS).map(draw).collect()
}

/// Kolmogorov and Smirnov: the greatest distance between a sample's distribution and the uniform
/// one on least..most. Of 20,000 uniform values it exceeds 1.95 / sqrt(20,000) = 0.0138 once in a
/// thousand samples.
#[track_caller]
fn assert_uniform(mut values: Vec<f64>, min: f64, max: f64, grain: f64) {
    values.sort_by(f64::total_cmp);
    let n = values.len() as f64;
    assert!(values[0] >= min - grain && values[values.len() - 1] <= max + grain, "{values:?}");
    let distance = values.iter().enumerate().map(|(i, value)| {
        let expected = (value - min) / (max - min);
        (expected - i as f64 / n).abs().max((expected - (i as f64 + 1.0) / n).abs())
    });
    let distance = distance.fold(0.0, f64::max);
    assert!(
        distance < 1.95 / n.sqrt() + grain,
        "{distance} from uniform in {min}..{max}, of {n} values"
    );
}

/// Four standard deviations of a share of `n` independent cases.
#[track_caller]
fn assert_share(hits: usize, n: usize, probability: f64) {
    let share = hits as f64 / n as f64;
    let max = 4.0 * (probability * (1.0 - probability) / n as f64).sqrt();
    assert!((share - probability).abs() < max, "{share} of {n}, expected {probability} +- {max}");
}

/// Where no crop can fail to fit (square ones, and small ones), area, ratio and place are what the
/// definition says.
#[test]
fn crops_have_the_areas_ratios_and_places_of_the_definition() {
    let side = 1024;
    let square = ViewsConfig { crop_ratio: [1.0, 1.0], ..config() };
    let crops: Vec<Crop> = draws(&square, side, 3).iter().map(|draw| draw.crop).collect();
    let area = |crop: &Crop| (crop.height * crop.width) as f64 / (side * side) as f64;
    assert_uniform(crops.iter().map(area).collect(), 0.2, 1.0, 2e-3);
    let small = ViewsConfig { crop_scale: [0.2, 0.3], ..config() };
    let crops: Vec<Crop> = draws(&small, side, 3).iter().map(|draw| draw.crop).collect();
    let ratio = |crop: &Crop| (crop.width as f64 / crop.height as f64).ln();
    assert_uniform(crops.iter().map(ratio).collect(), 0.75_f64.ln(), (4.0_f64 / 3.0).ln(), 4e-3);
    let place = |from: usize, len: usize| (from as f64 + 0.5) / (side - len + 1) as f64;
    assert_uniform(crops.iter().map(|crop| place(crop.top, crop.height)).collect(), 0.0, 1.0, 2e-3);
    assert_uniform(crops.iter().map(|crop| place(crop.left, crop.width)).collect(), 0.0, 1.0, 2e-3);
}

/// Under the default ranges a try fits if both sides do: its share is integrated here on a grid,
/// and the mean area of what is drawn must be the mean over the tries that fit.
#[test]
fn crops_that_do_not_fit_are_drawn_again() {
    let side = 1024;
    let mut fitting = (0, 0.0);
    let grid = 1000;
    for i in 0..grid {
        for j in 0..grid {
            let at = |k: usize, min: f64, max: f64| {
                min + (max - min) * (k as f64 + 0.5) / f64::from(grid as u32)
            };
            let (area, ratio) = (at(i, 0.2, 1.0), at(j, 0.75_f64.ln(), (4.0_f64 / 3.0).ln()).exp());
            if area * ratio <= 1.0 && area / ratio <= 1.0 {
                fitting = (fitting.0 + 1, fitting.1 + area);
            }
        }
    }
    let expected = fitting.1 / f64::from(fitting.0);
    let area = |draw: &Draw| (draw.crop.height * draw.crop.width) as f64 / (side * side) as f64;
    let mean = draws(&config(), side, 3).iter().map(area).sum::<f64>() / DRAWS as f64;
    assert!((mean - expected).abs() < 0.005, "mean area {mean}, expected {expected}");
    let tall = ViewsConfig { crop_scale: [1.0, 1.0], crop_ratio: [0.5, 0.6], ..config() };
    let central = Crop { top: 0, left: 13, height: 64, width: 38 };
    assert!(
        draws(&tall, 64, 3).iter().all(|draw| draw.crop == central),
        "ten tries, then the centre"
    );
}

#[test]
fn flips_jitters_and_grays_have_their_shares() {
    let all = draws(&config(), 32, 3);
    let count = |holds: &dyn Fn(&Draw) -> bool| all.iter().filter(|draw| holds(draw)).count();
    assert_share(count(&|draw| draw.flip), DRAWS, 0.5);
    assert_share(count(&|draw| draw.gray), DRAWS, 0.2);
    assert_share(count(&|draw| draw.adjustments[0].is_some()), DRAWS, 0.8);
    assert!(
        all.iter()
            .all(|draw| draw.adjustments.iter().all(Option::is_some)
                == draw.adjustments[0].is_some())
    );
    assert!(
        draws(&config(), 28, 1).iter().all(|draw| !draw.gray),
        "one channel has no colour to lose"
    );
}

#[test]
fn jitters_have_the_strengths_and_orders_of_the_definition() {
    let all = draws(&config(), 32, 3);
    let (mut factors, mut orders) = ([const { Vec::new() }; 4], std::collections::BTreeMap::new());
    for draw in all.iter().filter(|draw| draw.adjustments[0].is_some()) {
        let mut order = 0;
        for &(adjustment, amount) in draw.adjustments.iter().flatten() {
            let kind = match adjustment {
                Adjustment::Brightness => 0,
                Adjustment::Contrast => 1,
                Adjustment::Saturation => 2,
                Adjustment::Hue => 3,
            };
            factors[kind].push(f64::from(amount));
            order = 10 * order + kind;
        }
        *orders.entry(order).or_insert(0) += 1;
    }
    let jittered = factors[0].len();
    let [brightness, contrast, saturation, hue] = factors;
    for values in [brightness, contrast, saturation] {
        assert_uniform(values, 0.6, 1.4, 1e-6);
    }
    assert_uniform(hue, -0.1, 0.1, 1e-6);
    assert_eq!(orders.len(), 24, "every order occurs");
    for hits in orders.into_values() {
        assert_share(hits, jittered, 1.0 / 24.0);
    }
}

/// Neighbours in each part of a key draw without correlation: below four standard deviations of a
/// correlation of independent values. A stream also shares nothing with its neighbour's next
/// numbers.
#[test]
fn keys_are_independent() {
    let unit = |key: u64, skip: usize| {
        let mut stream = SplitMix64::new(key);
        (0..skip).for_each(|_| _ = stream.unit());
        stream.unit() - 0.5
    };
    let neighbours: [fn(u64) -> (u64, u64); 4] = [
        |i| (view_key(i, 0, 0, 0), view_key(i + 1, 0, 0, 0)),
        |i| (view_key(0, i, 0, 0), view_key(0, i + 1, 0, 0)),
        |i| (view_key(0, 0, i, 0), view_key(0, 0, i + 1, 0)),
        |i| (view_key(0, 0, i, 0), view_key(0, 0, i, 1)),
    ];
    for (part, keys) in neighbours.iter().enumerate() {
        for skip in 0..4 {
            let products = (0..DRAWS as u64).map(|i| {
                let (one, other) = keys(i);
                unit(one, skip) * unit(other, 0)
            });
            let correlation = 12.0 * products.sum::<f64>() / DRAWS as f64;
            assert!(
                correlation.abs() < 4.0 / (DRAWS as f64).sqrt(),
                "part {part}, draw {skip}: {correlation}"
            );
        }
    }
}

fn image(side: usize, channels: usize, seed: u64) -> Vec<u8> {
    let mut stream = SplitMix64::new(seed);
    (0..side * side * channels).map(|_| stream.next_u64() as u8).collect()
}

/// Whatever was computed before on the same thread, and with vectors or without: the same bits.
#[test]
fn a_view_depends_on_its_key_alone() {
    for (side, channels) in [(32, 3), (28, 1), (64, 3), (9, 3)] {
        let (mean, std) = (vec![0.5; channels], vec![0.25; channels]);
        let views = Augmentation::new(&config(), side, &mean, &std);
        let mut used = Scratch::default();
        for key in 0..200 {
            let pixels = image(side, channels, key);
            let mut out =
                [vec![0.0; views.pixels()], vec![9.0; views.pixels()], vec![-9.0; views.pixels()]];
            views.view(&pixels, key, &mut used, &mut out[0]);
            views.view(&pixels, key, &mut Scratch::default(), &mut out[1]);
            views.compute(&pixels, &views.draw(key), &mut Scratch::default(), &mut out[2]);
            let [first, again, plain] = out;
            assert_eq!(first, again, "{side} {channels} {key}");
            assert!(
                first.iter().zip(&plain).all(|(a, b)| a.to_bits() == b.to_bits()),
                "{side} {channels} {key}"
            );
        }
    }
}

/// The wheel as its definition has it, in f64 and case by case.
fn hue_turned(rgb: [f64; 3], turns: f64) -> [f64; 3] {
    let [r, g, b] = rgb;
    let (max, min) = (r.max(g).max(b), r.min(g).min(b));
    if max == min {
        return rgb;
    }
    let range = max - min;
    let hue = if max == r {
        (g - b) / range
    } else if max == g {
        2.0 + (b - r) / range
    } else {
        4.0 + (r - g) / range
    };
    let sixths = ((hue / 6.0 + turns).rem_euclid(1.0)) * 6.0;
    let saturation = range / max;
    let (sector, part) = (sixths.floor() as usize % 6, sixths.fract());
    let (p, q) = (max * (1.0 - saturation), max * (1.0 - saturation * part));
    let t = max * (1.0 - saturation * (1.0 - part));
    [[max, t, p], [q, max, p], [p, max, t], [p, q, max], [t, p, max], [max, p, q]][sector]
}

#[test]
fn the_hue_turns_by_the_definition() {
    let mut colours: Vec<[u8; 3]> =
        vec![[0; 3], [255; 3], [7, 7, 7], [255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0]];
    colours.extend(image(64, 3, 3).as_chunks::<3>().0);
    for turns in [-0.5, -0.1, -0.01, 0.0, 0.05, 0.1, 0.5] {
        for colour in &colours {
            let rgb = colour.map(|value| f64::from(value) / 255.0);
            let mut view = rgb.map(|value| value as f32);
            adjust_hue(&mut view, turns as f32);
            for (found, expected) in view.iter().zip(hue_turned(rgb, turns)) {
                assert!(
                    (f64::from(*found) - expected).abs() < 2e-6,
                    "{colour:?} by {turns}: {found} and {expected}"
                );
            }
        }
    }
}
