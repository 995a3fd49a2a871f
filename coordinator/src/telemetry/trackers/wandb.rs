//! Weights & Biases: each coordinator of a run writes a file of its own, below `wandb/` in the run
//! directory, as their client does offline. With `log.wandb.mode: online` the user's own client
//! uploads them meanwhile (`wandb_client.rs`): this program has no credentials and opens no
//! connection. The client (0.31 or newer) adds each file's rows to those that the server has. Rows
//! that it had uploaded online when it was killed are uploaded again by the next coordinator's
//! client.

use super::feed::Row;
use super::wandb_client::Client;
use super::wandb_file::{
    Config, Content, Decoded, Encoder, Exit, Header, History, HistoryStep, Item, Run, Summary,
    Timestamp, VersionInfo, decode,
};
use super::{Ending, Sink, result_values, run_name};
use crate::exit::EXIT_STOPPED;
use crate::run_dir::results::Results;
use crate::telemetry::metrics::now;
use serde::Serialize;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use thanos_configs::{RunConfig, WandbMode};
use thanos_formats::Identity;

/// The client whose files these are like.
const VERSION: &str = "0.31.0";

pub(super) struct Wandb {
    /// `wandb` in the run directory.
    folder: PathBuf,
    run: Run,
    file: Option<RunFile>,
    next_row: u64,
    /// The last row of earlier coordinators: it may have been delivered before its evaluation.
    last: Option<Delivered>,
    /// The files say that the run is done.
    is_done: bool,
    client: Option<Client>,
}

/// A row that an earlier file has.
struct Delivered {
    index: u64,
    keys: Vec<String>,
}

/// The file of this coordinator.
struct RunFile {
    file: File,
    encoder: Encoder,
    bytes: u64,
}

impl Wandb {
    /// Continues with the last row of the files that are there: only what it lacks is added. Its
    /// own file is made with its first row.
    ///
    /// # Errors
    /// If those cannot be read.
    pub(super) fn open(
        run_dir: &Path,
        config: &RunConfig,
        identity: &Identity,
    ) -> io::Result<Self> {
        let folder = run_dir.join("wandb");
        let mut run = run_record(config, identity);
        let (mut last, mut is_done): (Option<Delivered>, bool) = (None, false);
        let (mut start_seconds, mut earlier) = (now() as i64, Vec::new());
        for file in files(&folder, &identity.id)? {
            let bytes = fs::read(&file)?;
            let Decoded { records, len } = decode(&bytes);
            if !records.iter().any(|record| matches!(record.content, Some(Content::Run(_)))) {
                // Its coordinator was killed before it wrote what run this is: the client would
                // stop at it.
                remove_with_folder(&file)?;
                continue;
            }
            if len < bytes.len() {
                // The client would not continue after a record that is cut off.
                File::options().write(true).open(&file)?.set_len(len as u64)?;
            }
            for record in records {
                match record.content {
                    Some(Content::History(history)) => {
                        is_done = false;
                        let index =
                            u64::try_from(history.step.map_or(0, |step| step.num)).unwrap_or(0);
                        let mut keys: Vec<String> =
                            history.item.into_iter().map(|item| item.key).collect();
                        if let Some(last) = last.filter(|last| last.index == index) {
                            keys.extend(last.keys);
                        }
                        last = Some(Delivered { index, keys });
                    }
                    Some(Content::Exit(exit)) => is_done = exit.exit_code == 0,
                    // They are put together in the order of their starts.
                    Some(Content::Run(run)) => {
                        let start = run.start_time.map_or(0, |time| time.seconds);
                        start_seconds = start_seconds.max(start + 1);
                    }
                    _ => {}
                }
            }
            earlier.push(file);
        }
        let starting_step = last.as_ref().map_or(0, |last| last.index + 1);
        run.starting_step = i64::try_from(starting_step).map_err(io::Error::other)?;
        run.start_time = Some(Timestamp { seconds: start_seconds, nanos: 0 });
        let client =
            (config.log.wandb.mode == WandbMode::Online).then(|| Client::new(&folder, earlier));
        let next_row = last.as_ref().map_or(0, |last| last.index);
        Ok(Self { folder, run, file: None, next_row, last, is_done, client })
    }

    fn append(&mut self, contents: Vec<Content>) -> io::Result<()> {
        let is_new = self.file.is_none();
        let file = match &mut self.file {
            Some(file) => file,
            None => self.file.insert(RunFile::create(&self.path())?),
        };
        let version = VersionInfo { producer: VERSION.into(), min_consumer: VERSION.into() };
        let start = [
            Content::Header(Header { version_info: Some(version) }),
            Content::Run(self.run.clone()),
        ];
        let written = file.append(start.into_iter().filter(|_| is_new).chain(contents));
        if is_new && written.is_err() {
            // Without its first records it is no run.
            self.file = None;
            fs::remove_file(self.path())?;
        }
        let path = self.path();
        if let Some(client) = &mut self.client {
            client.follow(&path);
        }
        written
    }

