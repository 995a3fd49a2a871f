//! How many nodes and workers a launch has.

use crate::server::MAX_WORKERS;

/// How many nodes a run has at least and at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Nodes {
    pub(super) min: usize,
    pub(super) max: usize,
}

/// `4`, or `2:4`.
pub(super) fn nodes(text: &str) -> Result<Nodes, String> {
    let number = |text: &str| -> Result<usize, String> {
        let number = text.parse::<usize>().map_err(|error| error.to_string())?;
        let known = (1..=MAX_WORKERS).contains(&number);
        if known { Ok(number) } else { Err(format!("{number} is not in 1..={MAX_WORKERS}")) }
    };
    let (min, max) = text.split_once(':').unwrap_or((text, text));
    let nodes = Nodes { min: number(min)?, max: number(max)? };
    if nodes.min <= nodes.max {
        Ok(nodes)
    } else {
        Err(format!("MIN {min} is greater than MAX {max}"))
    }
}

/// How many workers, and where.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    pub(super) nodes: Nodes,
    /// On the node that has the most.
    pub(super) per_node: usize,
    /// Of the whole run.
    pub(super) min_workers: usize,
    pub(super) max_workers: usize,
}

impl Size {
    pub(super) fn uniform(nodes: Nodes, per_node: usize) -> Self {
        let (min_workers, max_workers) = (nodes.min * per_node, nodes.max * per_node);
        Self { nodes, per_node, min_workers, max_workers }
    }
}
