//! `launch` and `serve`: their options, and what a launch is by them, by the machine and by the
//! allocation.

use super::launcher::{DeviceOptions, LauncherName};
use super::series_arguments::SeriesArguments;
use super::size::{Nodes, Size, nodes};
use super::slurm_arguments::SlurmArguments;
use super::{PacksDir, Target, duration, plan, plan_to_resume, quick, quick_plan};
use crate::exit::{EXIT_STOPPED, EXIT_USAGE, Fatal};
use crate::launch::status_listener::{StatusChoice, StatusListener};
use crate::launch::supervisor::{end_with, listen};
use crate::launch::{Launch, Launched, Starter, launch};
use crate::run::CollectivesChoice;
use crate::run_dir::{Claimed, identity};
use crate::server::MAX_WORKERS;
use crate::signals::StopSignals;
use crate::terminal::{self, OutputError};
use crate::workers::devices::{Devices, device_of_environment, worker_program};
use crate::workers::slurm::Allocation;
use anyhow::Result;
use clap::{Args, ValueEnum};
use listenfd::ListenFd;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;
use thanos_configs::Plan;
use thanos_formats::{RUN_JSON, StartedWith};
use thanos_transport::DeviceChoice;
use tokio::runtime::Runtime;

#[derive(Args, Debug)]
pub(super) struct LaunchArguments {
    #[command(flatten)]
    pub(super) target: Target,
    #[command(flatten)]
    pub(super) series: SeriesArguments,
    /// Try an experiment and its data within a minute: a few steps of every stage on a few images,
    /// marked as such in the table, in run.json and in results.json
    #[arg(long)]
    pub(super) quick: bool,
    /// Nodes to train on, N or MIN:MAX; with the local launcher, all of them are on this machine
    /// [default: those of the Slurm allocation, else of the run to resume, else 1]
    #[arg(long, value_name = "N|MIN:MAX", value_parser = nodes)]
    nodes: Option<Nodes>,
    /// How long a rendezvous waits for more nodes than MIN
    #[arg(long, alias = "patience", default_value = "10s", value_parser = duration)]
    rendezvous_timeout: Duration,
    /// Workers on each node [default: in a Slurm allocation one per GPU, or per task; else that of
    /// the run to resume, else 1]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=64))]
    workers_per_node: Option<u16>,
    /// Network interface under which the nodes reach each other [default: the one that leads to the
    /// others]
    #[arg(long)]
    interface: Option<String>,
    /// How the workers are started [default: as of the run to resume, else local]
    #[arg(long, value_enum)]
    launcher: Option<LauncherName>,
    /// Threads of each worker [default: of the run to resume, else the machine's cores shared among
    /// its workers]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads_per_worker: Option<u16>,
    /// Where the workers that this program starts train: auto, cpu, cuda (a GPU for each worker of
    /// a machine), or cuda:N (all of a machine share GPU N); `auto` is cuda if there are GPUs, else
    /// cpu [default: of the run to resume, else THANOS_DEVICE, else auto]
    #[arg(long, value_name = "DEVICE")]
    device: Option<DeviceChoice>,
    /// Library for the workers' collectives [default: of the run to resume, else auto]
    #[arg(long, value_enum)]
    collectives: Option<CollectivesChoice>,
    /// The worker program [default: thanos-worker-cuda next to this program for GPUs, thanos-worker
    /// for CPUs]
    #[arg(long, value_name = "PATH")]
    worker_program: Option<PathBuf>,
    /// The run directory [default: the first free runs/NAME-N]
    #[arg(long)]
    pub(super) run_dir: Option<PathBuf>,
    /// Continue the run in --run-dir where it stopped, with the keys that KEY=VALUE changes;
    /// `auto`: if there is one, else start it
    #[arg(long, value_enum, requires = "run_dir", value_name = "auto", num_args = 0..=1,
        require_equals = true,
        default_missing_value = "always", hide_possible_values = true)]
    pub(super) resume: Option<Resume>,
    #[command(flatten)]
    packs: PacksDir,
    /// Address on which the coordinator listens; port 0 is any free one [default: 127.0.0.1:0; for
    /// srun, the address under which the other nodes reach this one]
    #[arg(long)]
    listen: Option<SocketAddr>,
    /// Folder of the run's certificate authority and tokens, as `thanos-coord credentials` makes it
    /// [default: RUN_DIR/credentials, made]
    #[arg(long, value_name = "DIR")]
    credentials: Option<PathBuf>,
    /// Neither encrypt nor authenticate: every client that reaches the ports can read the
    /// configuration, the images and the metrics, take part in the run, and end it
    #[arg(long, conflicts_with = "credentials")]
    insecure: bool,
    /// How long workers that cannot reach the coordinator keep their state and retry [default: 4s
    /// where this program starts them, else 60s]
    #[arg(long, value_parser = duration)]
    lease: Option<Duration>,
    /// How long a stop may take before the scheduler kills the program: steps that are not saved by
    /// then are recomputed at the resume
    #[arg(long, value_parser = duration)]
    grace: Option<Duration>,
    /// Address on which the live page, /metrics (Prometheus), /sd, /status (JSON), /healthz and
    /// /readyz are served; where other machines can reach it, over HTTPS and only with the token in
    /// CREDENTIALS/scrape-token; `off`: not served [default: for `launch` on a terminal a free port
    /// of 127.0.0.1, else off]
    #[arg(long, value_name = "ADDRESS|off")]
    status: Option<StatusChoice>,
    #[command(flatten)]
    slurm: SlurmArguments,
    /// How long the end of the run waits for a scrape of the final metrics; a stop with --grace
    /// does not wait [default: no wait]
    #[arg(long, value_parser = duration, requires = "status")]
    linger: Option<Duration>,
    /// File with the token that a scrape must present, instead of CREDENTIALS/scrape-token: one for
    /// all runs of a site
    #[arg(long, value_name = "FILE", conflicts_with = "insecure", requires = "status")]
    scrape_token_file: Option<PathBuf>,
    /// Folder in which RUN_ID.json is kept while the run is served, for Prometheus's file-based
    /// service discovery (RUN_DIR/targets.json is the same)
    #[arg(long, value_name = "DIR", requires = "status")]
    targets_dir: Option<PathBuf>,
    /// The process that restarts this one
    #[arg(long, hide = true)]
    supervised_by: Option<i32>,
    /// This process was restarted
    #[arg(long, hide = true)]
    again: bool,
    /// It was requested to stop before
    #[arg(long, hide = true)]
    stop_requested: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Resume {
    Always,
    Auto,
}

