//! The rules of workers whose sessions live but that do not get on: unresponsive (no heartbeats),
//! hung (heartbeats continue, no progress), stuck in a generation that has ended, and stragglers.
//! The rank that has entered the fewest collectives is the one that the others wait for. Limits
//! follow what was observed of the stage in training; all are measured in the time in which this
//! process could read heartbeats.

use super::{Effect, Member, Notice, Phase, Run, SessionId};
use crate::exit::EXIT_STOPPED;
use std::collections::VecDeque;
use std::time::Duration;
use thanos_proto::{Command, Heartbeat, RankPhase, StepDone};

/// A hung worker has not progressed for as many of the stage's longest recent steps.
const HANG_STEPS: u32 = 5;
/// A worker is hung, not unresponsive, if its last heartbeat is not older.
const MAX_HEARTBEAT_AGE: Duration = Duration::from_secs(1);
/// Steps whose durations are remembered, and steps of a stage and of a generation after which they
/// are trusted.
const RECENT_STEPS: usize = 32;
const MIN_STAGE_STEPS: usize = 5;
const MIN_GENERATION_STEPS: u32 = 2;
/// Time over which waiting is compared, and the difference in waiting that makes a straggler, twice
/// in a row.
const STRAGGLER_WINDOW: Duration = Duration::from_secs(5);
const STRAGGLER_SHARE: f64 = 0.4;

/// How far a rank has come in its generation, by its heartbeats.
#[derive(Clone, Debug, Default)]
pub(super) struct Progress {
    collectives: u64,
    step: u64,
    /// `None`: there was no heartbeat yet.
    phase: Option<RankPhase>,
    /// What it counts outside of collectives and steps.
    other: u64,
    in_collective: bool,
    /// Since when all of these are the same.
    since: Duration,
    waited_ms: u64,
    /// `waited_ms` when the window began.
    waited_before_ms: u64,
}

impl Progress {
    pub(super) fn new(now: Duration) -> Self {
        Self { since: now, ..Self::default() }
    }

    pub(super) fn restart(&mut self, now: Duration) {
        self.since = now;
    }

    pub(super) fn beat(&mut self, heartbeat: Heartbeat, now: Duration) {
        let Heartbeat { collectives, step, phase, waited_ms, progress, in_collective, .. } =
            heartbeat;
        let phase = Some(phase);
        let at = (collectives, step, &phase, progress, in_collective);
        if at != (self.collectives, self.step, &self.phase, self.other, self.in_collective) {
            *self = Self {
                collectives,
                step,
                phase,
                other: progress,
                in_collective,
                since: now,
                ..*self
            };
        }
        self.waited_ms = waited_ms;
    }

    /// Whether it computes or communicates; elsewhere it may wait for storage for long.
    fn is_in_step(&self) -> bool {
        use RankPhase::{Backward, Compute, Forward, Reduce, Update};
        matches!(self.phase, Some(Forward | Backward | Compute | Reduce | Update))
    }
}

/// How long the steps of the stage in training take, and which rank was slow in the last window.
#[derive(Clone, Debug, Default)]
pub(super) struct Pace {
    stage: String,
    steps: VecDeque<Duration>,
    in_generation: u32,
    window: Option<Duration>,
    slowest: Option<(SessionId, u32)>,
}

impl Pace {
    /// A generation begins: its first steps may be slow, as caches are cold and kernels are loaded.
    pub(super) fn begin(&mut self) {
        let (stage, steps) = (std::mem::take(&mut self.stage), std::mem::take(&mut self.steps));
        *self = Self { stage, steps, ..Self::default() };
    }

    /// The duration of a step is what rank 0 measured: evaluations and checkpoints between steps
    /// are not part of it.
    pub(super) fn step(&mut self, step: &StepDone) {
        if self.stage != step.stage {
            (self.stage, self.steps) = (step.stage.clone(), VecDeque::new());
        }
        self.in_generation += 1;
        self.steps.push_back(Duration::try_from_secs_f64(step.seconds()).unwrap_or_default());
        if self.steps.len() > RECENT_STEPS {
            self.steps.pop_front();
        }
    }

