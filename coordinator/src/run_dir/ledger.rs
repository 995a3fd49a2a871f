//! The ledger of a run: `steps.jsonl`, one line a committed step, and `events.jsonl`, one line per
//! event. It is what a run can be checked by, so it never holds a step twice: what a resumed run
//! will redo is cut off first. How lines reach the disk is `lines.rs`.

mod lines;

use crate::exit::{EXIT_DATA, EXIT_IO, Fatal};
use crate::run_dir::write_durably;
use lines::Lines;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};
use thanos_formats::{EVENTS_JSONL, STEPS_JSONL};
use thanos_proto::StepDone;

/// One committed step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepLine {
    pub stage: String,
    pub epoch: u64,
    /// Counted over the stage, from 0.
    pub step: u64,
    pub generation: u64,
    pub world_size: u32,
    /// The weighted sum of `losses`; null if it is non-finite.
    pub loss: Option<f64>,
    /// The finite ones.
    pub losses: BTreeMap<String, f64>,
    pub lr: f64,
    /// Images of the global batch.
    pub images: u64,
    /// SHA-256 over the sorted sample ids as little-endian u64.
    pub samples_sha256: String,
    /// There if the update was skipped, and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skipped: Option<String>,
}

impl From<StepDone> for StepLine {
    fn from(step: StepDone) -> Self {
        Self {
            stage: step.stage,
            epoch: step.epoch,
            step: step.step,
            generation: step.generation,
            world_size: step.world_size,
            loss: step.loss.is_finite().then_some(step.loss),
            losses: step.losses.into_iter().filter(|(_, loss)| loss.is_finite()).collect(),
            lr: step.lr,
            images: step.images,
            samples_sha256: step.samples_sha256,
            skipped: step.skipped,
        }
    }
}

/// The two files, open for appending.
#[derive(Debug)]
pub(crate) struct Ledger {
    path: PathBuf,
    steps: Lines,
    events: Lines,
}

impl Ledger {
    /// Opens the files of a run directory, or makes them. A last line that a crash cut off is
    /// removed.
    ///
    /// # Errors
    /// 74, naming the file.
    pub(crate) fn open(run_dir: &Path) -> Result<Self, Fatal> {
        let lines = |name: &str| {
            let path = run_dir.join(name);
            Lines::open(&path).map_err(|error| {
                Fatal::new(EXIT_IO, format!("cannot open {}: {error}", path.display()))
            })
        };
        Ok(Self { path: run_dir.into(), steps: lines(STEPS_JSONL)?, events: lines(EVENTS_JSONL)? })
    }

    /// Cuts the steps down to those that `keep` answers yes to.
    ///
    /// # Errors
    /// If the file cannot be read or written, naming it; it is the old one or the new one.
    pub(crate) fn cut(&mut self, keep: impl Fn(&StepLine) -> bool) -> io::Result<()> {
        self.steps.sync()?;
        let mut text = String::new();
        for line in
            read_steps(&self.path).map_err(io::Error::other)?.iter().filter(|line| keep(line))
        {
            text.push_str(&serde_json::to_string(line).expect("a step is always JSON"));
            text.push('\n');
        }
        write_durably(&self.path.join(STEPS_JSONL), text.as_bytes()).map_err(io::Error::other)?;
        self.steps = Lines::open(&self.path.join(STEPS_JSONL))?;
        Ok(())
    }

    /// Appends one step.
    ///
    /// # Errors
    /// Naming the file, which is as it was before.
    pub(crate) fn step(&mut self, step: &StepDone) -> io::Result<()> {
        self.steps.append(
            serde_json::to_string(&StepLine::from(step.clone())).expect("a step is always JSON"),
        )
    }

    /// Returns when all lines are durable.
    ///
    /// # Errors
    /// Naming the file; the lines are kept, and written again the next time.
    pub(crate) fn sync(&mut self) -> io::Result<()> {
        self.steps.sync()?;
        self.events.sync()
    }

    /// Appends one event with the time, in seconds since 1970, and its fields.
    ///
    /// # Errors
    /// Naming the file, which is as it was before.
    pub(crate) fn event(&mut self, kind: &str, fields: &Value) -> io::Result<()> {
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis()
            as f64
            / 1e3;
        let mut line = json!({ "time": time, "event": kind });
        if let (Value::Object(line), Value::Object(fields)) = (&mut line, fields) {
            line.extend(fields.clone());
        }
        self.events.append(line.to_string())
    }
}

/// All committed steps of a run directory, in order; none if it has no ledger yet. A last line that
/// a crash cut off is skipped.
///
/// # Errors
/// 65, naming the line that is malformed.
pub fn read_steps(run_dir: &Path) -> Result<Vec<StepLine>, Fatal> {
    let path = run_dir.join(STEPS_JSONL);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => {
            return Err(Fatal::new(EXIT_DATA, format!("cannot read {}: {error}", path.display())));
        }
    };
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let read = |(index, line): (usize, &str)| {
        serde_json::from_str(line).map_err(|error| {
            Fatal::new(
                EXIT_DATA,
                format!("{}, line {}: not a step: {error}", path.display(), index + 1),
            )
        })
    };
    whole.lines().enumerate().map(read).collect()
}

