//! The rows of a run, read from its ledger while it is written: each committed step once, with the
//! evaluation after it and, at the end of a stage, what its model shows on the test images. A
//! ledger that was cut for a resume is read again; rows that were delivered are skipped, since
//! their steps are made again to the bit.

use crate::run_dir::ledger::StepLine;
use crate::telemetry::tail::Tail;
use serde_json::Value;
use std::collections::HashMap;
use std::io;
use std::path::Path;
use thanos_formats::{EVENTS_JSONL, STEPS_JSONL};

const VALIDATION_ACCURACY: &str = "validation/accuracy";
/// Fields of the event `stage_complete`, and the names of their values.
const MEASURES: [(&str, &str); 6] = [
    ("coarse_test_accuracy", "test/coarse_accuracy"),
    ("knn_fine_accuracy", "test/knn_fine_accuracy"),
    ("fine_test_accuracy", "test/fine_accuracy"),
    ("cosine_between_views", "collapse/views"),
    ("cosine_within_coarse", "collapse/coarse"),
    ("cosine_within_fine", "collapse/fine"),
];
/// Bytes of a file that are read at a time.
const MAX_READ_BYTES: u64 = 1 << 20;

/// A committed step.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Row {
    /// Counted over all stages, from 0.
    pub(super) index: u64,
    pub(super) step: StepLine,
    /// A share, if the stage was evaluated after this step.
    pub(super) validation_accuracy: Option<f64>,
    /// Of the complete stage, if this is its last step.
    pub(super) measures: Vec<(String, f64)>,
}

impl Row {
    /// Its numbers, without the name of its stage.
    pub(super) fn values(&self) -> Vec<(String, f64)> {
        [self.step_values(), self.later_values()].concat()
    }

    /// Those that are known with the step.
    pub(super) fn step_values(&self) -> Vec<(String, f64)> {
        let StepLine { loss, losses, lr, .. } = &self.step;
        let total = loss.map(|loss| ("loss/total".to_owned(), loss));
        let terms = losses.iter().map(|(term, loss)| (format!("loss/{term}"), *loss));
        total.into_iter().chain([("learning_rate".to_owned(), *lr)]).chain(terms).collect()
    }

    /// Those that are measured after it. A run that ends before may have them after its resume:
    /// then its last row is offered again.
    pub(super) fn later_values(&self) -> Vec<(String, f64)> {
        let accuracy =
            self.validation_accuracy.map(|accuracy| (VALIDATION_ACCURACY.to_owned(), accuracy));
        accuracy.into_iter().chain(self.measures.iter().cloned()).collect()
    }
}

/// Reads the ledger of a run.
pub(super) struct Feed {
    steps: Tail,
    events: Tail,
    /// Validation accuracy by stage and epoch.
    evaluated: HashMap<(String, u64), f64>,
    /// What complete stages measured.
    measured: HashMap<String, Vec<(String, f64)>>,
    /// The last step that was read: whether it is evaluated is known from what follows.
    held: Option<StepLine>,
    /// Of the row that it will be.
    index: u64,
}

impl Feed {
    pub(super) fn new(run_dir: &Path) -> Self {
        let tail = |name: &str| Tail::new(run_dir.join(name), MAX_READ_BYTES);
        Self {
            steps: tail(STEPS_JSONL),
            events: tail(EVENTS_JSONL),
            evaluated: HashMap::new(),
            measured: HashMap::new(),
            held: None,
            index: 0,
        }
    }

    /// The next rows from `first` on, at most so many and those of one more read; none if the
    /// ledger has no more. The last step of the ledger is among them only if the run has ended.
    ///
    /// # Errors
    /// If the ledger cannot be read.
    pub(super) fn rows(
        &mut self,
        first: u64,
        limit: usize,
        has_ended: bool,
    ) -> io::Result<Vec<Row>> {
        let mut rows = Vec::new();
        while rows.len() < limit {
            let growth = self.steps.read()?;
            if growth.replaced {
                (self.held, self.index) = (None, 0);
            }
            // After the steps: each evaluation before one of them is there.
            self.read_evaluations()?;
            if growth.text.is_empty() {
                break;
            }
            for line in growth.text.lines() {
                let step: StepLine = serde_json::from_str(line)?;
                let next = (step.stage.clone(), step.epoch);
                let row = self.held.replace(step).map(|held| self.row(held, Some(&next)));
                rows.extend(row.filter(|row| row.index >= first));
            }
        }
        if has_ended && rows.len() < limit {
            let row = self.held.take().map(|held| self.row(held, None));
            rows.extend(row.filter(|row| row.index >= first));
        }
        Ok(rows)
    }

