//! What the page shows of a run that the ledger does not have: heartbeats, what workers wait for,
//! the seconds of phases, the speed. The event loop feeds it under a lock that is held for
//! microseconds; it starts again with each coordinator.

use crate::run::{Effect, Event, Notice, SessionId};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use thanos_proto::{Command, Heartbeat, RankPhase, StepDone, WorkerEvent};

/// The speed is that of the last seconds, and so is the share of its time that a worker waits.
const SPEED_WINDOW: Duration = Duration::from_secs(10);
const WAIT_WINDOW: Duration = Duration::from_secs(3);
/// Steps whose times the speed is made of.
const MAX_TIMES: usize = 4096;
/// The weight of a step in the mean seconds of a phase: about the last fifty count.
const STEP_WEIGHT: f64 = 0.04;
/// The share of a step below which a phase is not listed.
const MIN_PHASE_SHARE: f64 = 1e-3;

/// A handle's content; one for each run that is served.
#[derive(Debug, Default)]
pub(crate) struct Live {
    facts: Mutex<Facts>,
}

#[derive(Debug, Default)]
struct Facts {
    /// The session that has just introduced itself, and its worker.
    opened: Option<(SessionId, String)>,
    sessions: HashMap<SessionId, (String, Beat)>,
    /// Steps that each stage will have.
    totals: BTreeMap<String, u64>,
    /// When steps were committed, and of how many images.
    times: VecDeque<(Instant, u64)>,
    /// Mean seconds of a recent step by phase, and of how many steps.
    phases: BTreeMap<RankPhase, f64>,
    steps: u64,
    stage: String,
    storage_problem: Option<String>,
}

/// What the last heartbeat of a session said.
#[derive(Debug)]
struct Beat {
    heard: Instant,
    stage: String,
    step: u64,
    /// `None`: there was no heartbeat yet.
    phase: Option<RankPhase>,
    generation: u64,
    /// The beginning of the window in which waiting is measured, and the time that it had waited
    /// then.
    window: (Instant, u64),
    wait_share: Option<f64>,
}

/// A connected worker.
#[derive(Clone, Debug)]
pub(super) struct LiveWorker {
    stage: String,
    step: u64,
    phase: Option<RankPhase>,
    heartbeat_age: Duration,
    wait_share: Option<f64>,
}

impl LiveWorker {
    /// As fields of the worker's JSON.
    pub(super) fn fields(&self) -> Map<String, Value> {
        let age_seconds = (self.heartbeat_age.as_secs_f64() * 10.0).round() / 10.0;
        let fields = [
            ("stage", Value::from(self.stage.as_str())),
            ("step", self.step.into()),
            ("phase", self.phase.as_ref().map_or("", RankPhase::label).into()),
            ("heartbeat_age_seconds", age_seconds.into()),
            ("wait_share", self.wait_share.into()),
        ];
        fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
    }
}

/// What is known now.
#[derive(Clone, Debug, Default)]
pub(super) struct LiveView {
    pub(super) workers: HashMap<String, LiveWorker>,
    pub(super) totals: BTreeMap<String, u64>,
    pub(super) phases: BTreeMap<RankPhase, f64>,
    /// `None`: no step was made for a while.
    pub(super) steps_per_second: Option<f64>,
    pub(super) images_per_second: Option<f64>,
    pub(super) storage_problem: Option<String>,
}

impl Live {
    /// Something happened.
    pub(crate) fn on_event(&self, event: &Event) {
        let mut facts = self.lock();
        match event {
            Event::Opened { session, hello } => {
                facts.opened = Some((*session, hello.worker_id.clone()))
            }
            Event::Closed { session } => _ = facts.sessions.remove(session),
            Event::Received { session, event: WorkerEvent::Heartbeat(heartbeat) } => {
                if let Some((_, beat)) = facts.sessions.get_mut(session) {
                    beat.take(heartbeat, Instant::now());
                }
            }
            _ => {}
        }
    }

    /// Something is being done.
    pub(crate) fn on_effect(&self, effect: &Effect) {
        let mut facts = self.lock();
        match effect {
            Effect::Send { session, command: Command::Welcome(_) } => facts.admit(*session),
            Effect::Record(step) => facts.step(step, Instant::now()),
            Effect::Notify(Notice::StorageBlocked { problem }) => {
                facts.storage_problem = Some(problem.clone())
            }
            Effect::Notify(Notice::StorageRecovered { .. }) => facts.storage_problem = None,
            _ => {}
        }
    }

    pub(super) fn view(&self) -> LiveView {
        self.lock().view(Instant::now())
    }

