//! `render kubernetes`: the manifests of deploy/kubernetes with the name, the numbers and the site
//! of one run. The files are those that kustomize reads: base and components, applied in the order
//! that deploy/kubernetes/README.md gives.

mod merge;
mod name;
mod site;

use super::{DataMount, DataVolume, Numbers};
use crate::exit::{EXIT_IO, EXIT_STOPPED, Fatal, PERMANENT};
use clap::ValueEnum;
use serde::Deserialize;
use serde_yaml::{Deserializer, Mapping, Value};
use std::time::Duration;
use thanos_configs::{Plan, to_yaml};

pub(crate) use name::RunName;
pub(crate) use site::{Memory, Resources, Site, Toleration, node_label};

const BASE: [&str; 4] = [
    include_str!("../../../../deploy/kubernetes/base/coordinator.yaml"),
    include_str!("../../../../deploy/kubernetes/base/workers.yaml"),
    include_str!("../../../../deploy/kubernetes/base/storage.yaml"),
    include_str!("../../../../deploy/kubernetes/base/network-policy.yaml"),
];
const GPU: &str = include_str!("../../../../deploy/kubernetes/components/gpu/workers.yaml");
const SHARED_VOLUME: &str =
    include_str!("../../../../deploy/kubernetes/components/shared-volume/workers.yaml");
const SHARED_CLAIMS: &str =
    include_str!("../../../../deploy/kubernetes/components/shared-volume/claims.yaml");

const JOBSET: &str =
    include_str!("../../../../deploy/kubernetes/components/jobset/copy/jobset.yaml");
const POD_MONITORS: &str =
    include_str!("../../../../deploy/kubernetes/components/monitoring/pod-monitor.yaml");

/// The label that distinguishes the two Jobs, and its values.
const COMPONENT: &str = "app.kubernetes.io/component";
const COORDINATOR: &str = "coordinator";
const WORKER: &str = "worker";
/// Between the end of the workers' grace and SIGKILL from the kubelet: the supervisor ends the pod
/// itself.
const SUPERVISOR_MARGIN: Duration = Duration::from_secs(10);
/// Memory of each worker's NCCL buffers, in GiB.
const SHM_GIB: usize = 1;

/// Which objects start the pods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Api {
    /// One JobSet (jobset.x-k8s.io/v1alpha2), which must be installed in the cluster
    #[default]
    Jobset,
    /// Two Jobs, in any cluster
    Job,
}

/// What is rendered, apart from the plan.
pub(crate) struct Setting<'a> {
    pub(crate) name: RunName,
    pub(crate) image: &'a str,
    pub(crate) api: Api,
    pub(crate) numbers: Numbers,
    /// Of the coordinator's raw data; `None`: the data set is embedded.
    pub(crate) data: Option<&'a DataVolume>,
    pub(crate) site: Site,
}

