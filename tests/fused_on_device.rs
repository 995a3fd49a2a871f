//! The branches of a transformer block in bfloat16 on the device under test, by default the CPU,
//! against float64 on the CPU: values and all gradients, with dropout, whose masks are the same on
//! every device.

use crate::print_line;
use crate::test_device::test_device;
use tch::{Device, Kind, Tensor};
use thanos_fused::{
    Attention, AttentionRates, Draws, FeedForward, FeedForwardRates, Kept, Linear, Norm, Products,
    keep_mask,
};

/// Factors of products are rounded by at most 2^-9, three times in a row.
const TOLERANCE: f64 = 1e-2;

/// n images of t tokens, of which the first s are queries; width d, h heads, m hidden features.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    n: i64,
    t: i64,
    s: i64,
    d: i64,
    h: i64,
    m: i64,
}

/// The network of CIFAR whole and with one query, the largest sizes of the kernels, and some that
/// they leave to tensor operations.
const SIZES: [Sizes; 7] = [
    Sizes { n: 37, t: 65, s: 65, d: 256, h: 8, m: 512 },
    Sizes { n: 37, t: 65, s: 1, d: 256, h: 8, m: 512 },
    Sizes { n: 3, t: 80, s: 80, d: 512, h: 8, m: 128 },
    Sizes { n: 5, t: 17, s: 3, d: 128, h: 8, m: 384 },
    Sizes { n: 2, t: 90, s: 90, d: 96, h: 3, m: 40 },
    Sizes { n: 0, t: 65, s: 65, d: 256, h: 8, m: 512 },
    Sizes { n: 0, t: 65, s: 1, d: 256, h: 8, m: 512 },
];

/// Uniform in +-1; a matrix in +-1 / sqrt(input).
fn random(size: &[i64]) -> Tensor {
    let bound = if size.len() == 2 { 1.0 / (size[1] as f64).sqrt() } else { 1.0 };
    (Tensor::rand(size, (Kind::Double, Device::Cpu)) * 2.0 - 1.0) * bound
}

fn draws(n: i64) -> Draws {
    Draws::new(0x0123_4567_89ab_cdef, &(0..n as u64).map(|i| i * 7_919).collect::<Vec<_>>(), 1)
}

/// Attention of the first four, and then the feed-forward branch of its result.
fn block(sizes: Sizes, inputs: &[Tensor], products: Products, draws: &Draws) -> Tensor {
    let [x, norm_weight, norm_bias, qkv, w_in, b_in, w_out, b_out] = inputs else {
        unreachable!("eight inputs")
    };
    let norm = Norm { weight: norm_weight, bias: norm_bias, eps: 1e-5 };
    let [query, weights, output, depth] = [0.3, 0.2, 0.1, 0.4].map(Kept::of_rate);
    let rates = AttentionRates { query, weights, output, depth };
    let attended = Attention { norm, qkv, heads: sizes.h, products, rates, site: 9 };
    let attended = attended.forward(x, sizes.s, Some(draws)).expect("shapes fit");
    let (input, output_layer) =
        (Linear { weight: w_in, bias: b_in }, Linear { weight: w_out, bias: b_out });
    let rates = FeedForwardRates { hidden: output, output, depth };
    let fed = FeedForward { norm, input, output: output_layer, products, rates, site: 13 };
    fed.forward(&attended, Some(draws)).expect("shapes fit")
}

/// Value and gradients of a block.
fn computed(sizes: Sizes, inputs: &[Tensor], products: Products, draws: &Draws) -> Vec<Tensor> {
    let inputs: Vec<Tensor> =
        inputs.iter().map(|input| input.detach().set_requires_grad(true)).collect();
    let value = block(sizes, &inputs, products, draws);
    let cotangent = (Tensor::arange(value.numel() as i64, (Kind::Double, Device::Cpu)) * 3.0).sin();
    let cotangent = cotangent.to_kind(value.kind()).to_device(value.device()).view_as(&value);
    let sum = (&value * cotangent).sum(None::<Kind>);
    let mut found = Tensor::run_backward(&[sum], &inputs.iter().collect::<Vec<_>>(), false, false);
    found.push(value.detach());
    found
}

#[test]
fn a_block_on_the_device_is_that_of_the_cpu() {
    let device = test_device();
    tch::manual_seed(4);
    let mut worst: f64 = 0.0;
    for sizes in SIZES {
        let Sizes { n, t, d, m, .. } = sizes;
        let shapes = [
            vec![n, t, d],
            vec![d],
            vec![d],
            vec![3 * d, d],
            vec![m, d],
            vec![m],
            vec![d, m],
            vec![d],
        ];
        let exact = shapes.map(|shape| random(&shape));
        let expected = computed(sizes, &exact, Products::Full, &draws(n));
        let on_device = exact.map(|input| input.to_kind(Kind::Float).to_device(device));
        let found = computed(sizes, &on_device, Products::Bfloat16, &draws(n).to_device(device));
        for (at, (found, expected)) in found.iter().zip(&expected).enumerate() {
            assert_eq!(found.device(), device);
            let norm = |x: &Tensor| x.norm().double_value(&[]);
            let apart = norm(&(found.to_device(Device::Cpu).to_kind(Kind::Double) - expected));
            let relative = apart
                / norm(expected).max((expected.numel() as f64).sqrt() / 2.0).max(f64::MIN_POSITIVE);
            assert!(relative <= TOLERANCE, "{sizes:?}, result {at}: {relative:e}");
            worst = worst.max(relative);
        }
    }
    print_line(&format!("blocks in bfloat16 on {device:?} are within {worst:.1e} of float64"));
}

#[test]
fn masks_are_the_same_on_every_device() {
    let device = test_device();
    for (elements, rate) in [(1, 0.5), (128, 0.1), (4225, 0.3), (33_280, 0.1)] {
        let (drawn, kept) = (draws(9), Kept::of_rate(rate));
        let expected =
            keep_mask(&drawn, 5, elements, kept, (Kind::Float, Device::Cpu)).expect("a mask");
        let found = keep_mask(&drawn.to_device(device), 5, elements, kept, (Kind::Float, device))
            .expect("a mask");
        assert!(found.to_device(Device::Cpu).equal(&expected), "{elements} elements");
    }
}
