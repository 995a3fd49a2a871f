//! What Prometheus may know of a run: every metric with its help, and how what is done moves it.
//! Names are `thanos_trainer_*` in base units (CNCF Thanos has `thanos_*`); labels are stages, loss
//! terms, phases, outcomes and reasons, which a plan or a list bounds. Every series has the label
//! `run` besides, which the recorder adds.

use crate::run::{Effect, ExitCause, Notice};
use crate::server::REFUSED_ENROLMENTS;
use metrics::{
    Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use thanos_proto::{StageResult, StepDone};

/// Gauges, their units and help.
pub const GAUGES: [(&str, Unit, &str); 20] = [
    (
        "thanos_trainer_build_info",
        Unit::Count,
        "1; its labels are the version of the coordinator and its platform",
    ),
    (
        "thanos_trainer_run_info",
        Unit::Count,
        "1; its labels are the run's id and the name of its experiment",
    ),
    (
        "thanos_trainer_start_timestamp_seconds",
        Unit::Seconds,
        "When the coordinator began to serve, since 1970",
    ),
    (
        "thanos_trainer_end_timestamp_seconds",
        Unit::Seconds,
        "When the run ended, since 1970; 0 until then",
    ),
    (
        "thanos_trainer_ended",
        Unit::Count,
        "1 for the outcome of a run that has ended: done, stopped, failed; else 0",
    ),
    (
        "thanos_trainer_linger_seconds",
        Unit::Seconds,
        "How long the run waits at its end for a last scrape (--linger)",
    ),
    (
        "thanos_trainer_progress_timestamp_seconds",
        Unit::Seconds,
        "When rank 0 last made progress of any kind, evaluation included, since 1970",
    ),
    ("thanos_trainer_storage_blocked", Unit::Count, "1 while the run directory cannot be written"),
    (
        "thanos_trainer_loss",
        Unit::Count,
        "Loss of the last committed step by term; `total` is their weighted sum",
    ),
    ("thanos_trainer_learning_rate", Unit::Count, "Learning rate of the last committed step"),
    ("thanos_trainer_step", Unit::Count, "Committed steps of the stage"),
    ("thanos_trainer_stage_steps", Unit::Count, "Steps that the stage will have"),
    ("thanos_trainer_epoch", Unit::Count, "Epoch of the last committed step"),
    (
        "thanos_trainer_validation_accuracy_ratio",
        Unit::Count,
        "Accuracy on the validation images, 0 to 1",
    ),
    (
        "thanos_trainer_test_accuracy_ratio",
        Unit::Count,
        "Accuracy of a complete stage on the test images, 0 to 1, by classes and classifier",
    ),
    (
        "thanos_trainer_collapse_cosine",
        Unit::Count,
        "Mean cosine similarity of a complete stage's test embeddings; 1 = fully collapsed",
    ),
    (
        "thanos_trainer_generation",
        Unit::Count,
        "The newest generation: it grows by one with each change of the workers",
    ),
    ("thanos_trainer_workers", Unit::Count, "Ranks of the newest generation"),
    (
        "thanos_trainer_checkpoint_timestamp_seconds",
        Unit::Seconds,
        "When the last checkpoint was committed, since 1970",
    ),
    (
        "thanos_trainer_step_timestamp_seconds",
        Unit::Seconds,
        "When the last step was committed, since 1970",
    ),
];

/// Of the last committed checkpoint.
const CHECKPOINT_BYTES: &str = "thanos_trainer_checkpoint_bytes";
const CHECKPOINTS: &str = "thanos_trainer_checkpoints_total";
const RESTARTS: &str = "thanos_trainer_restarts_total";

/// Counters, which begin again with each coordinator.
pub const COUNTERS: [(&str, Unit, &str); 11] = [
    ("thanos_trainer_steps_total", Unit::Count, "Committed steps"),
    (
        "thanos_trainer_redone_steps_total",
        Unit::Count,
        "Steps recomputed after workers or state were lost",
    ),
    ("thanos_trainer_images_total", Unit::Count, "Images of committed steps"),
    (
        "thanos_trainer_gathered_bytes_total",
        Unit::Bytes,
        "Candidates that rank 0 received, and gradients that it sent",
    ),
    (
        "thanos_trainer_skipped_steps_total",
        Unit::Count,
        "Updates skipped because a loss or gradient was non-finite",
    ),
    (
        "thanos_trainer_repairs_total",
        Unit::Count,
        "Replica divergences repaired with the state of the majority",
    ),
    ("thanos_trainer_lost_workers_total", Unit::Count, "Workers lost"),
    (RESTARTS, Unit::Count, "Workers restarted, by reason: killed, exited, hung, other"),
    (
        "thanos_trainer_stragglers_total",
        Unit::Count,
        "Times that a worker was reported as a straggler",
    ),
    (REFUSED_ENROLMENTS, Unit::Count, "Attempts to join that were refused"),
    (CHECKPOINTS, Unit::Count, "Checkpoint saves by outcome: committed, failed"),
];

/// Rank 0's time of a step, from its batch to its commit.
const STEP_SECONDS: &str = "thanos_trainer_step_seconds";
/// Rank 0's time by phase, one observation per step.
pub const PHASE_SECONDS: &str = "thanos_trainer_phase_seconds";
const COMMIT_SECONDS: &str = "thanos_trainer_checkpoint_commit_seconds";
const RECOVERY_SECONDS: &str = "thanos_trainer_recovery_seconds";

/// Histograms of durations.
pub const HISTOGRAMS: [(&str, &str); 4] = [
    (STEP_SECONDS, "Time of rank 0 for a step: the sum of its phases"),
    (PHASE_SECONDS, "Time of rank 0 in a phase of a step"),
    (
        COMMIT_SECONDS,
        "Duration of the commit of a checkpoint: from written files to a checkpoint that can be \
        resumed",
    ),
    (RECOVERY_SECONDS, "From the loss of a worker to the next generation"),
];

/// Gives every metric its help, and every counter and histogram with known labels the value 0: an
/// increase is seen only from a value that was scraped before it.
pub(crate) fn describe() {
    for (name, unit, help) in GAUGES {
        describe_gauge!(name, unit, help);
    }
    describe_gauge!(CHECKPOINT_BYTES, Unit::Bytes, "Size of the last committed checkpoint");
    for (name, unit, help) in COUNTERS {
        describe_counter!(name, unit, help);
        if ![CHECKPOINTS, RESTARTS].contains(&name) {
            counter!(name).absolute(0);
        }
    }
    for outcome in ["committed", "failed"] {
        counter!(CHECKPOINTS, "outcome" => outcome).absolute(0);
    }
    for reason in REASONS {
        counter!(RESTARTS, "reason" => reason).absolute(0);
    }
    for (name, help) in HISTOGRAMS {
        describe_histogram!(name, Unit::Seconds, help);
    }
    _ = (histogram!(STEP_SECONDS), histogram!(COMMIT_SECONDS), histogram!(RECOVERY_SECONDS));
}

/// The run is served from now on.
pub(crate) fn begin(run_id: &str, preset: &str, linger: Duration) {
    let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
    let version = env!("CARGO_PKG_VERSION");
    gauge!("thanos_trainer_build_info", "version" => version, "os" => os, "arch" => arch).set(1.0);
    gauge!("thanos_trainer_run_info", "run_id" => run_id.to_owned(), "preset" => preset.to_owned())
        .set(1.0);
    gauge!("thanos_trainer_start_timestamp_seconds").set(now());
    gauge!("thanos_trainer_end_timestamp_seconds").set(0.0);
    gauge!("thanos_trainer_linger_seconds").set(linger.as_secs_f64());
    gauge!("thanos_trainer_progress_timestamp_seconds").set(now());
    gauge!("thanos_trainer_storage_blocked").set(0.0);
    for outcome in ["done", "stopped", "failed"] {
        gauge!("thanos_trainer_ended", "outcome" => outcome).set(0.0);
    }
}

/// The run is over.
pub(crate) fn ended(outcome: &'static str) {
    gauge!("thanos_trainer_ended", "outcome" => outcome).set(1.0);
    gauge!("thanos_trainer_end_timestamp_seconds").set(now());
}

/// Rank 0 made progress of some kind.
pub(crate) fn progressed() {
    gauge!("thanos_trainer_progress_timestamp_seconds").set(now());
}

/// A step was made that had been made before.
pub(crate) fn redone() {
    counter!("thanos_trainer_redone_steps_total").increment(1);
}

/// Something is being done.
pub(crate) fn on_effect(effect: &Effect) {
    match effect {
        Effect::Record(step) => recorded(step),
        Effect::Notify(notice) => notified(notice),
        _ => {}
    }
}

fn recorded(step: &StepDone) {
    let stage = || step.stage.clone();
    gauge!("thanos_trainer_loss", "stage" => stage(), "term" => "total").set(step.loss);
    for (term, loss) in &step.losses {
        gauge!("thanos_trainer_loss", "stage" => stage(), "term" => term.clone()).set(*loss);
    }
    gauge!("thanos_trainer_learning_rate", "stage" => stage()).set(step.lr);
    gauge!("thanos_trainer_step", "stage" => stage()).set((step.step + 1) as f64);
    gauge!("thanos_trainer_stage_steps", "stage" => stage()).set(step.total_steps as f64);
    gauge!("thanos_trainer_epoch", "stage" => stage()).set(step.epoch as f64);
    gauge!("thanos_trainer_step_timestamp_seconds").set(now());
    counter!("thanos_trainer_steps_total").increment(1);
    counter!("thanos_trainer_images_total").increment(step.images);
    counter!("thanos_trainer_gathered_bytes_total").increment(step.gathered_bytes);
    histogram!(STEP_SECONDS).record(step.seconds());
    for (phase, seconds) in &step.phase_seconds {
        // A label is one of a few, whatever a worker sends.
        histogram!(PHASE_SECONDS, "phase" => phase.known_label().unwrap_or("other"))
            .record(*seconds);
    }
}

fn notified(notice: &Notice) {
    let count = |name: &'static str| counter!(name).increment(1);
    match notice {
        Notice::Began { generation, workers, .. } => {
            gauge!("thanos_trainer_generation").set(*generation as f64);
            gauge!("thanos_trainer_workers").set(workers.len() as f64);
        }
        Notice::Evaluated(evaluated) => {
            let stage = evaluated.stage.clone();
            gauge!("thanos_trainer_validation_accuracy_ratio", "stage" => stage)
                .set(evaluated.validation_accuracy);
        }
        Notice::Saved { .. } => {
            gauge!("thanos_trainer_checkpoint_timestamp_seconds").set(now());
            counter!(CHECKPOINTS, "outcome" => "committed").increment(1);
        }
        Notice::NotSaved { .. } => counter!(CHECKPOINTS, "outcome" => "failed").increment(1),
        Notice::StageComplete(result) => complete(result),
        Notice::Skipped { .. } => count("thanos_trainer_skipped_steps_total"),
        Notice::Repaired { .. } => count("thanos_trainer_repairs_total"),
        Notice::Straggler { .. } => count("thanos_trainer_stragglers_total"),
        Notice::Lost { .. } => count("thanos_trainer_lost_workers_total"),
        Notice::Restarting { cause, .. } => {
            counter!(RESTARTS, "reason" => reason(*cause)).increment(1);
        }
        Notice::Recovered { seconds, .. } => histogram!(RECOVERY_SECONDS).record(*seconds),
        Notice::StorageBlocked { .. } => gauge!("thanos_trainer_storage_blocked").set(1.0),
        Notice::StorageRecovered { .. } => gauge!("thanos_trainer_storage_blocked").set(0.0),
        _ => {}
    }
}

/// A checkpoint was committed, of this many bytes.
pub(crate) fn committed(time: Duration, bytes: u64) {
    histogram!(COMMIT_SECONDS).record(time.as_secs_f64());
    gauge!(CHECKPOINT_BYTES).set(bytes as f64);
}

/// The labels of [`reason`].
const REASONS: [&str; 4] = ["killed", "exited", "hung", "other"];

/// Why a worker was restarted, as a label.
fn reason(cause: ExitCause) -> &'static str {
    match cause {
        ExitCause::Signalled(_) => "killed",
        ExitCause::Exited(_) => "exited",
        ExitCause::Hung => "hung",
        ExitCause::NotStarted | ExitCause::Vanished => "other",
    }
}

