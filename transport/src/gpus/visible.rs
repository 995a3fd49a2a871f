//! `CUDA_VISIBLE_DEVICES`, as the CUDA driver reads it: which of the installed GPUs a process sees,
//! and in which order.

use super::Gpu;

/// The GPUs of a list, up to its first invalid entry (an empty one, `-1` and `NoDevFiles` are
/// invalid); one that is named twice makes the whole list void.
pub(super) fn selected(installed: &[Gpu], list: &str) -> Vec<Gpu> {
    let mut gpus: Vec<Gpu> = Vec::new();
    for entry in list.split(',').map(str::trim) {
        let Some(gpu) = named(installed, entry) else { break };
        if gpus.contains(&gpu) {
            return Vec::new();
        }
        gpus.push(gpu);
        // A process sees one MIG instance at most.
        if entry.starts_with("MIG-") {
            break;
        }
    }
    gpus
}

fn named(installed: &[Gpu], entry: &str) -> Option<Gpu> {
    if let Ok(index) = entry.parse::<usize>() {
        return installed.get(index).cloned();
    }
    if entry.starts_with("MIG-") && !installed.is_empty() {
        return Some(Gpu {
            model: Some("MIG instance".into()),
            uuid: Some(entry.into()),
            ..Gpu::default()
        });
    }
    if !entry.starts_with("GPU-") {
        return None;
    }
    let mut known = installed
        .iter()
        .filter(|gpu| gpu.uuid.as_ref().is_some_and(|uuid| uuid.starts_with(entry)));
    match (known.next(), known.next()) {
        (Some(gpu), None) => Some(gpu.clone()),
        // Where the driver shows no UUID, CUDA knows better.
        (None, _) if installed.iter().any(|gpu| gpu.uuid.is_none()) => {
            Some(Gpu { uuid: Some(entry.into()), ..Gpu::default() })
        }
        _ => None,
    }
}
