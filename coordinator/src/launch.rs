//! `launch`: from a plan to a result table. What can be refused before a worker is started is in
//! `prepare.rs`; here the workers are started, and the event loop runs.

mod event_lines;
pub(crate) mod event_loop;
pub(crate) mod given_weights;
pub(crate) mod journal;
pub(crate) mod prepare;
pub(crate) mod status_listener;
pub(crate) mod supervisor;

use crate::exit::{
    EXIT_CONFIG, EXIT_DATA, EXIT_NO_PERMISSION, EXIT_SOFTWARE, EXIT_UNREACHABLE, EXIT_USAGE, Fatal,
};
use crate::launch::event_loop::EventLoop;
use crate::launch::journal::Journal;
use crate::launch::prepare::{Prepared, prepare};
use crate::launch::status_listener::StatusListener;
use crate::report::{figures_of_rows, report_file, write_report};
use crate::run::CollectivesChoice;
use crate::run::{Event, Placement, Run, Start, Timeouts, Verdict};
use crate::run_dir::RunDir;
use crate::run_dir::checkpoints::{CheckpointFiles, Checkpoints};
use crate::run_dir::ledger::{Ledger, last_generation, read_steps, workers_of_last_generation};
use crate::run_dir::results::Results;
use crate::server::credentials::Credentials;
use crate::server::pack_stream::PackServer;
use crate::server::rendezvous::Store;
use crate::server::{PlanNames, Service, Sessions, serve};
use crate::signals::StopSignals;
use crate::telemetry::http::{Observed, ServedRun, targets};
use crate::telemetry::metrics;
use crate::telemetry::progress::Progress;
use crate::telemetry::trackers::{Ending, Trackers};
use crate::telemetry::{Beginning, Outcome, State, Targets, Telemetry};
use crate::terminal;
use crate::workers::{LaunchTarget, Launcher, WorkerCommand};
use anyhow::{Context, Result};
use nix::ifaddrs::getifaddrs;
use serde_json::json;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};
use thanos_configs::{Plan, to_yaml};
use thanos_data::{PackFile, Packs};
use thanos_formats::StartedWith;
use thanos_proto::{BenchRequest, PackRef, StageResult, Welcome};
use thanos_transport::DeviceChoice;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};

/// Events that may wait for the event loop; a full queue makes sessions wait.
const MAX_EVENTS: usize = 4096;
/// How long the last commands may take to reach the workers when a run is over.
const LEAVE_DELIVERY_TIMEOUT: Duration = Duration::from_secs(2);

/// How the workers are started.
#[derive(Clone, Debug)]
pub(crate) enum Starter {
    /// This program.
    This {
        program: PathBuf,
        device: DeviceChoice,
        target: Arc<dyn LaunchTarget>,
        threads: usize,
        interface: Option<String>,
    },
    /// Not this program: the coordinator waits for them.
    External,
}

impl Starter {
    pub(crate) fn placement(&self) -> Placement {
        match self {
            Self::This { target, .. } => target.placement(),
            Self::External => Placement::External,
        }
    }

    /// Whether it makes all workers of a machine share a GPU.
    fn shares_gpu(&self) -> bool {
        matches!(self, Self::This { device: DeviceChoice::CudaIndex(_), .. })
    }
}

