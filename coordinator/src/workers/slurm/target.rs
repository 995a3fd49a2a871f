//! `--launcher srun`: each worker is a step of the job, and its `srun` stands for it here.

use super::{Node, srun};
use crate::run::Placement;
use crate::workers::LaunchTarget;
use std::path::Path;
use std::process::Command;

/// Nodes of the allocation, and further arguments of `srun`.
#[derive(Clone, Debug)]
pub(crate) struct SlurmNodes {
    pub(crate) nodes: Vec<Node>,
    pub(crate) srun_arguments: Vec<String>,
}

impl LaunchTarget for SlurmNodes {
    fn placement(&self) -> Placement {
        Placement::Nodes
    }

    fn worker_ids(&self) -> Vec<String> {
        let of = |node: &Node| -> Vec<String> {
            (0..node.workers).map(|index| format!("{}-{index}", node.name)).collect()
        };
        self.nodes.iter().flat_map(of).collect()
    }

    fn command(&self, worker: &str, program: &Path) -> Command {
        let node = worker.rsplit_once('-').map_or(worker, |(node, _)| node);
        let gpus = self.nodes.iter().find(|other| other.name == node).map_or(0, |node| node.gpus);
        let mut command = srun(node, gpus, &self.srun_arguments);
        command.arg(program);
        command
    }

    fn process_name(&self, _program: &Path) -> String {
        "srun".into()
    }
}
