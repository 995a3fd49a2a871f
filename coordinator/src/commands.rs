//! Commands other than `launch` and `data`: what they do, without how they are typed (`cli.rs`).

pub(crate) mod bench;
pub(crate) mod chaos;
pub(crate) mod render;
pub(crate) mod series;
pub(crate) mod status;
pub(crate) mod verify_run;
pub(crate) mod view;
pub(crate) mod with_parent;
pub(crate) mod workers;
