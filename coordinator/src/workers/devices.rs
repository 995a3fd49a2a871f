//! What the workers of a launch train on, decided before one is started: `--device` and
//! `--collectives` against the GPUs of this machine, and the program that is built for them. What
//! other nodes have is checked by the workers there.

use crate::exit::{EXIT_CONFIG, EXIT_UNREACHABLE, EXIT_USAGE, Fatal};
use crate::run::CollectivesChoice;
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use thanos_proto::DeviceKind;
use thanos_transport::{DeviceChoice, GpuFacts, count_gpus};

/// The workers' programs, both next to thanos-coord.
const CPU_PROGRAM: &str = "thanos-worker";
const CUDA_PROGRAM: &str = "thanos-worker-cuda";

/// What a launch asks for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    pub(crate) device: DeviceChoice,
    pub(crate) collectives: CollectivesChoice,
    /// Workers on this machine.
    pub(crate) workers: usize,
}

/// What workers are started with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Devices {
    pub(crate) device: DeviceChoice,
    /// What their program must be built for.
    pub(crate) kind: DeviceKind,
    /// What the user should know, a line each.
    pub(crate) notices: Vec<String>,
}

/// The device that the environment asks for, in `THANOS_DEVICE`.
///
/// # Errors
/// 64 if it is not a device.
pub(crate) fn device_of_environment() -> Result<Option<DeviceChoice>, Fatal> {
    let Ok(text) = std::env::var("THANOS_DEVICE") else { return Ok(None) };
    let wrong = |error| Fatal::new(EXIT_USAGE, format!("THANOS_DEVICE={text}: {error}"));
    text.parse().map(Some).map_err(wrong)
}

/// The devices of workers that all start on this machine.
///
/// # Errors
/// 64 if the options contradict each other, 78 if this machine cannot satisfy them.
pub(crate) fn on_this_machine(request: Request, facts: &GpuFacts) -> Result<Devices, Fatal> {
    check_options(request)?;
    let (gpus, workers) = (facts.usable().len(), request.workers);
    let device = match request.device {
        DeviceChoice::Auto if gpus == 0 && facts.allocated == 0 => DeviceChoice::Cpu,
        DeviceChoice::Auto => DeviceChoice::Cuda,
        typed => typed,
    };
    match device {
        DeviceChoice::Auto | DeviceChoice::Cpu
            if request.collectives == CollectivesChoice::Nccl =>
        {
            Err(config("--collectives nccl needs GPUs, and none is visible on this machine".into()))
        }
        DeviceChoice::Auto | DeviceChoice::Cpu => {
            Ok(Devices { device, kind: DeviceKind::Cpu, notices: Vec::new() })
        }
        DeviceChoice::Cuda | DeviceChoice::CudaIndex(_) if gpus == 0 => {
            Err(none_visible(request.device, facts))
        }
        DeviceChoice::Cuda if workers > gpus => Err(too_many_workers(workers, gpus)),
        DeviceChoice::CudaIndex(index) if index >= gpus => {
            let message = format!(
                "--device cuda:{index}: {} on this machine, numbered from 0",
                count_gpus(gpus)
            );
            Err(config(message))
        }
        DeviceChoice::Cuda | DeviceChoice::CudaIndex(_) => {
            let used = if device == DeviceChoice::Cuda { workers } else { 1 };
            let is = if used == 1 { "is" } else { "are" };
            let unused = (used < gpus).then(|| format!("{used} of {gpus} GPUs {is} used"));
            let notices = unused.into_iter().chain(shared_nccl(request, workers)).collect();
            Ok(Devices { device, kind: DeviceKind::Cuda, notices })
        }
    }
}

/// The devices of workers on the nodes of a Slurm allocation, this one among them. Which program
/// they need follows from what this node has; the rest is checked by each worker where it runs.
///
/// # Errors
/// 64 if the options contradict each other.
pub(crate) fn on_nodes(request: Request, facts: &GpuFacts) -> Result<Devices, Fatal> {
    check_options(request)?;
    let kind = match request.device {
        DeviceChoice::Cpu => DeviceKind::Cpu,
        DeviceChoice::Cuda | DeviceChoice::CudaIndex(_) => DeviceKind::Cuda,
        DeviceChoice::Auto if facts.allocated > 0 || !facts.usable().is_empty() => DeviceKind::Cuda,
        DeviceChoice::Auto => DeviceKind::Cpu,
    };
    let notices = shared_nccl(request, request.workers).into_iter().collect();
    Ok(Devices { device: request.device, kind, notices })
}

