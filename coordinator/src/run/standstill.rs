//! The rules of what stands still while its session lives: workers that say nothing, workers that hang, and one that all
//! others wait for. Who has entered the fewest collectives is who the others wait for; who waits least in them, too.

use super::{Effect, MOST_SILENCE, Member, Notice, Phase, Run, SessionId};
use crate::exit::EXIT_STOPPED;
use std::collections::VecDeque;
use std::time::Duration;
use thanos_proto::{Command, Heartbeat};

/// A rank that enters no collective for this long, and for five steps, hangs: heartbeats come four times a second.
const LEAST_STANDSTILL: Duration = Duration::from_millis(2500);
const STANDSTILL_STEPS: u32 = 5;
const HEARTBEATS_GO_ON: Duration = Duration::from_secs(1);
/// The same while it is not known yet how long a step takes.
const FIRST_STANDSTILL: Duration = Duration::from_secs(60);
/// To leave a generation that is over, from within a step and from elsewhere. About one time in ten Gloo does not wake
/// who waits to send when all of a group's connections are shut down at once: that rank is started anew.
const MOST_LEAVING_A_STEP: Duration = Duration::from_secs(3);
const MOST_LEAVING: Duration = Duration::from_secs(30);
/// Steps whose durations are remembered, and how many are enough to judge by.
const PACE_STEPS: usize = 32;
const KNOWN_PACE: usize = 5;
/// Time over which waiting is compared, and the difference in waiting that makes a straggler, twice in a row.
const WINDOW: Duration = Duration::from_secs(5);
const STRAGGLES: f64 = 0.4;
/// Phases of a step; in others (an evaluation, a save) a rank may be without a collective for long.
const STEP_PHASES: [&str; 5] = ["data", "forward", "backward", "reduce", "update"];

/// How far a rank has come in its generation, by its heartbeats.
#[derive(Clone, Debug, Default)]
pub(super) struct Progress {
    collectives: u64,
    step: u64,
    phase: String,
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

    pub(super) fn beat(&mut self, heartbeat: Heartbeat, now: Duration) {
        let Heartbeat { collectives, step, phase, waited_ms, .. } = heartbeat;
        if (collectives, step, &phase) != (self.collectives, self.step, &self.phase) {
            *self = Self { collectives, step, phase, since: now, ..*self };
        }
        self.waited_ms = waited_ms;
    }
}

/// How long steps take, and who was slow in the last window.
#[derive(Clone, Debug, Default)]
pub(super) struct Pace {
    last: Option<Duration>,
    steps: VecDeque<Duration>,
    window: Option<Duration>,
    slowest: Option<(SessionId, u32)>,
}

impl Pace {
    /// A generation begins: what lies between its first step and the last one is no step.
    pub(super) fn begin(&mut self) {
        *self = Self { steps: std::mem::take(&mut self.steps), ..Self::default() };
    }

    pub(super) fn step(&mut self, now: Duration) {
        if let Some(last) = self.last.replace(now) {
            self.steps.push_back(now.saturating_sub(last));
            if self.steps.len() > PACE_STEPS {
                self.steps.pop_front();
            }
        }
    }

    fn most_standstill(&self) -> Duration {
        if self.steps.len() < KNOWN_PACE {
            return FIRST_STANDSTILL;
        }
        let mut steps: Vec<Duration> = self.steps.iter().copied().collect();
        steps.sort_unstable();
        LEAST_STANDSTILL.max(steps[steps.len() / 2] * STANDSTILL_STEPS)
    }
}

impl Run {
    /// Whoever of the newest generation says nothing is stopped or cut off: a collective would wait for it.
    pub(super) fn lose_the_silent(&mut self, now: Duration) -> Vec<Effect> {
        let silent = |member: &Member| now.saturating_sub(member.heard) >= MOST_SILENCE;
        let session = self.ranks().find(|(_, member)| silent(member)).map(|(session, _)| session);
        let how = format!("said nothing for {MOST_SILENCE:?} and is ended");
        session.map_or_else(Vec::new, |session| self.end_one(session, &how, now))
    }

