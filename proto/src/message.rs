//! The domain types of the session. They own their data, know no prost, and have no empty-string
//! sentinels.

use crate::phase::RankPhase;
use std::collections::BTreeMap;
use std::time::Duration;

/// What a worker sends to the coordinator.
#[derive(Clone, Debug, PartialEq)]
pub enum WorkerEvent {
    /// The first event of a session.
    Hello(Hello),
    /// The worker has made its plan and opened its packs; it waits for a generation.
    Ready {
        config_digest: String,
    },
    /// Before `Ready`: the worker does not see a pack, and gets it from the coordinator.
    Fetching(Fetching),
    Rejoin(Rejoin),
    Heartbeat(Heartbeat),
    /// From rank 0, after each update.
    Step(StepDone),
    /// From rank 0, after each evaluation on the validation images.
    Evaluated(Evaluated),
    /// From rank 0: files are written and synced, the coordinator may commit them.
    Checkpoint(CheckpointWritten),
    /// From rank 0: a checkpoint could not be written, and is given up.
    NotSaved {
        stage: String,
        step: u64,
        reason: String,
    },
    /// From rank 0: ranks whose state was not that of the others were given it.
    Repaired {
        problem: String,
    },
    /// Where this worker shows its metrics, HOST:PORT.
    Shows {
        address: String,
    },
    /// This worker received a stop signal other than SIGTERM: the whole run is to stop at a common
    /// step, with a checkpoint.
    StopRequested {
        reason: String,
    },
    /// This worker received SIGTERM, as when its job is preempted or its node drained; it trains on
    /// until the run stops, or until it is killed.
    TerminationNotice,
    StageFinished {
        stage: String,
    },
    /// The rank stopped at the common step; its state is in the last checkpoint.
    Stopped {
        stage: String,
        step: u64,
    },
    Failed(Failed),
    /// All stages are done, or the benchmark is.
    Finished,
    /// From each rank of a benchmark, before `Finished`.
    Benched(BenchReport),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Hello {
    pub worker_id: String,
    pub host: String,
    pub pid: u32,
    pub version: String,
    /// The newest generation that it was in; 0: none, it is new.
    pub generation: u64,
    pub device: Device,
}

/// On what a worker trains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    pub kind: DeviceKind,
    /// Model of the GPU or of the processor.
    pub name: String,
    /// UUID or PCI location of the GPU: two workers of one host that have the same id share a GPU.
    pub id: Option<String>,
}

impl Device {
    /// A processor.
    pub fn cpu(name: impl Into<String>) -> Self {
        Self { kind: DeviceKind::Cpu, name: name.into(), id: None }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    Cpu,
    Cuda,
}

impl DeviceKind {
    /// As events and status pages have it: `cpu` or `cuda`.
    pub fn label(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
        }
    }
}

/// The library that carries a generation's collectives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Collectives {
    Gloo,
    Nccl,
}

impl Collectives {
    /// As events and status pages have it: `gloo` or `nccl`.
    pub fn label(self) -> &'static str {
        match self {
            Self::Gloo => "gloo",
            Self::Nccl => "nccl",
        }
    }
}

/// A peer, or the coordinator, was lost: the worker left its group, and waits for a generation with
/// what it holds in memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Rejoin {
    /// The generation that it left.
    pub generation: u64,
    /// `None`: it had not come to hold anything.
    pub held: Option<Held>,
    /// The last steps of its stage that it made, in order: its rank 0 may not have sent them, or
    /// the coordinator may not have received them.
    pub recent: Vec<StepDone>,
    /// `None`: the worker left for another reason than an error of its group.
    pub failure: Option<GroupFailure>,
}

/// An error of a collective, or of creating the group, that made a rank leave its generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupFailure {
    pub stage: String,
    /// The step in flight: updates made of the stage.
    pub step: u64,
    pub message: String,
    /// The connection to a peer was lost. Otherwise the same call may fail again in the same way.
    pub peer_lost: bool,
}

