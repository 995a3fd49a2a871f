//! In which state a run is, and how long it has been in each: the share of `training` is the run's
//! goodput. Pure: time is a parameter. The seconds of all states add up to the time since the
//! coordinator began to serve.

use std::time::Duration;
use thanos_proto::RankPhase;

/// What the time of a run goes into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// No generation has begun yet: too few workers are ready.
    WaitingForWorkers,
    /// A generation, or the next stage, begins: process groups, models and caches are made.
    Starting,
    Training,
    Evaluating,
    /// Training waits for a checkpoint: at the end of a stage, or before a stop.
    Saving,
    /// A generation was interrupted: from then until the next one makes a step.
    Recovering,
    Ended,
}

impl State {
    pub(crate) const ALL: [Self; 7] = [
        Self::WaitingForWorkers,
        Self::Starting,
        Self::Training,
        Self::Evaluating,
        Self::Saving,
        Self::Recovering,
        Self::Ended,
    ];

    /// As a label of metrics.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::WaitingForWorkers => "waiting_for_workers",
            Self::Starting => "starting",
            Self::Training => "training",
            Self::Evaluating => "evaluating",
            Self::Saving => "saving",
            Self::Recovering => "recovering",
            Self::Ended => "ended",
        }
    }

    /// The state that a phase of rank 0 belongs to.
    fn of_phase(phase: &RankPhase) -> Self {
        match phase {
            RankPhase::Start | RankPhase::Rendezvous | RankPhase::Connect | RankPhase::SetUp => {
                Self::Starting
            }
            RankPhase::Evaluate | RankPhase::Measure => Self::Evaluating,
            RankPhase::Save => Self::Saving,
            RankPhase::Data
            | RankPhase::Forward
            | RankPhase::Gather
            | RankPhase::Backward
            | RankPhase::Compute
            | RankPhase::Record
            | RankPhase::Reduce
            | RankPhase::Update
            | RankPhase::Compare
            | RankPhase::Other(_) => Self::Training,
        }
    }
}

/// The state of a run since its coordinator began to serve.
#[derive(Clone, Debug)]
pub(crate) struct Goodput {
    state: State,
    since: Duration,
    spent: [Duration; State::ALL.len()],
    generation: u64,
    /// What ranks of this generation and of older ones report is of a generation that was
    /// interrupted.
    interrupted: u64,
}

impl Goodput {
    /// A run that begins in `state`; all times are since that moment.
    pub(crate) fn new(state: State, generation: u64) -> Self {
        let spent = [Duration::ZERO; State::ALL.len()];
        Self { state, since: Duration::ZERO, spent, generation, interrupted: generation }
    }

    pub(crate) fn state(&self) -> State {
        self.state
    }

    /// A generation begins. After an interruption that is part of recovering.
    pub(crate) fn began(&mut self, generation: u64, now: Duration) {
        self.generation = generation;
        if self.state == State::WaitingForWorkers {
            self.enter(State::Starting, now);
        }
    }

    /// The generation is over before its work is done: a rank was lost, or another worker joins.
    pub(crate) fn interrupted(&mut self, now: Duration) {
        self.interrupted = self.generation;
        if ![State::WaitingForWorkers, State::Ended].contains(&self.state) {
            self.enter(State::Recovering, now);
        }
    }

    /// Rank 0 of this generation has made a step.
    pub(crate) fn step(&mut self, generation: u64, now: Duration) {
        if self.is_live(generation) {
            self.enter(State::Training, now);
        }
    }

    /// Rank 0 of this generation is in this phase. Recovering ends with a step, or with the
    /// evaluation that is due.
    pub(crate) fn phase(&mut self, generation: u64, phase: &RankPhase, now: Duration) {
        let state = State::of_phase(phase);
        let recovers = self.state == State::Recovering && state != State::Evaluating;
        if self.is_live(generation) && !recovers {
            self.enter(state, now);
        }
    }

    pub(crate) fn end(&mut self, now: Duration) {
        self.enter(State::Ended, now);
    }

    /// Time in each state; none is counted once the run has ended.
    pub(crate) fn seconds(&self, now: Duration) -> [(State, f64); State::ALL.len()] {
        let mut spent = self.spent;
        if self.state != State::Ended {
            spent[self.state as usize] += now.saturating_sub(self.since);
        }
        State::ALL.map(|state| (state, spent[state as usize].as_secs_f64()))
    }

    fn is_live(&self, generation: u64) -> bool {
        generation == self.generation && generation > self.interrupted && self.state != State::Ended
    }

    fn enter(&mut self, state: State, now: Duration) {
        if self.state != State::Ended {
            self.spent[self.state as usize] += now.saturating_sub(self.since);
            (self.state, self.since) = (state, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn every_second_is_counted_in_one_state() {
        let mut run = Goodput::new(State::WaitingForWorkers, 0);
        run.began(1, at(10));
        run.phase(1, &RankPhase::SetUp, at(11));
        run.step(1, at(14));
        run.phase(1, &RankPhase::Evaluate, at(20));
        run.phase(1, &RankPhase::Forward, at(50));
        run.phase(1, &RankPhase::Save, at(60));
        run.phase(1, &RankPhase::Forward, at(62));
        run.interrupted(at(70));
        run.began(2, at(75));
        run.phase(2, &RankPhase::SetUp, at(76));
        run.step(2, at(80));
        run.end(at(100));
        let expected = [
            (State::WaitingForWorkers, 10.0),
            (State::Starting, 4.0),
            (State::Training, 6.0 + 10.0 + 8.0 + 20.0),
            (State::Evaluating, 30.0),
            (State::Saving, 2.0),
            (State::Recovering, 10.0),
            (State::Ended, 0.0),
        ];
        assert_eq!(run.seconds(at(1000)), expected);
        assert_eq!(run.seconds(at(1000)).iter().map(|(_, seconds)| seconds).sum::<f64>(), 100.0);
    }

    /// The last messages of a generation may arrive after its end.
    #[test]
    fn what_an_interrupted_generation_reports_changes_nothing() {
        let mut run = Goodput::new(State::WaitingForWorkers, 0);
        run.began(1, at(0));
        run.step(1, at(1));
        run.interrupted(at(2));
        run.step(1, at(3));
        run.phase(1, &RankPhase::Evaluate, at(4));
        assert_eq!(run.state(), State::Recovering);
        run.began(2, at(5));
        run.phase(1, &RankPhase::Evaluate, at(6));
        run.phase(2, &RankPhase::Forward, at(7));
        assert_eq!(run.state(), State::Recovering, "the step in flight is made again");
        run.phase(2, &RankPhase::Evaluate, at(8));
        assert_eq!(
            run.state(),
            State::Evaluating,
            "the evaluation was interrupted and is made again"
        );
    }

    #[test]
    fn a_coordinator_that_was_restarted_recovers() {
        let mut run = Goodput::new(State::Recovering, 7);
        run.step(7, at(1));
        assert_eq!(run.state(), State::Recovering);
        run.began(8, at(2));
        run.step(8, at(3));
        assert_eq!(
            (run.state(), run.seconds(at(5))[5]),
            (State::Training, (State::Recovering, 3.0))
        );
    }
}
