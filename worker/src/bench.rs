//! A benchmark of one stage: what the machine can do at best, then the stage's own updates, counted
//! while they warm up and timed afterwards. How an update is made is `train.rs`'s; what the numbers
//! mean together is the coordinator's.

use crate::device::cpu_name;
use crate::error::Result;
use crate::stage::Stage;
use crate::tensors::StateDict;
use crate::train::bench::{Update, updates};
use crate::train::{StageContext, StageOutcome, StageSpec};
use anyhow::Context;
use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};
use tch::{Cuda, Device, Kind, Tensor};
use thanos_c10d::{
    Counted, ProcessGroup, count, count_kernels, cuda_name, cuda_peak_bytes, reset_cuda_peak,
};
use thanos_proto::{BenchReport, BenchRequest, Collectives, RankPhase, WorkerEvent};

/// Rows and columns of the product by which the machine's ceiling is measured.
const PRODUCT_SIDE_CPU: i64 = 2048;
const PRODUCT_SIDE_CUDA: i64 = 8192;
/// A measurement of the ceiling has as many products as fit into this time, between one and the
/// maximum.
const CEILING_TIME: Duration = Duration::from_millis(100);
const MAX_PRODUCTS: f64 = 64.0;
/// Measurements of the ceiling, of which the best counts.
const CEILING_TRIES: usize = 3;

/// Measures a stage's first updates and reports them to the coordinator. Nothing is evaluated or
/// saved.
///
/// # Errors
/// What training would end with, and if the device does not give its numbers.
pub(crate) fn bench(
    stage: &mut dyn Stage,
    spec: &StageSpec<'_>,
    context: &StageContext<'_>,
    request: BenchRequest,
) -> Result<StageOutcome> {
    let data = context.data;
    let device = data.device();
    let parameters = stage.parameters().values().map(|parameter| parameter.numel() as u64).sum();
    let ceiling = Ceiling::measure(context.group, device, data.product_kind())?;
    let precision = data.precision();
    let mut measured = Measured::new(device, request);
    let total = request.warmup_steps + request.steps;
    if !updates(stage, spec, context, total, |step, update| measured.update(step, update))? {
        // Nothing is kept of a benchmark: it has stopped where it began.
        return Ok(StageOutcome::Stopped { step: 0 });
    }
    let report = BenchReport {
        rank: context.group.rank() as u32,
        device: device_name(device)?,
        precision: precision.into(),
        collectives: collectives(context.group).label().into(),
        peak_memory_bytes: peak_memory_bytes(device)?,
        flops: measured.flops,
        operators: measured.operators,
        kernels: measured.kernels,
        ceiling_flops_per_s: ceiling.flops_per_s,
        ceiling_product: format!("{side}x{side}x{side} {precision}", side = ceiling.side),
        phase_seconds: measured.mean_phases(),
        step_seconds: measured.step_seconds,
        parameters,
    };
    context.session.send(WorkerEvent::Benched(report))?;
    Ok(StageOutcome::Complete(StateDict::new()))
}

/// The largest rate at which this device multiplies matrices while the other ranks do the same on
/// theirs.
struct Ceiling {
    flops_per_s: f64,
    side: i64,
}

impl Ceiling {
    fn measure(group: &ProcessGroup, device: Device, kind: Kind) -> Result<Self> {
        let _no_graph = tch::no_grad_guard();
        let side = if device.is_cuda() { PRODUCT_SIDE_CUDA } else { PRODUCT_SIDE_CPU };
        let factor = || Tensor::rand([side, side], (Kind::Float, device)).to_kind(kind);
        let (left, right) = (factor(), factor());
        let seconds = |products: u64| -> f64 {
            synchronize(device);
            let began = Instant::now();
            (0..products).for_each(|_| _ = left.mm(&right));
            synchronize(device);
            began.elapsed().as_secs_f64()
        };
        // The first one loads kernels and makes threads; the second one says how many are worth a
        // measurement.
        seconds(1);
        group.barrier()?;
        let products = (CEILING_TIME.as_secs_f64() / seconds(1)).clamp(1.0, MAX_PRODUCTS) as u64;
        let mut best = f64::INFINITY;
        for _ in 0..CEILING_TRIES {
            group.barrier()?;
            best = best.min(seconds(products) / products as f64);
        }
        Ok(Self { flops_per_s: 2.0 * (side as f64).powi(3) / best, side })
    }
}

/// What the updates of a benchmark cost.
struct Measured {
    device: Device,
    request: BenchRequest,
    flops: u64,
    operators: u64,
    kernels: Option<u64>,
    step_seconds: Vec<f64>,
    /// Sums over the measured steps.
    phase_seconds: BTreeMap<RankPhase, f64>,
}

