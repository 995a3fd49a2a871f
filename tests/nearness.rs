//! How far a tensor, of whatever device, is from what it should be; computed on the CPU.

use tch::{Device, Kind, Tensor};

/// |found - expected| / |expected|, Euclidean norms in float64; infinite if shapes differ or a
/// number is none.
///
/// Below `least_norm` the expected norm counts as that: what is zero but for rounding has no
/// relative error.
pub(crate) fn relative_error(found: &Tensor, expected: &Tensor, least_norm: f64) -> f64 {
    if found.size() != expected.size() {
        return f64::INFINITY;
    }
    let expected = double_on_cpu(expected);
    let norm = |x: &Tensor| x.norm().double_value(&[]);
    let error = norm(&(double_on_cpu(found) - &expected)) / norm(&expected).max(least_norm);
    if error.is_nan() { f64::INFINITY } else { error }
}

/// The largest |found - expected| / (absolute + relative |expected|): at most 1 if every element is
/// near enough.
pub(crate) fn worst_element(
    found: &Tensor,
    expected: &Tensor,
    absolute: f64,
    relative: f64,
) -> f64 {
    if found.size() != expected.size() {
        return f64::INFINITY;
    }
    let expected = double_on_cpu(expected);
    let allowed = expected.abs() * relative + absolute;
    let worst = ((double_on_cpu(found) - &expected).abs() / allowed).max().double_value(&[]);
    if worst.is_nan() { f64::INFINITY } else { worst }
}

fn double_on_cpu(tensor: &Tensor) -> Tensor {
    tensor.to_device(Device::Cpu).to_kind(Kind::Double)
}