    fn lock(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Facts {
    /// The session was admitted; a former session of its worker counts no more.
    fn admit(&mut self, session: SessionId) {
        let Some((_, worker)) = self.opened.take().filter(|(opened, _)| *opened == session) else {
            return;
        };
        self.sessions.retain(|_, (other, _)| *other != worker);
        self.sessions.insert(session, (worker, Beat::new(Instant::now())));
    }

    fn step(&mut self, step: &StepDone, now: Instant) {
        if self.stage != step.stage {
            // Another stage has another speed.
            self.stage = step.stage.clone();
            self.times.clear();
            self.phases.clear();
            self.steps = 0;
        }
        self.totals.insert(step.stage.clone(), step.total_steps);
        self.times.push_back((now, step.images));
        if self.times.len() > MAX_TIMES {
            self.times.pop_front();
        }
        self.steps += 1;
        let weight = (1.0 / self.steps as f64).max(STEP_WEIGHT);
        // A worker cannot make the list longer. A phase that this step did not have took no time.
        for phase in RankPhase::KNOWN {
            let seconds = step.phase_seconds.get(&phase).copied();
            if seconds.is_some() || self.phases.contains_key(&phase) {
                let mean = self.phases.entry(phase).or_default();
                *mean += (seconds.unwrap_or_default() - *mean) * weight;
            }
        }
    }

    fn view(&mut self, now: Instant) -> LiveView {
        while self
            .times
            .front()
            .is_some_and(|(when, _)| now.saturating_duration_since(*when) > SPEED_WINDOW)
        {
            self.times.pop_front();
        }
        let speed = self.times.front().filter(|_| self.times.len() > 1).map(|(first, _)| {
            let seconds = now.saturating_duration_since(*first).as_secs_f64().max(1e-3);
            let images: u64 = self.times.iter().skip(1).map(|(_, images)| images).sum();
            ((self.times.len() - 1) as f64 / seconds, images as f64 / seconds)
        });
        let workers = self.sessions.values().map(|(worker, beat)| {
            let heartbeat_age = now.saturating_duration_since(beat.heard);
            let (stage, phase) = (beat.stage.clone(), beat.phase.clone());
            let live = LiveWorker {
                stage,
                step: beat.step,
                phase,
                heartbeat_age,
                wait_share: beat.wait_share,
            };
            (worker.clone(), live)
        });
        LiveView {
            workers: workers.collect(),
            totals: self.totals.clone(),
            phases: self.phases.clone(),
            steps_per_second: speed.map(|(steps, _)| steps),
            images_per_second: speed.map(|(_, images)| images),
            storage_problem: self.storage_problem.clone(),
        }
    }
}

impl Beat {
    fn new(now: Instant) -> Self {
        let (stage, window) = (String::new(), (now, 0));
        Self { heard: now, stage, step: 0, phase: None, generation: 0, window, wait_share: None }
    }

    fn take(&mut self, heartbeat: &Heartbeat, now: Instant) {
        self.heard = now;
        self.stage.clone_from(&heartbeat.stage);
        self.phase = Some(heartbeat.phase.clone());
        self.step = heartbeat.step;
        let (began, waited_ms) = self.window;
        let elapsed = now.saturating_duration_since(began);
        if self.generation != heartbeat.generation || heartbeat.waited_ms < waited_ms {
            // It counts from 0 in each generation.
            (self.generation, self.window, self.wait_share) =
                (heartbeat.generation, (now, heartbeat.waited_ms), None);
        } else if elapsed >= WAIT_WINDOW {
            let waited = Duration::from_millis(heartbeat.waited_ms - waited_ms);
            self.wait_share = Some((waited.as_secs_f64() / elapsed.as_secs_f64()).min(1.0));
            self.window = (now, heartbeat.waited_ms);
        }
    }
}

/// Phases as the page has them, in the order in which a step goes through them, without those of
/// the start of a stage once they count for nothing.
pub(super) fn phases_json(phases: &BTreeMap<RankPhase, f64>) -> Vec<Value> {
    let least = phases.values().sum::<f64>() * MIN_PHASE_SHARE;
    let listed = phases.iter().filter(|(_, seconds)| **seconds > least);
    listed.map(|(phase, seconds)| json!({"phase": phase.label(), "seconds": seconds})).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::test_step;

    fn heartbeat(generation: u64, waited_ms: u64) -> Heartbeat {
        let (stage, phase) = ("supcon".into(), "gather".into());
        Heartbeat {
            generation,
            stage,
            step: 7,
            phase,
            collectives: 0,
            waited_ms,
            progress: 0,
            in_collective: true,
        }
    }

    #[test]
    fn a_worker_s_share_of_waiting_is_that_of_the_last_seconds_of_its_generation() {
        let began = Instant::now();
        let at = |ms: u64| began + Duration::from_millis(ms);
        let mut beat = Beat::new(began);
        beat.take(&heartbeat(1, 100), at(0));
        beat.take(&heartbeat(1, 500), at(1000));
        assert_eq!(beat.wait_share, None, "the window is not over");
        beat.take(&heartbeat(1, 1600), at(3000));
        assert_eq!(beat.wait_share, Some(0.5));
        beat.take(&heartbeat(2, 0), at(4000));
        assert_eq!((beat.wait_share, beat.step), (None, 7));
    }

    fn step(stage: &str, number: u64, seconds: f64) -> StepDone {
        let phase_seconds = BTreeMap::from([("forward".into(), seconds), ("made up".into(), 1.0)]);
        StepDone { total_steps: 90, phase_seconds, ..test_step(stage, number, 1) }
    }

    #[test]
    fn the_speed_is_that_of_the_last_seconds_of_the_stage() {
        let began = Instant::now();
        let at = |ms: u64| began + Duration::from_millis(ms);
        let mut facts = Facts::default();
        facts.step(&step("a", 0, 0.5), at(0));
        assert_eq!(facts.view(at(10)).steps_per_second, None, "one step has no speed");
        for number in 1..=10 {
            facts.step(&step("a", number, 0.25), at(100 * number));
        }
        let view = facts.view(at(1000));
        assert_eq!((view.steps_per_second, view.images_per_second), (Some(10.0), Some(80.0)));
        assert_eq!(view.totals["a"], 90);
        assert_eq!(view.phases.keys().collect::<Vec<_>>(), [&RankPhase::Forward]);
        let mean = view.phases[&RankPhase::Forward];
        assert!((mean - (0.5 + 0.25 * 10.0) / 11.0).abs() < 1e-12, "{mean}");
        assert_eq!(facts.view(at(60_000)).steps_per_second, None, "it stands still");
        facts.step(&step("b", 0, 2.0), at(61_000));
        assert_eq!(facts.view(at(61_000)).phases[&RankPhase::Forward], 2.0);
    }
}
