//! What users are notified of, as lines of `events.jsonl`: kind and fields. Kinds and keys are a
//! format.

use crate::commands::bench;
use crate::run::{Notice, RecoveredFrom, Verdict};
use crate::telemetry::http::device_json;
use serde_json::{Value, json};
use thanos_proto::StageResult;

/// A notice as a line of `events.jsonl`.
pub(super) fn line(notice: &Notice) -> (&'static str, Value) {
    match notice {
        Notice::Joined { worker, host, pid, device } => (
            "joined",
            json!({"worker": worker, "host": host, "pid": pid, "device": device_json(device)}),
        ),
        Notice::Fetched { worker, split, from, bytes } => {
            ("fetched", json!({"worker": worker, "split": split, "from": from, "bytes": bytes}))
        }
        Notice::Refused { worker, reason } => {
            ("refused", json!({"worker": worker, "reason": reason}))
        }
        Notice::Began { generation, workers, devices, collectives } => {
            let collectives = collectives.label();
            let fields = json!({
                "generation": generation, "ranks": workers, "devices": devices,
                "collectives": collectives,
            });
            ("began", fields)
        }
        Notice::Evaluated(evaluated) => (
            "evaluated",
            json!({
                "stage": evaluated.stage,
                "epoch": evaluated.epoch,
                "validation_accuracy": evaluated.validation_accuracy,
                "best": evaluated.best,
                "measure": evaluated.measure,
            }),
        ),
        Notice::Saved { stage, step } => ("checkpoint", json!({"stage": stage, "step": step})),
        Notice::NotSaved { stage, step, reason } => {
            ("checkpoint_failed", json!({"stage": stage, "step": step, "reason": reason}))
        }
        Notice::StageComplete(result) => ("stage_complete", stage_result(result)),
        Notice::Benched(report) => ("benched", bench::to_json(report)),
        Notice::Stopping { reason } => ("stopping", json!({"reason": reason})),
        Notice::Terminating { worker, .. } => ("termination_notice", json!({"worker": worker})),
        Notice::SavingBeforeEnd { worker, stage, step } => {
            ("saving_before_end", json!({"worker": worker, "stage": stage, "step": step}))
        }
        Notice::StorageBlocked { problem } => ("storage_blocked", json!({"problem": problem})),
        Notice::StorageRecovered { seconds } => ("storage_recovered", json!({"seconds": seconds})),
        Notice::GraceOver => ("grace_over", json!({})),
        Notice::Skipped { stage, step, problem } => {
            ("skipped", json!({"stage": stage, "step": step, "problem": problem}))
        }
        Notice::Repaired { problem } => ("repaired", json!({"problem": problem})),
        Notice::Straggler { worker, last_position, share } => (
            "straggler",
            json!({"worker": worker, "in": last_position, "share_of_time_waited_for": share}),
        ),
        Notice::Lost { worker, reason } => ("lost", json!({"worker": worker, "reason": reason})),
        Notice::GroupFailed { worker, reason } => {
            ("group_failed", json!({"worker": worker, "reason": reason}))
        }
        Notice::Restarting { worker, how, restart, .. } => {
            ("restarting", json!({"worker": worker, "how": how, "restart": restart}))
        }
        Notice::Abandoned { worker, how } => ("abandoned", json!({"worker": worker, "how": how})),
        Notice::Recovered { generation, stage, step, seconds, from } => {
            let from = recovered_from(from);
            let fields = json!({
                "generation": generation, "stage": stage, "step": step, "seconds": seconds,
                "from": from,
            });
            ("recovered", fields)
        }
    }
}

fn recovered_from(from: &RecoveredFrom) -> Value {
    match from {
        RecoveredFrom::Memory(worker) => json!({"memory": worker}),
        RecoveredFrom::Checkpoint => json!("checkpoint"),
        RecoveredFrom::Start => json!("start"),
    }
}

/// What a complete stage has measured: accuracies as shares, and mean cosines of test embeddings.
fn stage_result(result: &StageResult) -> Value {
    json!({
        "stage": result.stage,
        "seconds": result.seconds,
        "validation_accuracy": result.validation_accuracy,
        "coarse_test_accuracy": result.coarse_test_accuracy,
        "fine_test_accuracy": result.fine_test_accuracy,
        "knn_fine_accuracy": result.knn_fine_accuracy,
        "cosine_within_coarse": result.cosine_within_coarse,
        "cosine_within_fine": result.cosine_within_fine,
        "cosine_between_views": result.cosine_between_views,
    })
}

/// How a run ended, as the fields of its last event.
pub(super) fn ending(verdict: &Verdict) -> Value {
    match verdict {
        Verdict::Done => json!({"how": "done"}),
        Verdict::Stopped { at: Some((stage, step)) } => {
            json!({"how": "stopped", "stage": stage, "step": step})
        }
        Verdict::Stopped { at: None } => json!({"how": "stopped"}),
        Verdict::Failed { message, exit_code } => {
            json!({"how": "failed", "message": message, "exit_code": exit_code})
        }
    }
}
