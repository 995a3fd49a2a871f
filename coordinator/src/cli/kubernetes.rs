//! `render kubernetes`: its options.

use super::RenderArguments;
use crate::commands::render::{
    Api, DataVolume, Memory, Numbers, Resources, RunName, Setting, Site, Toleration, kubernetes,
    node_label,
};
use crate::exit::Fatal;
use clap::Args;
use thanos_configs::Plan;

#[derive(Args, Debug)]
pub(super) struct KubernetesArguments {
    #[command(flatten)]
    pub(super) arguments: RenderArguments,
    /// The container image of both programs, NAME:TAG or NAME@sha256:DIGEST
    #[arg(long)]
    image: String,
    /// Name of the run in its namespace: of every object, and of its folder on the volume [default:
    /// the experiment's name]
    #[arg(long)]
    name: Option<RunName>,
    /// What starts the pods
    #[arg(long, value_enum, default_value_t)]
    api: Api,
    /// Volume with the raw data, mounted read-only at data.dir in the coordinator's pod: the name
    /// of a PersistentVolumeClaim, or an absolute path of the nodes (a hostPath, which `restricted`
    /// namespaces refuse)
    #[arg(long, value_name = "PVC|/PATH")]
    data: Option<DataVolume>,
    /// CPUs of each worker, requested and at most [default: 4 with a GPU, else 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    cpus: Option<u16>,
    /// Memory of each worker, such as 16Gi, requested and at most [default: 16Gi with a GPU, else
    /// 2Gi to 4Gi]
    #[arg(long, value_name = "AMOUNT")]
    memory: Option<Memory>,
    /// Volumes that all nodes can mount (ReadWriteMany): the workers read packs and write
    /// checkpoints there themselves
    #[arg(long)]
    shared_volume: bool,
    /// Storage class of the volumes [default: the cluster's default class]
    #[arg(long, value_name = "CLASS")]
    storage_class: Option<String>,
    /// LocalQueue of Kueue: the run starts suspended, and Kueue admits it
    #[arg(long, value_name = "QUEUE")]
    queue: Option<String>,
    /// Priority class of the pods
    #[arg(long, value_name = "CLASS")]
    priority_class: Option<String>,
    /// Taint of nodes on which all pods of the run may be scheduled; may be repeated
    #[arg(long = "toleration", value_name = "KEY=VALUE:EFFECT")]
    tolerations: Vec<Toleration>,
    /// Label of the nodes on which the workers run; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = node_label)]
    node_selector: Vec<(String, String)>,
    /// Secret with which the image is pulled; may be repeated
    #[arg(long = "image-pull-secret", value_name = "SECRET")]
    image_pull_secrets: Vec<String>,
    /// Also render PodMonitors of the run, for the Prometheus Operator
    #[arg(long)]
    pod_monitors: bool,
}

impl KubernetesArguments {
    /// The manifests.
    ///
    /// # Errors
    /// As [`kubernetes`].
    pub(super) fn render(&self, plan: &Plan, numbers: Numbers) -> Result<String, Fatal> {
        let name = self.name.clone().unwrap_or_else(|| RunName::of_experiment(&plan.config().name));
        let site = Site {
            queue: self.queue.clone(),
            priority_class: self.priority_class.clone(),
            tolerations: self.tolerations.clone(),
            node_selector: self.node_selector.clone(),
            storage_class: self.storage_class.clone(),
            shared_volume: self.shared_volume,
            image_pull_secrets: self.image_pull_secrets.clone(),
            pod_monitors: self.pod_monitors,
            resources: Resources { cpus: self.cpus, memory: self.memory },
        };
        let setting = Setting {
            name,
            image: &self.image,
            api: self.api,
            numbers,
            data: self.data.as_ref(),
            site,
        };
        kubernetes(plan, &setting)
    }
}
