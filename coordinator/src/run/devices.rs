//! The rules of devices: all workers of a run train on one kind, and a generation's collectives
//! follow from the GPUs that its ranks have.

use super::{Run, SessionId};
use clap::ValueEnum;
use std::collections::{BTreeMap, BTreeSet};
use thanos_proto::{Collectives, Device, DeviceKind, Hello};

/// `--collectives`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum CollectivesChoice {
    /// NCCL if every worker has a GPU of its own, else Gloo
    #[default]
    Auto,
    Gloo,
    Nccl,
}

impl CollectivesChoice {
    /// As it is typed.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Gloo => Collectives::Gloo.label(),
            Self::Nccl => Collectives::Nccl.label(),
        }
    }
}

impl Run {
    /// Why a worker may not take part with its device.
    pub(super) fn device_refusal(&self, hello: &Hello) -> Option<String> {
        let Hello { worker_id: worker, device, .. } = hello;
        let others = self.members.values().map(|member| &member.hello);
        let kind = self.kind.or_else(|| others.clone().next().map(|other| other.device.kind));
        if let Some(kind) = kind.filter(|kind| *kind != device.kind) {
            return Some(format!(
                "worker {worker} trains on {}, the others on {}: all workers of a run need the \
                 same kind of device, as their updates would differ in the last bits and the \
                 replicas would diverge",
                described(device),
                shown(kind)
            ));
        }
        if self.start.collectives != CollectivesChoice::Nccl {
            return None;
        }
        if device.kind == DeviceKind::Cpu {
            return Some(format!(
                "worker {worker} trains on {}: --collectives nccl needs GPUs",
                described(device)
            ));
        }
        let id = device.id.as_ref().filter(|_| !self.start.shares_gpu)?;
        let other = others
            .clone()
            .find(|other| other.host == hello.host && other.device.id.as_ref() == Some(id))?;
        Some(format!(
            "workers {} and {worker} share the GPU {id} ({}) of {}: NCCL needs a GPU for each; use \
             --collectives gloo, or --device cuda:N for tests",
            other.worker_id, device.name, hello.host
        ))
    }

    /// What the ranks of a generation communicate with.
    pub(super) fn collectives(&self, sessions: &[SessionId]) -> Collectives {
        match self.start.collectives {
            CollectivesChoice::Gloo => Collectives::Gloo,
            CollectivesChoice::Nccl => Collectives::Nccl,
            CollectivesChoice::Auto => {
                let hellos: Vec<&Hello> =
                    sessions.iter().map(|session| &self.members[session].hello).collect();
                let on_gpus = hellos.iter().all(|hello| hello.device.kind == DeviceKind::Cuda);
                match on_gpus && places(&hellos).len() == hellos.len() {
                    true => Collectives::Nccl,
                    false => Collectives::Gloo,
                }
            }
        }
    }

    /// The devices of these workers as people read them: `CPU (model)`, or `CUDA (8 x model)`.
    pub(super) fn describe_devices(&self, sessions: &[SessionId]) -> String {
        let hellos: Vec<&Hello> =
            sessions.iter().map(|session| &self.members[session].hello).collect();
        let Some(kind) = hellos.first().map(|hello| hello.device.kind) else {
            return "no device".into();
        };
        let is_shared = kind == DeviceKind::Cuda && places(&hellos).len() < hellos.len();
        let mut models: BTreeMap<&str, BTreeSet<(&str, Option<&str>)>> = BTreeMap::new();
        for hello in &hellos {
            models.entry(&hello.device.name).or_default().insert(place(hello));
        }
        let several = |(model, places): (&&str, &BTreeSet<_>)| match places.len() {
            many if many > 1 && kind == DeviceKind::Cuda => format!("{many} x {model}"),
            _ => (*model).to_owned(),
        };
        let models: Vec<String> = models.iter().map(several).collect();
        format!(
            "{} ({}{})",
            shown(kind),
            models.join(", "),
            if is_shared { ", shared" } else { "" }
        )
    }
}

/// Where the hardware of a worker is: its host, and which GPU there. GPUs of one host that have no
/// id count as one.
fn place(hello: &Hello) -> (&str, Option<&str>) {
    (&hello.host, hello.device.id.as_deref())
}

fn places<'a>(hellos: &[&'a Hello]) -> BTreeSet<(&'a str, Option<&'a str>)> {
    hellos.iter().map(|hello| place(hello)).collect()
}

fn shown(kind: DeviceKind) -> &'static str {
    match kind {
        DeviceKind::Cpu => "CPU",
        DeviceKind::Cuda => "CUDA",
    }
}

fn described(device: &Device) -> String {
    format!("{} ({})", shown(device.kind), device.name)
}

#[cfg(test)]
mod tests;
