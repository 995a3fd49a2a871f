//! Which GPUs this process may use, found without libtorch: the coordinator has none, and a worker
//! that was built for CPUs must notice GPUs that it cannot use. Only [`GpuFacts::read`] looks at
//! the machine; everything else is decided from what it found.

mod visible;

use std::fs;
use std::path::Path;

/// Names a folder that is looked at instead of `/`, for tests on machines without a GPU: its
/// `proc/driver/nvidia/gpus`, `dev` and `usr/bin` describe the GPUs. Nothing but the detection
/// reads it.
pub const MACHINE_ROOT: &str = "THANOS_MACHINE_ROOT";

/// The program with which CUDA makes device nodes; no container has it without the driver's other
/// programs.
const MODPROBE: &str = "usr/bin/nvidia-modprobe";

/// A GPU, as far as the driver describes it. Some sandboxes show only its device node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gpu {
    /// Such as `NVIDIA H100 80GB HBM3`.
    pub model: Option<String>,
    pub uuid: Option<String>,
    /// PCI location, such as `0000:0f:00.0`.
    pub bus: Option<String>,
    /// The N of `/dev/nvidiaN`.
    pub minor: Option<u32>,
}

impl Gpu {
    /// Identifies this GPU on its machine; `None`: the driver does not describe it and it has no
    /// device node.
    pub fn id(&self) -> Option<String> {
        let node = || self.minor.map(|minor| format!("nvidia{minor}"));
        self.uuid.clone().or_else(|| self.bus.clone()).or_else(node)
    }
}

/// What a machine and an environment say about GPUs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GpuFacts {
    /// Those of `/proc/driver/nvidia/gpus`. In a container they may be those of the whole host.
    pub driver: Vec<Gpu>,
    /// The N of each `/dev/nvidiaN`.
    pub nodes: Vec<u32>,
    /// CUDA makes device nodes that are missing, as on a host on which it was not used since its
    /// start; in a container that was given no GPUs it cannot.
    pub makes_nodes: bool,
    pub cuda_visible_devices: Option<String>,
    pub nvidia_visible_devices: Option<String>,
    /// GPUs that Slurm has allocated to this step or job on this machine.
    pub allocated: usize,
}

impl GpuFacts {
    /// Reads the facts of this machine and of this process's environment.
    pub fn of_this_process() -> Self {
        let root =
            std::env::var_os(MACHINE_ROOT).map_or_else(|| "/".into(), std::path::PathBuf::from);
        Self::read(&root, |name| std::env::var(name).ok())
    }

    /// Reads the facts below `root`; what cannot be read is not there.
    pub fn read(root: &Path, variable: impl Fn(&str) -> Option<String>) -> Self {
        let entries =
            |folder: &str| fs::read_dir(root.join(folder)).into_iter().flatten().flatten();
        let gpu = |entry: fs::DirEntry| {
            let information =
                fs::read_to_string(entry.path().join("information")).unwrap_or_default();
            described(&entry.file_name().to_string_lossy(), &information)
        };
        let node = |entry: fs::DirEntry| {
            entry.file_name().to_string_lossy().strip_prefix("nvidia")?.parse().ok()
        };
        Self {
            driver: entries("proc/driver/nvidia/gpus").filter_map(gpu).collect(),
            nodes: entries("dev").filter_map(node).collect(),
            makes_nodes: root.join(MODPROBE).exists(),
            cuda_visible_devices: variable("CUDA_VISIBLE_DEVICES"),
            nvidia_visible_devices: variable("NVIDIA_VISIBLE_DEVICES"),
            allocated: allocated(&variable),
        }
    }

    /// The GPUs that CUDA would number from 0, in that order.
    pub fn usable(&self) -> Vec<Gpu> {
        let installed = self.installed();
        match &self.cuda_visible_devices {
            Some(list) => visible::selected(&installed, list),
            None => installed,
        }
    }

    /// Whether there are GPUs which the environment hides from this process.
    pub fn are_hidden(&self) -> bool {
        self.usable().is_empty() && !self.installed().is_empty()
    }

    /// GPUs of this machine or container, in CUDA's order: by their PCI location.
    fn installed(&self) -> Vec<Gpu> {
        let container = self.nvidia_visible_devices.as_deref();
        // A container may show the driver of its host, but has only its own device nodes. With
        // nodes `void` means nothing: it is set as well where GPUs are given to a container by CDI.
        let is_without = self.nodes.is_empty() && (!self.makes_nodes || container == Some("void"));
        if container == Some("none") || is_without {
            return Vec::new();
        }
        let has_node = |gpu: &&Gpu| {
            self.nodes.is_empty() || gpu.minor.is_none_or(|minor| self.nodes.contains(&minor))
        };
        let mut gpus: Vec<Gpu> = self.driver.iter().filter(has_node).cloned().collect();
        if gpus.is_empty() {
            gpus = self
                .nodes
                .iter()
                .map(|minor| Gpu { minor: Some(*minor), ..Gpu::default() })
                .collect();
        }
        gpus.sort_by(|left, right| (&left.bus, left.minor).cmp(&(&right.bus, right.minor)));
        gpus
    }
}

/// A GPU by the driver's description of it; `None`: the driver was configured to exclude it.
fn described(folder: &str, information: &str) -> Option<Gpu> {
    let field = |name: &str| {
        let of_line =
            |line: &str| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim().to_owned());
        // Of a GPU that was not initialised yet, digits are question marks.
        information
            .lines()
            .find_map(of_line)
            .filter(|value| !value.is_empty() && !value.contains('?'))
    };
    if field("GPU Excluded").is_some_and(|excluded| excluded == "Yes") {
        return None;
    }
    Some(Gpu {
        model: field("Model"),
        uuid: field("GPU UUID"),
        bus: Some(field("Bus Location").unwrap_or_else(|| folder.into())),
        minor: field("Device Minor").and_then(|minor| minor.parse().ok()),
    })
}

/// How many GPUs Slurm has allocated here; 0 outside of an allocation.
fn allocated(variable: &impl Fn(&str) -> Option<String>) -> usize {
    let count = variable("SLURM_GPUS_ON_NODE").and_then(|count| count.trim().parse().ok());
    let listed = || variable("SLURM_STEP_GPUS").or_else(|| variable("SLURM_JOB_GPUS"));
    count.or_else(|| listed().map(|list| list.split(',').map(in_range).sum())).unwrap_or(0)
}

/// `3`, or `0-3`.
fn in_range(part: &str) -> usize {
    let number = |text: &str| text.trim().parse::<usize>().ok();
    match part.split_once('-') {
        Some((first, last)) => number(first)
            .zip(number(last))
            .map_or(0, |(first, last)| (last + 1).saturating_sub(first)),
        None => usize::from(number(part).is_some()),
    }
}

/// `1 GPU`, `2 GPUs`.
pub fn count_gpus(gpus: usize) -> String {
    format!("{gpus} GPU{}", if gpus == 1 { "" } else { "s" })
}

/// The processor's model by `/proc/cpuinfo`; not every architecture names it, and `architecture`
/// stands in.
pub fn cpu_model(cpuinfo: &str, architecture: &str) -> String {
    let named =
        |line: &str| Some(line.strip_prefix("model name")?.split_once(':')?.1.trim().to_owned());
    cpuinfo
        .lines()
        .find_map(named)
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| architecture.into())
}

#[cfg(test)]
mod tests;
