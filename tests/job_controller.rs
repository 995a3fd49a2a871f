//! A model of Kubernetes' Job controller, and of JobSet's policies, for the fields that our
//! manifests use: when pods are started and deleted, which failures count, and how a Job ends
//! (kubernetes.io/docs/concepts/workloads/controllers/job). `pods` drives real processes with it.
//! It knows no time: a Job's backoff delays are none here.

use serde_yaml::Value;
use std::collections::{BTreeMap, BTreeSet};

/// How a Job is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum JobState {
    Active,
    Suspended,
    Complete,
    /// The reason of its condition `Failed`.
    Failed(&'static str),
}

/// How a pod has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PodEnd {
    pub(crate) exit_code: i32,
    /// Its condition DisruptionTarget: drained, preempted or evicted. A pod that was only deleted
    /// has none.
    pub(crate) disrupted: bool,
}

/// What the controller does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Order {
    Start {
        index: usize,
    },
    /// SIGTERM, and SIGKILL after terminationGracePeriodSeconds.
    Delete {
        index: usize,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pod {
    Running,
    /// Its deletion was ordered.
    Terminating,
}

/// What a podFailurePolicy says of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    FailJob,
    FailIndex,
    Ignore,
    Count,
}

/// One Job.
pub(crate) struct JobController {
    spec: Value,
    pods: BTreeMap<usize, Pod>,
    succeeded: BTreeSet<usize>,
    failed_indexes: BTreeSet<usize>,
    /// Failures that count, of each index.
    failures: BTreeMap<usize, u64>,
    suspended: bool,
    ended: Option<JobState>,
}

impl JobController {
    /// `spec` is that of a Job.
    pub(crate) fn new(spec: &Value) -> Self {
        assert_eq!(
            spec["template"]["spec"]["restartPolicy"], "Never",
            "a podFailurePolicy requires it"
        );
        assert!(
            spec["backoffLimitPerIndex"].is_null() || spec["completionMode"] == "Indexed",
            "it is for indexed Jobs"
        );
        Self {
            suspended: spec["suspend"] == true,
            spec: spec.clone(),
            pods: BTreeMap::new(),
            succeeded: BTreeSet::new(),
            failed_indexes: BTreeSet::new(),
            failures: BTreeMap::new(),
            ended: None,
        }
    }

    fn number(&self, field: &str) -> Option<u64> {
        self.spec[field].as_u64()
    }

    pub(crate) fn state(&self) -> JobState {
        match &self.ended {
            Some(ended) => ended.clone(),
            None if self.suspended => JobState::Suspended,
            None => JobState::Active,
        }
    }

    /// Failures that count, of all pods.
    pub(crate) fn counted_failures(&self) -> u64 {
        self.failures.values().sum()
    }

    pub(crate) fn set_suspended(&mut self, suspended: bool) {
        self.suspended = suspended;
    }

    /// What is to be done now; it is assumed to be done.
    pub(crate) fn orders(&mut self) -> Vec<Order> {
        if self.suspended || self.ended.is_some() {
            let running = self.pods.iter_mut().filter(|(_, pod)| **pod == Pod::Running);
            return running
                .map(|(index, pod)| {
                    *pod = Pod::Terminating;
                    Order::Delete { index: *index }
                })
                .collect();
        }
        let completions = self.number("completions").unwrap_or(1) as usize;
        let parallelism = self.number("parallelism").unwrap_or(1) as usize;
        let mut orders = Vec::new();
        for index in 0..completions {
            let is_open = !self.succeeded.contains(&index) && !self.failed_indexes.contains(&index);
            if is_open && !self.pods.contains_key(&index) && self.pods.len() < parallelism {
                self.pods.insert(index, Pod::Running);
                orders.push(Order::Start { index });
            }
        }
        orders
    }

    /// A pod has ended, by itself or after its deletion.
    pub(crate) fn pod_ended(&mut self, index: usize, end: PodEnd) {
        let pod = self.pods.remove(&index).expect("it was started");
        // Pods of a suspended Job, or of one that has ended, are not looked at any more.
        if self.ended.is_some() || pod == Pod::Terminating {
            return;
        }
        if end.exit_code == 0 {
            self.succeeded.insert(index);
        } else {
            match self.action(end) {
                Action::FailJob => self.ended = Some(JobState::Failed("PodFailurePolicy")),
                Action::FailIndex => _ = self.failed_indexes.insert(index),
                Action::Ignore => {}
                Action::Count => self.count(index),
            }
        }
        self.end_if_over();
    }

