//! `launch`: from a plan to a result table. It prepares everything that can fail before a worker is started, then
//! lets the conductor run.

use crate::checkpoints::{CheckpointFiles, Checkpoints, Found};
use crate::conductor::Conductor;
use crate::credentials::Credentials;
use crate::exit::{EXIT_DATA, EXIT_STOPPED, Fatal};
use crate::ingest::{self, PackFile, Packs};
use crate::launcher::{Launcher, Place, WorkerCommand, worker_program};
use crate::ledger::{Ledger, last_generation, read_steps};
use crate::observe::Observed;
use crate::packs::PackShelf;
use crate::progress::{Bar, Progress, tell_of};
use crate::report::Results;
use crate::run::{Event, Run, Start, Verdict};
use crate::run_dir::RunDir;
use crate::server::{PlanNames, Service, Sessions, check_descriptors, serve};
use crate::store::Store;
use crate::tensorboard::TensorBoard;
use anyhow::{Context, Result};
use serde_json::json;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};
use thanos_configs::{Plan, to_yaml};
use thanos_proto::{PackRef, Welcome};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

/// Events that may wait for the conductor; a full queue makes sessions wait.
const MOST_EVENTS: usize = 4096;
/// The same signal so soon again is the same: Slurm tells every process of a job, and so this one twice.
const SAME_SIGNAL: Duration = Duration::from_secs(1);
/// How long the last commands may take to reach the workers when a run is over.
const MOST_FAREWELL: Duration = Duration::from_secs(2);

/// Who starts the workers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Starter {
    /// This program.
    This { place: Place, threads: usize, interface: Option<String> },
    /// Somebody else: the coordinator waits for them.
    Nobody,
}

/// Everything about a launch that is not in the plan.
#[derive(Clone, Debug)]
pub(crate) struct Launch {
    pub run_dir: PathBuf,
    /// Folder of the run's authority; `None`: everybody is let in, and nothing is encrypted.
    pub credentials: Option<PathBuf>,
    /// Go on with the run in `run_dir`.
    pub resume: bool,
    pub packs_dir: PathBuf,
    /// Most workers, and least.
    pub workers: usize,
    pub least: usize,
    /// How long to wait for more than the least.
    pub patience: Duration,
    pub starter: Starter,
    /// How long workers keep their state when they cannot reach the coordinator.
    pub lease: Duration,
    /// How long a stop may take; `None`: as long as it takes.
    pub grace: Option<Duration>,
    /// An earlier coordinator of this run was killed: its workers may be there.
    pub again: bool,
    /// Event files for TensorBoard in the run directory.
    pub tensorboard: bool,
    /// Where metrics and the run's state are served; `None`: nowhere.
    pub status: Option<SocketAddr>,
}

/// How a launch ended well.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Launched {
    Done(Results),
    /// At this step of this stage; `None`: before the first.
    Stopped(Option<(String, u64)>),
}

