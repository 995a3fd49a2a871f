//! The rules of a run that has lost a worker: which workers are missing or restarted, from which
//! rank's memory all continue, and when the run is abandoned. Beginning a generation is here, as
//! the first one only differs by having nothing to continue from.

use super::liveness::Progress;
use super::{
    Effect, ExitCause, MAX_IDLE_GENERATIONS, Member, MemberState, Notice, Phase, RESTART_BACKOFF,
    RecoveredFrom, Run, Seat, SessionId,
};
use crate::exit::{EXIT_CONFIG, EXIT_UNREACHABLE};
use std::time::Duration;
use thanos_proto::{Begin, Command, Held, Rejoin};

/// A newcomer that was lost before a step was made with it waits before it may cause another
/// regroup; the delay doubles.
const GROWTH_BACKOFF: Duration = Duration::from_secs(5);
const MAX_GROWTH_DOUBLINGS: u32 = 7;

impl Run {
    /// A worker has left its generation, and holds its state in memory; or it returns to a
    /// coordinator that was restarted, or that has begun another generation without it. Only what
    /// is of the newest generation counts.
    pub(super) fn rejoin(
        &mut self,
        session: SessionId,
        rejoin: Rejoin,
        now: Duration,
    ) -> Vec<Effect> {
        let Rejoin { generation, held, recent, failure } = rejoin;
        let Some(member) = self.members.get(&session) else { return Vec::new() };
        let (in_generation, newest) = (member.seat().is_some(), generation == self.generation);
        if member.is_ready() || in_generation && !newest || generation > self.generation {
            return self.protocol_violation(
                session,
                "it left a generation that it was not part of",
                now,
            );
        }
        if self.is_draining() {
            return self.finish();
        }
        let mut effects = Vec::new();
        let held = held.filter(|held| newest && held.stage == self.start.stage as u32);
        // Steps that were made, and that rank 0 or the coordinator ended before recording.
        for step in recent.into_iter().filter(|_| held.is_some()) {
            if self.comes_next(&step) {
                effects.extend(self.record(step));
            }
        }
        // A state without the lines of its steps cannot be used; the last checkpoint has them.
        let held = held.filter(|held| held.step <= self.recorded_of_stage());
        if let Some(member) = self.members.get_mut(&session) {
            member.becomes_ready(held);
        }
        let has_failed = failure.is_some();
        let (reason, notice) = self.group_failed(session, failure.filter(|_| in_generation));
        effects.extend(notice);
        match self.phase {
            Phase::Training if in_generation && self.growing && !has_failed => {
                effects.push(self.rendezvous(self.awake))
            }
            Phase::Training if in_generation => effects.extend(self.regroup(reason, now)),
            Phase::Training | Phase::Rendezvous { .. } | Phase::Saving { .. } | Phase::Over => {}
        }
        effects.extend(self.begin_if_ready(now));
        effects
    }

    /// Begins a generation when it may: survivors are always awaited, others until the rendezvous
    /// timeout. A run that is to end begins none.
    pub(super) fn begin_if_ready(&mut self, now: Duration) -> Vec<Effect> {
        match self.phase {
            Phase::Rendezvous { .. } if self.ending.is_some() => self.end_if_nothing_is_held(now),
            Phase::Rendezvous { .. } => self.begin_if_all_are_ready(now),
            Phase::Training => self.request_regroup(),
            Phase::Saving { .. } | Phase::Over => Vec::new(),
        }
    }

    fn begin_if_all_are_ready(&mut self, now: Duration) -> Vec<Effect> {
        if !self.awaits_survivors()
            && let Some(effects) = self.end_if_failure_repeats(now)
        {
            return effects;
        }
        let ready =
            self.members.iter().filter(|(_, member)| member.is_ready() && self.may_grow(member));
        let sessions: Vec<SessionId> = ready.map(|(session, _)| *session).collect();
        if self.awaits_survivors() || sessions.len() < self.start.min_workers || self.committing > 0
        {
            return Vec::new();
        }
        if sessions.len() < self.start.workers && self.awake < self.rendezvous_deadline {
            return Vec::new();
        }
        self.begin(sessions, now)
    }

