//! `timeouts`: how long the coordinator and the workers wait for each other, for the network and
//! for storage, and how often a failed worker is restarted. They are not part of the recipe: they
//! may change at every resume.

use serde::{Deserialize, Serialize};

/// The defaults suit a GPU cluster whose run directory is on NFS; null chooses by where the workers
/// run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct TimeoutsConfig {
    /// For all workers to start, open their packs and join a generation, after a loss as well;
    /// transfers of packs do not count. Null: 600, and no limit while `serve` waits for its first
    /// generation.
    pub rendezvous_seconds: Option<f64>,
    /// Without a heartbeat before a worker is terminated. Null: 3 on one machine, 20 across
    /// machines.
    pub heartbeat_seconds: Option<f64>,
    /// Without progress within a training step before a worker is terminated; at least five times
    /// the longest of the stage's recent steps.
    pub hang_seconds: f64,
    /// The same in a stage's first steps and outside of steps: set-up, loading of images,
    /// evaluation, checkpoints.
    pub progress_seconds: f64,
    /// For a rank inside a collective to leave a generation that has ended.
    pub drain_seconds: f64,
    /// For the workers of an earlier coordinator to reconnect to a restarted one.
    pub reconnect_seconds: f64,
    /// For the peers in one collective.
    pub collective_seconds: f64,
    /// For the coordinator to commit a checkpoint, or to answer at the end of a run.
    pub commit_seconds: f64,
    /// For one file of a checkpoint that is sent to or by the coordinator.
    pub transfer_seconds: f64,
    /// How long training pauses while the run directory cannot be written before the run ends with
    /// exit code 74.
    pub storage_seconds: f64,
    /// Restarts of one worker without a training step between them before the run is abandoned.
    /// Unit: restarts.
    pub max_restarts: u32,
}

impl Default for TimeoutsConfig {
    fn default() -> Self {
        Self {
            rendezvous_seconds: None,
            heartbeat_seconds: None,
            hang_seconds: 10.0,
            progress_seconds: 600.0,
            drain_seconds: 10.0,
            reconnect_seconds: 60.0,
            collective_seconds: 1800.0,
            commit_seconds: 1800.0,
            transfer_seconds: 1800.0,
            storage_seconds: 600.0,
            max_restarts: 5,
        }
    }
}

impl TimeoutsConfig {
    /// Every duration by its key, for the rules.
    pub(crate) fn seconds(&self) -> [(&'static str, Option<f64>); 10] {
        [
            ("timeouts.rendezvous_seconds", self.rendezvous_seconds),
            ("timeouts.heartbeat_seconds", self.heartbeat_seconds),
            ("timeouts.hang_seconds", Some(self.hang_seconds)),
            ("timeouts.progress_seconds", Some(self.progress_seconds)),
            ("timeouts.drain_seconds", Some(self.drain_seconds)),
            ("timeouts.reconnect_seconds", Some(self.reconnect_seconds)),
            ("timeouts.collective_seconds", Some(self.collective_seconds)),
            ("timeouts.commit_seconds", Some(self.commit_seconds)),
            ("timeouts.transfer_seconds", Some(self.transfer_seconds)),
            ("timeouts.storage_seconds", Some(self.storage_seconds)),
        ]
    }
}
