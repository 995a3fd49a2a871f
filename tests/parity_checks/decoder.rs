//! `decoder*`: the autoencoder's decoder, in training and in evaluation. Its parameters are too
//! many to store: a formula over their order and shapes gives them.

use super::golden::Golden;
use super::report::Report;
use crate::test_device::test_device;
use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use std::path::Path;
use std::rc::Rc;
use tch::nn::VarStore;
use tch::{Device, Kind, Reduction, Tensor};
use thanos_fused::{Draws, Products};
use thanos_worker::model::{Alone, BatchSum, Decoder, DecoderShape, Mode};
use thanos_worker::tensors::StateDict;

/// Relative tolerance of single numbers.
const NUMBERS: f64 = 1e-6;

/// The metadata `config`.
#[derive(Deserialize)]
struct Config {
    d_input: i64,
    side: usize,
}

/// The result of one training pass, float64.
struct Pass {
    reconstruction: Tensor,
    mse: Tensor,
    z_gradient: Tensor,
    /// One number a parameter, in the file's order.
    square_sums: Vec<f64>,
}

pub(crate) fn check(path: &Path, report: &mut Report) -> Result<()> {
    let golden = Golden::read(path)?;
    let config: Config = golden.metadata("config")?;
    let parameters: Vec<(String, Vec<i64>)> = golden.metadata("parameters")?;
    let target = golden.input("target")?;
    let (_, first) = parameters.first().context("the metadata names no parameter")?;
    // The first layer makes 4 x 4 positions.
    let (width, channels) = (first[0] / 16, target.size()[1]);
    let mut store = VarStore::new(test_device());
    let sum: Rc<dyn BatchSum> = Rc::new(Alone);
    let path = store.root() / "decoder";
    let shape = DecoderShape { d: config.d_input, width, channels, side: config.side };
    let decoder = Decoder::new(&path, shape, Products::Full, &sum);
    store.double();
    let state: StateDict = store.variables().into_iter().collect();
    fill(&state, &parameters)?;

    let z = golden.input("z")?.to_kind(Kind::Double);
    let pass = train(&decoder, &state, &parameters, (&z, &target))?;
    let expected = |name: &str| golden.tensor(name);
    report.case("reconstruction_train", |case| {
        case.tensor("reconstruction", &pass.reconstruction, &expected("reconstruction_train")?);
        Ok(())
    });
    report.case("mse", |case| {
        case.number(
            "mse",
            pass.mse.double_value(&[]),
            expected("mse")?.double_value(&[0]),
            NUMBERS,
        );
        Ok(())
    });
    report.case("grad_z", |case| {
        case.tensor("grad_z", &pass.z_gradient, &expected("grad_z")?);
        Ok(())
    });
    report.case("grad_square_sums", |case| {
        let expected = Vec::<f64>::try_from(expected("grad_square_sums")?)?;
        case.equal("parameters", pass.square_sums.len(), expected.len());
        for (((name, _), found), expected) in
            parameters.iter().zip(&pass.square_sums).zip(&expected)
        {
            case.number(&format!("sum of squares of {name}"), *found, *expected, NUMBERS);
        }
        Ok(())
    });
    report.case("after_one_step", |case| {
        let expected = golden.folder("after_one_step");
        ensure!(!expected.is_empty(), "there are no running statistics");
        for (name, expected) in &expected {
            case.tensor(
                name,
                state.get(name).with_context(|| format!("the decoder has no {name}"))?,
                expected,
            );
        }
        Ok(())
    });
    report.case("reconstruction_eval", |case| {
        let found = tch::no_grad(|| decoder.forward(&z, Mode::Eval))?;
        case.tensor("reconstruction", &found, &expected("reconstruction_eval")?);
        Ok(())
    });
    Ok(())
}

fn train(
    decoder: &Decoder,
    state: &StateDict,
    parameters: &[(String, Vec<i64>)],
    (z, target): (&Tensor, &Tensor),
) -> Result<Pass> {
    let z = z.detach().set_requires_grad(true);
    let reconstruction = decoder.forward(&z, Mode::Train(&Draws::new(0, &[], 1)))?;
    let mse = reconstruction.mse_loss(&target.to_kind(Kind::Double), Reduction::Mean);
    mse.backward();
    let square_sum = |(name, _): &(String, Vec<i64>)| {
        state[name].grad().square().sum(Kind::Double).double_value(&[])
    };
    let square_sums = parameters.iter().map(square_sum).collect();
    Ok(Pass {
        reconstruction: reconstruction.detach(),
        mse: mse.detach(),
        z_gradient: z.grad(),
        square_sums,
    })
}

/// The README's formula: s = sin(0.7 k + p) for element k of parameter p.
fn fill(state: &StateDict, parameters: &[(String, Vec<i64>)]) -> Result<()> {
    let trainable: Vec<&String> =
        state.iter().filter(|(_, tensor)| tensor.requires_grad()).map(|(name, _)| name).collect();
    let mut named: Vec<&String> = parameters.iter().map(|(name, _)| name).collect();
    named.sort();
    ensure!(trainable == named, "the decoder's parameters are {trainable:?}, the file's {named:?}");
    for (p, (name, shape)) in parameters.iter().enumerate() {
        let numel: i64 = shape.iter().product();
        let s = (Tensor::arange(numel, (Kind::Double, Device::Cpu)) * 0.7 + p as f64).sin();
        let values = match shape.as_slice() {
            [_] if name.ends_with("weight") => s * 0.1 + 1.0,
            [_] => s * 0.1,
            [first, ..] => s / ((numel / first) as f64).sqrt(),
            [] => s,
        };
        ensure!(
            state[name].size() == *shape,
            "{name} has shape {:?}, the file's {shape:?}",
            state[name].size()
        );
        tch::no_grad(|| state[name].shallow_clone().copy_(&values.reshape(shape)));
    }
    Ok(())
}
