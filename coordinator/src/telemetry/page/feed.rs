//! The thread that reads the run directory for the pages that are open, and sends each what it
//! lacks. It works only while there are some; a page that does not read what it is sent is skipped,
//! later disconnected. The run waits for none of it.

use super::Source;
use super::model::{Cursor, Model};
use serde_json::{Map, Value, json};
use std::io;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// How often the run directory is read while a page is open.
const READ_INTERVAL: Duration = Duration::from_millis(500);
/// Requests that wait for the thread.
const MAX_REQUESTS: usize = 64;
/// Updates that wait for a slow page, and how long it may read none.
const MAX_UNREAD: usize = 2;
const MAX_SLOWNESS: Duration = Duration::from_secs(30);

/// What is sent to a page: JSON, and the cursor with which it comes back.
#[derive(Clone, Debug)]
pub(super) struct Update {
    pub(super) id: String,
    pub(super) json: String,
}

enum Request {
    /// A page that stays open.
    Follow(Option<Cursor>, mpsc::Sender<Update>),
    /// What is new, once.
    Read(Option<Cursor>, oneshot::Sender<Update>),
    /// Send everything that is there, and let the pages go.
    Finish(oneshot::Sender<()>),
}

/// Everything that a page of this run directory would be sent, as JSON.
///
/// # Errors
/// If the directory cannot be read.
pub(super) fn snapshot(run_dir: &Path) -> io::Result<String> {
    let mut model = Model::new(run_dir);
    model.read()?;
    let reader = Reader {
        model,
        source: Source::Directory(run_dir.into()),
        pages: Vec::new(),
        problem: None,
    };
    Ok(reader.new_since(None, Some(&reader.state())).json)
}

/// The thread's handle; it ends with the last one.
#[derive(Clone)]
pub(super) struct Feed {
    requests: SyncSender<Request>,
}

impl Feed {
    /// # Errors
    /// If there can be no more threads.
    pub(super) fn start(run_dir: &Path, source: Source) -> io::Result<Self> {
        let (requests, receiver) = sync_channel(MAX_REQUESTS);
        let reader =
            Reader { model: Model::new(run_dir), source, pages: Vec::new(), problem: None };
        thread::Builder::new().name("page".into()).spawn(move || reader.run(&receiver))?;
        Ok(Self { requests })
    }

    /// Updates for a page that has read as far as `cursor`; `None`: too many requests wait.
    pub(super) fn follow(&self, cursor: Option<Cursor>) -> Option<mpsc::Receiver<Update>> {
        let (sender, updates) = mpsc::channel(MAX_UNREAD);
        self.request(Request::Follow(cursor, sender)).then_some(updates)
    }

    /// What is new; `None`: too many requests wait.
    pub(super) async fn read(&self, cursor: Option<Cursor>) -> Option<Update> {
        let (sender, update) = oneshot::channel();
        if self.request(Request::Read(cursor, sender)) { update.await.ok() } else { None }
    }

    /// Sends everything that is there, and lets the pages go.
    pub(super) async fn finish(&self) {
        let (sender, finished) = oneshot::channel();
        if self.request(Request::Finish(sender)) {
            _ = finished.await;
        }
    }

    fn request(&self, request: Request) -> bool {
        match self.requests.try_send(request) {
            Ok(()) => true,
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => false,
        }
    }
}

struct Reader {
    model: Model,
    source: Source,
    pages: Vec<Page>,
    /// Why the run directory could not be read.
    problem: Option<String>,
}

/// A page that is open.
struct Page {
    sender: mpsc::Sender<Update>,
    /// How far it has read; `None`: nothing.
    cursor: Option<Cursor>,
    /// The state as it was sent last.
    state: Option<String>,
    /// Since when it has not read.
    slow_since: Option<Instant>,
}

