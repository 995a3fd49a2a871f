//! `render`: job scripts and manifests for one experiment. They are the files of deploy/, with the numbers of this run in
//! their places: workers, how long a stop may take, what that means for whoever sends the signal, and exit codes.

mod data_volume;
mod slurm;

use crate::exit::{EXIT_CONFIG, EXIT_DATA, EXIT_IO, EXIT_NO_PERMISSION, EXIT_STOPPED, EXIT_USAGE, Fatal};
use serde::Deserialize;
use serde_yaml::{Deserializer, Mapping, Value};
use std::time::Duration;
use thanos_configs::{Plan, to_yaml};

pub(crate) use data_volume::{DataMount, DataVolume};
pub(crate) use slurm::{NodeShare, slurm};

/// Between the end of a stop and whoever would end the program: the last messages, the last files.
const BEHIND_GRACE: Duration = Duration::from_secs(30);

/// The Job whose pod reads the raw data.
const COORDINATOR: &str = "thanos-coordinator";
const MANIFESTS: [&str; 4] = [
    include_str!("../../deploy/kubernetes/base/coordinator.yaml"),
    include_str!("../../deploy/kubernetes/base/workers.yaml"),
    include_str!("../../deploy/kubernetes/base/storage.yaml"),
    include_str!("../../deploy/kubernetes/base/network-policy.yaml"),
];

/// The numbers of a run that are not in its plan.
#[derive(Clone, Debug)]
pub(crate) struct Numbers {
    /// Machines of Slurm; pods of workers of Kubernetes.
    pub(crate) nodes: usize,
    /// GPUs on each; 0: it trains on CPUs.
    pub(crate) gpus: usize,
    pub(crate) grace: Duration,
}

impl Numbers {
    /// From the signal to the end by force.
    fn lead(&self) -> u64 {
        (self.grace + BEHIND_GRACE).as_secs()
    }
}

/// Manifests for `kubectl apply`. `data` is the volume with the raw data, if there is one.
///
/// # Errors
/// 64 or 78 if a path of the plan is in no volume of the pods, 74 if the manifests that this program was built with are not those that it knows.
pub(crate) fn kubernetes(
    plan: &Plan,
    image: &str,
    numbers: &Numbers,
    data: Option<&DataVolume>,
) -> Result<String, Fatal> {
    let data = DataMount::of(plan, data)?;
    let unknown = |what: &str| Fatal::new(EXIT_IO, format!("the manifests of this program have no {what}"));
    let mut text = String::new();
    let mut put = |document: &Value| -> Result<(), Fatal> {
        text += "---\n";
        text += &serde_yaml::to_string(document).map_err(|error| Fatal::new(EXIT_IO, error.to_string()))?;
        Ok(())
    };
    let experiment = Mapping::from_iter([("experiment.yaml".into(), to_yaml(plan.config()).into())]);
    let named = Mapping::from_iter([("name".into(), "thanos-experiment".into())]);
    put(&Value::Mapping(Mapping::from_iter([
        ("apiVersion".into(), "v1".into()),
        ("kind".into(), "ConfigMap".into()),
        ("metadata".into(), named.into()),
        ("data".into(), experiment.into()),
    ])))?;
    for file in MANIFESTS {
        for document in Deserializer::from_str(file) {
            let mut document = Value::deserialize(document).map_err(|error| Fatal::new(EXIT_IO, error.to_string()))?;
            if document["kind"] == "Job" {
                job(&mut document, image, numbers).ok_or_else(|| unknown("Job as it knows them"))?;
                if let Some(data) = data.as_ref().filter(|_| document["metadata"]["name"] == COORDINATOR) {
                    data.put_into(&mut document["spec"]["template"]["spec"]).ok_or_else(|| unknown("volumes"))?;
                }
            }
            label(&mut document["metadata"]).ok_or_else(|| unknown("names"))?;
            put(&document)?;
        }
    }
    Ok(text)
}

