//! `ProcessGroup`: one rank's membership in a group, and the collectives over it.
//! Sums only: an average would hide by how many ranks it was divided.

use crate::raw;
use crate::store::{KeyValueStore, call_store, drop_store, into_raw};
use std::cell::Cell;
use std::ffi::{CStr, CString, c_char, c_void};
use std::ptr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tch::Tensor;

/// What libtorch said when a collective, or the making of a group, failed: a dead peer, a timeout, a wrong shape.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{operation}: {message}")]
pub struct Error {
    pub operation: &'static str,
    pub message: String,
    pub kind: ErrorKind,
}

/// Whether another group of the same ranks may succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The connection to a peer, or to the rendezvous, was lost, or timed out.
    PeerLost,
    /// Anything else: the same call may fail again in the same way.
    Other,
}

impl Error {
    /// A collective that failed within a backward pass, which libtorch reports as an error of the whole pass.
    pub fn in_backward(message: &str) -> Option<Self> {
        let at = message.find(LOST_IN_BACKWARD)?;
        let first_line = message[at + LOST_IN_BACKWARD.len()..].lines().next().unwrap_or_default();
        Some(Self::parse("all_reduce", first_line))
    }

    /// An error as the shim describes it: its kind, then its message.
    fn parse(operation: &'static str, description: &str) -> Self {
        let (kind, message) = match description.strip_prefix(PEER_LOST) {
            Some(message) => (ErrorKind::PeerLost, message),
            None => (ErrorKind::Other, description.strip_prefix(OTHER_ERROR).unwrap_or(description)),
        };
        Self { operation, message: message.into(), kind }
    }
}

/// As the shim begins its messages.
const PEER_LOST: char = 'P';
const OTHER_ERROR: char = 'O';

/// As the shim begins such a message.
const LOST_IN_BACKWARD: &str = "a collective of the backward pass failed: ";

/// What Gloo binds to. It is never left to resolve the machine's own name: many resolve to 127.0.1.1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    Host(String),
    Interface(String),
}

/// One rank of a group. Every rank must call the same collectives in the same order.
pub struct ProcessGroup {
    raw: *mut raw::Group,
    rank: usize,
    size: usize,
    exchanged: Cell<Exchanged>,
}

/// What was exchanged by [`ProcessGroup::all_gather`] and [`ProcessGroup::reduce_scatter`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exchanged {
    /// From and to the other ranks.
    pub bytes: u64,
    pub time: Duration,
}

// SAFETY: c10d groups may be moved between threads; they are only used by one at a time, as there is no Sync.
unsafe impl Send for ProcessGroup {}

impl ProcessGroup {
    /// Joins a Gloo group of `size` ranks; returns when all have come, or fails after `timeout`.
    pub fn gloo(
        store: Arc<dyn KeyValueStore>,
        rank: usize,
        size: usize,
        address: &Address,
        timeout: Duration,
    ) -> Result<Self, Error> {
        let (host, interface) = match address {
            Address::Host(host) => (host.as_str(), ""),
            Address::Interface(interface) => ("", interface.as_str()),
        };
        let (host, interface) = (c_string("gloo", host)?, c_string("gloo", interface)?);
        Self::create("gloo", rank, size, |out| {
            // SAFETY: strings and `out` live through the call; the shim owns the store from here on.
            unsafe {
                raw::thanos_gloo_create(
                    into_raw(store),
                    call_store,
                    drop_store,
                    rank as i32,
                    size as i32,
                    host.as_ptr(),
                    interface.as_ptr(),
                    millis(timeout),
                    out,
                )
            }
        })
    }

    /// Joins an NCCL group; without the feature `cuda` an error.
    pub fn nccl(store: Arc<dyn KeyValueStore>, rank: usize, size: usize, timeout: Duration) -> Result<Self, Error> {
        Self::create("nccl", rank, size, |out| {
            // SAFETY: `out` lives through the call; the shim owns the store from here on.
            unsafe {
                raw::thanos_nccl_create(
                    into_raw(store),
                    call_store,
                    drop_store,
                    rank as i32,
                    size as i32,
                    millis(timeout),
                    out,
                )
            }
        })
    }

    pub fn rank(&self) -> usize {
        self.rank
    }

    pub fn size(&self) -> usize {
        self.size
    }

    /// Replaces `tensor` by its sum over the ranks. It must be contiguous.
    pub fn all_reduce(&self, tensor: &mut Tensor) -> Result<(), Error> {
        // SAFETY: group and tensor are alive; the shim keeps no pointer.
        self.call("all_reduce", || unsafe { raw::thanos_all_reduce(self.raw, tensor_ptr(tensor)) })
    }

