//! Layers with torch's default initialisation, which tch does not use by itself, and convolutions
//! in each precision.

use tch::Tensor;
use tch::nn::{self, Init};
use thanos_configs::Precision;
use thanos_fused::Products;

/// What matrix products and convolutions multiply in this precision.
pub(crate) fn products(precision: Precision) -> Products {
    match precision {
        Precision::Float32 | Precision::Tf32 | Precision::Float64 => Products::Full,
        Precision::Bfloat16 => Products::Bfloat16,
    }
}

/// `torch.nn.Linear`: weights and bias uniform in +-1/sqrt(input).
pub(crate) fn linear(path: &nn::Path<'_>, input: i64, output: i64, bias: bool) -> nn::Linear {
    let init = uniform(input);
    nn::linear(path, input, output, nn::LinearConfig { ws_init: init, bs_init: Some(init), bias })
}

/// `torch.nn.Conv2d` without bias, with a square kernel of odd size. Padding keeps the size at
/// stride 1.
#[derive(Debug)]
pub(crate) struct Conv {
    /// [output, input, kernel, kernel]
    weight: Tensor,
    stride: i64,
    products: Products,
}

/// Sizes of a convolution: channels, and pixels of its kernel and stride.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ConvShape {
    pub(crate) input: i64,
    pub(crate) output: i64,
    pub(crate) kernel: i64,
    pub(crate) stride: i64,
}

impl Conv {
    /// With torch's default: weights uniform in +-1/sqrt(input * kernel^2).
    pub(crate) fn new(path: &nn::Path<'_>, shape: ConvShape, products: Products) -> Self {
        Self::with_init(path, shape, uniform(shape.input * shape.kernel * shape.kernel), products)
    }

    pub(crate) fn with_init(
        path: &nn::Path<'_>,
        shape: ConvShape,
        init: Init,
        products: Products,
    ) -> Self {
        let ConvShape { input, output, kernel, stride } = shape;
        Self {
            weight: path.var("weight", &[output, input, kernel, kernel], init),
            stride,
            products,
        }
    }

    /// [n, input, H, W] to [n, output, H / stride, W / stride], rounded up; in the kind of `x`.
    pub(crate) fn forward(&self, x: &Tensor) -> Tensor {
        let padding = self.weight.size()[2] / 2;
        let (factor, weight) = (self.products.factor(x), self.products.factor(&self.weight));
        factor
            .conv2d::<&Tensor>(&weight, None, [self.stride; 2], [padding; 2], [1, 1], 1)
            .to_kind(x.kind())
    }
}

fn uniform(fan_in: i64) -> Init {
    let bound = 1.0 / (fan_in as f64).sqrt();
    Init::Uniform { lo: -bound, up: bound }
}