impl Measured {
    fn new(device: Device, request: BenchRequest) -> Self {
        let (step_seconds, phase_seconds) = (Vec::new(), BTreeMap::new());
        Self { device, request, flops: 0, operators: 0, kernels: None, step_seconds, phase_seconds }
    }

    fn update(&mut self, step: u64, update: &mut Update<'_>) -> Result<()> {
        if step >= self.request.warmup_steps {
            let began = Instant::now();
            let phases = update()?;
            self.step_seconds.push(began.elapsed().as_secs_f64());
            for (phase, seconds) in phases {
                *self.phase_seconds.entry(phase).or_default() += seconds;
            }
            return Ok(());
        }
        // One step more follows where there is one, so that no profiler's end falls into the first
        // measured step.
        let is_profiled = self.device.is_cuda() && step + 2 == self.request.warmup_steps.max(2);
        match is_profiled {
            true => match count_kernels(|| self.count(update)) {
                Ok((counted, kernels)) => {
                    counted?;
                    self.kernels = Some(kernels).filter(|kernels| *kernels > 0);
                }
                Err(error) => {
                    tracing::warn!("kernels are not counted: {error}");
                    // It fails before the update runs.
                    self.count(update)?;
                }
            },
            false => self.count(update)?,
        }
        if step + 1 == self.request.warmup_steps {
            synchronize(self.device);
            reset_peak_memory(self.device)?;
        }
        Ok(())
    }

    /// A step that replays a graph dispatches less than the one that recorded it, and computes as
    /// much.
    fn count(&mut self, update: &mut Update<'_>) -> Result<()> {
        let (updated, Counted { operators, flops }) = count(update)?;
        updated?;
        (self.operators, self.flops) = (operators, self.flops.max(flops));
        Ok(())
    }

    fn mean_phases(&self) -> BTreeMap<RankPhase, f64> {
        let steps = self.step_seconds.len().max(1) as f64;
        self.phase_seconds.iter().map(|(phase, sum)| (phase.clone(), sum / steps)).collect()
    }
}

fn collectives(group: &ProcessGroup) -> Collectives {
    if group.gpu().is_some() { Collectives::Nccl } else { Collectives::Gloo }
}

fn synchronize(device: Device) {
    if let Device::Cuda(index) = device {
        Cuda::synchronize(index as i64);
    }
}

fn device_name(device: Device) -> Result<String> {
    if let Device::Cuda(index) = device {
        return Ok(cuda_name(index)?);
    }
    Ok(cpu_name())
}

fn reset_peak_memory(device: Device) -> Result<()> {
    match device {
        Device::Cuda(index) => reset_cuda_peak(index)?,
        // Without this right the peak is that of the whole process so far, which has held no more
        // than it will.
        _ => _ = fs::write("/proc/self/clear_refs", "5"),
    }
    Ok(())
}

fn peak_memory_bytes(device: Device) -> Result<u64> {
    if let Device::Cuda(index) = device {
        synchronize(device);
        return Ok(cuda_peak_bytes(index)?);
    }
    let text = fs::read_to_string("/proc/self/status").context("/proc/self/status")?;
    let peak = text
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok());
    let kilobytes: u64 = peak.context("/proc/self/status has no VmHWM")?;
    Ok(kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(warmup_steps: u64, steps: u64) -> Measured {
        let mut measured = Measured::new(Device::Cpu, BenchRequest { warmup_steps, steps });
        let a = Tensor::ones([4, 4], (Kind::Float, Device::Cpu));
        for step in 0..warmup_steps + steps {
            let mut update = || {
                // As a recorded graph: only the first step dispatches a product.
                _ = if step == 0 { a.mm(&a) } else { a.relu() };
                Ok(BTreeMap::from([(RankPhase::Forward, step as f64)]))
            };
            measured.update(step, &mut update).expect("measured");
        }
        measured
    }

    #[test]
    fn warm_up_is_counted_and_the_rest_is_timed() {
        let two = measured(2, 3);
        assert_eq!((two.flops, two.operators, two.kernels), (2 * 4 * 4 * 4, 1, None));
        assert_eq!(two.step_seconds.len(), 3);
        assert_eq!(two.mean_phases(), BTreeMap::from([(RankPhase::Forward, 3.0)]));
    }

    #[test]
    fn memory_and_device_are_known() {
        let before = peak_memory_bytes(Device::Cpu).expect("Linux says it");
        let large = Tensor::ones([16 << 20], (Kind::Float, Device::Cpu));
        assert!(peak_memory_bytes(Device::Cpu).expect("Linux says it") >= before + (32 << 20));
        drop(large);
        assert!(!device_name(Device::Cpu).expect("a name").is_empty());
    }
}
