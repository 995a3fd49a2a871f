//! The branches by plain tensor operations with autograd's gradients: what the kernels are tested
//! against, and what runs where there are none.

use crate::draws::{Draws, Kept, in_groups};
use crate::gpu;
use crate::masks::{keep_mask, plain_mask};
use crate::operations::{Attention, FeedForward, Norm};
use tch::{Device, Kind, Tensor};

impl Norm<'_> {
    fn plain(&self, x: &Tensor) -> Tensor {
        let size = self.weight.size();
        x.layer_norm(size, Some(self.weight), Some(self.bias), self.eps, false)
    }
}

impl Attention<'_> {
    pub(crate) fn plain(&self, x: &Tensor, queries: i64, draws: Option<&Draws>) -> Tensor {
        let (n, t, d) = x.size3().expect("the caller has checked the shape");
        let h = self.heads;
        let normed = self.norm.plain(x);
        let (q, k, v) = self.project(&normed, queries);
        // [n, h, tokens, d/h]
        let split = |x: &Tensor, tokens: i64| x.reshape([n, tokens, h, d / h]).transpose(1, 2);
        let q =
            masked(split(&q, queries), draws, (self.site, self.rates.query), &[n, 1, queries, 1]);
        let (k, v) = (split(&k, t), split(&v, t));
        let mixed = match draws.filter(|_| self.rates.weights != Kept::EVERYTHING) {
            None => {
                let [q, k, v] = [&q, &k, &v].map(|x| self.products.factor(x));
                Tensor::scaled_dot_product_attention::<&Tensor>(
                    &q, &k, &v, None, 0.0, false, None, false,
                )
                .to_kind(x.kind())
            }
            Some(draws) => {
                let logits =
                    self.products.matmul(&q, &k.transpose(-1, -2)) / ((d / h) as f64).sqrt();
                let like = (x.kind(), x.device());
                let len = in_groups(queries * t);
                let mask = mask(draws, self.site + 1, h * len, self.rates.weights, like)
                    .reshape([n, h, len]);
                let mask = mask.narrow(2, 0, queries * t).reshape([n, h, queries, t]);
                self.products.matmul(&(logits.softmax(-1, None) * mask), &v)
            }
        }; // [n, h, s, d/h]
        let mixed = mixed.transpose(1, 2).reshape([n, queries, d]);
        let mixed = masked(mixed, draws, (self.site + 2, self.rates.output), &[n, queries, d]);
        let first = if queries == t { x.shallow_clone() } else { x.narrow(1, 0, queries) };
        first + masked(mixed, draws, (self.site + 3, self.rates.depth), &[n, 1, 1])
    }

    /// q [n, s, d], k and v [n, t, d]. One product and no stack where all tokens are queries: the
    /// gradient of a chunk is written in place.
    fn project(&self, normed: &Tensor, queries: i64) -> (Tensor, Tensor, Tensor) {
        let (_, t, d) = normed.size3().expect("the caller has checked the shape");
        let mut parts = if queries == t {
            self.products.linear(normed, self.qkv, None).chunk(3, -1)
        } else {
            let q = self.products.linear(
                &normed.narrow(1, 0, queries),
                &self.qkv.narrow(0, 0, d),
                None,
            );
            let keys_values = self.products.linear(normed, &self.qkv.narrow(0, d, 2 * d), None);
            let mut parts = vec![q];
            parts.extend(keys_values.chunk(2, -1));
            parts
        };
        let (v, k) = (parts.pop(), parts.pop());
        match (parts.pop(), k, v) {
            (Some(q), Some(k), Some(v)) => (q, k, v),
            _ => unreachable!("a width of 3d has three chunks"),
        }
    }
}

impl FeedForward<'_> {
    pub(crate) fn plain(&self, x: &Tensor, draws: Option<&Draws>) -> Tensor {
        let (n, t, d) = x.size3().expect("the caller has checked the shape");
        let hidden = self
            .products
            .linear(&self.norm.plain(x), self.input.weight, Some(self.input.bias))
            .gelu("none");
        let m = self.input.bias.numel() as i64;
        let hidden = masked(hidden, draws, (self.site, self.rates.hidden), &[n, t, m]);
        let fed = self.products.linear(&hidden, self.output.weight, Some(self.output.bias));
        let fed = masked(fed, draws, (self.site + 1, self.rates.output), &[n, t, d]);
        x + masked(fed, draws, (self.site + 2, self.rates.depth), &[n, 1, 1])
    }
}

/// `x` times a mask of this shape, whose first dimension is n.
fn masked(x: Tensor, draws: Option<&Draws>, (site, kept): (u32, Kept), shape: &[i64]) -> Tensor {
    match draws.filter(|_| kept != Kept::EVERYTHING) {
        None => x,
        Some(draws) => {
            let elements = shape[1..].iter().product();
            let mask = mask(draws, site, elements, kept, (x.kind(), x.device()));
            x * mask.reshape(shape)
        }
    }
}

/// A mask by tensor operations; on a GPU they would be 160 kernels, and one does the same.
fn mask(draws: &Draws, site: u32, elements: i64, kept: Kept, like: (Kind, Device)) -> Tensor {
    let by_kernel =
        gpu::takes_masks(like).then(|| keep_mask(draws, site, elements, kept, like).ok()).flatten();
    by_kernel.unwrap_or_else(|| plain_mask(draws, site, elements, kept, like))
}
