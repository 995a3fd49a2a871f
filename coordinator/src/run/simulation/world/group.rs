//! A simulated generation: its ranks make steps in lockstep, evaluate, save, and leave together or
//! when it is broken.

use super::{Activity, Health, STAGES, StagePoint, State, World};
use crate::run::Event;
use crate::run::tests::step;
use std::collections::BTreeMap;
use thanos_proto::{CheckpointRef, StepDone, WorkerEvent};

/// Steps that a generation makes at most after its ranks were asked to leave it: the last one of a
/// stage is followed by its checkpoint, and by another.
const MAX_LATE_STEPS: u64 = 2;

/// What the ranks of a generation do until the next collective.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    /// Not all have joined.
    Join,
    Step,
    Evaluate,
    /// Rank 0 saves what all wait for: the end of a stage, or a stop.
    Save {
        ends_stage: bool,
    },
    /// Rank 0 waits for its commit.
    Commit {
        ends_stage: bool,
    },
}

#[derive(Clone, Debug)]
pub(super) struct Group {
    pub(super) generation: u64,
    /// Indices of the workers, by rank, as they join.
    pub(super) ranks: Vec<Option<usize>>,
    pub(super) at: StagePoint,
    pub(super) operation: Operation,
    /// Steps that were made after the coordinator had asked its ranks to leave it.
    pub(super) late_steps: u64,
    /// A rank was lost, or the coordinator sent `Abandon`: all leave at their next collective.
    pub(super) broken: bool,
}

impl Group {
    pub(super) fn new(generation: u64, size: usize, at: StagePoint) -> Self {
        Self {
            generation,
            ranks: vec![None; size],
            at,
            operation: Operation::Join,
            late_steps: 0,
            broken: false,
        }
    }
}

impl World {
    pub(super) fn join_group(&mut self, index: usize, rank: usize) {
        let until = self.now + self.about(0.5);
        let group = self.group.as_mut().expect("just made");
        group.ranks[rank] = Some(index);
        let (at, generation) = (group.at, group.generation);
        let worker = &mut self.workers[index];
        let recent = worker.state.take().map(|state| state.recent).unwrap_or_default();
        worker.state = Some(State { at, generation, recent });
        worker.activity = Activity::Training { until };
        (worker.phase, worker.collectives) = ("rendezvous", 0);
    }

    pub(super) fn break_group(&mut self, generation: u64) {
        if let Some(group) = self.group.as_mut().filter(|group| group.generation == generation) {
            group.broken = true;
        }
    }

    pub(super) fn advance_group(&mut self) {
        let Some(group) = self.group.clone() else { return };
        if group.broken {
            return self.leave_broken_group(&group);
        }
        let ranks: Vec<usize> = group.ranks.iter().copied().flatten().collect();
        self.enter_collectives(&ranks);
        let has_arrived = |index: &usize| {
            let worker = &self.workers[*index];
            let arrived =
                matches!(worker.activity, Activity::Training { until } if until <= self.now);
            arrived && worker.health == Health::Healthy
        };
        if ranks.len() < group.ranks.len() || !ranks.iter().all(has_arrived) {
            return;
        }
        match group.operation {
            Operation::Join | Operation::Evaluate => self.next_operation(&ranks),
            Operation::Step if self.is_faulty(group.at) => self.fail_step(&ranks, group.at),
            Operation::Step => {
                self.make_step(&ranks);
                self.after_step(&ranks);
            }
            Operation::Save { ends_stage } => {
                let event =
                    WorkerEvent::Checkpoint(self.written(group.at, group.generation, ends_stage));
                // An earlier save is committed first.
                if self.workers[ranks[0]].saves.is_none()
                    && !self.is_committing(ranks[0])
                    && let Some(session) = self.workers[ranks[0]].session
                {
                    self.send(Event::Received { session, event });
                    self.group_mut().operation = Operation::Commit { ends_stage };
                }
            }
            Operation::Commit { .. } => {}
        }
    }

    fn group_mut(&mut self) -> &mut super::Group {
        self.group.as_mut().expect("it advances")
    }

