//! Experiment trackers: where a run's numbers go in addition to its ledger. Each tracker has a
//! thread of its own that reads the ledger as it grows and holds a bounded number of rows; what it
//! cannot deliver stays in the ledger. So none can slow a step or end a run, and a restarted
//! coordinator continues after the last row that the tracker has.

mod csv_log;
mod feed;
mod http_client;
mod mlflow;
mod mlflow_calls;
mod position;
mod tensorboard;
mod trackio;
mod wandb;
mod wandb_client;
mod wandb_file;

use crate::run_dir::results::Results;
use crate::terminal;
use csv_log::CsvLog;
use feed::{Feed, Row};
use mlflow::Mlflow;
use serde_json::Value;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use tensorboard::TensorBoard;
use thanos_configs::{RunConfig, WandbMode};
use thanos_formats::Identity;
use trackio::Trackio;
use wandb::Wandb;

/// How often a tracker looks for new lines of the ledger.
const POLL_INTERVAL: Duration = Duration::from_millis(250);
/// The longest pause after a failure; each is twice the last.
const MAX_RETRY_INTERVAL: Duration = Duration::from_secs(8);
/// How long a tracker that fails at the end of a run is retried, if it had everything before.
const FINAL_RETRY_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the end of a run waits for a tracker that makes no progress.
const STALL_TIMEOUT: Duration = Duration::from_secs(8);
/// How long it waits for one that does.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(60);
/// The same where the whole stop has a limit.
const BRIEF_FLUSH_TIMEOUT: Duration = Duration::from_secs(5);
const FLUSH_POLL: Duration = Duration::from_millis(5);
/// Rows that a tracker holds in memory.
const MAX_ROWS: usize = 1000;

/// How a run ended, for its trackers.
#[derive(Clone, Debug)]
pub(crate) enum Ending {
    Done(Results),
    /// It may be resumed.
    Stopped,
    Failed(u8),
}

/// Variables that have credentials of trackers: no worker needs them.
pub(crate) fn secret_variables() -> impl Iterator<Item = &'static str> {
    let of_servers = mlflow_calls::VARIABLES.into_iter().chain(trackio::VARIABLES);
    of_servers.chain([wandb_client::KEY_VARIABLE])
}

/// A place to which a run's rows go.
trait Sink: Send {
    /// As messages name it.
    fn name(&self) -> &'static str;

    /// Index of the first row that it does not have, or that it may lack a part of.
    fn next_row(&self) -> u64;

    /// Takes rows from [`Sink::next_row`] on: all of them, or as many as it takes at a time.
    ///
    /// # Errors
    /// If they could not be delivered: what [`Sink::next_row`] says is offered again.
    fn write(&mut self, rows: &[Row]) -> io::Result<()>;

    /// The run has ended. It may be called again after an error.
    ///
    /// # Errors
    /// If that could not be delivered.
    fn finish(&mut self, ending: &Ending) -> io::Result<()>;
}

/// The trackers of a run at work.
pub(crate) struct Trackers {
    run_dir: PathBuf,
    threads: Vec<Thread>,
    /// Rows that they have taken, all of them together.
    taken: Arc<AtomicU64>,
}

struct Thread {
    name: &'static str,
    ending: Sender<Ending>,
    /// Whether everything was delivered.
    handle: JoinHandle<bool>,
}

impl Trackers {
    /// Starts those that the configuration asks for. One that cannot be started is reported, and is
    /// no reason to end.
    pub(crate) fn start(run_dir: &Path, config: &RunConfig, identity: &Identity) -> Self {
        let taken = Arc::new(AtomicU64::new(0));
        let threads = sinks(run_dir, config, identity).into_iter().filter_map(|sink| {
            let name = sink.name();
            let (ending, endings) = channel();
            let (run_dir, feed, taken) = (run_dir.to_owned(), Feed::new(run_dir), taken.clone());
            let tracker =
                Tracker { run_dir, sink, feed, rows: Vec::new(), has_failed: false, taken };
            match thread::Builder::new().name(name.into()).spawn(move || tracker.run(&endings)) {
                Ok(handle) => Some(Thread { name, ending, handle }),
                Err(error) => {
                    terminal::line(&format!(
                        "{name}: cannot start a thread: {error}; the run continues without it"
                    ));
                    None
                }
            }
        });
        Self { run_dir: run_dir.into(), threads: threads.collect(), taken }
    }

    /// Lets the trackers take what the ledger has, for a limited time; shorter if the run's stop
    /// has a limit itself.
    pub(crate) async fn finish(self, ending: Ending, has_deadline: bool) {
        let limit = if has_deadline { BRIEF_FLUSH_TIMEOUT } else { FLUSH_TIMEOUT };
        for thread in &self.threads {
            _ = thread.ending.send(ending.clone());
        }
        let (started, mut taken) = (Instant::now(), self.taken.load(Ordering::Relaxed));
        let mut progressed = started;
        while self.threads.iter().any(|thread| !thread.handle.is_finished()) {
            let now = Instant::now();
            let newest = self.taken.load(Ordering::Relaxed);
            if newest != taken {
                (taken, progressed) = (newest, now);
            }
            if now - started >= limit || now - progressed >= STALL_TIMEOUT {
                break;
            }
            tokio::time::sleep(FLUSH_POLL).await;
        }
        let (run_dir, mut incomplete) = (self.run_dir, Vec::new());
        for Thread { name, handle, .. } in self.threads {
            if !handle.is_finished() || !handle.join().unwrap_or(false) {
                incomplete.push(name);
            }
        }
        if !incomplete.is_empty() {
            terminal::line(&format!(
                "incomplete: {}; the ledger has every step, and `thanos-coord launch --resume \
                 --run-dir {}` delivers the rest",
                incomplete.join(", "),
                run_dir.display()
            ));
        }
    }
}