/// Does a launch, with the launcher that was typed or, for `serve`, `none`.
pub(super) fn act_launch(arguments: &LaunchArguments, forced: Option<LauncherName>) -> Result<u8> {
    if let (Some(series), None) = (arguments.series.member_of, arguments.supervised_by) {
        end_with(series)?;
    }
    let requested = Requested::of(arguments, forced)?;
    let address = match (arguments.listen, &requested.allocation) {
        (Some(address), _) => address,
        (None, Some(allocation)) => {
            (allocation.own_address(arguments.interface.as_deref())?, 0).into()
        }
        (None, None) => (Ipv4Addr::LOCALHOST, 0).into(),
    };
    // What was passed is in the environment once.
    let mut passed = ListenFd::from_env();
    let listener = listen(address, &mut passed)?;
    let is_watched = requested.launcher != LauncherName::None && terminal::stderr_is_terminal();
    let status = StatusListener::open(arguments.status, is_watched, &mut passed)?;
    let claimed = match &arguments.run_dir {
        None => Some(Claimed::new(
            Path::new(""),
            &quick::name(arguments.quick, &requested.plan.config().name),
        )?),
        Some(_) => None,
    };
    let claimed_path = claimed.as_ref().map(|claimed| claimed.path().to_owned());
    let run_dir = arguments.run_dir.clone().or(claimed_path).unwrap_or_default();
    match arguments.supervised_by {
        Some(supervisor) => end_with(supervisor)?,
        None => {
            let max_requeues = arguments.slurm.max_requeues;
            let launcher = requested.launcher;
            let code = launcher.supervise(&run_dir, &listener, status.as_ref(), max_requeues)?;
            if let Some(code) = code {
                return Ok(code);
            }
        }
    }
    let what = arguments.launch(&requested, run_dir, status)?;
    if let Some(workers) = requested.workers.as_ref().filter(|_| !arguments.again) {
        let of_job = requested.allocation.as_ref().map(Allocation::notices).unwrap_or_default();
        workers.devices.notices.iter().chain(&of_job).for_each(|notice| terminal::line(notice));
    }
    let (runtime, stop_signals) = runtime()?;
    let launched = runtime.block_on(launch(&requested.plan, (&what, &stop_signals), listener))?;
    Ok(report_outcome(launched, &what.run_dir, requested.launcher.command()))
}

/// What a run is coordinated on, and the stop signals that it receives from now on.
pub(super) fn runtime() -> Result<(Runtime, StopSignals)> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let stop_signals = {
        let _inside = runtime.enter();
        StopSignals::watch()
    };
    Ok((runtime, stop_signals))
}