    fn count(&mut self, index: usize) {
        let of_index = self.failures.entry(index).or_default();
        *of_index += 1;
        let of_index = *of_index;
        match self.number("backoffLimitPerIndex") {
            Some(limit) if of_index > limit => _ = self.failed_indexes.insert(index),
            Some(_) => {}
            None if self.counted_failures() > self.number("backoffLimit").unwrap_or(6) => {
                self.ended = Some(JobState::Failed("BackoffLimitExceeded"));
            }
            None => {}
        }
    }

    fn end_if_over(&mut self) {
        if self.ended.is_some() {
            return;
        }
        let completions = self.number("completions").unwrap_or(1) as usize;
        let failed = self.failed_indexes.len();
        if self.number("maxFailedIndexes").is_some_and(|limit| failed as u64 > limit) {
            self.ended = Some(JobState::Failed("MaxFailedIndexesExceeded"));
        } else if self.succeeded.len() + failed == completions {
            self.ended = Some(if failed > 0 {
                JobState::Failed("FailedIndexes")
            } else {
                JobState::Complete
            });
        }
    }

    /// The first rule that matches.
    fn action(&self, end: PodEnd) -> Action {
        let container = &self.spec["template"]["spec"]["containers"][0]["name"];
        let rules = self.spec["podFailurePolicy"]["rules"].as_sequence().into_iter().flatten();
        let matches = |rule: &&Value| {
            let codes = &rule["onExitCodes"];
            if codes.is_null() {
                let conditions =
                    rule["onPodConditions"].as_sequence().expect("a rule has one of both");
                return end.disrupted
                    && conditions.iter().any(|one| one["type"] == "DisruptionTarget");
            }
            let is_listed =
                codes["values"].as_sequence().expect("codes").contains(&end.exit_code.into());
            let is_ours = codes["containerName"].is_null() || codes["containerName"] == *container;
            is_ours && is_listed == (codes["operator"] == "In")
        };
        let action =
            rules.into_iter().find(matches).map(|rule| rule["action"].as_str().expect("an action"));
        match action {
            Some("FailJob") => Action::FailJob,
            Some("FailIndex") => Action::FailIndex,
            Some("Ignore") => Action::Ignore,
            Some("Count") | None => Action::Count,
            Some(other) => panic!("no action `{other}`"),
        }
    }
}

/// What a JobSet does when one of its Jobs has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum JobSetAction {
    /// Nothing: the others continue.
    None,
    Complete,
    Fail,
    /// All Jobs are created again.
    Restart,
}

/// By the policies in `spec`, of a JobSet that was restarted so often before.
pub(crate) fn jobset_action(
    spec: &Value,
    replicated_job: &str,
    state: &JobState,
    restarts: u64,
) -> JobSetAction {
    match state {
        JobState::Active | JobState::Suspended => JobSetAction::None,
        JobState::Complete => {
            let targets =
                spec["successPolicy"]["targetReplicatedJobs"].as_sequence().expect("targets");
            assert_eq!((targets.len(), &spec["successPolicy"]["operator"]), (1, &"All".into()));
            if targets[0] == replicated_job { JobSetAction::Complete } else { JobSetAction::None }
        }
        JobState::Failed(reason) => {
            let rules = spec["failurePolicy"]["rules"].as_sequence().into_iter().flatten();
            let lists = |rule: &Value, field: &str, value: &str| {
                rule[field].as_sequence().is_none_or(|list| list.contains(&value.into()))
            };
            let matches = |rule: &&Value| {
                lists(rule, "onJobFailureReasons", reason)
                    && lists(rule, "targetReplicatedJobs", replicated_job)
            };
            let action = rules
                .into_iter()
                .find(matches)
                .map_or("RestartJobSet", |rule| rule["action"].as_str().expect("one"));
            let may_restart = spec["failurePolicy"]["maxRestarts"].as_u64().unwrap_or(0) > restarts;
            match action {
                "RestartJobSet" if may_restart => JobSetAction::Restart,
                "RestartJobSet" | "FailJobSet" => JobSetAction::Fail,
                other => panic!("no action `{other}`"),
            }
        }
    }
}

fn job(fields: &str) -> JobController {
    let text = format!(
        "{{{fields}, template: {{spec: {{restartPolicy: Never, containers: [{{name: c}}]}}}}, \
        podFailurePolicy: {{rules: [\
         {{action: FailJob, onExitCodes: {{containerName: c, operator: In, values: [78]}}}}, \
         {{action: Ignore, onExitCodes: {{containerName: c, operator: In, values: [75]}}}}, \
         {{action: Ignore, onPodConditions: [{{type: DisruptionTarget, status: 'True'}}]}}]}}}}"
    );
    JobController::new(&serde_yaml::from_str(&text).expect("YAML"))
}

const fn exited(exit_code: i32) -> PodEnd {
    PodEnd { exit_code, disrupted: false }
}