    fn path(&self) -> PathBuf {
        let start = self.start_seconds();
        let id = &self.run.run_id;
        self.folder.join(format!("offline-run-{}-{id}/run-{id}.wandb", date_and_time(start)))
    }

    /// Of this coordinator, since 1970.
    fn start_seconds(&self) -> i64 {
        self.run.start_time.as_ref().map_or(0, |time| time.seconds)
    }

    fn runtime_seconds(&self) -> f64 {
        (now() - self.start_seconds() as f64).max(0.0)
    }

    /// A row, or what an earlier file lacks of it.
    fn history(&self, row: &Row) -> Option<Content> {
        let stage = &row.step.stage;
        let last = self.last.as_ref().filter(|last| last.index == row.index);
        let is_new = |key: &String| last.is_none_or(|last| !last.keys.contains(key));
        let values =
            row.values().into_iter().map(|(name, value)| (format!("{stage}/{name}"), value));
        let values: Vec<Item> =
            values.filter(|(key, _)| is_new(key)).map(|(key, value)| item(&key, &value)).collect();
        if values.is_empty() {
            return None;
        }
        let place = [
            item("_step", &row.index),
            item("_timestamp", &now()),
            item("_runtime", &self.runtime_seconds()),
            item("stage", stage),
            item("epoch", &row.step.epoch),
            item("step", &row.step.step),
        ];
        let step = HistoryStep { num: i64::try_from(row.index).unwrap_or(i64::MAX) };
        Some(Content::History(History {
            item: place.into_iter().chain(values).collect(),
            step: Some(step),
        }))
    }
}

impl Sink for Wandb {
    fn name(&self) -> &'static str {
        "W&B"
    }

    fn next_row(&self) -> u64 {
        self.next_row
    }

    fn write(&mut self, rows: &[Row]) -> io::Result<()> {
        let contents: Vec<Content> = rows.iter().filter_map(|row| self.history(row)).collect();
        if !contents.is_empty() {
            self.append(contents)?;
            self.is_done = false;
        }
        self.next_row = rows.last().map_or(self.next_row, |row| row.index + 1);
        Ok(())
    }

    fn finish(&mut self, ending: &Ending) -> io::Result<()> {
        let runtime = self.runtime_seconds() as i32;
        let exit = |exit_code| Content::Exit(Exit { exit_code, runtime });
        match ending {
            Ending::Done(_) if self.is_done => {}
            Ending::Done(results) => self.append(vec![summary(results), exit(0)])?,
            Ending::Failed(code) => self.append(vec![exit(i32::from(*code))])?,
            // It continues in the file of the next coordinator. Without this record a client would
            // wait for more in this one.
            Ending::Stopped if self.file.is_some() => {
                self.append(vec![exit(i32::from(EXIT_STOPPED))])?
            }
            Ending::Stopped => {}
        }
        self.client.as_mut().map_or(Ok(()), Client::finish)
    }
}

impl RunFile {
    fn create(path: &Path) -> io::Result<Self> {
        path.parent().map_or(Ok(()), fs::create_dir_all)?;
        let file = File::options().append(true).create_new(true).open(path)?;
        Ok(Self { file, encoder: Encoder::default(), bytes: 0 })
    }

    /// Writes these records, or none of them.
    fn append(&mut self, contents: impl IntoIterator<Item = Content>) -> io::Result<()> {
        let mut encoder = self.encoder.clone();
        let bytes = encoder.encode(contents);
        if let Err(error) = self.file.write_all(&bytes) {
            self.file.set_len(self.bytes)?;
            return Err(error);
        }
        self.encoder = encoder;
        self.bytes += bytes.len() as u64;
        Ok(())
    }
}

fn remove_with_folder(file: &Path) -> io::Result<()> {
    fs::remove_file(file)?;
    file.parent().map_or(Ok(()), fs::remove_dir_all)
}

/// The files of a run, oldest first.
fn files(folder: &Path, id: &str) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let folders = entries.map(|entry| Ok(entry?.path().join(format!("run-{id}.wandb"))));
    let mut files = folders.collect::<io::Result<Vec<PathBuf>>>()?;
    files.retain(|file| file.is_file());
    files.sort();
    Ok(files)
}

fn run_record(config: &RunConfig, identity: &Identity) -> Run {
    let wandb = &config.log.wandb;
    let keys = serde_json::to_value(config).expect("a RunConfig holds only what JSON can");
    let items = keys.as_object().into_iter().flatten().map(|(key, value)| item(key, value));
    Run {
        run_id: identity.id.clone(),
        entity: wandb.entity.clone().unwrap_or_default(),
        project: wandb.project.clone(),
        config: Some(Config { update: items.collect() }),
        run_group: wandb.group.clone().unwrap_or_default(),
        display_name: run_name(identity),
        tags: wandb.tags.clone(),
        host: crate::run_dir::host(),
        ..Run::default()
    }
}

/// The result table.
fn summary(results: &Results) -> Content {
    let values = result_values(results);
    Content::Summary(Summary {
        update: values.iter().map(|(key, value)| item(key, value)).collect(),
    })
}