/// The manifests of this program are not those that it was written for.
struct Unknown(&'static str);

impl From<Unknown> for Fatal {
    fn from(Unknown(what): Unknown) -> Self {
        Self::new(EXIT_IO, format!("the manifests that this program was built with have no {what}"))
    }
}

/// Manifests for `kubectl apply`.
///
/// # Errors
/// 64 or 78 if a path of the plan is in no volume of the pods, 74 if the manifests that this
/// program was built with are not those that it knows.
pub(crate) fn kubernetes(plan: &Plan, setting: &Setting<'_>) -> Result<String, Fatal> {
    let data = DataMount::of(plan, setting.data)?;
    let mut documents = Vec::new();
    for file in BASE {
        documents.extend(parse(file)?);
    }
    documents.push(experiment());
    apply_components(&mut documents, setting)?;
    if setting.api == Api::Jobset {
        documents.extend(parse(JOBSET)?);
    }
    if setting.site.pod_monitors {
        documents.extend(parse(POD_MONITORS)?);
        scrape_workers(&mut documents, setting.numbers.gpus)?;
    }
    // Before anything that the user gives is in them: that keeps its names.
    documents.iter_mut().for_each(|document| setting.name.replace_in(document));
    for document in documents.iter_mut().filter(|document| document["kind"] == "ConfigMap") {
        document["data"]["experiment.yaml"] = to_yaml(plan.config()).into();
    }
    if let Some(data) = &data {
        let pod = &mut job(&mut documents, COORDINATOR)?["spec"]["template"]["spec"];
        data.put_into(pod).ok_or(Unknown("volumes of the coordinator"))?;
    }
    for component in [COORDINATOR, WORKER] {
        let is_worker = component == WORKER;
        set_numbers(job(&mut documents, component)?, is_worker, setting)?;
        setting
            .site
            .put_into(&mut job(&mut documents, component)?["spec"]["template"]["spec"], is_worker);
    }
    if setting.api == Api::Jobset {
        replace_jobs(&mut documents)?;
    }
    setting.site.put_into_storage(&mut documents);
    setting.site.put_into_queue(&mut documents);
    let mut text = String::new();
    for document in documents {
        text += "---\n";
        text += &serde_yaml::to_string(&document)
            .map_err(|error| Fatal::new(EXIT_IO, error.to_string()))?;
    }
    Ok(text)
}

fn parse(file: &str) -> Result<Vec<Value>, Fatal> {
    let documents = Deserializer::from_str(file).map(Value::deserialize);
    documents.collect::<Result<_, _>>().map_err(|error| Fatal::new(EXIT_IO, error.to_string()))
}

/// The components that kustomize would apply as patches.
fn apply_components(documents: &mut [Value], setting: &Setting<'_>) -> Result<(), Fatal> {
    let mut apply = |kind: &str, component: Option<&str>, patch: &str| -> Result<(), Fatal> {
        for patch in parse(patch)? {
            let is_target = |one: &&mut Value| {
                one["kind"] == kind && component.is_none_or(|component| is(one, component))
            };
            documents
                .iter_mut()
                .filter(is_target)
                .for_each(|one| merge::merge(&mut one["spec"], &patch["spec"]));
        }
        Ok(())
    };
    if setting.numbers.gpus > 0 {
        apply("Job", Some(WORKER), GPU)?;
    }
    if setting.site.shared_volume {
        apply("Job", Some(WORKER), SHARED_VOLUME)?;
        apply("PersistentVolumeClaim", None, SHARED_CLAIMS)?;
    }
    Ok(())
}

/// The ConfigMap of the base, which kustomize generates; its content follows.
fn experiment() -> Value {
    let map = |entries: Vec<(&str, Value)>| -> Value {
        Value::Mapping(
            entries.into_iter().map(|(key, value)| (Value::from(key), value)).collect::<Mapping>(),
        )
    };
    let labels = map(vec![
        ("app.kubernetes.io/name", "thanos-trainer".into()),
        ("app.kubernetes.io/instance", name::BASE_NAME.into()),
    ]);
    map(vec![
        ("apiVersion", "v1".into()),
        ("kind", "ConfigMap".into()),
        ("metadata", map(vec![("name", "thanos-experiment".into()), ("labels", labels)])),
        ("data", map(Vec::new())),
    ])
}

fn is(document: &Value, component: &str) -> bool {
    document["metadata"]["labels"][COMPONENT] == component
}

fn job<'a>(documents: &'a mut [Value], component: &str) -> Result<&'a mut Value, Unknown> {
    let found = documents.iter_mut().find(|one| one["kind"] == "Job" && is(one, component));
    found.ok_or(Unknown("Job for coordinator and workers"))
}

/// A PodMonitor sees the ports that it lists: one for each worker of a pod.
fn scrape_workers(documents: &mut [Value], gpus: usize) -> Result<(), Unknown> {
    let is_workers = |one: &&mut Value| {
        one["kind"] == "PodMonitor" && one["spec"]["selector"]["matchLabels"][COMPONENT] == WORKER
    };
    let monitor = documents.iter_mut().find(is_workers).ok_or(Unknown("PodMonitor of workers"))?;
    let endpoints = monitor["spec"]["podMetricsEndpoints"].as_sequence_mut();
    repeat(endpoints.ok_or(Unknown("podMetricsEndpoints"))?, gpus, |endpoint, worker| {
        endpoint["port"] = port_name(worker).into();
    })
}

/// Ports of a pod's workers, which have one after the other: `thanos-worker --status-port`.
fn set_ports(container: &mut Value, gpus: usize) -> Result<(), Unknown> {
    let ports = container["ports"].as_sequence_mut().ok_or(Unknown("ports"))?;
    let first = ports.first().and_then(|port| port["containerPort"].as_u64());
    let first = first.ok_or(Unknown("port of a worker"))?;
    repeat(ports, gpus, |port, worker| {
        port["name"] = port_name(worker).into();
        port["containerPort"] = (first + worker as u64).into();
    })
}

