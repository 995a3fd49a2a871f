//! On what this worker trains: what `--device` asks for, against the GPUs of the machine and what
//! libtorch can use of them. A GPU that is there and cannot be used is an error, never a silent
//! fall back to the CPU.

use thanos_proto::{Device, DeviceKind};
use thanos_transport::{DeviceChoice, Gpu, GpuFacts, count_gpus, cpu_model};

/// A device, for libtorch and as it is reported to the coordinator.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Chosen {
    pub(crate) device: tch::Device,
    pub(crate) described: Device,
}

/// The device that was asked for cannot be used, or GPUs that are there cannot.
#[derive(Debug, PartialEq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Unusable(String);

/// What the choice depends on.
struct Machine {
    /// In CUDA's order.
    gpus: Vec<Gpu>,
    /// GPUs that Slurm has allocated here.
    allocated: usize,
    /// GPUs that libtorch can use.
    usable: usize,
    has_cuda: bool,
    cpu: String,
}

/// The device of this worker.
///
/// # Errors
/// [`Unusable`], which names what to do.
pub(crate) fn choose(choice: DeviceChoice, local_rank: usize) -> Result<Chosen, Unusable> {
    let facts = GpuFacts::of_this_process();
    let machine = Machine {
        gpus: facts.usable(),
        allocated: facts.allocated,
        // CUDA is not initialised for a worker that is to leave it alone.
        usable: match choice {
            DeviceChoice::Cpu => 0,
            _ => usize::try_from(tch::Cuda::device_count()).unwrap_or(0),
        },
        has_cuda: cfg!(feature = "cuda"),
        cpu: cpu_name(),
    };
    decide(choice, local_rank, &machine)
}

/// This machine's processor, as people know it.
pub(crate) fn cpu_name() -> String {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    cpu_model(&cpuinfo, std::env::consts::ARCH)
}

fn decide(choice: DeviceChoice, local_rank: usize, machine: &Machine) -> Result<Chosen, Unusable> {
    let seen = machine.gpus.len().max(machine.allocated);
    let index = match choice {
        DeviceChoice::Cpu => return Ok(cpu(machine)),
        DeviceChoice::Auto if seen == 0 && machine.usable == 0 => return Ok(cpu(machine)),
        DeviceChoice::Auto | DeviceChoice::Cuda => local_rank,
        DeviceChoice::CudaIndex(index) => index,
    };
    if machine.usable == 0 {
        return Err(none_usable(choice, seen, machine.has_cuda));
    }
    if index >= machine.usable {
        let gpus = count_gpus(machine.usable);
        return Err(Unusable(match choice {
            DeviceChoice::CudaIndex(index) => {
                format!("--device cuda:{index}: {gpus} on this machine, numbered from 0")
            }
            _ => format!(
                "local rank {local_rank} but {gpus} on this machine: start fewer workers, or let \
                 them share one with --device cuda:0"
            ),
        }));
    }
    Ok(Chosen {
        device: tch::Device::Cuda(index),
        described: described(machine.gpus.get(index), index),
    })
}

fn cpu(machine: &Machine) -> Chosen {
    Chosen { device: tch::Device::Cpu, described: Device::cpu(machine.cpu.clone()) }
}

/// A GPU as the driver describes it; where it does not, CUDA's number must do.
fn described(gpu: Option<&Gpu>, index: usize) -> Device {
    let name = gpu.and_then(|gpu| gpu.model.clone()).unwrap_or_else(|| "unknown GPU".into());
    let id = gpu.and_then(Gpu::id).unwrap_or_else(|| format!("cuda:{index}"));
    Device { kind: DeviceKind::Cuda, name, id: Some(id) }
}

