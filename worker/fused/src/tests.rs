//! The kernels against plain tensor operations, in every instruction set that this machine has.

mod batch_norm;

use crate::draws::{in_groups, keep_everything, numbers, philox};
use crate::masks::plain_mask;
use crate::{
    Attention, AttentionRates, Draws, FeedForward, FeedForwardRates, Kept, Linear, Norm, Products,
    calls, drop_gradients, gpu, keep_mask, raw,
};
use std::cell::Cell;
use std::env;
use std::process::Command;
use tch::{Device, Kind, Tensor};

/// Relative errors, of a norm.
const FLOAT32: f64 = 2e-6;
const FLOAT64: f64 = 1e-13;
/// Three products follow each other, of factors that are rounded by at most 2^-9, mostly less.
const BFLOAT16: f64 = 1e-2;

struct Sizes {
    n: i64,
    t: i64,
    queries: i64,
    d: i64,
    heads: i64,
    m: i64,
}

/// The network of CIFAR whole and with one query, sizes that no vector divides, several chunks,
/// none, and the largest.
const SIZES: [Sizes; 8] = [
    Sizes { n: 3, t: 65, queries: 65, d: 256, heads: 8, m: 512 },
    Sizes { n: 3, t: 65, queries: 1, d: 256, heads: 8, m: 512 },
    Sizes { n: 2, t: 5, queries: 5, d: 12, heads: 3, m: 7 },
    Sizes { n: 1, t: 1, queries: 1, d: 5, heads: 1, m: 3 },
    Sizes { n: 130, t: 17, queries: 3, d: 34, heads: 2, m: 33 },
    Sizes { n: 130, t: 17, queries: 17, d: 34, heads: 2, m: 33 },
    Sizes { n: 0, t: 9, queries: 2, d: 8, heads: 2, m: 16 },
    Sizes { n: 2, t: 256, queries: 256, d: 128, heads: 1, m: 20 },
];

fn draws(n: i64) -> Draws {
    let samples: Vec<u64> = (0..n as u64).map(|i| i * 7_919 + (i % 3) * (1 << 40)).collect();
    Draws::new(0x0123_4567_89ab_cdef, &samples, 1)
}

/// Uniform in +-1; a matrix as a linear layer begins, in +-1 / sqrt(input), so that its products
/// are of the same size. From a generator of this thread, a test: torch's is shared by all of them.
fn random(size: &[i64], kind: Kind) -> Tensor {
    thread_local!(static STATE: Cell<u64> = const { Cell::new(1) });
    let bound = if size.len() == 2 { 1.0 / (size[1] as f64).sqrt() } else { 1.0 };
    let next = || {
        // Knuth's multiplier and increment of MMIX; the high bits are the good ones.
        let state = STATE
            .get()
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        STATE.set(state);
        ((state >> 11) as f64 / (1_u64 << 52) as f64 - 1.0) * bound
    };
    let numbers: Vec<f64> = (0..size.iter().product()).map(|_| next()).collect();
    Tensor::from_slice(&numbers).reshape(size).to_kind(kind).set_requires_grad(true)
}

fn close(what: &str, found: &Tensor, expected: &Tensor, tolerance: f64) {
    assert_eq!(found.size(), expected.size(), "{what}");
    let norm = |x: &Tensor| x.to_kind(Kind::Double).norm().double_value(&[]);
    let apart = norm(&(found.to_kind(Kind::Double) - expected.to_kind(Kind::Double)));
    // Terms are of size 1: where a few of them cancel out, the error of bfloat16 is still that of
    // the terms.
    let of_terms = if tolerance == BFLOAT16 { (expected.numel() as f64).sqrt() / 2.0 } else { 0.0 };
    let scale = norm(expected).max(of_terms);
    assert!(apart <= tolerance * scale, "{what}: {apart:e} apart from {:e}", norm(expected));
}

