//! The command line: what can be typed, and what each command does with it. Exit codes are decided
//! here, once.

mod bench;
mod data;
mod kubernetes;
mod launch;
mod launcher;
mod paths;
mod quick;
mod report;
mod series;
mod series_arguments;
mod size;
mod slurm_arguments;
mod workers;

use crate::commands::chaos::{Chaos, chaos};
use crate::commands::render::{self, NodeShare, Numbers};
use crate::commands::status::status;
use crate::commands::verify_run::{Comparison, compare, verify_run};
use crate::commands::view::view;
use crate::commands::with_parent::with_parent;
use crate::exit::{EXIT_CONFIG, EXIT_DATA, EXIT_USAGE, Fatal};
use crate::launch::prepare::packs_of_run;
use crate::run_dir::ledger::read_steps;
use crate::run_dir::{identity, plan_of_run};
use crate::server::credentials::Credentials;
use crate::terminal::{self, OutputError};
use anyhow::Result;
use bench::{BenchArguments, act_bench};
use clap::{Args, Parser, Subcommand};
use data::{DataVerb, act_data};
use kubernetes::KubernetesArguments;
use launch::{LaunchArguments, act_launch};
use launcher::LauncherName;
use report::{ReportArguments, act_report};
use series::act_series;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use thanos_configs::{
    ConfigErrors, Plan, RunConfig, default_packs_dir, preset_names, preset_summary, to_yaml,
};
use thanos_proto::{CA, TOKEN};
use thanos_transport::parse_duration as duration;
use workers::{WorkersArguments, act_workers};

/// Trains encoders on coarse labels with supervised contrastive losses, over many workers, and
/// shows by linear probes on fine labels how much each kept.
#[derive(Parser, Debug)]
#[command(name = "thanos-coord", version, max_term_width = 100)]
pub struct Arguments {
    #[command(subcommand)]
    command: Verb,
}

#[derive(Subcommand, Debug)]
enum Verb {
    /// Start a run with its workers, and print its result table
    Launch(Box<LaunchArguments>),
    /// Coordinate a run whose workers are started separately
    Serve(Box<LaunchArguments>),
    /// Start the workers of one machine or pod for a `serve` elsewhere, restart those that fail,
    /// and end with the run
    Workers(WorkersArguments),
    /// Measure how fast an experiment's first backbone trains on this machine, and print it as a
    /// line of JSON
    Bench(BenchArguments),
    /// List the experiments that can be launched by name
    Presets,
    /// Print a preset or file with all its defaults and overrides
    Show(Target),
    /// Download raw data, read it into packs, and look at packs
    #[command(subcommand)]
    Data(DataVerb),
    /// Show the progress of a run
    Status {
        /// The run's directory
        run_dir: PathBuf,
    },
    /// Serve the live page of a run directory on this machine, also of a run that has ended
    View {
        /// The run's directory
        run_dir: PathBuf,
        /// Address of this machine at which the page is served; port 0 is any free one
        #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
        listen: SocketAddr,
    },
    /// Kill and stop workers of a live run on this machine at random moments, and report the cost
    Chaos(ChaosArguments),
    /// Check that a run's ledger has every step and every sample exactly once; with two runs, show
    /// where they differ
    VerifyRun {
        /// The run's directory
        run_dir: PathBuf,
        /// The directory of another run to compare with
        other: Option<PathBuf>,
        #[command(flatten)]
        packs: PacksDir,
    },
    /// Create the certificate authority and the tokens of a run whose workers join from other
    /// machines
    Credentials {
        /// The folder to create for them
        folder: PathBuf,
    },
    /// Print a Slurm script or Kubernetes manifests for an experiment, with its numbers
    #[command(subcommand)]
    Render(RenderVerb),
    /// Print a run's result table, or compare runs: means over seeds, differing keys and paired
    /// differences
    Report(ReportArguments),
    /// Run a program that ends with the process that started it
    #[command(hide = true)]
    WithParent {
        parent: i32,
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        program: Vec<String>,
    },
}

