//! The series of a stage's steps with bounded memory: once there are too many points, each covers
//! twice as many steps and has their mean. Which points a reader lacks is known by the line of the
//! ledger up to which it has read.

use crate::run_dir::ledger::StepLine;
use serde_json::{Map, Value, json};

/// Points of a stage; a chart has about as many pixels.
const MAX_POINTS: usize = 1024;
/// Loss terms of a stage.
const MAX_TERMS: usize = 16;

/// The points of one stage.
#[derive(Clone, Debug)]
pub(super) struct Series {
    terms: Vec<String>,
    points: Vec<Point>,
    /// Steps that a point covers.
    stride: u64,
    /// The line of the ledger that made points cover more steps: a reader that is not beyond it has
    /// other points.
    merged_at: u64,
}

#[derive(Clone, Debug)]
struct Point {
    /// The last step that it covers, from 0, and the line of the ledger that has it.
    step: u64,
    line: u64,
    steps: u64,
    loss: Mean,
    lr: Mean,
    /// In the order of the series' terms.
    terms: Vec<Mean>,
}

/// A mean of the finite values.
#[derive(Clone, Copy, Debug, Default)]
struct Mean {
    sum: f64,
    count: u32,
}

impl Mean {
    fn add(&mut self, value: Option<f64>) {
        if let Some(value) = value.filter(|value| value.is_finite()) {
            self.sum += value;
            self.count += 1;
        }
    }

    fn merge(&mut self, other: Self) {
        self.sum += other.sum;
        self.count += other.count;
    }

    /// Null if no value was finite.
    fn json(self) -> Value {
        match self.count {
            0 => Value::Null,
            count => (self.sum / f64::from(count)).into(),
        }
    }
}

impl Series {
    pub(super) fn new() -> Self {
        Self { terms: Vec::new(), points: Vec::new(), stride: 1, merged_at: 0 }
    }

    /// Takes a step, which is line `line` of the ledger (from 1).
    pub(super) fn push(&mut self, step: &StepLine, line: u64) {
        for term in step.losses.keys() {
            if !self.terms.contains(term) && self.terms.len() < MAX_TERMS {
                self.terms.push(term.clone());
            }
        }
        if self.points.last().is_none_or(|last| last.steps >= self.stride) {
            if self.points.len() >= MAX_POINTS {
                self.merge(line);
            }
            let (loss, lr) = (Mean::default(), Mean::default());
            self.points.push(Point {
                step: step.step,
                line,
                steps: 0,
                loss,
                lr,
                terms: Vec::new(),
            });
        }
        let Some(point) = self.points.last_mut() else { return };
        (point.step, point.line) = (step.step, line);
        point.steps += 1;
        point.loss.add(step.loss);
        point.lr.add(Some(step.lr));
        point.terms.resize(self.terms.len(), Mean::default());
        for (mean, term) in point.terms.iter_mut().zip(&self.terms) {
            mean.add(step.losses.get(term).copied());
        }
    }

    /// Joins pairs of points.
    fn merge(&mut self, line: u64) {
        let merged = self.points.chunks(2).map(|pair| {
            let mut first = pair[0].clone();
            for other in &pair[1..] {
                (first.step, first.line) = (other.step, other.line);
                first.steps += other.steps;
                first.loss.merge(other.loss);
                first.lr.merge(other.lr);
                first.terms.resize(other.terms.len().max(first.terms.len()), Mean::default());
                first
                    .terms
                    .iter_mut()
                    .zip(&other.terms)
                    .for_each(|(mean, other)| mean.merge(*other));
            }
            first
        });
        self.points = merged.collect();
        self.stride *= 2;
        self.merged_at = line;
    }

    /// The points that a reader of the ledger's first `lines` lines lacks, and from which index on
    /// they replace its own; `None`: it lacks none.
    pub(super) fn since(&self, lines: u64) -> Option<Value> {
        let from = match lines < self.merged_at {
            true => 0,
            false => self.points.partition_point(|point| point.line <= lines),
        };
        // A point that has grown since is sent again.
        let new = self.points.get(from..).filter(|new| !new.is_empty())?;
        let column =
            |value: &dyn Fn(&Point) -> Value| new.iter().map(value).collect::<Vec<Value>>();
        let mut terms = Map::new();
        for (index, term) in self.terms.iter().enumerate() {
            let mean = |point: &Point| point.terms.get(index).copied().unwrap_or_default().json();
            terms.insert(term.clone(), column(&mean).into());
        }
        Some(json!({
            "from": from,
            "stride": self.stride,
            "step": column(&|point| point.step.into()),
            "loss": column(&|point| point.loss.json()),
            "lr": column(&|point| point.lr.json()),
            "terms": terms,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn line(step: u64) -> StepLine {
        StepLine {
            stage: "supcon".into(),
            epoch: 0,
            step,
            generation: 1,
            world_size: 1,
            loss: Some(step as f64),
            losses: BTreeMap::from([("supcon".into(), step as f64)]),
            lr: 0.5,
            images: 8,
            samples_sha256: String::new(),
            skipped: None,
        }
    }

    fn numbers(json: &Value) -> Vec<f64> {
        json.as_array()
            .expect("a list")
            .iter()
            .map(|number| number.as_f64().expect("a number"))
            .collect()
    }

    /// What a reader has after it took what it lacked.
    fn apply(has: &mut Vec<f64>, series: &Series, lines: u64) {
        if let Some(new) = series.since(lines) {
            has.truncate(new["from"].as_u64().expect("an index") as usize);
            has.extend(numbers(&new["loss"]));
        }
    }

    #[test]
    fn a_reader_that_reads_now_and_then_has_what_one_has_that_begins_now() {
        let mut series = Series::new();
        let (mut often, mut seldom) = (Vec::new(), Vec::new());
        let (mut often_at, mut seldom_at) = (0, 0);
        for step in 0..20_000 {
            series.push(&line(step), step + 1);
            if step % 7 == 0 {
                apply(&mut often, &series, often_at);
                often_at = step + 1;
            }
            if step % 1999 == 0 {
                apply(&mut seldom, &series, seldom_at);
                seldom_at = step + 1;
            }
        }
        let mut new = Vec::new();
        apply(&mut new, &series, 0);
        apply(&mut often, &series, often_at);
        apply(&mut seldom, &series, seldom_at);
        assert!(new.len() <= MAX_POINTS && new.len() > MAX_POINTS / 2, "{} points", new.len());
        assert_eq!((&often, &seldom), (&new, &new));
        assert_eq!(new[0], 15.5, "the mean of steps 0 to 31");
        assert_eq!(series.since(20_000), None);
    }

    #[test]
    fn a_short_series_has_every_step_and_gaps_where_a_loss_is_not_finite() {
        let mut series = Series::new();
        series.push(&line(0), 1);
        series.push(&StepLine { loss: None, losses: BTreeMap::new(), ..line(1) }, 2);
        series.push(&StepLine { losses: BTreeMap::from([("new".into(), 3.0)]), ..line(2) }, 3);
        let all = series.since(0).expect("three points");
        assert_eq!(all["loss"], json!([0.0, null, 2.0]));
        assert_eq!(all["terms"], json!({"supcon": [0.0, null, null], "new": [null, null, 3.0]}));
        assert_eq!((&all["step"], &all["stride"]), (&json!([0, 1, 2]), &json!(1)));
        let last = series.since(2).expect("one point");
        assert_eq!((&last["from"], &last["step"]), (&json!(2), &json!([2])));
    }
}