    /// Those at a collective leave at once; others when they come to it. A stopped or hung one
    /// never does.
    fn leave_broken_group(&mut self, group: &Group) {
        for index in group.ranks.iter().copied().flatten() {
            let worker = &mut self.workers[index];
            let in_group =
                worker.state.as_ref().is_some_and(|state| state.generation == group.generation);
            if let Activity::Training { until } = worker.activity
                && in_group
                && worker.health == Health::Healthy
            {
                worker.activity = Activity::Leaving { until };
            }
        }
    }

    /// A rank that has entered its collective waits there for the others.
    fn enter_collectives(&mut self, ranks: &[usize]) {
        let (now, operation) = (self.now, self.group.as_ref().map(|group| group.operation));
        for index in ranks {
            let worker = &mut self.workers[*index];
            let arrived = matches!(worker.activity, Activity::Training { until } if until <= now);
            if arrived && worker.phase == "forward" && worker.health == Health::Healthy {
                (worker.phase, worker.collectives) = ("reduce", worker.collectives + 1);
            }
            let waits =
                matches!(operation, Some(Operation::Save { .. } | Operation::Commit { .. }));
            if arrived && waits && *index != ranks[0] && worker.phase == "save" {
                (worker.phase, worker.collectives) = ("barrier", worker.collectives + 1);
            }
        }
    }

    fn make_step(&mut self, ranks: &[usize]) {
        let asked_to_leave = self.run.growing.then_some(self.run.generation);
        let group = self.group_mut();
        if asked_to_leave == Some(group.generation) {
            group.late_steps += 1;
        }
        assert!(group.late_steps <= MAX_LATE_STEPS, "workers wait for the end of {group:?}");
        let at = group.at;
        group.at.made += 1;
        let done = self.step_done(at);
        for index in ranks {
            self.workers[*index].make_step(&done);
        }
        if let Some(session) = self.workers[ranks[0]].session {
            self.send(Event::Received { session, event: WorkerEvent::Step(done) });
        }
    }

    fn step_done(&self, at: StagePoint) -> StepDone {
        let generation = self.group.as_ref().map_or(0, |group| group.generation);
        let phase_seconds = BTreeMap::from([("forward".into(), self.pace.step[at.stage])]);
        StepDone { phase_seconds, ..step(STAGES[at.stage].0, at.made, generation) }
    }

    fn after_step(&mut self, ranks: &[usize]) {
        let Group { at, generation, .. } = *self.group_mut();
        let stop = ranks.iter().any(|index| self.workers[*index].stop);
        let regroup = ranks.iter().any(|index| self.workers[*index].regroup >= generation);
        if at.made == STAGES[at.stage].1 {
            self.work(ranks, Operation::Evaluate, "evaluate", self.pace.evaluate);
        } else if stop {
            self.work(ranks, Operation::Save { ends_stage: false }, "save", self.pace.save);
        } else if regroup {
            for index in ranks {
                self.workers[*index].activity = Activity::Leaving { until: self.now };
            }
            self.group = None;
        } else if self.is_once_in(8) {
            self.work(ranks, Operation::Evaluate, "evaluate", self.pace.evaluate);
        } else {
            self.next_operation(ranks);
        }
    }

    /// The end of a stage is saved, else a step is made; now and then rank 0 begins to save in the
    /// background.
    fn next_operation(&mut self, ranks: &[usize]) {
        let StagePoint { stage, made } = self.group_mut().at;
        if stage == STAGES.len() {
            return self.send_final_event(ranks, &WorkerEvent::Finished);
        }
        if made == STAGES[stage].1 {
            return self.work(ranks, Operation::Save { ends_stage: true }, "save", self.pace.save);
        }
        let is_saving = self.workers[ranks[0]].saves.is_some() || self.is_committing(ranks[0]);
        if made > 0 && !is_saving && self.is_once_in(4) {
            let group = self.group_mut();
            let (at, generation) = (group.at, group.generation);
            let event = WorkerEvent::Checkpoint(self.written(at, generation, false));
            let until = self.now + self.about(self.pace.save);
            let session = self.workers[ranks[0]].session;
            self.workers[ranks[0]].saves = Some((until, event, session));
        }
        self.work(ranks, Operation::Step, "forward", self.pace.step[stage]);
    }

