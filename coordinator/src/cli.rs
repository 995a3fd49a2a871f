//! The command line: what can be typed, and what each command does with it. Exit codes are decided here, once.

mod data;

use crate::chaos::{Chaos, chaos};
use crate::credentials::{CA, Credentials, TOKEN};
use crate::exit::{EXIT_CONFIG, EXIT_DATA, EXIT_STOPPED, EXIT_USAGE, Fatal};
use crate::ingest;
use crate::launch::{Launch, Launched, Starter, launch};
use crate::ledger::read_steps;
use crate::report::Results;
use crate::run_dir::fresh_path;
use crate::status::status;
use crate::supervise::{end_with, listen, supervise};
use crate::verify_run::{Comparison, compare, verify_run};
use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand, ValueEnum};
use data::{DataVerb, act_data};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use thanos_configs::{ConfigErrors, Plan, RunConfig, default_packs_dir, preset_names, preset_summary, to_yaml};

/// Workers of one run; a session each.
pub(crate) const MOST_WORKERS: usize = 4096;
/// Workers of this machine must not outlive their supervisor by five seconds; others wait for whoever starts a
/// coordinator again.
const LOCAL_LEASE: Duration = Duration::from_secs(4);
const FOREIGN_LEASE: Duration = Duration::from_secs(60);

/// Trains encoders on coarse labels with supervised contrastive losses, over many workers, and shows by linear probes
/// on fine labels how much each kept.
#[derive(Parser, Debug)]
#[command(name = "thanos-coord", version, max_term_width = 100)]
pub struct Arguments {
    #[command(subcommand)]
    command: Verb,
}

#[derive(Subcommand, Debug)]
enum Verb {
    /// Start a run with its workers, and print its result table
    Launch(LaunchArguments),
    /// Coordinate a run whose workers somebody else starts
    Serve(LaunchArguments),
    /// List the experiments that can be launched by name
    Presets,
    /// Print a preset or file with all its defaults and overrides
    Show(Target),
    /// Download raw data, read it into packs, and look at packs
    #[command(subcommand)]
    Data(DataVerb),
    /// Say how far a run is
    Status {
        /// The run's directory
        run_dir: PathBuf,
    },
    /// Kill and stop workers of a live run on this machine at random moments, and report what it cost
    Chaos(ChaosArguments),
    /// Check that a run's ledger has every step and every sample once; with two, say where they differ
    VerifyRun {
        /// The run's directory
        run_dir: PathBuf,
        /// Another run's, to compare with
        other: Option<PathBuf>,
        #[command(flatten)]
        packs: PacksDir,
    },
    /// Make the certificate authority and the tokens of a run whose workers join from elsewhere
    Credentials {
        /// A folder for them, which is made
        folder: PathBuf,
    },
    /// Print a run's result table
    Report {
        /// The run's directory
        run_dir: PathBuf,
        /// As JSON, the content of `results.json`
        #[arg(long)]
        json: bool,
    },
}

#[derive(Args, Debug)]
struct Target {
    /// A preset's name (`thanos-coord presets`), or a YAML file
    #[arg(value_name = "PRESET|FILE")]
    target: Option<String>,
    /// Overrides, such as `train.epochs=10` or `data.dir=/data`
    #[arg(value_name = "KEY=VALUE")]
    overrides: Vec<String>,
}

