//! Batch norm by kernels against plain tensor operations.

use super::{FLOAT32, Kernels, Precision, close, compare, random};
use crate::{BatchNorm, Epilogue, Error, Products};
use tch::{Device, Kind, Tensor};

/// One pixel, fewer than a vector has, sizes that no vector divides, a ResNet's, no image on this
/// rank.
const MAPS: [[i64; 4]; 6] =
    [[3, 5, 1, 1], [2, 70, 2, 2], [4, 6, 3, 5], [2, 64, 16, 16], [2, 3, 7, 7], [0, 4, 3, 3]];

/// Adds the moments of a rank with ten elements a channel of mean 0.5 and variance 1.
fn with_another_rank(moments: &Tensor) -> Result<Tensor, Error> {
    let channels = (moments.numel() as i64 - 1) / 2;
    let of = |value: f64, len: i64| Tensor::full([len], value, (Kind::Double, Device::Cpu));
    Ok(moments + Tensor::cat(&[of(5.0, channels), of(12.5, channels), of(10.0, 1)], 0))
}

/// Output, gradients and running statistics; inputs are maps, weight, bias and residual.
fn check_batch_norm(size: [i64; 4], kind: Kind, (epilogue, mean): (&str, f64)) {
    let c = size[1];
    let x = (random(&size, kind).detach() + mean).set_requires_grad(true);
    let inputs = [x, random(&[c], kind), random(&[c], kind), random(&size, kind)];
    let inputs: Vec<&Tensor> = inputs.iter().collect();
    let run = |inputs: &[&Tensor], by_kernels: bool| {
        let kind = inputs[0].kind();
        let like = (kind, Device::Cpu);
        let (running_mean, running_var) =
            (Tensor::full([c], 0.25, like), Tensor::full([c], 2.0, like));
        let norm = BatchNorm {
            weight: inputs[1],
            bias: inputs[2],
            running_mean: &running_mean,
            running_var: &running_var,
            eps: 1e-5,
            momentum: 0.1,
        };
        let epilogue = match epilogue {
            "none" => Epilogue::None,
            "relu" => Epilogue::Relu,
            _ => Epilogue::AddRelu(inputs[3]),
        };
        let out = match by_kernels {
            true => norm.train(inputs[0], epilogue, with_another_rank),
            false => norm.plain(inputs[0], epilogue, with_another_rank),
        };
        // Into the output, that they are compared as well; every input takes part.
        let unused = inputs[3].sum(kind) * 0.0;
        Tensor::cat(
            &[(out.expect("shapes fit") + unused).flatten(0, -1), running_mean, running_var],
            0,
        )
    };
    let what = format!("batch norm of {size:?}, epilogue {epilogue}, mean {mean}");
    let precision = Precision { kind, products: Products::Full, kernels: Kernels::Cpu };
    compare(&what, precision, &inputs, &|inputs| run(inputs, true), &|inputs| run(inputs, false));
}

#[test]
fn kernels_match_plain_batch_norms() {
    for size in MAPS {
        for epilogue in ["none", "relu", "add and relu"] {
            check_batch_norm(size, Kind::Double, (epilogue, 0.0));
            check_batch_norm(size, Kind::Float, (epilogue, 0.0));
        }
    }
}

/// A mean of a thousand deviations: float32 holds four digits of the deviation, and the norm loses
/// no more.
#[test]
fn kernels_keep_a_small_variance() {
    let x = (random(&[64, 3, 4, 4], Kind::Double).detach() + 1000.0).to_kind(Kind::Float);
    let like = (Kind::Float, Device::Cpu);
    let (ones, zeros) = (Tensor::ones([3], like), Tensor::zeros([3], like));
    let norm = BatchNorm {
        weight: &ones,
        bias: &zeros,
        running_mean: &zeros,
        running_var: &ones,
        eps: 0.0,
        momentum: 0.0,
    };
    let found = norm
        .train(&x, Epilogue::None, |moments| Ok::<_, Error>(moments.shallow_clone()))
        .expect("shapes fit");
    let x = x.to_kind(Kind::Double);
    let (var, mean) = x.var_mean_dim(&[0_i64, 2, 3][..], false, true);
    close("norm", &found, &((x - mean) / var.sqrt()), FLOAT32);
}

#[test]
fn a_batch_norm_refuses_other_shapes() {
    let (x, d4, d5) = (
        random(&[2, 4, 3, 3], Kind::Float),
        random(&[4], Kind::Float).detach(),
        random(&[5], Kind::Float),
    );
    let norm = BatchNorm {
        weight: &d4,
        bias: &d4,
        running_mean: &d4,
        running_var: &d4,
        eps: 1e-5,
        momentum: 0.1,
    };
    let refused = |norm: &BatchNorm<'_>, x: &Tensor, epilogue: Epilogue<'_>| {
        norm.train(x, epilogue, with_another_rank).expect_err("refused").to_string()
    };
    assert!(refused(&norm, &d4, Epilogue::None).contains("[n, C, H, W], not [4]"));
    assert!(
        refused(&BatchNorm { bias: &d5, ..norm }, &x, Epilogue::None)
            .contains("bias is ([5], Float, Cpu)")
    );
    assert!(refused(&norm, &x, Epilogue::AddRelu(&d4)).contains("the residual is ([4], Float)"));
}
