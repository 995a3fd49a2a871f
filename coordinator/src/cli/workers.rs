//! `workers`: its options, checked against this machine.

use super::duration;
use crate::commands::workers::{LocalWorkers, run};
use crate::exit::{EXIT_USAGE, Fatal};
use crate::run::CollectivesChoice;
use crate::terminal;
use crate::workers::devices::{Request, on_this_machine, worker_program};
use anyhow::Result;
use clap::Args;
use std::path::PathBuf;
use std::time::Duration;
use thanos_transport::{DeviceChoice, GpuFacts};

#[derive(Args, Debug)]
pub(super) struct WorkersArguments {
    /// Where the coordinator listens, as HOST:PORT
    #[arg(long, env = "THANOS_COORDINATOR", hide_env_values = true)]
    coordinator: String,
    /// Folder with the run's ca.pem and a join token
    #[arg(long, value_name = "DIR", required_unless_present = "insecure")]
    credentials: Option<PathBuf>,
    /// For a coordinator that was started with --insecure: neither encrypt nor authenticate
    #[arg(long, conflicts_with = "credentials")]
    insecure: bool,
    /// Workers to start, one per GPU
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    count: u16,
    /// Number of this machine or pod among those of the run, from 0: its workers are worker-I with
    /// I from INDEX x COUNT
    #[arg(long, env = "JOB_COMPLETION_INDEX", default_value_t = 0, hide_env_values = true,
        value_parser = clap::value_parser!(u16).range(0..=4095))]
    index: u16,
    /// How long a worker tries to reach the coordinator when it starts
    #[arg(long, default_value = "60s", value_parser = duration)]
    wait: Duration,
    /// How long the workers may take to exit after a stop signal, which is forwarded to them; then
    /// they are killed
    #[arg(long, default_value = "90s", value_parser = duration)]
    grace: Duration,
    /// How often each worker is restarted
    #[arg(long, default_value_t = 10, value_name = "N")]
    max_restarts: u32,
    /// Threads of each worker [default: the machine's cores shared among its workers]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads_per_worker: Option<u16>,
    /// Where they train: auto, cpu, cuda (a GPU for each) or cuda:N (all share GPU N)
    #[arg(long, env = "THANOS_DEVICE", default_value = "auto", hide_env_values = true)]
    device: DeviceChoice,
    /// The worker program [default: thanos-worker-cuda next to this program for GPUs, thanos-worker
    /// for CPUs]
    #[arg(long, value_name = "PATH")]
    worker_program: Option<PathBuf>,
    /// Network interface under which the other workers reach these
    #[arg(long)]
    interface: Option<String>,
    /// Folder of this machine's packs
    #[arg(long, value_name = "DIR")]
    packs_dir: Option<PathBuf>,
    /// Serve the metrics of the first worker on this port, and those of each further one on the
    /// next
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    status_port: Option<u16>,
}

/// Runs the workers, and returns the exit code of this program.
pub(super) fn act_workers(arguments: &WorkersArguments) -> Result<u8> {
    let count = usize::from(arguments.count);
    if let Some(first) =
        arguments.status_port.filter(|first| first.checked_add(arguments.count - 1).is_none())
    {
        let message =
            format!("--status-port {first}: {count} workers need as many ports, up to 65535");
        return Err(Fatal::new(EXIT_USAGE, message).into());
    }
    let request =
        Request { device: arguments.device, collectives: CollectivesChoice::Auto, workers: count };
    let devices = on_this_machine(request, &GpuFacts::of_this_process())?;
    devices.notices.iter().for_each(|notice| terminal::line(notice));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    run(&LocalWorkers {
        program: worker_program(arguments.worker_program.as_deref(), devices.kind)?,
        count,
        first: usize::from(arguments.index) * count,
        coordinator: arguments.coordinator.clone(),
        arguments: arguments.of_each(),
        threads: arguments.threads_per_worker.map_or((cores / count).max(1), usize::from),
        device: devices.device,
        status_port: arguments.status_port,
        wait: arguments.wait,
        grace: arguments.grace,
        max_restarts: arguments.max_restarts,
    })
}

impl WorkersArguments {
    /// Options that all workers have in common.
    fn of_each(&self) -> Vec<String> {
        let path = |path: &PathBuf| path.display().to_string();
        let options = [
            ("--credentials", self.credentials.as_ref().map(path)),
            ("--packs-dir", self.packs_dir.as_ref().map(path)),
            ("--interface", self.interface.clone()),
        ];
        let given = options.into_iter().filter_map(|(name, value)| Some([name.to_owned(), value?]));
        given.flatten().chain(self.insecure.then(|| "--insecure".into())).collect()
    }
}