/// A stage is complete, now or since before this coordinator started.
pub(crate) fn complete(result: &StageResult) {
    let accuracies = [
        ("coarse", "trained", Some(result.coarse_test_accuracy)),
        ("fine", "trained", result.fine_test_accuracy),
        ("fine", "knn", Some(result.knn_fine_accuracy)),
    ];
    for (classes, classifier, accuracy) in accuracies {
        let (Some(accuracy), stage) = (accuracy, result.stage.clone()) else { continue };
        let labels =
            [("stage", stage), ("classes", classes.into()), ("classifier", classifier.into())];
        gauge!("thanos_trainer_test_accuracy_ratio", &labels).set(accuracy);
    }
    let cosines = [
        ("coarse", result.cosine_within_coarse),
        ("fine", result.cosine_within_fine),
        ("views", Some(result.cosine_between_views)),
    ];
    for (within, cosine) in cosines {
        let Some(cosine) = cosine else { continue };
        let stage = result.stage.clone();
        gauge!("thanos_trainer_collapse_cosine", "stage" => stage, "within" => within).set(cosine);
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restarts_are_counted_by_what_ended_the_process() {
        let cases = [
            (ExitCause::Signalled(9), "killed"),
            (ExitCause::Exited(70), "exited"),
            (ExitCause::Hung, "hung"),
            (ExitCause::NotStarted, "other"),
            (ExitCause::Vanished, "other"),
        ];
        for (cause, label) in cases {
            assert_eq!(reason(cause), label);
            assert!(REASONS.contains(&label), "{label} has no first value");
        }
    }
}
