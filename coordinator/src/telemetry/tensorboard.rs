//! TensorBoard's event files of a run: the series of the ledger and of the evaluations, one folder per stage.
//!
//! Each coordinator of a run writes files of its own. TensorBoard puts them together: a file that begins again at an
//! earlier step says so (`SessionLog::START`), and what was at that step and after it is dropped. A step is written
//! here before it is in the ledger, in one call, so that none is missing and none is there twice. The format is that of
//! TensorFlow's `core/util/event.proto` and `core/lib/io/record_writer.h`.

use crate::exit::Fatal;
use crate::run::{Effect, Notice};
use crate::run_dir::host;
use crate::run_dir::ledger::{read_steps, was_evaluated};
use crate::telemetry::metrics::now;
use prost::Message;
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use thanos_proto::{Evaluated, StageResult, StepDone};

#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(oneof = "What", tags = "3, 5, 7")]
    what: Option<What>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum What {
    #[prost(string, tag = "3")]
    FileVersion(String),
    #[prost(message, tag = "5")]
    Summary(Summary),
    #[prost(message, tag = "7")]
    SessionLog(SessionLog),
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Value>,
}

#[derive(Clone, PartialEq, Message)]
struct Value {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, tag = "2")]
    simple_value: f32,
}

#[derive(Clone, PartialEq, Message)]
struct SessionLog {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// What the names of event files begin with.
const PREFIX: &str = "events.out.tfevents.";
/// `SessionLog.SessionStatus.START`.
const START: i32 = 1;

/// The event files of a run.
pub(crate) struct TensorBoard {
    run_dir: PathBuf,
    folder: PathBuf,
    stages: HashMap<String, StageCurves>,
    /// Nothing could be written: reported once, then given up.
    failed: bool,
}

#[derive(Default)]
struct StageCurves {
    /// That this coordinator has begun.
    file: Option<File>,
    /// Steps that the files have, and after how many of them there is an evaluation.
    steps: i64,
    evaluated: Option<i64>,
}

impl TensorBoard {
    /// Continues after the last step of the ledger.
    ///
    /// # Errors
    /// 65 if the ledger is damaged.
    pub(crate) fn open(run_dir: &Path) -> Result<Self, Fatal> {
        let Some(last) = read_steps(run_dir)?.pop() else { return Ok(Self::new(run_dir, None)) };
        let steps = last.step as i64 + 1;
        let evaluated = was_evaluated(run_dir, &last.stage, last.epoch)?.then_some(steps);
        Ok(Self::new(run_dir, Some((last.stage, StageCurves { steps, evaluated, ..StageCurves::default() }))))
    }

    fn new(run_dir: &Path, last: Option<(String, StageCurves)>) -> Self {
        let (run_dir, folder) = (run_dir.into(), run_dir.join("tensorboard"));
        Self { run_dir, folder, stages: last.into_iter().collect(), failed: false }
    }

    /// Something is about to be done. A disk that is full costs the files, not the run.
    pub(crate) fn on_effect(&mut self, effect: &Effect) {
        if self.failed {
            return;
        }
        let written = match effect {
            Effect::Record(step) => self.step(step),
            Effect::Notify(Notice::Evaluated(evaluated)) => self.evaluated(evaluated),
            Effect::Notify(Notice::StageComplete(result)) => {
                self.after_last_step(&result.stage, measures(result)).map(drop)
            }
            _ => Ok(()),
        };
        if let Err(error) = written {
            self.failed = true;
            tracing::warn!("TensorBoard output has stopped: {}: {error}", self.folder.display());
        }
    }

    fn step(&mut self, done: &StepDone) -> io::Result<()> {
        let values = series(Some(("loss/total".into(), done.loss)), done.losses.clone(), done.lr);
        let step = i64::try_from(done.step).map_err(io::Error::other)?;
        let stage = self.stage(&done.stage, step)?;
        if step != stage.steps {
            stage.begin_again(step)?;
        }
        stage.steps = step + 1;
        stage.write(step, summary(values))
    }

    fn evaluated(&mut self, evaluated: &Evaluated) -> io::Result<()> {
        let stage = self.stages.entry(evaluated.stage.clone()).or_default();
        // Reported again, as the rank that evaluated was lost; it is bit-identical.
        if stage.evaluated == Some(stage.steps) {
            return Ok(());
        }
        let accuracy = ("validation/accuracy".into(), evaluated.validation_accuracy);
        let stage = self.after_last_step(&evaluated.stage, vec![accuracy])?;
        stage.evaluated = Some(stage.steps);
        Ok(())
    }

