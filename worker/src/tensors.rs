//! Tensors by name: how weights and optimiser state are held, compared, flattened and kept in
//! safetensors files. The map is sorted, as tch's own order of variables differs between processes.

use anyhow::{Context, Result, bail};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use tch::kind::Element;
use tch::{Device, Kind, Tensor};
use thanos_c10d::ProcessGroup;
use thanos_configs::{WEIGHTS_METADATA_KEY, hex};

/// Tensors by name, in sorted order.
pub type StateDict = BTreeMap<String, Tensor>;

/// Serialises tensors, copied to the CPU, as one safetensors file, with a record of their network
/// in its metadata.
pub fn to_safetensors(tensors: &StateDict, record: Option<&str>) -> Result<Vec<u8>> {
    let mut stored = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let (dtype, bytes) = bytes(tensor).with_context(|| format!("tensor {name}"))?;
        let shape: Vec<usize> = tensor.size().into_iter().map(|size| size as usize).collect();
        stored.push((name.clone(), dtype, shape, bytes));
    }
    let views = stored
        .iter()
        .map(|(name, dtype, shape, bytes)| {
            Ok((name.clone(), TensorView::new(*dtype, shape.clone(), bytes)?))
        })
        .collect::<Result<Vec<_>>>()?;
    let metadata =
        record.map(|record| HashMap::from([(WEIGHTS_METADATA_KEY.to_owned(), record.to_owned())]));
    Ok(safetensors::serialize(views, metadata)?)
}

/// Reads a safetensors file; every tensor is copied out of `bytes`.
pub fn from_safetensors(bytes: &[u8]) -> Result<StateDict> {
    let file = SafeTensors::deserialize(bytes).context("not a safetensors file")?;
    file.tensors()
        .into_iter()
        .map(|(name, view)| {
            Ok((name.clone(), tensor(&view).with_context(|| format!("tensor {name}"))?))
        })
        .collect()
}

/// The floating-point tensors of a file that any program may have written, each copied out of it;
/// those in half precision as float32. Others are skipped.
pub(crate) fn read_floats(file: &SafeTensors<'_>) -> Result<StateDict> {
    let mut read = StateDict::new();
    for (name, view) in file.tensors() {
        let kind = match view.dtype() {
            Dtype::F16 => Kind::Half,
            Dtype::BF16 => Kind::BFloat16,
            Dtype::F32 => Kind::Float,
            Dtype::F64 => Kind::Double,
            _ => continue,
        };
        let shape: Vec<i64> = view.shape().iter().map(|&size| size as i64).collect();
        let tensor = Tensor::f_from_data_size(view.data(), &shape, kind)
            .with_context(|| format!("tensor {name}"))?;
        let is_half = matches!(kind, Kind::Half | Kind::BFloat16);
        read.insert(name, if is_half { tensor.to_kind(Kind::Float) } else { tensor });
    }
    Ok(read)
}

/// SHA-256 over names, shapes and bytes, in hexadecimal: equal exactly if the tensors are, bit by
/// bit.
pub fn sha256(tensors: &StateDict) -> Result<String> {
    let mut hash = Sha256::new();
    for (name, tensor) in tensors {
        hash.update(format!("{name} {:?}\n", tensor.size()));
        hash.update(bytes(tensor)?.1);
    }
    Ok(hex(&hash.finalize()))
}

/// Copies `source` into the tensors of `target`, by name.
///
/// Every tensor of the target must be there with its shape; names that only the source has are
/// returned.
pub fn copy_into(target: &StateDict, source: &StateDict) -> Result<Vec<String>> {
    for (name, tensor) in target {
        let Some(from) = source.get(name) else { bail!("it has no tensor `{name}`") };
        if from.size() != tensor.size() {
            bail!("`{name}` has shape {:?}, expected {:?}", from.size(), tensor.size());
        }
        tch::no_grad(|| tensor.shallow_clone().copy_(from));
    }
    Ok(source.keys().filter(|name| !target.contains_key(*name)).cloned().collect())
}

/// Numbers as a row on a device. To a GPU they go through pinned memory, so that this thread does
/// not wait for it.
pub(crate) fn upload<T: Element>(numbers: &[T], device: Device) -> Tensor {
    let row = Tensor::from_slice(numbers);
    match device {
        Device::Cuda(_) if !numbers.is_empty() => {
            row.pin_memory(device).to_device_(device, row.kind(), true, false)
        }
        _ => row.to_device(device),
    }
}