    /// Whoever keeps the others waiting and does nothing hangs, though its heartbeats go on.
    pub(super) fn lose_the_hung(&mut self, now: Duration) -> Vec<Effect> {
        if let Phase::Gathering { since } = self.phase {
            return self.lose_who_stays(now.saturating_sub(since), now);
        }
        let most = self.pace.most_standstill();
        let stands = |member: &Member| {
            let progress = &member.progress;
            // Who does not even heartbeat is silent, not hung.
            let beats = now.saturating_sub(member.heard) < HEARTBEATS_GO_ON;
            beats && now.saturating_sub(progress.since) >= most && STEP_PHASES.contains(&progress.phase.as_str())
        };
        let Some(fewest) = self.ranks().map(|(_, member)| member.progress.collectives).min() else { return Vec::new() };
        let behind: Vec<SessionId> = self
            .ranks()
            .filter(|(_, member)| member.progress.collectives == fewest)
            .map(|(session, _)| session)
            .collect();
        if !behind.iter().all(|session| stands(&self.members[session])) {
            return Vec::new();
        }
        if behind.len() < self.ranks().count() || behind.len() == 1 {
            let how = format!("hangs: its heartbeats go on, but the others wait for it since {most:.1?}; it is ended");
            return self.end_one(behind[0], &how, now);
        }
        self.regroup(format!("no rank makes progress since {most:.1?}: they cannot reach each other"), now)
    }

    /// Whoever was in a generation and does not leave it, though it is over since some time.
    fn lose_who_stays(&mut self, over: Duration, now: Duration) -> Vec<Effect> {
        let stays = |member: &Member| {
            let in_step = STEP_PHASES.contains(&member.progress.phase.as_str());
            let most = if in_step { MOST_LEAVING_A_STEP } else { MOST_LEAVING };
            let was_in_one = member.rank.is_some() || member.hello.generation > 0;
            was_in_one && !member.ready && !member.left && over >= most
        };
        let session = self.members.iter().find(|(_, member)| stays(member)).map(|(session, _)| *session);
        let how = "did not leave a generation that is over and is ended";
        session.map_or_else(Vec::new, |session| self.end_one(session, how, now))
    }

    /// Names, once, a rank that all others wait for, window after window.
    pub(super) fn name_a_straggler(&mut self, now: Duration) -> Option<Effect> {
        let began = *self.pace.window.get_or_insert(now);
        if self.phase != Phase::Training || now.saturating_sub(began) < WINDOW {
            return None;
        }
        self.pace.window = Some(now);
        let window_ms = now.saturating_sub(began).as_millis() as f64;
        let share = |member: &Member| {
            member.progress.waited_ms.saturating_sub(member.progress.waited_before_ms) as f64 / window_ms
        };
        let mut shares: Vec<(f64, SessionId)> =
            self.ranks().map(|(session, member)| (share(member), session)).collect();
        self.members.values_mut().for_each(|member| member.progress.waited_before_ms = member.progress.waited_ms);
        shares.sort_by(|one, other| one.0.total_cmp(&other.0));
        let [(least, slowest), (next, _), ..] = shares[..] else { return None };
        let times = match self.pace.slowest {
            Some((session, times)) if session == slowest => times + 1,
            _ => 1,
        };
        self.pace.slowest = (next - least >= STRAGGLES).then_some((slowest, times));
        if self.pace.slowest.is_none() || times != 2 {
            return None;
        }
        let member = &self.members[&slowest];
        let (worker, whereabouts) = (member.hello.worker_id.clone(), member.whereabouts.clone());
        Some(Effect::Tell(Notice::Straggler { worker, whereabouts, share: next - least }))
    }

    /// Those of the newest generation that have not said their last word.
    fn ranks(&self) -> impl Iterator<Item = (SessionId, &Member)> {
        self.members.iter().filter(|(_, m)| m.rank.is_some() && !m.left).map(|(session, member)| (*session, member))
    }

    /// Ends a worker's process, as far as it can be reached, and goes on without it.
    fn end_one(&mut self, session: SessionId, how: &str, now: Duration) -> Vec<Effect> {
        let worker = self.members[&session].hello.worker_id.clone();
        let refused = Command::Refused { reason: format!("this worker {how}"), exit_code: EXIT_STOPPED };
        let mut effects = vec![Effect::Send { session, command: refused }, Effect::Kill { worker }];
        effects.extend(self.lost(session, how, now));
        effects
    }
}

#[cfg(test)]
mod tests;
