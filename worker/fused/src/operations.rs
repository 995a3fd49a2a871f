//! The two branches of a block: their weights, rates and sites, and which implementation computes
//! them.

use crate::calls::AttentionShape;
use crate::draws::{Draws, Kept, has_kernels, keep_everything};
use crate::products::Products;
use crate::{Error, calls, gpu, raw};
use tch::{Device, Kind, Tensor};

/// What the kernels take at most: scores of a head stay in the processor's caches.
const MAX_TOKENS: i64 = 256;
const MAX_HEAD_WIDTH: i64 = 128;

/// A layer norm's weight and bias, [d].
#[derive(Clone, Copy, Debug)]
pub struct Norm<'a> {
    pub weight: &'a Tensor,
    pub bias: &'a Tensor,
    pub eps: f64,
}

/// A linear layer's weight [output, input] and bias [output].
#[derive(Clone, Copy, Debug)]
pub struct Linear<'a> {
    pub weight: &'a Tensor,
    pub bias: &'a Tensor,
}

/// What attention keeps: of each query's logits, of the probabilities, of the output's elements,
/// and of the branch.
#[derive(Clone, Copy, Debug)]
pub struct AttentionRates {
    pub query: Kept,
    pub weights: Kept,
    pub output: Kept,
    pub depth: Kept,
}

/// `x[:, :s] + depth(dropout(attention(norm(x))))`. Attention has no output projection.
///
/// A query that is dropped has logits of zero, so it attends uniformly. Its sites are `site` and
/// the three after it.
#[derive(Clone, Copy, Debug)]
pub struct Attention<'a> {
    pub norm: Norm<'a>,
    /// Weight of q, k and v without bias, [3d, d].
    pub qkv: &'a Tensor,
    pub heads: i64,
    pub products: Products,
    pub rates: AttentionRates,
    pub site: u32,
}

/// What the feed-forward branch keeps: of the activation's elements, of the output's, and of the
/// branch.
#[derive(Clone, Copy, Debug)]
pub struct FeedForwardRates {
    pub hidden: Kept,
    pub output: Kept,
    pub depth: Kept,
}

/// `x + depth(dropout(output(dropout(gelu(input(norm(x)))))))`. Its sites are `site` and the two
/// after it.
#[derive(Clone, Copy, Debug)]
pub struct FeedForward<'a> {
    pub norm: Norm<'a>,
    /// d -> m, with the exact GELU after it.
    pub input: Linear<'a>,
    /// m -> d
    pub output: Linear<'a>,
    pub products: Products,
    pub rates: FeedForwardRates,
    pub site: u32,
}

impl Attention<'_> {
    /// Tokens [n, t, d] to the first `queries` of them, [n, s, d]. Without draws nothing is
    /// dropped.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn forward(
        &self,
        x: &Tensor,
        queries: i64,
        draws: Option<&Draws>,
    ) -> Result<Tensor, Error> {
        let (n, t, d) = check_input("attention", x, draws)?;
        let expected = [
            ("norm", self.norm.weight, vec![d]),
            ("bias", self.norm.bias, vec![d]),
            ("qkv", self.qkv, vec![3 * d, d]),
        ];
        check_weights("attention", x, &expected)?;
        if self.heads < 1 || d % self.heads != 0 || queries < 1 || queries > t {
            let message = format!(
                "{} heads and {queries} queries do not fit tokens [{n}, {t}, {d}]",
                self.heads
            );
            return Err(Error { operation: "attention", message });
        }
        if gpu::takes_attention(x, self.heads, queries, self.products) {
            return self.on_gpu(x, queries, draws);
        }
        if !takes(x) || t > MAX_TOKENS || d / self.heads > MAX_HEAD_WIDTH {
            return Ok(self.plain(x, queries, draws));
        }
        let drop = self.drop_of(draws, Draws::key);
        let rows = rows(draws, n);
        let tensors = [x, self.norm.weight, self.norm.bias, self.qkv, &rows];
        let shape = AttentionShape { heads: self.heads, queries };
        calls::attention(tensors, shape, self.norm.eps, self.products, &drop)
    }

    /// By the kernels of GPUs, which run on the CPU as well, slowly.
    pub(crate) fn on_gpu(
        &self,
        x: &Tensor,
        queries: i64,
        draws: Option<&Draws>,
    ) -> Result<Tensor, Error> {
        let drop = self.drop_of(draws, |_| 0);
        let tensors = [x, self.norm.weight, self.norm.bias, self.qkv];
        let shape = AttentionShape { heads: self.heads, queries };
        gpu::attention(tensors, shape, self.norm.eps, draws, &drop)
    }

    fn drop_of(&self, draws: Option<&Draws>, key: fn(&Draws) -> u64) -> raw::Drop {
        let rates = self.rates;
        drop_of(draws, (self.site, key), |kept| raw::Drop {
            query: kept(rates.query),
            weights: kept(rates.weights),
            output: kept(rates.output),
            depth: kept(rates.depth),
            ..keep_everything()
        })
    }
}

