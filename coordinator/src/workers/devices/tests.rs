//! What each choice becomes on machines of each kind.

use super::*;
use thanos_transport::DeviceChoice::{Auto, Cpu, Cuda, CudaIndex};
use thanos_transport::Gpu;

fn machine(gpus: u32) -> GpuFacts {
    let gpu = |minor| Gpu { minor: Some(minor), ..Gpu::default() };
    GpuFacts {
        driver: (0..gpus).map(gpu).collect(),
        nodes: (0..gpus).collect(),
        ..GpuFacts::default()
    }
}

fn request(device: DeviceChoice, workers: usize) -> Request {
    Request { device, collectives: CollectivesChoice::Auto, workers }
}

#[track_caller]
fn check(request: Request, facts: &GpuFacts, device: DeviceChoice, notices: &[&str]) {
    let found = on_this_machine(request, facts).expect("it fits");
    let kind = if device == Cpu { DeviceKind::Cpu } else { DeviceKind::Cuda };
    let notices = notices.iter().map(|&notice| notice.to_owned()).collect();
    assert_eq!(found, Devices { device, kind, notices }, "{request:?}");
}

#[track_caller]
fn refused(result: Result<impl std::fmt::Debug, Fatal>, exit_code: u8, message: &str) {
    let fatal = result.expect_err("it does not fit");
    assert_eq!((fatal.exit_code, fatal.message.as_str()), (exit_code, message));
}

#[test]
fn workers_get_the_gpus_of_this_machine_if_there_are_any() {
    check(request(Auto, 2), &machine(0), Cpu, &[]);
    check(request(Auto, 2), &machine(2), Cuda, &[]);
    check(request(Auto, 1), &machine(8), Cuda, &["1 of 8 GPUs is used"]);
    check(request(Cuda, 2), &machine(8), Cuda, &["2 of 8 GPUs are used"]);
    check(request(CudaIndex(0), 4), &machine(1), CudaIndex(0), &[]);
    check(request(CudaIndex(1), 4), &machine(2), CudaIndex(1), &["1 of 2 GPUs is used"]);
    check(request(Cpu, 4), &machine(2), Cpu, &[]);
}

#[test]
fn what_this_machine_cannot_satisfy_is_refused() {
    let check = |request, facts: &GpuFacts, message| {
        refused(on_this_machine(request, facts), EXIT_CONFIG, message)
    };
    let numbered =
        "--device cuda:1: no GPU is visible on this machine; `--device cpu` trains on CPUs";
    check(request(CudaIndex(1), 1), &machine(0), numbered);
    let none = "--device cuda: no GPU is visible on this machine; `--device cpu` trains on CPUs";
    check(request(Cuda, 1), &machine(0), none);
    let hidden = GpuFacts { cuda_visible_devices: Some("-1".into()), ..machine(2) };
    let message = "--device cuda: CUDA_VISIBLE_DEVICES=\"-1\" hides all GPUs of this machine; \
        `--device cpu` trains on CPUs";
    check(request(Cuda, 1), &hidden, message);
    let allocated = GpuFacts { allocated: 4, ..machine(0) };
    let message = "Slurm has allocated 4 GPUs here, and no GPU is visible on this machine; \
        `--device cpu` trains on CPUs";
    check(request(Auto, 1), &allocated, message);
    let fewer = "start fewer workers, or let them share";
    let message = format!("2 workers but 1 GPU on this machine: {fewer} it with --device cuda:0");
    check(request(Auto, 2), &machine(1), &message);
    let message = format!("3 workers but 2 GPUs on this machine: {fewer} one with --device cuda:0");
    check(request(Cuda, 3), &machine(2), &message);
    check(
        request(CudaIndex(2), 1),
        &machine(2),
        "--device cuda:2: 2 GPUs on this machine, numbered from 0",
    );
    let nccl = Request { collectives: CollectivesChoice::Nccl, ..request(Auto, 2) };
    check(nccl, &machine(0), "--collectives nccl needs GPUs, and none is visible on this machine");
}

#[test]
fn cpus_and_nccl_contradict_each_other_everywhere() {
    let nccl = Request { collectives: CollectivesChoice::Nccl, ..request(Cpu, 1) };
    for result in [on_this_machine(nccl, &machine(1)), on_nodes(nccl, &machine(1))] {
        let fatal = result.expect_err("a contradiction");
        assert_eq!(fatal.exit_code, EXIT_USAGE, "{fatal}");
    }
}

#[test]
fn nccl_on_a_shared_gpu_is_for_tests() {
    let nccl = |device, workers| Request {
        collectives: CollectivesChoice::Nccl,
        ..request(device, workers)
    };
    let message = "NCCL between workers that share a GPU is slow: use it for tests only";
    check(nccl(CudaIndex(0), 2), &machine(1), CudaIndex(0), &[message]);
    check(nccl(CudaIndex(0), 1), &machine(1), CudaIndex(0), &[]);
    check(nccl(Cuda, 2), &machine(2), Cuda, &[]);
    let names = |has_interface| -> Vec<&str> {
        shared_nccl_variables("worker-1", has_interface).iter().map(|(name, _)| *name).collect()
    };
    let all = ["NCCL_HOSTID", "NCCL_IB_DISABLE", "NCCL_NVLS_ENABLE", "NCCL_SOCKET_IFNAME"];
    assert_eq!((names(false), names(true)), (all.to_vec(), all[..3].to_vec()));
    assert_eq!(shared_nccl_variables("worker-1", true)[0].1, "worker-1");
}

/// What was typed goes to the nodes; only the program follows from this one.
#[test]
fn the_program_of_nodes_is_that_of_this_node() {
    let check = |device, facts: &GpuFacts, kind| {
        let found = on_nodes(request(device, 8), facts).expect("checked there");
        assert_eq!((found.device, found.kind), (device, kind));
    };
    check(Auto, &machine(0), DeviceKind::Cpu);
    check(Auto, &machine(1), DeviceKind::Cuda);
    check(Auto, &GpuFacts { allocated: 1, ..machine(0) }, DeviceKind::Cuda);
    check(Cuda, &machine(0), DeviceKind::Cuda);
    check(CudaIndex(7), &machine(0), DeviceKind::Cuda);
    check(Cpu, &machine(8), DeviceKind::Cpu);
}

#[test]
fn the_program_is_beside_this_one_or_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    let (cpu, cuda, other) = (path(CPU_PROGRAM), path(CUDA_PROGRAM), path("other"));
    let beside = |kind| program_in(folder.path(), None, kind);
    let message =
        format!("{} does not exist: `make build` puts it next to thanos-coord", cpu.display());
    refused(beside(DeviceKind::Cpu), EXIT_UNREACHABLE, &message);
    std::fs::write(&cpu, "").expect("written");
    assert_eq!(beside(DeviceKind::Cpu).expect("there"), cpu);
    let message = format!(
        "workers are to train on GPUs, and {} does not exist: `make cuda` builds \
         thanos-worker-cuda; `--device cpu` trains on CPUs",
        cuda.display()
    );
    refused(beside(DeviceKind::Cuda), EXIT_CONFIG, &message);
    std::fs::write(&cuda, "").expect("written");
    assert_eq!(beside(DeviceKind::Cuda).expect("there"), cuda);
    let named = |path: &Path| program_in(folder.path(), Some(path), DeviceKind::Cuda);
    refused(
        named(&other),
        EXIT_USAGE,
        &format!("--worker-program {} is not a file", other.display()),
    );
    assert_eq!(named(&cpu).expect("there"), cpu);
}
