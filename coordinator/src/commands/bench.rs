//! A benchmark: the first backbone of a configuration on synthetic images, by a run in a temporary
//! folder, which is removed. Its workers report what they measured as events of that run; here they
//! become one line of JSON.

use crate::exit::{EXIT_CONFIG, EXIT_IO, EXIT_UNREACHABLE, EXIT_USAGE, Fatal};
use crate::run_dir::ledger::{events, read_steps};
use crate::signals::remove_at_exit;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tempfile::TempDir;
use thanos_configs::{DataKind, LogConfig, Plan, RunConfig, Validation};
use thanos_data::{Packs, pack_synthetic};
use thanos_proto::{BenchReport, BenchRequest, RankPhase};

/// Synthetic images for training, at least, in whole batches.
const MIN_IMAGES: u64 = 4096;
/// Bytes of synthetic images, at most: they are in memory.
const MAX_BYTES: u64 = 8 << 30;
/// Where temporary files are in memory.
const MEMORY: &str = "/dev/shm";

/// What is measured.
#[derive(Clone, Debug)]
pub(crate) struct Bench {
    pub(crate) plan: Plan,
    pub(crate) request: BenchRequest,
    /// As they were typed.
    pub(crate) overrides: Vec<String>,
    pub(crate) workers: usize,
    /// Of each worker.
    pub(crate) threads: usize,
    /// Synthetic images for training.
    pub(crate) images: u64,
}

/// The temporary folder of a benchmark, which is removed when this is dropped, and at a signal that
/// ends this process.
#[derive(Debug)]
pub(crate) struct Folder(TempDir);

impl Folder {
    /// In TMPDIR where that is set, else in memory where the system has such a folder.
    ///
    /// # Errors
    /// 74 if it cannot be made.
    pub(crate) fn make() -> Result<Self, Fatal> {
        let in_memory = || Some(PathBuf::from(MEMORY)).filter(|memory| memory.is_dir());
        let parent = match std::env::var_os("TMPDIR") {
            Some(_) => std::env::temp_dir(),
            None => in_memory().unwrap_or_else(std::env::temp_dir),
        };
        let made = tempfile::Builder::new().prefix("thanos-bench-").tempdir_in(&parent);
        let made = made.map_err(|error| {
            Fatal::new(
                EXIT_IO,
                format!("cannot make a temporary folder in {}: {error}", parent.display()),
            )
        })?;
        remove_at_exit(made.path());
        Ok(Self(made))
    }

    pub(crate) fn run_dir(&self) -> PathBuf {
        self.0.path().join("run")
    }

    pub(crate) fn packs_dir(&self) -> PathBuf {
        self.0.path().join("packs")
    }
}

impl Bench {
    /// A benchmark of the first backbone of `config` that is trained; `images` for training, or as
    /// many as there should be.
    ///
    /// # Errors
    /// 78 if there is no such backbone, 64 if there are fewer images than a batch or more than fit.
    pub(crate) fn new(
        config: RunConfig,
        request: BenchRequest,
        (workers, threads): (usize, usize),
        images: Option<u64>,
    ) -> Result<Self, Fatal> {
        let batch = config.train.batch_size;
        let images = images.unwrap_or(MIN_IMAGES.div_ceil(batch) * batch);
        if images < batch {
            let message = format!("--images {images}: a batch has {batch} (train.batch_size)");
            return Err(Fatal::new(EXIT_USAGE, message));
        }
        let plan = plan(config, request, images)?;
        let data = plan.data();
        let bytes = images.saturating_mul((data.side * data.side * data.channels) as u64);
        if bytes > MAX_BYTES {
            let message = format!(
                "{images} images of {} have {bytes} bytes, at most {MAX_BYTES} fit",
                data.name
            );
            return Err(Fatal::new(EXIT_USAGE, message));
        }
        Ok(Self { plan, request, overrides: Vec::new(), workers, threads, images })
    }

    /// Makes the images up.
    ///
    /// # Errors
    /// 74 if they cannot be written.
    pub(crate) fn pack(&self, packs_dir: &Path) -> Result<Packs, Fatal> {
        let config = self.plan.config();
        Ok(pack_synthetic(&config.data, packs_dir, (self.images, config.seed))?)
    }

