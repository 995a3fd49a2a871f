//! Conversions between the generated messages and the domain types. What proto3 cannot express (a
//! part that must be there) is checked here, once, so that nothing above meets a half-filled
//! message.

use crate::malformed::Malformed;
use crate::message::{
    Begin, BenchReport, BenchRequest, Best, CheckpointRef, CheckpointWritten, Command, Evaluated,
    Failed, Fetching, GroupFailure, Heartbeat, Held, PackRef, Rejoin, StageResult, StepDone,
    Welcome, WorkerEvent, WrittenFile,
};
use crate::phase::RankPhase;
use crate::{limits, v1};
use std::collections::BTreeMap;
use std::time::Duration;

fn malformed(message: &'static str, problem: impl Into<String>) -> Malformed {
    Malformed { message, problem: problem.into() }
}

fn exit_code(message: &'static str, code: u32) -> Result<u8, Malformed> {
    u8::try_from(code).map_err(|_| malformed(message, format!("{code} is not an exit code")))
}

/// A field of a message as the other side has it. Phases are labels on the wire; all others are the
/// same.
trait Field<T> {
    fn converted(self) -> T;
}

impl<T> Field<T> for T {
    fn converted(self) -> T {
        self
    }
}

impl Field<String> for RankPhase {
    fn converted(self) -> String {
        self.label().to_owned()
    }
}

impl Field<RankPhase> for String {
    fn converted(self) -> RankPhase {
        RankPhase::from(self.as_str())
    }
}

impl Field<BTreeMap<String, f64>> for BTreeMap<RankPhase, f64> {
    fn converted(self) -> BTreeMap<String, f64> {
        self.into_iter().map(|(phase, seconds)| (phase.converted(), seconds)).collect()
    }
}

impl Field<BTreeMap<RankPhase, f64>> for BTreeMap<String, f64> {
    fn converted(self) -> BTreeMap<RankPhase, f64> {
        self.into_iter().map(|(label, seconds)| (label.converted(), seconds)).collect()
    }
}

/// Both ways between messages whose fields have the same names.
macro_rules! same_fields {
    ($($name:ident { $($field:ident),* })*) => { $(
        impl From<$name> for v1::$name {
            fn from(from: $name) -> Self {
                Self { $($field: from.$field.converted()),* }
            }
        }

        impl From<v1::$name> for $name {
            fn from(from: v1::$name) -> Self {
                Self { $($field: from.$field.converted()),* }
            }
        }
    )* };
}

same_fields! {
    Fetching { split, from, done, total }
    Held { stage, step, post_step_done }
    GroupFailure { stage, step, message, peer_lost }
    Heartbeat { generation, stage, step, phase, collectives, waited_ms, progress, in_collective }
    Evaluated { stage, epoch, validation_accuracy, best, measure }
    StepDone {
        stage, epoch, step, generation, world_size, loss, losses, lr, images, samples_sha256,
        total_steps, skipped,
        phase_seconds, gathered_bytes
    }
    WrittenFile { name, bytes, sha256 }
    Best { epoch, validation_accuracy }
    BenchRequest { warmup_steps, steps }
    BenchReport {
        rank, device, precision, collectives, step_seconds, phase_seconds, flops, operators,
        kernels, ceiling_flops_per_s,
        ceiling_product, peak_memory_bytes, parameters
    }
    CheckpointRef { stage, folder, manifest_sha256, step }
    StageResult {
        stage, seconds, validation_accuracy, coarse_test_accuracy, fine_test_accuracy,
        knn_fine_accuracy,
        cosine_within_coarse, cosine_within_fine, cosine_between_views, data_wait_seconds
    }
}

impl From<Rejoin> for v1::Rejoin {
    fn from(from: Rejoin) -> Self {
        let recent = from.recent.into_iter().map(v1::StepDone::from).collect();
        let failure = from.failure.map(v1::GroupFailure::from);
        Self { generation: from.generation, held: from.held.map(v1::Held::from), recent, failure }
    }
}

impl From<v1::Rejoin> for Rejoin {
    fn from(from: v1::Rejoin) -> Self {
        let recent = from.recent.into_iter().map(StepDone::from).collect();
        let failure = from.failure.map(GroupFailure::from);
        Self { generation: from.generation, held: from.held.map(Held::from), recent, failure }
    }
}

impl From<CheckpointWritten> for v1::CheckpointWritten {
    fn from(from: CheckpointWritten) -> Self {
        Self {
            stage: from.stage,
            epoch: from.epoch,
            step: from.step,
            generation: from.generation,
            world_size: from.world_size,
            folder: from.folder,
            files: from.files.into_iter().map(v1::WrittenFile::from).collect(),
            result: from.result.map(v1::StageResult::from),
            seconds: from.seconds,
            best: from.best.map(v1::Best::from),
            post_step_done: from.post_step_done,
        }
    }
}

