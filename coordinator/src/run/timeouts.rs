//! The coordinator's timeouts, resolved: the keys of `timeouts` with the defaults that depend on where workers run.

use std::time::Duration;
use thanos_configs::TimeoutsConfig;

/// Without a limit of their own: on one machine, and across machines.
const LOCAL_HEARTBEAT: Duration = Duration::from_secs(3);
const REMOTE_HEARTBEAT: Duration = Duration::from_secs(20);
const RENDEZVOUS: Duration = Duration::from_secs(600);

/// Where the workers of a run are, as far as the defaults depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Placement {
    /// Started by this program on this machine.
    Local,
    /// Started by this program on other machines.
    Nodes,
    /// Started by others, possibly much later.
    External,
}

#[derive(Clone, Debug)]
pub(crate) struct Timeouts {
    /// Until the first generation of this coordinator; `None`: no limit.
    pub(crate) first_rendezvous: Option<Duration>,
    pub(crate) rendezvous: Duration,
    pub(crate) heartbeat: Duration,
    pub(crate) hang: Duration,
    pub(crate) progress: Duration,
    pub(crate) drain: Duration,
    pub(crate) reconnect: Duration,
    pub(crate) commit: Duration,
    pub(crate) storage: Duration,
    pub(crate) max_restarts: u32,
}

impl Timeouts {
    pub(crate) fn new(config: &TimeoutsConfig, placement: Placement) -> Self {
        let seconds = Duration::from_secs_f64;
        let heartbeat = if placement == Placement::Local { LOCAL_HEARTBEAT } else { REMOTE_HEARTBEAT };
        let rendezvous = config.rendezvous_seconds.map(seconds);
        let first_rendezvous = (placement != Placement::External).then_some(RENDEZVOUS);
        Self {
            first_rendezvous: rendezvous.or(first_rendezvous),
            rendezvous: rendezvous.unwrap_or(RENDEZVOUS),
            heartbeat: config.heartbeat_seconds.map_or(heartbeat, seconds),
            hang: seconds(config.hang_seconds),
            progress: seconds(config.progress_seconds),
            drain: seconds(config.drain_seconds),
            reconnect: seconds(config.reconnect_seconds),
            commit: seconds(config.commit_seconds),
            storage: seconds(config.storage_seconds),
            max_restarts: config.max_restarts,
        }
    }
}