/// Deep copies.
pub fn snapshot(tensors: &StateDict) -> StateDict {
    tensors.iter().map(|(name, tensor)| (name.clone(), tensor.detach().copy())).collect()
}

/// Tensors that travel together are on different devices.
#[derive(Debug, PartialEq, thiserror::Error)]
#[error(
    "`{name}` is on {found:?}, `{first}` on {expected:?}: a collective takes tensors of one device"
)]
pub(crate) struct MixedDevices {
    name: String,
    found: Device,
    first: String,
    expected: Device,
}

/// The device that all tensors are on; `None` without any.
///
/// # Errors
/// Names two that differ. Said before a collective: its own error, on every rank, would look like
/// the loss of a peer.
pub(crate) fn common_device<'a>(
    tensors: impl IntoIterator<Item = (&'a String, Device)>,
) -> Result<Option<Device>, MixedDevices> {
    let mut tensors = tensors.into_iter();
    let Some((first, expected)) = tensors.next() else { return Ok(None) };
    match tensors.find(|(_, device)| *device != expected) {
        None => Ok(Some(expected)),
        Some((name, found)) => {
            Err(MixedDevices { name: name.clone(), found, first: first.clone(), expected })
        }
    }
}

/// The devices of tensors, for [`common_device`].
pub(crate) fn devices(tensors: &StateDict) -> impl Iterator<Item = (&String, Device)> {
    tensors.iter().map(|(name, tensor)| (name, tensor.device()))
}

/// Replaces tensors by those of rank `root`, which must have the same names, shapes and kinds: a
/// broadcast a kind.
///
/// # Errors
/// If a peer is lost; [`MixedDevices`].
pub(crate) fn broadcast(tensors: &StateDict, group: &ProcessGroup, root: usize) -> Result<()> {
    common_device(devices(tensors))?;
    for kind in [Kind::Float, Kind::Double, Kind::Int64] {
        let of_kind: Vec<&Tensor> =
            tensors.values().filter(|tensor| tensor.kind() == kind).collect();
        if of_kind.is_empty() {
            continue;
        }
        let parts: Vec<Tensor> = of_kind.iter().map(|tensor| tensor.detach().reshape(-1)).collect();
        let mut row = Tensor::cat(&parts, 0);
        group.broadcast(&mut row, root)?;
        let mut from = 0;
        for tensor in of_kind {
            let len = tensor.numel() as i64;
            let part = row.narrow(0, from, len).view_as(tensor);
            tch::no_grad(|| tensor.shallow_clone().copy_(&part));
            from += len;
        }
    }
    Ok(())
}

fn bytes(tensor: &Tensor) -> Result<(Dtype, Vec<u8>)> {
    let tensor = tensor.detach().to_device(Device::Cpu).contiguous();
    let (dtype, width) = match tensor.kind() {
        Kind::Float => (Dtype::F32, 4),
        Kind::Double => (Dtype::F64, 8),
        Kind::Int64 => (Dtype::I64, 8),
        Kind::Uint8 => (Dtype::U8, 1),
        other => bail!("{other:?} is not stored in checkpoints"),
    };
    let mut bytes = vec![0; tensor.numel() * width];
    tensor.f_copy_data_u8(&mut bytes, tensor.numel())?;
    Ok((dtype, bytes))
}

fn tensor(view: &TensorView<'_>) -> Result<Tensor> {
    let kind = match view.dtype() {
        Dtype::F32 => Kind::Float,
        Dtype::F64 => Kind::Double,
        Dtype::I64 => Kind::Int64,
        Dtype::U8 => Kind::Uint8,
        other => bail!("{other:?} is not one of F32, F64, I64, U8"),
    };
    let shape: Vec<i64> = view.shape().iter().map(|&size| size as i64).collect();
    Ok(Tensor::f_from_data_size(view.data(), &shape, kind)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_of_two_devices_are_refused_by_name() {
        let names: Vec<String> = ["exp_avg/w", "exp_avg_sq/w", "step"].map(String::from).to_vec();
        let on = |devices: [Device; 3]| common_device(names.iter().zip(devices));
        let gpu = Device::Cuda(0);
        assert_eq!(on([gpu; 3]), Ok(Some(gpu)));
        assert_eq!(common_device([]), Ok(None));
        let mixed = on([gpu, gpu, Device::Cpu])
            .expect_err("the optimizer's step is on the CPU")
            .to_string();
        assert!(mixed.starts_with("`step` is on Cpu, `exp_avg/w` on Cuda(0)"), "{mixed}");
    }
}
