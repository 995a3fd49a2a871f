//! What a GPU needs beside its tensors, and tch does not bind. In a build without the feature
//! `cuda` all of it fails, except for [`set_tf32`] and [`use_interface`], which then change nothing
//! that is used.

use crate::error::{Error, c_string, check};
use crate::raw;
use std::ptr;
use std::time::Duration;

/// Makes a GPU the current one of this thread: pinned memory, streams and events belong to it. What
/// this thread launches goes to a stream of its own. Convolutions give the same bits at every call,
/// for the whole process.
///
/// # Errors
/// If there is no such GPU.
pub fn use_gpu(index: usize) -> Result<(), Error> {
    let gpu = i32::try_from(index).unwrap_or(i32::MAX);
    // SAFETY: it sets a number of this thread.
    check("use_gpu", unsafe { raw::thanos_use_gpu(gpu) })?;
    // SAFETY: it sets flags of libtorch's context.
    unsafe { raw::thanos_be_deterministic() };
    Ok(())
}

/// Whether float32 products and convolutions on GPUs may use TensorFloat-32 (10 bits of mantissa).
/// libtorch allows it in convolutions by default, and not in matrix products. Process-wide.
///
/// # Errors
/// If libtorch refuses the setting.
pub fn set_tf32(allowed: bool) -> Result<(), Error> {
    // SAFETY: it sets two flags of libtorch's context.
    check("set_tf32", unsafe { raw::thanos_set_tf32(allowed) })
}

/// Has NCCL use this network interface, unless the user's environment names one. Call it before
/// other threads run, which might read the environment, and before the first group is made.
///
/// # Errors
/// If the name holds a NUL.
pub fn use_interface(name: &str) -> Result<(), Error> {
    // Without the `=`, `eth1` would also stand for `eth10`.
    let name = c_string("use_interface", &format!("={name}"))?;
    // SAFETY: a NUL-terminated string, copied within the call; no other thread runs, by this
    // function's contract.
    unsafe { raw::thanos_use_interface(name.as_ptr()) };
    Ok(())
}

/// Memory of the current GPU, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpuMemory {
    pub free: u64,
    pub total: u64,
}

/// # Errors
/// Without a GPU.
pub fn gpu_memory() -> Result<GpuMemory, Error> {
    let (mut free, mut total) = (0, 0);
    // SAFETY: two numbers that live through the call.
    check("gpu_memory", unsafe { raw::thanos_gpu_memory(&raw mut free, &raw mut total) })?;
    Ok(GpuMemory { free, total })
}

/// A point on the current GPU's current stream: it is reached when everything launched before is
/// done.
#[derive(Debug)]
pub struct DeviceEvent {
    raw: *mut raw::Event,
}

// SAFETY: CUDA events may be used from any thread; the shim's object is used by one at a time, as
// there is no Sync.
unsafe impl Send for DeviceEvent {}

impl DeviceEvent {
    /// # Errors
    /// Without a GPU, or if an earlier kernel has failed.
    pub fn record() -> Result<Self, Error> {
        let mut event = ptr::null_mut();
        // SAFETY: `event` lives through the call.
        check("event_record", unsafe { raw::thanos_event_record(&raw mut event) })?;
        Ok(Self { raw: event })
    }

    /// Blocks this thread until the point is reached.
    ///
    /// # Errors
    /// If a kernel before it has failed.
    pub fn wait(&self) -> Result<(), Error> {
        // SAFETY: the event is alive.
        check("event_wait", unsafe { raw::thanos_event_wait(self.raw) })
    }

    /// The GPU's time from this point to a later one.
    ///
    /// # Errors
    /// If one of them is not reached yet.
    pub fn until(&self, later: &Self) -> Result<Duration, Error> {
        let mut milliseconds = 0.0;
        // SAFETY: both events are alive, and so is the number.
        check("event_elapsed", unsafe {
            raw::thanos_event_elapsed(self.raw, later.raw, &raw mut milliseconds)
        })?;
        Ok(Duration::try_from_secs_f64(milliseconds / 1e3).unwrap_or_default())
    }
}

impl Drop for DeviceEvent {
    fn drop(&mut self) {
        // SAFETY: made by `record`, freed once.
        unsafe { raw::thanos_event_free(self.raw) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The CPU build's functions are there, and say why they cannot.
    #[cfg(not(feature = "cuda"))]
    #[test]
    fn without_cuda_every_function_says_so() {
        set_tf32(false).expect("a flag");
        for error in [use_gpu(0).err(), gpu_memory().err(), DeviceEvent::record().err()] {
            let error = error.expect("refused").to_string();
            assert!(error.contains("built without CUDA"), "{error}");
        }
    }
}