    /// How long a rank may be within a step without progress; `None`: not known yet.
    fn hang_limit(&self, minimum: Duration) -> Option<Duration> {
        let known =
            self.steps.len() >= MIN_STAGE_STEPS && self.in_generation >= MIN_GENERATION_STEPS;
        let longest = self.steps.iter().max()?;
        known.then(|| minimum.max(*longest * HANG_STEPS))
    }
}

impl Run {
    /// What is expected of the ranks of a generation is expected from now on.
    pub(super) fn begin_sent(&mut self, generation: u64) -> Vec<Effect> {
        if generation != self.generation {
            return Vec::new();
        }
        self.is_begin_sent = true;
        for member in self.members.values_mut().filter(|member| member.seat().is_some()) {
            member.last_message = self.awake;
            member.progress.restart(self.awake);
        }
        Vec::new()
    }

    /// Ranks of which something can be expected.
    fn begun_ranks(&self) -> impl Iterator<Item = (SessionId, &Member)> {
        self.ranks().filter(|_| self.is_begin_sent)
    }

    /// Ranks without heartbeats are stopped or cut off: a collective would wait for them. All are
    /// evicted together.
    pub(super) fn evict_unresponsive(&mut self, now: Duration) -> Vec<Effect> {
        let limit = self.start.timeouts.heartbeat;
        let is_unresponsive =
            |member: &Member| self.awake.saturating_sub(member.last_message) >= limit;
        let sessions: Vec<SessionId> = self
            .begun_ranks()
            .filter(|(_, member)| is_unresponsive(member))
            .map(|(session, _)| session)
            .collect();
        self.evict_all(
            &sessions,
            &format!("sent no heartbeat for {limit:?} and is terminated"),
            now,
        )
    }

    /// Ranks that make no progress, although they are alive.
    pub(super) fn evict_stuck(&mut self, now: Duration) -> Vec<Effect> {
        match self.phase {
            _ if self.storage.is_some() => Vec::new(),
            Phase::Training => self.evict_hung(now),
            Phase::Rendezvous { since } => self.evict_not_draining(since, now),
            Phase::Saving { .. } | Phase::Over => Vec::new(),
        }
    }

    /// How long a rank at this place may make no progress.
    fn progress_limit(&self, progress: &Progress) -> Duration {
        let timeouts = &self.start.timeouts;
        let within_step = self.pace.hang_limit(timeouts.hang).filter(|_| progress.is_in_step());
        within_step.unwrap_or_else(|| timeouts.progress.max(timeouts.hang))
    }

    fn evict_hung(&mut self, now: Duration) -> Vec<Effect> {
        let collectives = self.begun_ranks().map(|(_, member)| member.progress.collectives);
        let Some(fewest) = collectives.min() else { return Vec::new() };
        let last: Vec<SessionId> = self
            .ranks()
            .filter(|(_, member)| member.progress.collectives == fewest)
            .map(|(session, _)| session)
            .collect();
        let stands = |member: &Member| {
            let beats = self.awake.saturating_sub(member.last_message) < MAX_HEARTBEAT_AGE;
            beats
                && self.awake.saturating_sub(member.progress.since)
                    >= self.progress_limit(&member.progress)
        };
        if !last.iter().all(|session| stands(&self.members[session])) {
            return Vec::new();
        }
        let limit =
            last.iter().map(|session| self.progress_limit(&self.members[session].progress)).max();
        let limit = limit.unwrap_or_default();
        if last.len() < self.ranks().count() || last.len() == 1 {
            let how = format!(
                "is hung (heartbeats continue, no progress for {limit:.1?} while the others wait \
                for it) and is terminated"
            );
            return self.evict_all(&last, &how, now);
        }
        // A generation that a newcomer kept from its first step continues without it.
        let newcomers: Vec<SessionId> =
            last.iter().copied().filter(|session| self.members[session].is_newcomer()).collect();
        if !newcomers.is_empty() && newcomers.len() < last.len() {
            let how = format!(
                "joined a generation that made no progress for {limit:.1?} and is terminated"
            );
            return self.evict_all(&newcomers, &how, now);
        }
        self.regroup(
            format!("no rank made progress for {limit:.1?}: they cannot reach each other"),
            now,
        )
    }

