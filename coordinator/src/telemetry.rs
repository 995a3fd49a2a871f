//! Everything that monitoring knows of a run: it sees each event and effect, and changes nothing.
//! `metrics.rs` has the metrics that a recorder keeps; here are those that depend on when they are
//! read, the two files for a site's monitoring, and the end of a run, which a last scrape should
//! still see.

mod files;
mod goodput;
pub(crate) mod http;
pub(crate) mod metrics;
pub(crate) mod page;
pub(crate) mod progress;
mod tail;
mod text;
pub(crate) mod trackers;
mod worker_series;

use crate::run::{Effect, Event, Notice, SessionId};
use crate::signals;
use crate::terminal;
use anyhow::Result;
pub(crate) use files::Targets;
use files::{Contents, Files};
use goodput::Goodput;
pub(crate) use goodput::State;
use page::LivePage;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
pub use text::Described;
use text::Sample;
use thanos_proto::{Command, Heartbeat, RankPhase, StepDone, WorkerEvent};
use thanos_transport::{Recorder, run_name};
use tokio::sync::Notify;
use worker_series::{COLLECTIVE, HEARTBEAT, WorkerSeries};

const STATE_SECONDS: Described = (
    "thanos_trainer_state_seconds_total",
    "counter",
    "Time that the run has spent in each state since the coordinator began to serve; the states \
    add up to all of it",
);
const STATE: Described =
    ("thanos_trainer_state", "gauge", "1 for the state that the run is in, 0 for the others");

/// The metrics whose values are made when they are read.
pub const LIVE_METRICS: [Described; 4] = [STATE_SECONDS, STATE, HEARTBEAT, COLLECTIVE];

/// A run as it begins to be served.
pub(crate) struct Beginning {
    pub(crate) run_id: String,
    pub(crate) preset: String,
    /// [`State::Recovering`] if an earlier coordinator of this run was killed.
    pub(crate) state: State,
    /// The greatest generation that this run directory has seen.
    pub(crate) generation: u64,
    /// The stage that the ledger is in, and how many steps of it there are.
    pub(crate) next_step: Option<(String, u64)>,
    /// How long the end of the run waits for a last scrape.
    pub(crate) linger: Duration,
}

/// How a run has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done,
    Stopped,
    Failed,
}

impl Outcome {
    fn label(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
        }
    }
}

/// A handle; all of them are of one run.
#[derive(Clone)]
pub(crate) struct Telemetry {
    shared: Arc<Shared>,
}

struct Shared {
    /// On every series: the name of the run directory.
    run: String,
    recorder: Recorder,
    /// `None`: the run is not served yet.
    live: Mutex<Option<Live>>,
    files: Mutex<Option<Files>>,
    page: Mutex<Option<LivePage>>,
    /// A scrape was answered after the end of the run.
    last_scrape: Notify,
}

/// What changes with the run.
struct Live {
    began: Instant,
    linger: Duration,
    goodput: Goodput,
    workers: WorkerSeries,
    generation: u64,
    /// Workers of the generation in the order of their ranks; none between two generations.
    ranks: Vec<String>,
    /// Steps of each stage that were made at least once.
    made: BTreeMap<String, u64>,
    /// What rank 0 last reported, without what grows while it is stuck.
    progress: Option<(String, u64, RankPhase, u64, u64)>,
    /// When the commit that is in progress began, and the bytes of its checkpoint.
    committing: Option<(Instant, u64)>,
}

impl Telemetry {
    /// Begins to record. Once in a process, within a runtime.
    ///
    /// # Errors
    /// If something records already.
    pub(crate) fn install(run_dir: &Path) -> Result<Self> {
        let run = run_name(run_dir);
        let recorder = Recorder::install(&[("run", &run)])?;
        let (live, files, page) = (Mutex::new(None), Mutex::new(None), Mutex::new(None));
        Ok(Self {
            shared: Arc::new(Shared {
                run,
                recorder,
                live,
                files,
                page,
                last_scrape: Notify::new(),
            }),
        })
    }

