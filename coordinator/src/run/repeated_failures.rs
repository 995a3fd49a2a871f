//! The rule of a failure that repeats. After an error that is not a lost connection the ranks form
//! another generation, which makes the step again; if that one fails at the same step in the same
//! way, the run ends with the error as its cause. A generation that lost a member does not count:
//! its errors are consequences of the loss.

use super::{Effect, Notice, Run, SessionId};
use crate::exit::EXIT_SOFTWARE;
use std::cmp::Reverse;
use std::time::Duration;
use thanos_proto::GroupFailure;

/// The errors because of which ranks left the newest generation and the one before it, without lost
/// connections.
#[derive(Clone, Debug, Default)]
pub(super) struct RepeatedFailures {
    newest: Vec<Reported>,
    previous: Vec<Reported>,
    member_lost: bool,
}

#[derive(Clone, Debug)]
struct Reported {
    worker: String,
    failure: GroupFailure,
}

impl RepeatedFailures {
    fn report(&mut self, worker: String, failure: GroupFailure) {
        self.newest.push(Reported { worker, failure });
    }

    /// The newest generation has lost a member.
    pub(super) fn member_lost(&mut self) {
        self.member_lost = true;
    }

    pub(super) fn generation_begins(&mut self) {
        self.previous = std::mem::take(&mut self.newest);
        if std::mem::take(&mut self.member_lost) {
            self.previous.clear();
        }
    }

    /// An error that both generations reported: of several, that of the rank with the most steps.
    fn repeated(&self) -> Option<&Reported> {
        let newest = self.newest.iter().filter(|_| !self.member_lost);
        let repeated =
            newest.filter(|reported| self.previous.iter().any(|before| before.is_same(reported)));
        repeated.min_by_key(|reported| Reverse(reported.failure.step))
    }
}

impl Reported {
    fn is_same(&self, other: &Self) -> bool {
        let key = |reported: &Self| {
            let GroupFailure { stage, step, message, .. } = reported.failure.clone();
            (stage, step, without_numbers(&message))
        };
        key(self) == key(other)
    }
}

/// A message with each number replaced by `#`: process ids, ports, times and free memory differ
/// between attempts.
fn without_numbers(message: &str) -> String {
    let mut text = String::new();
    for character in message.chars() {
        match character.is_ascii_digit() {
            true if text.ends_with('#') => {}
            true => text.push('#'),
            false => text.push(character),
        }
    }
    text
}

impl Run {
    /// A rank left the generation because of an error of its group. Returns the reason for the
    /// others to leave, too.
    pub(super) fn group_failed(
        &mut self,
        session: SessionId,
        failure: Option<GroupFailure>,
    ) -> (String, Option<Effect>) {
        let name = self.name(session);
        let Some(failure) = failure.filter(|failure| !failure.peer_lost) else {
            return (format!("{name} cannot reach its peers"), None);
        };
        let GroupFailure { stage, step, message, .. } = &failure;
        let reason = format!("{name} failed in step {step} of stage {stage}: {message}");
        let worker = self
            .members
            .get(&session)
            .map(|member| member.hello.worker_id.clone())
            .unwrap_or_default();
        let notice = Notice::GroupFailed { worker: worker.clone(), reason: reason.clone() };
        self.failures.report(worker, failure);
        (reason, Some(Effect::Notify(notice)))
    }

    /// Ends the run if two generations in a row failed in the same way; all ranks of the newest one
    /// have reported.
    pub(super) fn end_if_failure_repeats(&mut self, now: Duration) -> Option<Vec<Effect>> {
        let Reported { worker, failure: GroupFailure { stage, step, message, .. } } =
            self.failures.repeated()?;
        let cause = format!(
            "step {step} of stage {stage} failed twice in the same way: {message} ({worker})"
        );
        Some(self.abandon(cause, EXIT_SOFTWARE, now))
    }
}

#[cfg(test)]
mod tests;