/// What a launch is by its options, by the run that it resumes and by the allocation that it is in.
struct Requested {
    plan: Plan,
    resume: bool,
    launcher: LauncherName,
    allocation: Option<Allocation>,
    size: Size,
    /// Of each worker; `None`: the cores are shared.
    threads: Option<usize>,
    device_options: DeviceOptions,
    /// What this program starts; `None`: the workers are started separately.
    workers: Option<Workers>,
}

/// The workers that this program starts.
struct Workers {
    devices: Devices,
    program: PathBuf,
}

impl Requested {
    fn of(arguments: &LaunchArguments, forced: Option<LauncherName>) -> Result<Self> {
        // A member of a series continues its own quick run.
        let may_resume = arguments.again || arguments.series.member_of.is_some();
        quick::check(arguments.quick, arguments.resume.is_some(), may_resume)?;
        let run_dir = arguments.run_dir.as_deref();
        let resumed = run_dir.filter(|run_dir| match arguments.resume {
            Some(Resume::Always) => true,
            Some(Resume::Auto) => run_dir.join(RUN_JSON).exists(),
            None => false,
        });
        let (target, overrides) = arguments.target.parts();
        let plan = match (resumed, target) {
            (Some(run_dir), None) => plan_to_resume(run_dir, &overrides)?,
            _ if arguments.quick => quick_plan(&arguments.target)?,
            _ => plan(&arguments.target)?,
        };
        let before = match resumed {
            Some(run_dir) => identity(run_dir)?.started_with,
            None => None,
        };
        let launcher = LauncherName::choose(arguments.launcher, forced, before.as_ref())?;
        let device_options = arguments.device_options(launcher, before.as_ref())?;
        let before = before.filter(|before| launcher.keeps_size_of(before));
        arguments.slurm.check(launcher)?;
        let mut allocation = launcher.allocation()?;
        let size = arguments.size(allocation.as_mut(), before.as_ref())?;
        // Another number of threads adds in another order: the run keeps its own, in another
        // allocation of Slurm too.
        let threads = arguments.threads_per_worker.map(usize::from);
        let threads = threads.or_else(|| before.and_then(|before| before.threads_per_worker));
        let devices = launcher.devices(size, allocation.as_ref(), device_options)?;
        let workers = devices.map(|devices| arguments.workers(devices)).transpose()?;
        let resume = resumed.is_some();
        Ok(Self { plan, resume, launcher, allocation, size, threads, device_options, workers })
    }
}

/// Prints how a launch ended well, and returns its exit code.
fn report_outcome(launched: Launched, run_dir: &Path, command: &str) -> u8 {
    let run_dir = run_dir.display();
    match launched {
        Launched::Done(results) => {
            // The run is complete, whether or not its table can be printed.
            match terminal::print_line(&results.to_string()) {
                Ok(()) | Err(OutputError::Closed) => {}
                Err(error) => terminal::line(&format!(
                    "{error}; `thanos-coord report {run_dir}` prints the table"
                )),
            }
            0
        }
        Launched::Stopped(at) => {
            let at = at.map_or("before the first step".into(), |(stage, step)| {
                format!("after step {step} of stage {stage}")
            });
            terminal::line(&format!(
                "stopped {at}; resume with: thanos-coord {command} --resume --run-dir {run_dir}"
            ));
            EXIT_STOPPED
        }
    }
}

impl LaunchArguments {
    /// Everything about this launch that is not in its plan.
    fn launch(
        &self,
        requested: &Requested,
        run_dir: PathBuf,
        status: Option<StatusListener>,
    ) -> Result<Launch> {
        let own_credentials = || run_dir.join("credentials");
        let credentials =
            (!self.insecure).then(|| self.credentials.clone().unwrap_or_else(own_credentials));
        let Size { nodes, per_node, min_workers, max_workers } = requested.size;
        let starter = match &requested.workers {
            None => Starter::External,
            Some(workers) => self.starter(requested, workers),
        };
        let started_with = StartedWith {
            min_nodes: nodes.min,
            max_nodes: nodes.max,
            workers_per_node: per_node,
            threads_per_worker: match &starter {
                Starter::This { threads, .. } => Some(*threads),
                Starter::External => requested.threads,
            },
            launcher: requested.launcher.name(),
            device: requested.device_options.device.to_string(),
            collectives: requested.device_options.collectives.label().into(),
        };
        Ok(Launch {
            run_dir,
            credentials,
            resume: requested.resume,
            packs_dir: self.packs.path()?,
            started_with,
            workers: max_workers,
            min_workers,
            rendezvous_timeout: self.rendezvous_timeout,
            starter,
            collectives: requested.device_options.collectives,
            lease: self.lease.unwrap_or_else(|| requested.launcher.lease()),
            grace: self.grace,
            again: self.again,
            stop_requested: self.stop_requested,
            quick: self.quick,
            status,
            linger: self.linger.unwrap_or_default(),
            scrape_token_file: self.scrape_token_file.clone(),
            targets_dir: self.targets_dir.clone(),
            command: requested.launcher.command(),
            bench: None,
        })
    }

