//! The rules of a run that has lost a worker: who is missing, who is started again, from whose memory all go on, and
//! when it is given up. Beginning a generation is here, as the first one only differs by having nothing to go on from.

use super::{
    Effect, ExitCause, FIRST_PAUSE, MOST_COMING_BACK, MOST_IDLE_GENERATIONS, MOST_RESTARTS, Member, Notice, Phase,
    Progress, RecoveredFrom, Run, SessionId, stop,
};
use crate::exit::EXIT_UNREACHABLE;
use std::time::Duration;
use thanos_proto::{Begin, Command, Held, Rejoin};

impl Run {
    /// A worker has left its generation, and holds its state in memory; or it comes back to a coordinator that has
    /// started again, or has begun another generation without it. Only what is of the newest generation counts.
    pub(super) fn rejoin(&mut self, session: SessionId, rejoin: Rejoin, now: Duration) -> Vec<Effect> {
        let Rejoin { generation, held, recent } = rejoin;
        let Some(Member { rank, ready, .. }) = self.members.get(&session) else { return Vec::new() };
        let (in_generation, newest) = (rank.is_some(), generation == self.generation);
        if *ready || in_generation && !newest || generation > self.generation {
            return self.broke_the_protocol(session, "it left a generation that it was not in");
        }
        if self.is_through() {
            return self.end_well();
        }
        let mut effects = Vec::new();
        let held = held.filter(|held| newest && held.stage == self.start.stage as u32);
        // Steps that were made, and whose rank 0, or whose coordinator, did not live to tell or hear them.
        for step in recent.into_iter().filter(|_| held.is_some()) {
            if self.comes_next(&step) {
                effects.extend(self.record(step));
            }
        }
        // Without the lines of its steps a state is nobody's; the last checkpoint has them.
        let held = held.filter(|held| held.step <= self.recorded_of_stage());
        if let Some(member) = self.members.get_mut(&session) {
            (member.ready, member.held) = (true, held);
        }
        match self.phase {
            Phase::Training if !in_generation => effects.extend(self.make_room()),
            Phase::Training if self.growing => effects.push(self.gather(now, now)),
            Phase::Training => {
                let reason = format!("{} cannot reach its peers any more", self.name(session));
                effects.extend(self.regroup(reason, now));
            }
            Phase::Gathering { .. } | Phase::Over => {}
        }
        effects.extend(self.begin_if_all_are_ready(now));
        effects
    }

    /// Survivors are always awaited; others as long as there is patience.
    pub(super) fn begin_if_all_are_ready(&mut self, now: Duration) -> Vec<Effect> {
        let ready = self.members.values().filter(|member| member.ready).count();
        let awaited = self.members.values().any(|member| member.rank.is_some() && !member.ready);
        let gathering = matches!(self.phase, Phase::Gathering { .. });
        if !gathering || awaited || ready < self.start.least || self.committing > 0 {
            return Vec::new();
        }
        if ready < self.start.workers && now < self.patient_until {
            return Vec::new();
        }
        self.begin(now)
    }

    /// All are here that are waited for: ranks in the order of the workers' names, so that a restart numbers them alike.
    pub(super) fn begin(&mut self, now: Duration) -> Vec<Effect> {
        self.generation += 1;
        self.phase = Phase::Training;
        self.growing = false;
        let ready = self.members.iter().filter(|(_, member)| member.ready);
        let mut sessions: Vec<SessionId> = ready.map(|(session, _)| *session).collect();
        sessions.sort_by_key(|session| {
            let id = self.members[session].hello.worker_id.clone();
            (id.len(), id)
        });
        let workers = sessions.iter().map(|session| self.members[session].hello.worker_id.clone()).collect();
        let generation = self.generation;
        let mut effects = vec![Effect::OpenStore { generation }, Effect::Tell(Notice::Began { generation, workers })];
        let source = self.furthest(&sessions);
        if source.is_none() {
            effects.extend(self.cut_steps());
        }
        self.pace.begin();
        effects.extend(self.recovered(source.map(|(rank, _)| sessions[rank as usize]), now));
        for (rank, session) in sessions.iter().enumerate() {
            let Some(member) = self.members.get_mut(session) else { continue };
            (member.rank, member.ready, member.held, member.heard) = (Some(rank as u32), false, None, now);
            member.progress = Progress::new(now);
            let begin = Begin {
                generation,
                rank: rank as u32,
                world_size: sessions.len() as u32,
                stage: self.start.stage as u32,
                resume: self.start.resume.clone().filter(|_| source.is_none()),
                complete: self.start.complete.clone(),
                source: source.map(|(rank, _)| rank),
            };
            effects.push(Effect::Send { session: *session, command: Command::Begin(begin) });
        }
        if let Some((reason, _)) = self.stopping.clone() {
            effects.extend(sessions.iter().map(|session| stop(*session, &reason)));
        }
        effects
    }

