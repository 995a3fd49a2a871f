//! `render`: job scripts and manifests for one experiment. They are the files of deploy/, with the
//! numbers of this run in their places: workers, how long a stop may take, what that means for the
//! sender of the signal, and exit codes.

mod data_volume;
mod kubernetes;
mod slurm;

use std::time::Duration;

pub(crate) use data_volume::{DataMount, DataVolume};
pub(crate) use kubernetes::{
    Api, Memory, Resources, RunName, Setting, Site, Toleration, kubernetes, node_label,
};
pub(crate) use slurm::{NodeShare, slurm};

/// Between the end of a stop and SIGKILL from the scheduler: the last messages, the last files.
const EXIT_MARGIN: Duration = Duration::from_secs(30);

/// The numbers of a run that are not in its plan.
#[derive(Clone, Debug)]
pub(crate) struct Numbers {
    /// Machines of Slurm; pods of workers of Kubernetes.
    pub(crate) nodes: usize,
    /// GPUs per machine; 0: it trains on CPUs.
    pub(crate) gpus: usize,
    pub(crate) grace: Duration,
}

impl Numbers {
    /// From the signal to the end by force.
    fn lead(&self) -> u64 {
        (self.grace + EXIT_MARGIN).as_secs()
    }
}