/// The value and the gradients of `inputs` for a cotangent.
fn gradients(output: &Tensor, inputs: &[&Tensor], cotangent: &Tensor) -> Vec<Tensor> {
    let mut found =
        Tensor::run_backward(&[(output * cotangent).sum(None::<Kind>)], inputs, false, false);
    found.push(output.detach());
    found
}

/// The kind of tensors, the factors of their products, and whose kernels.
#[derive(Clone, Copy, Debug)]
struct Precision {
    kind: Kind,
    products: Products,
    kernels: Kernels,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kernels {
    Cpu,
    Gpu,
}

const GPU: Precision =
    Precision { kind: Kind::Float, products: Products::Bfloat16, kernels: Kernels::Gpu };

/// Those of CIFAR, one query, rows that no tile divides, one token, no image, the widest.
const GPU_SIZES: [Sizes; 7] = [
    Sizes { n: 2, t: 65, queries: 65, d: 256, heads: 8, m: 512 },
    Sizes { n: 3, t: 65, queries: 1, d: 256, heads: 8, m: 512 },
    Sizes { n: 5, t: 17, queries: 3, d: 128, heads: 8, m: 128 },
    Sizes { n: 2, t: 1, queries: 1, d: 128, heads: 2, m: 128 },
    Sizes { n: 0, t: 9, queries: 9, d: 128, heads: 2, m: 256 },
    Sizes { n: 0, t: 65, queries: 1, d: 256, heads: 8, m: 512 },
    Sizes { n: 1, t: 80, queries: 80, d: 512, heads: 8, m: 128 },
];

/// `branch` by kernels, in this precision, against `plain` in float64.
fn compare(
    what: &str,
    precision: Precision,
    inputs: &[&Tensor],
    branch: &dyn Fn(&[&Tensor]) -> Tensor,
    plain: &dyn Fn(&[&Tensor]) -> Tensor,
) {
    let Precision { kind, products, .. } = precision;
    let exact: Vec<Tensor> = inputs
        .iter()
        .map(|input| input.detach().to_kind(Kind::Double).set_requires_grad(true))
        .collect();
    let exact: Vec<&Tensor> = exact.iter().collect();
    let (output, expected) = (branch(inputs), plain(&exact));
    let cotangent = (&expected.detach() * 3.0).sin();
    let expected = gradients(&expected, &exact, &cotangent);
    let without_graph = tch::no_grad(|| branch(inputs));
    assert!(without_graph.equal(&output.detach()), "{what}: without a graph");
    let found = gradients(&output, inputs, &cotangent.to_kind(kind));
    let tolerance = match (kind, products) {
        (_, Products::Bfloat16) => BFLOAT16,
        (Kind::Double, Products::Full) => FLOAT64,
        _ => FLOAT32,
    };
    for (at, (found, expected)) in found.iter().zip(&expected).enumerate() {
        close(&format!("{what} in {precision:?}, result {at}"), found, expected, tolerance);
    }
}

fn rates(with: bool) -> [Kept; 4] {
    let rates = if with { [0.3, 0.2, 0.1, 0.4] } else { [0.0; 4] };
    rates.map(Kept::of_rate)
}

fn norm<'a>(weight: &'a Tensor, bias: &'a Tensor) -> Norm<'a> {
    Norm { weight, bias, eps: 1e-5 }
}

fn check_attention(sizes: &Sizes, precision: Precision, with: bool) {
    let Precision { kind, products, kernels } = precision;
    let Sizes { n, t, queries, d, heads, .. } = *sizes;
    let draws = draws(n);
    let [query, weights, output, depth] = rates(with);
    let inputs = [
        random(&[n, t, d], kind),
        random(&[d], kind),
        random(&[d], kind),
        random(&[3 * d, d], kind),
    ];
    let inputs: Vec<&Tensor> = inputs.iter().collect();
    let run = |inputs: &[&Tensor], by_kernels: bool| {
        let products = if by_kernels { products } else { Products::Full };
        let rates = AttentionRates { query, weights, output, depth };
        let branch = Attention {
            norm: norm(inputs[1], inputs[2]),
            qkv: inputs[3],
            heads,
            products,
            rates,
            site: 9,
        };
        match by_kernels {
            true if kernels == Kernels::Gpu => {
                branch.on_gpu(inputs[0], queries, Some(&draws)).expect("shapes fit")
            }
            true => branch.forward(inputs[0], queries, Some(&draws)).expect("shapes fit"),
            false => branch.plain(inputs[0], queries, Some(&draws)),
        }
    };
    let what =
        format!("attention of [{n}, {t}, {d}], {heads} heads, {queries} queries, dropout {with}");
    compare(&what, precision, &inputs, &|inputs| run(inputs, true), &|inputs| run(inputs, false));
}

fn check_feed_forward(sizes: &Sizes, precision: Precision, with: bool) {
    let Precision { kind, products, kernels } = precision;
    let Sizes { n, t, d, m, .. } = *sizes;
    let draws = draws(n);
    let [hidden, _, output, depth] = rates(with);
    let shapes = [vec![n, t, d], vec![d], vec![d], vec![m, d], vec![m], vec![d, m], vec![d]];
    let inputs = shapes.map(|shape| random(&shape, kind));
    let inputs: Vec<&Tensor> = inputs.iter().collect();
    let run = |inputs: &[&Tensor], by_kernels: bool| {
        let products = if by_kernels { products } else { Products::Full };
        let branch = FeedForward {
            norm: norm(inputs[1], inputs[2]),
            input: Linear { weight: inputs[3], bias: inputs[4] },
            output: Linear { weight: inputs[5], bias: inputs[6] },
            products,
            rates: FeedForwardRates { hidden, output, depth },
            site: 13,
        };
        match by_kernels {
            true if kernels == Kernels::Gpu => {
                branch.on_gpu(inputs[0], Some(&draws)).expect("shapes fit")
            }
            true => branch.forward(inputs[0], Some(&draws)).expect("shapes fit"),
            false => branch.plain(inputs[0], Some(&draws)),
        }
    };
    let what = format!("feed-forward of [{n}, {t}, {d}], {m} features, dropout {with}");
    compare(&what, precision, &inputs, &|inputs| run(inputs, true), &|inputs| run(inputs, false));
}

#[test]
fn kernels_match_plain_operations() {
    for sizes in &SIZES {
        for (kind, products) in [
            (Kind::Double, Products::Full),
            (Kind::Float, Products::Full),
            (Kind::Float, Products::Bfloat16),
        ] {
            let precision = Precision { kind, products, kernels: Kernels::Cpu };
            for with in [false, true] {
                check_attention(sizes, precision, with);
                check_feed_forward(sizes, precision, with);
            }
        }
    }
}

/// The kernels of GPUs, as functions of the CPU.
#[test]
fn gpu_kernels_match_plain_operations() {
    let mut compared = 0;
    for sizes in &GPU_SIZES {
        let Sizes { n, t, queries, d, heads, m } = *sizes;
        for with in [false, true] {
            if gpu::fits_attention(&[n, t, d], heads, queries) {
                check_attention(sizes, GPU, with);
                compared += 1;
            }
            if queries == t && gpu::fits_feed_forward(&[n, t, d], m) {
                check_feed_forward(sizes, GPU, with);
                compared += 1;
            }
        }
    }
    assert_eq!(compared, 22, "sizes that the kernels take");
}

#[test]
fn gpu_kernels_draw_the_same_masks() {
    let drawn = Draws::new(0xfedc_ba98_7654_3210, &[0, 1, 77, u64::MAX / 2, 1 << 33], 2);
    let kept = Kept::of_rate(0.25);
    for (site, elements) in [(0, 1), (5, 128), (u32::MAX, 333), (9, 0)] {
        let drop = raw::Drop { site, output: kept.share(), ..keep_everything() };
        let found = gpu::mask(&drawn, elements, Device::Cpu, &drop).expect("a mask");
        assert!(found.equal(&plain_mask(&drawn, site, elements, kept, (Kind::Float, Device::Cpu))));
    }
}

/// The plain operations, which run on a GPU, round where the kernels do.
#[test]
fn bfloat16_products_round_alike() {
    let (x, weight, qkv) = (
        random(&[3, 17, 64], Kind::Float),
        random(&[64], Kind::Float),
        random(&[192, 64], Kind::Float),
    );
    for with in [false, true] {
        let [query, weights, output, depth] = rates(with);
        let rates = AttentionRates { query, weights, output, depth };
        let products = Products::Bfloat16;
        let branch = Attention {
            norm: norm(&weight, &weight),
            qkv: &qkv,
            heads: 4,
            products,
            rates,
            site: 9,
        };
        let exact = Attention { products: Products::Full, ..branch };
        let draws = draws(3);
        let found = branch.forward(&x, 17, Some(&draws)).expect("shapes fit") - &x;
        let plain = branch.plain(&x, 17, Some(&draws)) - &x;
        let exact = exact.plain(&x, 17, Some(&draws)) - &x;
        close("kernels against plain operations", &found, &plain, BFLOAT16);
        close("against float32", &found, &exact, BFLOAT16);
        assert!(!found.equal(&exact), "nothing was rounded");
    }
}

/// Vectors of the authors' Random123 library, `tests/kat_vectors`.
#[test]
fn philox_has_the_published_values() {
    const HALF: u64 = 0xffff_ffff;
    let vectors = [
        ([0; 4], 0, [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
        ([HALF; 4], u64::MAX, [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
        (
            [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
            0x299f_31d0_a409_3822,
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1_u64],
        ),
    ];
    for (counter, key, expected) in vectors {
        let words = philox(counter.map(|word: u64| Tensor::from_slice(&[word as i64])), key);
        assert_eq!(words.map(|word| word.int64_value(&[0]) as u64), expected);
    }
}

#[test]
fn kernels_draw_the_same_bits() {
    let drawn = Draws::new(0xfedc_ba98_7654_3210, &[0, 1, 77, u64::MAX / 2, 1 << 33], 2);
    for site in [0, 5, u32::MAX] {
        let elements = in_groups(1000);
        let expected = numbers(&drawn, site, elements, Device::Cpu);
        for row in 0..drawn.rows().size()[0] {
            let drop = raw::Drop {
                key: drawn.key(),
                site,
                query: 0,
                weights: 0,
                output: 0,
                hidden: 0,
                depth: 0,
            };
            let id = drawn.rows().int64_value(&[row]) as u64;
            let found = calls::draw(&drop, id, elements as usize).expect("drawn");
            let expected = Vec::<i64>::try_from(expected.get(row)).expect("numbers");
            assert_eq!(found.iter().map(|&bits| i64::from(bits)).collect::<Vec<_>>(), expected);
        }
    }
    for kind in [Kind::Float, Kind::Double] {
        let like = (kind, Device::Cpu);
        let kept = Kept::of_rate(0.25);
        let mask = keep_mask(&drawn, 3, 333, kept, like).expect("a mask");
        assert!(mask.equal(&plain_mask(&drawn, 3, 333, kept, like)));
    }
}

/// The others run in processes of their own: the choice is made once.
#[test]
fn other_instruction_sets_agree() {
    if env::var_os("ATEN_CPU_CAPABILITY").is_some() {
        return;
    }
    for capability in ["default", "avx2"] {
        let ran = Command::new(env::current_exe().expect("this test"))
            .args(["--test-threads=1", "kernels_"])
            .env("ATEN_CPU_CAPABILITY", capability)
            .output()
            .expect("it starts");
        let text = String::from_utf8_lossy(&ran.stdout);
        assert!(ran.status.success() && text.contains("6 passed"), "{capability}: {text}");
    }
}

/// What a mask is depends on its row alone, and two views, sites or keys have different ones.
#[test]
fn a_mask_is_a_function_of_its_key() {
    let like = (Kind::Float, Device::Cpu);
    let mask = |key: u64, samples: &[u64], site: u32| {
        keep_mask(&Draws::new(key, samples, 2), site, 200, Kept::of_rate(0.5), like)
            .expect("a mask")
    };
    let all = mask(1, &[4, 9, 2], 0); // [6, 200]
    assert!(all.narrow(0, 2, 2).equal(&mask(1, &[9], 0)));
    let other_network =
        keep_mask(&Draws::new(1, &[4], 2).of_network(1), 0, 200, Kept::of_rate(0.5), like);
    let other_network = other_network.expect("a mask").get(0);
    let others = [
        all.get(0),
        all.get(1),
        all.get(2),
        mask(1, &[4], 1).get(0),
        mask(2, &[4], 0).get(0),
        other_network,
    ];
    for (at, one) in others.iter().enumerate() {
        assert!(others[..at].iter().all(|other| !one.equal(other)), "mask {at}");
    }
}

/// 2^20 elements: the standard deviation of a share is below 5e-4.
#[test]
fn rates_are_those_asked_for() {
    for rate in [0.05, 0.1, 0.5, 0.9] {
        let kept = Kept::of_rate(rate);
        assert!((kept.probability() - (1.0 - rate)).abs() <= 0.5 / 65536.0);
        let samples: Vec<u64> = (0..64).collect();
        let mask =
            keep_mask(&Draws::new(3, &samples, 1), 0, 1 << 14, kept, (Kind::Double, Device::Cpu));
        let mask = mask.expect("a mask");
        let share = mask.gt(0.0).to_kind(Kind::Double).mean(Kind::Double).double_value(&[]);
        assert!((share - kept.probability()).abs() < 2.5e-3, "{rate}: {share}");
        assert!((mask.max().double_value(&[]) * kept.probability() - 1.0).abs() < 1e-15);
    }
    assert_eq!(Kept::of_rate(0.0), Kept::EVERYTHING);
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let (x, d1) = (random(&[2, 3, 8], Kind::Float), random(&[8], Kind::Float));
    let qkv = random(&[24, 8], Kind::Float);
    let all = Kept::EVERYTHING;
    let rates = AttentionRates { query: all, weights: all, output: all, depth: all };
    let branch = Attention {
        norm: norm(&d1, &d1),
        qkv: &qkv,
        heads: 2,
        products: Products::Full,
        rates,
        site: 0,
    };
    let refused = |branch: &Attention<'_>, queries: i64, draws: Option<&Draws>| {
        branch.forward(&x, queries, draws).expect_err("refused").to_string()
    };
    assert!(refused(&branch, 4, None).contains("4 queries do not fit tokens [2, 3, 8]"));
    assert!(refused(&branch, 3, Some(&draws(3))).contains("draws of 3 rows for 2 images"));
    assert!(refused(&Attention { heads: 3, ..branch }, 3, None).contains("3 heads"));
    let narrow = random(&[16, 8], Kind::Float);
    assert!(
        refused(&Attention { qkv: &narrow, ..branch }, 3, None)
            .contains("qkv is ([16, 8], Float, Cpu)")
    );
    let double = random(&[24, 8], Kind::Double);
    assert!(
        refused(&Attention { qkv: &double, ..branch }, 3, None)
            .contains("expected [24, 8] of Float on Cpu")
    );
}

#[test]
fn gradients_are_dropped() {
    let x = random(&[3], Kind::Float);
    x.sum(Kind::Float).backward();
    assert!(x.grad().defined());
    drop_gradients([&x]).expect("dropped");
    assert!(!x.grad().defined());
    x.sum(Kind::Float).backward();
    assert_eq!(x.grad().double_value(&[0]), 1.0);
}

/// A NaN reaches the result, also where it would be dropped or is far from the numbers that are
/// exact, and no other image.
#[test]
fn a_nan_is_not_lost() {
    let draws = draws(3);
    for kind in [Kind::Float, Kind::Double] {
        let x = random(&[3, 5, 12], kind).detach();
        _ = x.get(1).get(4).get(11).fill_(f64::NAN);
        let (weight, qkv) = (random(&[12], kind), random(&[36, 12], kind));
        let [query, weights, output, depth] = rates(true);
        let rates = AttentionRates { query, weights, output, depth };
        let attention = Attention {
            norm: norm(&weight, &weight),
            qkv: &qkv,
            heads: 3,
            products: Products::Full,
            rates,
            site: 1,
        };
        let (input, output_weight) = (random(&[7, 12], kind), random(&[12, 7], kind));
        let (bias, output_bias) = (random(&[7], kind), random(&[12], kind));
        let feed_forward = FeedForward {
            norm: norm(&weight, &weight),
            input: Linear { weight: &input, bias: &bias },
            output: Linear { weight: &output_weight, bias: &output_bias },
            products: Products::Full,
            rates: FeedForwardRates { hidden: output, output, depth },
            site: 5,
        };
        for out in [attention.forward(&x, 5, Some(&draws)), feed_forward.forward(&x, Some(&draws))]
        {
            let is_nan = out.expect("shapes fit").isnan().flatten(1, 2).any_dim(1, false);
            assert_eq!(
                Vec::<bool>::try_from(is_nan).expect("flags"),
                [false, true, false],
                "{kind:?}"
            );
        }
    }
}

/// An image's embedding must not depend on which others are in its rank's slice: what follows
/// (batch norm over small variances) can amplify last bits a thousand times.
#[test]
fn an_image_has_the_same_bits_in_every_batch() {
    let (n, t, d, m) = (256, 17, 64, 128);
    let x = random(&[n, t, d], Kind::Float).detach();
    let [weight, bias] = [random(&[d], Kind::Float), random(&[d], Kind::Float)];
    let qkv = random(&[3 * d, d], Kind::Float);
    let [w_in, b_in] = [random(&[m, d], Kind::Float), random(&[m], Kind::Float)];
    let [w_out, b_out] = [random(&[d, m], Kind::Float), random(&[d], Kind::Float)];
    let [none, ..] = rates(false);
    let run = |x: &Tensor, queries: i64| {
        let rates = AttentionRates { query: none, weights: none, output: none, depth: none };
        let attention = Attention {
            norm: norm(&weight, &bias),
            qkv: &qkv,
            heads: 4,
            products: Products::Full,
            rates,
            site: 9,
        };
        let attended = attention.forward(x, queries, None).expect("shapes fit");
        let fed = FeedForward {
            norm: norm(&weight, &bias),
            input: Linear { weight: &w_in, bias: &b_in },
            output: Linear { weight: &w_out, bias: &b_out },
            products: Products::Full,
            rates: FeedForwardRates { hidden: none, output: none, depth: none },
            site: 13,
        };
        [attended.shallow_clone(), fed.forward(&attended, None).expect("shapes fit")]
    };
    for queries in [t, 1] {
        let whole = run(&x, queries);
        // Products of fewer rows are another routine of the library's.
        for slice in [9, 12, 23, 25, 61, 62, 66, 68, 84, 86, 123, 128, 184, 200] {
            for from in [0, 56] {
                let part = run(&x.narrow(0, from, slice), queries);
                for (what, (part, whole)) in
                    ["attention", "feed-forward"].iter().zip(part.iter().zip(&whole))
                {
                    let apart = part
                        .ne_tensor(&whole.narrow(0, from, slice))
                        .sum(Kind::Int64)
                        .int64_value(&[]);
                    assert_eq!(apart, 0, "{what}, {queries} queries, {slice} images from {from}");
                }
            }
        }
    }
}