    /// Workers are ready while a generation trains: its ranks are asked to leave it at a common
    /// step.
    fn request_regroup(&mut self) -> Vec<Effect> {
        let waits = self.members.values().any(|member| member.is_ready() && self.may_grow(member));
        if self.growing || !waits || self.ending.is_some() {
            return Vec::new();
        }
        self.growing = true;
        let regroup = Command::Regroup { generation: self.generation };
        self.ranks()
            .map(|(session, _)| Effect::Send { session, command: regroup.clone() })
            .collect()
    }

    /// A newcomer that was lost again and again does not interrupt the others each time.
    fn may_grow(&self, member: &Member) -> bool {
        self.growth
            .get(&member.hello.worker_id)
            .is_none_or(|growth| self.awake >= growth.not_before)
            || self.is_first_rendezvous()
            || self.start.min_workers == self.start.workers
    }

    /// Everyone that is waited for has joined: ranks are in the order of the workers' names, so
    /// that a restart numbers them alike.
    fn begin(&mut self, mut sessions: Vec<SessionId>, now: Duration) -> Vec<Effect> {
        self.generation += 1;
        self.failures.generation_begins();
        self.phase = Phase::Training;
        (self.growing, self.is_begin_sent) = (false, false);
        sessions.sort_by_key(|session| {
            let id = self.members[session].hello.worker_id.clone();
            (id.len(), id)
        });
        let workers =
            sessions.iter().map(|session| self.members[session].hello.worker_id.clone()).collect();
        let generation = self.generation;
        let collectives = self.collectives(&sessions);
        self.kind = sessions.first().map(|session| self.members[session].hello.device.kind);
        let devices = self.describe_devices(&sessions);
        let notice = Notice::Began { generation, workers, devices, collectives };
        let mut effects = vec![Effect::OpenStore { generation }, Effect::Notify(notice)];
        let source = self.most_advanced_rank(&sessions);
        if source.is_none() {
            effects.extend(self.cut_steps());
        }
        self.pace.begin();
        effects.extend(self.recovered(source.map(|(rank, _)| sessions[rank as usize]), now));
        for (rank, session) in sessions.iter().enumerate() {
            let Some(member) = self.members.get_mut(session) else { continue };
            let newcomer = source.is_some() && member.held().is_none();
            member.state = MemberState::Training(Seat { rank: rank as u32, newcomer });
            member.last_message = self.awake;
            member.progress = Progress::new(self.awake);
            let begin = Begin {
                generation,
                rank: rank as u32,
                world_size: sessions.len() as u32,
                stage: self.start.stage as u32,
                resume: self.start.resume.clone().filter(|_| source.is_none()),
                complete: self.start.complete.clone(),
                source: source.map(|(rank, _)| rank),
                collectives,
            };
            effects.push(Effect::Send { session: *session, command: Command::Begin(begin) });
        }
        effects
    }

    /// The rank whose state of the stage to continue with is the newest, and what it holds; `None`:
    /// no rank holds any.
    fn most_advanced_rank(&self, sessions: &[SessionId]) -> Option<(u32, Held)> {
        let stage = self.start.stage as u32;
        let held =
            |rank: usize| self.members[&sessions[rank]].held().filter(|held| held.stage == stage);
        let all = (0..sessions.len()).rev().filter_map(|rank| Some((rank as u32, held(rank)?)));
        // Of equals the lowest rank.
        all.max_by_key(|(_, held)| *held)
    }

    /// What to report of a generation that follows a loss.
    fn recovered(&self, source: Option<SessionId>, now: Duration) -> Option<Effect> {
        let (_, since) = self.first_loss.as_ref()?;
        let from = match (source, &self.start.resume) {
            (Some(session), _) => {
                RecoveredFrom::Memory(self.members[&session].hello.worker_id.clone())
            }
            (None, Some(_)) => RecoveredFrom::Checkpoint,
            (None, None) => RecoveredFrom::Start,
        };
        let held = source.and_then(|session| self.members[&session].held()).map(|held| held.step);
        let resumed = self.start.resume.as_ref().map(|checkpoint| checkpoint.step);
        Some(Effect::Notify(Notice::Recovered {
            generation: self.generation,
            stage: self.current_stage().into(),
            step: held.or(resumed).unwrap_or(0),
            seconds: now.saturating_sub(*since).as_secs_f64(),
            from,
        }))
    }