    /// What the workers of a run that is over have reported, as one JSON object.
    ///
    /// # Errors
    /// 69 if a report or a step is missing.
    pub(crate) fn result(&self, run_dir: &Path) -> Result<Value, Fatal> {
        let made = read_steps(run_dir)?.len() as u64;
        let expected = self.request.warmup_steps + self.request.steps;
        let reports = reports(&events(run_dir)?);
        if made != expected || reports.len() != self.workers {
            let (found, workers) = (reports.len(), self.workers);
            let message = format!(
                "{made} of {expected} steps were recorded, and {found} of {workers} workers \
                reported"
            );
            return Err(Fatal::new(EXIT_UNREACHABLE, message));
        }
        Ok(self.summary(&reports))
    }

    /// `reports` in the order of ranks, one a worker. The times are those of rank 0: no step ends
    /// on one rank alone.
    fn summary(&self, reports: &[BenchReport]) -> Value {
        let (config, first) = (self.plan.config(), &reports[0]);
        let batch = config.train.batch_size;
        let step = Spread::of(&first.step_seconds);
        let flops: u64 = reports.iter().map(|report| report.flops).sum();
        let ceilings: f64 = reports.iter().map(|report| report.ceiling_flops_per_s).sum();
        let per_second = |seconds: f64| batch as f64 / seconds;
        let peak = reports.iter().map(|report| report.peak_memory_bytes).max();
        json!({
            "program": "thanos",
            "version": env!("CARGO_PKG_VERSION"),
            "preset": config.name,
            "overrides": self.overrides,
            "stage": self.plan.stages()[0].name(),
            "device": first.device,
            "precision": first.precision,
            "collectives": first.collectives,
            "workers": self.workers,
            "threads_per_worker": self.threads,
            "batch": batch,
            "steps": self.request.steps,
            "warmup": self.request.warmup_steps,
            "ms_per_step": {
                "median": step.median * 1e3, "min": step.min * 1e3, "max": step.max * 1e3,
                "mean": step.mean * 1e3,
            },
            "images_per_s": {
                "median": per_second(step.median), "min": per_second(step.max),
                "max": per_second(step.min),
            },
            "flops_per_step": flops,
            "ceiling_flops_per_s": ceilings / reports.len() as f64,
            "ceiling_product": first.ceiling_product,
            "mfu": flops as f64 / (step.median * ceilings),
            "peak_memory_bytes": peak,
            "phase_ms": phases(&first.phase_seconds),
            "operators_per_step": first.operators,
            "kernels_per_step": first.kernels,
            "parameters": first.parameters,
        })
    }
}

/// The configuration of a benchmark: one backbone, and every batch whole. Nothing is held out of
/// the training images, and a worker that dies is not replaced, as what was measured until then
/// would be lost.
fn plan(mut config: RunConfig, request: BenchRequest, images: u64) -> Result<Plan, Fatal> {
    let Some(backbone) =
        config.backbones.iter().find(|backbone| backbone.checkpoint.is_none()).cloned()
    else {
        let message =
            "backbones: a benchmark trains a backbone, and here every one has a checkpoint";
        return Err(Fatal::new(EXIT_CONFIG, message));
    };
    (config.backbones, config.rows) = (vec![backbone], Vec::new());
    // CIFAR-100-U is CIFAR-100 with fewer images.
    if config.data.kind == DataKind::Cifar100U {
        config.data.kind = DataKind::Cifar100;
    }
    (config.data.dir, config.data.coarse_map, config.data.max_images) = (None, None, None);
    (config.data.validation, config.data.drop_last) = (Validation::Test, true);
    let steps = request.warmup_steps + request.steps;
    let epochs = steps.div_ceil((images / config.train.batch_size).max(1));
    (config.train.max_steps, config.train.epochs) = (Some(steps), config.train.epochs.max(epochs));
    (config.timeouts.max_restarts, config.log) = (0, LogConfig::nothing());
    // The transfer is not run; its batch must not ask for more images than there are.
    config.transfer.batch_size = config.transfer.batch_size.min(images);
    Plan::new(config).map_err(Fatal::from)
}