    /// The run's name, as on every series.
    pub(crate) fn run(&self) -> &str {
        &self.shared.run
    }

    /// The run is served from now on.
    pub(crate) fn begin(&self, beginning: Beginning) {
        metrics::describe();
        metrics::begin(&beginning.run_id, &beginning.preset, beginning.linger);
        let Beginning { state, generation, next_step, linger, .. } = beginning;
        *self.lock() = Some(Live {
            began: Instant::now(),
            linger,
            goodput: Goodput::new(state, generation),
            workers: WorkerSeries::default(),
            generation,
            ranks: Vec::new(),
            made: next_step.into_iter().collect(),
            progress: None,
            committing: None,
        });
    }

    /// Writes the files of the run directory from now on. Without them the run continues.
    pub(crate) fn write_files(&self, run_dir: &Path, targets: Option<Targets>) {
        let telemetry = self.clone();
        let metrics = Box::new(move || text::without_process(&telemetry.text()));
        match Files::start(run_dir, Contents { metrics, targets }) {
            Ok(files) => {
                *self.shared.files.lock().unwrap_or_else(PoisonError::into_inner) = Some(files)
            }
            Err(error) => tracing::warn!("metrics.prom and targets.json are not written: {error}"),
        }
    }

    /// Something happened; the rules have not seen it yet.
    pub(crate) fn on_event(&self, event: &Event) {
        let mut live = self.lock();
        let Some(live) = live.as_mut() else { return };
        match event {
            Event::Opened { session, hello } => live.workers.opened(*session, &hello.worker_id),
            Event::Closed { session } => live.workers.closed(*session),
            Event::Received { session, event: WorkerEvent::Heartbeat(heartbeat) } => {
                live.heartbeat(*session, heartbeat)
            }
            Event::Received { session, event: WorkerEvent::Step(step) } => {
                live.step(*session, step)
            }
            _ => {}
        }
    }

    /// Something is to be done.
    pub(crate) fn on_effect(&self, effect: &Effect) {
        metrics::on_effect(effect);
        let mut live = self.lock();
        let Some(live) = live.as_mut() else { return };
        let now = live.began.elapsed();
        match effect {
            Effect::Send { session, command: Command::Welcome(_) } => {
                live.workers.welcomed(*session, metrics::now())
            }
            Effect::OpenStore { generation } if *generation > live.generation => {
                live.goodput.interrupted(now);
                live.ranks.clear();
            }
            Effect::Notify(Notice::Began { generation, workers, .. }) => {
                (live.generation, live.ranks) = (*generation, workers.clone());
                live.goodput.began(*generation, now);
            }
            Effect::Commit { written, .. } => {
                let bytes = written.files.iter().map(|file| file.bytes).sum();
                live.committing = Some((Instant::now(), bytes));
            }
            Effect::Notify(Notice::Saved { .. }) => {
                if let Some((began, bytes)) = live.committing.take() {
                    metrics::committed(began.elapsed(), bytes);
                }
            }
            _ => {}
        }
    }