    /// The `input` of every rank, one behind the other: [n, ...] -> [size * n, ...]. Shapes must be equal.
    pub fn all_gather(&self, input: &Tensor) -> Result<Tensor, Error> {
        let input = input.detach().contiguous();
        let mut shape = input.size();
        shape[0] *= self.size as i64;
        let output = Tensor::empty(&shape, (input.kind(), input.device()));
        self.exchange("all_gather", &input, || {
            // SAFETY: group and tensors are alive; the shim keeps no pointer.
            unsafe { raw::thanos_all_gather(self.raw, tensor_ptr(&output), tensor_ptr(&input)) }
        })?;
        Ok(output)
    }

    /// This rank's part of the sum over the ranks: [size * n, ...] -> [n, ...].
    pub fn reduce_scatter(&self, input: &Tensor) -> Result<Tensor, Error> {
        let input = input.detach().contiguous();
        let mut shape = input.size();
        shape[0] /= self.size as i64;
        let output = Tensor::empty(&shape, (input.kind(), input.device()));
        self.exchange("reduce_scatter", &output, || {
            // SAFETY: group and tensors are alive; the shim keeps no pointer.
            unsafe { raw::thanos_reduce_scatter(self.raw, tensor_ptr(&output), tensor_ptr(&input)) }
        })?;
        Ok(output)
    }

    /// Replaces `tensor` by that of rank `root`. It must be contiguous.
    pub fn broadcast(&self, tensor: &mut Tensor, root: usize) -> Result<(), Error> {
        self.call("broadcast", || {
            // SAFETY: group and tensor are alive; the shim keeps no pointer.
            unsafe { raw::thanos_broadcast(self.raw, tensor_ptr(tensor), root as i32) }
        })
    }

    /// Returns when every rank has come here.
    pub fn barrier(&self) -> Result<(), Error> {
        // SAFETY: the group is alive.
        self.call("barrier", || unsafe { raw::thanos_barrier(self.raw) })
    }

    /// The sum over the ranks, in the graph: its backward sums the gradients over the ranks.
    pub fn all_reduce_differentiable(&self, input: &Tensor) -> Result<Tensor, Error> {
        let mut output: *mut c_void = ptr::null_mut();
        self.call("all_reduce", || {
            // SAFETY: group, tensor and `output` are alive; the graph holds its own reference to the group.
            unsafe { raw::thanos_all_reduce_differentiable(self.raw, tensor_ptr(input), &raw mut output) }
        })?;
        // SAFETY: on success the shim has put a new `at::Tensor` there, which tch frees.
        Ok(unsafe { Tensor::from_ptr(output.cast()) })
    }

    fn create(
        operation: &'static str,
        rank: usize,
        size: usize,
        make: impl FnOnce(*mut *mut raw::Group) -> *mut c_char,
    ) -> Result<Self, Error> {
        let mut raw = ptr::null_mut();
        check(operation, make(&raw mut raw))?;
        Ok(Self { raw, rank, size, exchanged: Cell::default() })
    }

    /// What was exchanged since this was asked for the last time.
    pub fn take_exchanged(&self) -> Exchanged {
        self.exchanged.take()
    }

    /// A call that moves one rank's `part` to or from each of the others.
    fn exchange(
        &self,
        operation: &'static str,
        part: &Tensor,
        body: impl FnOnce() -> *mut c_char,
    ) -> Result<(), Error> {
        let began = Instant::now();
        let done = self.call(operation, body);
        let Exchanged { bytes, time } = self.exchanged.get();
        let moved = part.numel() * part.kind().elt_size_in_bytes() * (self.size - 1);
        self.exchanged.set(Exchanged { bytes: bytes + moved as u64, time: time + began.elapsed() });
        done
    }

    fn call(&self, operation: &'static str, body: impl FnOnce() -> *mut c_char) -> Result<(), Error> {
        check(operation, body())
    }
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        // SAFETY: made by `create`, freed once. Graphs hold references of their own.
        unsafe { raw::thanos_group_free(self.raw) }
    }
}

pub(crate) fn tensor_ptr(tensor: &Tensor) -> *mut c_void {
    tensor.as_ptr().cast_mut().cast()
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn c_string(operation: &'static str, text: &str) -> Result<CString, Error> {
    let invalid = |error| Error { operation, message: format!("`{text}`: {error}"), kind: ErrorKind::Other };
    CString::new(text).map_err(invalid)
}

/// Turns the shim's message, if there is one, into an error, and frees it.
pub(crate) fn check(operation: &'static str, message: *mut c_char) -> Result<(), Error> {
    if message.is_null() {
        return Ok(());
    }
    // SAFETY: the shim returns null or a NUL-terminated string from malloc that is ours.
    let text = unsafe { CStr::from_ptr(message) }.to_string_lossy().into_owned();
    // SAFETY: as above; not used again.
    unsafe { raw::free(message.cast()) };
    Err(Error::parse(operation, &text))
}

#[cfg(test)]
mod tests;