    /// `next`: stage and epoch of the step after it, if there is one.
    fn row(&mut self, step: StepLine, next: Option<&(String, u64)>) -> Row {
        let place = (step.stage.clone(), step.epoch);
        let accuracy = self.evaluated.get(&place).copied();
        let validation_accuracy = accuracy.filter(|_| next.is_none_or(|next| *next != place));
        let measures = self.measured.get(&step.stage);
        let measures = measures.filter(|_| next.is_none_or(|(stage, _)| *stage != step.stage));
        let (index, measures) = (self.index, measures.cloned().unwrap_or_default());
        self.index += 1;
        Row { index, step, validation_accuracy, measures }
    }

    fn read_evaluations(&mut self) -> io::Result<()> {
        loop {
            let growth = self.events.read()?;
            if growth.text.is_empty() {
                return Ok(());
            }
            for line in growth.text.lines() {
                let event: Value = serde_json::from_str(line)?;
                let Some(stage) = event["stage"].as_str().map(str::to_owned) else { continue };
                match (
                    event["event"].as_str(),
                    event["epoch"].as_u64(),
                    event["validation_accuracy"].as_f64(),
                ) {
                    (Some("evaluated"), Some(epoch), Some(accuracy)) => {
                        // If the stage was complete, it makes more steps now.
                        self.measured.remove(&stage);
                        self.evaluated.insert((stage, epoch), accuracy);
                    }
                    (Some("stage_complete"), ..) => {
                        let measure = |(field, name): (&str, &str)| {
                            Some((name.to_owned(), event[field].as_f64()?))
                        };
                        let measures = MEASURES.into_iter().filter_map(measure);
                        self.measured.insert(stage, measures.collect());
                    }
                    _ => {}
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::test_step;
    use crate::run_dir::ledger::Ledger;
    use serde_json::json;
    use thanos_proto::StepDone;

    /// Two steps an epoch.
    fn step(stage: &str, step: u64) -> StepDone {
        StepDone { epoch: step / 2, loss: step as f64, ..test_step(stage, step, 1) }
    }

    fn shown(rows: &[Row]) -> Vec<(u64, u64, Option<f64>)> {
        rows.iter().map(|row| (row.index, row.step.step, row.validation_accuracy)).collect()
    }

    #[test]
    fn each_step_is_a_row_once_with_its_evaluation_also_after_a_cut() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut feed = Feed::new(folder.path());
        assert_eq!(feed.rows(0, 9, false).expect("no ledger yet"), []);
        let mut ledger = Ledger::open(folder.path()).expect("new");
        let evaluated =
            |epoch: u64| json!({"stage": "a", "epoch": epoch, "validation_accuracy": 0.5});
        for number in 0..4 {
            ledger.step(&step("a", number)).expect("written");
        }
        ledger.event("evaluated", &evaluated(0)).expect("written");
        assert_eq!(
            shown(&feed.rows(0, 9, false).expect("read")),
            [(0, 0, None), (1, 1, Some(0.5)), (2, 2, None)]
        );
        ledger.event("evaluated", &evaluated(1)).expect("written");
        ledger.cut(|line| line.step < 3).expect("cut");
        // An evaluation of steps that are made again is not that of an earlier one.
        assert_eq!(feed.rows(3, 9, false).expect("read"), []);
        for number in 3..5 {
            ledger.step(&step("a", number)).expect("written");
        }
        assert_eq!(shown(&feed.rows(3, 9, false).expect("read")), [(3, 3, Some(0.5))]);
        let complete =
            json!({"stage": "a", "coarse_test_accuracy": 0.75, "fine_test_accuracy": null});
        ledger.event("stage_complete", &complete).expect("written");
        ledger.step(&step("b", 0)).expect("written");
        let rows = feed.rows(4, 9, true).expect("read");
        assert_eq!(shown(&rows), [(4, 4, None), (5, 0, None)]);
        assert_eq!(rows[0].later_values(), [("test/coarse_accuracy".to_owned(), 0.75)]);
        assert_eq!(feed.rows(6, 9, true).expect("read"), []);
        // Another coordinator begins at the start, and skips what the tracker has.
        assert_eq!(
            shown(&Feed::new(folder.path()).rows(5, 9, true).expect("read")),
            [(5, 0, None)]
        );
    }
}
