//! What a cluster's administrator decides: queues, priorities, tolerations, node labels, storage
//! classes, pull secrets, and how much of a node a worker takes.

use super::Unknown;
use serde_yaml::{Mapping, Value};

/// The label by which Kueue finds its workloads.
const QUEUE: &str = "kueue.x-k8s.io/queue-name";
/// Of a worker with a GPU, unless the user says otherwise; those of a worker without are in the
/// base.
const GPU_CPUS: usize = 4;
const GPU_MEMORY: Memory = Memory { amount: 16, unit: "Gi" };

/// The site's values.
#[derive(Clone, Debug, Default)]
pub(crate) struct Site {
    /// LocalQueue of Kueue.
    pub(crate) queue: Option<String>,
    pub(crate) priority_class: Option<String>,
    /// Of all pods.
    pub(crate) tolerations: Vec<Toleration>,
    /// Labels of the nodes for the workers' pods.
    pub(crate) node_selector: Vec<(String, String)>,
    pub(crate) storage_class: Option<String>,
    /// The volumes can be mounted by all nodes.
    pub(crate) shared_volume: bool,
    pub(crate) image_pull_secrets: Vec<String>,
    /// With monitors for the Prometheus Operator.
    pub(crate) pod_monitors: bool,
    pub(crate) resources: Resources,
}

/// What each worker gets; `None`: the default.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Resources {
    pub(crate) cpus: Option<u16>,
    pub(crate) memory: Option<Memory>,
}

/// An amount of memory with one of Kubernetes' units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Memory {
    amount: u32,
    unit: &'static str,
}

impl std::str::FromStr for Memory {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let units = ["Mi", "Gi", "Ti", "M", "G", "T"];
        let read = |unit: &&'static str| {
            Some(Self { amount: text.strip_suffix(unit)?.parse().ok()?, unit })
        };
        let memory = units.iter().find_map(read).filter(|memory| memory.amount > 0);
        memory.ok_or_else(|| "expected an amount such as 500Mi or 16Gi".into())
    }
}

impl Memory {
    fn times(self, count: usize) -> String {
        format!("{}{}", u64::from(self.amount) * count as u64, self.unit)
    }
}

/// `key=value:effect`, `key:effect`, `key`, or `:effect` for every taint of this effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Toleration {
    key: Option<String>,
    value: Option<String>,
    effect: Option<String>,
}

impl std::str::FromStr for Toleration {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (taint, effect) =
            text.rsplit_once(':').map_or((text, None), |(taint, effect)| (taint, Some(effect)));
        let (key, value) =
            taint.split_once('=').map_or((taint, None), |(key, value)| (key, Some(value)));
        let is_effect = effect
            .is_none_or(|effect| ["NoSchedule", "PreferNoSchedule", "NoExecute"].contains(&effect));
        if !is_effect
            || key.is_empty() && (value.is_some() || effect.is_none())
            || !is_label(key, value)
        {
            return Err(
                "expected KEY=VALUE:EFFECT, KEY:EFFECT or KEY, where EFFECT is NoSchedule, \
                 PreferNoSchedule or NoExecute"
                    .into(),
            );
        }
        let key = (!key.is_empty()).then(|| key.to_owned());
        Ok(Self { key, value: value.map(Into::into), effect: effect.map(Into::into) })
    }
}

/// `key=value` of a node's label.
///
/// # Errors
/// For the command line.
pub(crate) fn node_label(text: &str) -> Result<(String, String), String> {
    let label =
        text.split_once('=').filter(|(key, value)| !key.is_empty() && is_label(key, Some(value)));
    let (key, value) = label.ok_or("expected a label of nodes, KEY=VALUE")?;
    Ok((key.into(), value.into()))
}

/// Whether these may be key and value of a label or taint; an empty key may.
fn is_label(key: &str, value: Option<&str>) -> bool {
    let is_part = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let is_name = |name: &str| name.len() <= 63 && name.chars().all(is_part);
    let (prefix, name) = key.split_once('/').unwrap_or(("", key));
    prefix.len() <= 253 && prefix.chars().all(is_part) && is_name(name) && value.is_none_or(is_name)
}

fn map(entries: impl IntoIterator<Item = (&'static str, Value)>) -> Value {
    Value::Mapping(
        entries.into_iter().map(|(key, value)| (Value::from(key), value)).collect::<Mapping>(),
    )
}

impl Toleration {
    fn to_value(&self) -> Value {
        let operator = if self.value.is_some() { "Equal" } else { "Exists" };
        let text = |name: &'static str, text: &Option<String>| {
            text.clone().map(|text| (name, Value::from(text)))
        };
        let entries = [
            text("key", &self.key),
            Some(("operator", operator.into())),
            text("value", &self.value),
            text("effect", &self.effect),
        ];
        map(entries.into_iter().flatten())
    }
}

