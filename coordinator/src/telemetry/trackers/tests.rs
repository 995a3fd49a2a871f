//! A tracker between a ledger that grows and a sink that fails, or takes a part.

use super::*;
use crate::run::test_step;
use crate::run_dir::ledger::{Ledger, StepLine};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Mutex;
use thanos_proto::StepDone;

/// The row of a step of stage `cae`.
pub(super) fn row(index: u64) -> Row {
    let losses = BTreeMap::from([("cosine".into(), 0.5)]);
    let step = StepLine::from(StepDone { losses, ..test_step("cae", index, 1) });
    Row { index, step, validation_accuracy: None, measures: Vec::new() }
}

/// What a sink was given: the index of each row, and whether it was evaluated.
type Taken = Arc<Mutex<Vec<(u64, bool)>>>;

/// Takes two rows at a time, and fails at every third call.
struct Moody {
    taken: Taken,
    calls: u64,
}

impl Sink for Moody {
    fn name(&self) -> &'static str {
        "moody"
    }

    fn next_row(&self) -> u64 {
        self.taken.lock().expect("no panic").len() as u64
    }

    fn write(&mut self, rows: &[Row]) -> io::Result<()> {
        self.calls += 1;
        if self.calls.is_multiple_of(3) {
            return Err(io::Error::other("no"));
        }
        let rows = rows.iter().take(2).map(|row| (row.index, row.validation_accuracy.is_some()));
        self.taken.lock().expect("no panic").extend(rows);
        Ok(())
    }

    fn finish(&mut self, _ending: &Ending) -> io::Result<()> {
        Ok(())
    }
}

/// The last row of a run that failed is delivered, with its evaluation if there is one.
#[test]
fn each_row_is_taken_once_by_a_sink_that_fails_and_takes_parts() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut ledger = Ledger::open(folder.path()).expect("new");
    for number in 0..9 {
        ledger.step(&test_step("a", number, 1)).expect("written");
    }
    let evaluated =
        json!({"stage": "a", "epoch": test_step("a", 8, 1).epoch, "validation_accuracy": 0.5});
    ledger.event("evaluated", &evaluated).expect("written");
    let taken = Taken::default();
    let (run_dir, feed) = (folder.path().to_owned(), Feed::new(folder.path()));
    let sink = Box::new(Moody { taken: taken.clone(), calls: 0 });
    let tracker = Tracker {
        run_dir,
        sink,
        feed,
        rows: Vec::new(),
        has_failed: false,
        taken: Arc::new(AtomicU64::new(0)),
    };
    assert!(tracker.finish(&Ending::Failed(70)));
    let expected: Vec<(u64, bool)> = (0..9).map(|index| (index, index == 8)).collect();
    assert_eq!(*taken.lock().expect("no panic"), expected);
}

#[test]
fn a_configuration_is_flat_and_its_lists_are_whole() {
    let keys = config_keys(&RunConfig::default());
    let value =
        |name: &str| keys.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
    assert_eq!(value("log.wandb.tags"), Some(json!([])));
    assert_eq!(value("train.schedule"), Some(json!("cosine")));
    assert_eq!(value("train"), None);
}