    /// As typed, else as the allocation has it, else as the run to resume was started. The
    /// allocation is reduced to what is used of it.
    fn size(
        &self,
        allocation: Option<&mut Allocation>,
        before: Option<&StartedWith>,
    ) -> Result<Size, Fatal> {
        let per_node = self.workers_per_node.map(usize::from);
        let size = match allocation {
            Some(allocation) => {
                let available = allocation.nodes.len();
                let all = Nodes { min: available, max: available };
                let Nodes { min, max } = self.nodes.unwrap_or(all);
                if available < min {
                    let message = format!("--nodes {min}: the allocation has {available}");
                    return Err(Fatal::new(EXIT_USAGE, message));
                }
                let nodes = Nodes { min, max: max.min(available) };
                allocation.limit(nodes.max, per_node);
                let per_node = allocation.nodes.iter().map(|node| node.workers).max().unwrap_or(1);
                let min_workers = allocation.fewest_workers(nodes.min);
                let max_workers = allocation.fewest_workers(nodes.max);
                Size { nodes, per_node, min_workers, max_workers }
            }
            None => {
                let nodes = before.map_or(Nodes { min: 1, max: 1 }, |before| Nodes {
                    min: before.min_nodes,
                    max: before.max_nodes,
                });
                let before = before.map_or(1, |before| before.workers_per_node);
                Size::uniform(self.nodes.unwrap_or(nodes), per_node.unwrap_or(before))
            }
        };
        if size.max_workers > MAX_WORKERS {
            let message =
                format!("{} workers: at most {MAX_WORKERS} are supported", size.max_workers);
            return Err(Fatal::new(EXIT_USAGE, message));
        }
        Ok(size)
    }

    /// As typed, else as the run to resume was started.
    fn device_options(
        &self,
        launcher: LauncherName,
        before: Option<&StartedWith>,
    ) -> Result<DeviceOptions, Fatal> {
        let before_collectives =
            before.and_then(|before| CollectivesChoice::from_str(&before.collectives, true).ok());
        let collectives = self.collectives.or(before_collectives).unwrap_or_default();
        let typed = [
            (self.device.is_some(), "--device"),
            (self.worker_program.is_some(), "--worker-program"),
        ];
        if let Some((_, option)) =
            typed.iter().find(|(is_typed, _)| *is_typed && launcher == LauncherName::None)
        {
            let message = format!(
                "serve starts no workers: {option} is for `launch`, and thanos-worker has --device"
            );
            return Err(Fatal::new(EXIT_USAGE, message));
        }
        let before_device = before.and_then(|before| before.device.parse().ok());
        let before_device = before_device.filter(|device| *device != DeviceChoice::Auto);
        let device = match self.device.or(before_device) {
            Some(device) => device,
            None if launcher == LauncherName::None => DeviceChoice::default(),
            None => device_of_environment()?.unwrap_or_default(),
        };
        Ok(DeviceOptions { device, collectives })
    }

    /// The workers' program for these devices.
    fn workers(&self, devices: Devices) -> Result<Workers> {
        let program = match &self.worker_program {
            // In a container the file is not that of this machine.
            Some(named) if !self.slurm.srun_arguments.is_empty() => named.clone(),
            named => worker_program(named.as_deref(), devices.kind)?,
        };
        Ok(Workers { devices, program })
    }

    fn starter(&self, requested: &Requested, workers: &Workers) -> Starter {
        let allocation = requested.allocation.as_ref();
        let max_workers = requested.size.max_workers;
        let srun_arguments = &self.slurm.srun_arguments;
        let (target, cores) = requested.launcher.target(max_workers, allocation, srun_arguments);
        Starter::This {
            program: workers.program.clone(),
            device: workers.devices.device,
            target,
            threads: requested.threads.unwrap_or(cores),
            interface: self.interface.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_word_may_be_an_override() {
        let check = |first: Option<&str>, target: Option<&str>, overrides: &[&str]| {
            let typed = Target { target: first.map(Into::into), overrides: vec!["seed=1".into()] };
            let overrides: Vec<String> = overrides.iter().map(|&word| word.into()).collect();
            assert_eq!(typed.parts(), (target, overrides), "{first:?}");
        };
        check(None, None, &["seed=1"]);
        check(Some("digits_cae"), Some("digits_cae"), &["seed=1"]);
        check(Some("data.dir=/a"), None, &["data.dir=/a", "seed=1"]);
        check(Some("runs/a=b.yaml"), Some("runs/a=b.yaml"), &["seed=1"]);
    }
}
