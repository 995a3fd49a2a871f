//! `status`: what a run directory says about its run, read without its lock.

use crate::exit::Fatal;
use crate::ledger::read_steps;
use crate::report::Results;
use crate::run_dir::{holder, identity};
use serde_json::Value;
use std::fmt::Write;
use std::fs;
use std::path::Path;

/// A few lines on a run: what it is, how far it is, whether a coordinator is at work on it.
///
/// # Errors
/// 64 if the directory holds no run, 65 if its ledger is damaged.
pub(crate) fn status(run_dir: &Path) -> Result<String, Fatal> {
    let identity = identity(run_dir)?;
    let mut text = String::new();
    let mut line = |key: &str, value: String| _ = writeln!(text, "{key:12} {value}");
    line("run", identity.id);
    line("preset", format!("{}, seed {}", identity.preset, identity.seed));
    line("coordinator", coordinator(run_dir));
    match read_steps(run_dir)?.last() {
        Some(last) => {
            let (stage, step) = (&last.stage, last.step + 1);
            let loss = last.loss.map_or("that is no number".into(), |loss| format!("{loss:.4}"));
            line("position", format!("{step} steps of stage {stage}, epoch {}, loss {loss}", last.epoch));
        }
        None => line("position", "before the first step".into()),
    }
    let latest = fs::read_to_string(run_dir.join("LATEST")).unwrap_or_else(|_| "none yet".into());
    line("checkpoint", latest.trim().into());
    if let Some(ended) = last_event(run_dir).filter(|event| event["event"] == "ended") {
        line("ended", ended["message"].as_str().or(ended["how"].as_str()).unwrap_or("somehow").into());
    }
    if let Ok(results) = Results::read(run_dir) {
        _ = write!(text, "\n{results}");
    }
    Ok(text.trim_end().to_owned())
}

/// Who holds the lock, if anybody does.
fn coordinator(run_dir: &Path) -> String {
    holder(run_dir).unwrap_or_else(|| {
        format!("none: `thanos-coord launch --resume --run-dir {}` goes on with it", run_dir.display())
    })
}

fn last_event(run_dir: &Path) -> Option<Value> {
    let text = fs::read_to_string(run_dir.join("events.jsonl")).ok()?;
    serde_json::from_str(text.lines().last()?).ok()
}
