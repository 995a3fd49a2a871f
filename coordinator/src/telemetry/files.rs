//! Two files that a site's monitoring reads: `metrics.prom` in the run directory for
//! node_exporter's textfile collector, and `targets.json` for Prometheus's file-based service
//! discovery, which is also kept in a folder of the site, since Prometheus looks for files in one
//! folder. A thread of its own writes them, each by a rename: a disk that fails or hangs costs a
//! warning, never the run.

use serde_json::Value;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

const METRICS: &str = "metrics.prom";
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
    pub(crate) targets: Option<Targets>,
}

/// What Prometheus scrapes.
pub(crate) struct Targets {
    /// Where it is kept.
    pub(crate) files: Vec<PathBuf>,
    pub(crate) list: Box<dyn Fn() -> Value + Send>,
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
        let writer =
            Writer { metrics: run_dir.join(METRICS), contents, written: None, warned: false };
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
        if self.requests.send(request(done)).is_ok()
            && tokio::time::timeout(MAX_FINAL_WRITE, finished).await.is_err()
        {
            tracing::warn!("the files for monitoring were not written within {MAX_FINAL_WRITE:?}");
        }
    }
}

struct Writer {
    metrics: PathBuf,
    contents: Contents,
    /// The targets as they were written last.
    written: Option<String>,
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
        let written = replace(&self.metrics, text.as_bytes());
        self.report(&self.metrics.clone(), written);
    }

    fn write_targets(&mut self) {
        let Some(Targets { files, list }) = &self.contents.targets else { return };
        let text = format!("{:#}\n", list());
        if self.written.as_ref() == Some(&text) {
            return;
        }
        let written: Vec<_> =
            files.iter().map(|file| (file.clone(), replace(file, text.as_bytes()))).collect();
        if written.iter().all(|(_, written)| written.is_ok()) {
            self.written = Some(text);
        }
        written.into_iter().for_each(|(file, written)| self.report(&file, written));
    }

    /// While this coordinator waited for a last scrape another one may have resumed the run: its
    /// targets stay.
    fn remove_targets(&mut self) {
        let files =
            self.contents.targets.as_ref().map_or(Vec::new(), |targets| targets.files.clone());
        for file in files {
            let is_ours =
                fs::read_to_string(&file).is_ok_and(|text| self.written.as_ref() == Some(&text));
            if is_ours {
                self.report(&file, fs::remove_file(&file));
            }
        }
    }

    fn report(&mut self, path: &Path, written: io::Result<()>) {
        match written {
            Ok(()) => self.warned = false,
            Err(error) => {
                if !std::mem::replace(&mut self.warned, true) {
                    tracing::warn!("cannot write {}: {error}; training continues", path.display());
                }
            }
        }
    }
}

/// Readers see the old file or the new one. After a crash of the machine the file may be empty: it
/// is written again soon.
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

    const TARGETS: &str = "targets.json";

    fn contents(folder: &Path, targets: &Arc<Mutex<Value>>) -> Contents {
        let targets = targets.clone();
        let files = vec![folder.join(TARGETS), folder.join("of-the-site.json")];
        let list = Box::new(move || targets.lock().expect("no panic").clone());
        Contents { metrics: Box::new(|| "loss 1\n".into()), targets: Some(Targets { files, list }) }
    }

    #[tokio::test]
    async fn the_files_are_written_and_the_targets_removed() {
        let folder = tempfile::tempdir().expect("a folder");
        let targets = Arc::new(Mutex::new(json!([{"targets": ["a:1"]}])));
        let files =
            Files::start(folder.path(), contents(folder.path(), &targets)).expect("a thread");
        files.write_metrics().await;
        let read = |name: &str| fs::read_to_string(folder.path().join(name));
        assert_eq!(read(METRICS).expect("written"), "loss 1\n");
        assert!(read(TARGETS).expect("written").contains("a:1"));
        assert_eq!(read(TARGETS).expect("written"), read("of-the-site.json").expect("written"));
        *targets.lock().expect("no panic") = json!([{"targets": ["b:2"]}]);
        // Each request is answered after the targets were looked at.
        files.write_metrics().await;
        files.write_metrics().await;
        assert!(read(TARGETS).expect("written").contains("b:2"));
        files.remove_targets().await;
        assert_eq!(read(TARGETS).expect_err("removed").kind(), io::ErrorKind::NotFound);
        assert!(read("of-the-site.json").is_err());
        assert_eq!(read(METRICS).expect("it stays"), "loss 1\n");
    }

    #[tokio::test]
    async fn the_targets_of_a_later_coordinator_stay() {
        let folder = tempfile::tempdir().expect("a folder");
        let targets = Arc::new(Mutex::new(json!([{"targets": ["a:1"]}])));
        let files =
            Files::start(folder.path(), contents(folder.path(), &targets)).expect("a thread");
        files.write_metrics().await;
        fs::write(folder.path().join(TARGETS), "of another").expect("written");
        files.remove_targets().await;
        assert_eq!(
            fs::read_to_string(folder.path().join(TARGETS)).expect("it stays"),
            "of another"
        );
    }

    #[tokio::test]
    async fn a_missing_folder_does_not_end_the_run() {
        let folder = tempfile::tempdir().expect("a folder");
        let run_dir = folder.path().join("run");
        fs::create_dir(&run_dir).expect("made");
        let targets = Arc::new(Mutex::new(json!([])));
        let files = Files::start(&run_dir, contents(&run_dir, &targets)).expect("a thread");
        files.write_metrics().await;
        fs::remove_dir_all(&run_dir).expect("removed");
        files.write_metrics().await;
        fs::create_dir(&run_dir).expect("made again");
        files.write_metrics().await;
        assert!(run_dir.join(METRICS).exists(), "it is written again once it can be");
        files.remove_targets().await;
    }
}
