//! What Prometheus may know of one rank. The run's own metrics are the coordinator's.

use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use thanos_c10d::collectives;
use thanos_proto::StepDone;

/// Gauges of a worker.
pub const WORKER_GAUGES: [(&str, Unit, &str); 4] = [
    ("thanos_trainer_worker_rank", Unit::Count, "This worker's rank in its generation"),
    ("thanos_trainer_worker_generation", Unit::Count, "The generation that it is in"),
    ("thanos_trainer_worker_step", Unit::Count, "Updates of the stage that it has made"),
    ("thanos_trainer_worker_step_timestamp_seconds", Unit::Seconds, "When it made the last one, since 1970"),
];

/// Counters of a worker, which begin anew with each process.
pub const WORKER_COUNTERS: [(&str, Unit, &str); 3] = [
    ("thanos_trainer_worker_steps_total", Unit::Count, "Updates that it has made"),
    ("thanos_trainer_worker_gathered_bytes_total", Unit::Bytes, "Candidates and their gradients, received and sent"),
    ("thanos_trainer_worker_collectives_total", Unit::Count, "Collectives that it has entered"),
];

/// This rank's time by phase, an observation a step.
pub const WORKER_PHASE_SECONDS: &str = "thanos_trainer_worker_phase_seconds";

/// Gives every metric its help.
pub(crate) fn describe() {
    for (name, unit, help) in WORKER_GAUGES {
        describe_gauge!(name, unit, help);
    }
    for (name, unit, help) in WORKER_COUNTERS {
        describe_counter!(name, unit, help);
        counter!(name).absolute(0);
    }
    describe_histogram!(WORKER_PHASE_SECONDS, Unit::Seconds, "Time of this rank in a phase of a step");
}

/// A step was made. Nothing happens where nobody shows it.
pub(crate) fn step(rank: usize, step: &StepDone) {
    gauge!("thanos_trainer_worker_rank").set(rank as f64);
    gauge!("thanos_trainer_worker_generation").set(step.generation as f64);
    gauge!("thanos_trainer_worker_step", "stage" => step.stage.clone()).set((step.step + 1) as f64);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    gauge!("thanos_trainer_worker_step_timestamp_seconds").set(now.as_secs_f64());
    counter!("thanos_trainer_worker_steps_total").increment(1);
    counter!("thanos_trainer_worker_gathered_bytes_total").increment(step.gathered_bytes);
    counter!("thanos_trainer_worker_collectives_total").absolute(collectives().entered);
    for (phase, seconds) in &step.phase_seconds {
        histogram!(WORKER_PHASE_SECONDS, "phase" => phase.clone()).record(*seconds);
    }
}