impl From<v1::CheckpointWritten> for CheckpointWritten {
    fn from(from: v1::CheckpointWritten) -> Self {
        Self {
            stage: from.stage,
            epoch: from.epoch,
            step: from.step,
            generation: from.generation,
            world_size: from.world_size,
            folder: from.folder,
            files: from.files.into_iter().map(WrittenFile::from).collect(),
            result: from.result.map(StageResult::from),
            seconds: from.seconds,
            best: from.best.map(Best::from),
            post_step_done: from.post_step_done,
        }
    }
}

impl From<WorkerEvent> for v1::WorkerEvent {
    fn from(from: WorkerEvent) -> Self {
        use v1::worker_event::Event;
        let event = match from {
            WorkerEvent::Hello(hello) => Event::Hello(hello.into()),
            WorkerEvent::Ready { config_digest } => Event::Ready(v1::Ready { config_digest }),
            WorkerEvent::NotSaved { stage, step, reason } => {
                Event::NotSaved(v1::NotSaved { stage, step, reason })
            }
            WorkerEvent::Rejoin(rejoin) => Event::Rejoin(rejoin.into()),
            WorkerEvent::Fetching(fetching) => Event::Fetching(fetching.into()),
            WorkerEvent::Heartbeat(heartbeat) => Event::Heartbeat(heartbeat.into()),
            WorkerEvent::Step(step) => Event::Step(step.into()),
            WorkerEvent::Evaluated(evaluated) => Event::Evaluated(evaluated.into()),
            WorkerEvent::Checkpoint(written) => Event::Checkpoint(written.into()),
            WorkerEvent::Repaired { problem } => Event::Repaired(v1::Repaired { problem }),
            WorkerEvent::Shows { address } => Event::Shows(v1::Shows { address }),
            WorkerEvent::StopRequested { reason } => {
                Event::StopRequested(v1::StopRequested { reason })
            }
            WorkerEvent::TerminationNotice => Event::TerminationNotice(v1::TerminationNotice {}),
            WorkerEvent::StageFinished { stage } => {
                Event::StageFinished(v1::StageFinished { stage })
            }
            WorkerEvent::Stopped { stage, step } => Event::Stopped(v1::Stopped { stage, step }),
            WorkerEvent::Failed(Failed { phase, message, exit_code }) => {
                Event::Failed(v1::Failed { phase, message, exit_code: exit_code.into() })
            }
            WorkerEvent::Finished => Event::Finished(v1::Finished {}),
            WorkerEvent::Benched(report) => Event::Benched(report.into()),
        };
        Self { event: Some(event) }
    }
}

impl TryFrom<v1::WorkerEvent> for WorkerEvent {
    type Error = Malformed;

    fn try_from(from: v1::WorkerEvent) -> Result<Self, Malformed> {
        use v1::worker_event::Event;
        let mut event = from.event.ok_or_else(|| malformed("WorkerEvent", "it has no event"))?;
        limits::check(&mut event)?;
        Ok(match event {
            Event::Hello(hello) => WorkerEvent::Hello(hello.try_into()?),
            Event::Ready(v1::Ready { config_digest }) => WorkerEvent::Ready { config_digest },
            Event::NotSaved(v1::NotSaved { stage, step, reason }) => {
                WorkerEvent::NotSaved { stage, step, reason }
            }
            Event::Rejoin(rejoin) => WorkerEvent::Rejoin(rejoin.into()),
            Event::Fetching(fetching) => WorkerEvent::Fetching(fetching.into()),
            Event::Heartbeat(heartbeat) => WorkerEvent::Heartbeat(heartbeat.into()),
            Event::Step(step) => WorkerEvent::Step(step.into()),
            Event::Evaluated(evaluated) => WorkerEvent::Evaluated(evaluated.into()),
            Event::Checkpoint(written) => WorkerEvent::Checkpoint(written.into()),
            Event::Repaired(v1::Repaired { problem }) => WorkerEvent::Repaired { problem },
            Event::Shows(v1::Shows { address }) => WorkerEvent::Shows { address },
            Event::StopRequested(v1::StopRequested { reason }) => {
                WorkerEvent::StopRequested { reason }
            }
            Event::TerminationNotice(v1::TerminationNotice {}) => WorkerEvent::TerminationNotice,
            Event::StageFinished(v1::StageFinished { stage }) => {
                WorkerEvent::StageFinished { stage }
            }
            Event::Stopped(v1::Stopped { stage, step }) => WorkerEvent::Stopped { stage, step },
            Event::Failed(v1::Failed { phase, message, exit_code: code }) => {
                WorkerEvent::Failed(Failed {
                    phase,
                    message,
                    exit_code: exit_code("Failed", code)?,
                })
            }
            Event::Finished(v1::Finished {}) => WorkerEvent::Finished,
            Event::Benched(report) => WorkerEvent::Benched(report.into()),
        })
    }
}

impl From<Welcome> for v1::Welcome {
    fn from(from: Welcome) -> Self {
        let pack = |PackRef { split, path, fingerprint }| v1::Pack { split, path, fingerprint };
        Self {
            run_id: from.run_id,
            run_dir: from.run_dir,
            config: from.config,
            config_digest: from.config_digest,
            packs: from.packs.into_iter().map(pack).collect(),
            lease_ms: u64::try_from(from.lease.as_millis()).unwrap_or(u64::MAX),
            scrape_token_sha256: from.scrape_token_sha256,
            grace_ms: from.grace.map(|grace| u64::try_from(grace.as_millis()).unwrap_or(u64::MAX)),
            bench: from.bench.map(v1::BenchRequest::from),
        }
    }
}