/// Everything about a launch that is not in the plan.
#[derive(Clone, Debug)]
pub(crate) struct Launch {
    pub run_dir: PathBuf,
    /// Folder of the run's authority; `None`: every client is admitted, and nothing is encrypted.
    pub credentials: Option<PathBuf>,
    /// Continue with the run in `run_dir`.
    pub resume: bool,
    pub packs_dir: PathBuf,
    /// What the run's next resume does again, unless options change it.
    pub started_with: StartedWith,
    /// Most workers, and least.
    pub workers: usize,
    pub min_workers: usize,
    /// How long to wait for more than the least.
    pub rendezvous_timeout: Duration,
    pub starter: Starter,
    pub collectives: CollectivesChoice,
    /// How long workers keep their state when they cannot reach the coordinator.
    pub lease: Duration,
    /// How long a stop may take; `None`: as long as it takes.
    pub grace: Option<Duration>,
    /// An earlier coordinator of this run was killed: its workers may be there.
    pub again: bool,
    /// It had been requested to stop.
    pub stop_requested: bool,
    /// Started by `--quick`: the run is marked as one that only shows that every stage works.
    pub quick: bool,
    /// Where the live page, metrics and the run's state are served; `None`: nowhere.
    pub status: Option<StatusListener>,
    /// How long the end waits for a last scrape; zero: not at all.
    pub linger: Duration,
    /// The token that metrics are shown for, in a file of the site's; `None`: that of the run's
    /// credentials.
    pub scrape_token_file: Option<PathBuf>,
    /// The folder in which the site's Prometheus looks for files of targets; `None`: it looks in
    /// none.
    pub targets_dir: Option<PathBuf>,
    /// With which a stopped run continues, such as `serve`.
    pub command: &'static str,
    /// The run is a benchmark, on these packs instead of those of the plan's data.
    pub bench: Option<(BenchRequest, Packs)>,
}

/// How a launch ended well.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Launched {
    Done(Results),
    /// At this step of this stage; `None`: before the first.
    Stopped(Option<(String, u64)>),
}

/// Runs a plan to its end, or to a stop. Monitoring may see the end for a while.
///
/// # Errors
/// A [`Fatal`] with the exit code, where it is known.
pub(crate) async fn launch(
    plan: &Plan,
    (launch, stop_signals): (&Launch, &StopSignals),
    listener: std::net::TcpListener,
) -> Result<Launched> {
    let telemetry = Telemetry::install(&launch.run_dir)?;
    let launched = run_to_end(plan, launch, stop_signals, &telemetry, listener).await;
    // The run directory is free by now: another launch can continue it.
    let outcome = match &launched {
        Ok(Launched::Done(_)) => Outcome::Done,
        Ok(Launched::Stopped(_)) => Outcome::Stopped,
        Err(_) => Outcome::Failed,
    };
    telemetry.end(outcome, launch.grace.is_some()).await;
    launched
}

async fn run_to_end(
    plan: &Plan,
    launch: &Launch,
    stop_signals: &StopSignals,
    telemetry: &Telemetry,
    listener: std::net::TcpListener,
) -> Result<Launched> {
    let Prepared { run_dir, packs, checkpoints, found, credentials, status } =
        prepare(plan, launch)?;
    let stages: Vec<&str> = plan.stages().iter().map(|stage| stage.name()).collect();
    let next_step = read_steps(run_dir.path())?.pop().map(|last| (last.stage, last.step + 1));
    let finished = |results: &[_]| -> Result<Launched> {
        let results = Results::new(run_dir.identity(), plan, results);
        results.write(run_dir.path())?;
        Ok(Launched::Done(results))
    };
    // A benchmark's directory is removed at its end.
    let start_trackers = || Trackers::start(run_dir.path(), plan.config(), run_dir.identity());
    let mut trackers = launch.bench.is_none().then(start_trackers);
    let results_of = |results: &[_]| Results::new(run_dir.identity(), plan, results);
    if found.complete.len() == stages.len() {
        // They may lack what could not be delivered when the run ended.
        end_trackers(trackers, launch, Ending::Done(results_of(&found.results))).await;
        return finished(&found.results);
    }
    let start = Start {
        workers: launch.workers,
        min_workers: launch.min_workers,
        rendezvous_timeout: launch.rendezvous_timeout,
        welcome: welcome(plan, &run_dir, &packs, (launch, credentials.as_deref()))?,
        version: env!("CARGO_PKG_VERSION").into(),
        last_generation: last_generation(run_dir.path())?,
        stage: found.complete.len(),
        resume: found.resume,
        complete: found.complete,
        next_step,
        adopted: match &launch.starter {
            Starter::This { target, .. } if launch.again => target.worker_ids(),
            Starter::This { .. } => Vec::new(),
            Starter::External => workers_of_last_generation(run_dir.path())?,
        },
        grace: launch.grace,
        collectives: launch.collectives,
        shares_gpu: launch.starter.shares_gpu(),
        launched: launch.starter.placement() != Placement::External,
        stages: stages.iter().map(|stage| (*stage).to_owned()).collect(),
        timeouts: Timeouts::new(&plan.config().timeouts, launch.starter.placement()),
    };
    telemetry.begin(beginning(launch, plan, &start));
    found.results.iter().for_each(metrics::complete);
    let (pack_server, names) = (PackServer::new([&packs.train, &packs.test]), PlanNames::new(plan));
    let files = CheckpointFiles::new(run_dir.path(), stages.iter().copied());
    let serving =
        Serving { telemetry, listener, status, checkpoints, packs: pack_server, files, names };
    let conducted = conduct(start, (launch, stop_signals), credentials, serving).await;
    if !launch.resume && could_not_start(&conducted) && read_steps(run_dir.path())?.is_empty() {
        run_dir.withdraw()?;
        // It has no step, and no tracker needs to know of it.
        trackers = None;
    }
    let mut results = found.results;
    let ending = ending(&conducted, |new| results_of(&[&results[..], new].concat()));
    end_trackers(trackers, launch, ending).await;
    let (verdict, mut new) = conducted?;
    results.append(&mut new);
    let launched = match verdict {
        Verdict::Done => finished(&results),
        Verdict::Stopped { at } => {
            results_of(&results).write(run_dir.path())?;
            Ok(Launched::Stopped(at))
        }
        Verdict::Failed { message, exit_code } => Err(Fatal::new(exit_code, message).into()),
    };
    if launch.bench.is_none() {
        leave_report(run_dir.path(), &launch.packs_dir);
    }
    launched
}

