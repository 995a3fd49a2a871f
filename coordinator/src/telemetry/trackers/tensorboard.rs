//! TensorBoard's event files of a run: the rows of the ledger, one folder per stage.
//!
//! Each coordinator of a run writes files of its own. TensorBoard puts them together: a file that
//! begins again at an earlier step says so (`SessionLog::START`), and what was at that step and
//! after it is dropped. So a new file begins at the last step of the newest one, unless that is
//! complete, and no step is missing or there twice. After a full disk the file continues where it
//! was. The format is that of TensorFlow's `core/util/event.proto` and
//! `core/lib/io/record_writer.h`.

use super::feed::Row;
use super::{Ending, Sink};
use crate::run_dir::host;
use crate::telemetry::metrics::now;
use prost::Message;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};

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
/// No event of ours is longer.
const MAX_EVENT_BYTES: u64 = 1 << 20;

/// The event files of a run.
pub(super) struct TensorBoard {
    /// `tensorboard` in the run directory.
    folder: PathBuf,
    /// That of the last row.
    stage: Option<Stage>,
    next_row: u64,
}

struct Stage {
    name: String,
    /// The last step that the newest file has, and its values.
    last: Option<Last>,
    /// That this coordinator has begun.
    file: Option<EventFile>,
}

#[derive(Debug, Default, PartialEq)]
struct Last {
    step: i64,
    tags: BTreeSet<String>,
}

struct EventFile {
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl TensorBoard {
    pub(super) fn new(run_dir: &Path) -> Self {
        Self { folder: run_dir.join("tensorboard"), stage: None, next_row: 0 }
    }

    /// Writes rows of one stage.
    fn append(&mut self, name: &str, rows: &[&Row]) -> io::Result<()> {
        let folder = self.folder.join(name);
        if self.stage.as_ref().is_none_or(|stage| stage.name != name) {
            self.stage = Some(Stage { name: name.into(), last: last_of(&folder)?, file: None });
        }
        let Some(stage) = &mut self.stage else { return Ok(()) };
        let missing: Vec<(i64, &Row)> = rows
            .iter()
            .map(|row| (row.step.step as i64, *row))
            .filter(|(step, row)| stage.lacks(*step, row))
            .collect();
        let Some((first, _)) = missing.first() else { return Ok(()) };
        let mut bytes = Vec::new();
        if stage.file.is_none() {
            bytes.extend(event(0, What::FileVersion("brain.Event:2".into())));
            bytes.extend(event(*first, What::SessionLog(SessionLog { status: START })));
        }
        for (step, row) in &missing {
            bytes.extend(event(*step, summary(row.values())));
        }
        match stage.file.as_mut() {
            Some(file) => file.append(&bytes)?,
            None => stage.file = Some(EventFile::create(&folder, &bytes)?),
        }
        stage.last = missing.last().map(|(step, row)| Last { step: *step, tags: tags_of(row) });
        Ok(())
    }
}

impl Sink for TensorBoard {
    fn name(&self) -> &'static str {
        "TensorBoard"
    }

    fn next_row(&self) -> u64 {
        self.next_row
    }

    fn write(&mut self, rows: &[Row]) -> io::Result<()> {
        for rows in rows.chunk_by(|one, other| one.step.stage == other.step.stage) {
            let Some(last) = rows.last() else { continue };
            let name = last.step.stage.clone();
            if let Err(error) = self.append(&name, &rows.iter().collect::<Vec<_>>()) {
                if self.stage.as_ref().is_some_and(Stage::is_torn) {
                    // Another file begins where this one is whole.
                    self.stage = None;
                }
                let folder = self.folder.join(name);
                return Err(io::Error::new(error.kind(), format!("{}: {error}", folder.display())));
            }
            self.next_row = last.index + 1;
        }
        Ok(())
    }

    fn finish(&mut self, _ending: &Ending) -> io::Result<()> {
        Ok(())
    }
}

impl Stage {
    /// Whether a part of an event is left in the file.
    fn is_torn(&self) -> bool {
        let whole =
            |file: &EventFile| file.file.metadata().is_ok_and(|found| found.len() == file.bytes);
        self.file.as_ref().is_some_and(|file| !whole(file))
    }

