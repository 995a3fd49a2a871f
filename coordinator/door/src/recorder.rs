//! The process's metrics in Prometheus's text format.

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder};
use std::time::Duration;

/// Upper bounds of every histogram, in seconds.
const BUCKETS: [f64; 12] = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0];
/// How often histograms are drained when nobody scrapes them; else they grow without end.
const BETWEEN_UPKEEPS: Duration = Duration::from_secs(5);

/// Begins to record what the macros of `metrics` are told, and returns the page `/metrics`. Once in a process.
///
/// # Errors
/// If something records already.
pub fn metrics_page() -> Result<Router, BuildError> {
    let histograms = Matcher::Suffix("_seconds".into());
    let recorded = PrometheusBuilder::new().set_buckets_for_metric(histograms, &BUCKETS)?.install_recorder()?;
    let kept = recorded.clone();
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(BETWEEN_UPKEEPS).await;
            kept.run_upkeep();
        }
    });
    let text = [(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    Ok(Router::new().route("/metrics", get(move || async move { (text, recorded.render()) })))
}