#[derive(Args, Debug)]
struct LaunchArguments {
    #[command(flatten)]
    target: Target,
    /// Nodes to train on, N or LEAST:MOST; the local launcher has all of them on this machine
    #[arg(long, default_value = "1", value_name = "N|LEAST:MOST", value_parser = nodes)]
    nodes: Nodes,
    /// How long to wait for more nodes than the least
    #[arg(long, default_value = "10s", value_parser = duration)]
    patience: Duration,
    /// Workers on each node
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    workers_per_node: u16,
    /// Who starts the workers
    #[arg(long, value_enum, default_value_t = LauncherName::Local)]
    launcher: LauncherName,
    /// Threads of each worker [default: the machine's cores shared among its workers]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads_per_worker: Option<u16>,
    /// Where the run keeps its files [default: the first free runs/NAME-N]
    #[arg(long)]
    run_dir: Option<PathBuf>,
    /// Go on with the run in --run-dir where it stopped
    #[arg(long, requires = "run_dir")]
    resume: bool,
    #[command(flatten)]
    packs: PacksDir,
    /// Address on which the coordinator listens; port 0 is any free one
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
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

#[derive(Args, Debug)]
struct PacksDir {
    /// Where decoded data sets are kept [default: ~/.cache/thanos/packs]
    #[arg(long, env = "THANOS_PACKS", hide_env_values = true)]
    packs_dir: Option<PathBuf>,
}

impl PacksDir {
    fn path(&self) -> Result<PathBuf, Fatal> {
        let path = self.packs_dir.clone().or_else(|| default_packs_dir(std::env::var_os));
        path.ok_or_else(|| Fatal::new(EXIT_USAGE, "there is no HOME: name a --packs-dir"))
    }
}

#[derive(Args, Debug)]
struct ChaosArguments {
    /// The run's directory
    run_dir: PathBuf,
    /// Weight of killing a worker
    #[arg(long, default_value_t = 1)]
    kill: u16,
    /// Weight of stopping one, so that it does not answer any more
    #[arg(long, default_value_t = 0)]
    stop: u16,
    /// Mean time between two faults, such as 30s or 500ms
    #[arg(long, default_value = "30s", value_parser = duration)]
    every: Duration,
    /// Decides moments and victims
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Stop after so many faults [default: when the run has ended]
    #[arg(long)]
    most: Option<u32>,
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

/// A duration as people type it: a number with `ms`, `s` or `m`.
fn duration(text: &str) -> Result<Duration, String> {
    let units = [("ms", 1e-3), ("s", 1.0), ("m", 60.0)];
    let read = units.iter().find_map(|(unit, seconds)| Some(text.strip_suffix(unit)?.parse::<f64>().ok()? * seconds));
    let seconds = read.filter(|seconds| (1e-3..=1e6).contains(seconds));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| "expected a time such as 500ms, 30s or 2m".into())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LauncherName {
    /// This program, on this machine
    Local,
    /// Somebody else: the coordinator waits for them
    None,
}

/// Does what was typed, and returns the exit code.
pub fn run(arguments: Arguments) -> u8 {
    match act(arguments.command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            exit_code(&error)
        }
    }
}

fn exit_code(error: &anyhow::Error) -> u8 {
    if let Some(fatal) = error.downcast_ref::<Fatal>() {
        return fatal.exit_code;
    }
    if error.downcast_ref::<ConfigErrors>().is_some() {
        return EXIT_CONFIG;
    }
    crate::exit::EXIT_IO
}

fn act(verb: Verb) -> Result<u8> {
    match verb {
        Verb::Launch(arguments) => act_launch(&arguments, arguments.launcher),
        Verb::Serve(arguments) => act_launch(&arguments, LauncherName::None),
        Verb::Presets => {
            for name in preset_names() {
                println!("{name:22} {}", preset_summary(&name).unwrap_or_default());
            }
            Ok(0)
        }
        Verb::Show(target) => {
            print!("{}", to_yaml(plan(&target)?.config()));
            Ok(0)
        }
        Verb::Data(verb) => act_data(verb).map(|()| 0),
        Verb::Status { run_dir } => {
            println!("{}", status(&run_dir)?);
            Ok(0)
        }
        Verb::Chaos(arguments) => {
            let ChaosArguments { run_dir, kill, stop, every, seed, most } = arguments;
            let faults = Chaos { kill: kill.into(), stop: stop.into(), every, seed, most };
            println!("{}", chaos(&run_dir, &faults, &mut |line| println!("{line}"))?);
            Ok(0)
        }
        Verb::VerifyRun { run_dir, other, packs } => act_verify_run(&run_dir, other.as_deref(), &packs.path()?),
        Verb::Credentials { folder } => {
            Credentials::open_or_make(&folder, true)?;
            println!("{}: workers need {CA} and {TOKEN}, the coordinator all files", folder.display());
            Ok(0)
        }
        Verb::Report { run_dir, json } => {
            crate::run_dir::identity(&run_dir)?;
            let results = Results::read(&run_dir)?;
            println!("{}", if json { results.to_json() } else { results.to_string() });
            Ok(0)
        }
    }
}

fn act_verify_run(run_dir: &Path, other: Option<&Path>, packs_dir: &Path) -> Result<u8> {
    for run_dir in [Some(run_dir), other].into_iter().flatten() {
        let plan = plan_of_run(run_dir)?;
        let packs = ingest::pack(&plan.config().data, packs_dir, &|_, _, _| {}).map_err(Fatal::from)?;
        let fine = ingest::fine_labels(&packs.train.path).map_err(Fatal::from)?;
        println!("{}: {}", run_dir.display(), verify_run(run_dir, &plan, &fine)?);
    }
    if let Some(other) = other {
        let found = compare(&read_steps(run_dir)?, &read_steps(other)?);
        println!("{found}");
        if matches!(found, Comparison::Differ { .. }) {
            return Ok(EXIT_DATA);
        }
    }
    Ok(0)
}

fn act_launch(arguments: &LaunchArguments, launcher: LauncherName) -> Result<u8> {
    let plan = match (&arguments.run_dir, arguments.resume, &arguments.target.target) {
        (Some(run_dir), true, None) => plan_of_run(run_dir)?,
        _ => plan(&arguments.target)?,
    };
    let per_node = usize::from(arguments.workers_per_node);
    let (least, workers) = (arguments.nodes.least * per_node, arguments.nodes.most * per_node);
    if workers > MOST_WORKERS {
        let message = format!("{workers} workers: at most {MOST_WORKERS} are coordinated");
        return Err(Fatal::new(EXIT_USAGE, message).into());
    }
    let run_dir = arguments.run_dir.clone().unwrap_or_else(|| fresh_path(&plan.config().name));
    let listener = listen(arguments.listen)?;
    match (launcher, arguments.supervised_by) {
        (LauncherName::Local, None) => return supervise(&run_dir, &listener),
        (_, Some(supervisor)) => end_with(supervisor)?,
        (LauncherName::None, None) => {}
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = arguments.threads_per_worker.map_or((cores / workers).max(1), usize::from);
    let own_credentials = || run_dir.join("credentials");
    let credentials = (!arguments.insecure).then(|| arguments.credentials.clone().unwrap_or_else(own_credentials));
    let what = Launch {
        run_dir,
        credentials,
        resume: arguments.resume,
        packs_dir: arguments.packs.path()?,
        workers,
        least,
        patience: arguments.patience,
        starter: match launcher {
            LauncherName::Local => Starter::Local { threads },
            LauncherName::None => Starter::Nobody,
        },
        lease: arguments.lease.unwrap_or(match launcher {
            LauncherName::Local => LOCAL_LEASE,
            LauncherName::None => FOREIGN_LEASE,
        }),
        grace: arguments.grace,
        again: arguments.again,
        status: arguments.status,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let launched = runtime.block_on(launch(&plan, &what, listener))?;
    match launched {
        Launched::Done(results) => {
            println!("{results}");
            Ok(0)
        }
        Launched::Stopped(at) => {
            let at = at
                .map_or("before the first step".into(), |(stage, step)| format!("behind step {step} of stage {stage}"));
            let run_dir = what.run_dir.display();
            eprintln!("stopped {at}; go on with: thanos-coord launch --resume --run-dir {run_dir}");
            Ok(EXIT_STOPPED)
        }
    }
}

/// The plan of a preset or file with its overrides; paths in it are made absolute, for workers that run elsewhere.
fn plan(target: &Target) -> Result<Plan> {
    let Some(name) = &target.target else {
        let message = "name a preset or a YAML file (`thanos-coord presets` lists the presets)";
        return Err(Fatal::new(EXIT_USAGE, message).into());
    };
    let mut config = config_of(name, &target.overrides)?;
    let paths = config.backbones.iter_mut().filter_map(|backbone| backbone.checkpoint.as_mut());
    for path in paths.chain(config.data.dir.as_mut()).chain(config.data.coarse_map.as_mut()) {
        *path = std::path::absolute(&*path).with_context(|| format!("{}", path.display()))?;
    }
    Plan::new(config).map_err(|broken| {
        let rules: Vec<String> = broken.iter().map(ToString::to_string).collect();
        Fatal::new(EXIT_CONFIG, rules.join("\n")).into()
    })
}

/// A preset or file with its overrides, its rules checked.
fn config_of(name: &str, overrides: &[String]) -> Result<RunConfig> {
    let is_file = name.contains('/') || [".yaml", ".yml"].iter().any(|end| name.ends_with(end));
    let plan = if is_file {
        let text = std::fs::read_to_string(name)
            .map_err(|error| Fatal::new(EXIT_CONFIG, format!("cannot read {name}: {error}")))?;
        Plan::from_file(&text, name, overrides)?
    } else {
        Plan::from_preset(name, overrides)?
    };
    Ok(plan.config().clone())
}

/// The plan that a run was started with.
fn plan_of_run(run_dir: &Path) -> Result<Plan> {
    crate::run_dir::identity(run_dir)?;
    let file = run_dir.join("config.yaml");
    let text = std::fs::read_to_string(&file)
        .map_err(|error| Fatal::new(EXIT_DATA, format!("cannot read {}: {error}", file.display())))?;
    Ok(Plan::from_file(&text, &file.display().to_string(), &[])?)
}