fn none_usable(choice: DeviceChoice, seen: usize, has_cuda: bool) -> Unusable {
    let here = match seen {
        0 => format!("--device {choice}: no GPU is visible on this machine"),
        1 => "1 GPU is on this machine or allocated to it".into(),
        _ => format!("{seen} GPUs are on this machine or allocated to it"),
    };
    let why = match (seen, has_cuda) {
        (0, _) => String::new(),
        (_, true) => {
            ", but libtorch sees none: see whether nvidia-smi does, and whether the driver is new \
            enough"
                .into()
        }
        (_, false) => {
            ", but the libtorch of this worker is built for CPUs and sees none: `make cuda` builds \
            thanos-worker-cuda"
                .into()
        }
    };
    Unusable(format!("{here}{why}; `--device cpu` trains on CPUs"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use DeviceChoice::{Auto, Cpu, Cuda, CudaIndex};

    fn gpu(index: usize) -> Gpu {
        Gpu { model: Some("H100".into()), uuid: Some(format!("GPU-{index}")), ..Gpu::default() }
    }

    fn machine(gpus: usize, usable: usize) -> Machine {
        Machine {
            gpus: (0..gpus).map(gpu).collect(),
            allocated: 0,
            usable,
            has_cuda: true,
            cpu: "Xeon".into(),
        }
    }

    #[test]
    fn a_worker_takes_the_gpu_of_its_place() {
        let check = |choice,
                     local_rank,
                     machine: &Machine,
                     expected: Option<(usize, &str, &str)>| {
            let chosen = decide(choice, local_rank, machine).expect("usable");
            let expected = match expected {
                None => Chosen { device: tch::Device::Cpu, described: Device::cpu("Xeon") },
                Some((index, name, id)) => {
                    let described =
                        Device { kind: DeviceKind::Cuda, name: name.into(), id: Some(id.into()) };
                    Chosen { device: tch::Device::Cuda(index), described }
                }
            };
            assert_eq!(chosen, expected, "{choice} {local_rank}");
        };
        check(Auto, 0, &machine(0, 0), None);
        check(Auto, 3, &machine(0, 0), None);
        check(Cpu, 0, &machine(2, 2), None);
        check(Cpu, 0, &machine(2, 0), None);
        check(Auto, 1, &machine(2, 2), Some((1, "H100", "GPU-1")));
        check(Cuda, 0, &machine(2, 2), Some((0, "H100", "GPU-0")));
        check(CudaIndex(0), 5, &machine(1, 1), Some((0, "H100", "GPU-0")));
        check(CudaIndex(1), 0, &machine(2, 2), Some((1, "H100", "GPU-1")));
        // libtorch knows better than a driver that shows nothing.
        check(Auto, 1, &machine(0, 2), Some((1, "unknown GPU", "cuda:1")));
    }

    #[test]
    fn gpus_that_cannot_be_used_are_an_error() {
        let check = |choice, local_rank, machine: &Machine, message: &str| {
            assert_eq!(
                decide(choice, local_rank, machine),
                Err(Unusable(message.into())),
                "{choice} {local_rank}"
            );
        };
        let none = "no GPU is visible on this machine; `--device cpu` trains on CPUs";
        check(Cuda, 0, &machine(0, 0), &format!("--device cuda: {none}"));
        check(CudaIndex(1), 0, &machine(0, 0), &format!("--device cuda:1: {none}"));
        let driver = "but libtorch sees none: see whether nvidia-smi does, and whether the driver \
            is new enough; `--device cpu` trains on CPUs";
        check(
            Auto,
            0,
            &machine(2, 0),
            &format!("2 GPUs are on this machine or allocated to it, {driver}"),
        );
        let allocated = Machine { allocated: 1, ..machine(0, 0) };
        check(
            Auto,
            0,
            &allocated,
            &format!("1 GPU is on this machine or allocated to it, {driver}"),
        );
        let cpu_build = Machine { has_cuda: false, ..machine(1, 0) };
        let message = "1 GPU is on this machine or allocated to it, but the libtorch of this \
            worker is built for CPUs and sees none: `make cuda` builds thanos-worker-cuda; \
            `--device cpu` trains on CPUs";
        check(Auto, 0, &cpu_build, message);
        check(Cuda, 0, &cpu_build, message);
        let fewer = "start fewer workers, or let them share one with --device cuda:0";
        check(Auto, 1, &machine(1, 1), &format!("local rank 1 but 1 GPU on this machine: {fewer}"));
        check(
            Cuda,
            2,
            &machine(2, 2),
            &format!("local rank 2 but 2 GPUs on this machine: {fewer}"),
        );
        check(
            CudaIndex(2),
            0,
            &machine(2, 2),
            "--device cuda:2: 2 GPUs on this machine, numbered from 0",
        );
    }
}