/// Median, extremes and mean of some durations in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Spread {
    median: f64,
    min: f64,
    max: f64,
    mean: f64,
}

impl Spread {
    fn of(seconds: &[f64]) -> Self {
        let mut sorted = seconds.to_vec();
        sorted.sort_by(f64::total_cmp);
        let middle = |at: usize| sorted.get(at).copied().unwrap_or_default();
        Self {
            median: f64::midpoint(
                middle(sorted.len().saturating_sub(1) / 2),
                middle(sorted.len() / 2),
            ),
            min: middle(0),
            max: middle(sorted.len().saturating_sub(1)),
            mean: sorted.iter().sum::<f64>() / sorted.len().max(1) as f64,
        }
    }
}

/// Milliseconds of each phase.
fn phases(seconds: &BTreeMap<RankPhase, f64>) -> BTreeMap<&str, f64> {
    seconds.iter().map(|(phase, seconds)| (phase.label(), seconds * 1e3)).collect()
}

/// A report as the fields of an event.
pub(crate) fn to_json(report: &BenchReport) -> Value {
    json!(Reported(report.clone()))
}

/// The reports of a run's events, in the order of ranks.
fn reports(events: &[Value]) -> Vec<BenchReport> {
    let benched = events.iter().filter(|event| event["event"] == "benched");
    let mut reports: Vec<BenchReport> =
        benched.filter_map(|event| Some(Reported::deserialize(event).ok()?.0)).collect();
    reports.sort_by_key(|report| report.rank);
    reports
}

/// Phases by their labels.
fn write_phases<S: Serializer>(
    seconds: &BTreeMap<RankPhase, f64>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let labelled: BTreeMap<&str, f64> =
        seconds.iter().map(|(phase, seconds)| (phase.label(), *seconds)).collect();
    labelled.serialize(serializer)
}

fn read_phases<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<RankPhase, f64>, D::Error> {
    let labelled = BTreeMap::<String, f64>::deserialize(deserializer)?;
    Ok(labelled
        .into_iter()
        .map(|(label, seconds)| (RankPhase::from(label.as_str()), seconds))
        .collect())
}