    /// A worker is lost: the others regroup, and it is restarted when its process has ended.
    pub(super) fn lost(&mut self, session: SessionId, how: &str, now: Duration) -> Vec<Effect> {
        self.lost_together(&[(session, how.to_owned())], now)
    }

    /// As [`Self::lost`], for several at once: the others regroup once.
    pub(super) fn lost_together(
        &mut self,
        lost: &[(SessionId, String)],
        now: Duration,
    ) -> Vec<Effect> {
        let mut effects = Vec::new();
        let (mut broken, mut exited) = (None, Vec::new());
        for (session, how) in lost {
            let Some((member, reason)) = self.remove(*session, how) else { continue };
            let worker = member.hello.worker_id.clone();
            effects.push(Effect::Notify(Notice::Lost {
                worker: worker.clone(),
                reason: reason.clone(),
            }));
            if member.seat().is_some() {
                self.failures.member_lost();
                broken.get_or_insert(reason);
            }
            if member.is_newcomer() || member.seat().is_none() && !self.is_first_rendezvous() {
                self.growth_failed(&worker);
            }
            if matches!(self.phase, Phase::Saving { session: saver, .. } if saver == *session) {
                effects.extend(self.saver_lost(now));
            }
            exited.extend(member.exited.map(|exited| (worker, exited)));
        }
        if self.is_draining() {
            if self.all_ranks_have_left() {
                effects.extend(self.finish());
            }
            return effects;
        }
        // A worker that was not in the generation is not missed in it.
        if let Some(reason) = broken {
            effects.extend(self.regroup(reason, now));
        }
        for (worker, (how, cause)) in exited {
            effects.extend(self.restart(&worker, (&how, cause), now));
        }
        effects.extend(self.begin_if_ready(now));
        effects
    }

    /// Takes a member out, with a description of what it was doing.
    fn remove(&mut self, session: SessionId, how: &str) -> Option<(Member, String)> {
        let next = self.next_step.as_ref().map_or_else(String::new, |(stage, step)| {
            format!(", when step {step} of stage {stage} was next")
        });
        let name = self.name(session);
        let member = self.members.remove(&session)?;
        let exited =
            member.exited.as_ref().map_or_else(String::new, |(how, _)| format!("; it {how}"));
        let reason = format!("{name} {how}, last seen in {}{next}{exited}", member.last_position);
        Some((member, reason))
    }

    fn growth_failed(&mut self, worker: &str) {
        let growth = self.growth.entry(worker.into()).or_default();
        growth.not_before =
            self.awake + GROWTH_BACKOFF * (1 << growth.failures.min(MAX_GROWTH_DOUBLINGS));
        growth.failures += 1;
        // The first loss may be anything; only a repeated one is held back.
        if growth.failures == 1 {
            growth.not_before = Duration::ZERO;
        }
    }

    /// A generation has lost a rank: the others are freed from its collectives, and all meet again.
    pub(super) fn regroup(&mut self, reason: String, now: Duration) -> Vec<Effect> {
        self.first_loss.get_or_insert((reason.clone(), now));
        if self.phase != Phase::Training {
            return Vec::new();
        }
        self.idle_generations += 1;
        if self.idle_generations > MAX_IDLE_GENERATIONS {
            return self
                .give_up(format!("{MAX_IDLE_GENERATIONS} generations in a row made no step"), now);
        }
        self.break_generation(&reason)
    }

    /// Ends the generation. A peer that is stopped or cut off closes no connection: those that wait
    /// for it are notified.
    pub(super) fn break_generation(&mut self, reason: &str) -> Vec<Effect> {
        let mut effects = vec![self.rendezvous(self.awake + self.start.rendezvous_timeout)];
        let generation = self.generation;
        let in_generation = self.ranks().filter(|(_, member)| !member.is_ready());
        effects.extend(in_generation.map(|(session, _)| {
            let command = Command::Abandon { generation, reason: reason.into() };
            Effect::Send { session, command }
        }));
        effects
    }

    fn rendezvous(&mut self, rendezvous_deadline: Duration) -> Effect {
        self.phase = Phase::Rendezvous { since: self.awake };
        self.rendezvous_deadline = rendezvous_deadline;
        Effect::OpenStore { generation: self.generation + 1 }
    }

