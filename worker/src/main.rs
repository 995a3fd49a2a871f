//! `thanos-worker`: one rank of a run. The launcher starts it; only a foreign launcher's user types
//! its options.

mod environment;

use clap::Parser;
use std::path::PathBuf;
use std::process::ExitCode;
use thanos_proto::is_worker_id;
use thanos_worker::{Address, DeviceChoice, Options, Outcome, work};
use tracing_subscriber::EnvFilter;

/// One rank of a run; it joins its coordinator and trains until the run is over.
#[derive(Parser)]
#[command(name = "thanos-worker", version)]
struct Arguments {
    /// Where the coordinator listens, as HOST:PORT
    #[arg(long, env = "THANOS_COORDINATOR")]
    coordinator: String,
    /// A name of its own in the run, the same after a restart [default: worker-N by RANK, else
    /// SLURM_PROCID, else JOB_COMPLETION_INDEX]
    #[arg(long, value_parser = id)]
    id: Option<String>,
    /// Folder with the run's ca.pem and a join token
    #[arg(long, value_name = "DIR", required_unless_present = "insecure")]
    credentials: Option<PathBuf>,
    /// Of a coordinator that was started so: neither encrypt nor ask who it is
    #[arg(long, conflicts_with = "credentials")]
    insecure: bool,
    /// Place among the workers of its machine, from 0: which GPU is its own [default: LOCAL_RANK,
    /// else SLURM_LOCALID, else 0]
    #[arg(long)]
    local_rank: Option<usize>,
    /// On what it trains: auto, cpu, cuda (the GPU of its place among the workers of its machine)
    /// or cuda:N; `auto` is cuda if there are GPUs, else cpu
    #[arg(long, env = "THANOS_DEVICE", default_value = "auto", hide_env_values = true)]
    device: DeviceChoice,
    /// Threads that one operation may use
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: u16,
    /// Address of this machine under which the other workers reach it [default: the one from which
    /// it reaches the coordinator]
    #[arg(long, conflicts_with = "interface")]
    host: Option<String>,
    /// Folder of this machine's packs; what is not there comes from the coordinator, once a machine
    /// [default: the coordinator's own folder where it can be seen, else ~/.cache/thanos/packs]
    #[arg(long)]
    packs_dir: Option<PathBuf>,
    /// Show metrics at this port (0: a free one) of the address from which the coordinator is
    /// reached
    #[arg(long)]
    status_port: Option<u16>,
    /// How long to try to reach the coordinator, which may not have been started yet
    #[arg(long, default_value = "60s", value_parser = thanos_worker::parse_duration)]
    wait: std::time::Duration,
    /// Network interface under which the other workers reach it
    #[arg(long)]
    interface: Option<String>,
}

fn id(text: &str) -> Result<String, String> {
    match is_worker_id(text) {
        true => Ok(text.into()),
        false => Err("at most 63 letters, digits, `-`, `_` and, except at either end, `.`".into()),
    }
}

fn main() -> ExitCode {
    let filter = EnvFilter::try_from_env("THANOS_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        // A log that cannot be written, on a full disk perhaps, must not end this process: the
        // message about it panics.
        .log_internal_errors(false)
        .init();
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let code = if error.use_stderr() { thanos_worker::EXIT_USAGE } else { 0 };
            _ = error.print();
            return ExitCode::from(code);
        }
    };
    let typed = (arguments.id, arguments.local_rank);
    let (worker_id, local_rank) =
        match environment::identity(typed, |name| std::env::var(name).ok()) {
            Ok(identity) => identity,
            Err(error) => {
                tracing::error!("{error}");
                return ExitCode::from(thanos_worker::EXIT_USAGE);
            }
        };
    // Tests break this very program at chosen places (`FAILPOINTS`).
    let _armed = fail::FailScenario::setup();
    let options = Options {
        coordinator: arguments.coordinator,
        credentials: arguments.credentials,
        worker_id,
        local_rank,
        device: arguments.device,
        threads: arguments.threads.into(),
        packs_dir: arguments.packs_dir,
        status_port: arguments.status_port,
        wait: arguments.wait,
        address: arguments.host.map(Address::Host).or(arguments.interface.map(Address::Interface)),
    };
    match work(&options) {
        Ok(Outcome::Finished) => ExitCode::SUCCESS,
        Ok(Outcome::Stopped) => ExitCode::from(thanos_worker::EXIT_STOPPED),
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::from(error.exit_code())
        }
    }
}