    /// Whether the files lack this row, or a part of it.
    fn lacks(&self, step: i64, row: &Row) -> bool {
        self.last.as_ref().is_none_or(|last| match step.cmp(&last.step) {
            std::cmp::Ordering::Less => false,
            std::cmp::Ordering::Equal => !tags_of(row).is_subset(&last.tags),
            std::cmp::Ordering::Greater => true,
        })
    }
}

impl EventFile {
    /// A new file with this content; none if it cannot be written.
    fn create(folder: &Path, bytes: &[u8]) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let path = folder.join(file_name(now() as u64, &names(folder)?));
        let file = File::options().append(true).create_new(true).open(&path)?;
        let mut new = Self { path, file, bytes: 0 };
        if let Err(error) = new.append(bytes) {
            fs::remove_file(&new.path)?;
            return Err(error);
        }
        Ok(new)
    }

    /// In one call: a process that is killed has written all of it, or nothing; and so has a disk
    /// that is full.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Err(error) = self.file.write_all(bytes) {
            self.file.set_len(self.bytes)?;
            return Err(error);
        }
        self.bytes += bytes.len() as u64;
        Ok(())
    }
}

fn tags_of(row: &Row) -> BTreeSet<String> {
    row.values().into_iter().map(|(tag, _)| tag).collect()
}

/// What the newest file of a stage has; `None`: there is no file.
fn last_of(folder: &Path) -> io::Result<Option<Last>> {
    let mut names = match names(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        names => names?,
    };
    names.retain(|name| name.starts_with(PREFIX));
    names.sort();
    let Some(newest) = names.pop() else { return Ok(None) };
    let mut last = Last::default();
    for event in events(&mut BufReader::new(File::open(folder.join(newest))?)) {
        let tags = match event.what {
            Some(What::Summary(summary)) => {
                summary.value.into_iter().map(|value| value.tag).collect()
            }
            // What was before it is in earlier files.
            Some(What::SessionLog(_)) => BTreeSet::new(),
            _ => continue,
        };
        match event.step == last.step {
            true => last.tags.extend(tags),
            false => last = Last { step: event.step, tags },
        }
    }
    Ok(Some(last))
}

/// The events of a file up to the first that is cut off.
fn events(file: &mut impl Read) -> impl Iterator<Item = Event> {
    std::iter::from_fn(move || {
        let mut head = [0; 12];
        file.read_exact(&mut head).ok()?;
        let [a, b, c, d, e, f, g, h, ..] = head;
        let length = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
        if length > MAX_EVENT_BYTES {
            return None;
        }
        let mut content = vec![0; usize::try_from(length).ok()? + 4];
        file.read_exact(&mut content).ok()?;
        content.truncate(content.len() - 4);
        Event::decode(&content[..]).ok()
    })
}

/// Names of the files in a folder.
fn names(folder: &Path) -> io::Result<Vec<String>> {
    fs::read_dir(folder)?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect()
}

/// `events.out.tfevents.SECONDS.HOST.PID.N`, as TensorFlow's and PyTorch's writers name their
/// files: other readers take the seconds for the start, and the next part for the host. Files are
/// read in the order of their names, so a new one is later than those before it by a second at
/// least.
fn file_name(now_seconds: u64, before: &[String]) -> String {
    let started = |name: &String| name.strip_prefix(PREFIX)?.split('.').next()?.parse::<u64>().ok();
    let seconds =
        before.iter().filter_map(started).map(|start| start + 1).fold(now_seconds, u64::max);
    format!("{PREFIX}{seconds:010}.{}.{}.{}", host(), std::process::id(), before.len())
}

fn summary(values: Vec<(String, f64)>) -> What {
    let value = values.into_iter().map(|(tag, value)| Value { tag, simple_value: value as f32 });
    What::Summary(Summary { value: value.collect() })
}

/// The record of an event.
fn event(step: i64, what: What) -> Vec<u8> {
    record(&Event { wall_time: now(), step, what: Some(what) }.encode_to_vec())
}

/// A record of a TFRecord file: length, its checksum, content, its checksum.
fn record(content: &[u8]) -> Vec<u8> {
    let length = (content.len() as u64).to_le_bytes();
    [&length[..], &masked(&length), content, &masked(content)].concat()
}