impl From<v1::Welcome> for Welcome {
    fn from(from: v1::Welcome) -> Self {
        let pack = |v1::Pack { split, path, fingerprint }| PackRef { split, path, fingerprint };
        Self {
            run_id: from.run_id,
            run_dir: from.run_dir,
            config: from.config,
            config_digest: from.config_digest,
            packs: from.packs.into_iter().map(pack).collect(),
            lease: Duration::from_millis(from.lease_ms),
            scrape_token_sha256: from.scrape_token_sha256,
            grace: from.grace_ms.map(Duration::from_millis),
            bench: from.bench.map(BenchRequest::from),
        }
    }
}

impl From<Begin> for v1::Begin {
    fn from(from: Begin) -> Self {
        Self {
            generation: from.generation,
            rank: from.rank,
            world_size: from.world_size,
            stage: from.stage,
            resume: from.resume.map(v1::CheckpointRef::from),
            complete: from.complete.into_iter().map(v1::CheckpointRef::from).collect(),
            source: from.source,
            collectives: v1::Collectives::from(from.collectives).into(),
        }
    }
}

impl TryFrom<v1::Begin> for Begin {
    type Error = Malformed;

    fn try_from(from: v1::Begin) -> Result<Self, Malformed> {
        if from.rank >= from.world_size {
            return Err(malformed(
                "Begin",
                format!("rank {} of {} ranks", from.rank, from.world_size),
            ));
        }
        if let Some(source) = from.source.filter(|source| *source >= from.world_size) {
            return Err(malformed(
                "Begin",
                format!("source {source} of {} ranks", from.world_size),
            ));
        }
        let collectives = from.collectives().try_into()?;
        Ok(Self {
            generation: from.generation,
            rank: from.rank,
            world_size: from.world_size,
            stage: from.stage,
            resume: from.resume.map(CheckpointRef::from),
            complete: from.complete.into_iter().map(CheckpointRef::from).collect(),
            source: from.source,
            collectives,
        })
    }
}

impl From<Result<CheckpointRef, String>> for v1::CheckpointCommitted {
    fn from(from: Result<CheckpointRef, String>) -> Self {
        match from {
            Ok(checkpoint) => Self { checkpoint: Some(checkpoint.into()), error: String::new() },
            Err(error) => Self { checkpoint: None, error },
        }
    }
}

impl From<v1::CheckpointCommitted> for Result<CheckpointRef, String> {
    fn from(from: v1::CheckpointCommitted) -> Self {
        from.checkpoint.map(CheckpointRef::from).ok_or(from.error)
    }
}

impl From<Command> for v1::Command {
    fn from(from: Command) -> Self {
        use v1::command::Command as Wire;
        let command = match from {
            Command::Welcome(welcome) => Wire::Welcome(welcome.into()),
            Command::Begin(begin) => Wire::Begin(begin.into()),
            Command::Committed(outcome) => Wire::Committed(outcome.into()),
            Command::Stop { reason } => Wire::Stop(v1::Stop { reason }),
            Command::Regroup { generation } => Wire::Regroup(v1::Regroup { generation }),
            Command::Save => Wire::Save(v1::Save {}),
            Command::Abandon { generation, reason } => {
                Wire::Abandon(v1::Abandon { generation, reason })
            }
            Command::Recorded { steps } => Wire::Recorded(v1::Recorded { steps }),
            Command::Refused { reason, exit_code } => {
                Wire::Refused(v1::Refused { reason, exit_code: exit_code.into() })
            }
            Command::Leave { reason } => Wire::Leave(v1::Leave { reason }),
        };
        Self { command: Some(command) }
    }
}

impl TryFrom<v1::Command> for Command {
    type Error = Malformed;

    fn try_from(from: v1::Command) -> Result<Self, Malformed> {
        use v1::command::Command as Wire;
        Ok(match from.command.ok_or_else(|| malformed("Command", "it has no command"))? {
            Wire::Welcome(welcome) => Command::Welcome(welcome.into()),
            Wire::Begin(begin) => Command::Begin(begin.try_into()?),
            Wire::Committed(outcome) => Command::Committed(outcome.into()),
            Wire::Stop(v1::Stop { reason }) => Command::Stop { reason },
            Wire::Regroup(v1::Regroup { generation }) => Command::Regroup { generation },
            Wire::Save(v1::Save {}) => Command::Save,
            Wire::Abandon(v1::Abandon { generation, reason }) => {
                Command::Abandon { generation, reason }
            }
            Wire::Recorded(v1::Recorded { steps }) => Command::Recorded { steps },
            Wire::Refused(v1::Refused { reason, exit_code: code }) => {
                Command::Refused { reason, exit_code: exit_code("Refused", code)? }
            }
            Wire::Leave(v1::Leave { reason }) => Command::Leave { reason },
        })
    }
}

mod device;
#[cfg(test)]
mod tests;