    pub(super) fn restart(
        &mut self,
        worker: &str,
        (how, cause): (&str, ExitCause),
        now: Duration,
    ) -> Vec<Effect> {
        if self.ending.is_some() || self.phase == Phase::Over {
            return Vec::new();
        }
        let restarts = self.restarts.entry(worker.into()).or_insert(0);
        *restarts += 1;
        let restart = *restarts;
        let limit = self.start.timeouts.max_restarts;
        if restart > limit && self.start.min_workers < self.start.workers {
            // The run may continue without it.
            return vec![Effect::Notify(Notice::Abandoned {
                worker: worker.into(),
                how: how.into(),
            })];
        }
        if restart > limit {
            let why = match limit {
                0 => format!("{worker} {how} and is not restarted"),
                _ => format!("{worker} was restarted {limit} times without a step"),
            };
            return self.give_up(why, now);
        }
        let after =
            if restart == 1 { Duration::ZERO } else { RESTART_BACKOFF * (1 << (restart - 2)) };
        let notice = Notice::Restarting { worker: worker.into(), how: how.into(), cause, restart };
        vec![Effect::Restart { worker: worker.into(), after }, Effect::Notify(notice)]
    }

    /// Ends the run with what failed first: the rest are its consequences.
    fn give_up(&mut self, why: String, now: Duration) -> Vec<Effect> {
        let first = self
            .first_loss
            .as_ref()
            .map_or_else(String::new, |(first, _)| format!("; the first lost worker: {first}"));
        self.abandon(format!("giving up: {why}{first}"), EXIT_UNREACHABLE, now)
    }

    pub(super) fn exited(
        &mut self,
        worker: &str,
        (how, cause): (&str, ExitCause),
        now: Duration,
    ) -> Vec<Effect> {
        let mut effects = match cause.is_stop_request() {
            true => self.stop_requested(format!("{worker} {how}"), now),
            false => Vec::new(),
        };
        if self.phase != Phase::Over {
            effects.extend(self.process_ended(worker, (how, cause), now));
        }
        effects
    }

    fn process_ended(
        &mut self,
        worker: &str,
        (how, cause): (&str, ExitCause),
        now: Duration,
    ) -> Vec<Effect> {
        self.start.adopted.retain(|adopted| adopted != worker);
        let never_joined = self.is_first_rendezvous() && !self.joined.contains(worker);
        let is_required = self.start.min_workers == self.start.workers;
        let is_draining = self.is_draining();
        match self.members.values_mut().find(|member| member.hello.worker_id == worker) {
            // Its session ends as well, and reports more: where it was.
            Some(member) => {
                member.exited = Some((how.into(), cause));
                Vec::new()
            }
            // Nothing that worked before has broken: the user must read its message.
            None if never_joined && !cause.is_external() && is_required => {
                // A configuration that a worker cannot use (its device, perhaps) must reach the
                // user as what it is.
                let exit_code = match cause {
                    ExitCause::Exited(code) if code == i32::from(EXIT_CONFIG) => EXIT_CONFIG,
                    _ => EXIT_UNREACHABLE,
                };
                self.abandon(format!("{worker} {how} before it joined the run"), exit_code, now)
            }
            None if is_draining => Vec::new(),
            None => {
                self.first_loss.get_or_insert((format!("{worker} {how}"), now));
                let mut effects = self.restart(worker, (how, cause), now);
                effects.extend(self.begin_if_ready(now));
                effects
            }
        }
    }

    /// Workers of an earlier coordinator whose processes still run, but that did not reconnect in
    /// time.
    pub(super) fn restart_not_returned(&mut self) -> Vec<Effect> {
        if self.awake < self.start.timeouts.reconnect {
            return Vec::new();
        }
        let missing = std::mem::take(&mut self.start.adopted);
        let restart = |worker: String| {
            let how = "did not reconnect to the restarted coordinator".into();
            let notice = Notice::Restarting {
                worker: worker.clone(),
                how,
                cause: ExitCause::Vanished,
                restart: 1,
            };
            let restart = Effect::Restart { worker: worker.clone(), after: Duration::ZERO };
            let restart =
                [restart, Effect::Notify(notice)].into_iter().filter(|_| self.ending.is_none());
            std::iter::once(Effect::Kill { worker }).chain(restart)
        };
        missing.into_iter().flat_map(restart).collect()
    }
}

#[cfg(test)]
mod tests;
