//! Finished runs compared: runs of one recipe that differ in their seed are a group, with mean and
//! standard deviation of what each method measured; groups are compared by the keys in which they
//! differ, and by differences paired over seeds. How a comparison is printed is in
//! `comparison/format.rs`.

mod format;
mod statistics;

use crate::exit::Fatal;
use crate::run_dir::results::{Results, Row};
use crate::run_dir::{identity, plan_of_run};
use serde::Serialize;
use serde_json::Value;
use statistics::{Difference, Summary};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use thanos_configs::{Change, Condition, Plan, RunConfig, changes};
use thanos_formats::Identity;

/// Keys in which a group's label says how it differs; more are listed once, beside the table.
const MAX_LABEL_KEYS: usize = 2;

/// A number of a row of the result table.
#[derive(Debug)]
struct Measure {
    /// As in `results.json`.
    name: &'static str,
    /// Above its column.
    title: &'static str,
    decimals: usize,
    /// In percent of images: differences between runs are worth a confidence interval.
    is_accuracy: bool,
}

/// In the order of [`values`].
const MEASURES: [Measure; 6] = [
    Measure { name: "fine_test_accuracy", title: "fine", decimals: 2, is_accuracy: true },
    Measure { name: "coarse_test_accuracy", title: "coarse", decimals: 2, is_accuracy: true },
    Measure { name: "knn_fine_accuracy", title: "kNN", decimals: 2, is_accuracy: true },
    Measure { name: "cosine_within_coarse", title: "cos coarse", decimals: 3, is_accuracy: false },
    Measure { name: "cosine_within_fine", title: "cos fine", decimals: 3, is_accuracy: false },
    Measure { name: "cosine_between_views", title: "cos views", decimals: 3, is_accuracy: false },
];

/// What a row measured; `None`: no class has two test images, or there is no probe.
type Values = [Option<f64>; MEASURES.len()];

fn values(row: &Row) -> Values {
    [
        Some(row.fine_test_accuracy),
        Some(row.coarse_test_accuracy),
        Some(row.knn_fine_accuracy),
        row.cosine_within_coarse,
        row.cosine_within_fine,
        Some(row.cosine_between_views),
    ]
}

/// A run directory with results.
#[derive(Clone, Debug)]
pub(crate) struct RunResults {
    path: PathBuf,
    identity: Identity,
    config: RunConfig,
    results: Results,
}

impl RunResults {
    /// # Errors
    /// 64 if the directory is no run, 65 if it has no results yet or cannot be read.
    pub(crate) fn read(run_dir: &Path) -> Result<Self, Fatal> {
        Ok(Self {
            path: run_dir.into(),
            identity: identity(run_dir)?,
            results: Results::read(run_dir)?,
            config: plan_of_run(run_dir, &[])?.config().clone(),
        })
    }

    pub(crate) fn results(&self) -> &Results {
        &self.results
    }

    /// Whether this run has all results of a plan, so that a launch of it would do nothing.
    pub(crate) fn is_complete(&self, plan: &Plan) -> bool {
        let is_same = differences(&self.config, plan.config()).is_empty()
            && self.config.seed == plan.config().seed;
        is_same && self.results.rows.len() + self.results.backbones.len() == plan.stages().len()
    }

    /// What each method measured; without probes, what each backbone did.
    fn measured(&self) -> Vec<(String, Values)> {
        let Results { rows, backbones, .. } = &self.results;
        if !rows.is_empty() {
            return rows.iter().map(|row| (row.method.clone(), values(row))).collect();
        }
        let of_backbone = backbones.iter().map(|row| {
            let cosines =
                [row.cosine_within_coarse, row.cosine_within_fine, Some(row.cosine_between_views)];
            let accuracies = [None, Some(row.coarse_test_accuracy), Some(row.knn_fine_accuracy)];
            let [fine, coarse, knn] = accuracies;
            let [within_coarse, within_fine, views] = cosines;
            (row.name.clone(), [fine, coarse, knn, within_coarse, within_fine, views])
        });
        of_backbone.collect()
    }

    /// Whether both are the same experiment but for the seed.
    fn is_repetition_of(&self, other: &Self) -> bool {
        differences(&other.config, &self.config).is_empty()
            && self.data() == other.data()
            && self.identity.weights == other.identity.weights
            && self.identity.quick == other.identity.quick
    }

    /// Fingerprint of the training images.
    fn data(&self) -> Option<&str> {
        self.identity.data.as_ref().map(|data| data.train.as_str())
    }
}