    /// Ranks that do not leave a generation that has ended. One that computes, saves or evaluates
    /// leaves at its next collective; one inside a collective should have been woken at once by its
    /// closed connections. (Gloo does not wake about one in ten that wait to send when all of a
    /// group's connections are closed at once.) The last holder of a state is left alone for
    /// longer: it may still come.
    fn evict_not_draining(&mut self, since: Duration, now: Duration) -> Vec<Effect> {
        let is_held = self.members.values().any(|member| member.held().is_some());
        let stuck = |member: &Member| {
            let progress = &member.progress;
            let limit = match progress.in_collective && is_held {
                true => self.start.timeouts.drain,
                false => self.progress_limit(progress),
            };
            let is_expected = member.seat().is_none() || self.is_begin_sent;
            let may_come = member.may_hold_state() && is_expected;
            may_come && self.awake.saturating_sub(since.max(progress.since)) >= limit
        };
        let sessions: Vec<SessionId> = self
            .members
            .iter()
            .filter(|(_, member)| stuck(member))
            .map(|(session, _)| *session)
            .collect();
        self.evict_all(
            &sessions,
            "did not leave a generation that has ended and is terminated",
            now,
        )
    }

    /// Reports, once, a rank that all others wait for, window after window.
    pub(super) fn report_straggler(&mut self) -> Option<Effect> {
        let began = *self.pace.window.get_or_insert(self.awake);
        if self.phase != Phase::Training || self.awake.saturating_sub(began) < STRAGGLER_WINDOW {
            return None;
        }
        self.pace.window = Some(self.awake);
        let window_ms = self.awake.saturating_sub(began).as_millis() as f64;
        let share = |member: &Member| {
            member.progress.waited_ms.saturating_sub(member.progress.waited_before_ms) as f64
                / window_ms
        };
        let mut shares: Vec<(f64, SessionId)> =
            self.ranks().map(|(session, member)| (share(member), session)).collect();
        self.members
            .values_mut()
            .for_each(|member| member.progress.waited_before_ms = member.progress.waited_ms);
        shares.sort_by(|one, other| one.0.total_cmp(&other.0));
        let [(least, slowest), (next, _), ..] = shares[..] else { return None };
        let times = match self.pace.slowest {
            Some((session, times)) if session == slowest => times + 1,
            _ => 1,
        };
        self.pace.slowest = (next - least >= STRAGGLER_SHARE).then_some((slowest, times));
        if self.pace.slowest.is_none() || times != 2 {
            return None;
        }
        let member = &self.members[&slowest];
        let (worker, last_position) =
            (member.hello.worker_id.clone(), member.last_position.clone());
        Some(Effect::Notify(Notice::Straggler { worker, last_position, share: next - least }))
    }

    /// Ranks of the newest generation that have not finished or stopped.
    pub(super) fn ranks(&self) -> impl Iterator<Item = (SessionId, &Member)> {
        self.members
            .iter()
            .filter(|(_, m)| m.seat().is_some() && !m.has_left())
            .map(|(session, member)| (*session, member))
    }

    pub(super) fn evict_all(
        &mut self,
        sessions: &[SessionId],
        how: &str,
        now: Duration,
    ) -> Vec<Effect> {
        let evicted: Vec<(SessionId, String)> =
            sessions.iter().map(|session| (*session, how.to_owned())).collect();
        self.evict(&evicted, now)
    }

    /// Terminates workers, as far as they can be reached, and continues without them: one regroup
    /// for all.
    pub(super) fn evict(&mut self, evicted: &[(SessionId, String)], now: Duration) -> Vec<Effect> {
        let mut effects = Vec::new();
        for (session, how) in evicted {
            let Some(member) = self.members.get(session) else { continue };
            let worker = member.hello.worker_id.clone();
            let command =
                Command::Refused { reason: format!("this worker {how}"), exit_code: EXIT_STOPPED };
            effects.push(Effect::Send { session: *session, command });
            effects.push(Effect::Kill { worker });
        }
        effects.extend(self.lost_together(evicted, now));
        effects
    }
}

#[cfg(test)]
mod tests;
