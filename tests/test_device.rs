//! The device of the checks that a GPU must pass as well: `THANOS_TEST_DEVICE`, `cpu` (the default)
//! or `cuda:N`. Their tolerances are those of strict float32, so a GPU that computes in TF32 is
//! refused before the first comparison.

use std::env;
use std::sync::OnceLock;
use tch::{Cuda, Device, Kind, Tensor};
use thanos_c10d::set_tf32;

const VARIABLE: &str = "THANOS_TEST_DEVICE";
const PROBE_SIDE: i64 = 64;

/// # Panics
/// If the variable names no device of this machine, or one that computes float32 products in TF32.
pub(crate) fn test_device() -> Device {
    static DEVICE: OnceLock<Device> = OnceLock::new();
    *DEVICE.get_or_init(|| {
        let name = env::var(VARIABLE).unwrap_or_else(|_| "cpu".into());
        let device = parse(&name)
            .unwrap_or_else(|| panic!("{VARIABLE} is `{name}`, expected `cpu` or `cuda:N`"));
        let gpus = Cuda::device_count();
        let exists = matches!(device, Device::Cpu)
            || matches!(device, Device::Cuda(index) if (index as i64) < gpus);
        assert!(exists, "{VARIABLE} is `{name}`, and this binary sees {gpus} GPUs");
        set_tf32(false).expect("libtorch has the flags");
        if let Some(operation) = inexact_operation(device) {
            panic!(
                "{operation} on {device:?} is not strict float32: is NVIDIA_TF32_OVERRIDE=1 set?"
            );
        }
        device
    })
}

fn parse(name: &str) -> Option<Device> {
    match name.split_once(':') {
        None if name == "cpu" => Some(Device::Cpu),
        None if name == "cuda" => Some(Device::Cuda(0)),
        Some(("cuda", index)) => Some(Device::Cuda(index.parse().ok()?)),
        _ => None,
    }
}

/// The first kind of product that this device does not compute in strict float32.
fn inexact_operation(device: Device) -> Option<&'static str> {
    let options = (Kind::Float, device);
    let identity = Tensor::eye(PROBE_SIDE, options);
    let kernel = identity.reshape([PROBE_SIDE, PROBE_SIDE, 1, 1]);
    let product = |x: &Tensor| x.matmul(&identity);
    let convolution = |x: &Tensor| {
        let images = x.reshape([1, PROBE_SIDE, 8, -1]);
        images.conv2d(&kernel, None::<Tensor>, [1, 1], [0, 0], [1, 1], 1)
    };
    if !is_exact(options, product) {
        return Some("a matrix product");
    }
    (!is_exact(options, convolution)).then_some("a convolution")
}

/// Whether an operation that should return its input does: 1 + 2^-12 needs more bits than the ten
/// of TF32's mantissa.
fn is_exact(options: (Kind, Device), operation: impl Fn(&Tensor) -> Tensor) -> bool {
    let probe = 1.0 + 2.0_f64.powi(-12);
    let found = operation(&Tensor::full([PROBE_SIDE, PROBE_SIDE], probe, options));
    found.min().double_value(&[]) == probe && found.max().double_value(&[]) == probe
}

#[test]
fn device_names_are_parsed() {
    for (name, device) in [
        ("cpu", Some(Device::Cpu)),
        ("cuda", Some(Device::Cuda(0))),
        ("cuda:3", Some(Device::Cuda(3))),
        ("cuda:", None),
        ("cuda:-1", None),
        ("gpu", None),
        ("", None),
    ] {
        assert_eq!(parse(name), device, "{name}");
    }
}

#[test]
fn rounding_to_ten_bits_is_noticed() {
    let options = (Kind::Float, Device::Cpu);
    assert_eq!(inexact_operation(Device::Cpu), None);
    // float16 has the mantissa of TF32.
    assert!(!is_exact(options, |x| x.to_kind(Kind::Half).to_kind(Kind::Float)));
}
