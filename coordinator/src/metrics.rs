//! What Prometheus may know of a run: every metric with its help, and how what is done moves it. Names are
//! `thanos_trainer_*` in base units; labels are stages, loss terms and phases, which a plan bounds.

use crate::run::{Effect, ExitCause, Notice};
use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use thanos_proto::{PHASES, StageResult, StepDone};

/// Gauges, their units and help.
pub const GAUGES: [(&str, Unit, &str); 13] = [
    ("thanos_trainer_loss", Unit::Count, "Loss of the last committed step by term; `total` is their weighted sum"),
    ("thanos_trainer_learning_rate", Unit::Count, "Learning rate of the last committed step"),
    ("thanos_trainer_step", Unit::Count, "Steps of the stage that are committed"),
    ("thanos_trainer_stage_steps", Unit::Count, "Steps that the stage will have"),
    ("thanos_trainer_epoch", Unit::Count, "Epoch of the last committed step"),
    ("thanos_trainer_validation_accuracy", Unit::Count, "Share of the validation images that are classified right"),
    ("thanos_trainer_collapse_cosine", Unit::Count, "Mean cosine of a complete stage's test embeddings; 1 is a point"),
    ("thanos_trainer_generation", Unit::Count, "The newest generation"),
    ("thanos_trainer_workers", Unit::Count, "Ranks of the newest generation"),
    ("thanos_trainer_recovery_seconds", Unit::Seconds, "From the last loss of a worker to the generation behind it"),
    (
        "thanos_trainer_checkpoint_timestamp_seconds",
        Unit::Seconds,
        "When the last checkpoint was committed, since 1970",
    ),
    ("thanos_trainer_commit_seconds", Unit::Seconds, "How long the last commit of a checkpoint took"),
    ("thanos_trainer_step_timestamp_seconds", Unit::Seconds, "When the last step was committed, since 1970"),
];

pub(crate) const REFUSED_ENROLMENTS: &str = "thanos_trainer_refused_enrolments_total";

/// Counters, which begin anew with each coordinator.
pub const COUNTERS: [(&str, Unit, &str); 10] = [
    ("thanos_trainer_steps_total", Unit::Count, "Committed steps"),
    ("thanos_trainer_images_total", Unit::Count, "Images of committed steps"),
    ("thanos_trainer_gathered_bytes_total", Unit::Bytes, "Candidates that rank 0 received, and gradients that it sent"),
    ("thanos_trainer_skipped_steps_total", Unit::Count, "Updates that were left out: something was no number"),
    ("thanos_trainer_repairs_total", Unit::Count, "Times that a rank was given the state of the others"),
    ("thanos_trainer_lost_workers_total", Unit::Count, "Workers that were lost"),
    ("thanos_trainer_restarts_total", Unit::Count, "Workers that were started again, by reason"),
    ("thanos_trainer_stragglers_total", Unit::Count, "Times that a worker was named slow"),
    (REFUSED_ENROLMENTS, Unit::Count, "Attempts to join that were refused"),
    ("thanos_trainer_checkpoints_total", Unit::Count, "Saves by outcome: committed, failed"),
];

/// Rank 0's time by phase, an observation a step.
pub const PHASE_SECONDS: &str = "thanos_trainer_phase_seconds";

/// Gives every metric its help, and those that have no label a value.
pub(crate) fn describe() {
    for (name, unit, help) in GAUGES {
        describe_gauge!(name, unit, help);
    }
    for (name, unit, help) in COUNTERS {
        describe_counter!(name, unit, help);
        if !["thanos_trainer_checkpoints_total", "thanos_trainer_restarts_total"].contains(&name) {
            counter!(name).absolute(0);
        }
    }
    describe_histogram!(PHASE_SECONDS, Unit::Seconds, "Time of rank 0 in a phase of a step");
}

/// Something is being done.
pub(crate) fn see(effect: &Effect) {
    match effect {
        Effect::Record(step) => recorded(step),
        Effect::Tell(notice) => told(notice),
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
    for (phase, seconds) in &step.phase_seconds {
        // A label is one of a few, whatever a worker says.
        let known = PHASES.iter().find(|known| *known == phase).unwrap_or(&"other");
        histogram!(PHASE_SECONDS, "phase" => *known).record(*seconds);
    }
}

fn told(notice: &Notice) {
    let count = |name: &'static str| counter!(name).increment(1);
    match notice {
        Notice::Began { generation, workers, .. } => {
            gauge!("thanos_trainer_generation").set(*generation as f64);
            gauge!("thanos_trainer_workers").set(workers.len() as f64);
        }
        Notice::Evaluated(evaluated) => {
            let stage = evaluated.stage.clone();
            gauge!("thanos_trainer_validation_accuracy", "stage" => stage).set(evaluated.validation_accuracy);
        }
        Notice::Saved { .. } => {
            gauge!("thanos_trainer_checkpoint_timestamp_seconds").set(now());
            counter!("thanos_trainer_checkpoints_total", "outcome" => "committed").increment(1);
        }
        Notice::NotSaved { .. } => counter!("thanos_trainer_checkpoints_total", "outcome" => "failed").increment(1),
        Notice::StageComplete(result) => complete(result),
        Notice::Skipped { .. } => count("thanos_trainer_skipped_steps_total"),
        Notice::Repaired { .. } => count("thanos_trainer_repairs_total"),
        Notice::Straggler { .. } => count("thanos_trainer_stragglers_total"),
        Notice::Lost { .. } => count("thanos_trainer_lost_workers_total"),
        Notice::Restarting { cause, .. } => {
            counter!("thanos_trainer_restarts_total", "reason" => reason(*cause)).increment(1);
        }
        Notice::Recovered { seconds, .. } => gauge!("thanos_trainer_recovery_seconds").set(*seconds),
        _ => {}
    }
}

/// A checkpoint was committed.
pub(crate) fn committed_in(time: Duration) {
    gauge!("thanos_trainer_commit_seconds").set(time.as_secs_f64());
}

/// Why a worker was started again, as a label.
fn reason(cause: ExitCause) -> &'static str {
    match cause {
        ExitCause::Signalled(_) => "killed",
        ExitCause::Exited(_) => "exited",
        ExitCause::Hung => "hung",
        ExitCause::NotStarted | ExitCause::Vanished => "other",
    }
}

fn complete(result: &StageResult) {
    let cosines = [
        ("coarse", result.cosine_within_coarse),
        ("fine", result.cosine_within_fine),
        ("views", Some(result.cosine_between_views)),
    ];
    for (within, cosine) in cosines {
        let Some(cosine) = cosine else { continue };
        gauge!("thanos_trainer_collapse_cosine", "stage" => result.stage.clone(), "within" => within).set(cosine);
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
        }
    }
}