impl Reader {
    fn run(mut self, requests: &Receiver<Request>) {
        loop {
            let request = match self.pages.is_empty() {
                true => requests.recv().map_err(|_| RecvTimeoutError::Disconnected),
                false => requests.recv_timeout(READ_INTERVAL),
            };
            match request {
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => self.update(),
                Ok(Request::Follow(cursor, sender)) => {
                    self.pages.push(Page { sender, cursor, state: None, slow_since: None });
                    self.update();
                }
                Ok(Request::Read(cursor, answer)) => {
                    self.read();
                    let state = self.state();
                    _ = answer.send(self.new_since(cursor.as_ref(), Some(&state)));
                }
                Ok(Request::Finish(done)) => {
                    self.update();
                    self.pages.clear();
                    _ = done.send(());
                }
            }
        }
    }

    fn read(&mut self) {
        self.problem = self.model.read().err().map(|error| error.to_string());
    }

    fn state(&self) -> Map<String, Value> {
        let (live, about) = self.source.view(&self.model);
        let mut state = self.model.state(&live);
        state.extend(about);
        state.insert("read_problem".into(), json!(self.problem));
        state
    }

    fn new_since(&self, cursor: Option<&Cursor>, state: Option<&Map<String, Value>>) -> Update {
        let mut new = self.model.since(cursor);
        if let Some(state) = state {
            new.insert("state".into(), Value::Object(state.clone()));
        }
        Update { id: self.model.cursor().to_string(), json: Value::Object(new).to_string() }
    }

    /// Reads, and sends every page what it lacks.
    fn update(&mut self) {
        self.read();
        let state = self.state();
        let text = Value::Object(state.clone()).to_string();
        let now = self.model.cursor();
        let mut pages = std::mem::take(&mut self.pages);
        pages.retain_mut(|page| {
            let is_new = page.state.as_ref() != Some(&text);
            if page.cursor.as_ref() == Some(&now) && !is_new {
                return !page.sender.is_closed();
            }
            if page.sender.capacity() == 0 {
                let since = *page.slow_since.get_or_insert_with(Instant::now);
                return since.elapsed() < MAX_SLOWNESS;
            }
            let update = self.new_since(page.cursor.as_ref(), is_new.then_some(&state));
            (page.cursor, page.state, page.slow_since) =
                (Some(now.clone()), Some(text.clone()), None);
            page.sender.try_send(update).is_ok()
        });
        self.pages = pages;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_page_that_does_not_read_holds_up_no_other_and_gets_everything_later() {
        let folder = tempfile::tempdir().expect("a folder");
        let ledger = folder.path().join("events.jsonl");
        let feed =
            Feed::start(folder.path(), Source::Directory(folder.path().into())).expect("a thread");
        let mut slow = feed.follow(None).expect("a page");
        let mut events = String::new();
        for number in 0..MAX_UNREAD + 3 {
            events += &format!("{{\"event\": \"note\", \"number\": {number}}}\n");
            std::fs::write(&ledger, &events).expect("written");
            // Every page that follows makes the thread read, and send to all.
            let mut quick = feed.follow(None).expect("a page");
            let update: Value =
                serde_json::from_str(&quick.recv().await.expect("an update").json).expect("JSON");
            assert_eq!(update["events"].as_array().map(Vec::len), Some(number + 1));
        }
        let mut seen = Vec::new();
        let mut take = |update: Update| {
            let update: Value = serde_json::from_str(&update.json).expect("JSON");
            if update["reset"] == true {
                seen.clear();
            }
            seen.extend(
                update["events"]
                    .as_array()
                    .expect("a list")
                    .iter()
                    .map(|event| event["number"].clone()),
            );
            seen.len()
        };
        while take(slow.recv().await.expect("an update")) < MAX_UNREAD + 3 {}
        assert_eq!(seen, (0..MAX_UNREAD + 3).map(|number| json!(number)).collect::<Vec<_>>());
        feed.finish().await;
        assert!(slow.recv().await.is_none(), "the page was let go");
    }
}
