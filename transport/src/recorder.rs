//! The process's metrics in Prometheus's text format.

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use metrics_process::Collector;
use std::path::Path;
use std::time::Duration;

/// Upper bounds of every histogram, in seconds.
const BUCKETS: [f64; 12] = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0];
/// How often histograms are drained when the page is not read; else they grow without end.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// The value of the label `run`: the name of the run directory.
#[must_use]
pub fn run_name(run_dir: &Path) -> String {
    let absolute = std::path::absolute(run_dir).unwrap_or_else(|_| run_dir.into());
    absolute.file_name().map_or_else(|| "run".into(), |name| name.to_string_lossy().into_owned())
}

/// What the macros of `metrics` record in this process. Its handles are cheap.
#[derive(Clone)]
pub struct Recorder {
    recorded: PrometheusHandle,
    process: Collector,
}

impl Recorder {
    /// Begins to record, with these labels on every series. Once in a process, within a runtime.
    ///
    /// # Errors
    /// If something records already.
    pub fn install(labels: &[(&str, &str)]) -> Result<Self, BuildError> {
        let histograms = Matcher::Suffix("_seconds".into());
        let builder = PrometheusBuilder::new().set_buckets_for_metric(histograms, &BUCKETS)?;
        let builder = labels
            .iter()
            .fold(builder, |builder, (name, value)| builder.add_global_label(*name, *value));
        let recorded = builder.install_recorder()?;
        let process = Collector::default();
        process.describe();
        let upkept = recorded.clone();
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(UPKEEP_INTERVAL).await;
                upkept.run_upkeep();
            }
        });
        Ok(Self { recorded, process })
    }

    /// Every series as it is now, and those of the process: memory, processor time, open
    /// descriptors.
    #[must_use]
    pub fn text(&self) -> String {
        self.process.collect();
        self.recorded.render()
    }
}

/// The page `/metrics`, whose text is made again for each reader.
pub fn metrics_page(text: impl Fn() -> String + Clone + Send + Sync + 'static) -> Router {
    Router::new().route("/metrics", get(move || async move { metrics_response(text()) }))
}

fn metrics_response(text: String) -> Response {
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}
