//! Who is let in: `connections` accepts them, with TLS or without, and knows who is behind each; `pages` serves what people
//! and Prometheus read, `recorder` is what it reads. A crate of its own, as workers show themselves, too.

mod connections;
mod pages;
mod recorder;

pub use connections::{Connection, Identity, MOST_STRANGERS, Peer, connections};
pub use pages::{Guard, show};
pub use recorder::metrics_page;