    /// For the state after the last step, and at that step: a restarted coordinator begins after it.
    fn after_last_step(&mut self, stage: &str, values: Vec<(String, f64)>) -> io::Result<&mut StageCurves> {
        let steps = self.stages.get(stage).map_or(0, |stage| stage.steps);
        let stage = self.stage(stage, steps)?;
        stage.write((steps - 1).max(0), summary(values))?;
        Ok(stage)
    }

    /// The file of a stage; a new one begins at this step.
    fn stage(&mut self, name: &str, step: i64) -> io::Result<&mut StageCurves> {
        let stage = self.stages.entry(name.into()).or_default();
        if stage.file.is_none() {
            let folder = self.folder.join(name);
            fs::create_dir_all(&folder)?;
            let names = names(&folder)?;
            let new = folder.join(file_name(now() as u64, &names));
            let number = names.len();
            stage.file = Some(File::options().append(true).create_new(true).open(new)?);
            stage.steps = step;
            stage.write(0, What::FileVersion("brain.Event:2".into()))?;
            if number == 0 && step > 0 {
                // Not requested before: the content of the ledger, with the current time.
                let lines = read_steps(&self.run_dir).map_err(io::Error::other)?;
                for line in lines.into_iter().filter(|line| line.stage == name && (line.step as i64) < step) {
                    let total = line.loss.map(|loss| ("loss/total".to_owned(), loss));
                    stage.write(line.step as i64, summary(series(total, line.losses, line.lr)))?;
                }
            }
            stage.begin_again(step)?;
        }
        Ok(stage)
    }
}

impl StageCurves {
    /// What is known of this step and of later ones is over.
    fn begin_again(&mut self, step: i64) -> io::Result<()> {
        self.evaluated = None;
        self.write(step, What::SessionLog(SessionLog { status: START }))
    }