/// The greatest generation that a run directory has seen begin.
///
/// # Errors
/// 65, naming the line of `events.jsonl` that is malformed.
pub(crate) fn last_generation(run_dir: &Path) -> Result<u64, Fatal> {
    let generations = events(run_dir)?.into_iter().filter_map(|event| event["generation"].as_u64());
    Ok(generations.max().unwrap_or(0))
}

/// Workers of the newest generation, by name, unless the run has ended since: they may still hold
/// its state.
///
/// # Errors
/// As [`last_generation`].
pub(crate) fn workers_of_last_generation(run_dir: &Path) -> Result<Vec<String>, Fatal> {
    let mut workers = Vec::new();
    for event in events(run_dir)? {
        match event["event"].as_str() {
            Some("began") => {
                let ranks = event["ranks"].as_array().into_iter().flatten();
                workers = ranks.filter_map(|worker| worker.as_str().map(Into::into)).collect();
            }
            Some("ended") => workers.clear(),
            _ => {}
        }
    }
    Ok(workers)
}

/// The whole lines of `events.jsonl`.
pub(crate) fn events(run_dir: &Path) -> Result<Vec<Value>, Fatal> {
    let path = run_dir.join(EVENTS_JSONL);
    let text = fs::read_to_string(&path).unwrap_or_default();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let read = |(index, line): (usize, &str)| {
        serde_json::from_str(line).map_err(|error| {
            Fatal::new(
                EXIT_DATA,
                format!("{}, line {}: not an event: {error}", path.display(), index + 1),
            )
        })
    };
    whole.lines().enumerate().map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(stage: &str, step: u64, generation: u64) -> StepDone {
        StepDone {
            stage: stage.into(),
            step,
            generation,
            world_size: 2,
            loss: 0.1 + 0.2,
            losses: BTreeMap::from([("cross_entropy".into(), 1.0 / 3.0)]),
            lr: 1e-3,
            images: 128,
            samples_sha256: "00".into(),
            total_steps: 9,
            ..StepDone::default()
        }
    }

    #[test]
    fn a_non_finite_loss_is_null() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut ledger = Ledger::open(folder.path()).expect("new");
        let skipped = Some("the loss is non-finite".to_owned());
        ledger
            .step(&StepDone { loss: f64::NAN, skipped: skipped.clone(), ..step("a", 0, 1) })
            .expect("written");
        let lines = read_steps(folder.path()).expect("whole");
        assert_eq!((lines[0].loss, &lines[0].skipped), (None, &skipped));
    }

    #[test]
    fn the_last_generation_is_the_last_that_began() {
        let folder = tempfile::tempdir().expect("a folder");
        assert_eq!(last_generation(folder.path()).expect("none yet"), 0);
        let mut ledger = Ledger::open(folder.path()).expect("new");
        ledger.event("began", &json!({"generation": 3})).expect("written");
        ledger.event("lost", &json!({"worker": "worker-0"})).expect("written");
        assert_eq!(last_generation(folder.path()).expect("whole"), 3);
    }

    #[test]
    fn cut_steps_are_removed_and_the_rest_is_bit_identical() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut ledger = Ledger::open(folder.path()).expect("new");
        for (stage, number) in [("a", 0), ("a", 1), ("b", 0), ("b", 1)] {
            ledger.step(&step(stage, number, 3)).expect("written");
        }
        let before = read_steps(folder.path()).expect("whole");
        ledger.cut(|line| line.stage == "a" || line.step < 1).expect("cut");
        assert_eq!(read_steps(folder.path()).expect("whole"), before[..3]);
        ledger.step(&step("b", 1, 3)).expect("written");
        assert_eq!(read_steps(folder.path()).expect("whole"), before);
    }

    #[test]
    fn a_torn_last_line_is_skipped_and_a_wrong_one_reported() {
        let folder = tempfile::tempdir().expect("a folder");
        assert_eq!(read_steps(folder.path()).expect("nothing yet"), []);
        Ledger::open(folder.path()).expect("new").step(&step("a", 0, 1)).expect("written");
        let path = folder.path().join("steps.jsonl");
        let whole = fs::read_to_string(&path).expect("written");
        fs::write(&path, format!("{whole}{}", &whole[..20])).expect("written");
        assert_eq!(read_steps(folder.path()).expect("one whole line").len(), 1);
        Ledger::open(folder.path()).expect("new").step(&step("a", 1, 1)).expect("written");
        assert_eq!(read_steps(folder.path()).expect("two whole lines").len(), 2);
        fs::write(&path, format!("{whole}{{}}\n")).expect("written");
        let fatal = read_steps(folder.path()).expect_err("line 2 is no step");
        assert!(fatal.exit_code == EXIT_DATA && fatal.message.contains("line 2"), "{fatal}");
    }

    #[test]
    fn events_have_a_time_and_their_fields() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut ledger = Ledger::open(folder.path()).expect("new");
        ledger.event("joined", &json!({"worker": "worker-0"})).expect("written");
        let text = fs::read_to_string(folder.path().join("events.jsonl")).expect("written");
        let line: Value = serde_json::from_str(&text).expect("one line of JSON");
        assert_eq!((&line["event"], &line["worker"]), (&json!("joined"), &json!("worker-0")));
        assert!(line["time"].as_f64().is_some_and(|time| time > 1.7e9));
    }
}
