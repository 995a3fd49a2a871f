//! Layers with torch's default initialisation, which tch does not use by itself.

use tch::nn::{self, Init};

/// `torch.nn.Linear`: weights and bias uniform in +-1/sqrt(input).
pub(crate) fn linear(path: &nn::Path<'_>, input: i64, output: i64, bias: bool) -> nn::Linear {
    let init = uniform(input);
    nn::linear(path, input, output, nn::LinearConfig { ws_init: init, bs_init: Some(init), bias })
}

/// `torch.nn.Conv2d` without bias: weights uniform in +-1/sqrt(input * kernel^2). Padding keeps the size at stride 1.
pub(crate) fn conv(path: &nn::Path<'_>, input: i64, output: i64, kernel: i64) -> nn::Conv2D {
    let ws_init = uniform(input * kernel * kernel);
    let config = nn::ConvConfig { padding: kernel / 2, bias: false, ws_init, ..Default::default() };
    nn::conv2d(path, input, output, kernel, config)
}

fn uniform(fan_in: i64) -> Init {
    let bound = 1.0 / (fan_in as f64).sqrt();
    Init::Uniform { lo: -bound, up: bound }
}