#[derive(Serialize, Deserialize)]
struct Reported(#[serde(with = "Fields")] BenchReport);

#[derive(Serialize, Deserialize)]
#[serde(remote = "BenchReport")]
struct Fields {
    rank: u32,
    device: String,
    precision: String,
    collectives: String,
    step_seconds: Vec<f64>,
    #[serde(serialize_with = "write_phases", deserialize_with = "read_phases")]
    phase_seconds: BTreeMap<RankPhase, f64>,
    flops: u64,
    operators: u64,
    kernels: Option<u64>,
    ceiling_flops_per_s: f64,
    ceiling_product: String,
    peak_memory_bytes: u64,
    parameters: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use thanos_configs::load_preset;

    const REQUEST: BenchRequest = BenchRequest { warmup_steps: 2, steps: 3 };

    fn bench(preset: &str, overrides: &[&str], images: Option<u64>) -> Result<Bench, Fatal> {
        let overrides: Vec<String> = overrides.iter().map(|&text| text.into()).collect();
        Bench::new(load_preset(preset, &overrides).expect("valid"), REQUEST, (2, 1), images)
    }

    fn report(rank: u32) -> BenchReport {
        BenchReport {
            rank,
            device: "a processor".into(),
            precision: "float32".into(),
            collectives: "gloo".into(),
            step_seconds: vec![0.2, 0.1, 0.4],
            phase_seconds: BTreeMap::from([("forward".into(), 0.05)]),
            flops: 1_000_000,
            operators: 7,
            kernels: None,
            ceiling_flops_per_s: 1e7 + f64::from(rank) * 2e7,
            ceiling_product: "4x4x4 float32".into(),
            peak_memory_bytes: 100 + u64::from(rank),
            parameters: 9,
        }
    }

    #[test]
    fn the_summary_is_of_all_ranks() {
        let bench = bench("digits_cnce", &["train.batch_size=64"], None).expect("valid");
        let summary = bench.summary(&[report(0), report(1)]);
        let check = |pointer: &str, expected: f64| {
            let found = summary.pointer(pointer).and_then(Value::as_f64).expect(pointer);
            assert!((found / expected - 1.0).abs() < 1e-12, "{pointer}: {found}");
        };
        check("/ms_per_step/median", 200.0);
        check("/ms_per_step/min", 100.0);
        check("/ms_per_step/max", 400.0);
        check("/ms_per_step/mean", 700.0 / 3.0);
        check("/images_per_s/median", 64.0 / 0.2);
        check("/images_per_s/min", 64.0 / 0.4);
        check("/images_per_s/max", 64.0 / 0.1);
        check("/flops_per_step", 2e6);
        check("/ceiling_flops_per_s", 2e7);
        // Two workers' ceilings for 0.2 s are 8e6.
        check("/mfu", 0.25);
        check("/peak_memory_bytes", 101.0);
        check("/phase_ms/forward", 50.0);
        assert_eq!((&summary["program"], &summary["stage"]), (&json!("thanos"), &json!("cnce")));
        assert_eq!((&summary["batch"], &summary["workers"]), (&json!(64), &json!(2)));
        assert!(summary["kernels_per_step"].is_null(), "{summary}");
    }

    #[test]
    fn an_even_number_of_steps_has_a_median_between_two() {
        let spread = Spread::of(&[4.0, 1.0, 2.0, 3.0]);
        assert_eq!(spread, Spread { median: 2.5, min: 1.0, max: 4.0, mean: 2.5 });
    }

    #[test]
    fn a_report_round_trips_through_an_event() {
        let event = |report: &BenchReport| {
            let mut event = to_json(report);
            event["event"] = "benched".into();
            event["time"] = 1.5.into();
            event
        };
        let with_kernels = BenchReport { kernels: Some(5), ..report(1) };
        let written = [event(&with_kernels), json!({"event": "joined"}), event(&report(0))];
        assert_eq!(reports(&written), [report(0), with_kernels]);
    }

    #[test]
    fn one_backbone_is_left_and_every_batch_is_whole() {
        for (preset, overrides, stage) in [
            ("digits_table", vec![], "supcon"),
            ("digits_thanos", vec!["backbones.0.checkpoint=/weights"], "cae"),
            ("cifar100_u_cnce", vec!["train.batch_size=5000"], "cnce"),
            ("image_folder_cae", vec!["data.dir=/none"], "cae"),
        ] {
            let bench = bench(preset, &overrides, None).expect(preset);
            let names: Vec<&str> = bench.plan.stages().iter().map(|stage| stage.name()).collect();
            assert_eq!(names, [stage], "{preset}");
            let folder = tempfile::tempdir().expect("a folder");
            let packs = bench.pack(folder.path()).expect("packed");
            let fine = thanos_data::fine_labels(&packs.train.path).expect("labels");
            bench.plan.check_images(&fine).expect(preset);
            let (trained, batch) =
                (bench.plan.split(&fine).train.len() as u64, bench.plan.config().train.batch_size);
            assert_eq!((trained, trained % batch), (bench.images, 0), "{preset}");
            assert_eq!(bench.plan.total_steps(&bench.plan.stages()[0], trained), 5, "{preset}");
        }
    }

    #[test]
    fn what_cannot_be_measured_is_refused() {
        let check = |overrides: &[&str], images, exit_code, part: &str| {
            let fatal = bench("digits_cnce", overrides, images).expect_err("refused");
            assert_eq!(fatal.exit_code, exit_code, "{fatal}");
            assert!(fatal.message.contains(part), "{fatal}");
        };
        check(
            &["backbones.0.checkpoint=/weights"],
            None,
            EXIT_CONFIG,
            "every one has a checkpoint",
        );
        check(&[], Some(63), EXIT_USAGE, "a batch has 64");
        check(&[], Some(1 << 40), EXIT_USAGE, "at most");
    }
}
