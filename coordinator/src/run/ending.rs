//! The rules of a run that ends: done, stopped on request, or abandoned. State in memory that is
//! newer than the last checkpoint is saved first: by the generation at a common step, or, where
//! there is none any more, by a worker that holds it.

use super::{Effect, Event, Member, Notice, Phase, Run, SessionId, Verdict};
use crate::exit::{EXIT_IO, EXIT_STOPPED, EXIT_UNREACHABLE};
use std::time::Duration;
use thanos_proto::{BenchReport, Command, Failed, Held, WorkerEvent};

/// What is left of the grace when a stop is given up: for the commands to reach the workers.
const LEAVE_MARGIN: Duration = Duration::from_secs(2);
/// How long a save before the end is tried again where no `--grace` says it, at most as long as
/// storage is waited for, and the delay before each attempt.
const SAVE_RETRY_LIMIT: Duration = Duration::from_secs(60);
const SAVE_RETRY_DELAY: Duration = Duration::from_secs(1);

/// Why a run is to end.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Ending {
    /// Requested at this time.
    Stop {
        reason: String,
        since: Duration,
    },
    Fail {
        message: String,
        exit_code: u8,
    },
}

impl Run {
    /// After the end, workers that have not been sent an answer yet get it; everything else is
    /// ignored.
    pub(super) fn reply_after_end(&mut self, event: Event) -> Vec<Effect> {
        let reason = || "the run is over".to_owned();
        match event {
            Event::Opened { session, .. } => {
                let command = Command::Refused { reason: reason(), exit_code: EXIT_UNREACHABLE };
                vec![Effect::Send { session, command }]
            }
            Event::Received { session, event: WorkerEvent::Failed(_) } => {
                vec![Effect::Send { session, command: Command::Leave { reason: reason() } }]
            }
            _ => Vec::new(),
        }
    }

    /// A rank has done all stages.
    pub(super) fn finished(&mut self, session: SessionId, now: Duration) -> Vec<Effect> {
        let is_bench = self.start.welcome.bench.is_some();
        if !is_bench && self.start.complete.len() < self.start.stages.len() {
            return self.protocol_violation(
                session,
                "Finished before all stages were committed",
                now,
            );
        }
        self.leaves(session)
    }

    /// A rank of a benchmark has measured what it was asked to; it commits nothing.
    pub(super) fn benched(
        &mut self,
        session: SessionId,
        report: BenchReport,
        now: Duration,
    ) -> Vec<Effect> {
        let rank = self.members.get(&session).and_then(Member::rank);
        if self.start.welcome.bench.is_none() || rank != Some(report.rank) {
            return self.protocol_violation(
                session,
                "a benchmark report that was not requested",
                now,
            );
        }
        vec![Effect::Notify(Notice::Benched(report))]
    }

    /// A rank has stopped with its generation, after the checkpoint of that step was committed.
    pub(super) fn stopped(
        &mut self,
        session: SessionId,
        at: (String, u64),
        now: Duration,
    ) -> Vec<Effect> {
        let saved = self
            .start
            .resume
            .as_ref()
            .map(|checkpoint| (checkpoint.stage.clone(), checkpoint.step));
        let committed = saved.unwrap_or_else(|| (self.current_stage().to_owned(), 0));
        let is_stopping = matches!(self.ending, Some(Ending::Stop { .. })) || self.again;
        if !is_stopping || at != committed {
            return self.protocol_violation(
                session,
                "Stopped without a request or without its checkpoint",
                now,
            );
        }
        self.stopped_at = Some(at);
        self.leaves(session)
    }

    fn leaves(&mut self, session: SessionId) -> Vec<Effect> {
        if let Some(member) = self.members.get_mut(&session) {
            member.leaves();
        }
        let reason = "this worker's part is done".into();
        let mut effects = vec![Effect::Send { session, command: Command::Leave { reason } }];
        // In a generation the others report the same; if it is broken, none of them is needed any
        // more.
        let broken = matches!(self.phase, Phase::Rendezvous { .. });
        if broken || self.all_ranks_have_left() {
            effects.extend(self.finish());
        }
        effects
    }

    /// Workers that wait while the generation trains are not needed any more.
    pub(super) fn all_ranks_have_left(&self) -> bool {
        self.members.values().all(|member| member.has_left() || member.seat().is_none())
    }

