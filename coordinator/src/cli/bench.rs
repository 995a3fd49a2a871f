//! `bench`: its options, and the run in a temporary folder that it makes of them.

use super::launch::runtime;
use super::launcher::LOCAL_LEASE;
use super::{Target, config_of};
use crate::commands::bench::{Bench, Folder};
use crate::exit::EXIT_STOPPED;
use crate::launch::supervisor::listen;
use crate::launch::{Launch, Launched, Starter, launch};
use crate::run::CollectivesChoice;
use crate::terminal;
use crate::workers::ThisMachine;
use crate::workers::devices::{
    Devices, Request, device_of_environment, on_this_machine, worker_program,
};
use anyhow::Result;
use clap::Args;
use listenfd::ListenFd;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use thanos_formats::StartedWith;
use thanos_proto::{BenchRequest, MAX_BENCH_STEPS};
use thanos_transport::{DeviceChoice, GpuFacts};

#[derive(Args, Debug)]
pub(super) struct BenchArguments {
    #[command(flatten)]
    target: Target,
    /// Workers on this machine, which share every batch
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    workers: u16,
    /// Steps before the measured ones
    #[arg(long, default_value_t = 10,
        value_parser = clap::value_parser!(u64).range(1..=MAX_BENCH_STEPS))]
    warmup: u64,
    /// Steps that are measured
    #[arg(long, default_value_t = 50,
        value_parser = clap::value_parser!(u64).range(1..=MAX_BENCH_STEPS))]
    steps: u64,
    /// Threads of each worker [default: the machine's cores shared among the workers]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads_per_worker: Option<u16>,
    /// Where the workers train: auto, cpu, cuda (each on a GPU of its own) or cuda:N (all on GPU N)
    /// [default: auto, or $THANOS_DEVICE]
    #[arg(long)]
    device: Option<DeviceChoice>,
    /// Library for the workers' collectives
    #[arg(long, value_enum, default_value_t)]
    collectives: CollectivesChoice,
    /// Program of the workers [default: thanos-worker, or on GPUs thanos-worker-cuda, next to this
    /// program]
    #[arg(long, value_name = "PATH")]
    worker_program: Option<PathBuf>,
    /// Synthetic training images, from which batches are taken [default: 4096, rounded up to whole
    /// batches]
    #[arg(long)]
    images: Option<u64>,
}

/// Measures, prints one line of JSON, and removes its files.
pub(super) fn act_bench(arguments: &BenchArguments) -> Result<u8> {
    let bench = arguments.bench()?;
    let (runtime, stop_signals) = runtime()?;
    let folder = Folder::make()?;
    let what = arguments.launch(&bench, &folder)?;
    let listener = listen((Ipv4Addr::LOCALHOST, 0).into(), &mut ListenFd::from_env())?;
    match runtime.block_on(launch(&bench.plan, (&what, &stop_signals), listener))? {
        Launched::Done(_) => {
            terminal::print_line(&bench.result(&what.run_dir)?.to_string())?;
            Ok(0)
        }
        Launched::Stopped(_) => {
            terminal::line("stopped: nothing was measured");
            Ok(EXIT_STOPPED)
        }
    }
}

impl BenchArguments {
    fn bench(&self) -> Result<Bench> {
        let workers = usize::from(self.workers);
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = self.threads_per_worker.map_or((cores / workers).max(1), usize::from);
        let request = BenchRequest { warmup_steps: self.warmup, steps: self.steps };
        let (name, overrides) = self.target.named()?;
        let bench =
            Bench::new(config_of(name, &overrides)?, request, (workers, threads), self.images)?;
        Ok(Bench { overrides, ..bench })
    }

    /// A launch on this machine as any other, but in a temporary folder. What decides how its
    /// workers compute and communicate is passed on to them here.
    fn launch(&self, bench: &Bench, folder: &Folder) -> Result<Launch> {
        let (run_dir, packs_dir) = (folder.run_dir(), folder.packs_dir());
        let packs = bench.pack(&packs_dir)?;
        let Bench { workers, threads, request, .. } = *bench;
        let device = self
            .device
            .map_or_else(device_of_environment, |device| Ok(Some(device)))?
            .unwrap_or_default();
        let asked = Request { device, collectives: self.collectives, workers };
        let Devices { device, kind, notices } =
            on_this_machine(asked, &GpuFacts::of_this_process())?;
        notices.iter().for_each(|notice| terminal::line(notice));
        let program = worker_program(self.worker_program.as_deref(), kind)?;
        Ok(Launch {
            credentials: Some(run_dir.join("credentials")),
            run_dir,
            resume: false,
            packs_dir,
            started_with: StartedWith {
                min_nodes: workers,
                max_nodes: workers,
                workers_per_node: 1,
                threads_per_worker: Some(threads),
                launcher: "local".into(),
                device: device.to_string(),
                collectives: self.collectives.label().into(),
            },
            workers,
            min_workers: workers,
            rendezvous_timeout: Duration::ZERO,
            starter: Starter::This {
                program,
                device,
                target: Arc::new(ThisMachine { workers }),
                threads,
                interface: None,
            },
            collectives: self.collectives,
            lease: LOCAL_LEASE,
            grace: None,
            again: false,
            stop_requested: false,
            quick: false,
            status: None,
            linger: Duration::ZERO,
            scrape_token_file: None,
            targets_dir: None,
            command: "bench",
            bench: Some((request, packs)),
        })
    }
}