fn item(key: &str, value: &impl Serialize) -> Item {
    Item {
        key: key.into(),
        value_json: serde_json::to_string(value).expect("plain data is always JSON"),
    }
}

/// Seconds since 1970 as `YYYYMMDD_HHMMSS`, UTC.
fn date_and_time(seconds: i64) -> String {
    let time = time::OffsetDateTime::from_unix_timestamp(seconds)
        .unwrap_or(time::OffsetDateTime::UNIX_EPOCH);
    let (date, (hour, minute, second)) = (time.date(), time.to_hms());
    let (year, month, day) = date.to_calendar_date();
    format!("{year:04}{:02}{day:02}_{hour:02}{minute:02}{second:02}", u8::from(month))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::trackers::tests::row;
    use thanos_configs::Plan;

    fn open(run_dir: &Path) -> Wandb {
        let overrides =
            ["wandb.mode=offline", "log.wandb.group=g", "log.wandb.tags=[a, b]"].map(str::to_owned);
        let plan = Plan::from_preset("digits_cae", &overrides).expect("valid");
        Wandb::open(run_dir, plan.config(), &Identity { id: "0a1b".into(), ..Identity::default() })
            .expect("opened")
    }

    #[test]
    fn each_coordinator_writes_a_file_and_continues_after_the_last_row_of_the_others() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut first = open(folder.path());
        assert_eq!(first.next_row(), 0);
        first.write(&[row(0), row(1)]).expect("written");
        first.write(&[row(2)]).expect("written");
        // Killed while it wrote: the last record is cut off.
        let file = first.path();
        let length = fs::metadata(&file).expect("there").len();
        File::options()
            .write(true)
            .open(&file)
            .and_then(|file| file.set_len(length - 3))
            .expect("cut");
        let mut second = open(folder.path());
        assert_eq!(second.next_row(), 1, "the last one may have been evaluated since");
        second.write(&[row(1), row(2)]).expect("written");
        second.finish(&Ending::Failed(70)).expect("written");
        let files = files(&folder.path().join("wandb"), "0a1b").expect("listed");
        let steps = |file: &PathBuf| -> Vec<i64> {
            let bytes = fs::read(file).expect("read");
            let Decoded { records, len } = decode(&bytes);
            assert_eq!(len, bytes.len(), "what was cut off is gone");
            let step = |content| match content {
                Some(Content::History(history)) => history.step.map(|step| step.num),
                _ => None,
            };
            records.into_iter().filter_map(|record| step(record.content)).collect()
        };
        assert_eq!(files.iter().map(steps).collect::<Vec<_>>(), [vec![0, 1], vec![2]]);
        let records = decode(&fs::read(&files[1]).expect("read")).records;
        let Some(Content::Run(run)) = &records[1].content else { panic!("{records:?}") };
        assert_eq!(
            (run.run_group.as_str(), &run.tags[..], run.starting_step),
            ("g", &["a".to_owned(), "b".into()][..], 2)
        );
        assert!(matches!(&records[3].content, Some(Content::Exit(exit)) if exit.exit_code == 70));
    }

    fn histories(folder: &Path) -> Vec<Vec<String>> {
        let files = files(&folder.join("wandb"), "0a1b").expect("listed");
        let records = files.iter().flat_map(|file| decode(&fs::read(file).expect("read")).records);
        let keys = records.filter_map(|record| match record.content {
            Some(Content::History(history)) => {
                Some(history.item.into_iter().map(|item| item.key).collect())
            }
            _ => None,
        });
        keys.collect()
    }

    /// The run was stopped before the evaluation after its last step.
    #[test]
    fn an_evaluation_of_the_last_row_is_added_by_the_next_coordinator() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut first = open(folder.path());
        first.write(&[row(0)]).expect("written");
        first.finish(&Ending::Stopped).expect("written");
        for _ in 0..2 {
            let mut next = open(folder.path());
            next.write(&[Row { validation_accuracy: Some(0.5), ..row(0) }]).expect("written");
        }
        let histories = histories(folder.path());
        assert_eq!(histories.len(), 2, "the second has nothing to add: {histories:?}");
        assert!(histories[0].contains(&"cae/loss/total".into()));
        assert_eq!(histories[1].last().map(String::as_str), Some("cae/validation/accuracy"));
        assert!(!histories[1].contains(&"cae/loss/total".into()));
    }

    #[test]
    fn a_file_that_says_of_no_run_is_removed() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut first = open(folder.path());
        first.write(&[row(0)]).expect("written");
        fs::write(first.path(), b":W&B").expect("cut");
        assert_eq!(open(folder.path()).next_row(), 0);
        assert_eq!(fs::read_dir(folder.path().join("wandb")).expect("there").count(), 0);
    }

    /// GNU date: `date -u -d @1764186001 +%Y%m%d_%H%M%S`.
    #[test]
    fn a_file_is_named_by_its_start() {
        assert_eq!(date_and_time(1_764_186_001), "20251126_194001");
    }
}
