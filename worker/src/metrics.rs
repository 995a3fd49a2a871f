//! What Prometheus may know of one rank. The run's own metrics are the coordinator's.

use anyhow::Result;
use axum::Router;
use metrics::{
    Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};
use std::path::Path;
use tch::Device;
use thanos_c10d::{collectives, cuda_peak_bytes};
use thanos_proto::StepDone;
use thanos_transport::{Recorder, metrics_page, run_name};

const GPU_MEMORY: &str = "thanos_trainer_worker_gpu_memory_peak_bytes";

/// Gauges of a worker.
pub const WORKER_GAUGES: [(&str, Unit, &str); 6] = [
    ("thanos_trainer_worker_rank", Unit::Count, "This worker's rank in its generation"),
    ("thanos_trainer_worker_generation", Unit::Count, "The generation that it is in"),
    ("thanos_trainer_worker_step", Unit::Count, "Updates of the stage that it has made"),
    (
        "thanos_trainer_worker_step_timestamp_seconds",
        Unit::Seconds,
        "When it made the last one, since 1970",
    ),
    (
        "thanos_trainer_worker_gradient_norm",
        Unit::Count,
        "L2 norm of the last step's gradient, summed over all ranks; the same on each",
    ),
    (GPU_MEMORY, Unit::Bytes, "GPU memory that this worker had reserved at most; only with a GPU"),
];

/// Counters of a worker, which start again with each process.
pub const WORKER_COUNTERS: [(&str, Unit, &str); 4] = [
    ("thanos_trainer_worker_steps_total", Unit::Count, "Updates that it has made"),
    (
        "thanos_trainer_worker_gathered_bytes_total",
        Unit::Bytes,
        "Candidates and their gradients, received and sent",
    ),
    ("thanos_trainer_worker_collectives_total", Unit::Count, "Collectives that it has entered"),
    (
        "thanos_trainer_worker_flops_total",
        Unit::Count,
        "Floating-point operations of its matrix products, convolutions and attention in training \
        steps, as counted in the first step of a generation's stage",
    ),
];

/// This rank's time by phase, an observation a step.
pub const WORKER_PHASE_SECONDS: &str = "thanos_trainer_worker_phase_seconds";

/// Begins to record, and returns the page `/metrics`. Once in a process, within a runtime.
///
/// # Errors
/// If something records already.
pub(crate) fn page(run_dir: &str, worker: &str, device: Device) -> Result<Router> {
    let recorder =
        Recorder::install(&[("run", &run_name(Path::new(run_dir))), ("worker", worker)])?;
    describe();
    Ok(metrics_page(move || {
        // Read with the page: asking the allocator at every step would be for nothing.
        if let Device::Cuda(gpu) = device
            && let Ok(bytes) = cuda_peak_bytes(gpu)
        {
            gauge!(GPU_MEMORY).set(bytes as f64);
        }
        recorder.text()
    }))
}

/// The gradient of the step in flight.
pub(crate) fn gradient(norm: f64) {
    gauge!("thanos_trainer_worker_gradient_norm").set(norm);
}

/// Gives every metric its help.
fn describe() {
    for (name, unit, help) in WORKER_GAUGES {
        describe_gauge!(name, unit, help);
    }
    for (name, unit, help) in WORKER_COUNTERS {
        describe_counter!(name, unit, help);
        counter!(name).absolute(0);
    }
    describe_histogram!(
        WORKER_PHASE_SECONDS,
        Unit::Seconds,
        "Time of this rank in a phase of a step"
    );
}

/// A step was made, for which this rank has computed so much. Nothing happens without a status
/// page.
pub(crate) fn step(rank: usize, step: &StepDone, flops: f64) {
    gauge!("thanos_trainer_worker_rank").set(rank as f64);
    gauge!("thanos_trainer_worker_generation").set(step.generation as f64);
    gauge!("thanos_trainer_worker_step", "stage" => step.stage.clone()).set((step.step + 1) as f64);
    let now =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    gauge!("thanos_trainer_worker_step_timestamp_seconds").set(now.as_secs_f64());
    counter!("thanos_trainer_worker_steps_total").increment(1);
    counter!("thanos_trainer_worker_gathered_bytes_total").increment(step.gathered_bytes);
    counter!("thanos_trainer_worker_collectives_total").absolute(collectives().entered);
    counter!("thanos_trainer_worker_flops_total").increment(flops as u64);
    for (phase, seconds) in &step.phase_seconds {
        histogram!(WORKER_PHASE_SECONDS, "phase" => phase.label().to_owned()).record(*seconds);
    }
}
