//! `launch` and `serve`: their options, and what a launch is by them, by the machine and by the allocation.

use super::{PacksDir, Target, duration, plan, plan_of_run};
use crate::exit::{EXIT_STOPPED, EXIT_USAGE, Fatal};
use crate::launch::{Launch, Launched, Starter, launch};
use crate::launcher::Place;
use crate::run_dir::fresh_path;
use crate::server::MOST_WORKERS;
use crate::signals::StopSignals;
use crate::slurm::{self, Allocation};
use crate::supervise::{end_with, listen, supervise};
use crate::terminal::{self, OutputError};
use anyhow::Result;
use clap::{Args, ValueEnum};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Workers of this machine must not outlive their supervisor by five seconds; others wait for whoever starts a
/// coordinator again.
const LOCAL_LEASE: Duration = Duration::from_secs(4);
const FOREIGN_LEASE: Duration = Duration::from_secs(60);

#[derive(Args, Debug)]
pub(super) struct LaunchArguments {
    #[command(flatten)]
    target: Target,
    /// Nodes to train on, N or LEAST:MOST; the local launcher has all of them on this machine [default: those of the
    /// Slurm allocation, else 1]
    #[arg(long, value_name = "N|LEAST:MOST", value_parser = nodes)]
    nodes: Option<Nodes>,
    /// How long to wait for more nodes than the least
    #[arg(long, default_value = "10s", value_parser = duration)]
    patience: Duration,
    /// Workers on each node [default: of a Slurm allocation one a GPU, or a task; else 1]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=64))]
    workers_per_node: Option<u16>,
    /// Network interface under which the nodes reach each other [default: the one that leads to the others]
    #[arg(long)]
    interface: Option<String>,
    /// Who starts the workers [default: local; for serve, none, and no other]
    #[arg(long, value_enum)]
    launcher: Option<LauncherName>,
    /// Threads of each worker [default: the machine's cores shared among its workers]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads_per_worker: Option<u16>,
    /// Where the run keeps its files [default: the first free runs/NAME-N]
    #[arg(long)]
    run_dir: Option<PathBuf>,
    /// Go on with the run in --run-dir where it stopped; `auto`: if there is one, else start it
    #[arg(long, value_enum, requires = "run_dir", value_name = "auto", num_args = 0..=1, require_equals = true,
        default_missing_value = "always", hide_possible_values = true)]
    resume: Option<Resume>,
    #[command(flatten)]
    packs: PacksDir,
    /// Address on which the coordinator listens; port 0 is any free one [default: 127.0.0.1:0; for srun, the address
    /// under which the other nodes reach this one]
    #[arg(long)]
    listen: Option<SocketAddr>,
    /// Folder of the run's certificate authority and tokens, as `thanos-coord credentials` makes it [default:
    /// RUN_DIR/credentials, made]
    #[arg(long, value_name = "DIR")]
    credentials: Option<PathBuf>,
    /// Neither encrypt nor ask who it is: whoever reaches the ports can read the configuration, the images and the
    /// metrics, take part in the run, and end it
    #[arg(long, conflicts_with = "credentials")]
    insecure: bool,
    /// How long workers that cannot reach the coordinator keep their state and try again [default: 4s where this
    /// program starts them, else 60s]
    #[arg(long, value_parser = duration)]
    lease: Option<Duration>,
    /// How long a stop may take, until whoever asked for it ends the program: what is not saved by then is done again
    #[arg(long, value_parser = duration)]
    grace: Option<Duration>,
    /// Address on which /metrics (Prometheus), /sd, /status (JSON), /healthz and /readyz are served; where other
    /// machines can reach it, by HTTPS, and to who has the token in CREDENTIALS/scrape-token [default: none are]
    #[arg(long, value_name = "ADDRESS")]
    status: Option<SocketAddr>,
    /// The process that starts this one again
    #[arg(long, hide = true)]
    supervised_by: Option<i32>,
    /// This process was started again
    #[arg(long, hide = true)]
    again: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Resume {
    Always,
    Auto,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum LauncherName {
    /// This program, on this machine
    Local,
    /// This program, on the nodes of the Slurm allocation that it runs in
    Srun,
    /// Somebody else: the coordinator waits for them
    None,
}

impl LauncherName {
    /// The command that starts a run with this launcher.
    fn command(self) -> &'static str {
        match self {
            Self::Local => "launch",
            Self::Srun => "launch --launcher srun",
            Self::None => "serve",
        }
    }
}

/// How many nodes a run has at least and at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Nodes {
    least: usize,
    most: usize,
}

/// `4`, or `2:4`.
fn nodes(text: &str) -> Result<Nodes, String> {
    let number = |text: &str| -> Result<usize, String> {
        let number = text.parse::<usize>().map_err(|error| error.to_string())?;
        let known = (1..=MOST_WORKERS).contains(&number);
        if known { Ok(number) } else { Err(format!("{number} is not in 1..={MOST_WORKERS}")) }
    };
    let (least, most) = text.split_once(':').unwrap_or((text, text));
    let nodes = Nodes { least: number(least)?, most: number(most)? };
    if nodes.least <= nodes.most { Ok(nodes) } else { Err(format!("{least} is more than {most}")) }
}

/// Does a `serve`, which starts no workers.
pub(super) fn act_serve(arguments: &LaunchArguments) -> Result<u8> {
    match arguments.launcher {
        None | Some(LauncherName::None) => act_launch(arguments, LauncherName::None),
        Some(LauncherName::Local | LauncherName::Srun) => {
            let message = "serve starts no workers: use `launch --launcher local` or `launch --launcher srun`, \
                or leave out --launcher";
            Err(Fatal::new(EXIT_USAGE, message).into())
        }
    }
}

