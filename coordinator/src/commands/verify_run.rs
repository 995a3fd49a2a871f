//! `verify-run`: what a run's ledger proves. Every step of a stage once and in order, every sample
//! of an epoch once: the digest of each step's samples is computed again from the configuration. Of
//! two runs, the first step at which they differ. It reads run directories and packs, and changes
//! nothing.

use crate::exit::{EXIT_DATA, Fatal};
use crate::run_dir::ledger::{StepLine, read_steps};
use std::fmt;
use std::path::Path;
use thanos_configs::{EpochOrder, Plan, samples_sha256, stage_steps};
use thanos_formats::STEPS_JSONL;

/// What was found of one ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Verified {
    /// Name and steps of each stage that has any.
    pub(crate) stages: Vec<(String, u64)>,
    /// Generations that made a step.
    pub(crate) generations: usize,
}

impl fmt::Display for Verified {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let steps: u64 = self.stages.iter().map(|(_, steps)| steps).sum();
        let (stages, generations) = (self.stages.len(), self.generations);
        write!(
            out,
            "{steps} steps of {stages} stages in {generations} generations: every step exactly \
            once and in order, "
        )?;
        write!(out, "every sample of an epoch exactly once")
    }
}

/// Checks the ledger of a run against its plan. `fine` are the fine labels of the official training
/// set, [N].
///
/// # Errors
/// 65, with the first line that is not what it must be, and what it must be.
pub(crate) fn verify_run(run_dir: &Path, plan: &Plan, fine: &[i64]) -> Result<Verified, Fatal> {
    verify(&read_steps(run_dir)?, plan, fine).map_err(|(line, problem)| {
        let path = run_dir.join(STEPS_JSONL);
        Fatal::new(EXIT_DATA, format!("{}, line {line}: {problem}", path.display()))
    })
}

/// Errors: the line, from 1, and what is wrong with it.
fn verify(lines: &[StepLine], plan: &Plan, fine: &[i64]) -> Result<Verified, (usize, String)> {
    let samples = plan.split(fine).train;
    let (seed, drop_last) = (plan.config().seed, plan.config().data.drop_last);
    let mut verified = Verified { stages: Vec::new(), generations: 0 };
    let (mut at, mut generation) = (0, 0);
    let mut stages = plan.stages().iter().peekable();
    for lines in lines.chunk_by(|line, next| line.stage == next.stage) {
        let name = &lines[0].stage;
        // A stage that was skipped would be one without steps.
        let Some(stage) = stages.next_if(|stage| stage.name() == name) else {
            let expected = stages.peek().map_or("no further stage", |stage| stage.name());
            return Err((at + 1, format!("stage {name}, expected {expected}")));
        };
        let batch_size = plan.training(stage).batch_size;
        let order = |epoch| EpochOrder::new(&samples, seed, epoch, batch_size, drop_last);
        for (line, (position, batch)) in lines.iter().zip(stage_steps(0..lines.len() as u64, order))
        {
            at += 1;
            let refuse = |problem: String| Err((at, problem));
            if line.step != position.step {
                return refuse(format!(
                    "step {} of stage {name}, expected step {}",
                    line.step, position.step
                ));
            }
            if line.generation < generation {
                return refuse(format!(
                    "generation {} after generation {generation}",
                    line.generation
                ));
            }
            verified.generations += usize::from(line.generation > generation);
            generation = line.generation;
            if line.epoch != position.epoch || line.images != batch.len() as u64 {
                let (epoch, images) = (position.epoch, batch.len());
                let got = format!("epoch {} with {} images", line.epoch, line.images);
                return refuse(format!(
                    "step {} is {got}, expected epoch {epoch} with {images}",
                    line.step
                ));
            }
            if line.samples_sha256 != samples_sha256(&batch) {
                return refuse(format!("step {} of stage {name} used other samples", line.step));
            }
        }
        verified.stages.push((name.clone(), lines.len() as u64));
    }
    Ok(verified)
}

/// How two ledgers compare, whatever their generations: the first step at which they differ, or how
/// far they agree.
pub(crate) fn compare(one: &[StepLine], other: &[StepLine]) -> Comparison {
    let same = |(one, other): &(&StepLine, &StepLine)| {
        let (mut one, mut other) = ((*one).clone(), (*other).clone());
        (one.generation, other.generation) = (0, 0);
        (one.world_size, other.world_size) = (0, 0);
        one == other
    };
    match one.iter().zip(other).find(|pair| !same(pair)) {
        Some((one, other)) => {
            Comparison::Differ { one: Box::new(one.clone()), other: Box::new(other.clone()) }
        }
        None => Comparison::Identical {
            steps: one.len().min(other.len()),
            of: (one.len(), other.len()),
        },
    }
}

/// What [`compare`] found.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Comparison {
    Identical { steps: usize, of: (usize, usize) },
    Differ { one: Box<StepLine>, other: Box<StepLine> },
}

