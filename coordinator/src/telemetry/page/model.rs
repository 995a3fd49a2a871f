//! What the page shows of a run directory: its ledger, its configuration and its table, read as
//! they grow. Everything is bounded. The same for a run that is served, one that another process
//! trains, and one that has ended.

use super::live::{LiveView, phases_json};
use super::roster::Roster;
use super::series::Series;
use crate::run_dir::ledger::StepLine;
use crate::run_dir::{identity, plan_of_run};
use crate::telemetry::tail::{FileIdentity, Tail};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;
use thanos_configs::{Plan, StagePlan};
use thanos_formats::{CONFIG_YAML, EVENTS_JSONL, RESULTS_JSON, RUN_JSON, STEPS_JSONL};

/// Events, checkpoints and evaluations of a stage that are kept: the newest, of evaluations about
/// evenly spread ones.
const MAX_EVENTS: usize = 200;
const MAX_CHECKPOINTS: usize = 20;
const MAX_EVALUATIONS: usize = 2048;
const MAX_STAGES: usize = 256;
/// A configuration file that is shown; ours are a few kilobytes.
const MAX_CONFIG_BYTES: usize = 256 << 10;
/// Bytes of the ledger that are read at a time.
const MAX_READ_BYTES: u64 = 4 << 20;

/// How far a reader has read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cursor {
    /// Of which ledger.
    pub(super) version: String,
    /// Lines of `steps.jsonl` and of `events.jsonl`.
    pub(super) steps: u64,
    pub(super) events: u64,
}

impl Cursor {
    /// `VERSION.STEPS.EVENTS`, as a browser sends it when it comes back.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.rsplitn(3, '.');
        let events = parts.next()?.parse().ok()?;
        let steps = parts.next()?.parse().ok()?;
        Some(Self { version: parts.next()?.into(), steps, events })
    }
}

impl std::fmt::Display for Cursor {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}.{}.{}", self.version, self.steps, self.events)
    }
}

/// The run directory as it was read last.
pub(super) struct Model {
    run_dir: PathBuf,
    steps: Tail,
    events: Tail,
    /// Lines that were read of each.
    step_lines: u64,
    event_lines: u64,
    /// Lines that could not be read.
    damaged: u64,
    about: Value,
    stages: Vec<StageView>,
    /// The last step, and the newest events with their numbers.
    last: Option<StepLine>,
    log: VecDeque<(u64, Value)>,
    checkpoints: VecDeque<Value>,
    checkpoint_count: u64,
    pub(super) roster: Roster,
    /// Coordinators that were started.
    starts: u64,
    /// The end of the run, unless it was resumed since.
    pub(super) ended: Option<Value>,
    results: Option<Value>,
    files_changed: [Option<SystemTime>; 3],
}

/// A stage that is planned, in training or complete.
struct StageView {
    name: String,
    kind: &'static str,
    epochs: Option<u64>,
    max_steps: Option<u64>,
    series: Series,
    /// Committed steps, the epoch of the last one, and the steps of epoch 0.
    steps: u64,
    epoch: u64,
    steps_of_first_epoch: u64,
    evaluations: BTreeMap<u64, Value>,
    /// The line of `events.jsonl` that changed them last.
    evaluated_at: u64,
    /// What it measured at its end.
    result: Option<Value>,
}

impl StageView {
    fn new(name: &str, plan: Option<(&Plan, &StagePlan)>) -> Self {
        let training = plan.map(|(plan, stage)| plan.training(stage));
        let kind = match plan {
            Some((_, StagePlan::Transfer(_))) => "linear probe",
            Some((_, StagePlan::Backbone(_))) | None => "backbone",
        };
        Self {
            name: name.into(),
            kind,
            epochs: training.as_ref().map(|training| training.epochs),
            max_steps: training.and_then(|training| training.max_steps),
            series: Series::new(),
            steps: 0,
            epoch: 0,
            steps_of_first_epoch: 0,
            evaluations: BTreeMap::new(),
            evaluated_at: 0,
            result: None,
        }
    }

    fn forget_steps(&mut self) {
        (self.series, self.steps, self.epoch, self.steps_of_first_epoch) = (Series::new(), 0, 0, 0);
    }

