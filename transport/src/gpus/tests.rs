//! Detection, case by case, on literal files and variables.

use super::*;

/// As the driver writes it, with its tabs.
const H100: &str = "Model: \t\t NVIDIA H100 80GB HBM3
IRQ:   \t\t 18
GPU UUID: \t GPU-1d4ccb30-9bb1-4f3f-8b1c-2e0a4b1d8a01
Video BIOS: \t 96.00.61.00.01
Bus Type: \t PCIe
DMA Size: \t 52 bits
DMA Mask: \t 0xfffffffffffff
Bus Location: \t 0000:0f:00.0
Device Minor: \t 2
GPU Firmware: \t 580.65.06
GPU Excluded:\t No
";

fn gpu(index: u32) -> Gpu {
    Gpu {
        model: Some("NVIDIA H100 80GB HBM3".into()),
        uuid: Some(format!("GPU-{index}a")),
        bus: Some(format!("0000:{index}0:00.0")),
        minor: Some(index),
    }
}

fn node(minor: u32) -> Gpu {
    Gpu { minor: Some(minor), ..Gpu::default() }
}

#[test]
fn a_description_of_the_driver_is_read() {
    let read = described("0000:0f:00.0", H100).expect("not excluded");
    let expected = Gpu {
        model: Some("NVIDIA H100 80GB HBM3".into()),
        uuid: Some("GPU-1d4ccb30-9bb1-4f3f-8b1c-2e0a4b1d8a01".into()),
        bus: Some("0000:0f:00.0".into()),
        minor: Some(2),
    };
    assert_eq!(read, expected);
    assert_eq!(described("a", &H100.replace("\t No", "\t Yes")), None, "an excluded GPU");
    let unknown =
        described("0000:0f:00.0", "GPU UUID: \t GPU-????????-????\n").expect("not excluded");
    assert_eq!(unknown, Gpu { bus: Some("0000:0f:00.0".into()), ..Gpu::default() });
    assert_eq!(unknown.id().as_deref(), Some("0000:0f:00.0"));
    assert_eq!(
        (read.id(), node(3).id(), Gpu::default().id()),
        (expected.uuid, Some("nvidia3".into()), None)
    );
}

#[test]
fn the_order_is_that_of_the_pci_bus() {
    let swapped = Gpu { minor: Some(0), ..gpu(1) };
    let facts = GpuFacts {
        driver: vec![gpu(2), swapped.clone()],
        nodes: vec![0, 2],
        ..GpuFacts::default()
    };
    assert_eq!(facts.usable(), [swapped, gpu(2)]);
}

#[test]
fn visible_devices_select_and_reorder() {
    let check = |list: Option<&str>, expected: &[u32]| {
        let driver = vec![gpu(0), gpu(1), gpu(2)];
        let cuda_visible_devices = list.map(Into::into);
        let facts =
            GpuFacts { driver, nodes: vec![0, 1, 2], cuda_visible_devices, ..GpuFacts::default() };
        let expected: Vec<Gpu> = expected.iter().map(|index| gpu(*index)).collect();
        assert_eq!(facts.usable(), expected, "{list:?}");
        assert_eq!(facts.are_hidden(), expected.is_empty(), "{list:?}");
    };
    check(None, &[0, 1, 2]);
    check(Some(""), &[]);
    check(Some("-1"), &[]);
    check(Some("NoDevFiles"), &[]);
    check(Some("1"), &[1]);
    check(Some("2,0"), &[2, 0]);
    check(Some(" 2 , 1"), &[2, 1]);
    check(Some("0,7,1"), &[0]);
    check(Some("0,-1,1"), &[0]);
    check(Some("0,,1"), &[0]);
    check(Some("1,1"), &[]);
    check(Some("GPU-2"), &[2]);
    check(Some("GPU-2a,GPU-0a"), &[2, 0]);
    check(Some("GPU-"), &[]);
    check(Some("GPU-9"), &[]);
}

#[test]
fn a_mig_instance_is_one_device() {
    let cuda_visible_devices = || Some("MIG-a,MIG-b".into());
    let facts = |driver: Vec<Gpu>| {
        let nodes = driver.iter().filter_map(|gpu| gpu.minor).collect();
        GpuFacts {
            driver,
            nodes,
            cuda_visible_devices: cuda_visible_devices(),
            ..GpuFacts::default()
        }
    };
    let ids: Vec<_> = facts(vec![gpu(0)]).usable().iter().map(Gpu::id).collect();
    assert_eq!(ids, [Some("MIG-a".into())]);
    assert_eq!(facts(Vec::new()).usable(), []);
}