#[derive(Subcommand, Debug)]
enum RenderVerb {
    /// A script for sbatch
    Slurm {
        #[command(flatten)]
        arguments: RenderArguments,
        #[command(flatten)]
        share: ShareArguments,
    },
    /// Manifests for kubectl apply; the Secret NAME-credentials is created by hand
    /// (deploy/kubernetes/README.md)
    Kubernetes(Box<KubernetesArguments>),
}

#[derive(Args, Debug)]
struct RenderArguments {
    #[command(flatten)]
    target: Target,
    /// Machines; for Kubernetes, worker pods
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=4096))]
    nodes: u16,
    /// GPUs per machine
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u16).range(0..=64))]
    gpus: u16,
    /// How long a stop may take; the scheduler waits half a minute longer before it kills
    #[arg(long, default_value = "90s", value_parser = duration)]
    grace: Duration,
}

/// What a job requests of its nodes for each worker: one for each GPU, or one on each node.
#[derive(Args, Debug)]
struct ShareArguments {
    /// CPUs for each worker
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=1024))]
    cpus_per_worker: u16,
    /// Memory for each worker, in Slurm's notation
    #[arg(long, default_value = "16G", value_parser = memory)]
    mem_per_worker: String,
    /// Request whole nodes instead: all their CPUs and memory
    #[arg(long, conflicts_with_all = ["cpus_per_worker", "mem_per_worker"])]
    exclusive: bool,
}

impl ShareArguments {
    fn share(&self) -> NodeShare {
        match self.exclusive {
            true => NodeShare::Whole,
            false => NodeShare::PerWorker {
                cpus: self.cpus_per_worker,
                memory: self.mem_per_worker.clone(),
            },
        }
    }
}