/// State that a worker holds in memory, in the order of training: the greater one is further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Held {
    /// Index of the stage.
    pub stage: u32,
    /// Updates made.
    pub step: u64,
    /// What follows the last of them (an evaluation) is done, too.
    pub post_step_done: bool,
}

/// How much of a pack's file has come, in bytes; `from` is what an earlier transfer had brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetching {
    pub split: String,
    pub from: u64,
    pub done: u64,
    pub total: u64,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Heartbeat {
    pub generation: u64,
    pub stage: String,
    pub step: u64,
    pub phase: RankPhase,
    /// Collectives entered in this generation, and time spent in them.
    pub collectives: u64,
    pub waited_ms: u64,
    /// Counts what is done outside of collectives and steps: batches evaluated, chunks sent or
    /// written, store calls.
    pub progress: u64,
    /// The training thread is inside a collective.
    pub in_collective: bool,
}

/// A committed update: a line of `steps.jsonl`. `step` counts over the stage, from 0.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepDone {
    pub stage: String,
    pub epoch: u64,
    pub step: u64,
    pub generation: u64,
    pub world_size: u32,
    pub loss: f64,
    pub losses: BTreeMap<String, f64>,
    pub lr: f64,
    pub images: u64,
    pub samples_sha256: String,
    pub total_steps: u64,
    /// There if the update was skipped, and why.
    pub skipped: Option<String>,
    /// The reporting rank's time since the step before it, by phase; no two ranks, and no two runs,
    /// agree on it.
    pub phase_seconds: BTreeMap<RankPhase, f64>,
    /// Candidates that rank 0 received from the others, and their gradients that it sent.
    pub gathered_bytes: u64,
}

impl StepDone {
    /// The duration of the step: evaluations and saves between steps are not part of it.
    pub fn seconds(&self) -> f64 {
        self.phase_seconds
            .iter()
            .filter(|(phase, _)| phase.is_part_of_step())
            .map(|(_, seconds)| seconds)
            .sum()
    }
}

/// Accuracy on the validation images, a share in 0..1.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluated {
    pub stage: String,
    pub epoch: u64,
    pub validation_accuracy: f64,
    pub best: bool,
    /// What classified the images, as `thanos_configs::ValidationMeasure` names it.
    pub measure: String,
}

#[derive(Clone, Debug, PartialEq)]
pub struct WrittenFile {
    pub name: String,
    pub bytes: u64,
    pub sha256: String,
}

/// A checkpoint that waits for its commit; `folder` is relative to the run directory.
#[derive(Clone, Debug, PartialEq)]
pub struct CheckpointWritten {
    pub stage: String,
    pub epoch: u64,
    pub step: u64,
    pub generation: u64,
    pub world_size: u32,
    pub folder: String,
    pub files: Vec<WrittenFile>,
    /// There when the stage is complete.
    pub result: Option<StageResult>,
    /// Training time of the stage so far.
    pub seconds: f64,
    /// `None`: no epoch has been evaluated yet.
    pub best: Option<Best>,
    /// What follows the last update (an evaluation) is done, too.
    pub post_step_done: bool,
}

/// The best validation epoch so far; accuracy as a share in 0..1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Best {
    pub epoch: u64,
    pub validation_accuracy: f64,
}

/// What a finished stage measured; accuracies as shares in 0..1, cosines of test embeddings.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StageResult {
    pub stage: String,
    pub seconds: f64,
    pub validation_accuracy: f64,
    pub coarse_test_accuracy: f64,
    /// Transfers only.
    pub fine_test_accuracy: Option<f64>,
    pub knn_fine_accuracy: f64,
    /// `None`: no class has two test images.
    pub cosine_within_coarse: Option<f64>,
    pub cosine_within_fine: Option<f64>,
    pub cosine_between_views: f64,
    /// Time that rank 0's steps waited for their images, since its worker started the stage.
    pub data_wait_seconds: f64,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Failed {
    pub phase: String,
    pub message: String,
    pub exit_code: u8,
}

