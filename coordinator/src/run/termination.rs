//! The rules of workers that received SIGTERM. If most of them have, the machines of the run are
//! being taken away, as by a preemption: the run stops at a common step while there is time. If few
//! have, their nodes are drained: they train on until they are killed, which is a loss like any
//! other. One that is not killed in time is terminated, as the signal asked for.

use super::{Effect, Notice, Phase, Run, SessionId};
use std::time::Duration;

/// How long a worker may train on: the others of a preempted job have their signal by then, and the
/// worker leaves before the 30 s are over after which Slurm (`KillWait`) and Kubernetes
/// (`terminationGracePeriodSeconds`) kill it by default.
pub(super) const TERMINATION_LIMIT: Duration = Duration::from_secs(20);

impl Run {
    /// A worker received SIGTERM.
    pub(super) fn termination_notice(&mut self, session: SessionId, now: Duration) -> Vec<Effect> {
        let (awake, is_ending) = (self.awake, self.ending.is_some());
        let Some(member) = self.members.get_mut(&session).filter(|_| !is_ending) else {
            return Vec::new();
        };
        let is_first = member.terminating.is_none();
        member.terminating.get_or_insert(awake);
        let worker = member.hello.worker_id.clone();
        let reported = self.terminating();
        // Workers that are being replaced count as well: the rest of a run is not most of it.
        let all = self.members.len().max(self.start.min_workers);
        if 2 * reported.len() > all {
            return self.stop_requested(reason(&reported, all), now);
        }
        is_first
            .then_some(Effect::Notify(Notice::Terminating { worker, limit: TERMINATION_LIMIT }))
            .into_iter()
            .collect()
    }

    /// Members that received SIGTERM, by name.
    fn terminating(&self) -> Vec<String> {
        let terminating = self.members.values().filter(|member| member.terminating.is_some());
        let mut names: Vec<String> =
            terminating.map(|member| member.hello.worker_id.clone()).collect();
        names.sort_by_key(|name| (name.len(), name.clone()));
        names
    }

    /// Ranks that have trained on for too long. Between generations they are needed for what they
    /// hold; if all ranks are to leave, as the others were lost meanwhile, the run stops and saves.
    pub(super) fn evict_terminating(&mut self, now: Duration) -> Vec<Effect> {
        if self.phase != Phase::Training || self.ending.is_some() || self.storage.is_some() {
            return Vec::new();
        }
        let is_due = |since: Duration| self.awake.saturating_sub(since) >= TERMINATION_LIMIT;
        let due = self.ranks().filter(|(_, member)| member.terminating.is_some_and(is_due));
        let sessions: Vec<SessionId> = due.map(|(session, _)| session).collect();
        let ranks = self.ranks().count();
        if !sessions.is_empty() && self.ranks().all(|(_, member)| member.terminating.is_some()) {
            return self.stop_requested(reason(&self.terminating(), ranks), now);
        }
        self.evict_all(
            &sessions,
            &format!("received SIGTERM {TERMINATION_LIMIT:?} ago and is terminated"),
            now,
        )
    }
}

/// Why the run stops: these of all its workers are to leave.
fn reason(reported: &[String], all: usize) -> String {
    match reported {
        [one] => format!("SIGTERM received by {one}"),
        several => format!(
            "SIGTERM received by {} and {} more of {all} workers",
            several[0],
            several.len() - 1
        ),
    }
}

#[cfg(test)]
mod tests;
