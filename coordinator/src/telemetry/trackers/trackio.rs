//! trackio (PyPI, 0.43 or newer): rows are sent to `POST /api/bulk_log`. Each has a `log_id`, by
//! which the server ignores what it has, so that what may have arrived is sent again. Its API knows
//! no end of a run.

use super::feed::Row;
use super::http_client::HttpClient;
use super::position::PositionFile;
use super::{Ending, Sink, config_keys, result_values, run_name};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::env;
use std::io;
use std::path::Path;
use thanos_configs::RunConfig;
use thanos_formats::Identity;

/// Entries of a call.
const MAX_ENTRIES: usize = 1000;
/// The servers that Hugging Face runs.
const SPACES: &str = ".hf.space";

pub(super) struct Trackio {
    client: HttpClient,
    file: PositionFile,
    position: Position,
    /// Project, run and its id, as in each entry.
    place: Map<String, Value>,
    run_id: String,
    /// Sent with the first row.
    config: Option<Value>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Position {
    url: String,
    project: String,
    run: String,
    next_row: u64,
}

impl Trackio {
    pub(super) fn open(run_dir: &Path, url: &str, config: &RunConfig, identity: &Identity) -> Self {
        let file = PositionFile::new(run_dir, "trackio");
        let project = &config.log.trackio.project;
        let new = Position {
            url: url.into(),
            project: project.clone(),
            run: identity.id.clone(),
            next_row: 0,
        };
        let found: Option<Position> = file.read();
        let is_same = |found: &Position| Position { next_row: 0, ..found.clone() } == new;
        // The last row again: it may have been evaluated since.
        let next_row = found.filter(is_same).map_or(0, |found| found.next_row.saturating_sub(1));
        // The pages of trackio distinguish runs by their names.
        let name = format!("{} {}", run_name(identity), identity.id);
        let place = [("project", project.clone()), ("run", name), ("run_id", identity.id.clone())];
        Self {
            client: HttpClient::new(url, headers(url, |name| env::var(name).ok())),
            file,
            position: Position { next_row, ..new },
            place: place.into_iter().map(|(key, value)| (key.to_owned(), value.into())).collect(),
            run_id: identity.id.clone(),
            config: Some(Value::Object(config_keys(config).into_iter().collect())),
        }
    }

    /// `part` distinguishes the entries of a row.
    fn entry(&self, (index, part): (u64, &str), metrics: Map<String, Value>) -> Value {
        let mut entry = self.place.clone();
        entry.insert("step".into(), index.into());
        entry.insert("log_id".into(), format!("{}-{index}{part}", self.run_id).into());
        entry.insert("metrics".into(), metrics.into());
        entry.into()
    }

    /// What is measured after a step is an entry of its own, so that it can be sent later.
    fn entries(&self, row: &Row) -> Vec<Value> {
        let stage = &row.step.stage;
        let value = |(name, value): (String, f64)| (format!("{stage}/{name}"), value.into());
        let numbers = [("epoch", row.step.epoch), ("step", row.step.step)];
        let numbers =
            numbers.into_iter().map(|(name, number)| (format!("{stage}/{name}"), number.into()));
        let mut entries = vec![self.entry(
            (row.index, ""),
            numbers.chain(row.step_values().into_iter().map(value)).collect(),
        )];
        for (name, number) in row.later_values() {
            let part = format!("-{name}");
            entries.push(self.entry((row.index, &part), Map::from_iter([value((name, number))])));
        }
        entries
    }

    fn send(&mut self, mut entries: Vec<Value>) -> io::Result<()> {
        let config = self.config.clone();
        if let (Some(Value::Object(first)), Some(config)) = (entries.first_mut(), config) {
            first.insert("config".into(), config);
        }
        let body = json!({"args": [], "kwargs": {"logs": entries, "hf_token": null}});
        self.client.post("/api/bulk_log", &body)?;
        self.config = None;
        Ok(())
    }
}

/// Tokens of Hugging Face and of a server, as trackio's own client reads them.
pub(super) const VARIABLES: [&str; 2] = ["HF_TOKEN", "TRACKIO_WRITE_TOKEN"];

/// As trackio's own client authenticates.
fn headers(url: &str, variable: impl Fn(&str) -> Option<String>) -> Vec<(&'static str, String)> {
    let value = |name: &str| variable(name).filter(|value| !value.is_empty());
    let host = url.split("://").nth(1).unwrap_or("").split(['/', ':']).next().unwrap_or("");
    let [of_space, write] = VARIABLES;
    let of_space = value(of_space).filter(|_| host.to_ascii_lowercase().ends_with(SPACES));
    let space = of_space.map(|token| ("Authorization", format!("Bearer {token}")));
    let write = value(write).map(|token| ("X-Trackio-Write-Token", token));
    space.into_iter().chain(write).collect()
}

impl Sink for Trackio {
    fn name(&self) -> &'static str {
        "trackio"
    }

    fn next_row(&self) -> u64 {
        self.position.next_row
    }

    fn write(&mut self, rows: &[Row]) -> io::Result<()> {
        let (mut entries, mut next_row) = (Vec::new(), self.position.next_row);
        for row in rows {
            let of_row = self.entries(row);
            if !entries.is_empty() && entries.len() + of_row.len() > MAX_ENTRIES {
                break;
            }
            entries.extend(of_row);
            next_row = row.index + 1;
        }
        self.send(entries)?;
        self.position.next_row = next_row;
        self.file.write(&self.position)
    }

    fn finish(&mut self, ending: &Ending) -> io::Result<()> {
        let Ending::Done(results) = ending else { return Ok(()) };
        let values = result_values(results).into_iter().map(|(name, value)| (name, value.into()));
        let last = self.position.next_row.saturating_sub(1);
        self.send(vec![self.entry((last, "-results"), values.collect())])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_goes_to_its_own_server_only() {
        let check = |url: &str, expected: &[(&str, &str)]| {
            let variables = |name: &str| match name {
                "HF_TOKEN" => Some("hf".into()),
                "TRACKIO_WRITE_TOKEN" => Some("write".into()),
                _ => None,
            };
            let headers = headers(url, variables);
            let headers: Vec<(&str, &str)> =
                headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
            assert_eq!(headers, expected, "{url}");
        };
        let write = ("X-Trackio-Write-Token", "write");
        check("http://127.0.0.1:7860", &[write]);
        check("https://me-runs.hf.space/", &[("Authorization", "Bearer hf"), write]);
        check("https://a.example/x.hf.space", &[write]);
        check("https://x.hf.space.example", &[write]);
        assert_eq!(super::headers("http://a", |_| Some(String::new())), []);
    }
}