    fn step(&mut self, line: &StepLine, number: u64) {
        self.series.push(line, number);
        (self.steps, self.epoch) = (line.step + 1, line.epoch);
        self.steps_of_first_epoch += u64::from(line.epoch == 0);
    }

    /// The steps that it will have; `None` before its first epoch is over, unless a worker has
    /// reported it.
    fn total(&self, live: &LiveView) -> Option<u64> {
        if let Some(total) = live.totals.get(&self.name) {
            return Some(*total);
        }
        if self.result.is_some() {
            return Some(self.steps);
        }
        let of_epochs =
            self.epochs.map(|epochs| epochs * self.steps_of_first_epoch).filter(|_| self.epoch > 0);
        of_epochs.map_or(self.max_steps, |steps| {
            Some(self.max_steps.map_or(steps, |max| max.min(steps)))
        })
    }

    fn json(&self, live: &LiveView, is_last: bool) -> Value {
        let state = match (&self.result, is_last, self.steps) {
            (Some(_), ..) => "complete",
            (None, true, _) => "active",
            (None, false, 0) => "waiting",
            (None, false, _) => "interrupted",
        };
        json!({
            "name": self.name, "kind": self.kind, "state": state, "steps": self.steps,
            "total": self.total(live),
            "epoch": self.epoch, "epochs": self.epochs, "result": self.result,
        })
    }
}

impl Model {
    pub(super) fn new(run_dir: &Path) -> Self {
        Self {
            run_dir: run_dir.into(),
            steps: Tail::new(run_dir.join(STEPS_JSONL), MAX_READ_BYTES),
            events: Tail::new(run_dir.join(EVENTS_JSONL), MAX_READ_BYTES),
            step_lines: 0,
            event_lines: 0,
            damaged: 0,
            about: Value::Null,
            stages: Vec::new(),
            last: None,
            log: VecDeque::new(),
            checkpoints: VecDeque::new(),
            checkpoint_count: 0,
            roster: Roster::default(),
            starts: 0,
            ended: None,
            results: None,
            files_changed: [None; 3],
        }
    }

    /// Reads what is new.
    ///
    /// # Errors
    /// If a file of the ledger is there and cannot be read.
    pub(super) fn read(&mut self) -> io::Result<()> {
        self.read_files();
        // The events first: a stage that they reopen loses what it had.
        loop {
            let growth = self.events.read()?;
            if growth.replaced {
                self.forget_events();
            }
            growth.text.lines().for_each(|line| self.event(line));
            if !growth.more {
                break;
            }
        }
        loop {
            let growth = self.steps.read()?;
            if growth.replaced {
                (self.step_lines, self.last) = (0, None);
                self.stages.iter_mut().for_each(StageView::forget_steps);
            }
            growth.text.lines().for_each(|line| self.step(line));
            if !growth.more {
                return Ok(());
            }
        }
    }

    /// What is there besides the ledger, if it has changed.
    fn read_files(&mut self) {
        let changed = [RUN_JSON, CONFIG_YAML, RESULTS_JSON].map(|name| {
            fs::metadata(self.run_dir.join(name)).and_then(|file| file.modified()).ok()
        });
        if changed == self.files_changed {
            return;
        }
        self.files_changed = changed;
        let results = fs::read_to_string(self.run_dir.join(RESULTS_JSON)).ok();
        self.results = results.and_then(|text| serde_json::from_str(&text).ok());
        let mut config = fs::read_to_string(self.run_dir.join(CONFIG_YAML)).unwrap_or_default();
        if config.len() > MAX_CONFIG_BYTES {
            config = format!("{} bytes: see config.yaml\n", config.len());
        }
        if let Ok(run) = identity(&self.run_dir) {
            let directory =
                std::path::absolute(&self.run_dir).unwrap_or_else(|_| self.run_dir.clone());
            self.about = json!({
                "id": run.id, "preset": run.preset, "seed": run.seed, "quick": run.quick,
                "version": run.version,
                "directory": directory.display().to_string(), "config": config,
            });
        }
        if let Ok(plan) = plan_of_run(&self.run_dir, &[]) {
            self.take_plan(&plan);
        }
    }

