//! The vision transformer of the paper's published code (arXiv 2204.07596): pre-norm blocks, no
//! projection after the attention, query dropout, stochastic depth. Legend: n images, T patches, t
//! = T + 1 tokens, d width, h heads. What a block computes, and how it draws, is `thanos-fused`'s.

use super::Mode;
use super::layers::{linear, products};
use tch::Tensor;
use tch::nn::{self, LayerNorm, Linear, Module};
use thanos_configs::ModelConfig;
use thanos_fused::{
    Attention, AttentionRates, Draws, Error, FeedForward, FeedForwardRates, Kept,
    Linear as Weights, Norm, Products, keep_mask,
};

/// Sites of random draws (see `thanos_fused::Draws`): the patch embedding's, and those of each
/// block, from 8 (block + 1) on: four of its attention, and three of its feed-forward branch.
const EMBEDDING_SITE: u32 = 0;
const SITES_OF_BLOCK: u32 = 8;
const ATTENTION_SITES: u32 = 4;

/// Sizes: `side` and `patch` in pixels, `width` and `mlp` in features, `depth` in blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VitShape {
    pub channels: usize,
    pub side: usize,
    pub patch: usize,
    pub width: usize,
    pub depth: usize,
    pub heads: usize,
    pub mlp: usize,
}

/// Rates of everything random; all 0 with `model.dropout: 0`.
#[derive(Clone, Copy, Debug)]
struct Dropout {
    embedding: f64,
    query: f64,
    block: f64,
}

impl Dropout {
    fn of(config: &ModelConfig) -> Self {
        if config.dropout == 0.0 {
            return Self { embedding: 0.0, query: 0.0, block: 0.0 };
        }
        Self {
            embedding: config.embedding_dropout,
            query: config.query_dropout,
            block: config.dropout,
        }
    }
}

#[derive(Debug)]
pub struct Vit {
    shape: VitShape,
    dropout: Dropout,
    products: Products,
    patches: Linear,
    patches_norm: LayerNorm,
    /// [1, 1, d]
    cls_token: Tensor,
    /// [T + 3, d]; rows 0..t are used, the two more are the published code's.
    positions: Tensor,
    blocks: Vec<Block>,
    norm: LayerNorm,
}

#[derive(Debug)]
struct Block {
    attention_norm: LayerNorm,
    /// d -> 3 x h x d/h, no bias.
    qkv: Linear,
    mlp_norm: LayerNorm,
    mlp_in: Linear,
    mlp_out: Linear,
    heads: i64,
    attention_rates: AttentionRates,
    feed_forward_rates: FeedForwardRates,
    /// The first of the block's sites.
    site: u32,
}

impl Vit {
    pub fn new(root: &nn::Path<'_>, shape: VitShape, config: &ModelConfig) -> Self {
        let d = shape.width as i64;
        let patches = (shape.side / shape.patch).pow(2) as i64;
        let (pre, enc) = (root / "pre" / "emb", root / "enc");
        let dropout = Dropout::of(config);
        let last = shape.depth.saturating_sub(1).max(1) as f64;
        let blocks = (0..shape.depth)
            .map(|k| Block::new(&(&enc / "f" / k), (shape, k), dropout, k as f64 / last))
            .collect();
        let products = products(config.precision);
        let clipped = |path: &nn::Path<'_>, name: &str, dims: &[i64]| {
            let mut variable = path.var(name, dims, nn::Init::Randn { mean: 0.0, stdev: 0.1 });
            tch::no_grad(|| _ = variable.clamp_(-1.0, 1.0));
            variable
        };
        Self {
            shape,
            dropout,
            products,
            patches: linear(
                &(&pre / 0),
                (shape.patch * shape.patch * shape.channels) as i64,
                d,
                true,
            ),
            patches_norm: nn::layer_norm(&pre / 1, vec![d], Default::default()),
            cls_token: clipped(&enc, "cls_token", &[1, 1, d]),
            positions: clipped(&enc, "pe", &[patches + 3, d]),
            blocks,
            norm: nn::layer_norm(&enc / "f" / shape.depth, vec![d], Default::default()),
        }
    }

    pub fn width(&self) -> i64 {
        self.shape.width as i64
    }

    /// Images [n, C, S, S] to the CLS token's embedding [n, d].
    ///
    /// # Errors
    /// If the draws are of another number of images.
    pub fn forward(&self, images: &Tensor, mode: Mode<'_>) -> Result<Tensor, Error> {
        let draws = mode.draws();
        let n = images.size()[0];
        let tokens = self.products.linear(
            &self.patchify(images),
            &self.patches.ws,
            self.patches.bs.as_ref(),
        ); // [n, T, d]
        let tokens = self.drop_embedding(self.patches_norm.forward(&tokens), draws)?;
        let cls = self.cls_token.expand([n, 1, self.width()], false);
        let tokens = Tensor::cat(&[cls, tokens], 1); // [n, t, d]
        let t = tokens.size()[1];
        let mut tokens = tokens + self.positions.narrow(0, 0, t);
        let (last, earlier) = self.blocks.split_last().expect("a plan has at least one block");
        for block in earlier {
            tokens = block.forward(&tokens, t, self.products, draws)?;
        }
        // Only the CLS token leaves the encoder: the last block computes no other.
        let cls = last.forward(&tokens, 1, self.products, draws)?; // [n, 1, d]
        Ok(self.norm.forward(&cls).squeeze_dim(1)) // [n, d]
    }

    /// [n, C, S, S] to [n, T, p * p * C], a patch flattened as (row, column, channel).
    fn patchify(&self, images: &Tensor) -> Tensor {
        let (n, c, s) =
            images.size4().map(|(n, c, s, _)| (n, c, s)).expect("images have four dimensions");
        let p = self.shape.patch as i64;
        let side = s / p;
        images.reshape([n, c, side, p, side, p]).permute([0, 2, 4, 3, 5, 1]).reshape([
            n,
            side * side,
            p * p * c,
        ])
    }

    /// Dropout of patches [n, T, d].
    fn drop_embedding(&self, patches: Tensor, draws: Option<&Draws>) -> Result<Tensor, Error> {
        let kept = Kept::of_rate(self.dropout.embedding);
        let Some(draws) = draws.filter(|_| kept != Kept::EVERYTHING) else { return Ok(patches) };
        let elements = patches.size()[1..].iter().product();
        let mask =
            keep_mask(draws, EMBEDDING_SITE, elements, kept, (patches.kind(), patches.device()))?;
        Ok(&patches * mask.view_as(&patches))
    }
}