/// Runs a plan to its end, or to a stop.
///
/// # Errors
/// A [`Fatal`] with the exit code, where it is known.
pub(crate) async fn launch(plan: &Plan, launch: &Launch, listener: std::net::TcpListener) -> Result<Launched> {
    // What can be refused comes first: a launch that was refused leaves no run directory, and can be typed again.
    check_descriptors(launch.workers)?;
    let packs = pack(plan, &launch.packs_dir)?;
    for backbone in &plan.config().backbones {
        if let Some(path) = &backbone.checkpoint
            && let Err(error) = std::fs::metadata(path)
        {
            let message = format!("backbone {}: cannot read {}: {error}", backbone.name, path.display());
            return Err(Fatal::new(EXIT_DATA, message).into());
        }
    }
    let run_dir = match launch.resume {
        true => RunDir::open(&launch.run_dir, plan)?,
        false => RunDir::create(&launch.run_dir, plan)?,
    };
    let checkpoints = Checkpoints {
        run_dir: run_dir.path().into(),
        run: run_dir.identity().id.clone(),
        config_digest: plan.digest().into(),
        keep_last: plan.config().checkpoint.keep_last,
    };
    let stages: Vec<&str> = plan.stages().iter().map(|stage| stage.name()).collect();
    let found = checkpoints.find(&stages)?;
    for warning in &found.warnings {
        tracing::warn!("{warning}");
    }
    refuse_without_any(&run_dir, &found)?;
    let next_step = read_steps(run_dir.path())?.pop().map(|last| (last.stage, last.step + 1));
    let finished = |results: &[_]| -> Result<Launched> {
        let results = Results::new(run_dir.identity(), plan, results);
        results.write(run_dir.path())?;
        Ok(Launched::Done(results))
    };
    if found.complete.len() == stages.len() {
        return finished(&found.results);
    }
    let shared = launch.starter == Starter::Nobody;
    let credentials = launch.credentials.as_deref().map(|folder| Credentials::open_or_make(folder, shared));
    let credentials = credentials.transpose()?.map(Arc::new);
    let start = Start {
        workers: launch.workers,
        least: launch.least,
        patience: launch.patience,
        welcome: welcome(plan, &run_dir, &packs, (launch.lease, credentials.as_deref()))?,
        version: env!("CARGO_PKG_VERSION").into(),
        last_generation: last_generation(run_dir.path())?,
        stage: found.complete.len(),
        resume: found.resume,
        complete: found.complete,
        next_step,
        adopted: match &launch.starter {
            Starter::This { place, .. } if launch.again => place.worker_ids(),
            Starter::This { .. } | Starter::Nobody => Vec::new(),
        },
        grace: launch.grace,
    };
    let (shelf, names) = (PackShelf::new([&packs.train, &packs.test]), PlanNames::new(plan));
    let files = CheckpointFiles::new(run_dir.path(), stages.iter().copied());
    let (verdict, mut new) = conduct(start, launch, credentials, (listener, checkpoints, shelf, files, names)).await?;
    let mut results = found.results;
    results.append(&mut new);
    match verdict {
        Verdict::Done => finished(&results),
        Verdict::Stopped { at } => {
            Results::new(run_dir.identity(), plan, &results).write(run_dir.path())?;
            Ok(Launched::Stopped(at))
        }
        Verdict::Failed { message, exit_code } => Err(Fatal::new(exit_code, message).into()),
    }
}

/// Packs the plan's data, unless that was done before.
fn pack(plan: &Plan, packs_dir: &Path) -> Result<Packs> {
    let bar = Bar::new("images");
    let data = &plan.config().data;
    let packs = ingest::pack(data, packs_dir, &|split, done, total| bar.at(split, done, total)).map_err(Fatal::from)?;
    bar.finish();
    tell_of(data.kind, &packs);
    let fine = ingest::fine_labels(&packs.train.path).map_err(Fatal::from)?;
    plan.check_images(&fine).map_err(|rule| Fatal::new(EXIT_DATA, rule.to_string()))?;
    Ok(packs)
}

/// A run that had checkpoints and has none that is good must not silently start over.
fn refuse_without_any(run_dir: &RunDir, found: &Found) -> Result<(), Fatal> {
    if found.warnings.is_empty() || found.resume.is_some() || !found.complete.is_empty() {
        return Ok(());
    }
    let message = format!(
        "no checkpoint of {} is good:\n  {}\nto start over, name another --run-dir",
        run_dir.path().display(),
        found.warnings.join("\n  ")
    );
    Err(Fatal::new(EXIT_DATA, message))
}

fn welcome(
    plan: &Plan,
    run_dir: &RunDir,
    packs: &Packs,
    (lease, credentials): (Duration, Option<&Credentials>),
) -> Result<Welcome> {
    let text = |path: &Path| -> Result<String> {
        let path = std::path::absolute(path)?;
        path.to_str().map(str::to_owned).with_context(|| format!("{} is not UTF-8", path.display()))
    };
    let pack = |pack: &PackFile| -> Result<PackRef> {
        Ok(PackRef { split: pack.split.clone(), path: text(&pack.path)?, fingerprint: pack.fingerprint.clone() })
    };
    Ok(Welcome {
        run_id: run_dir.identity().id.clone(),
        run_dir: text(run_dir.path())?,
        config: to_yaml(plan.config()),
        config_digest: plan.digest().into(),
        packs: vec![pack(&packs.train)?, pack(&packs.test)?],
        lease,
        scrape_token_sha256: credentials.map(Credentials::scrape_token_sha256).transpose()?,
    })
}