fn sinks(run_dir: &Path, config: &RunConfig, identity: &Identity) -> Vec<Box<dyn Sink>> {
    let mut sinks: Vec<Box<dyn Sink>> = Vec::new();
    let log = &config.log;
    if log.csv {
        sinks.push(Box::new(CsvLog::new(run_dir)));
    }
    if log.tensorboard {
        sinks.push(Box::new(TensorBoard::new(run_dir)));
    }
    if log.wandb.mode != WandbMode::Disabled {
        match Wandb::open(run_dir, config, identity) {
            Ok(wandb) => sinks.push(Box::new(wandb)),
            Err(error) => terminal::line(&format!("W&B: {error}; the run continues without it")),
        }
    }
    if let Some(uri) = &log.mlflow.uri {
        sinks.push(Box::new(Mlflow::open(run_dir, uri, config, identity)));
    }
    if let Some(url) = &log.trackio.url {
        sinks.push(Box::new(Trackio::open(run_dir, url, config, identity)));
    }
    sinks
}

/// A sink, and what it has not taken yet.
struct Tracker {
    run_dir: PathBuf,
    sink: Box<dyn Sink>,
    feed: Feed,
    rows: Vec<Row>,
    /// The last delivery has failed.
    has_failed: bool,
    /// Counts the rows that were taken.
    taken: Arc<AtomicU64>,
}

impl Tracker {
    /// Returns whether everything was delivered.
    fn run(mut self, endings: &Receiver<Ending>) -> bool {
        let mut pause = POLL_INTERVAL;
        loop {
            match endings.recv_timeout(pause) {
                Err(RecvTimeoutError::Timeout) => {
                    let delivered = self.deliver(false);
                    pause = match delivered {
                        Ok(()) => POLL_INTERVAL,
                        Err(_) => (2 * pause).min(MAX_RETRY_INTERVAL),
                    };
                    self.report(delivered);
                }
                Ok(ending) => return self.finish(&ending),
                // The coordinator has given up.
                Err(RecvTimeoutError::Disconnected) => return false,
            }
        }
    }

    fn finish(mut self, ending: &Ending) -> bool {
        let started = Instant::now();
        let timeout = if self.has_failed { Duration::ZERO } else { FINAL_RETRY_TIMEOUT };
        loop {
            let delivered = self.deliver(true).and_then(|()| self.sink.finish(ending));
            let is_complete = delivered.is_ok();
            if is_complete || started.elapsed() >= timeout {
                self.report(delivered);
                return is_complete;
            }
            thread::sleep(POLL_INTERVAL);
        }
    }

    /// Delivers all that the ledger has by now.
    fn deliver(&mut self, has_ended: bool) -> io::Result<()> {
        loop {
            let next = self.sink.next_row();
            self.rows.retain(|row| row.index >= next);
            if self.rows.first().is_some_and(|row| row.index != next) {
                // A sink that has lost what it had begins again.
                self.rows.clear();
                self.feed = Feed::new(&self.run_dir);
            }
            if self.rows.is_empty() {
                self.rows = self.feed.rows(next, MAX_ROWS, has_ended)?;
            }
            if self.rows.is_empty() {
                return Ok(());
            }
            self.sink.write(&self.rows)?;
            self.taken.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The first failure of a row of failures is reported, and that it is over.
    fn report(&mut self, delivered: io::Result<()>) {
        let name = self.sink.name();
        match delivered {
            Err(error) if !self.has_failed => {
                terminal::line(&format!("{name}: {error}; the run continues, and it is retried"));
                self.has_failed = true;
            }
            Ok(()) if self.has_failed => {
                terminal::line(&format!("{name}: it has everything again"));
                self.has_failed = false;
            }
            _ => {}
        }
    }
}

/// The keys of a configuration with their values; sections joined by dots, lists as they are.
fn config_keys(config: &RunConfig) -> Vec<(String, Value)> {
    fn add(key: &str, value: Value, keys: &mut Vec<(String, Value)>) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    add(&if key.is_empty() { name } else { format!("{key}.{name}") }, value, keys);
                }
            }
            value => keys.push((key.to_owned(), value)),
        }
    }
    let mut keys = Vec::new();
    add("", serde_json::to_value(config).expect("a RunConfig holds only what JSON can"), &mut keys);
    keys
}

/// What the result table says of each method and backbone.
fn result_values(results: &Results) -> Vec<(String, f64)> {
    let backbones = results.backbones.iter().flat_map(|row| {
        [
            (format!("{}/coarse_test_accuracy", row.name), row.coarse_test_accuracy),
            (format!("{}/knn_fine_accuracy", row.name), row.knn_fine_accuracy),
        ]
    });
    let rows = results.rows.iter().flat_map(|row| {
        [
            (format!("{}/fine_test_accuracy", row.method), row.fine_test_accuracy),
            (format!("{}/coarse_test_accuracy", row.method), row.coarse_test_accuracy),
            (format!("{}/knn_fine_accuracy", row.method), row.knn_fine_accuracy),
        ]
    });
    // A backbone may be called as a method: the method's numbers are the last.
    backbones.chain(rows).collect()
}

/// As trackers show the run.
fn run_name(identity: &Identity) -> String {
    format!("{} seed {}", identity.preset, identity.seed)
}

#[cfg(test)]
mod tests;