impl FeedForward<'_> {
    /// Tokens [n, t, d] to the same shape. Without draws nothing is dropped.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn forward(&self, x: &Tensor, draws: Option<&Draws>) -> Result<Tensor, Error> {
        let (n, _, d) = check_input("feed_forward", x, draws)?;
        let m = self.input.bias.numel() as i64;
        let expected = [
            ("norm", self.norm.weight, vec![d]),
            ("bias", self.norm.bias, vec![d]),
            ("input", self.input.weight, vec![m, d]),
            ("input's bias", self.input.bias, vec![m]),
            ("output", self.output.weight, vec![d, m]),
            ("output's bias", self.output.bias, vec![d]),
        ];
        check_weights("feed_forward", x, &expected)?;
        if gpu::takes_feed_forward(x, m, self.products) {
            return self.on_gpu(x, draws);
        }
        if !takes(x) {
            return Ok(self.plain(x, draws));
        }
        let drop = self.drop_of(draws, Draws::key);
        let rows = rows(draws, n);
        let [norm, norm_bias, input, input_bias, output, output_bias] = self.weights();
        let tensors = [x, norm, norm_bias, input, input_bias, output, output_bias, &rows];
        calls::feed_forward(tensors, (self.norm.eps, self.products), &drop)
    }

    /// By the kernels of GPUs, which run on the CPU as well, slowly.
    pub(crate) fn on_gpu(&self, x: &Tensor, draws: Option<&Draws>) -> Result<Tensor, Error> {
        let drop = self.drop_of(draws, |_| 0);
        let [norm, norm_bias, input, input_bias, output, output_bias] = self.weights();
        let tensors = [x, norm, norm_bias, input, input_bias, output, output_bias];
        gpu::feed_forward(tensors, self.norm.eps, draws, &drop)
    }

    fn weights(&self) -> [&Tensor; 6] {
        let Self { norm, input, output, .. } = self;
        [norm.weight, norm.bias, input.weight, input.bias, output.weight, output.bias]
    }

    fn drop_of(&self, draws: Option<&Draws>, key: fn(&Draws) -> u64) -> raw::Drop {
        let rates = self.rates;
        drop_of(draws, (self.site, key), |kept| raw::Drop {
            hidden: kept(rates.hidden),
            output: kept(rates.output),
            depth: kept(rates.depth),
            ..keep_everything()
        })
    }
}

fn takes(x: &Tensor) -> bool {
    has_kernels((x.kind(), x.device()))
}

/// Without draws the rows are not read.
fn rows(draws: Option<&Draws>, n: i64) -> Tensor {
    draws.map_or_else(
        || Tensor::zeros([n], (Kind::Int64, Device::Cpu)),
        |draws| draws.rows().shallow_clone(),
    )
}

/// Of an operation whose first site is `site`.
fn drop_of(
    draws: Option<&Draws>,
    (site, key): (u32, fn(&Draws) -> u64),
    rates: impl FnOnce(fn(Kept) -> u32) -> raw::Drop,
) -> raw::Drop {
    match draws {
        Some(draws) => raw::Drop { key: key(draws), site: draws.site(site), ..rates(Kept::share) },
        None => keep_everything(),
    }
}

/// [n, t, d] with a row for each image.
fn check_input(
    operation: &'static str,
    x: &Tensor,
    draws: Option<&Draws>,
) -> Result<(i64, i64, i64), Error> {
    let error = |message| Error { operation, message };
    let shape =
        x.size3().map_err(|_| error(format!("tokens are [n, t, d], not {:?}", x.size())))?;
    match draws.map(|draws| draws.rows().size()[0]) {
        Some(rows) if rows != shape.0 => {
            Err(error(format!("draws of {rows} rows for {} images", shape.0)))
        }
        _ => Ok(shape),
    }
}

fn check_weights(
    operation: &'static str,
    x: &Tensor,
    expected: &[(&str, &Tensor, Vec<i64>)],
) -> Result<(), Error> {
    for (name, weight, size) in expected {
        let alike = weight.kind() == x.kind() && weight.device() == x.device();
        if weight.size() != *size || !alike || !weight.is_contiguous() {
            let found = (weight.size(), weight.kind(), weight.device());
            let (kind, device) = (x.kind(), x.device());
            let message = format!(
                "{name} is {found:?}, expected {size:?} of {kind:?} on {device:?}, contiguous"
            );
            return Err(Error { operation, message });
        }
    }
    Ok(())
}
