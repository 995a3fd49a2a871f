//! Experiment trackers: where a run's numbers go in addition to its ledger. Each tracker has a thread of its own that reads the
//! ledger as it grows and holds a bounded number of rows; what it cannot deliver stays in the ledger. So none can slow a
//! step or end a run, and a restarted coordinator continues after the last row that the tracker has.

mod csv_log;
mod feed;
mod wandb;
mod wandb_client;
mod wandb_file;

use crate::run_dir::Identity;
use crate::run_dir::results::Results;
use crate::terminal;
use csv_log::CsvLog;
use feed::{Feed, Row};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use thanos_configs::{RunConfig, WandbMode};
use wandb::Wandb;

/// How often a tracker looks for new lines of the ledger, and tries again what has failed.
const POLL_INTERVAL: Duration = Duration::from_millis(250);
/// How long the end of a run waits for its trackers.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);
const FLUSH_POLL: Duration = Duration::from_millis(5);
/// Rows that a tracker holds in memory, and delivers at a time.
const MAX_ROWS: usize = 1000;

/// How a run ended, for its trackers.
#[derive(Clone, Debug)]
pub(crate) enum Ending {
    Done(Results),
    /// It may be resumed: the last row waits for its evaluation.
    Stopped,
    Failed(u8),
}

/// A place to which a run's rows go.
trait Sink: Send {
    /// As messages name it.
    fn name(&self) -> &'static str;

    /// Index of the first row that it does not have.
    fn next_row(&self) -> u64;

    /// Takes rows from [`Sink::next_row`] on, all of them or none.
    ///
    /// # Errors
    /// If they could not be delivered: the same rows are offered again.
    fn write(&mut self, rows: &[Row]) -> io::Result<()>;

    /// The run has ended.
    ///
    /// # Errors
    /// If that could not be delivered.
    fn finish(&mut self, ending: &Ending) -> io::Result<()>;
}

/// The trackers of a run at work.
pub(crate) struct Trackers {
    threads: Vec<(Sender<Ending>, JoinHandle<()>)>,
}

impl Trackers {
    /// Starts those that the configuration asks for. One that cannot be started is reported, and is no reason to end.
    pub(crate) fn start(run_dir: &Path, config: &RunConfig, identity: &Identity) -> Self {
        let mut sinks: Vec<Box<dyn Sink>> = Vec::new();
        if config.log.csv {
            sinks.push(Box::new(CsvLog::new(run_dir)));
        }
        if config.log.wandb.mode != WandbMode::Disabled {
            match Wandb::open(run_dir, config, identity) {
                Ok(wandb) => sinks.push(Box::new(wandb)),
                Err(error) => terminal::line(&format!("W&B: {error}; the run continues without it")),
            }
        }
        let threads = sinks.into_iter().filter_map(|sink| {
            let name = sink.name();
            let (ending, endings) = channel();
            let (run_dir, feed) = (run_dir.to_owned(), Feed::new(run_dir));
            let tracker = Tracker { run_dir, sink, feed, rows: Vec::new(), has_failed: false };
            match thread::Builder::new().name(name.into()).spawn(move || tracker.run(&endings)) {
                Ok(thread) => Some((ending, thread)),
                Err(error) => {
                    terminal::line(&format!("{name}: no thread for it: {error}; the run continues without it"));
                    None
                }
            }
        });
        Self { threads: threads.collect() }
    }

    /// Lets the trackers take what the ledger has, for a limited time.
    pub(crate) async fn finish(self, ending: Ending) {
        let started = Instant::now();
        for (endings, _) in &self.threads {
            _ = endings.send(ending.clone());
        }
        while self.threads.iter().any(|(_, thread)| !thread.is_finished()) {
            if started.elapsed() >= FLUSH_TIMEOUT {
                terminal::line(
                    "a tracker has not taken everything in time; the ledger has it, and a resume delivers it",
                );
                return;
            }
            tokio::time::sleep(FLUSH_POLL).await;
        }
    }
}

/// A sink, and what it has not taken yet.
struct Tracker {
    run_dir: PathBuf,
    sink: Box<dyn Sink>,
    feed: Feed,
    rows: Vec<Row>,
    /// The last delivery has failed.
    has_failed: bool,
}

impl Tracker {
    fn run(mut self, endings: &Receiver<Ending>) {
        loop {
            let ending = match endings.recv_timeout(POLL_INTERVAL) {
                Ok(ending) => Some(ending),
                Err(RecvTimeoutError::Timeout) => None,
                // The coordinator has given up.
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let is_done = matches!(ending, Some(Ending::Done(_)));
            let mut delivered = self.deliver(is_done);
            if let (Ok(()), Some(ending)) = (&delivered, &ending) {
                delivered = self.sink.finish(ending);
            }
            self.report(delivered);
            if ending.is_some() {
                return;
            }
        }
    }

    /// Delivers all that the ledger has by now.
    fn deliver(&mut self, is_done: bool) -> io::Result<()> {
        // A sink that has lost what it had begins again.
        if self.rows.first().is_some_and(|row| row.index != self.sink.next_row()) {
            self.rows.clear();
            self.feed = Feed::new(&self.run_dir);
        }
        loop {
            if self.rows.is_empty() {
                self.rows = self.feed.rows(self.sink.next_row(), MAX_ROWS, is_done)?;
            }
            if self.rows.is_empty() {
                return Ok(());
            }
            self.sink.write(&self.rows)?;
            self.rows.clear();
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