/// The workers' program: the one that was named, else that of this kind next to this program.
///
/// # Errors
/// 64 if the named one is not a file; 78 if the program for GPUs is missing, 69 if the one for CPUs
/// is.
pub(crate) fn worker_program(named: Option<&Path>, kind: DeviceKind) -> Result<PathBuf> {
    let here = std::env::current_exe().context("this program's own path")?;
    Ok(program_in(here.parent().unwrap_or(Path::new("")), named, kind)?)
}

fn program_in(folder: &Path, named: Option<&Path>, kind: DeviceKind) -> Result<PathBuf, Fatal> {
    if let Some(named) = named {
        let absolute = std::path::absolute(named).ok().filter(|path| path.is_file());
        let missing = || {
            Fatal::new(EXIT_USAGE, format!("--worker-program {} is not a file", named.display()))
        };
        return absolute.ok_or_else(missing);
    }
    let program = folder.join(if kind == DeviceKind::Cuda { CUDA_PROGRAM } else { CPU_PROGRAM });
    match kind {
        _ if program.is_file() => Ok(program),
        DeviceKind::Cuda => Err(config(format!(
            "workers are to train on GPUs, and {} does not exist: `make cuda` builds \
             {CUDA_PROGRAM}; `--device cpu` trains on CPUs",
            program.display()
        ))),
        DeviceKind::Cpu => {
            let message = format!(
                "{} does not exist: `make build` puts it next to thanos-coord",
                program.display()
            );
            Err(Fatal::new(EXIT_UNREACHABLE, message))
        }
    }
}

/// Variables with which NCCL accepts workers that share a GPU: it compares GPUs within what it
/// takes for a host.
pub(crate) fn shared_nccl_variables(
    worker: &str,
    has_interface: bool,
) -> Vec<(&'static str, String)> {
    let mut variables = vec![
        ("NCCL_HOSTID", worker.to_owned()),
        ("NCCL_IB_DISABLE", "1".into()),
        ("NCCL_NVLS_ENABLE", "0".into()),
    ];
    if !has_interface {
        variables.push(("NCCL_SOCKET_IFNAME", "lo".into()));
    }
    variables
}

fn check_options(request: Request) -> Result<(), Fatal> {
    match (request.device, request.collectives) {
        (DeviceChoice::Cpu, CollectivesChoice::Nccl) => {
            let message = "--collectives nccl works between GPUs only: omit --device cpu, or use \
                --collectives gloo";
            Err(Fatal::new(EXIT_USAGE, message))
        }
        _ => Ok(()),
    }
}

fn none_visible(typed: DeviceChoice, facts: &GpuFacts) -> Fatal {
    let what = match typed {
        DeviceChoice::Auto => {
            format!("Slurm has allocated {} here, and", count_gpus(facts.allocated))
        }
        typed => format!("--device {typed}:"),
    };
    let why = match &facts.cuda_visible_devices {
        Some(list) if facts.are_hidden() => {
            format!("CUDA_VISIBLE_DEVICES=\"{list}\" hides all GPUs of this machine")
        }
        _ => "no GPU is visible on this machine".into(),
    };
    config(format!("{what} {why}; `--device cpu` trains on CPUs"))
}

fn too_many_workers(workers: usize, gpus: usize) -> Fatal {
    let one = if gpus == 1 { "it" } else { "one" };
    config(format!(
        "{workers} workers but {} on this machine: start fewer workers, or let them share {one} \
        with --device cuda:0",
        count_gpus(gpus)
    ))
}

fn shared_nccl(request: Request, workers: usize) -> Option<String> {
    let is_shared = matches!(request.device, DeviceChoice::CudaIndex(_)) && workers > 1;
    let message = "NCCL between workers that share a GPU is slow: use it for tests only";
    (is_shared && request.collectives == CollectivesChoice::Nccl).then(|| message.into())
}

fn config(message: String) -> Fatal {
    Fatal::new(EXIT_CONFIG, message)
}

#[cfg(test)]
mod tests;
