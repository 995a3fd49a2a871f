//! A step whose collectives fail on every rank, although no connection is lost: once, or each time
//! that it is made.

use super::{Activity, STAGES, StagePoint, World};
use thanos_configs::SplitMix64;
use thanos_proto::GroupFailure;

/// Worlds among which one has a fault of each kind.
const WORLDS: u64 = 16;
/// A part of the cause with which a fault that repeats ends the run.
pub(in crate::run::simulation) const REPEATED: &str =
    "failed twice in the same way: all_reduce: invalid usage";

#[derive(Clone, Copy, Debug)]
pub(super) struct Fault {
    at: StagePoint,
    repeats: bool,
    /// How often it has occurred.
    occurred: u64,
}

impl Fault {
    /// Drawn by itself, so that the rest of a seed's world does not depend on it.
    pub(super) fn of(seed: u64) -> Option<Self> {
        let mut chance = SplitMix64::new(!seed);
        let stage = chance.below(STAGES.len() as u64) as usize;
        let at = StagePoint { stage, made: chance.below(STAGES[stage].1) };
        match chance.below(WORLDS) {
            kind @ 0..2 => Some(Self { at, repeats: kind == 0, occurred: 0 }),
            _ => None,
        }
    }
}

impl World {
    pub(super) fn has_repeating_fault(&self) -> bool {
        self.fault.is_some_and(|fault| fault.repeats)
    }

    pub(super) fn is_faulty(&self, at: StagePoint) -> bool {
        self.fault.is_some_and(|fault| fault.at == at && (fault.repeats || fault.occurred == 0))
    }

    /// All ranks leave the group: the first one because of the error, others because of it or
    /// because that one left.
    pub(super) fn fail_step(&mut self, ranks: &[usize], at: StagePoint) {
        let limit = 2 * (1 + self.losses);
        if let Some(fault) = &mut self.fault {
            fault.occurred += 1;
            assert!(
                fault.occurred <= limit,
                "{} generations failed in the same way: {fault:?}",
                fault.occurred
            );
        }
        for (rank, index) in ranks.iter().enumerate() {
            let peer_lost = rank > 0 && self.is_once_in(2);
            let message = if peer_lost {
                "all_reduce: connection closed"
            } else {
                "all_reduce: invalid usage"
            };
            let (stage, message) = (STAGES[at.stage].0.into(), message.into());
            let worker = &mut self.workers[*index];
            worker.failure = Some(GroupFailure { stage, step: at.made, message, peer_lost });
            worker.activity = Activity::Leaving { until: self.now };
        }
        self.group = None;
    }
}