    /// The state that the run is in, and the seconds in each since the coordinator began to serve;
    /// `None` before that.
    pub(crate) fn states(&self) -> Option<(&'static str, Vec<(&'static str, f64)>)> {
        let live = self.lock();
        let live = live.as_ref()?;
        let seconds = live
            .goodput
            .seconds(live.began.elapsed())
            .map(|(state, seconds)| (state.label(), seconds));
        Some((live.goodput.state().label(), seconds.into()))
    }

    /// The open live pages of the run, which see its end.
    pub(crate) fn show_end_on(&self, page: LivePage) {
        *self.shared.page.lock().unwrap_or_else(PoisonError::into_inner) = Some(page);
    }

    /// The page `/metrics`.
    pub(crate) fn scrape(&self) -> String {
        if self.lock().as_ref().is_some_and(|live| live.goodput.state() == State::Ended) {
            self.shared.last_scrape.notify_one();
        }
        self.text()
    }

    fn text(&self) -> String {
        let mut text = self.shared.recorder.text();
        if let Some(live) = self.lock().as_ref() {
            live.write(&mut text, &self.shared.run);
        }
        text
    }

    /// The run is over: writes its final values, and waits for a scrape of them as long as it was
    /// asked to. A stop that must be over in time (`has_deadline`) waits for none.
    pub(crate) async fn end(&self, outcome: Outcome, has_deadline: bool) {
        let linger = match self.lock().as_mut() {
            None => return,
            Some(live) => {
                live.goodput.end(live.began.elapsed());
                live.ranks.clear();
                live.linger
            }
        };
        metrics::ended(outcome.label());
        let files = self.shared.files.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(files) = &files {
            files.write_metrics().await;
        }
        let page = self.shared.page.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(page) = page {
            page.finish().await;
        }
        let must_end_soon = has_deadline && outcome == Outcome::Stopped;
        if !linger.is_zero() && !must_end_soon {
            self.linger(linger, outcome.label()).await;
        }
        if let Some(files) = &files {
            files.remove_targets().await;
        }
    }

    async fn linger(&self, limit: Duration, outcome: &str) {
        let wait =
            format!("waiting up to {limit:?} for a last scrape of /metrics; Ctrl-C ends the wait");
        let mut stop_signals = signals::received();
        terminal::line(&format!("the run has ended ({outcome}): {wait}"));
        tokio::select! {
            () = self.shared.last_scrape.notified() => {}
            () = tokio::time::sleep(limit) => terminal::line("no scrape within the limit: \
                metrics.prom has the final values"),
            _ = stop_signals.recv() => {}
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Live>> {
        self.shared.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Live {
    fn is_rank_0(&self, session: SessionId) -> bool {
        self.ranks.first().is_some_and(|rank_0| self.workers.id(session) == Some(rank_0))
    }

    fn heartbeat(&mut self, session: SessionId, heartbeat: &Heartbeat) {
        self.workers.beat(session, heartbeat, metrics::now());
        if !self.is_rank_0(session) || heartbeat.generation != self.generation {
            return;
        }
        self.goodput.phase(heartbeat.generation, &heartbeat.phase, self.began.elapsed());
        let Heartbeat { stage, step, phase, collectives, progress, .. } = heartbeat.clone();
        let progress = Some((stage, step, phase, collectives, progress));
        if progress != self.progress {
            self.progress = progress;
            metrics::progressed();
        }
    }

    fn step(&mut self, session: SessionId, step: &StepDone) {
        if !self.is_rank_0(session) || step.generation != self.generation {
            return;
        }
        self.goodput.step(step.generation, self.began.elapsed());
        metrics::progressed();
        let made = self.made.entry(step.stage.clone()).or_default();
        if step.step < *made {
            metrics::redone();
        }
        *made = (*made).max(step.step + 1);
    }

    fn write(&self, text: &mut String, run: &str) {
        let seconds = self.goodput.seconds(self.began.elapsed());
        let label = |state: State| vec![("state", state.label().to_owned())];
        let is_counted = |(state, _): &(State, f64)| *state != State::Ended;
        let seconds: Vec<Sample> = seconds
            .into_iter()
            .filter(is_counted)
            .map(|(state, seconds)| (label(state), seconds))
            .collect();
        let current = self.goodput.state();
        let states = State::ALL.map(|state| (label(state), f64::from(u8::from(state == current))));
        let (heartbeats, collectives) = self.workers.samples();
        text::write(text, run, STATE_SECONDS, &seconds);
        text::write(text, run, STATE, &states);
        text::write(text, run, HEARTBEAT, &heartbeats);
        text::write(text, run, COLLECTIVE, &collectives);
    }
}
