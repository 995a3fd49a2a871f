//! The names that a run's plan has. The stages and loss terms in a worker's messages must be among
//! them: they become folders and labels of metrics.

use std::collections::BTreeMap;
use thanos_configs::{LossTerm, Plan, StagePlan};
use thanos_proto::{BEFORE_STAGES, StepDone, WorkerEvent};

/// Stages by name, each with the terms that its loss has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PlanNames {
    stages: BTreeMap<String, Vec<&'static str>>,
}

impl PlanNames {
    pub(crate) fn new(plan: &Plan) -> Self {
        let named = |stage: &StagePlan| {
            let terms = stage.terms().into_iter().map(LossTerm::name).collect();
            (stage.name().to_owned(), terms)
        };
        Self { stages: plan.stages().iter().map(named).collect() }
    }

    /// # Errors
    /// The name that the plan does not have.
    pub(super) fn check(&self, event: &WorkerEvent) -> Result<(), String> {
        match event {
            WorkerEvent::Heartbeat(heartbeat) if heartbeat.stage == BEFORE_STAGES => Ok(()),
            WorkerEvent::Heartbeat(heartbeat) => self.stage(&heartbeat.stage),
            WorkerEvent::Step(step) => self.step(step),
            WorkerEvent::Rejoin(rejoin) => {
                rejoin.failure.as_ref().map_or(Ok(()), |failure| self.stage(&failure.stage))?;
                rejoin.recent.iter().try_for_each(|step| self.step(step))
            }
            WorkerEvent::Evaluated(evaluated) => self.stage(&evaluated.stage),
            WorkerEvent::Checkpoint(written) => {
                self.stage(&written.stage)?;
                match &written.result {
                    Some(result) if result.stage != written.stage => Err(format!(
                        "a result of stage `{}` in a checkpoint of `{}`",
                        result.stage, written.stage
                    )),
                    _ => Ok(()),
                }
            }
            WorkerEvent::NotSaved { stage, .. }
            | WorkerEvent::StageFinished { stage }
            | WorkerEvent::Stopped { stage, .. } => self.stage(stage),
            // Without a name of the plan.
            _ => Ok(()),
        }
    }

    fn stage(&self, stage: &str) -> Result<(), String> {
        match self.stages.contains_key(stage) {
            true => Ok(()),
            false => Err(format!("the plan has no stage `{stage}`")),
        }
    }

    fn step(&self, step: &StepDone) -> Result<(), String> {
        self.stage(&step.stage)?;
        let terms = &self.stages[&step.stage];
        match step.losses.keys().find(|term| !terms.contains(&term.as_str())) {
            Some(term) => Err(format!("the loss of stage `{}` has no term `{term}`", step.stage)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::test_step;
    use thanos_proto::{Evaluated, GroupFailure, Heartbeat, Rejoin};

    fn names() -> PlanNames {
        let plan = Plan::from_preset("digits_cae", &[]).expect("a preset");
        PlanNames::new(&plan)
    }

    fn step(stage: &str, term: &str) -> StepDone {
        StepDone { losses: BTreeMap::from([(term.to_owned(), 1.0)]), ..test_step(stage, 0, 1) }
    }

    #[test]
    fn names_that_the_plan_does_not_have_are_found() {
        let names = names();
        let (stage, terms) = names.stages.first_key_value().expect("a stage");
        let evaluated = |stage: &str| {
            let (stage, measure) = (stage.into(), "coarse_head".into());
            WorkerEvent::Evaluated(Evaluated {
                stage,
                epoch: 0,
                validation_accuracy: 0.5,
                best: true,
                measure,
            })
        };
        let heartbeat = |stage: &str| {
            let (stage, phase) = (stage.into(), "data".into());
            WorkerEvent::Heartbeat(Heartbeat {
                generation: 1,
                stage,
                step: 0,
                phase,
                collectives: 0,
                waited_ms: 0,
                progress: 0,
                in_collective: false,
            })
        };
        let rejoin = |step| {
            WorkerEvent::Rejoin(Rejoin {
                generation: 1,
                held: None,
                recent: vec![step],
                failure: None,
            })
        };
        let failure = GroupFailure {
            stage: "other".into(),
            step: 0,
            message: String::new(),
            peer_lost: false,
        };
        let failed =
            Rejoin { generation: 1, held: None, recent: Vec::new(), failure: Some(failure) };
        for good in [
            heartbeat("start"),
            heartbeat(stage),
            evaluated(stage),
            WorkerEvent::Step(step(stage, terms[0])),
            rejoin(step(stage, terms[0])),
            WorkerEvent::Finished,
        ] {
            assert_eq!(names.check(&good), Ok(()), "{good:?}");
        }
        for bad in [
            heartbeat("other"),
            evaluated("../../other"),
            evaluated("start"),
            WorkerEvent::Step(step("../../other", terms[0])),
            WorkerEvent::Step(step(stage, "made_up")),
            rejoin(step(stage, "made_up")),
            WorkerEvent::Rejoin(failed),
            WorkerEvent::StageFinished { stage: String::new() },
        ] {
            assert!(names.check(&bad).is_err(), "{bad:?}");
        }
    }
}