    /// Everything that there was to do is committed, or the stop is.
    pub(super) fn finish(&mut self) -> Vec<Effect> {
        let verdict = match self.stopped_at.take() {
            Some(at) => Verdict::Stopped { at: Some(at) },
            None => Verdict::Done,
        };
        self.end("the run is over", verdict)
    }

    /// A rank has finished or stopped: what the others wait for is committed.
    pub(super) fn is_draining(&self) -> bool {
        self.members.values().any(Member::has_left)
    }

    /// A worker reports that it cannot continue. A newcomer ends alone; a rank's failure is the
    /// run's, as its peers would fail in the same way.
    pub(super) fn failed(
        &mut self,
        session: SessionId,
        failed: &Failed,
        now: Duration,
    ) -> Vec<Effect> {
        let Failed { phase, message, exit_code } = failed;
        let message = format!("{} failed in {phase}: {message}", self.name(session));
        let leave = Effect::Send {
            session,
            command: Command::Leave { reason: "the failure is recorded".into() },
        };
        let Some(member) = self.members.get(&session) else { return Vec::new() };
        let trains = member.seat().is_some_and(|seat| !seat.newcomer);
        let is_required = self.is_first_rendezvous()
            && self.start.launched
            && self.start.min_workers == self.start.workers;
        let mut effects = vec![leave];
        if trains || is_required {
            self.members.remove(&session);
            effects.extend(self.abandon(message, *exit_code, now));
        } else {
            let how = format!("failed in {phase}: {}", failed.message);
            effects.extend(self.lost(session, &how, now));
        }
        effects
    }

    pub(super) fn stop_requested(&mut self, reason: String, now: Duration) -> Vec<Effect> {
        if self.ending.is_some() {
            return Vec::new();
        }
        self.ending = Some(Ending::Stop { reason: reason.clone(), since: now });
        // Workers are asked before anything is printed.
        let mut effects: Vec<Effect> = match self.phase {
            Phase::Training => self.ranks().map(|(session, _)| stop(session, &reason)).collect(),
            _ => Vec::new(),
        };
        effects.push(Effect::Notify(Notice::Stopping { reason }));
        effects.extend(self.end_if_nothing_is_held(now));
        effects
    }

    /// Ends the run with a failure; what workers hold and no checkpoint has is saved first.
    pub(super) fn abandon(&mut self, message: String, exit_code: u8, now: Duration) -> Vec<Effect> {
        // The first cause is the one that is reported; a stop that fails afterwards has failed.
        if !matches!(self.ending, Some(Ending::Fail { .. })) {
            self.ending = Some(Ending::Fail { message: message.clone(), exit_code });
        }
        let mut effects = Vec::new();
        if self.phase == Phase::Training {
            effects.extend(self.break_generation(&message));
        }
        effects.extend(self.end_if_nothing_is_held(now));
        effects
    }

    /// Between generations a run that is to end waits only for those that may hold state which no
    /// checkpoint has; then the one with the newest state saves it.
    pub(super) fn end_if_nothing_is_held(&mut self, now: Duration) -> Vec<Effect> {
        let between = matches!(self.phase, Phase::Rendezvous { .. });
        if self.ending.is_none() || !between || self.awaits_survivors() || self.committing > 0 {
            return Vec::new();
        }
        match self.holds_unsaved() {
            None => self.end_now(None, now),
            Some((session, held)) => {
                let since = self.awake;
                self.phase = Phase::Saving { session, asked: Some(since), failed: since, since };
                let worker = self.members[&session].hello.worker_id.clone();
                let notice = Notice::SavingBeforeEnd {
                    worker,
                    stage: self.current_stage().into(),
                    step: held.step,
                };
                vec![Effect::Send { session, command: Command::Save }, Effect::Notify(notice)]
            }
        }
    }

    /// The waiting worker whose state is the newest, if no checkpoint has it.
    fn holds_unsaved(&self) -> Option<(SessionId, Held)> {
        let saved = self.start.resume.as_ref().map_or(0, |checkpoint| checkpoint.step);
        let held =
            self.members.iter().filter_map(|(session, member)| Some((*session, member.held()?)));
        held.filter(|(_, held)| held.step > saved).max_by_key(|(_, held)| *held)
    }