/// Serves, starts the workers and conducts the run.
async fn conduct(
    start: Start,
    launch: &Launch,
    credentials: Option<Arc<Credentials>>,
    (listener, checkpoints, packs, files, names): (
        std::net::TcpListener,
        Checkpoints,
        PackShelf,
        CheckpointFiles,
        PlanNames,
    ),
) -> Result<(Verdict, Vec<thanos_proto::StageResult>)> {
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    let address = listener.local_addr()?;
    let (events, happened) = mpsc::channel(MOST_EVENTS);
    let (sessions, store) = (Sessions::default(), Arc::new(Store::default()));
    let (stop_serving, stopped) = oneshot::channel();
    let service = Service {
        events: events.clone(),
        sessions: sessions.clone(),
        store: store.clone(),
        packs: Arc::new(packs),
        files: Arc::new(files),
        names: Arc::new(names),
        workers: launch.workers,
        credentials: credentials.clone(),
        next_session: AtomicU64::new(1),
    };
    let server = tokio::spawn(serve(listener, service, stopped));
    watch_signals(events.clone());
    let progress = Progress::new();
    progress.line(&format!("run directory: {}", launch.run_dir.display()));
    let launcher = start_workers(launch, address, credentials.as_ref(), &events)?;
    if launcher.is_none() {
        let how = match &credentials {
            Some(credentials) => format!("--credentials {}", credentials.folder().display()),
            None => "--insecure".into(),
        };
        let workers = launch.workers;
        progress.line(&format!(
            "waiting at {address} for {workers} worker(s): thanos-worker --coordinator {address} --id NAME {how}"
        ));
    }
    let observed = match launch.status {
        Some(address) => Some(Observed::serve(address, credentials.as_deref(), &sessions, &start).await?),
        None => None,
    };
    let tensorboard = launch.tensorboard.then(|| TensorBoard::open(&launch.run_dir)).transpose()?;
    let mut ledger = Ledger::open(&launch.run_dir)?;
    ledger.event("coordinator", &json!({"pid": std::process::id(), "again": launch.again}))?;
    let now = Instant::now();
    let conductor = Conductor {
        run: Run::new(start, Duration::ZERO),
        sessions,
        store,
        ledger,
        checkpoints: Arc::new(checkpoints),
        launcher: launcher.clone(),
        progress,
        tensorboard,
        observed,
        events,
        started: now,
        results: Vec::new(),
    };
    let outcome = conductor.conduct(happened).await;
    _ = stop_serving.send(());
    if let Some(launcher) = launcher {
        launcher.finish().await;
    }
    _ = tokio::time::timeout(MOST_FAREWELL, server).await;
    Ok(outcome?)
}

/// Starts the workers, unless an earlier coordinator did; `None`: somebody else starts them.
fn start_workers(
    launch: &Launch,
    address: SocketAddr,
    credentials: Option<&Arc<Credentials>>,
    events: &mpsc::Sender<Event>,
) -> Result<Option<Arc<Launcher>>> {
    let Starter::This { place, threads, interface } = launch.starter.clone() else { return Ok(None) };
    let command = WorkerCommand {
        program: worker_program()?,
        coordinator: address.to_string(),
        credentials: credentials.cloned(),
        threads,
        place,
        interface,
        shows: launch.status.is_some(),
        logs: launch.run_dir.join("logs"),
    };
    let launcher = Launcher::new(command, events);
    if !launch.again {
        launcher.start()?;
    }
    Ok(Some(Arc::new(launcher)))
}

/// Ctrl-C, SIGTERM and SIGUSR1 ask for a stop; the second one ends the program at once.
fn watch_signals(events: mpsc::Sender<Event>) {
    let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::user_defined1()];
    let [Ok(mut interrupt), Ok(mut terminate), Ok(mut user)] = kinds.map(signal) else {
        tracing::warn!("signals cannot be watched: a Ctrl-C will not save a checkpoint");
        return;
    };
    tokio::spawn(async move {
        let mut asked: Option<(Instant, &str)> = None;
        loop {
            let name = tokio::select! {
                _ = interrupt.recv() => "Ctrl-C",
                _ = terminate.recv() => "SIGTERM",
                _ = user.recv() => "SIGUSR1",
            };
            if asked.is_some_and(|(when, first)| first == name && when.elapsed() < SAME_SIGNAL) {
                continue;
            }
            if asked.is_some() {
                tracing::warn!("a second signal ({name}): ending at once, without a checkpoint");
                std::process::exit(i32::from(EXIT_STOPPED));
            }
            asked = Some((Instant::now(), name));
            _ = events.send(Event::StopAsked { reason: name.into() }).await;
        }
    });
}