/// The keys but for the seed that decide what is computed, and that differ.
fn differences(old: &RunConfig, new: &RunConfig) -> Vec<Change> {
    let decides = |change: &Change| match change.condition {
        None | Some(Condition::NotShorterThanMade) => change.key != "seed",
        // Whether it is the same data and the same weights is known by their content.
        Some(Condition::Nothing | Condition::SameData | Condition::SameWeights) => false,
    };
    changes(old, new).into_iter().filter(decides).collect()
}

/// Several runs in one table.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct RunTable {
    /// A run of `launch --quick` is among them, whose numbers say nothing of the method.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    quick: bool,
    groups: Vec<Group>,
    differing_keys: Vec<DifferingKey>,
    /// Differences over the seeds that both sides have: of each group from the first one, or, of a
    /// single group, of each method from the first one.
    paired_differences: Vec<PairedDifference>,
}

/// Runs of one recipe.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Group {
    label: String,
    preset: String,
    seeds: Vec<u64>,
    run_dirs: Vec<PathBuf>,
    rows: Vec<RowSummary>,
}

/// What a method measured over the runs of a group.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct RowSummary {
    method: String,
    /// By the name of the measure.
    #[serde(flatten)]
    measures: BTreeMap<&'static str, Summary>,
}

/// A key of the configuration, with its value in each group.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct DifferingKey {
    key: String,
    values: Vec<Value>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct PairedDifference {
    of: String,
    minus: String,
    /// The same method in two groups; `None`: `of` and `minus` are methods.
    #[serde(skip_serializing_if = "Option::is_none")]
    method: Option<String>,
    /// By the name of the measure, in percentage points.
    #[serde(flatten)]
    measures: BTreeMap<&'static str, Difference>,
}

impl RunTable {
    /// Groups in the order in which their first runs are named.
    pub(crate) fn new(runs: &[RunResults]) -> Self {
        let mut groups: Vec<Vec<&RunResults>> = Vec::new();
        for run in runs {
            match groups.iter_mut().find(|group| run.is_repetition_of(group[0])) {
                Some(group) => group.push(run),
                None => groups.push(vec![run]),
            }
        }
        groups.iter_mut().for_each(|group| group.sort_by_key(|run| run.identity.seed));
        let firsts: Vec<&RunResults> = groups.iter().map(|group| group[0]).collect();
        let differing_keys = differing_keys(&firsts);
        let labels = labels(&firsts, &differing_keys);
        let paired_differences = match &groups[..] {
            [single] => between_methods(single),
            [first, others @ ..] => {
                let others = others.iter().zip(&labels[1..]);
                others
                    .flat_map(|(other, label)| between_groups((label, other), (&labels[0], first)))
                    .collect()
            }
            [] => Vec::new(),
        };
        let groups =
            groups.iter().zip(labels).map(|(group, label)| Group::new(label, group)).collect();
        let quick = runs.iter().any(|run| run.identity.quick);
        Self { quick, groups, differing_keys, paired_differences }
    }

    pub(crate) fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("plain data is always JSON")
    }
}

impl Group {
    fn new(label: String, runs: &[&RunResults]) -> Self {
        let rows = methods(runs).into_iter().map(|method| {
            let of_seeds = by_seed(runs, &method);
            let summary = |(index, measure): (usize, &Measure)| {
                let values: Vec<f64> =
                    of_seeds.iter().filter_map(|(_, values)| values[index]).collect();
                Some((measure.name, Summary::of(&values)?))
            };
            RowSummary {
                measures: MEASURES.iter().enumerate().filter_map(summary).collect(),
                method,
            }
        });
        Self {
            rows: rows.collect(),
            label,
            preset: runs[0].identity.preset.clone(),
            seeds: runs.iter().map(|run| run.identity.seed).collect(),
            run_dirs: runs.iter().map(|run| run.path.clone()).collect(),
        }
    }
}

/// Every method of these runs, in the order of their tables.
fn methods(runs: &[&RunResults]) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for (method, _) in runs.iter().flat_map(|run| run.measured()) {
        if !found.contains(&method) {
            found.push(method);
        }
    }
    found
}

/// What a method measured in each run that has it, by the seed.
fn by_seed(runs: &[&RunResults], method: &str) -> Vec<(u64, Values)> {
    let of_run = |run: &&RunResults| {
        let row = run.measured().into_iter().find(|(name, _)| name == method);
        row.map(|(_, values)| (run.identity.seed, values))
    };
    runs.iter().filter_map(of_run).collect()
}