    /// A checkpoint of this worker has been written, and it does not know yet whether it was
    /// committed.
    fn is_committing(&self, index: usize) -> bool {
        let of = |session| Some(session) == self.workers[index].session;
        let is_sent = |event: &Event| match event {
            Event::Received { session, event: WorkerEvent::Checkpoint(_) }
            | Event::Committed { session, .. } => of(*session),
            _ => false,
        };
        self.inbox.iter().any(is_sent) || self.commits.iter().any(|(_, session, _)| of(*session))
    }

    fn work(&mut self, ranks: &[usize], operation: Operation, phase: &'static str, seconds: f64) {
        self.group_mut().operation = operation;
        for index in ranks {
            let until = self.now + self.about(seconds);
            let worker = &mut self.workers[*index];
            (worker.activity, worker.phase) = (Activity::Training { until }, phase);
        }
    }

    /// Rank 0 is notified of a commit: after the end of a stage, or a stop, all continue together,
    /// if all are still there.
    pub(super) fn committed(&mut self, index: usize, outcome: &Result<CheckpointRef, String>) {
        let Some(group) =
            self.group.clone().filter(|group| group.ranks.first() == Some(&Some(index)))
        else {
            return;
        };
        let Operation::Commit { ends_stage } = group.operation else { return };
        let is_it = outcome.as_ref().is_ok_and(|saved| saved.step == group.at.made);
        if group.broken || !is_it {
            return;
        }
        let ranks: Vec<usize> = group.ranks.iter().copied().flatten().collect();
        if !ends_stage {
            let (stage, step) = (STAGES[group.at.stage].0.into(), group.at.made);
            return self.send_final_event(&ranks, &WorkerEvent::Stopped { stage, step });
        }
        let next = StagePoint { stage: group.at.stage + 1, made: 0 };
        self.group_mut().at = next;
        // Some may be through the barrier and others not, if one dies in it.
        let torn = self.is_once_in(8);
        for index in &ranks {
            if !torn || self.is_once_in(2) {
                let state = self.workers[*index].state.as_mut().expect("it is in training");
                (state.at, state.recent) = (next, Vec::new());
            }
        }
        if torn {
            let victim = ranks[self.chance.below(ranks.len() as u64) as usize];
            self.die(victim);
        } else {
            self.next_operation(&ranks);
        }
    }

    fn send_final_event(&mut self, ranks: &[usize], final_event: &WorkerEvent) {
        for index in ranks {
            self.workers[*index].activity =
                Activity::Over { final_event: Box::new(final_event.clone()), is_sent: false };
        }
        self.group = None;
    }

    /// Of those that were in the last collective of a step with one that dies, some may have its
    /// result.
    pub(super) fn tear_step(&mut self, victim: usize) {
        let Some(group) =
            self.group.clone().filter(|group| !group.broken && group.operation == Operation::Step)
        else {
            return;
        };
        let ranks: Vec<usize> = group.ranks.iter().copied().flatten().collect();
        let arrived = |index: &usize| {
            let worker = &self.workers[*index];
            worker.health == Health::Healthy
                && matches!(
                    worker.activity,
                    Activity::Training { until } if until <= self.now + super::QUANTUM
                )
        };
        let all_arrived = ranks.len() == group.ranks.len() && ranks.iter().all(arrived);
        if !all_arrived || !ranks.contains(&victim) || self.is_faulty(group.at) {
            return;
        }
        let done = self.step_done(group.at);
        for index in ranks {
            if index != victim && self.is_once_in(2) {
                self.workers[index].make_step(&done);
            }
        }
    }
}

impl super::Worker {
    fn make_step(&mut self, done: &StepDone) {
        let state = self.state.as_mut().expect("it is in training");
        if state.at.made == 0 {
            state.recent.clear();
        }
        state.at.made += 1;
        state.recent.push(done.clone());
        self.collectives += 1;
    }
}