impl Site {
    /// Puts the values into the specification of a pod.
    pub(super) fn put_into(&self, pod: &mut Value, is_worker: bool) {
        if let Some(class) = &self.priority_class {
            pod["priorityClassName"] = class.as_str().into();
        }
        if !self.image_pull_secrets.is_empty() {
            let secrets =
                self.image_pull_secrets.iter().map(|name| map([("name", name.as_str().into())]));
            pod["imagePullSecrets"] = Value::Sequence(secrets.collect());
        }
        if !self.tolerations.is_empty() {
            let before =
                pod.get("tolerations").and_then(Value::as_sequence).cloned().unwrap_or_default();
            let all = before.into_iter().chain(self.tolerations.iter().map(Toleration::to_value));
            pod["tolerations"] = Value::Sequence(all.collect());
        }
        if is_worker && !self.node_selector.is_empty() {
            let labels = self
                .node_selector
                .iter()
                .map(|(key, value)| (key.as_str().into(), value.as_str().into()));
            pod["nodeSelector"] = Value::Mapping(labels.collect());
        }
    }

    /// Puts the storage class into claims.
    pub(super) fn put_into_storage(&self, documents: &mut [Value]) {
        let Some(class) = &self.storage_class else { return };
        for claim in documents.iter_mut().filter(|one| one["kind"] == "PersistentVolumeClaim") {
            claim["spec"]["storageClassName"] = class.as_str().into();
        }
    }

    /// Suspends what starts pods, for Kueue to start it.
    pub(super) fn put_into_queue(&self, documents: &mut [Value]) {
        let Some(queue) = &self.queue else { return };
        for one in
            documents.iter_mut().filter(|one| one["kind"] == "Job" || one["kind"] == "JobSet")
        {
            one["metadata"]["labels"][QUEUE] = queue.as_str().into();
            one["spec"]["suspend"] = true.into();
        }
    }
}

impl Resources {
    /// Sets what a pod with a worker a GPU, or one worker without, gets.
    pub(super) fn put_into(self, container: &mut Value, gpus: usize) -> Result<(), Unknown> {
        let count = gpus.max(1);
        let default_cpus = (gpus > 0).then_some(GPU_CPUS);
        let cpus =
            self.cpus.map(usize::from).or(default_cpus).map(|cpus| (cpus * count).to_string());
        let memory =
            self.memory.or((gpus > 0).then_some(GPU_MEMORY)).map(|memory| memory.times(count));
        for kind in ["requests", "limits"] {
            let resources =
                container["resources"][kind].as_mapping_mut().ok_or(Unknown("resources"))?;
            if let Some(cpus) = &cpus {
                resources.insert("cpu".into(), cpus.as_str().into());
            }
            if let Some(memory) = &memory {
                resources.insert("memory".into(), memory.as_str().into());
            }
            if gpus > 0 {
                resources.insert("nvidia.com/gpu".into(), gpus.into());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tolerations_are_read_and_written() {
        let check = |text: &str, expected: &str| {
            let value = text.parse::<Toleration>().expect(text).to_value();
            assert_eq!(value, serde_yaml::from_str::<Value>(expected).expect("YAML"), "{text}");
        };
        check(
            "gpu=a100:NoSchedule",
            "{key: gpu, operator: Equal, value: a100, effect: NoSchedule}",
        );
        check(
            "nvidia.com/gpu:NoExecute",
            "{key: nvidia.com/gpu, operator: Exists, effect: NoExecute}",
        );
        check("spot", "{key: spot, operator: Exists}");
        check(":NoSchedule", "{operator: Exists, effect: NoSchedule}");
        for text in ["", "a:No", "=b:NoSchedule", "a b", "a=b=c:NoSchedule", ":", "a/b/c"] {
            assert!(text.parse::<Toleration>().is_err(), "{text}");
        }
    }

    #[test]
    fn labels_and_memory_are_checked() {
        assert_eq!(
            node_label("cloud.example/pool=a100"),
            Ok(("cloud.example/pool".into(), "a100".into()))
        );
        for text in ["", "a", "=b", "a=b c", "a/b/c=d"] {
            assert!(node_label(text).is_err(), "{text}");
        }
        assert_eq!("16Gi".parse(), Ok(Memory { amount: 16, unit: "Gi" }));
        for text in ["", "16", "0Gi", "-1Gi", "1.5Gi", "16GB"] {
            assert!(text.parse::<Memory>().is_err(), "{text}");
        }
        assert_eq!("500Mi".parse::<Memory>().map(|memory| memory.times(8)), Ok("4000Mi".into()));
    }
}
