//! What matrix products and convolutions multiply: tensors as they are, or rounded to bfloat16.
//! Results, and everything else, stay in the kind of the tensors.

use tch::{Kind, Tensor};

/// The factors of matrix products. Their sums are float32 or wider in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Products {
    /// In the tensors' own kind.
    Full,
    /// Factors and results rounded to bfloat16 (8 bits of mantissa), as PyTorch's autocast does.
    Bfloat16,
}

impl Products {
    /// `x`, or its rounding to bfloat16; a gradient goes back in the kind of `x`.
    pub fn factor(self, x: &Tensor) -> Tensor {
        match self {
            Products::Full => x.shallow_clone(),
            Products::Bfloat16 => x.to_kind(Kind::BFloat16),
        }
    }

    /// x [.., input] times the transpose of `weight` [output, input], plus `bias` [output]; in the
    /// kind of `x`.
    pub fn linear(self, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Tensor {
        match self {
            Products::Full => x.linear(weight, bias),
            Products::Bfloat16 => {
                let product =
                    self.factor(x).linear::<&Tensor>(&self.factor(weight), None).to_kind(x.kind());
                match bias {
                    Some(bias) => product + bias,
                    None => product,
                }
            }
        }
    }

    /// left [.., m, k] times right [.., k, n], in the kind of `left`.
    pub fn matmul(self, left: &Tensor, right: &Tensor) -> Tensor {
        self.factor(left).matmul(&self.factor(right)).to_kind(left.kind())
    }
}
