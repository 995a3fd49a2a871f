//! The branches of a pre-norm transformer block and batch norm over all ranks as single operations
//! with explicit gradients, and dropout whose masks are functions of a key.
//!
//! [`Attention`] and [`FeedForward`] run C++ kernels on the CPU, CUDA kernels on a GPU in bfloat16,
//! and plain tensor operations elsewhere and for sizes that the kernels do not take; `reference.rs`
//! has those, and the tests compare the two. [`BatchNorm`] has kernels on the CPU alone. [`Draws`]
//! is what all random numbers of a forward pass are functions of. Three layers:
//! `kernels/operations.cpp` turns C++ exceptions into text, `raw.rs` declares it, the rest is safe.
//! Beside `thanos-c10d` this is the only crate of the workspace with `unsafe` code. It knows
//! tensors, nothing of ranks or training.
//!
//! Shapes: n images, t tokens, s queries (the first tokens), d width, h heads, m hidden features.

mod batch_norm;
mod calls;
mod draws;
pub mod gpu;
mod masks;
mod operations;
mod products;
mod raw;
mod reference;
#[cfg(test)]
mod tests;

pub use batch_norm::{BatchNorm, Epilogue};
pub use calls::{Error, drop_gradients};
pub use draws::{Draws, Kept, rows_of};
pub use masks::keep_mask;
pub use operations::{Attention, AttentionRates, FeedForward, FeedForwardRates, Linear, Norm};
pub use products::Products;
