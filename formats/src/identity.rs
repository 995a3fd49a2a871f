//! `run.json`: which run a directory holds, what it is trained on, and what it was started with.
//! Files that were written before a field was added still open. The coordinator writes it; it and
//! the workers read it.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// What the run is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Identity {
    /// Unique to this run: it is in every checkpoint's manifest.
    pub id: String,
    pub preset: String,
    pub seed: u64,
    /// Of the recipe; also in every checkpoint's manifest.
    pub config_digest: String,
    pub version: String,
    /// Started by `launch --quick`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub quick: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<DataIdentity>,
    /// SHA-256 of the file of weights of each backbone that is given by `backbones.N.checkpoint`.
    #[serde(default)]
    pub weights: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_with: Option<StartedWith>,
    /// What resumes have changed, oldest first.
    #[serde(default)]
    pub changes: Vec<RecordedChange>,
}

/// The content of the packs: SHA-256 over header, images and labels as they were decoded, in
/// hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataIdentity {
    pub train: String,
    pub test: String,
    /// SHA-256 over names, lengths and times of the raw files when they were packed: as long as it
    /// is the same, they need not be read again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub raw_stamp: Option<String>,
}

impl DataIdentity {
    /// The first pack whose content is not the other's: its split, what is here, and what is there.
    pub fn difference<'a>(&'a self, other: &'a Self) -> Option<(&'static str, &'a str, &'a str)> {
        let pairs = [("train", &self.train, &other.train), ("test", &self.test, &other.test)];
        pairs
            .into_iter()
            .find(|(_, here, there)| here != there)
            .map(|(split, here, there)| (split, &**here, &**there))
    }
}

/// The size and the launcher of a run: what its resume takes unless options change it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartedWith {
    pub min_nodes: usize,
    pub max_nodes: usize,
    pub workers_per_node: usize,
    /// `None`: the program that starts the workers decides.
    pub threads_per_worker: Option<usize>,
    /// `local`, `srun` or `none`.
    pub launcher: String,
    /// As `--device` and `--collectives` were typed.
    #[serde(default = "auto")]
    pub device: String,
    #[serde(default = "auto")]
    pub collectives: String,
}

/// Under which a change of [`StartedWith::threads_per_worker`] is recorded.
pub const THREADS_OPTION: &str = "--threads-per-worker";

fn auto() -> String {
    "auto".into()
}

/// A key of the configuration, or an option of `launch`, that has another value since a resume.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RecordedChange {
    /// In seconds since 1970.
    pub time: f64,
    pub key: String,
    pub old: Value,
    pub new: Value,
}

impl StartedWith {
    /// What is different in `new`, as options of `launch`: name, old and new value.
    pub fn changes(&self, new: &Self) -> Vec<(&'static str, Value, Value)> {
        let options = |with: &Self| {
            let Self {
                min_nodes,
                max_nodes,
                workers_per_node,
                threads_per_worker,
                launcher,
                device,
                collectives,
            } = with.clone();
            [
                ("--nodes", Value::from(format!("{min_nodes}:{max_nodes}"))),
                ("--workers-per-node", workers_per_node.into()),
                (THREADS_OPTION, threads_per_worker.into()),
                ("--launcher", launcher.into()),
                ("--device", device.into()),
                ("--collectives", collectives.into()),
            ]
        };
        let pairs = options(self).into_iter().zip(options(new));
        pairs
            .filter(|(old, new)| old != new)
            .map(|((name, old), (_, new))| (name, old, new))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_an_earlier_version_opens() {
        let text =
            r#"{"id": "a", "preset": "p", "seed": 3, "config_digest": "d", "version": "0.1.0"}"#;
        let identity: Identity =
            serde_json::from_str(text).expect("it has all that was asked for then");
        let expected = Identity {
            id: "a".into(),
            preset: "p".into(),
            seed: 3,
            config_digest: "d".into(),
            version: "0.1.0".into(),
            ..Identity::default()
        };
        assert_eq!(identity, expected);
    }

    #[test]
    fn another_size_is_named_by_its_option() {
        let with = StartedWith {
            min_nodes: 2,
            max_nodes: 2,
            workers_per_node: 1,
            threads_per_worker: Some(1),
            launcher: "local".into(),
            device: "cuda:0".into(),
            collectives: auto(),
        };
        assert_eq!(with.changes(&with), []);
        let more = StartedWith { max_nodes: 4, threads_per_worker: None, ..with.clone() };
        let expected = [
            ("--nodes", Value::from("2:2"), Value::from("2:4")),
            ("--threads-per-worker", Value::from(1), Value::Null),
        ];
        assert_eq!(with.changes(&more), expected);
        let on_cpus = StartedWith { device: "cpu".into(), ..with.clone() };
        assert_eq!(
            with.changes(&on_cpus),
            [("--device", Value::from("cuda:0"), Value::from("cpu"))]
        );
        let text = r#"{
            "min_nodes": 2, "max_nodes": 2, "workers_per_node": 1, "threads_per_worker": 1,
            "launcher": "local"
        }"#;
        let before: StartedWith =
            serde_json::from_str(text).expect("it has all that was recorded then");
        assert_eq!(before, StartedWith { device: auto(), ..with });
    }
}