/// A run that has ended can be looked at without a server. That it cannot be written does not
/// change how it ended.
fn leave_report(run_dir: &Path, packs_dir: &Path) {
    // A run that could not start leaves no directory.
    if run_dir.exists()
        && let Err(error) = write_report(run_dir, None, Some(packs_dir))
    {
        let file = report_file(run_dir).display().to_string();
        let again = "`thanos-coord report RUN_DIR --html` writes it";
        terminal::line(&format!("the report {file} could not be written: {error:#}; {again}"));
    }
}

/// Lets the trackers take what is left: for a short time where the whole stop has a limit.
async fn end_trackers(trackers: Option<Trackers>, launch: &Launch, ending: Ending) {
    if let Some(trackers) = trackers {
        trackers.finish(ending, launch.grace.is_some()).await;
    }
}

/// How a run ended, for its trackers.
fn ending(
    conducted: &Result<Conducted>,
    results: impl FnOnce(&[StageResult]) -> Results,
) -> Ending {
    match conducted {
        Ok((Verdict::Done, new)) => Ending::Done(results(new)),
        Ok((Verdict::Stopped { .. }, _)) => Ending::Stopped,
        Ok((Verdict::Failed { exit_code, .. }, _)) => Ending::Failed(*exit_code),
        Err(error) => {
            let fatal = error.downcast_ref::<Fatal>();
            Ending::Failed(fatal.map_or(EXIT_SOFTWARE, |fatal| fatal.exit_code))
        }
    }
}

/// Whether a run has failed for a reason that its user can fix, rather than by what it computed or
/// wrote.
fn could_not_start(conducted: &Result<Conducted>) -> bool {
    let mendable = [EXIT_USAGE, EXIT_DATA, EXIT_UNREACHABLE, EXIT_NO_PERMISSION, EXIT_CONFIG];
    match conducted {
        Ok((Verdict::Failed { exit_code, .. }, _)) => mendable.contains(exit_code),
        Ok((Verdict::Done | Verdict::Stopped { .. }, _)) => false,
        Err(error) => {
            error.downcast_ref::<Fatal>().is_some_and(|fatal| mendable.contains(&fatal.exit_code))
        }
    }
}

