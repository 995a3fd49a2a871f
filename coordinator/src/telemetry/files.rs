//! Two files of the run directory that a site's monitoring reads: `metrics.prom` for node_exporter's textfile collector, and
//! `targets.json` for Prometheus's file-based service discovery. A thread of its own writes them, each by a rename: a disk
//! that fails or hangs costs a warning, never the run.

use serde_json::Value;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

const METRICS: &str = "metrics.prom";
const TARGETS: &str = "targets.json";
/// How often `metrics.prom` is written.
const METRICS_INTERVAL: Duration = Duration::from_secs(15);
/// How often the targets are looked at; they are written when they have changed.
const TARGETS_INTERVAL: Duration = Duration::from_secs(1);
/// How long the end of a run may wait for these files.
const MAX_FINAL_WRITE: Duration = Duration::from_secs(5);

/// What the files are made of.
pub(crate) struct Contents {
    pub(crate) metrics: Box<dyn Fn() -> String + Send>,
    /// `None`: nothing is served, and there is no such file.
    pub(crate) targets: Option<Box<dyn Fn() -> Value + Send>>,
}

/// The thread that writes the files.
pub(crate) struct Files {
    requests: Sender<Request>,
}

enum Request {
    /// The values are final.
    WriteMetrics(oneshot::Sender<()>),
    /// Nothing is served any more.
    RemoveTargets(oneshot::Sender<()>),
}

impl Files {
    /// # Errors
    /// If there can be no more threads.
    pub(crate) fn start(run_dir: &Path, contents: Contents) -> io::Result<Self> {
        let (requests, receiver) = channel();
        let writer = Writer { run_dir: run_dir.into(), contents, written: None, warned: false };
        thread::Builder::new().name("telemetry".into()).spawn(move || writer.run(&receiver))?;
        Ok(Self { requests })
    }

    /// Writes the final values of `metrics.prom`, at best effort.
    pub(crate) async fn write_metrics(&self) {
        self.request(Request::WriteMetrics).await;
    }

    /// Removes `targets.json`, at best effort.
    pub(crate) async fn remove_targets(&self) {
        self.request(Request::RemoveTargets).await;
    }

    async fn request(&self, request: impl FnOnce(oneshot::Sender<()>) -> Request) {
        let (done, finished) = oneshot::channel();
        if self.requests.send(request(done)).is_ok() && tokio::time::timeout(MAX_FINAL_WRITE, finished).await.is_err() {
            tracing::warn!("{METRICS} and {TARGETS} were not written within {MAX_FINAL_WRITE:?}");
        }
    }
}

struct Writer {
    run_dir: PathBuf,
    contents: Contents,
    /// The targets as they are in the file.
    written: Option<Value>,
    /// The last write failed: that is reported once.
    warned: bool,
}

impl Writer {
    fn run(mut self, requests: &Receiver<Request>) {
        let mut due = Instant::now();
        loop {
            self.write_targets();
            if Instant::now() >= due {
                self.write_metrics();
                due = Instant::now() + METRICS_INTERVAL;
            }
            match requests.recv_timeout(TARGETS_INTERVAL) {
                Err(RecvTimeoutError::Timeout) => {}
                Ok(Request::WriteMetrics(done)) => {
                    self.write_metrics();
                    _ = done.send(());
                }
                Ok(Request::RemoveTargets(done)) => {
                    self.remove_targets();
                    _ = done.send(());
                    return;
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn write_metrics(&mut self) {
        let text = (self.contents.metrics)();
        self.replace(METRICS, text.as_bytes());
    }

    fn write_targets(&mut self) {
        let Some(targets) = self.contents.targets.as_ref().map(|targets| targets()) else { return };
        if self.written.as_ref() != Some(&targets) && self.replace(TARGETS, format!("{targets:#}\n").as_bytes()) {
            self.written = Some(targets);
        }
    }

    fn remove_targets(&mut self) {
        match fs::remove_file(self.run_dir.join(TARGETS)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => self.warn(TARGETS, &error),
            _ => {}
        }
    }

    /// Replaces a file at once; whether that was possible.
    fn replace(&mut self, name: &str, bytes: &[u8]) -> bool {
        match replace(&self.run_dir.join(name), bytes) {
            Ok(()) => {
                self.warned = false;
                true
            }
            Err(error) => {
                self.warn(name, &error);
                false
            }
        }
    }

    fn warn(&mut self, name: &str, error: &io::Error) {
        if !std::mem::replace(&mut self.warned, true) {
            tracing::warn!("cannot write {}: {error}; training goes on", self.run_dir.join(name).display());
        }
    }
}

/// Readers see the old file or the new one. After a crash of the machine the file may be empty: it is written again soon.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("new");
    let replaced = fs::write(&temporary, bytes).and_then(|()| fs::rename(&temporary, path));
    if replaced.is_err() {
        // On a full disk half a file would only be in the way.
        _ = fs::remove_file(&temporary);
    }
    replaced
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::sync::{Arc, Mutex};

    fn contents(targets: &Arc<Mutex<Value>>) -> Contents {
        let targets = targets.clone();
        Contents {
            metrics: Box::new(|| "loss 1\n".into()),
            targets: Some(Box::new(move || targets.lock().expect("no panic").clone())),
        }
    }

    #[tokio::test]
    async fn the_files_are_written_and_the_targets_removed() {
        let folder = tempfile::tempdir().expect("a folder");
        let targets = Arc::new(Mutex::new(json!([{"targets": ["a:1"]}])));
        let files = Files::start(folder.path(), contents(&targets)).expect("a thread");
        files.write_metrics().await;
        let read = |name: &str| fs::read_to_string(folder.path().join(name));
        assert_eq!(read(METRICS).expect("written"), "loss 1\n");
        assert!(read(TARGETS).expect("written").contains("a:1"));
        *targets.lock().expect("no panic") = json!([{"targets": ["b:2"]}]);
        // Each request is answered after the targets were looked at.
        files.write_metrics().await;
        files.write_metrics().await;
        assert!(read(TARGETS).expect("written").contains("b:2"));
        files.remove_targets().await;
        assert_eq!(read(TARGETS).expect_err("removed").kind(), io::ErrorKind::NotFound);
        assert_eq!(read(METRICS).expect("it stays"), "loss 1\n");
    }

    #[tokio::test]
    async fn a_folder_that_is_gone_ends_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let run_dir = folder.path().join("run");
        fs::create_dir(&run_dir).expect("made");
        let targets = Arc::new(Mutex::new(json!([])));
        let files = Files::start(&run_dir, contents(&targets)).expect("a thread");
        files.write_metrics().await;
        fs::remove_dir_all(&run_dir).expect("removed");
        files.write_metrics().await;
        fs::create_dir(&run_dir).expect("made again");
        files.write_metrics().await;
        assert!(run_dir.join(METRICS).exists(), "it is written again once it can be");
        files.remove_targets().await;
    }
}
