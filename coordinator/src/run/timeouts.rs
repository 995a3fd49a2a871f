//! The coordinator's timeouts, resolved: the keys of `timeouts` with the defaults that depend on
//! where workers run.

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
    /// Started separately, possibly much later.
    External,
}

#[derive(Clone, Debug, PartialEq)]
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
        let heartbeat =
            if placement == Placement::Local { LOCAL_HEARTBEAT } else { REMOTE_HEARTBEAT };
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// Those that workers obey.
    const OF_WORKERS: [&str; 2] = ["collective_seconds", "transfer_seconds"];

    #[test]
    fn every_key_is_read() {
        let timeouts = |value: Value| -> Timeouts {
            Timeouts::new(&serde_json::from_value(value).expect("timeouts"), Placement::External)
        };
        let default = serde_json::to_value(TimeoutsConfig::default()).expect("plain data");
        for key in default.as_object().expect("a map").keys() {
            let mut changed = default.clone();
            changed[key] = json!(7);
            let differs = timeouts(changed) != timeouts(default.clone());
            assert_eq!(differs, !OF_WORKERS.contains(&key.as_str()), "{key}");
        }
    }
}
