//! The vision transformer of the paper's published code (arXiv 2204.07596): pre-norm blocks, no projection behind the
//! attention, query dropout, stochastic depth. Legend: n images, T patches, t = T + 1 tokens, d width, h heads.

use super::Mode;
use super::layers::linear;
use tch::nn::{self, LayerNorm, Linear, Module};
use tch::{Kind, Tensor};
use thanos_configs::ModelConfig;

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
        Self { embedding: config.embedding_dropout, query: config.query_dropout, block: config.dropout }
    }
}

#[derive(Debug)]
pub struct Vit {
    shape: VitShape,
    dropout: Dropout,
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
    /// Probability that the block's branches are skipped for an image.
    skip: f64,
}

impl Vit {
    pub fn new(root: &nn::Path<'_>, shape: VitShape, config: &ModelConfig) -> Self {
        let d = shape.width as i64;
        let patches = (shape.side / shape.patch).pow(2) as i64;
        let (pre, enc) = (root / "pre" / "emb", root / "enc");
        let dropout = Dropout::of(config);
        let last = shape.depth.saturating_sub(1).max(1) as f64;
        let blocks =
            (0..shape.depth).map(|k| Block::new(&(&enc / "f" / k), shape, dropout.block * k as f64 / last)).collect();
        let clipped = |path: &nn::Path<'_>, name: &str, dims: &[i64]| {
            let mut variable = path.var(name, dims, nn::Init::Randn { mean: 0.0, stdev: 0.1 });
            tch::no_grad(|| _ = variable.clamp_(-1.0, 1.0));
            variable
        };
        Self {
            shape,
            dropout,
            patches: linear(&(&pre / 0), (shape.patch * shape.patch * shape.channels) as i64, d, true),
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
    pub fn forward(&self, images: &Tensor, mode: Mode) -> Tensor {
        let train = mode == Mode::Train;
        let n = images.size()[0];
        let tokens = self.patches.forward(&self.patchify(images)); // [n, T, d]
        let tokens = self.patches_norm.forward(&tokens).dropout(self.dropout.embedding, train);
        let cls = self.cls_token.expand([n, 1, self.width()], false);
        let tokens = Tensor::cat(&[cls, tokens], 1); // [n, t, d]
        let t = tokens.size()[1];
        let mut tokens = tokens + self.positions.narrow(0, 0, t);
        let (last, earlier) = self.blocks.split_last().expect("a plan has at least one block");
        for block in earlier {
            tokens = block.forward(&tokens, t, self.dropout, train);
        }
        // Only the CLS token leaves the encoder: the last block computes no other.
        let cls = last.forward(&tokens, 1, self.dropout, train); // [n, 1, d]
        self.norm.forward(&cls).squeeze_dim(1) // [n, d]
    }

    /// [n, C, S, S] to [n, T, p * p * C], a patch flattened as (row, column, channel).
    fn patchify(&self, images: &Tensor) -> Tensor {
        let (n, c, s) = images.size4().map(|(n, c, s, _)| (n, c, s)).expect("images have four dimensions");
        let p = self.shape.patch as i64;
        let side = s / p;
        images.reshape([n, c, side, p, side, p]).permute([0, 2, 4, 3, 5, 1]).reshape([n, side * side, p * p * c])
    }
}

impl Block {
    fn new(path: &nn::Path<'_>, shape: VitShape, skip: f64) -> Self {
        let (d, mlp) = (shape.width as i64, shape.mlp as i64);
        let (attention, feed) = (path / "mha" / "f", path / "ffn" / "f");
        Self {
            attention_norm: nn::layer_norm(&attention / "norm", vec![d], Default::default()),
            qkv: linear(&(&attention / "f" / "qkv"), d, 3 * d, false),
            mlp_norm: nn::layer_norm(&feed / "norm", vec![d], Default::default()),
            mlp_in: linear(&(&feed / "f" / "f" / 0), d, mlp, true),
            mlp_out: linear(&(&feed / "f" / "f" / 3), mlp, d, true),
            heads: shape.heads as i64,
            skip,
        }
    }

    /// Tokens [n, t, d] to the first `queries` of them [n, queries, d]; every token is attended to.
    fn forward(&self, tokens: &Tensor, queries: i64, dropout: Dropout, train: bool) -> Tensor {
        let attended = self.attention(&self.attention_norm.forward(tokens), queries, dropout, train);
        let tokens = tokens.narrow(1, 0, queries) + self.skipped(attended, train);
        let hidden = self.mlp_in.forward(&self.mlp_norm.forward(&tokens)).gelu("none").dropout(dropout.block, train);
        let fed = self.mlp_out.forward(&hidden).dropout(dropout.block, train);
        &tokens + self.skipped(fed, train)
    }

    fn attention(&self, tokens: &Tensor, queries: i64, dropout: Dropout, train: bool) -> Tensor {
        let (n, t, d) = tokens.size3().expect("tokens have three dimensions");
        let h = self.heads;
        let split = |x: Tensor, tokens: i64, parts: i64| {
            x.reshape([n, tokens, parts, h, d / h]).permute([2, 0, 3, 1, 4]) // [parts, n, h, tokens, d/h]
        };
        let (q, keys_values) = if queries == t {
            let qkv = split(self.qkv.forward(tokens), t, 3);
            (qkv.get(0), qkv.narrow(0, 1, 2))
        } else {
            let weight = |from: i64, rows: i64| self.qkv.ws.narrow(0, from, rows);
            let q = tokens.narrow(1, 0, queries).matmul(&weight(0, d).tr());
            (split(q, queries, 1).get(0), split(tokens.matmul(&weight(d, 2 * d).tr()), t, 2))
        };
        let q = match train && dropout.query > 0.0 {
            true => &q * keep_mask(&q, &[n, 1, queries, 1], dropout.query),
            false => q,
        };
        let rate = if train { dropout.block } else { 0.0 };
        let (k, v) = (keys_values.get(0), keys_values.get(1));
        let mixed = Tensor::scaled_dot_product_attention::<&Tensor>(&q, &k, &v, None, rate, false, None, false); // [n, h, queries, d/h]
        mixed.transpose(1, 2).reshape([n, queries, d]).dropout(dropout.block, train)
    }

    /// Stochastic depth: the branch is left out for some images, scaled up for the others.
    fn skipped(&self, branch: Tensor, train: bool) -> Tensor {
        if !train || self.skip == 0.0 {
            return branch;
        }
        let n = branch.size()[0];
        let mask = keep_mask(&branch, &[n, 1, 1], self.skip);
        branch * mask
    }
}

/// 1 / (1 - rate) with probability 1 - rate, else 0.
fn keep_mask(like: &Tensor, shape: &[i64], rate: f64) -> Tensor {
    let keep = 1.0 - rate;
    let ones = Tensor::full(shape, keep, (Kind::Float, like.device()));
    ones.bernoulli().to_kind(like.kind()) / keep
}