    /// In one call: a process that is killed has written all of it, or nothing.
    fn write(&mut self, step: i64, what: What) -> io::Result<()> {
        let event = Event { wall_time: now(), step, what: Some(what) };
        self.file.as_mut().map_or(Ok(()), |file| file.write_all(&record(&event.encode_to_vec())))
    }
}

/// Names of the files in a folder.
fn names(folder: &Path) -> io::Result<Vec<String>> {
    fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

/// `events.out.tfevents.SECONDS.HOST.PID.N`, as TensorFlow's and PyTorch's writers name their files: other readers take the
/// seconds for the start, and the next part for the host. Files are read in the order of their names, so a new one is later
/// than those before it by a second at least.
fn file_name(now_seconds: u64, before: &[String]) -> String {
    let started = |name: &String| name.strip_prefix(PREFIX)?.split('.').next()?.parse::<u64>().ok();
    let seconds = before.iter().filter_map(started).map(|start| start + 1).fold(now_seconds, u64::max);
    format!("{PREFIX}{seconds:010}.{}.{}.{}", host(), std::process::id(), before.len())
}

/// The values of a step.
fn series(total: Option<(String, f64)>, losses: BTreeMap<String, f64>, lr: f64) -> Vec<(String, f64)> {
    let terms = losses.into_iter().map(|(term, loss)| (format!("loss/{term}"), loss));
    total.into_iter().chain([("learning_rate".into(), lr)]).chain(terms).collect()
}

fn summary(values: Vec<(String, f64)>) -> What {
    let value = values.into_iter().map(|(tag, value)| Value { tag, simple_value: value as f32 }).collect();
    What::Summary(Summary { value })
}

/// What a complete stage has shown on the test images.
fn measures(result: &StageResult) -> Vec<(String, f64)> {
    let mut values = vec![
        ("test/coarse_accuracy", result.coarse_test_accuracy),
        ("test/knn_fine_accuracy", result.knn_fine_accuracy),
        ("collapse/views", result.cosine_between_views),
    ];
    values.extend(result.cosine_within_coarse.map(|cosine| ("collapse/coarse", cosine)));
    values.extend(result.cosine_within_fine.map(|cosine| ("collapse/fine", cosine)));
    values.extend(result.fine_test_accuracy.map(|accuracy| ("test/fine_accuracy", accuracy)));
    values.into_iter().map(|(tag, value)| (tag.into(), value)).collect()
}

/// A record of a TFRecord file: length, its checksum, content, its checksum.
fn record(content: &[u8]) -> Vec<u8> {
    let length = (content.len() as u64).to_le_bytes();
    [&length[..], &masked(&length), content, &masked(content)].concat()
}

/// CRC-32C as the format has it, rotated and moved: a plain checksum of data that contains checksums is weak.
fn masked(bytes: &[u8]) -> [u8; 4] {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::test_step;

    #[test]
    fn a_record_is_that_of_the_format() {
        // The first record of every file of TensorFlow 2 that begins at time 0.
        let event = Event { wall_time: 0.0, step: 0, what: Some(What::FileVersion("brain.Event:2".into())) };
        let bytes = record(&event.encode_to_vec());
        assert_eq!(bytes[..8], 15_u64.to_le_bytes());
        assert_eq!(&bytes[12..27], b"\x1a\x0dbrain.Event:2");
        // RFC 3720, B.4: 32 bytes of zeroes.
        assert_eq!(crc32c::crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(masked(&[0; 32]), (0x8a91_36aa_u32.rotate_right(15).wrapping_add(0xa282_ead8)).to_le_bytes());
    }

    /// What a reader has in the end: (tag, step) in the order of the files, forgotten where one begins again.
    fn read(folder: &Path) -> Vec<(String, i64)> {
        let mut files: Vec<PathBuf> =
            fs::read_dir(folder).expect("a folder").map(|one| one.expect("a file").path()).collect();
        files.sort();
        let mut seen: Vec<(String, i64)> = Vec::new();
        for file in files {
            let bytes = fs::read(file).expect("readable");
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let length = u64::from_le_bytes(rest[..8].try_into().expect("eight")) as usize;
                assert_eq!(rest[8..12], masked(&rest[..8]));
                let content = &rest[12..12 + length];
                assert_eq!(rest[12 + length..16 + length], masked(content));
                let event = Event::decode(content).expect("an event");
                match event.what.expect("something") {
                    What::FileVersion(_) => {}
                    What::SessionLog(_) => seen.retain(|(_, step)| *step < event.step),
                    What::Summary(summary) => {
                        seen.extend(summary.value.into_iter().map(|value| (value.tag, event.step)));
                    }
                }
                rest = &rest[16 + length..];
            }
        }
        seen
    }

    fn step(step: u64) -> Effect {
        Effect::Record(StepDone { losses: BTreeMap::from([("cosine".into(), 0.5)]), ..test_step("cae", step, 1) })
    }

    fn evaluated(epoch: u64) -> Effect {
        let (stage, measure) = ("cae".into(), "coarse_head".into());
        Effect::Notify(Notice::Evaluated(Evaluated { stage, epoch, validation_accuracy: 0.5, best: true, measure }))
    }

    #[test]
    fn every_step_is_written_once_after_any_kill() {
        let folder = tempfile::tempdir().expect("a folder");
        // What the ledger has when each of them begins: steps, and after how many of them an evaluation.
        let coordinators: [(i64, Option<i64>, &[Effect]); 4] = [
            // The last one was not in the ledger when it was killed.
            (0, None, &[step(0), step(1), evaluated(0), step(2), step(3)]),
            // Its evaluation is reported twice; then the ledger is cut, and two steps are made again.
            (3, None, &[step(3), evaluated(1), evaluated(1), step(4), step(3), evaluated(1)]),
            // It begins with what the one before it had received and reported already.
            (4, Some(4), &[evaluated(1), step(4)]),
            (5, None, &[step(5)]),
        ];
        for (steps, evaluated, effects) in coordinators {
            let last = StageCurves { steps, evaluated, ..StageCurves::default() };
            let mut board = TensorBoard::new(folder.path(), Some(("cae".into(), last)));
            effects.iter().for_each(|effect| board.on_effect(effect));
            assert!(!board.failed);
        }
        let seen = read(&folder.path().join("tensorboard/cae"));
        for tag in ["loss/total", "loss/cosine", "learning_rate"] {
            let steps: Vec<i64> = seen.iter().filter(|(name, _)| name == tag).map(|(_, step)| *step).collect();
            assert_eq!(steps, [0, 1, 2, 3, 4, 5], "{tag}");
        }
        let accuracy: Vec<_> = seen.iter().filter(|(name, _)| name == "validation/accuracy").collect();
        assert_eq!(accuracy.iter().map(|(_, step)| *step).collect::<Vec<_>>(), [1, 3]);
    }

    #[test]
    fn files_are_named_as_other_readers_expect_and_in_the_order_of_their_starts() {
        let mut names: Vec<String> = vec!["events.out.tfevents.000000".into()];
        for now_seconds in [1_764_186_001, 1_764_186_001, 1_764_100_000] {
            names.push(file_name(now_seconds, &names));
        }
        let mut sorted = names.clone();
        sorted.sort();
        assert_eq!(sorted, names, "also of an earlier version, within a second, and with a clock that was set back");
        let end = format!("{}.{}.1", host(), std::process::id());
        assert_eq!(names[1], format!("events.out.tfevents.1764186001.{end}"));
    }

    #[test]
    fn a_place_that_cannot_be_written_is_left_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("tensorboard"), "a file").expect("written");
        let mut board = TensorBoard::new(folder.path(), None);
        board.on_effect(&step(0));
        assert!(board.failed);
        board.on_effect(&step(1));
    }
}
