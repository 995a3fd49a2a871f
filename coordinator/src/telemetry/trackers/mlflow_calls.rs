//! The calls of MLflow's REST API (mlflow.org/docs/latest/rest-api.html) that a run needs, and how
//! its own client authenticates. It knows nothing of rows.

use super::http_client::{CallError, HttpClient};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io;

/// Metrics of a call; with the longest names and numbers they are fewer than a million bytes.
pub(super) const MAX_METRICS: usize = 1000;
/// Parameters of a call.
const MAX_PARAMS: usize = 100;
const MAX_KEY_BYTES: usize = 250;
const MAX_PARAM_CHARS: usize = 6000;
/// Values of a metric that are read at a time.
const PAGE: &str = "10000";
/// The tag that finds a run again.
const RUN_TAG: &str = "thanos.run_id";
const PREFIX: &str = "/api/2.0/mlflow";

/// A number as MLflow keeps it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Metric {
    pub(super) key: String,
    pub(super) value: f64,
    /// Milliseconds since 1970.
    pub(super) timestamp: u64,
    pub(super) step: u64,
}

/// A run as it is created.
pub(super) struct NewRun {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) start_ms: u64,
    pub(super) tags: Vec<(&'static str, String)>,
}

pub(super) struct Calls(HttpClient);

impl Calls {
    pub(super) fn new(uri: &str, variable: impl Fn(&str) -> Option<String>) -> Self {
        Self(HttpClient::new(uri, authorization(variable).into_iter().collect()))
    }

    /// The id of an experiment, which is created if it does not exist.
    pub(super) fn experiment(&self, name: &str) -> io::Result<String> {
        let found = || self.get("experiments/get-by-name", &[("experiment_name", name)]);
        let id = |answer: &Value, id: &Value| {
            id.as_str().map(str::to_owned).ok_or_else(|| unknown(answer))
        };
        match found() {
            Err(error) if error.is("RESOURCE_DOES_NOT_EXIST") => {}
            answer => {
                let answer = answer.map_err(explained)?;
                return id(&answer, &answer["experiment"]["experiment_id"]);
            }
        }
        match self.post("experiments/create", &json!({"name": name})) {
            // Another run has created it meanwhile.
            Err(error) if error.is("RESOURCE_ALREADY_EXISTS") => {
                let answer = found().map_err(explained)?;
                id(&answer, &answer["experiment"]["experiment_id"])
            }
            answer => {
                let answer = answer.map_err(explained)?;
                id(&answer, &answer["experiment_id"])
            }
        }
    }

    /// MLflow's id of the run that has this tag.
    pub(super) fn search(&self, experiment: &str, run: &str) -> io::Result<Option<String>> {
        let filter = format!("tags.`{RUN_TAG}` = '{run}'");
        let body = json!({"experiment_ids": [experiment], "filter": filter, "max_results": 1});
        let answer = self.post("runs/search", &body).map_err(explained)?;
        Ok(answer["runs"][0]["info"]["run_id"].as_str().map(str::to_owned))
    }

    pub(super) fn create(&self, experiment: &str, run: &NewRun) -> io::Result<String> {
        let id = [(RUN_TAG, run.id.clone())];
        let tags =
            id.iter().chain(&run.tags).map(|(key, value)| json!({"key": key, "value": value}));
        let body = json!({
            "experiment_id": experiment, "run_name": run.name, "start_time": run.start_ms,
            "tags": tags.collect::<Vec<Value>>(),
        });
        let answer = self.post("runs/create", &body).map_err(explained)?;
        let id = answer["run"]["info"]["run_id"].as_str();
        id.map(str::to_owned).ok_or_else(|| unknown(&answer))
    }

    /// Adds the parameters that the run does not have: they cannot be changed.
    pub(super) fn add_params(&self, run: &str, params: &[(String, Value)]) -> io::Result<()> {
        let answer = self.get("runs/get", &[("run_id", run)]).map_err(explained)?;
        let there: BTreeSet<&str> = array(&answer["run"]["data"]["params"])
            .filter_map(|param| param["key"].as_str())
            .collect();
        let params = params.iter().map(|(key, value)| (valid_key(key), param_text(value)));
        let missing: Vec<Value> = params
            .filter(|(key, _)| !there.contains(key.as_str()))
            .map(|(key, value)| json!({"key": key, "value": value}))
            .collect();
        for params in missing.chunks(MAX_PARAMS) {
            self.post("runs/log-batch", &json!({"run_id": run, "params": params}))
                .map_err(explained)?;
        }
        Ok(())
    }

    pub(super) fn log(&self, run: &str, metrics: &[Metric]) -> io::Result<()> {
        for metrics in metrics.chunks(MAX_METRICS) {
            self.post("runs/log-batch", &json!({"run_id": run, "metrics": metrics}))
                .map_err(explained)?;
        }
        Ok(())
    }

