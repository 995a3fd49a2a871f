//! What a stage is trained with, where it begins, and how it ends.

use crate::batch_loader::SampleSchedule;
use crate::checkpoint::Committed;
use crate::data::Data;
use crate::error::WorkerError;
use crate::replica_state::ReplicaState;
use crate::run_files::RunFiles;
use crate::save_schedule::SaveSchedule;
use crate::session::Session;
use crate::tensors::StateDict;
use std::sync::Arc;
use thanos_c10d::ProcessGroup;
use thanos_configs::{ChecksConfig, TrainConfig, ValidationMeasure};

/// A stage's place in the run, and its numbers.
pub(crate) struct StageSpec<'a> {
    pub(crate) name: &'a str,
    /// Distinguishes this stage's dropout masks from those of other stages.
    pub(crate) key: u64,
    pub(crate) seed: u64,
    pub(crate) train: TrainConfig,
    /// What the stage's validation accuracy is of.
    pub(crate) measure: ValidationMeasure,
    /// Describes the network in files of weights.
    pub(crate) record: Arc<str>,
    pub(crate) schedule: SampleSchedule,
    pub(crate) saves: SaveSchedule<'a>,
    pub(crate) checks: &'a ChecksConfig,
}

/// What a stage trains with: the images, and the others of its generation.
pub(crate) struct StageContext<'a> {
    pub(crate) data: &'a Data,
    pub(crate) group: &'a ProcessGroup,
    pub(crate) session: &'a Session,
    pub(crate) generation: u64,
    pub(crate) files: &'a Arc<dyn RunFiles>,
}

/// How a stage ended.
pub(crate) enum StageOutcome {
    /// With the weights of the best validation epoch.
    Complete(StateDict),
    /// All ranks stopped after this many updates; a checkpoint holds them.
    Stopped { step: u64 },
    /// All ranks leave their generation after the same step, for one with more workers; this is
    /// what the rank holds.
    Regroup(Box<ReplicaState>),
}

/// What a stage begins from.
pub(crate) enum ResumeFrom<'a> {
    Start,
    Checkpoint(&'a Committed),
    /// Everyone takes over what rank `source` holds; `own` is this rank's, if it has any.
    ReplicaState {
        own: Option<&'a ReplicaState>,
        source: usize,
    },
}

/// Why a stage ended before its end; `memory` is what the rank holds, once it has begun.
pub(crate) struct Interrupted {
    pub(crate) error: WorkerError,
    pub(crate) memory: Option<Box<ReplicaState>>,
}
