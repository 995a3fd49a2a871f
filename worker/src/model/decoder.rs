//! The decoder of the class-conditional autoencoder (arXiv 2204.07596): a ResNet-18 turned round,
//! with the published parameter names. Legend: w width of the first stage (512), S the images' side
//! in pixels.

use super::Mode;
use super::layers::{Conv, ConvShape, linear};
use super::norm::{BatchNorm, BatchSum};
use anyhow::Result;
use std::rc::Rc;
use tch::nn::{self, Linear};
use tch::{Kind, Tensor};
use thanos_fused::{Epilogue, Products};

#[derive(Debug)]
pub struct Decoder {
    linear: Linear,
    blocks: Vec<Block>,
    conv1: Conv,
    width: i64,
    side: i64,
    products: Products,
}

/// Sizes: embeddings of width `d` to images of `channels` x `side` x `side` pixels, through `width`
/// channels at first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecoderShape {
    pub d: i64,
    pub width: i64,
    pub channels: i64,
    pub side: usize,
}

/// Two 3x3 convolutions; where `shortcut` is there, the second follows a doubling of the map's
/// side.
#[derive(Debug)]
struct Block {
    conv1: Conv,
    bn1: BatchNorm,
    conv2: Conv,
    bn2: BatchNorm,
    shortcut: Option<(Conv, BatchNorm)>,
}

impl Decoder {
    pub fn new(
        path: &nn::Path<'_>,
        shape: DecoderShape,
        products: Products,
        sum: &Rc<dyn BatchSum>,
    ) -> Self {
        let DecoderShape { d, width, channels, side } = shape;
        let mut blocks = Vec::new();
        let mut input = width;
        for (stage, planes) in [width / 2, width / 4, width / 8, width / 8].into_iter().enumerate()
        {
            let path = path / format!("layer{}", stage + 1);
            let mut push = |index: usize, from, upsample| {
                blocks.push(Block::new(
                    &(&path / index),
                    [from, planes],
                    (upsample, products),
                    sum,
                ));
            };
            push(0, input, stage < 3);
            push(1, planes, false);
            input = planes;
        }
        Self {
            linear: linear(&(path / "linear"), d, width * 16, true),
            blocks,
            conv1: conv(&(path / "conv1"), [input, channels], 3, products),
            width,
            side: side as i64,
            products,
        }
    }

    /// Embeddings [n, d] to images [n, C, S, S], normalised as the encoder's input is.
    pub fn forward(&self, embeddings: &Tensor, mode: Mode<'_>) -> Result<Tensor> {
        let n = embeddings.size()[0];
        let start = (self.side / 8).max(1);
        let x = self.products.linear(embeddings, &self.linear.ws, self.linear.bs.as_ref());
        let x = x.reshape([n, self.width, 4, 4]);
        let mut x = resize(&x, start); // [n, w, S/8, S/8]
        for block in &self.blocks {
            x = block.forward(&x, mode)?;
        }
        Ok(resize(&self.conv1.forward(&x), self.side)) // 8 x floor(S / 8) wide before the resize
    }
}

impl Block {
    fn new(
        path: &nn::Path<'_>,
        [input, planes]: [i64; 2],
        (upsample, products): (bool, Products),
        sum: &Rc<dyn BatchSum>,
    ) -> Self {
        let (conv2, shortcut) = (path / "conv2", path / "upsample");
        // In this order: initial weights are drawn one after the other.
        Self {
            conv1: conv(&(path / "conv1"), [input, input], 3, products),
            bn1: BatchNorm::new(&(path / "bn1"), input, sum),
            conv2: conv(&(if upsample { &conv2 / 1 } else { conv2 }), [input, planes], 3, products),
            bn2: BatchNorm::new(&(path / "bn2"), planes, sum),
            shortcut: upsample.then(|| {
                let narrow = conv(&(&shortcut / 0 / 1), [input, planes], 1, products);
                (narrow, BatchNorm::new(&(&shortcut / 1), planes, sum))
            }),
        }
    }

    fn forward(&self, x: &Tensor, mode: Mode<'_>) -> Result<Tensor> {
        let mut out = self.bn1.forward(&self.conv1.forward(x), Epilogue::Relu, mode)?;
        let identity = match &self.shortcut {
            Some((conv, norm)) => {
                let side = 2 * x.size()[3];
                out = resize(&out, side);
                norm.forward(&conv.forward(&resize(x, side)), Epilogue::None, mode)?
            }
            None => x.shallow_clone(),
        };
        self.bn2.forward(&self.conv2.forward(&out), Epilogue::AddRelu(&identity), mode)
    }
}

fn conv(path: &nn::Path<'_>, [input, output]: [i64; 2], kernel: i64, products: Products) -> Conv {
    Conv::new(path, ConvShape { input, output, kernel, stride: 1 }, products)
}

/// Nearest-neighbour resize of [n, C, H, W] to `side`. An empty batch passes, which libtorch
/// refuses.
fn resize(x: &Tensor, side: i64) -> Tensor {
    let (n, c, height, width) = x.size4().expect("feature maps have four dimensions");
    if (height, width) == (side, side) {
        return x.shallow_clone();
    }
    let index = |from: i64| {
        (Tensor::arange(side, (Kind::Int64, x.device())) * from).divide_scalar_mode(side, "floor")
    };
    if n == 0 {
        return x
            .index_select(2, &index(height))
            .index_select(3, &index(width))
            .reshape([n, c, side, side]);
    }
    x.upsample_nearest2d([side, side], None, None)
}