    /// The rank that is furthest in the stage to go on with, and what it holds; `None`: nobody holds anything of it.
    pub(super) fn furthest(&self, sessions: &[SessionId]) -> Option<(u32, Held)> {
        let stage = self.start.stage as u32;
        let held = |rank: usize| self.members[&sessions[rank]].held.filter(|held| held.stage == stage);
        let all = (0..sessions.len()).rev().filter_map(|rank| Some((rank as u32, held(rank)?)));
        // Of equals the lowest rank.
        all.max_by_key(|(_, held)| *held)
    }

    /// What to tell of a generation that follows a loss.
    pub(super) fn recovered(&self, source: Option<SessionId>, now: Duration) -> Option<Effect> {
        let (_, since) = self.first_loss.as_ref()?;
        let from = match (source, &self.start.resume) {
            (Some(session), _) => RecoveredFrom::Memory(self.members[&session].hello.worker_id.clone()),
            (None, Some(_)) => RecoveredFrom::Checkpoint,
            (None, None) => RecoveredFrom::Start,
        };
        let held = source.and_then(|session| self.members[&session].held).map(|held| held.step);
        let resumed = self.start.resume.as_ref().map(|checkpoint| checkpoint.step);
        let stage = self.next_step.as_ref().map_or_else(String::new, |(stage, _)| stage.clone());
        Some(Effect::Tell(Notice::Recovered {
            generation: self.generation,
            stage,
            step: held.or(resumed).unwrap_or(0),
            seconds: now.saturating_sub(*since).as_secs_f64(),
            from,
        }))
    }

    /// A worker is gone, or as good as gone: the others regroup, and it is started again when its process has ended.
    pub(super) fn lost(&mut self, session: SessionId, how: &str, now: Duration) -> Vec<Effect> {
        let next = self
            .next_step
            .as_ref()
            .map_or_else(String::new, |(stage, step)| format!(", when step {step} of stage {stage} was next"));
        let name = self.name(session);
        let Some(member) = self.members.remove(&session) else { return Vec::new() };
        let exited = member.exited.as_ref().map_or_else(String::new, |(how, _)| format!("; it {how}"));
        let reason = format!("{name} {how}, last seen in {}{next}{exited}", member.whereabouts);
        let worker = member.hello.worker_id;
        let mut effects = vec![Effect::Tell(Notice::Lost { worker: worker.clone(), reason: reason.clone() })];
        if self.is_through() {
            if self.all_ranks_have_left() {
                effects.extend(self.end_well());
            }
            return effects;
        }
        // One that was not in the generation yet is missed by nobody in it.
        if member.rank.is_some() || self.phase != Phase::Training {
            effects.extend(self.regroup(reason, now));
        }
        if let Some((how, cause)) = member.exited.filter(|_| self.phase != Phase::Over) {
            effects.extend(self.restart(&worker, (&how, cause)));
        }
        effects
    }

