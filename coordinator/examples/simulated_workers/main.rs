//! A coordinator under the load of many workers, without libtorch: it starts `thanos-coord serve`,
//! joins it with simulated workers that speak the real protocol over TLS, and prints what that took
//! as one line of JSON. Build both first, then: `simulated_workers WORKERS [gloo|nccl]`.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a benchmark that prints what it measures"
)]

mod worker;

use serde_json::json;
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};
use worker::{Met, Rendezvous, Run, simulate};

/// How long the processes are watched at rest.
const REST: Duration = Duration::from_secs(20);
/// No generation takes longer.
const MAX_WAIT: Duration = Duration::from_secs(300);

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let workers: usize = arguments.next().ok_or("how many workers?")?.parse()?;
    let rendezvous = match arguments.next().as_deref() {
        None | Some("gloo") => Rendezvous::Gloo,
        Some("nccl") => Rendezvous::Nccl,
        Some(other) => return Err(format!("`{other}` is neither gloo nor nccl").into()),
    };
    thanos_transport::raise_descriptor_limit()?;
    let folder = tempfile::tempdir()?;
    let (coordinator, address) = serve(folder.path(), workers)?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let run = Run::open(&folder.path().join("run"), address, rendezvous)?;
    let measured = runtime.block_on(measure(Arc::new(run), workers, coordinator.0.id()));
    runtime.shutdown_background();
    println!("{}", measured?);
    Ok(())
}

/// A coordinator that is killed when the program ends.
struct Coordinator(Child);

impl Drop for Coordinator {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

/// The program next to this one's folder; the address at which it waits for workers.
fn serve(folder: &Path, workers: usize) -> Result<(Coordinator, String), Failure> {
    let here = std::env::current_exe()?;
    let program: PathBuf =
        here.ancestors().nth(2).ok_or("this program is in no target folder")?.join("thanos-coord");
    let mut child = Command::new(&program)
        .args([
            "serve",
            "--nodes",
            &workers.to_string(),
            "digits_cae",
            "rows=[]",
            "--listen",
            "127.0.0.1:0",
        ])
        .arg("--run-dir")
        .arg(folder.join("run"))
        .env("THANOS_PACKS", folder.join("packs"))
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("{}: {error}", program.display()))?;
    let stderr = child.stderr.take().ok_or("no standard error")?;
    let coordinator = Coordinator(child);
    let mut lines = BufReader::new(stderr).lines();
    for line in &mut lines {
        let line = line?;
        if let Some((address, _)) =
            line.split("waiting at ").nth(1).and_then(|rest| rest.split_once(" for "))
        {
            let address = address.to_owned();
            // What it says from here on is for people, and must not fill the pipe.
            std::thread::spawn(move || {
                lines.map_while(Result::ok).for_each(|line| eprintln!("coordinator: {line}"))
            });
            return Ok((coordinator, address));
        }
        eprintln!("coordinator: {line}");
    }
    Err("the coordinator ended before it listened".into())
}

async fn measure(
    run: Arc<Run>,
    workers: usize,
    coordinator: u32,
) -> Result<serde_json::Value, Failure> {
    let (met, mut all) = mpsc::unbounded_channel();
    let started = Instant::now();
    let mut losses = Vec::new();
    for index in 0..workers {
        let (lose, lost) = oneshot::channel();
        losses.push(lose);
        tokio::spawn(simulate(run.clone(), format!("sim-{index:04}"), met.clone(), lost));
    }
    let first = generation(&mut all, workers, 0).await?;
    let formed = started.elapsed();
    let (calls_first, before) = (run.store_calls(), [cpu(coordinator)?, cpu(std::process::id())?]);
    tokio::time::sleep(REST).await;
    let after = [cpu(coordinator)?, cpu(std::process::id())?];
    let rss_mb = rss_mb(coordinator)?;
    let lost = Instant::now();
    _ = losses.swap_remove(workers / 2).send(());
    generation(&mut all, workers, first).await?;
    let recovered = lost.elapsed();
    let cores = |index: usize| round((after[index] - before[index]) / REST.as_secs_f64());
    Ok(json!({
        "workers": workers,
        "rendezvous": format!("{:?}", run.rendezvous),
        "formed_seconds": round(formed.as_secs_f64()),
        "next_generation_seconds": round(recovered.as_secs_f64()),
        "store_calls_of_a_generation": calls_first,
        "coordinator_cores_at_rest": cores(0),
        "simulated_workers_cores_at_rest": cores(1),
        "coordinator_rss_mb_at_rest": rss_mb,
        "coordinator_cpu_seconds_in_all": round(cpu(coordinator)?),
        "simulated_workers_cpu_seconds_in_all": round(cpu(std::process::id())?),
    }))
}

/// Waits until all ranks of a generation later than this one have met, and returns its number.
async fn generation(
    all: &mut mpsc::UnboundedReceiver<Met>,
    workers: usize,
    after: u64,
) -> Result<u64, Failure> {
    let (mut newest, mut ranks) = (after, BTreeSet::new());
    while ranks.len() < workers {
        let met = tokio::time::timeout(MAX_WAIT, all.recv()).await;
        let met = met
            .map_err(|_| format!("{} of {workers} ranks have met in {MAX_WAIT:?}", ranks.len()))?;
        let Met { generation, rank } = met.ok_or("all workers have ended")?;
        if generation > newest {
            newest = generation;
            ranks.clear();
        }
        if generation == newest && generation > after {
            ranks.insert(rank);
        }
    }
    Ok(newest)
}

/// Seconds of processor time that a process has used.
fn cpu(pid: u32) -> Result<f64, Failure> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> =
        stat.rsplit_once(')').ok_or("no name in /proc/PID/stat")?.1.split_whitespace().collect();
    let ticks = |index: usize| fields[index].parse::<f64>();
    Ok((ticks(11)? + ticks(12)?) / 100.0)
}

fn rss_mb(pid: u32) -> Result<f64, Failure> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    let kb: f64 = line.split_whitespace().next().ok_or("not a number")?.parse()?;
    Ok(round(kb / 1024.0))
}

fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}
