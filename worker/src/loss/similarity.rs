//! From embeddings to the rows whose products are the logits, and from their gradients back.

use tch::{Kind, Tensor};

/// How s_ij is made of anchor u_i and candidate w_j, before the temperature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Similarity {
    /// <u_i, w_j> / (|u_i| |w_j|)
    Cosine,
    /// <u_i, w_j>
    Dot,
    /// <u_i, w_j> / (|u_j| |w_j|): the published code's, whose gradient reaches u_j through column
    /// j as well.
    Reference,
}

/// Rows such that s_ij = `anchors`_i . `candidates`_j. Both [b, d]; row j of each belongs to the
/// same image.
pub struct Prepared {
    pub anchors: Tensor,
    pub candidates: Tensor,
    similarity: Similarity,
    temperature: f64,
    /// |u| and |w|, [b, 1].
    norms: (Tensor, Tensor),
}

/// As `torch.nn.functional.normalize`: a shorter vector is divided by this.
const SHORTEST: f64 = 1e-12;

impl Similarity {
    /// Anchors `u` and candidates `w`, [b, d], of the same images in the same order.
    pub fn prepare(self, u: &Tensor, w: &Tensor, temperature: f64) -> Prepared {
        let norm = |x: &Tensor| {
            x.norm_scalaropt_dim(2, &[1_i64][..], true).clamp_min(SHORTEST) // [b, 1]
        };
        let norms = (norm(u), norm(w));
        let (anchors, candidates) = match self {
            Similarity::Cosine => (u / &norms.0, w / (&norms.1 * temperature)),
            Similarity::Dot => (u.shallow_clone(), w / temperature),
            Similarity::Reference => (u.shallow_clone(), w / (&norms.0 * &norms.1 * temperature)),
        };
        Prepared { anchors, candidates, similarity: self, temperature, norms }
    }
}

impl Prepared {
    /// From the gradients of the rows to those of the embeddings: (du, dw), each [b, d].
    ///
    /// `candidates_gradient` must be the sum over all anchors of the global batch.
    pub fn finish(
        &self,
        anchors_gradient: &Tensor,
        candidates_gradient: &Tensor,
    ) -> (Tensor, Tensor) {
        let (du, h, t) = (anchors_gradient, candidates_gradient, self.temperature);
        let (u_norm, w_norm) = (&self.norms.0, &self.norms.1);
        let along = |gradient: &Tensor, row: &Tensor| {
            (gradient * row).sum_dim_intlist(&[1_i64][..], true, None::<Kind>)
        };
        match self.similarity {
            Similarity::Dot => (du.shallow_clone(), h / t),
            Similarity::Cosine => {
                let w_unit = &self.candidates * t;
                let du = (du - &self.anchors * along(du, &self.anchors)) / u_norm;
                let dw = (h - &w_unit * along(h, &w_unit)) / (w_norm * t);
                (du, dw)
            }
            Similarity::Reference => {
                let scale = along(h, &self.candidates); // [b, 1]
                let w = &self.candidates * (u_norm * w_norm * t);
                let dw = h / (u_norm * w_norm * t) - &scale * w / w_norm.square();
                let du = du - &scale * &self.anchors / u_norm.square();
                (du, dw)
            }
        }
    }
}