/// CRC-32C as the format has it, rotated and moved: a plain checksum of data that contains
/// checksums is weak.
fn masked(bytes: &[u8]) -> [u8; 4] {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::trackers::tests::row;

    #[test]
    fn a_record_is_that_of_the_format() {
        // The first record of every file of TensorFlow 2 that begins at time 0.
        let event = Event {
            wall_time: 0.0,
            step: 0,
            what: Some(What::FileVersion("brain.Event:2".into())),
        };
        let bytes = record(&event.encode_to_vec());
        assert_eq!(bytes[..8], 15_u64.to_le_bytes());
        assert_eq!(&bytes[12..27], b"\x1a\x0dbrain.Event:2");
        // RFC 3720, B.4: 32 bytes of zeroes.
        assert_eq!(crc32c::crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(
            masked(&[0; 32]),
            (0x8a91_36aa_u32.rotate_right(15).wrapping_add(0xa282_ead8)).to_le_bytes()
        );
    }

    /// What a reader has in the end: (tag, step) in the order of the files, forgotten where one
    /// begins again.
    fn read(folder: &Path) -> Vec<(String, i64)> {
        let mut files: Vec<PathBuf> = fs::read_dir(folder)
            .expect("a folder")
            .map(|one| one.expect("a file").path())
            .collect();
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

    #[test]
    fn every_step_is_written_once_after_any_kill() {
        let folder = tempfile::tempdir().expect("a folder");
        let evaluated = |index| Row { validation_accuracy: Some(0.5), ..row(index) };
        // What each coordinator is offered.
        let coordinators = [
            vec![row(0), evaluated(1), row(2), row(3)],
            // All of them again, as it does not know what the files have; the last one has been
            // evaluated since.
            vec![row(0), evaluated(1), row(2), evaluated(3), row(4)],
            vec![row(0), evaluated(1), row(2), evaluated(3), row(4)],
            vec![row(4), row(5)],
        ];
        for rows in coordinators {
            TensorBoard::new(folder.path()).write(&rows).expect("written");
        }
        let stage = folder.path().join("tensorboard/cae");
        let seen = read(&stage);
        for tag in ["loss/total", "loss/cosine", "learning_rate"] {
            let steps: Vec<i64> =
                seen.iter().filter(|(name, _)| name == tag).map(|(_, step)| *step).collect();
            assert_eq!(steps, [0, 1, 2, 3, 4, 5], "{tag}");
        }
        let accuracy: Vec<_> =
            seen.iter().filter(|(name, _)| name == "validation/accuracy").collect();
        assert_eq!(accuracy.iter().map(|(_, step)| *step).collect::<Vec<_>>(), [1, 3]);
        assert_eq!(names(&stage).expect("listed").len(), 3, "one coordinator had nothing to add");
    }

    #[test]
    fn files_are_named_as_other_readers_expect_and_in_the_order_of_their_starts() {
        let mut names: Vec<String> = vec!["events.out.tfevents.000000".into()];
        for now_seconds in [1_764_186_001, 1_764_186_001, 1_764_100_000] {
            names.push(file_name(now_seconds, &names));
        }
        let mut sorted = names.clone();
        sorted.sort();
        assert_eq!(
            sorted, names,
            "also of an earlier version, within a second, and with a clock that was set back"
        );
        let end = format!("{}.{}.1", host(), std::process::id());
        assert_eq!(names[1], format!("events.out.tfevents.1764186001.{end}"));
    }

    #[test]
    fn what_could_not_be_written_is_written_later() {
        let folder = tempfile::tempdir().expect("a folder");
        let blocked = folder.path().join("tensorboard");
        fs::write(&blocked, "a file").expect("written");
        let mut board = TensorBoard::new(folder.path());
        let error = board.write(&[row(0), row(1)]).expect_err("it cannot be written");
        assert!(error.to_string().starts_with(&format!("{}/cae: ", blocked.display())), "{error}");
        assert_eq!(board.next_row(), 0);
        fs::remove_file(&blocked).expect("removed");
        board.write(&[row(0), row(1)]).expect("written");
        board.write(&[row(2)]).expect("written");
        let steps =
            read(&blocked.join("cae")).into_iter().filter(|(tag, _)| tag == "learning_rate");
        assert_eq!(steps.map(|(_, step)| step).collect::<Vec<_>>(), [0, 1, 2]);
    }
}