fn welcome(
    plan: &Plan,
    run_dir: &RunDir,
    packs: &Packs,
    (launch, credentials): (&Launch, Option<&Credentials>),
) -> Result<Welcome> {
    let text = |path: &Path| -> Result<String> {
        let path = std::path::absolute(path)?;
        path.to_str().map(str::to_owned).with_context(|| format!("{} is not UTF-8", path.display()))
    };
    let pack = |pack: &PackFile| -> Result<PackRef> {
        Ok(PackRef {
            split: pack.split.clone(),
            path: text(&pack.path)?,
            fingerprint: pack.fingerprint.clone(),
        })
    };
    Ok(Welcome {
        run_id: run_dir.identity().id.clone(),
        run_dir: text(run_dir.path())?,
        config: to_yaml(plan.config()),
        config_digest: plan.resolved_digest().into(),
        packs: vec![pack(&packs.train)?, pack(&packs.test)?],
        lease: launch.lease,
        scrape_token_sha256: credentials.map(Credentials::scrape_token_sha256).transpose()?,
        grace: launch.grace,
        bench: launch.bench.as_ref().map(|(request, _)| *request),
    })
}

/// What workers and people reach, and what is served there.
struct Serving<'a> {
    telemetry: &'a Telemetry,
    listener: std::net::TcpListener,
    status: Option<std::net::TcpListener>,
    checkpoints: Checkpoints,
    packs: PackServer,
    files: CheckpointFiles,
    names: PlanNames,
}

/// How a run ended, and what its stages measured.
type Conducted = (Verdict, Vec<StageResult>);

/// Serves, starts the workers and conducts the run.
async fn conduct(
    start: Start,
    (launch, stop_signals): (&Launch, &StopSignals),
    credentials: Option<Arc<Credentials>>,
    Serving { telemetry, listener, status, checkpoints, packs, files, names }: Serving<'_>,
) -> Result<Conducted> {
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    let address = listener.local_addr()?;
    let (events, happened) = mpsc::channel(MAX_EVENTS);
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
    stop_signals.deliver_to(events.clone());
    if launch.stop_requested {
        let reason = "requested before the coordinator was restarted".into();
        _ = events.try_send(Event::StopRequested { reason });
    }
    if launch.bench.is_none() {
        terminal::line(&format!("run directory: {}", launch.run_dir.display()));
    }
    let launcher = start_workers(launch, address, credentials.as_ref(), &events)?;
    if launcher.is_none() {
        invite(launch.workers, address, credentials.as_deref())?;
    }
    let run_dir = PathBuf::from(&start.welcome.run_dir);
    let packs_dir = launch.packs_dir.clone();
    let figures = Arc::new(move || figures_of_rows(&run_dir, Some(&packs_dir)));
    let served = ServedRun { sessions: &sessions, telemetry, start: &start, figures };
    let observed = observe(launch, served, status, credentials.as_deref())?;
    let ledger = Ledger::open(&launch.run_dir)?;
    let journal = Journal::start(ledger, checkpoints, (sessions.clone(), events))?;
    let about =
        json!({"pid": std::process::id(), "again": launch.again, "command": launch.command});
    journal.event("coordinator", about);
    let event_loop = EventLoop {
        journal_timeout: start.timeouts.storage,
        run: Run::new(start, Duration::ZERO),
        sessions,
        store,
        journal,
        launcher: launcher.clone(),
        progress: Progress::new(),
        telemetry: telemetry.clone(),
        observed,
        started: Instant::now(),
        results: Vec::new(),
    };
    let outcome = event_loop.run_to_end(happened).await;
    _ = stop_serving.send(());
    if let Some(launcher) = launcher {
        launcher.finish().await;
    }
    _ = tokio::time::timeout(LEAVE_DELIVERY_TIMEOUT, server).await;
    Ok(outcome?)
}

fn beginning(launch: &Launch, plan: &Plan, start: &Start) -> Beginning {
    Beginning {
        run_id: start.welcome.run_id.clone(),
        preset: plan.config().name.clone(),
        state: if start.adopted.is_empty() { State::WaitingForWorkers } else { State::Recovering },
        generation: start.last_generation,
        next_step: start.next_step.clone(),
        linger: if launch.status.is_some() { launch.linger } else { Duration::ZERO },
    }
}

