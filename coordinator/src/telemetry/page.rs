//! The live page of a run: one embedded document at `/` that loads nothing from elsewhere,
//! `/events` (server-sent events) that keep it up to date, `/series?since=CURSOR`, the same JSON
//! for scripts, and `/figures`, which are HTML. A thread of its own reads the run directory
//! (`page/feed.rs`); the run never waits for a page, and an error of a page never ends it.

mod document;
mod feed;
mod live;
mod model;
mod roster;
mod series;

use crate::telemetry::Telemetry;
use axum::Router;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use feed::{Feed, Update};
pub(crate) use live::Live;
use live::LiveView;
use model::{Cursor, Model};
use serde_json::{Map, Value, json};
use std::convert::Infallible;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

/// Pages that may be open at a time.
const MAX_PAGES: usize = 32;
/// A comment that finds out whether a page is still there.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(15);
/// When a page comes back after its connection has ended.
const RECONNECT_DELAY: Duration = Duration::from_secs(1);
/// How long the end of a run waits for open pages to take its last state.
const MAX_FINISH: Duration = Duration::from_millis(500);
/// `metrics.prom` is written every 15 s while a coordinator is at work.
const MAX_METRICS_AGE: Duration = Duration::from_secs(45);

/// Where the page has its state from.
#[derive(Clone)]
pub(crate) enum Source {
    /// The run of this process.
    Run { live: Arc<Live>, telemetry: Telemetry },
    /// The files of a run directory, which another process may write.
    Directory(PathBuf),
}

impl Source {
    /// What is known beside the ledger, and the state of the run: a key, and the seconds in each.
    fn view(&self, model: &Model) -> (LiveView, Map<String, Value>) {
        let ended = model.ended.as_ref().and_then(|ended| ended["how"].as_str());
        let (view, state, seconds) = match self {
            Self::Run { live, telemetry } => {
                let (state, seconds) = telemetry.states().unwrap_or_default();
                (live.view(), ended.unwrap_or(state), seconds)
            }
            Self::Directory(run_dir) => {
                let state =
                    ended.unwrap_or(if is_at_work(run_dir) { "running" } else { "interrupted" });
                (LiveView::default(), state, Vec::new())
            }
        };
        let seconds: Vec<Value> = seconds
            .iter()
            .map(|(state, seconds)| json!({"state": state, "seconds": seconds.round()}))
            .collect();
        let is_live = matches!(self, Self::Run { .. });
        let about = json!({"state": state, "state_seconds": seconds, "is_live": is_live});
        match about {
            Value::Object(about) => (view, about),
            _ => (view, Map::new()),
        }
    }
}

/// Whether a coordinator has written to a run directory just now. Its lock is not tried: a
/// coordinator that starts at this moment would find it taken.
fn is_at_work(run_dir: &Path) -> bool {
    let written = fs::metadata(run_dir.join("metrics.prom")).and_then(|file| file.modified()).ok();
    written.and_then(|time| time.elapsed().ok()).is_some_and(|age| age < MAX_METRICS_AGE)
}

/// Draws the figures of the rows that are complete, as HTML; from files, which may take a while.
pub(crate) type DrawFigures = Arc<dyn Fn() -> String + Send + Sync>;

/// The page of one run; a handle.
#[derive(Clone)]
pub(crate) struct LivePage {
    feed: Feed,
    open: Arc<Semaphore>,
    figures: DrawFigures,
    /// One drawing at a time.
    drawing: Arc<Semaphore>,
}

impl LivePage {
    /// # Errors
    /// If there can be no more threads.
    pub(crate) fn start(run_dir: &Path, source: Source, figures: DrawFigures) -> io::Result<Self> {
        Ok(Self {
            feed: Feed::start(run_dir, source)?,
            open: Arc::new(Semaphore::new(MAX_PAGES)),
            figures,
            drawing: Arc::new(Semaphore::new(1)),
        })
    }

    /// `/`, `/series`, `/events` and `/figures`.
    pub(crate) fn routes(&self) -> Router {
        let (following, reading, drawing) = (self.clone(), self.clone(), self.clone());
        let events = |uri: Uri, headers: HeaderMap| async move { following.follow(&uri, &headers) };
        let series =
            |uri: Uri, headers: HeaderMap| async move { reading.read(&uri, &headers).await };
        Router::new()
            .route("/", get(|| async { document::response() }))
            .route("/events", get(events))
            .route("/series", get(series))
            .route("/figures", get(|| async move { drawing.draw().await }))
    }

    /// Sends the last state of a run to the pages that are open.
    pub(crate) async fn finish(&self) {
        let sent = async {
            self.feed.finish().await;
            // A page gives its permit back once its connection has taken everything.
            _ = self.open.acquire_many(MAX_PAGES as u32).await;
        };
        _ = tokio::time::timeout(MAX_FINISH, sent).await;
    }

    fn follow(&self, uri: &Uri, headers: &HeaderMap) -> Response {
        let Ok(permit) = self.open.clone().try_acquire_owned() else { return busy() };
        let Some(updates) = self.feed.follow(cursor(uri, headers)) else { return busy() };
        let stream = ReceiverStream::new(updates).map(move |Update { id, json }| {
            // It is held as long as the stream.
            let _permit = &permit;
            Ok::<_, Infallible>(
                Event::default().event("update").id(id).retry(RECONNECT_DELAY).data(json),
            )
        });
        let sse = Sse::new(stream).keep_alive(KeepAlive::new().interval(KEEP_ALIVE_INTERVAL));
        (document::SAFE_HEADERS, sse).into_response()
    }

    async fn draw(&self) -> Response {
        let figures = self.figures.clone();
        let _one = self.drawing.acquire().await;
        match tokio::task::spawn_blocking(move || figures()).await {
            Ok(html) => document::html_response(html),
            Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        }
    }

    async fn read(&self, uri: &Uri, headers: &HeaderMap) -> Response {
        match self.feed.read(cursor(uri, headers)).await {
            Some(Update { json, .. }) => {
                let headers = [(CONTENT_TYPE, "application/json"), (CACHE_CONTROL, "no-store")];
                (document::SAFE_HEADERS, headers, json).into_response()
            }
            None => busy(),
        }
    }
}

/// Everything that a page of this run directory would be sent, as JSON.
///
/// # Errors
/// If the directory cannot be read.
pub(crate) fn snapshot(run_dir: &Path) -> io::Result<String> {
    feed::snapshot(run_dir)
}

/// The page as a file that needs no server: it shows this update, and has these figures, which are
/// HTML.
pub(crate) fn with_figures(update: &str, figures: &[String]) -> String {
    document::with_snapshot(update, figures)
}

/// Where a page resumes: what the browser sends by itself when it comes back, else `since`.
fn cursor(uri: &Uri, headers: &HeaderMap) -> Option<Cursor> {
    let last = headers.get("last-event-id").and_then(|value| value.to_str().ok());
    let since = || uri.query()?.split('&').find_map(|pair| pair.strip_prefix("since="));
    Cursor::parse(last.or_else(since)?)
}

fn busy() -> Response {
    let text = format!("503: {MAX_PAGES} pages of this run are open already\n");
    (StatusCode::SERVICE_UNAVAILABLE, [(RETRY_AFTER, "10")], text).into_response()
}