    /// The stages in the order of the plan; what is known of them stays.
    fn take_plan(&mut self, plan: &Plan) {
        let mut known = std::mem::take(&mut self.stages);
        for stage in plan.stages().iter().take(MAX_STAGES) {
            let new = StageView::new(stage.name(), Some((plan, stage)));
            let stage = match known.iter().position(|known| known.name == new.name) {
                Some(index) => {
                    let StageView { kind, epochs, max_steps, .. } = new;
                    StageView { kind, epochs, max_steps, ..known.remove(index) }
                }
                None => new,
            };
            self.stages.push(stage);
        }
        self.stages.extend(known);
    }

    fn stage(&mut self, name: &str) -> Option<&mut StageView> {
        let known = self.stages.iter().position(|stage| stage.name == name);
        if known.is_none() && self.stages.len() < MAX_STAGES {
            self.stages.push(StageView::new(name, None));
        }
        let index = known.unwrap_or(self.stages.len() - 1);
        self.stages.get_mut(index).filter(|stage| stage.name == name)
    }

    fn step(&mut self, line: &str) {
        self.step_lines += 1;
        let number = self.step_lines;
        match serde_json::from_str::<StepLine>(line) {
            Ok(line) => {
                if let Some(stage) = self.stage(&line.stage) {
                    stage.step(&line, number);
                }
                self.last = Some(line);
            }
            Err(_) => self.damaged += 1,
        }
    }

    fn forget_events(&mut self) {
        (self.event_lines, self.starts, self.checkpoint_count) = (0, 0, 0);
        (self.roster, self.ended) = (Roster::default(), None);
        self.log.clear();
        self.checkpoints.clear();
        for stage in &mut self.stages {
            stage.evaluations.clear();
            stage.result = None;
        }
    }

    fn event(&mut self, line: &str) {
        self.event_lines += 1;
        let number = self.event_lines;
        let Ok(event) = serde_json::from_str::<Value>(line) else {
            self.damaged += 1;
            return;
        };
        self.roster.event(&event);
        let kind = event["event"].as_str().unwrap_or_default();
        self.ended = (kind == "ended").then(|| event.clone());
        match kind {
            "coordinator" => self.starts += 1,
            "evaluated" => self.evaluated(&event, number),
            "checkpoint" => {
                self.checkpoint_count += 1;
                keep(&mut self.checkpoints, event.clone(), MAX_CHECKPOINTS);
            }
            "stage_complete" => {
                let stage = event["stage"].as_str().unwrap_or_default().to_owned();
                if let Some(stage) = self.stage(&stage) {
                    stage.result = Some(event.clone());
                }
            }
            "reconfigured" => self.reopened(event["reopened"].as_str()),
            _ => {}
        }
        // Evaluations have a chart of their own, and would hide the rest.
        if kind != "evaluated" {
            keep(&mut self.log, (number, event), MAX_EVENTS);
        }
    }

    fn evaluated(&mut self, event: &Value, number: u64) {
        let (Some(stage), Some(epoch)) = (event["stage"].as_str(), event["epoch"].as_u64()) else {
            return;
        };
        let stage = stage.to_owned();
        let Some(stage) = self.stage(&stage) else { return };
        let [accuracy, best, measure] =
            ["validation_accuracy", "best", "measure"].map(|key| event[key].clone());
        stage.evaluations.insert(
            epoch,
            json!({"epoch": epoch, "accuracy": accuracy, "best": best, "measure": measure}),
        );
        stage.evaluated_at = number;
        if stage.evaluations.len() > MAX_EVALUATIONS {
            let mut index = 0_usize;
            stage.evaluations.retain(|_, evaluation| {
                index += 1;
                index.is_multiple_of(2) || evaluation["best"] == true
            });
        }
        while stage.evaluations.len() > MAX_EVALUATIONS {
            stage.evaluations.pop_first();
        }
    }

    /// A stage that was complete makes more steps, and those after it begin again.
    fn reopened(&mut self, name: Option<&str>) {
        let Some(index) = self.stages.iter().position(|stage| name == Some(&stage.name)) else {
            return;
        };
        self.stages[index].result = None;
        for later in &mut self.stages[index + 1..] {
            (later.result, later.evaluated_at) = (None, self.event_lines);
            later.evaluations.clear();
        }
    }