impl Block {
    /// `depth` of 0 to 1: how far up the block is, which scales its stochastic depth.
    fn new(
        path: &nn::Path<'_>,
        (shape, index): (VitShape, usize),
        dropout: Dropout,
        depth: f64,
    ) -> Self {
        let (d, mlp) = (shape.width as i64, shape.mlp as i64);
        let (attention, feed) = (path / "mha" / "f", path / "ffn" / "f");
        let (output, depth) = (Kept::of_rate(dropout.block), Kept::of_rate(dropout.block * depth));
        Self {
            attention_norm: nn::layer_norm(&attention / "norm", vec![d], Default::default()),
            qkv: linear(&(&attention / "f" / "qkv"), d, 3 * d, false),
            mlp_norm: nn::layer_norm(&feed / "norm", vec![d], Default::default()),
            mlp_in: linear(&(&feed / "f" / "f" / 0), d, mlp, true),
            mlp_out: linear(&(&feed / "f" / "f" / 3), mlp, d, true),
            heads: shape.heads as i64,
            attention_rates: AttentionRates {
                query: Kept::of_rate(dropout.query),
                weights: output,
                output,
                depth,
            },
            feed_forward_rates: FeedForwardRates { hidden: output, output, depth },
            site: SITES_OF_BLOCK * (index as u32 + 1),
        }
    }

    /// Tokens [n, t, d] to the first `queries` of them [n, queries, d]; every token is attended to.
    fn forward(
        &self,
        tokens: &Tensor,
        queries: i64,
        products: Products,
        draws: Option<&Draws>,
    ) -> Result<Tensor, Error> {
        let attention = Attention {
            norm: norm_of(&self.attention_norm),
            qkv: &self.qkv.ws,
            heads: self.heads,
            products,
            rates: self.attention_rates,
            site: self.site,
        };
        let feed_forward = FeedForward {
            norm: norm_of(&self.mlp_norm),
            input: weights_of(&self.mlp_in),
            output: weights_of(&self.mlp_out),
            products,
            rates: self.feed_forward_rates,
            site: self.site + ATTENTION_SITES,
        };
        feed_forward.forward(&attention.forward(tokens, queries, draws)?, draws)
    }
}

fn norm_of(norm: &LayerNorm) -> Norm<'_> {
    match (&norm.ws, &norm.bs) {
        (Some(weight), Some(bias)) => {
            Norm { weight, bias, eps: nn::LayerNormConfig::default().eps }
        }
        _ => unreachable!("tch's default layer norm has a weight and a bias"),
    }
}

fn weights_of(linear: &Linear) -> Weights<'_> {
    Weights {
        weight: &linear.ws,
        bias: linear.bs.as_ref().expect("these layers are made with a bias"),
    }
}