/// Does a launch, with the launcher that was typed or the default.
pub(super) fn act_launch(arguments: &LaunchArguments, default: LauncherName) -> Result<u8> {
    let launcher = arguments.launcher.unwrap_or(default);
    let resume = match (arguments.resume, &arguments.run_dir) {
        (Some(Resume::Auto), Some(run_dir)) => run_dir.join("run.json").exists(),
        (resume, _) => resume.is_some(),
    };
    let plan = match (&arguments.run_dir, resume, &arguments.target.target) {
        (Some(run_dir), true, None) => plan_of_run(run_dir)?,
        _ => plan(&arguments.target)?,
    };
    let allocation = match launcher {
        LauncherName::Srun => Some(Allocation::of_this_job()?),
        LauncherName::Local | LauncherName::None => None,
    };
    let size = arguments.size(allocation.as_ref())?;
    let run_dir = arguments.run_dir.clone().unwrap_or_else(|| fresh_path(&plan.config().name));
    let address = match (arguments.listen, &allocation) {
        (Some(address), _) => address,
        (None, Some(allocation)) => (allocation.own_address(arguments.interface.as_deref())?, 0).into(),
        (None, None) => (Ipv4Addr::LOCALHOST, 0).into(),
    };
    let listener = listen(address)?;
    match (launcher, arguments.supervised_by) {
        (LauncherName::Local, None) => return supervise(&run_dir, &listener),
        (LauncherName::Srun, None) => {
            let code = supervise(&run_dir, &listener)?;
            if code == EXIT_STOPPED {
                slurm::requeue();
            }
            return Ok(code);
        }
        (_, Some(supervisor)) => end_with(supervisor)?,
        (LauncherName::None, None) => {}
    }
    let own_credentials = || run_dir.join("credentials");
    let credentials = (!arguments.insecure).then(|| arguments.credentials.clone().unwrap_or_else(own_credentials));
    let what = Launch {
        run_dir,
        credentials,
        resume,
        packs_dir: arguments.packs.path()?,
        workers: size.nodes.most * size.per_node,
        least: size.nodes.least * size.per_node,
        patience: arguments.patience,
        starter: match launcher {
            LauncherName::None => Starter::Nobody,
            LauncherName::Local | LauncherName::Srun => arguments.starter(size, allocation),
        },
        lease: arguments.lease.unwrap_or(match launcher {
            LauncherName::Local => LOCAL_LEASE,
            LauncherName::Srun | LauncherName::None => FOREIGN_LEASE,
        }),
        grace: arguments.grace,
        again: arguments.again,
        tensorboard: plan.config().log.tensorboard,
        status: arguments.status,
        command: launcher.command(),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let stop_signals = {
        let _inside = runtime.enter();
        StopSignals::watch()
    };
    let launched = runtime.block_on(launch(&plan, (&what, &stop_signals), listener))?;
    Ok(tell(launched, &what.run_dir, launcher.command()))
}

/// Prints how a launch ended well, and returns its exit code.
fn tell(launched: Launched, run_dir: &Path, command: &str) -> u8 {
    let run_dir = run_dir.display();
    match launched {
        Launched::Done(results) => {
            // The run is complete, whether or not its table can be printed.
            match terminal::print_line(&results.to_string()) {
                Ok(()) | Err(OutputError::Closed) => {}
                Err(error) => terminal::line(&format!("{error}; `thanos-coord report {run_dir}` prints the table")),
            }
            0
        }
        Launched::Stopped(at) => {
            let at = at
                .map_or("before the first step".into(), |(stage, step)| format!("behind step {step} of stage {stage}"));
            terminal::line(&format!("stopped {at}; go on with: thanos-coord {command} --resume --run-dir {run_dir}"));
            EXIT_STOPPED
        }
    }
}

/// How many workers, and where.
#[derive(Clone, Copy, Debug)]
struct Size {
    nodes: Nodes,
    per_node: usize,
}

impl LaunchArguments {
    fn size(&self, allocation: Option<&Allocation>) -> Result<Size, Fatal> {
        let (nodes, per_node) =
            allocation.map_or((1, 1), |allocation| (allocation.nodes.len(), allocation.workers_per_node));
        let mut size = Size {
            nodes: self.nodes.unwrap_or(Nodes { least: nodes, most: nodes }),
            per_node: self.workers_per_node.map_or(per_node, usize::from),
        };
        if allocation.is_some() {
            size.nodes.most = size.nodes.most.min(nodes);
        }
        let (least, workers) = (size.nodes.least, size.nodes.most * size.per_node);
        if workers > MOST_WORKERS {
            let message = format!("{workers} workers: at most {MOST_WORKERS} are coordinated");
            return Err(Fatal::new(EXIT_USAGE, message));
        }
        if allocation.is_some() && nodes < least {
            return Err(Fatal::new(EXIT_USAGE, format!("--nodes {least}: the allocation has {nodes}")));
        }
        Ok(size)
    }

    fn starter(&self, Size { nodes, per_node }: Size, allocation: Option<Allocation>) -> Starter {
        let here = || std::thread::available_parallelism().map_or(1, usize::from);
        let (place, cores) = match allocation {
            None => {
                let workers = nodes.most * per_node;
                (Place::Here { workers }, here() / workers)
            }
            Some(allocation) => {
                let names = allocation.nodes.into_iter().map(|node| node.name).take(nodes.most).collect();
                (Place::Nodes { names, each: per_node }, allocation.cores / per_node)
            }
        };
        let threads = self.threads_per_worker.map_or(cores.max(1), usize::from);
        Starter::This { place, threads, interface: self.interface.clone() }
    }
}