/// What the coordinator sends to a worker.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// The answer to `Hello`.
    Welcome(Welcome),
    /// A generation is complete: build the process group and train from here.
    Begin(Begin),
    /// The answer to `Checkpoint`: committed, or given up and why.
    Committed(Result<CheckpointRef, String>),
    /// Finish the step in flight, save, and leave.
    Stop {
        reason: String,
    },
    /// More workers are here: finish the step in flight, leave the generation, and wait for the
    /// next one. As [`Self::Abandon`], it may arrive before the generation's [`Self::Begin`], which
    /// is sent once it is durable.
    Regroup {
        generation: u64,
    },
    /// The generation has lost a worker: leave it at once, even from within a collective.
    Abandon {
        generation: u64,
        reason: String,
    },
    /// The run ends, and this waiting worker holds its newest state: write a checkpoint of it.
    Save,
    /// So many steps of this session are in `steps.jsonl`; sent every few steps.
    Recorded {
        steps: u64,
    },
    Refused {
        reason: String,
        exit_code: u8,
    },
    /// The run is over for this worker: close the session.
    Leave {
        reason: String,
    },
}

/// Everything a worker needs to make its plan.
#[derive(Clone, Debug, PartialEq)]
pub struct Welcome {
    pub run_id: String,
    pub run_dir: String,
    /// The resolved configuration, as YAML.
    pub config: String,
    pub config_digest: String,
    pub packs: Vec<PackRef>,
    /// How long a worker that cannot reach its coordinator keeps its state and tries again.
    pub lease: Duration,
    /// SHA-256 of the token that metrics are shown for; `None` in an insecure run.
    pub scrape_token_sha256: Option<String>,
    /// How long a stop may take, its retried saves included; `None`: no limit was set.
    pub grace: Option<Duration>,
    /// The run is a benchmark: the first stage is measured instead of trained.
    pub bench: Option<BenchRequest>,
}

/// What a benchmark measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BenchRequest {
    /// Steps before the measured ones; at least one.
    pub warmup_steps: u64,
    /// Steps that are measured; at least one.
    pub steps: u64,
}

/// What one rank of a benchmark measured.
#[derive(Clone, Debug, PartialEq)]
pub struct BenchReport {
    pub rank: u32,
    /// Name of the processor or GPU.
    pub device: String,
    /// What products are computed in.
    pub precision: String,
    pub collectives: String,
    /// Wall-clock time of each measured step.
    pub step_seconds: Vec<f64>,
    /// Mean time of each phase of the measured steps.
    pub phase_seconds: BTreeMap<RankPhase, f64>,
    /// Floating point operations of this rank's part of one step.
    pub flops: u64,
    /// Operators that a step dispatches.
    pub operators: u64,
    /// Kernels that a step runs on the GPU; `None`: not known, as on the CPU.
    pub kernels: Option<u64>,
    /// The fastest large matrix product on this device while all ranks compute one.
    pub ceiling_flops_per_s: f64,
    /// Which product that was.
    pub ceiling_product: String,
    /// Of the GPU, or of the process on the CPU, during the measured steps.
    pub peak_memory_bytes: u64,
    pub parameters: u64,
}

/// A pack: `split` is `train` or `test`.
#[derive(Clone, Debug, PartialEq)]
pub struct PackRef {
    pub split: String,
    pub path: String,
    pub fingerprint: String,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Begin {
    pub generation: u64,
    pub rank: u32,
    pub world_size: u32,
    /// Index into `Plan::stages` of the first stage to run.
    pub stage: u32,
    /// Where that stage stands; `None`: at its start.
    pub resume: Option<CheckpointRef>,
    /// The last checkpoints of the stages that are complete.
    pub complete: Vec<CheckpointRef>,
    /// The rank whose memory all take over; `None`: begin from `resume`.
    pub source: Option<u32>,
    /// The same for all ranks.
    pub collectives: Collectives,
}

/// A committed checkpoint: folder relative to the run directory, SHA-256 of its `manifest.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct CheckpointRef {
    pub stage: String,
    pub folder: String,
    pub manifest_sha256: String,
    pub step: u64,
}