impl fmt::Display for Comparison {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Identical { steps, of } if of.0 == of.1 => {
                write!(out, "identical in all {steps} steps")
            }
            Self::Identical { steps, of } => {
                write!(
                    out,
                    "identical up to step {steps}, where one ledger ends: they have {} and {} \
                    steps",
                    of.0, of.1
                )
            }
            Self::Differ { one, other } if (&one.stage, one.step) != (&other.stage, other.step) => {
                let (a, b) = ((&one.stage, one.step), (&other.stage, other.step));
                write!(
                    out,
                    "they differ: step {} of stage {} against step {} of stage {}",
                    a.1, a.0, b.1, b.0
                )
            }
            Self::Differ { one, other } => {
                write!(out, "they differ first at step {} of stage {}: ", one.step, one.stage)?;
                if one.samples_sha256 != other.samples_sha256 {
                    return write!(out, "other samples");
                }
                let [one_loss, other_loss] =
                    [one.loss, other.loss].map(|loss| loss.unwrap_or(f64::NAN));
                write!(out, "losses {one_loss} and {other_loss}, rates {} and {}", one.lr, other.lr)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    const IMAGES: usize = 40;

    fn plan() -> Plan {
        let overrides = ["train.batch_size=16", "transfer.batch_size=16"].map(str::to_owned);
        Plan::from_preset("digits_supcon", &overrides).expect("valid")
    }

    /// What a run of two epochs of either stage writes: 36 images are trained on, in steps of 16,
    /// 16 and 4.
    fn ledger(plan: &Plan) -> Vec<StepLine> {
        let samples = plan.split(&[0; IMAGES]).train;
        let line = |stage: &str, step: u64| {
            let order = EpochOrder::new(&samples, 0, step / 3, 16, false);
            let batch = order.batch(step % 3);
            StepLine {
                stage: stage.into(),
                epoch: step / 3,
                step,
                generation: 1 + step / 2,
                world_size: 2,
                loss: Some(1.0),
                losses: BTreeMap::new(),
                lr: 0.1,
                images: batch.len() as u64,
                samples_sha256: samples_sha256(batch),
                skipped: None,
            }
        };
        let first = (0..6).map(|step| line("supcon", step));
        let second = (0..6).map(|step| StepLine { generation: 9, ..line("transfer_supcon", step) });
        first.chain(second).collect()
    }

    #[test]
    fn a_whole_ledger_is_verified() {
        let plan = plan();
        let verified = verify(&ledger(&plan), &plan, &[0; IMAGES]).expect("good");
        assert_eq!(verified.stages, [("supcon".to_owned(), 6), ("transfer_supcon".to_owned(), 6)]);
        let expected = "12 steps of 2 stages in 4 generations: every step exactly once and in \
            order, every sample of an epoch exactly once";
        assert_eq!(verified.to_string(), expected);
        assert_eq!(verify(&[], &plan, &[0; IMAGES]).expect("good").stages, []);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        let plan = plan();
        let check = |change: &dyn Fn(&mut Vec<StepLine>), expected: (usize, &str)| {
            let mut lines = ledger(&plan);
            change(&mut lines);
            let (line, problem) = verify(&lines, &plan, &[0; IMAGES]).expect_err(expected.1);
            assert_eq!((line, problem.as_str()), expected);
        };
        check(&|lines| _ = lines.remove(2), (3, "step 3 of stage supcon, expected step 2"));
        check(
            &|lines| lines.insert(2, lines[1].clone()),
            (3, "step 1 of stage supcon, expected step 2"),
        );
        check(&|lines| lines[3].generation = 1, (4, "generation 1 after generation 2"));
        check(
            &|lines| lines[2].images = 16,
            (3, "step 2 is epoch 0 with 16 images, expected epoch 0 with 4"),
        );
        check(
            &|lines| lines[5].epoch = 0,
            (6, "step 5 is epoch 0 with 4 images, expected epoch 1 with 4"),
        );
        let other =
            |lines: &mut Vec<StepLine>| lines[4].samples_sha256 = lines[3].samples_sha256.clone();
        check(&other, (5, "step 4 of stage supcon used other samples"));
        check(&|lines| lines[6].stage = "cae".into(), (7, "stage cae, expected transfer_supcon"));
        check(
            &|lines| lines.push(StepLine { stage: "more".into(), ..lines[0].clone() }),
            (13, "stage more, expected no further stage"),
        );
    }

    #[test]
    fn two_ledgers_are_compared_whatever_their_generations() {
        let one = ledger(&plan());
        let mut other = one.clone();
        other.iter_mut().for_each(|line| line.generation = 1);
        assert_eq!(compare(&one, &other).to_string(), "identical in all 12 steps");
        let part = "identical up to step 7, where one ledger ends: they have 12 and 7 steps";
        assert_eq!(compare(&one, &other[..7]).to_string(), part);
        other[3].loss = Some(1.5);
        let differ =
            "they differ first at step 3 of stage supcon: losses 1 and 1.5, rates 0.1 and 0.1";
        assert_eq!(compare(&one, &other).to_string(), differ);
        other.remove(0);
        let moved = "they differ: step 0 of stage supcon against step 1 of stage supcon";
        assert_eq!(compare(&one, &other).to_string(), moved);
    }
}
