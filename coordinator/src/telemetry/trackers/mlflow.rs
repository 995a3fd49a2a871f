//! MLflow, by its REST API. A server only appends, so each call is announced in the position file
//! before it is made, with its time: after a kill, or an answer that was lost, the server is asked
//! what it has of these rows, and what is missing is sent with the same time. (A call that arrives
//! even later changes nothing then: MLflow's databases keep a metric once per name, step and time.)
//! The run is created with its first row, and is found again by a tag.

use super::feed::Row;
use super::mlflow_calls::{Calls, MAX_METRICS, Metric, NewRun, valid_key};
use super::position::PositionFile;
use super::{Ending, Sink, config_keys, result_values, run_name};
use crate::telemetry::metrics::now;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::env;
use std::io;
use std::path::Path;
use thanos_configs::RunConfig;
use thanos_formats::Identity;

/// How long a run that was requested, and whose id did not arrive, is looked for before it is
/// requested again.
const CREATION_MS: u64 = 10_000;

pub(super) struct Mlflow {
    calls: Calls,
    file: PositionFile,
    position: Position,
    new_run: NewRun,
    params: Vec<(String, Value)>,
    /// This coordinator has reported that the run is at work.
    is_open: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Position {
    uri: String,
    experiment: String,
    /// Ours.
    run: String,
    /// When the run was requested.
    requested_ms: Option<u64>,
    /// MLflow's.
    run_id: Option<String>,
    has_params: bool,
    /// Rows before `first` were received; of those from there to `until` it is not known.
    first: u64,
    until: u64,
    /// Time of these.
    timestamp: u64,
    /// The run is done, and the server has all of it.
    is_done: bool,
}

impl Mlflow {
    pub(super) fn open(run_dir: &Path, uri: &str, config: &RunConfig, identity: &Identity) -> Self {
        let file = PositionFile::new(run_dir, "mlflow");
        let experiment = &config.log.mlflow.experiment;
        let new = Position {
            uri: uri.into(),
            experiment: experiment.clone(),
            run: identity.id.clone(),
            ..Position::default()
        };
        let is_same = |found: &Position| {
            (&found.uri, &found.experiment, &found.run) == (&new.uri, &new.experiment, &new.run)
        };
        let mut position = file.read().filter(is_same).unwrap_or(new);
        if !position.is_done {
            // The last row again: it may have been evaluated since.
            position.first = position.first.min(position.until.saturating_sub(1));
        }
        let tags = [
            ("thanos.preset", identity.preset.clone()),
            ("thanos.seed", identity.seed.to_string()),
            ("thanos.version", identity.version.clone()),
            ("thanos.host", crate::run_dir::host()),
            ("thanos.run_dir", run_dir.display().to_string()),
            ("mlflow.source.name", "thanos-coord".into()),
        ];
        let (id, name) = (identity.id.clone(), run_name(identity));
        let new_run = NewRun { id, name, start_ms: now_ms(), tags: tags.into() };
        let calls = Calls::new(uri, |name| env::var(name).ok());
        Self { calls, file, position, new_run, params: config_keys(config), is_open: false }
    }

    fn save(&self) -> io::Result<()> {
        self.file.write(&self.position)
    }

    /// MLflow's id of the run, which is at work from now on.
    fn open_run(&mut self) -> io::Result<String> {
        let run = match &self.position.run_id {
            Some(run) => run.clone(),
            None => self.find_or_create()?,
        };
        if !self.position.has_params {
            self.calls.add_params(&run, &self.params)?;
            self.position.has_params = true;
            self.save()?;
        }
        if !self.is_open {
            self.calls.set_status(&run, "RUNNING", None)?;
            self.position.is_done = false;
            self.is_open = true;
        }
        Ok(run)
    }

    fn find_or_create(&mut self) -> io::Result<String> {
        let experiment = self.calls.experiment(&self.position.experiment)?;
        let run = match self.calls.search(&experiment, &self.position.run)? {
            Some(run) => run,
            None => {
                let requested = self.position.requested_ms;
                if requested.is_some_and(|at| now_ms() < at + CREATION_MS) {
                    return Err(io::Error::other(
                        "the run was requested, and has not appeared yet",
                    ));
                }
                self.position.requested_ms = Some(now_ms());
                self.save()?;
                self.calls.create(&experiment, &self.new_run)?
            }
        };
        self.position.run_id = Some(run.clone());
        self.save()?;
        Ok(run)
    }

    fn metrics(&self, row: &Row) -> Vec<Metric> {
        let stage = &row.step.stage;
        let metric = |(name, value): (String, f64)| Metric {
            key: valid_key(&format!("{stage}/{name}")),
            value,
            timestamp: self.position.timestamp,
            step: row.step.step,
        };
        row.values().into_iter().map(metric).collect()
    }

    fn is_in_doubt(&self) -> bool {
        self.position.first < self.position.until
    }

    /// As many rows as fit in a call, and the index after them. Those in doubt are for themselves.
    fn batch(&self, rows: &[Row]) -> (Vec<Metric>, u64) {
        let end = if self.is_in_doubt() { self.position.until } else { u64::MAX };
        let (mut metrics, mut next_row) = (Vec::new(), self.position.first);
        for row in rows.iter().take_while(|row| row.index < end) {
            let of_row = self.metrics(row);
            if !metrics.is_empty() && metrics.len() + of_row.len() > MAX_METRICS {
                break;
            }
            metrics.extend(of_row);
            next_row = row.index + 1;
        }
        (metrics, next_row)
    }

    /// The call that follows may arrive or not.
    fn announce(&mut self, until: u64) -> io::Result<()> {
        let announced = Position { until, timestamp: now_ms(), ..self.position.clone() };
        self.file.write(&announced)?;
        self.position = announced;
        Ok(())
    }
}

impl Sink for Mlflow {
    fn name(&self) -> &'static str {
        "MLflow"
    }

    fn next_row(&self) -> u64 {
        self.position.first
    }

    fn write(&mut self, rows: &[Row]) -> io::Result<()> {
        let run = self.open_run()?;
        let (metrics, next_row) = if self.is_in_doubt() {
            let (metrics, next_row) = self.batch(rows);
            (self.calls.missing(&run, metrics)?, next_row)
        } else {
            let (_, next_row) = self.batch(rows);
            self.announce(next_row)?;
            self.batch(rows)
        };
        self.calls.log(&run, &metrics)?;
        self.position.first = next_row;
        Ok(())
    }

    fn finish(&mut self, ending: &Ending) -> io::Result<()> {
        let has_ended = |ending: &Ending| !matches!(ending, Ending::Done(_));
        if self.position.is_done || self.position.run_id.is_none() && has_ended(ending) {
            return Ok(());
        }
        let run = self.open_run()?;
        let status = match ending {
            Ending::Done(results) => {
                let (step, timestamp) = (self.position.first.saturating_sub(1), now_ms());
                let values = result_values(results).into_iter();
                let metric = |(key, value): (String, f64)| Metric {
                    key: valid_key(&key),
                    value,
                    timestamp,
                    step,
                };
                // Once, whatever was killed after they were sent.
                let missing = self.calls.missing(&run, values.map(metric).collect())?;
                self.calls.log(&run, &missing)?;
                "FINISHED"
            }
            Ending::Stopped => "KILLED",
            Ending::Failed(_) => "FAILED",
        };
        self.calls.set_status(&run, status, Some(now_ms()))?;
        self.position.is_done = matches!(ending, Ending::Done(_));
        self.save()
    }
}

fn now_ms() -> u64 {
    (now() * 1e3) as u64
}