    /// How far the run directory was read.
    pub(super) fn cursor(&self) -> Cursor {
        let id = self.about["id"].as_str().unwrap_or("none");
        let part = |identity: Option<FileIdentity>| {
            identity.map_or_else(
                || "0".to_owned(),
                |file| format!("{:x}{:x}", file.inode, file.created),
            )
        };
        let version =
            format!("{id}-{}-{}", part(self.steps.identity()), part(self.events.identity()));
        Cursor { version, steps: self.step_lines, events: self.event_lines }
    }

    /// What a reader lacks of steps, evaluations and events. One that has read another ledger, or
    /// none, gets everything.
    pub(super) fn since(&self, cursor: Option<&Cursor>) -> Map<String, Value> {
        let now = self.cursor();
        let is_known = |cursor: &&Cursor| {
            cursor.version == now.version
                && cursor.steps <= now.steps
                && cursor.events <= now.events
        };
        let known = cursor.filter(is_known);
        let (steps, events) = known.map_or((0, 0), |cursor| (cursor.steps, cursor.events));
        let mut new = Map::new();
        new.insert("cursor".into(), now.to_string().into());
        new.insert("reset".into(), known.is_none().into());
        if known.is_none() {
            new.insert("run".into(), self.about.clone());
        }
        let series = self
            .stages
            .iter()
            .filter_map(|stage| Some((stage.name.clone(), stage.series.since(steps)?)));
        let evaluations =
            self.stages.iter().filter(|stage| known.is_none() || stage.evaluated_at > events);
        let evaluations = evaluations
            .map(|stage| (stage.name.clone(), stage.evaluations.values().cloned().collect()));
        new.insert("series".into(), Value::Object(series.collect()));
        new.insert("evaluations".into(), Value::Object(evaluations.collect()));
        let log =
            self.log.iter().filter(|(number, _)| *number > events).map(|(_, event)| event.clone());
        new.insert("events".into(), log.collect());
        new
    }

    /// What is small, and is sent whole when it has changed.
    pub(super) fn state(&self, live: &LiveView) -> Map<String, Value> {
        let active = self.last.as_ref().map(|last| last.stage.as_str());
        let first = self
            .stages
            .iter()
            .find(|stage| stage.result.is_none())
            .map(|stage| stage.name.as_str());
        let active = active.filter(|name| {
            self.stages.iter().any(|stage| stage.name == *name && stage.result.is_none())
        });
        let active = active.or(first);
        let is_active = |stage: &StageView| active == Some(stage.name.as_str());
        let stages: Vec<Value> =
            self.stages.iter().map(|stage| stage.json(live, is_active(stage))).collect();
        let left = self.stages.iter().find(|stage| is_active(stage));
        let left = left.and_then(|stage| stage.total(live)?.checked_sub(stage.steps));
        let eta_seconds = left.zip(live.steps_per_second).map(|(left, speed)| left as f64 / speed);
        let (workers, more_workers) = self.roster.json(&live.workers);
        let last = self.last.as_ref().map(|last| {
            json!({
                "stage": last.stage, "step": last.step, "epoch": last.epoch, "loss": last.loss,
                "lr": last.lr, "images": last.images, "losses": last.losses,
            })
        });
        let state = json!({
            "stages": stages, "last": last, "ended": self.ended, "starts": self.starts,
            "damaged": self.damaged,
            "workers": workers, "more_workers": more_workers, "lost": self.roster.lost,
            "restarts": self.roster.restarts(), "generation": self.roster.generation,
            "devices": self.roster.devices,
            "collectives": self.roster.collectives, "phases": phases_json(&live.phases),
            "checkpoints": self.checkpoints, "checkpoint_count": self.checkpoint_count,
            "results": self.results,
            "eta_seconds": eta_seconds, "steps_per_second": live.steps_per_second,
            "images_per_second": live.images_per_second, "storage_problem": live.storage_problem,
        });
        match state {
            Value::Object(state) => state,
            _ => Map::new(),
        }
    }
}

/// Appends, and drops the oldest beyond `most`.
fn keep<T>(list: &mut VecDeque<T>, item: T, most: usize) {
    list.push_back(item);
    if list.len() > most {
        list.pop_front();
    }
}

#[cfg(test)]
mod tests;