/// Serves the run's pages, if there is a listener, and keeps the files for monitoring:
/// `metrics.prom` in the run directory, and, if pages are served, where they are: in
/// `targets.json`, and in the site's folder of such files.
fn observe(
    launch: &Launch,
    run: ServedRun<'_>,
    status: Option<std::net::TcpListener>,
    credentials: Option<&Credentials>,
) -> Result<Option<Observed>> {
    let address = status.as_ref().map(std::net::TcpListener::local_addr).transpose()?;
    let (sessions, telemetry, run_id) =
        (run.sessions.clone(), run.telemetry, &run.start.welcome.run_id);
    let observed =
        status.map(|listener| Observed::serve(listener, credentials, run)).transpose()?;
    // A benchmark's directory is removed at its end.
    if launch.bench.is_some() {
        return Ok(observed);
    }
    let of_site = launch.targets_dir.as_ref().map(|folder| folder.join(format!("{run_id}.json")));
    let files = [launch.run_dir.join("targets.json")].into_iter().chain(of_site).collect();
    let (run, is_secure) = (telemetry.run().to_owned(), credentials.is_some());
    let found = address.map(|address| {
        let addresses = reachable(address);
        Targets { files, list: Box::new(move || targets(&run, &addresses, &sessions, is_secure)) }
    });
    telemetry.write_files(&launch.run_dir, found);
    Ok(observed)
}

/// Prints the command with which workers join, with an address that they can connect to.
fn invite(workers: usize, address: SocketAddr, credentials: Option<&Credentials>) -> Result<()> {
    let how = match credentials {
        Some(credentials) => format!("--credentials {}", credentials.folder().display()),
        None => "--insecure".into(),
    };
    let reachable = reachable(address);
    let (coordinator, others) = reachable.split_first().context("an address of this machine")?;
    terminal::line(&format!(
        "waiting at {address} for {workers} worker(s): thanos-worker --coordinator {coordinator} \
        --id NAME {how}"
    ));
    if address.ip().is_unspecified() {
        let others: Vec<String> = others.iter().map(|other| format!(", {}", other.ip())).collect();
        terminal::line(&format!(
            "{} stands for every address of this machine: {}{}",
            address.ip(),
            coordinator.ip(),
            others.concat()
        ));
    }
    Ok(())
}

/// Under which addresses workers reach a coordinator that listens here, those of other machines
/// first.
fn reachable(address: SocketAddr) -> Vec<SocketAddr> {
    if !address.ip().is_unspecified() {
        return vec![address];
    }
    let all = getifaddrs().into_iter().flatten().filter_map(|one| {
        let one = one.address?;
        let v4 = one.as_sockaddr_in().map(|v4| IpAddr::from(v4.ip()));
        v4.or(one.as_sockaddr_in6().map(|v6| IpAddr::from(v6.ip())))
    });
    // A link-local address needs a zone, which is another one on each machine.
    let is_usable = |ip: &IpAddr| match ip {
        IpAddr::V4(ip) => !ip.is_link_local(),
        IpAddr::V6(ip) => address.is_ipv6() && !ip.is_unicast_link_local(),
    };
    let mut ips: Vec<IpAddr> = all.filter(is_usable).collect();
    ips.sort_by_key(|ip| (ip.is_loopback(), ip.is_ipv6()));
    ips.dedup();
    ips.into_iter().map(|ip| SocketAddr::new(ip, address.port())).collect()
}

/// Starts the workers, unless an earlier coordinator did; `None`: they are started separately.
fn start_workers(
    launch: &Launch,
    address: SocketAddr,
    credentials: Option<&Arc<Credentials>>,
    events: &mpsc::Sender<Event>,
) -> Result<Option<Arc<Launcher>>> {
    let Starter::This { program, device, target, threads, interface } = launch.starter.clone()
    else {
        return Ok(None);
    };
    let command = WorkerCommand {
        program,
        device,
        shares_gpu_by_nccl: launch.starter.shares_gpu()
            && launch.collectives == CollectivesChoice::Nccl,
        coordinator: address.to_string(),
        credentials: credentials.cloned(),
        threads,
        target,
        interface,
        shows: launch.status.as_ref().is_some_and(|status| status.is_typed),
        logs: launch.run_dir.join("logs"),
    };
    let launcher = Launcher::new(command, events);
    match launch.again {
        true => launcher.adopt_all(),
        false => launcher.start()?,
    }
    Ok(Some(Arc::new(launcher)))
}
