//! Conversions of what a worker trains on, and of the library that its generation's collectives
//! use.

use super::{Malformed, malformed};
use crate::message::{Collectives, Device, DeviceKind, Hello};
use crate::v1;

impl From<Device> for v1::Device {
    fn from(from: Device) -> Self {
        let kind = match from.kind {
            DeviceKind::Cpu => v1::DeviceKind::Cpu,
            DeviceKind::Cuda => v1::DeviceKind::Cuda,
        };
        Self { kind: kind.into(), name: from.name, id: from.id }
    }
}

impl TryFrom<v1::Device> for Device {
    type Error = Malformed;

    fn try_from(from: v1::Device) -> Result<Self, Malformed> {
        let kind = match from.kind() {
            v1::DeviceKind::Cpu => DeviceKind::Cpu,
            v1::DeviceKind::Cuda => DeviceKind::Cuda,
            v1::DeviceKind::Unspecified => {
                return Err(malformed("Device", format!("kind {} is unknown", from.kind)));
            }
        };
        Ok(Self { kind, name: from.name, id: from.id })
    }
}

impl From<Hello> for v1::Hello {
    fn from(from: Hello) -> Self {
        Self {
            worker_id: from.worker_id,
            host: from.host,
            pid: from.pid,
            version: from.version,
            generation: from.generation,
            device: Some(from.device.into()),
        }
    }
}

impl TryFrom<v1::Hello> for Hello {
    type Error = Malformed;

    fn try_from(from: v1::Hello) -> Result<Self, Malformed> {
        Ok(Self {
            worker_id: from.worker_id,
            host: from.host,
            pid: from.pid,
            version: from.version,
            generation: from.generation,
            device: from
                .device
                .ok_or_else(|| malformed("Hello", "it names no device"))?
                .try_into()?,
        })
    }
}

impl From<Collectives> for v1::Collectives {
    fn from(from: Collectives) -> Self {
        match from {
            Collectives::Gloo => Self::Gloo,
            Collectives::Nccl => Self::Nccl,
        }
    }
}

impl TryFrom<v1::Collectives> for Collectives {
    type Error = Malformed;

    fn try_from(from: v1::Collectives) -> Result<Self, Malformed> {
        match from {
            v1::Collectives::Gloo => Ok(Self::Gloo),
            v1::Collectives::Nccl => Ok(Self::Nccl),
            v1::Collectives::Unspecified => Err(malformed("Begin", "its collectives are unknown")),
        }
    }
}