    /// A save before the end has failed, or its worker does not answer: it is tried again for some
    /// time.
    pub(super) fn save_failed(&mut self, now: Duration, reason: &str) -> Vec<Effect> {
        let Phase::Saving { session, since, .. } = self.phase else { return Vec::new() };
        let limit = SAVE_RETRY_LIMIT.min(self.start.timeouts.storage);
        if self.awake.saturating_sub(since) >= limit && self.grace_left(now).is_none() {
            return self.end_now(Some(reason), now);
        }
        self.phase = Phase::Saving { session, asked: None, failed: self.awake, since };
        Vec::new()
    }

    pub(super) fn retry_save(&mut self, now: Duration) -> Vec<Effect> {
        let Phase::Saving { session, asked, failed, since } = self.phase else { return Vec::new() };
        match asked {
            Some(asked) if self.awake.saturating_sub(asked) >= self.start.timeouts.commit => {
                self.end_now(Some("no answer from the worker"), now)
            }
            Some(_) => Vec::new(),
            None if self.awake.saturating_sub(failed) >= SAVE_RETRY_DELAY => {
                self.phase = Phase::Saving { session, asked: Some(self.awake), failed, since };
                vec![Effect::Send { session, command: Command::Save }]
            }
            None => Vec::new(),
        }
    }

    /// The worker that was to save is lost: another one may hold as much, or less.
    pub(super) fn saver_lost(&mut self, now: Duration) -> Vec<Effect> {
        self.phase = Phase::Rendezvous { since: self.awake };
        self.end_if_nothing_is_held(now)
    }

    /// Ends the run with the reason for which it was to end; `unsaved` says why state in memory is
    /// lost.
    pub(super) fn end_now(&mut self, unsaved: Option<&str>, now: Duration) -> Vec<Effect> {
        let at = self
            .start
            .resume
            .as_ref()
            .map(|checkpoint| (checkpoint.stage.clone(), checkpoint.step));
        let lost = unsaved.map(|reason| format!("the newest state could not be saved: {reason}"));
        let verdict = match (self.ending.clone(), lost) {
            (Some(Ending::Fail { message, exit_code }), lost) => {
                let lost = lost.map_or_else(String::new, |lost| format!("; {lost}"));
                Verdict::Failed { message: format!("{message}{lost}"), exit_code }
            }
            (_, Some(message)) if self.grace_left(now).is_none() => {
                Verdict::Failed { message, exit_code: EXIT_IO }
            }
            _ => Verdict::Stopped { at },
        };
        let reason = match &verdict {
            Verdict::Failed { message, .. } => message.clone(),
            Verdict::Done | Verdict::Stopped { .. } => "the run is stopped".into(),
        };
        self.end(&reason, verdict)
    }

    /// The time for a stop is over: the last checkpoint is what remains.
    pub(super) fn end_after_grace(&mut self, now: Duration) -> Option<Vec<Effect>> {
        let left = self.grace_left(now)?;
        if left > LEAVE_MARGIN {
            return None;
        }
        let effects = self.end_now(None, now);
        Some([vec![Effect::Notify(Notice::GraceOver)], effects].concat())
    }

    /// What is left of a stop's grace, where one was given.
    fn grace_left(&self, now: Duration) -> Option<Duration> {
        let Some(Ending::Stop { since, .. }) = &self.ending else { return None };
        self.start.grace.map(|grace| (*since + grace).saturating_sub(now))
    }

    fn end(&mut self, reason: &str, verdict: Verdict) -> Vec<Effect> {
        let mut effects = Vec::new();
        for (session, member) in self.members.iter_mut().filter(|(_, member)| !member.has_left()) {
            member.leaves();
            let reason = reason.into();
            let command = match verdict {
                // A worker that waits when a run is stopped has been stopped, too.
                Verdict::Stopped { .. } => Command::Refused { reason, exit_code: EXIT_STOPPED },
                Verdict::Done | Verdict::Failed { .. } => Command::Leave { reason },
            };
            effects.push(Effect::Send { session: *session, command });
        }
        self.phase = Phase::Over;
        effects.push(Effect::End(verdict));
        effects
    }
}

fn stop(session: SessionId, reason: &str) -> Effect {
    Effect::Send { session, command: Command::Stop { reason: reason.into() } }
}

#[cfg(test)]
mod tests;
