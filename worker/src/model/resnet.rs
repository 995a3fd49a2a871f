//! ResNet-18 and ResNet-50 encoders with torchvision's parameter names
//! (torchvision/models/resnet.py), without the classifier; a stem for 32 x 32 images beside
//! torchvision's own.

use super::Mode;
use super::layers::{Conv, ConvShape};
use super::norm::{BatchNorm, BatchSum};
use anyhow::Result;
use std::rc::Rc;
use tch::Tensor;
use tch::nn::init::{FanInOut, NonLinearity, NormalOrUniform};
use tch::nn::{self, Init};
use thanos_configs::Stem;
use thanos_fused::{Epilogue, Products};

#[derive(Debug)]
pub struct Resnet {
    stem: Stem,
    conv1: Conv,
    bn1: BatchNorm,
    blocks: Vec<Block>,
    width: i64,
}

/// What a network takes, and how it multiplies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Input {
    pub(crate) channels: usize,
    pub(crate) stem: Stem,
    pub(crate) products: Products,
}

/// A residual block: two 3x3 convolutions (basic) or 1x1, 3x3, 1x1 (bottleneck).
#[derive(Debug)]
struct Block {
    layers: Vec<(Conv, BatchNorm)>,
    shortcut: Option<(Conv, BatchNorm)>,
}

/// Whether a block is a bottleneck, which widens its output four times.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Basic,
    Bottleneck,
}

impl Kind {
    fn expansion(self) -> i64 {
        match self {
            Kind::Basic => 1,
            Kind::Bottleneck => 4,
        }
    }
}

/// Kind of the blocks, and how many there are in each of the four stages.
struct Layout {
    kind: Kind,
    depths: [usize; 4],
}

/// A block's channels in, channels of its 3x3 convolutions, and stride.
struct BlockShape {
    kind: Kind,
    input: i64,
    planes: i64,
    stride: i64,
}

impl Resnet {
    pub(crate) fn eighteen(root: &nn::Path<'_>, input: Input, sum: &Rc<dyn BatchSum>) -> Self {
        Self::new(root, input, &Layout { kind: Kind::Basic, depths: [2, 2, 2, 2] }, sum)
    }

    pub(crate) fn fifty(root: &nn::Path<'_>, input: Input, sum: &Rc<dyn BatchSum>) -> Self {
        Self::new(root, input, &Layout { kind: Kind::Bottleneck, depths: [3, 4, 6, 3] }, sum)
    }

    fn new(root: &nn::Path<'_>, input: Input, layout: &Layout, sum: &Rc<dyn BatchSum>) -> Self {
        let Layout { kind, depths } = *layout;
        let Input { channels, stem, products } = input;
        let (kernel, stride) = match stem {
            Stem::Imagenet => (7, 2),
            Stem::Cifar => (3, 1),
        };
        let conv1 = conv(
            &(root / "conv1"),
            ConvShape { input: channels as i64, output: 64, kernel, stride },
            products,
        );
        let bn1 = BatchNorm::new(&(root / "bn1"), 64, sum);
        let mut input = 64;
        let mut blocks = Vec::new();
        for (stage, depth) in depths.into_iter().enumerate() {
            let planes = 64 << stage;
            for block in 0..depth {
                let path = root / format!("layer{}", stage + 1) / block;
                let stride = if stage > 0 && block == 0 { 2 } else { 1 };
                let shape = BlockShape { kind, input, planes, stride };
                blocks.push(Block::new(&path, &shape, products, sum));
                input = planes * kind.expansion();
            }
        }
        Self { stem, conv1, bn1, blocks, width: input }
    }

    pub(crate) fn width(&self) -> i64 {
        self.width
    }

    /// Images [n, C, S, S] to embeddings [n, d], the mean over the last feature map.
    pub(crate) fn forward(&self, images: &Tensor, mode: Mode<'_>) -> Result<Tensor> {
        let mut x = self.bn1.forward(&self.conv1.forward(images), Epilogue::Relu, mode)?;
        if self.stem == Stem::Imagenet {
            x = x.max_pool2d([3, 3], [2, 2], [1, 1], [1, 1], false);
        }
        for block in &self.blocks {
            x = block.forward(&x, mode)?;
        }
        Ok(x.mean_dim(&[2_i64, 3][..], false, None))
    }
}

impl Block {
    fn new(
        path: &nn::Path<'_>,
        shape: &BlockShape,
        products: Products,
        sum: &Rc<dyn BatchSum>,
    ) -> Self {
        let BlockShape { kind, input, planes, stride } = *shape;
        let output = planes * kind.expansion();
        // torchvision puts a bottleneck's stride on its 3x3 convolution.
        let sizes = match kind {
            Kind::Basic => vec![(input, planes, 3, stride), (planes, planes, 3, 1)],
            Kind::Bottleneck => {
                vec![(input, planes, 1, 1), (planes, planes, 3, stride), (planes, output, 1, 1)]
            }
        };
        let layers = sizes
            .into_iter()
            .enumerate()
            .map(|(i, (input, output, kernel, stride))| {
                let shape = ConvShape { input, output, kernel, stride };
                let conv = conv(&(path / format!("conv{}", i + 1)), shape, products);
                (conv, BatchNorm::new(&(path / format!("bn{}", i + 1)), output, sum))
            })
            .collect();
        let shortcut = (stride != 1 || input != output).then(|| {
            let path = path / "downsample";
            let shape = ConvShape { input, output, kernel: 1, stride };
            (conv(&(&path / 0), shape, products), BatchNorm::new(&(&path / 1), output, sum))
        });
        Self { layers, shortcut }
    }

    fn forward(&self, x: &Tensor, mode: Mode<'_>) -> Result<Tensor> {
        let identity = match &self.shortcut {
            Some((conv, norm)) => norm.forward(&conv.forward(x), Epilogue::None, mode)?,
            None => x.shallow_clone(),
        };
        let mut out = x.shallow_clone();
        for (i, (conv, norm)) in self.layers.iter().enumerate() {
            let is_last = i + 1 == self.layers.len();
            let epilogue = if is_last { Epilogue::AddRelu(&identity) } else { Epilogue::Relu };
            out = norm.forward(&conv.forward(&out), epilogue, mode)?;
        }
        Ok(out)
    }
}

/// No bias; He-normal over the outputs, as torchvision initialises.
fn conv(path: &nn::Path<'_>, shape: ConvShape, products: Products) -> Conv {
    let init = Init::Kaiming {
        dist: NormalOrUniform::Normal,
        fan: FanInOut::FanOut,
        non_linearity: NonLinearity::ReLU,
    };
    Conv::with_init(path, shape, init, products)
}
