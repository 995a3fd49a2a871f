//! `status`: the state of a run by its run directory, read without its lock.

use crate::exit::Fatal;
use crate::run_dir::ledger::read_steps;
use crate::run_dir::results::Results;
use crate::run_dir::{holder, identity};
use crate::telemetry::progress::{collectives_name, workers_on};
use serde_json::Value;
use std::fmt::Write;
use std::fs;
use std::path::Path;
use thanos_formats::EVENTS_JSONL;

/// A few lines on a run: what it is, how far it is, whether a coordinator is at work on it.
///
/// # Errors
/// 64 if it is not a run directory, 65 if its ledger is damaged.
pub(crate) fn status(run_dir: &Path) -> Result<String, Fatal> {
    let identity = identity(run_dir)?;
    let mut text = String::new();
    let mut line = |key: &str, value: String| _ = writeln!(text, "{key:12} {value}");
    line("run", identity.id);
    line("preset", format!("{}, seed {}", identity.preset, identity.seed));
    let events = events(run_dir);
    line("coordinator", coordinator(run_dir, &events));
    if let Some(began) = events.iter().rev().find(|event| event["devices"].is_string()) {
        let workers = began["ranks"].as_array().map_or(0, Vec::len);
        let text = |key: &str| began[key].as_str().unwrap_or_default();
        let on = workers_on(workers, text("devices"), collectives_name(text("collectives")));
        line("generation", format!("{}: {on}", began["generation"]));
    }
    match read_steps(run_dir)?.last() {
        Some(last) => {
            let (stage, step) = (&last.stage, last.step + 1);
            let loss = last.loss.map_or("non-finite".into(), |loss| format!("{loss:.4}"));
            line(
                "position",
                format!("{step} steps of stage {stage}, epoch {}, loss {loss}", last.epoch),
            );
        }
        None => line("position", "before the first step".into()),
    }
    let latest = fs::read_to_string(run_dir.join("LATEST")).unwrap_or_else(|_| "none yet".into());
    line("checkpoint", latest.trim().into());
    if let Some(ended) = ending(&events) {
        line(
            "ended",
            ended["message"].as_str().or(ended["how"].as_str()).unwrap_or("somehow").into(),
        );
    }
    if let Ok(results) = Results::read(run_dir) {
        _ = write!(text, "\n{results}");
    }
    Ok(text.trim_end().to_owned())
}

/// The process that holds the lock, or how to continue without one.
fn coordinator(run_dir: &Path, events: &[Value]) -> String {
    if let Some(holder) = holder(run_dir) {
        return holder;
    }
    if ending(events).is_some_and(|ended| ended["how"] == "done") {
        return "none: the run is complete".into();
    }
    let started = events.iter().rev().find_map(|event| event["command"].as_str());
    format!(
        "none: `thanos-coord {} --resume --run-dir {}` resumes it",
        started.unwrap_or("launch"),
        run_dir.display()
    )
}

/// The end of a run that was not resumed since.
fn ending(events: &[Value]) -> Option<&Value> {
    events.last().filter(|event| event["event"] == "ended")
}

/// The lines of `events.jsonl`; one that is being written is skipped.
fn events(run_dir: &Path) -> Vec<Value> {
    let text = fs::read_to_string(run_dir.join(EVENTS_JSONL)).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}
