//! The networks: an encoder, a linear head on coarse labels, and for autoencoders a decoder.
//!
//! They do not know that they are distributed, with one exception in the open: batch norm takes its
//! statistics over the global batch through a [`BatchSum`]. Parameter names are those of the
//! published code, so that a checkpoint opens in PyTorch; they are always visited in sorted order.

mod decoder;
mod depth;
mod layers;
mod norm;
mod resnet;
mod vit;

pub use decoder::{Decoder, DecoderShape};
pub(crate) use depth::depth;
pub(crate) use layers::{linear, products};
pub use norm::{Alone, BatchSum};
pub use vit::{Vit, VitShape};

use crate::tensors::StateDict;
use anyhow::Result;
use resnet::Resnet;
use std::rc::Rc;
use tch::nn::{self, Module, VarStore};
use tch::{Device, Tensor};
use thanos_configs::{DataSet, EncoderConfig, ModelConfig, Precision};
use thanos_fused::Draws;

/// Whether dropout, stochastic depth and batch statistics are in force. All that is random in
/// training is a function of the draws; nothing comes from torch's generator.
#[derive(Clone, Copy, Debug)]
pub enum Mode<'a> {
    Train(&'a Draws),
    Eval,
}

impl<'a> Mode<'a> {
    /// What a pass draws by; `None`: it draws nothing.
    pub fn draws(self) -> Option<&'a Draws> {
        match self {
            Mode::Train(draws) => Some(draws),
            Mode::Eval => None,
        }
    }
}

/// Images [n, C, S, S] to embeddings [n, d].
#[derive(Debug)]
pub enum Encoder {
    Vit(Box<Vit>),
    Resnet(Resnet),
}

impl Encoder {
    fn new(
        root: &nn::Path<'_>,
        config: &ModelConfig,
        data: &DataSet,
        sum: &Rc<dyn BatchSum>,
    ) -> Self {
        let input = |stem| resnet::Input {
            channels: data.channels,
            stem,
            products: products(config.precision),
        };
        match config.encoder {
            EncoderConfig::Vit { patch, width, depth, heads, mlp } => {
                let shape = VitShape {
                    channels: data.channels,
                    side: data.side,
                    patch,
                    width,
                    depth,
                    heads,
                    mlp,
                };
                Encoder::Vit(Box::new(Vit::new(root, shape, config)))
            }
            EncoderConfig::Resnet18 { stem } => {
                Encoder::Resnet(Resnet::eighteen(root, input(stem), sum))
            }
            EncoderConfig::Resnet50 { stem } => {
                Encoder::Resnet(Resnet::fifty(root, input(stem), sum))
            }
        }
    }

    /// Width d of an embedding.
    pub fn width(&self) -> i64 {
        match self {
            Encoder::Vit(vit) => vit.width(),
            Encoder::Resnet(resnet) => resnet.width(),
        }
    }

    /// # Errors
    /// If the shapes do not fit, and if a peer is lost while statistics are summed.
    pub fn forward(&self, images: &Tensor, mode: Mode<'_>) -> Result<Tensor> {
        match self {
            Encoder::Vit(vit) => Ok(vit.forward(images, mode)?),
            Encoder::Resnet(resnet) => resnet.forward(images, mode),
        }
    }
}

/// What one backbone trains.
#[derive(Debug)]
pub struct Model {
    variables: VarStore,
    /// Names of what is not trained by gradients: moving statistics. Frozen or not, they are the
    /// same.
    buffers: Vec<String>,
    pub encoder: Encoder,
    /// Linear d -> classes, `cls.*` in checkpoints.
    pub head: nn::Linear,
    pub decoder: Option<Decoder>,
}

impl Model {
    /// Initial weights come from torch's global generator of the CPU, whatever the device: seed it
    /// first.
    pub fn new(
        config: &ModelConfig,
        data: &DataSet,
        with_decoder: bool,
        device: Device,
        sum: &Rc<dyn BatchSum>,
    ) -> Self {
        let mut variables = VarStore::new(Device::Cpu);
        let root = variables.root();
        let encoder = Encoder::new(&root, config, data, sum);
        let classes = data.labels.coarse_names.len() as i64;
        let head = linear(&(&root / "cls"), encoder.width(), classes, true);
        let decoder = with_decoder.then(|| {
            let shape = DecoderShape {
                d: encoder.width(),
                width: config.decoder.width as i64,
                channels: data.channels as i64,
                side: data.side,
            };
            Decoder::new(&(&root / "decoder"), shape, products(config.precision), sum)
        });
        variables.set_device(device);
        let is_buffer =
            |(name, tensor): (String, Tensor)| (!tensor.requires_grad()).then_some(name);
        let buffers = variables.variables().into_iter().filter_map(is_buffer).collect();
        let mut model = Self { variables, buffers, encoder, head, decoder };
        if config.precision == Precision::Float64 {
            model.double();
        }
        model
    }

    /// Coarse logits of embeddings: [n, d] -> [n, classes].
    pub fn logits(&self, embeddings: &Tensor) -> Tensor {
        self.head.forward(embeddings)
    }

    /// Parameters and buffers by name, sorted. The tensors share memory with the model.
    pub fn state(&self) -> StateDict {
        self.variables.variables().into_iter().collect()
    }

    /// What training mode changes in the forward pass: moving statistics, sorted by name.
    pub(crate) fn buffers(&self) -> StateDict {
        self.state().into_iter().filter(|(name, _)| self.buffers.contains(name)).collect()
    }

    /// Parameters alone, sorted by name.
    pub fn parameters(&self) -> StateDict {
        self.state().into_iter().filter(|(_, tensor)| tensor.requires_grad()).collect()
    }

    /// Turns parameters and buffers to float64, for checks against exact values.
    pub fn double(&mut self) {
        self.variables.double();
    }
}