    /// Which of these metrics the run does not have.
    pub(super) fn missing(&self, run: &str, metrics: Vec<Metric>) -> io::Result<Vec<Metric>> {
        let keys: BTreeSet<&str> = metrics.iter().map(|metric| metric.key.as_str()).collect();
        let first = metrics.iter().map(|metric| metric.step).min().unwrap_or(0);
        let mut there: BTreeSet<(String, u64)> = BTreeSet::new();
        for key in keys {
            let mut page = String::new();
            loop {
                let query = [
                    ("run_id", run),
                    ("metric_key", key),
                    ("max_results", PAGE),
                    ("page_token", &page),
                ];
                let query = if page.is_empty() { &query[..3] } else { &query };
                let answer = self.get("metrics/get-history", query).map_err(explained)?;
                // A step may be there as a number or, as protobuf writes it, as a text.
                let step = |metric: &Value| {
                    metric["step"].as_u64().or_else(|| metric["step"].as_str()?.parse().ok())
                };
                let steps = array(&answer["metrics"]).map(|metric| step(metric).unwrap_or(0));
                there
                    .extend(steps.filter(|step| *step >= first).map(|step| (key.to_owned(), step)));
                match answer["next_page_token"].as_str() {
                    Some(next) if !next.is_empty() => page = next.into(),
                    _ => break,
                }
            }
        }
        Ok(metrics
            .into_iter()
            .filter(|metric| !there.contains(&(metric.key.clone(), metric.step)))
            .collect())
    }

    /// `end_ms`: only of a run that has ended.
    pub(super) fn set_status(
        &self,
        run: &str,
        status: &str,
        end_ms: Option<u64>,
    ) -> io::Result<()> {
        let body = json!({"run_id": run, "status": status, "end_time": end_ms});
        self.post("runs/update", &body).map(drop).map_err(explained)
    }

    fn get(&self, call: &str, query: &[(&str, &str)]) -> Result<Value, CallError> {
        self.0.get(&format!("{PREFIX}/{call}"), query)
    }

    fn post(&self, call: &str, body: &Value) -> Result<Value, CallError> {
        self.0.post(&format!("{PREFIX}/{call}"), body)
    }
}

/// User name, password and token, as MLflow's own client reads them.
pub(super) const VARIABLES: [&str; 3] =
    ["MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"];

/// The header by which MLflow's client authenticates.
fn authorization(variable: impl Fn(&str) -> Option<String>) -> Option<(&'static str, String)> {
    let value = |name: &str| variable(name).filter(|value| !value.is_empty());
    let [user, password, token] = VARIABLES;
    let user = value(user).zip(value(password));
    let basic = user
        .map(|(user, password)| format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))));
    let authorization = basic.or_else(|| Some(format!("Bearer {}", value(token)?)));
    authorization.map(|value| ("Authorization", value))
}

/// With what a user can do.
fn explained(error: CallError) -> io::Error {
    let hint =
        "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN";
    match error.status() {
        Some(401 | 403) => io::Error::other(format!("{error} ({hint})")),
        _ => error.into(),
    }
}

fn unknown(answer: &Value) -> io::Error {
    io::Error::other(format!("an answer without an id: {answer}"))
}

fn array(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// MLflow takes letters, digits and `_-. :/` in a name.
pub(super) fn valid_key(key: &str) -> String {
    let is_valid =
        |character: char| character.is_ascii_alphanumeric() || "_-. :/".contains(character);
    let valid: String =
        key.chars().map(|character| if is_valid(character) { character } else { '_' }).collect();
    valid.chars().take(MAX_KEY_BYTES).collect()
}

fn param_text(value: &Value) -> String {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    text.chars().take(MAX_PARAM_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_credentials_are_those_of_the_client() {
        let check = |set: &[(&str, &str)], expected: Option<&str>| {
            let variable =
                |name: &str| Some(set.iter().find(|(key, _)| *key == name)?.1.to_owned());
            assert_eq!(
                authorization(variable).map(|(_, value)| value).as_deref(),
                expected,
                "{set:?}"
            );
        };
        let (user, password) =
            (("MLFLOW_TRACKING_USERNAME", "me"), ("MLFLOW_TRACKING_PASSWORD", "secret"));
        let token = ("MLFLOW_TRACKING_TOKEN", "t");
        check(&[], None);
        // Python: `base64.b64encode(b"me:secret")`.
        check(&[user, password, token], Some("Basic bWU6c2VjcmV0"));
        check(&[user, token], Some("Bearer t"));
        check(&[("MLFLOW_TRACKING_TOKEN", "")], None);
    }

    #[test]
    fn names_and_values_are_those_that_mlflow_takes() {
        assert_eq!(valid_key("cae/loss/total (a:b)"), "cae/loss/total _a:b_");
        assert_eq!(valid_key(&"é".repeat(300)), "_".repeat(250));
        assert_eq!(
            [json!("x"), json!(null), json!([1])].map(|value| param_text(&value)),
            ["x", "null", "[1]"]
        );
        // The longest call: names, and numbers of 17 digits with sign and exponent.
        let metric = Metric {
            key: "k".repeat(MAX_KEY_BYTES),
            value: -1.2345678901234567e-300,
            timestamp: u64::MAX,
            step: u64::MAX,
        };
        let body =
            json!({"run_id": "0".repeat(32), "metrics": vec![metric; MAX_METRICS]}).to_string();
        assert!(body.len() < 1_000_000, "{}", body.len());
    }
}