#[test]
fn a_container_has_the_gpus_of_its_device_nodes() {
    let check_on =
        |makes_nodes, driver: &[u32], nodes: &[u32], container: Option<&str>, expected: &[Gpu]| {
            let facts = GpuFacts {
                makes_nodes,
                driver: driver.iter().map(|index| gpu(*index)).collect(),
                nodes: nodes.to_vec(),
                nvidia_visible_devices: container.map(Into::into),
                ..GpuFacts::default()
            };
            assert_eq!(facts.usable(), expected, "{driver:?} {nodes:?} {container:?}");
        };
    let check = |driver: &[u32], nodes: &[u32], container: Option<&str>, expected: &[Gpu]| {
        check_on(false, driver, nodes, container, expected);
        if !nodes.is_empty() {
            check_on(true, driver, nodes, container, expected);
        }
    };
    check(&[], &[], None, &[]);
    check(&[0, 1], &[0, 1], None, &[gpu(0), gpu(1)]);
    // A container of a machine with GPUs that was given none; and that machine before CUDA's first
    // use.
    check_on(false, &[0, 1], &[], None, &[]);
    check_on(true, &[0, 1], &[], None, &[gpu(0), gpu(1)]);
    check_on(true, &[0, 1], &[], Some("void"), &[]);
    // One of the host's two is the container's.
    check(&[0, 1], &[1], Some("GPU-1a"), &[gpu(1)]);
    // A sandbox that hides the driver.
    check(&[], &[1, 0], None, &[node(0), node(1)]);
    check(&[0, 1], &[], Some("void"), &[]);
    check(&[0, 1], &[0], Some("void"), &[gpu(0)]);
    check(&[0, 1], &[0, 1], Some("none"), &[]);
    check(&[0], &[0], Some("all"), &[gpu(0)]);
}

#[test]
fn slurm_says_what_is_allocated() {
    let check = |variables: &[(&str, &str)], expected: usize| {
        let variable = |name: &str| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        };
        assert_eq!(allocated(&variable), expected, "{variables:?}");
    };
    check(&[], 0);
    check(&[("SLURM_GPUS_ON_NODE", "4")], 4);
    check(&[("SLURM_GPUS_ON_NODE", "0"), ("SLURM_JOB_GPUS", "0,1")], 0);
    check(&[("SLURM_STEP_GPUS", "1,3"), ("SLURM_JOB_GPUS", "0,1,2")], 2);
    check(&[("SLURM_JOB_GPUS", "0-3,6")], 5);
    check(&[("SLURM_JOB_GPUS", "")], 0);
    check(&[("SLURM_JOB_GPUS", "a-b")], 0);
}

#[test]
fn a_machine_is_read_from_its_files() {
    let root = std::env::temp_dir().join(format!("thanos-gpus-{}", std::process::id()));
    let folder = root.join("proc/driver/nvidia/gpus/0000:0f:00.0");
    fs::create_dir_all(&folder).expect("a folder");
    fs::create_dir_all(root.join("dev")).expect("a folder");
    fs::write(folder.join("information"), H100).expect("a file");
    for name in ["nvidia2", "nvidiactl", "nvidia-uvm", "null"] {
        fs::write(root.join("dev").join(name), "").expect("a file");
    }
    let facts = GpuFacts::read(&root, |name| (name == "CUDA_VISIBLE_DEVICES").then(|| "0".into()));
    fs::remove_dir_all(&root).expect("ours");
    let expected = GpuFacts {
        driver: described("", H100).into_iter().collect(),
        nodes: vec![2],
        cuda_visible_devices: Some("0".into()),
        ..GpuFacts::default()
    };
    assert_eq!(facts, expected);
    assert_eq!(facts.usable().len(), 1);
    assert_eq!(GpuFacts::read(&root, |_| None), GpuFacts::default());
}

#[test]
fn a_processor_is_named_where_the_kernel_names_it() {
    let intel =
        "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: Intel(R) Xeon(R) Processor\n";
    assert_eq!(cpu_model(intel, "x86_64"), "Intel(R) Xeon(R) Processor");
    assert_eq!(cpu_model("processor\t: 0\nBogoMIPS\t: 50.00\n", "aarch64"), "aarch64");
}