/// Puts the numbers of a run into a Job; `None`: it has no such places.
fn job(job: &mut Value, image: &str, numbers: &Numbers) -> Option<()> {
    let spec = &mut job["spec"];
    let failures = spec["podFailurePolicy"]["rules"].as_sequence_mut()?;
    let codes = |codes: &[u8]| Value::Sequence(codes.iter().map(|code| u64::from(*code).into()).collect());
    failures[0]["onExitCodes"]["values"] = codes(&[EXIT_USAGE, EXIT_DATA, EXIT_NO_PERMISSION, EXIT_CONFIG]);
    failures[1]["onExitCodes"]["values"] = codes(&[EXIT_STOPPED]);
    let is_workers = spec["completions"].is_number();
    if is_workers {
        (spec["completions"], spec["parallelism"]) = (numbers.nodes.into(), numbers.nodes.into());
    }
    label(&mut spec["template"]["metadata"])?;
    let pod = &mut spec["template"]["spec"];
    pod["terminationGracePeriodSeconds"] = numbers.lead().into();
    let container = pod["containers"].as_sequence_mut()?.first_mut()?;
    container["image"] = image.into();
    for argument in container["args"].as_sequence_mut()? {
        let number = match argument.as_str()? {
            text if text.starts_with("--nodes=") => format!("--nodes={}", numbers.nodes),
            text if text.starts_with("--grace=") => format!("--grace={}s", numbers.grace.as_secs()),
            _ => continue,
        };
        *argument = number.into();
    }
    if is_workers && numbers.gpus > 0 {
        container["resources"]["limits"].as_mapping_mut()?.insert("nvidia.com/gpu".into(), numbers.gpus.into());
        let named = |name: &str, key: &str, value: Value| {
            Value::Mapping(Mapping::from_iter([("name".into(), name.into()), (key.into(), value)]))
        };
        container["volumeMounts"].as_sequence_mut()?.push(named("shm", "mountPath", "/dev/shm".into()));
        let memory = Mapping::from_iter([("medium".into(), "Memory".into()), ("sizeLimit".into(), "1Gi".into())]);
        pod["volumes"].as_sequence_mut()?.push(named("shm", "emptyDir", memory.into()));
    }
    Some(())
}

/// The label that the network policy selects by.
fn label(metadata: &mut Value) -> Option<()> {
    let labels = metadata.as_mapping_mut()?.entry("labels".into()).or_insert_with(|| Mapping::new().into());
    labels.as_mapping_mut()?.insert("app.kubernetes.io/name".into(), "thanos".into());
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(gpus: usize) -> Numbers {
        Numbers { nodes: 3, gpus, grace: Duration::from_secs(200) }
    }

    #[test]
    fn manifests_have_the_numbers_of_their_run() {
        let plan = Plan::from_preset("digits_cae", &[]).expect("valid");
        let text = kubernetes(&plan, "r/thanos:1", &numbers(1), None).expect("known");
        let documents: Vec<Value> =
            Deserializer::from_str(&text).map(|one| Value::deserialize(one).expect("YAML")).collect();
        let job = |name: &str| {
            let is_it = |one: &&Value| one["kind"] == "Job" && one["metadata"]["name"] == name;
            documents.iter().find(is_it).expect(name)["spec"].clone()
        };
        let (coordinator, workers) = (job("thanos-coordinator"), job("thanos-workers"));
        assert_eq!(coordinator["template"]["spec"]["terminationGracePeriodSeconds"], 230);
        let arguments = coordinator["template"]["spec"]["containers"][0]["args"].as_sequence().expect("arguments");
        assert!(arguments.contains(&"--nodes=3".into()) && arguments.contains(&"--grace=200s".into()), "{arguments:?}");
        assert_eq!((&workers["completions"], &workers["parallelism"]), (&3.into(), &3.into()));
        let container = &workers["template"]["spec"]["containers"][0];
        assert_eq!(
            (&container["image"], &container["resources"]["limits"]["nvidia.com/gpu"]),
            (&"r/thanos:1".into(), &1.into())
        );
        let experiment = documents[0]["data"]["experiment.yaml"].as_str().expect("text");
        assert_eq!(Plan::from_file(experiment, "experiment.yaml", &[]).expect("valid").digest(), plan.digest());
    }

    #[test]
    fn raw_data_is_mounted_where_the_coordinator_reads_it() {
        let plan = Plan::from_preset("mnist_cae", &["data.dir=/data".into()]).expect("valid");
        let text =
            kubernetes(&plan, "r/thanos:1", &numbers(0), Some(&DataVolume::Claim("mnist".into()))).expect("known");
        for job in Deserializer::from_str(&text).map(|one| Value::deserialize(one).expect("YAML")) {
            if job["kind"] != "Job" {
                continue;
            }
            let volumes = job["spec"]["template"]["spec"]["volumes"].as_sequence().expect("volumes");
            let has = volumes.iter().any(|volume| volume["persistentVolumeClaim"]["claimName"] == "mnist");
            assert_eq!(has, job["metadata"]["name"] == COORDINATOR, "{volumes:?}");
        }
        assert!(kubernetes(&plan, "r/thanos:1", &numbers(0), None).is_err_and(|fatal| fatal.exit_code == EXIT_USAGE));
    }
}
