//! Names of the files of a run directory that more than one module reads.

/// Which run it is: it makes a directory a run.
pub const RUN_JSON: &str = "run.json";
/// The resolved configuration.
pub const CONFIG_YAML: &str = "config.yaml";
/// The ledger of steps, a line each.
pub const STEPS_JSONL: &str = "steps.jsonl";
/// What happened to workers, checkpoints and stages, a line each.
pub const EVENTS_JSONL: &str = "events.jsonl";
/// The result table, of a run or of a series.
pub const RESULTS_JSON: &str = "results.json";