    /// A generation has lost a worker: whoever waits in its rendezvous is freed, and all gather again.
    pub(super) fn regroup(&mut self, reason: String, now: Duration) -> Vec<Effect> {
        self.first_loss.get_or_insert((reason.clone(), now));
        if self.phase == Phase::Training {
            self.idle_generations += 1;
            if self.idle_generations > MOST_IDLE_GENERATIONS {
                return self.give_up(format!("{MOST_IDLE_GENERATIONS} generations in a row made no step"));
            }
        }
        let mut effects = vec![self.gather(now, now + self.start.patience)];
        // A peer that is stopped or cut off closes no connection: who waits for it is told.
        let generation = self.generation;
        let waiting = self.members.iter().filter(|(_, member)| member.rank.is_some() && !member.ready && !member.left);
        effects.extend(waiting.map(|(session, _)| {
            let command = Command::Abandon { generation, reason: reason.clone() };
            Effect::Send { session: *session, command }
        }));
        effects
    }

    fn gather(&mut self, now: Duration, patient_until: Duration) -> Effect {
        self.phase = Phase::Gathering { since: now };
        self.patient_until = patient_until;
        Effect::OpenStore { generation: self.generation + 1 }
    }

    pub(super) fn restart(&mut self, worker: &str, (how, cause): (&str, ExitCause)) -> Vec<Effect> {
        let restarts = self.restarts.entry(worker.into()).or_insert(0);
        *restarts += 1;
        let restart = *restarts;
        if restart > MOST_RESTARTS && self.start.least < self.start.workers {
            // The run may go on without it.
            return vec![Effect::Tell(Notice::Abandoned { worker: worker.into(), how: how.into() })];
        }
        if restart > MOST_RESTARTS {
            return self.give_up(format!("{worker} was started {MOST_RESTARTS} times, and no step was made"));
        }
        let after = if restart == 1 { Duration::ZERO } else { FIRST_PAUSE * (1 << (restart - 2)) };
        let told = Notice::Restarting { worker: worker.into(), how: how.into(), cause, restart };
        vec![Effect::Tell(told), Effect::Restart { worker: worker.into(), after }]
    }

    /// Ends the run with what went wrong first: the others are its consequences.
    pub(super) fn give_up(&mut self, why: String) -> Vec<Effect> {
        let first =
            self.first_loss.as_ref().map_or_else(String::new, |(first, _)| format!("; the first loss: {first}"));
        self.fail(format!("given up: {why}{first}"), EXIT_UNREACHABLE)
    }

    pub(super) fn exited(&mut self, worker: &str, (how, cause): (&str, ExitCause), now: Duration) -> Vec<Effect> {
        let mut effects = match cause.is_stop_request() {
            true => self.stop_asked(format!("{worker} {how}"), now),
            false => Vec::new(),
        };
        if self.phase != Phase::Over {
            effects.extend(self.process_ended(worker, (how, cause), now));
        }
        effects
    }

    fn process_ended(&mut self, worker: &str, (how, cause): (&str, ExitCause), now: Duration) -> Vec<Effect> {
        let through = self.is_through();
        let first = !self.again && !self.joined.contains(worker) && self.generation == self.start.last_generation;
        match self.members.values_mut().find(|member| member.hello.worker_id == worker) {
            // Its session ends as well, and says more: where it was.
            Some(member) => {
                member.exited = Some((how.into(), cause));
                Vec::new()
            }
            // Nothing that worked before has broken: what it says is what the user must read.
            None if first && !cause.is_external() => {
                self.fail(format!("{worker} {how} before it joined the run"), EXIT_UNREACHABLE)
            }
            None if through => Vec::new(),
            None => {
                self.first_loss.get_or_insert((format!("{worker} {how}"), now));
                self.restart(worker, (how, cause))
            }
        }
    }

    /// Workers of an earlier coordinator have had time to come back.
    pub(super) fn start_who_did_not_come_back(&mut self, now: Duration) -> Vec<Effect> {
        if now.saturating_sub(self.started) < MOST_COMING_BACK {
            return Vec::new();
        }
        let gone = std::mem::take(&mut self.start.adopted);
        let start = |worker: String| {
            let how = "did not come back to the coordinator that was started again".into();
            let told = Notice::Restarting { worker: worker.clone(), how, cause: ExitCause::Vanished, restart: 1 };
            [Effect::Tell(told), Effect::Restart { worker, after: Duration::ZERO }]
        };
        gone.into_iter().flat_map(start).collect()
    }
}

#[cfg(test)]
mod tests;