/// Starts what it would, and ends one pod.
fn end(job: &mut JobController, index: usize, end: PodEnd) -> JobState {
    job.orders();
    job.pod_ended(index, end);
    job.state()
}

const INDEXED: &str = "completionMode: Indexed, completions: 2, parallelism: 2";

#[test]
fn a_job_is_complete_when_all_indexes_are() {
    let mut job = job(INDEXED);
    assert_eq!(job.orders(), [Order::Start { index: 0 }, Order::Start { index: 1 }]);
    assert!(job.orders().is_empty());
    assert_eq!(end(&mut job, 1, exited(0)), JobState::Active);
    assert_eq!((job.orders(), end(&mut job, 0, exited(0))), (vec![], JobState::Complete));
}

#[test]
fn stops_and_disruptions_are_not_counted_and_permanent_failures_end_the_job() {
    let mut job = job(&format!("{INDEXED}, backoffLimit: 0"));
    assert_eq!(end(&mut job, 0, exited(75)), JobState::Active);
    assert_eq!(end(&mut job, 1, PodEnd { exit_code: 137, disrupted: true }), JobState::Active);
    assert_eq!((job.counted_failures(), job.orders()), (0, vec![Order::Start { index: 1 }]));
    assert_eq!(end(&mut job, 1, exited(78)), JobState::Failed("PodFailurePolicy"));
    assert_eq!(job.orders(), [Order::Delete { index: 0 }]);
    assert_eq!(end(&mut job, 0, exited(0)), JobState::Failed("PodFailurePolicy"));
}

#[test]
fn failures_are_counted_for_all_or_for_each_index() {
    let mut all = job(&format!("{INDEXED}, backoffLimit: 2"));
    for index in [0, 1] {
        assert_eq!(end(&mut all, index, exited(69)), JobState::Active);
    }
    assert_eq!(end(&mut all, 1, exited(69)), JobState::Failed("BackoffLimitExceeded"));
    let mut each = job(&format!("{INDEXED}, backoffLimitPerIndex: 1, maxFailedIndexes: 0"));
    for index in [0, 1] {
        assert_eq!(end(&mut each, index, exited(69)), JobState::Active);
    }
    assert_eq!(end(&mut each, 1, exited(137)), JobState::Failed("MaxFailedIndexesExceeded"));
    let mut some = job(&format!("{INDEXED}, backoffLimitPerIndex: 0"));
    assert_eq!(end(&mut some, 0, exited(69)), JobState::Active);
    assert_eq!(
        (some.orders(), end(&mut some, 1, exited(0))),
        (vec![], JobState::Failed("FailedIndexes"))
    );
}

#[test]
fn a_suspended_job_has_no_pods_and_counts_none() {
    let mut job = job(&format!("{INDEXED}, backoffLimit: 0, suspend: true"));
    assert_eq!((job.orders(), job.state()), (vec![], JobState::Suspended));
    job.set_suspended(false);
    assert_eq!(job.orders().len(), 2);
    job.set_suspended(true);
    assert_eq!(job.orders(), [Order::Delete { index: 0 }, Order::Delete { index: 1 }]);
    job.pod_ended(0, exited(137));
    job.pod_ended(1, exited(75));
    job.set_suspended(false);
    assert_eq!((job.orders().len(), job.counted_failures()), (2, 0));
}

/// What the model says of the files that users apply.
#[test]
fn the_jobset_of_the_manifests_ends_as_it_should() {
    let file = thanos_tests::root().join("deploy/kubernetes/components/jobset/copy/jobset.yaml");
    let text = std::fs::read_to_string(file).expect("jobset.yaml");
    let spec = serde_yaml::from_str::<Value>(&text).expect("YAML")["spec"].clone();
    let check = |job: &str, state: JobState, restarts, expected| {
        assert_eq!(
            jobset_action(&spec, job, &state, restarts),
            expected,
            "{job} {state:?}, {restarts} restarts"
        );
    };
    check("coordinator", JobState::Complete, 0, JobSetAction::Complete);
    check("workers", JobState::Complete, 0, JobSetAction::None);
    check("workers", JobState::Active, 0, JobSetAction::None);
    for job in ["coordinator", "workers"] {
        check(job, JobState::Failed("PodFailurePolicy"), 0, JobSetAction::Fail);
        check(job, JobState::Failed("BackoffLimitExceeded"), 0, JobSetAction::Restart);
        check(job, JobState::Failed("MaxFailedIndexesExceeded"), 2, JobSetAction::Restart);
        check(job, JobState::Failed("MaxFailedIndexesExceeded"), 3, JobSetAction::Fail);
    }
}
