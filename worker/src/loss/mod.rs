//! The losses as pure functions over plain tensors. They know no rank, device, group or config
//! struct.
//!
//! [`contrast`] returns the value *and* the gradient of the contrastive loss in closed form, over
//! tiles, so that the B x B matrix of logits never exists; [`Similarity`] turns embeddings into its
//! rows and its gradients back.

mod contrast;
mod similarity;

pub use contrast::{Contrast, LossForm, Tile, contrast};
pub use similarity::{Prepared, Similarity};

use tch::Tensor;

/// Labels under which every unlabelled point (-1) is a class of its own: point i becomes -(first +
/// i) - 2.
///
/// `first` is the position of `labels[0]` in the global batch, so that all ranks choose the same
/// ids.
pub fn unlabelled_apart(labels: &Tensor, first: i64) -> Tensor {
    let n = labels.size()[0];
    let own = -(Tensor::arange(n, (labels.kind(), labels.device())) + first) - 2;
    own.where_self(&labels.eq(-1), labels)
}