/// Memory as Slurm writes it: a number, and K, M, G or T.
fn memory(text: &str) -> Result<String, String> {
    let number = text.strip_suffix(['K', 'M', 'G', 'T']).unwrap_or(text);
    match number.parse::<u64>() {
        Ok(1..) => Ok(text.into()),
        _ => Err("expected memory such as 16G or 900M".into()),
    }
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
struct PacksDir {
    /// Folder of decoded data sets [default: ~/.cache/thanos/packs]
    #[arg(long, env = "THANOS_PACKS", hide_env_values = true)]
    packs_dir: Option<PathBuf>,
}

impl Target {
    /// As it was meant, in any order: the preset or file is the first word that is not an override.
    fn parts(&self) -> (Option<&str>, Vec<String>) {
        let is_key = |word: &str| word.split_once('=').is_some_and(|(key, _)| !key.contains('/'));
        let words: Vec<&String> = self.target.iter().chain(&self.overrides).collect();
        let at = words.iter().position(|word| !is_key(word));
        let overrides = words.iter().enumerate().filter(|(place, _)| Some(*place) != at);
        (at.map(|at| words[at].as_str()), overrides.map(|(_, word)| (*word).clone()).collect())
    }

    /// What was named, and the overrides.
    ///
    /// # Errors
    /// 64 if nothing was named.
    fn named(&self) -> Result<(&str, Vec<String>), Fatal> {
        let (name, overrides) = self.parts();
        let message = "name a preset or a YAML file (`thanos-coord presets` lists the presets)";
        Ok((name.ok_or_else(|| Fatal::new(EXIT_USAGE, message))?, overrides))
    }
}

impl PacksDir {
    fn path(&self) -> Result<PathBuf, Fatal> {
        let path = self.packs_dir.clone().or_else(|| default_packs_dir(std::env::var_os));
        path.ok_or_else(|| Fatal::new(EXIT_USAGE, "HOME is not set: pass --packs-dir"))
    }
}

#[derive(Args, Debug)]
struct ChaosArguments {
    /// The run's directory
    run_dir: PathBuf,
    /// Weight of killing a worker
    #[arg(long, default_value_t = 1)]
    kill: u16,
    /// Weight of stopping a worker (SIGSTOP), so that it is unresponsive
    #[arg(long, default_value_t = 0)]
    stop: u16,
    /// Mean time between two faults, such as 30s or 500ms
    #[arg(long, default_value = "30s", value_parser = duration)]
    every: Duration,
    /// Decides moments and victims
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Stop after this many faults [default: when the run has ended]
    #[arg(long, alias = "most")]
    max_faults: Option<u32>,
}

/// Does what was typed, and returns the exit code.
pub fn run(arguments: Arguments) -> u8 {
    let code = match act(arguments.command) {
        Ok(code) => code,
        // `head` has read what it wanted.
        Err(error) if matches!(error.downcast_ref(), Some(OutputError::Closed)) => 0,
        Err(error) => {
            terminal::line(&format!("error: {error:#}"));
            exit_code(&error)
        }
    };
    terminal::flush();
    code
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

/// Launches one run, or a series of them, with the launcher that was typed or, for `serve`, `none`.
fn act_runs(arguments: &LaunchArguments, forced: Option<LauncherName>) -> Result<u8> {
    match arguments.series.are_given(arguments.run_dir.as_deref()) {
        true => act_series(arguments, forced),
        false => act_launch(arguments, forced),
    }
}

fn act(verb: Verb) -> Result<u8> {
    match verb {
        Verb::Launch(arguments) => act_runs(&arguments, None),
        Verb::Serve(arguments) => act_runs(&arguments, Some(LauncherName::None)),
        Verb::Workers(arguments) => act_workers(&arguments),
        Verb::Bench(arguments) => act_bench(&arguments),
        Verb::Presets => {
            for name in preset_names() {
                terminal::print_line(&format!(
                    "{name:22} {}",
                    preset_summary(&name).unwrap_or_default()
                ))?;
            }
            Ok(0)
        }
        Verb::Show(target) => {
            terminal::print(&to_yaml(plan(&target)?.config()))?;
            Ok(0)
        }
        Verb::Data(verb) => act_data(verb).map(|()| 0),
        Verb::Status { run_dir } => {
            terminal::print_line(&status(&run_dir)?)?;
            Ok(0)
        }
        Verb::View { run_dir, listen } => view(&run_dir, listen).map(|()| 0),
        Verb::Chaos(arguments) => {
            let ChaosArguments { run_dir, kill, stop, every, seed, max_faults } = arguments;
            let faults = Chaos { kill: kill.into(), stop: stop.into(), every, seed, max_faults };
            // Without a reader it continues until the run has ended.
            let summary = chaos(&run_dir, &faults, &mut |line| _ = terminal::print_line(line))?;
            terminal::print_line(&summary.to_string())?;
            Ok(0)
        }
        Verb::VerifyRun { run_dir, other, packs } => {
            act_verify_run(&run_dir, other.as_deref(), &packs.path()?)
        }
        Verb::Credentials { folder } => {
            Credentials::open_or_make(&folder, true)?;
            let folder = folder.display();
            terminal::print_line(&format!(
                "{folder}: workers need {CA} and {TOKEN}; the coordinator needs all files"
            ))?;
            Ok(0)
        }
        Verb::Render(verb) => act_render(&verb).map(|()| 0),
        Verb::Report(arguments) => act_report(&arguments).map(|()| 0),
        Verb::WithParent { parent, program } => with_parent(parent, &program),
    }
}

fn act_render(verb: &RenderVerb) -> Result<()> {
    let arguments = match verb {
        RenderVerb::Slurm { arguments, .. } => arguments,
        RenderVerb::Kubernetes(kubernetes) => &kubernetes.arguments,
    };
    let RenderArguments { target, nodes, gpus, grace } = arguments;
    // Mistakes are reported here, and not by a job in the night.
    let plan = plan(target)?;
    refuse_relative(target)?;
    let numbers = Numbers { nodes: (*nodes).into(), gpus: (*gpus).into(), grace: *grace };
    match verb {
        RenderVerb::Slurm { share, .. } => {
            let words: Vec<String> =
                target.target.iter().chain(&target.overrides).cloned().collect();
            terminal::print(&render::slurm(&words, &numbers, &share.share()))?;
        }
        RenderVerb::Kubernetes(kubernetes) => terminal::print(&kubernetes.render(&plan, numbers)?)?,
    }
    Ok(())
}

/// Relative paths depend on where a command is run: a job runs elsewhere.
fn refuse_relative(target: &Target) -> Result<()> {
    let (Some(name), overrides) = target.parts() else { return Ok(()) };
    let relative = paths::relative(&config_of(name, &overrides)?);
    if relative.is_empty() {
        return Ok(());
    }
    let message = format!(
        "{}: a job runs on another machine: write an absolute path of that machine",
        relative.join(", ")
    );
    Err(Fatal::new(EXIT_CONFIG, message).into())
}

fn act_verify_run(run_dir: &Path, other: Option<&Path>, packs_dir: &Path) -> Result<u8> {
    for run_dir in [Some(run_dir), other].into_iter().flatten() {
        let identity = identity(run_dir)?;
        let plan = plan_of_run(run_dir, &[])?;
        let packs = packs_of_run(&plan, packs_dir, identity.data.as_ref())?;
        let fine = thanos_data::fine_labels(&packs.train.path).map_err(Fatal::from)?;
        terminal::print_line(&format!(
            "{}: {}",
            run_dir.display(),
            verify_run(run_dir, &plan, &fine)?
        ))?;
    }
    if let Some(other) = other {
        let found = compare(&read_steps(run_dir)?, &read_steps(other)?);
        terminal::print_line(&found.to_string())?;
        if matches!(found, Comparison::Differ { .. }) {
            return Ok(EXIT_DATA);
        }
    }
    Ok(0)
}

/// The plan of a preset or file with its overrides; paths in it are made absolute, for workers that
/// run elsewhere.
fn plan(target: &Target) -> Result<Plan> {
    let (name, overrides) = target.named()?;
    absolute(config_of(name, &overrides)?)
}

/// As [`plan`], of a quick run.
fn quick_plan(target: &Target) -> Result<Plan> {
    let (Some(name), overrides) = target.parts() else { return plan(target) };
    absolute(config_of(name, &quick::overrides(true, &overrides))?)
}

/// The plan of a run's own configuration with overrides.
fn plan_to_resume(run_dir: &Path, overrides: &[String]) -> Result<Plan> {
    identity(run_dir)?;
    absolute(plan_of_run(run_dir, overrides)?.config().clone())
}

/// The plan of a configuration whose paths are made absolute.
fn absolute(mut config: RunConfig) -> Result<Plan> {
    paths::make_absolute(&mut config, std::env::home_dir().as_deref())?;
    Ok(Plan::new(config).map_err(Fatal::from)?)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_preset_may_come_after_overrides() {
        let check = |words: &[&str], target: Option<&str>, overrides: &[&str]| {
            let mut words = words.iter().map(|word| (*word).to_owned());
            let typed = Target { target: words.next(), overrides: words.collect() };
            let (found, rest) = typed.parts();
            assert_eq!(
                (found, rest.iter().map(String::as_str).collect::<Vec<_>>()),
                (target, overrides.to_vec())
            );
        };
        check(&["digits_cae", "a=1", "b=2"], Some("digits_cae"), &["a=1", "b=2"]);
        check(&["a=1", "digits_cae", "b=2"], Some("digits_cae"), &["a=1", "b=2"]);
        check(&["a=1", "b=2"], None, &["a=1", "b=2"]);
        check(&["/a=b/my.yaml", "a=1"], Some("/a=b/my.yaml"), &["a=1"]);
        check(&[], None, &[]);
    }
}