/// Differences in accuracy over the seeds that both sides have; of runs of one seed, the first one
/// counts.
fn paired(of: &[(u64, Values)], minus: &[(u64, Values)]) -> BTreeMap<&'static str, Difference> {
    let accuracies = MEASURES.iter().enumerate().filter(|(_, measure)| measure.is_accuracy);
    let difference = |(index, measure): (usize, &Measure)| {
        let by_seed = |side: &[(u64, Values)]| -> BTreeMap<u64, f64> {
            let values =
                side.iter().rev().filter_map(|(seed, values)| Some((*seed, values[index]?)));
            values.collect()
        };
        let (of, minus) = (by_seed(of), by_seed(minus));
        let pairs = of.iter().filter_map(|(seed, value)| Some(value - minus.get(seed)?));
        Some((measure.name, Difference::of(&pairs.collect::<Vec<f64>>())?))
    };
    accuracies.filter_map(difference).collect()
}

fn between_methods(runs: &[&RunResults]) -> Vec<PairedDifference> {
    let methods = methods(runs);
    let [first, others @ ..] = &methods[..] else { return Vec::new() };
    let base = by_seed(runs, first);
    let difference = |method: &String| PairedDifference {
        of: method.clone(),
        minus: first.clone(),
        method: None,
        measures: paired(&by_seed(runs, method), &base),
    };
    others.iter().map(difference).filter(|difference| !difference.measures.is_empty()).collect()
}

/// Of each method that both groups have.
fn between_groups(
    (of, of_runs): (&String, &[&RunResults]),
    (minus, minus_runs): (&String, &[&RunResults]),
) -> Vec<PairedDifference> {
    let difference = |method: String| PairedDifference {
        of: of.clone(),
        minus: minus.clone(),
        measures: paired(&by_seed(of_runs, &method), &by_seed(minus_runs, &method)),
        method: Some(method),
    };
    methods(of_runs)
        .into_iter()
        .map(difference)
        .filter(|difference| !difference.measures.is_empty())
        .collect()
}

/// Keys with another value in any group than in the first one.
fn differing_keys(firsts: &[&RunResults]) -> Vec<DifferingKey> {
    let [base, others @ ..] = firsts else { return Vec::new() };
    let mut keys: Vec<DifferingKey> = Vec::new();
    let mut set = |key: &str, (old, new): (Value, Value), place: usize| {
        let known = keys.iter().position(|known| known.key == key);
        let at = known.unwrap_or_else(|| {
            keys.push(DifferingKey { key: key.into(), values: vec![old; firsts.len()] });
            keys.len() - 1
        });
        keys[at].values[place] = new;
    };
    for (index, other) in others.iter().enumerate() {
        for Change { key, old, new, .. } in differences(&base.config, &other.config) {
            set(&key, (old, new), index + 1);
        }
        let content = [
            ("fingerprint of the training images", base.data().into(), other.data().into()),
            ("files of given weights", digests(base), digests(other)),
            ("--quick", base.identity.quick.into(), other.identity.quick.into()),
        ];
        for (what, old, new) in content.into_iter().filter(|(_, old, new)| old != new) {
            set(what, (old, new), index + 1);
        }
    }
    keys
}

fn digests(run: &RunResults) -> Value {
    serde_json::to_value(&run.identity.weights).expect("plain data is always JSON")
}

/// What distinguishes the groups: their names, else the keys in which they differ, else the paths
/// of their first runs.
fn labels(firsts: &[&RunResults], keys: &[DifferingKey]) -> Vec<String> {
    let is_distinct =
        |labels: &[String]| (1..labels.len()).all(|at| !labels[..at].contains(&labels[at]));
    let names: Vec<String> = firsts.iter().map(|run| run.identity.preset.clone()).collect();
    if is_distinct(&names) {
        return names;
    }
    let of_group = |place: usize| -> String {
        keys.iter()
            .map(|key| format!("{}={}", key.key, shown(&key.values[place])))
            .collect::<Vec<_>>()
            .join(", ")
    };
    let by_keys: Vec<String> = (0..firsts.len()).map(of_group).collect();
    if keys.len() <= MAX_LABEL_KEYS && is_distinct(&by_keys) {
        return by_keys;
    }
    firsts.iter().map(|run| run.path.display().to_string()).collect()
}

/// A value as a person writes it.
fn shown(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests;