fn port_name(worker: usize) -> String {
    format!("metrics-{worker}")
}

/// The only entry of a list is that of a pod's first worker: adds one for each of the others.
fn repeat(
    entries: &mut Vec<Value>,
    workers: usize,
    change: impl Fn(&mut Value, usize),
) -> Result<(), Unknown> {
    let first = entries.first().ok_or(Unknown("port of a worker"))?.clone();
    entries.extend((1..workers).map(|worker| {
        let mut entry = first.clone();
        change(&mut entry, worker);
        entry
    }));
    Ok(())
}

/// Puts the Jobs into the JobSet that is there already.
fn replace_jobs(documents: &mut Vec<Value>) -> Result<(), Unknown> {
    for (component, replicated) in [(COORDINATOR, "coordinator"), (WORKER, "workers")] {
        let mut spec = job(documents, component)?["spec"].clone();
        // The JobSet counts from its own end.
        spec.as_mapping_mut()
            .ok_or(Unknown("specification of a Job"))?
            .remove("ttlSecondsAfterFinished");
        let jobset =
            documents.iter_mut().find(|one| one["kind"] == "JobSet").ok_or(Unknown("JobSet"))?;
        let jobs =
            jobset["spec"]["replicatedJobs"].as_sequence_mut().ok_or(Unknown("replicatedJobs"))?;
        let entry = jobs
            .iter_mut()
            .find(|one| one["name"] == replicated)
            .ok_or(Unknown("replicated Job"))?;
        entry["template"]["spec"] = spec;
    }
    documents.retain(|one| one["kind"] != "Job");
    Ok(())
}

/// Puts image, exit codes and numbers of a run into one of the two Jobs.
fn set_numbers(job: &mut Value, is_worker: bool, setting: &Setting<'_>) -> Result<(), Unknown> {
    let Numbers { nodes, gpus, grace } = setting.numbers;
    let spec = &mut job["spec"];
    let rules =
        spec["podFailurePolicy"]["rules"].as_sequence_mut().ok_or(Unknown("podFailurePolicy"))?;
    let codes =
        |codes: &[u8]| Value::Sequence(codes.iter().map(|code| u64::from(*code).into()).collect());
    rules[0]["onExitCodes"]["values"] = codes(&PERMANENT);
    rules[1]["onExitCodes"]["values"] = codes(&[EXIT_STOPPED]);
    if is_worker {
        (spec["completions"], spec["parallelism"]) = (nodes.into(), nodes.into());
    }
    let lead = setting.numbers.lead();
    let pod = &mut spec["template"]["spec"];
    pod["terminationGracePeriodSeconds"] = lead.into();
    let workers = gpus.max(1);
    let containers = pod["containers"].as_sequence_mut().ok_or(Unknown("containers"))?;
    let container = containers.first_mut().ok_or(Unknown("container"))?;
    container["image"] = setting.image.into();
    let worker_grace = lead.saturating_sub(SUPERVISOR_MARGIN.as_secs());
    let variables = match is_worker {
        true => vec![("WORKERS", workers.to_string()), ("GRACE", format!("{worker_grace}s"))],
        false => vec![
            ("NODES", nodes.to_string()),
            ("WORKERS_PER_NODE", workers.to_string()),
            ("GRACE", format!("{}s", grace.as_secs())),
        ],
    };
    for (name, value) in variables {
        set_variable(container, name, value)?;
    }
    if is_worker {
        setting.site.resources.put_into(container, gpus)?;
        set_ports(container, gpus)?;
        if gpus > 0 {
            set_shm(pod, gpus)?;
        }
    }
    Ok(())
}

fn set_variable(container: &mut Value, name: &'static str, value: String) -> Result<(), Unknown> {
    let variables = container["env"].as_sequence_mut().ok_or(Unknown("variables"))?;
    let variable = variables.iter_mut().find(|one| one["name"] == name).ok_or(Unknown(name))?;
    variable["value"] = value.into();
    Ok(())
}

fn set_shm(pod: &mut Value, gpus: usize) -> Result<(), Unknown> {
    let volumes = pod["volumes"].as_sequence_mut().ok_or(Unknown("volumes"))?;
    let shm =
        volumes.iter_mut().find(|volume| volume["name"] == "shm").ok_or(Unknown("volume shm"))?;
    shm["emptyDir"]["sizeLimit"] = format!("{}Gi", gpus * SHM_GIB).into();
    Ok(())
}

#[cfg(test)]
mod tests;
