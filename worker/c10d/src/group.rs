//! `ProcessGroup`: one rank's membership in a group, and the collectives over it.
//! Sums only: an average would hide by how many ranks it was divided.

use crate::device::DeviceEvent;
use crate::error::{Error, ErrorKind, c_string, check};
use crate::raw;
use crate::store::{KeyValueStore, call_store, drop_store, into_raw};
use std::cell::RefCell;
use std::ffi::{c_char, c_void};
use std::ptr;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};
use tch::{Device, TchError, Tensor};

/// Between two checks whether the rendezvous of a group that is being made is over, and how long
/// Gloo may then take to see it.
const OVER_INTERVAL: Duration = Duration::from_millis(250);

/// What Gloo binds to. It is never left to resolve the machine's own name: many resolve to
/// 127.0.1.1.
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
    /// Of an NCCL group; `None`: Gloo.
    gpu: Option<usize>,
    exchanges: RefCell<Exchanges>,
}

/// The exchanges since they were asked for the last time.
#[derive(Default)]
struct Exchanges {
    bytes: u64,
    /// On the host.
    time: Duration,
    /// On the GPU, where a call returns before its kernels have run.
    spans: Vec<(DeviceEvent, DeviceEvent)>,
}

/// What was exchanged by [`ProcessGroup::all_gather`] and [`ProcessGroup::reduce_scatter`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exchanged {
    /// From and to the other ranks.
    pub bytes: u64,
    pub time: Duration,
}

// SAFETY: c10d groups may be moved between threads; they are only used by one at a time, as there
// is no Sync.
unsafe impl Send for ProcessGroup {}

impl ProcessGroup {
    /// Joins a Gloo group of `size` ranks; returns when all have come, or fails after `timeout`, or
    /// soon after the rendezvous is over ([`KeyValueStore::is_over`]).
    ///
    /// Of two ranks one connects and the other waits for it, at no socket that could be shut down:
    /// Gloo waits on a thread of its own, which is left to its timeout then.
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
        let rendezvous = store.clone();
        let create = move || {
            Self::create("gloo", (rank, size), None, |out| {
                // SAFETY: strings and `out` live through the call; the shim owns the store from
                // here on.
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
        };
        until_over(create, rendezvous.as_ref())
    }

    /// Joins an NCCL group whose collectives run on this GPU; [`Self::connect`] makes its
    /// communicator.
    ///
    /// # Errors
    /// Without the feature `cuda`, or without that GPU.
    pub fn nccl(
        store: Arc<dyn KeyValueStore>,
        rank: usize,
        size: usize,
        gpu: usize,
        timeout: Duration,
    ) -> Result<Self, Error> {
        Self::create("nccl", (rank, size), Some(gpu), |out| {
            // SAFETY: `out` lives through the call; the shim owns the store from here on.
            unsafe {
                raw::thanos_nccl_create(
                    into_raw(store),
                    call_store,
                    drop_store,
                    rank as i32,
                    size as i32,
                    gpu as i32,
                    millis(timeout),
                    out,
                )
            }
        })
    }

    /// Makes NCCL's communicator now, not in the first collective: it takes seconds, and blocks
    /// until all ranks are there. A Gloo group is connected when it is made.
    ///
    /// # Errors
    /// A peer that does not come, or two ranks on one GPU.
    pub fn connect(&self) -> Result<(), Error> {
        // SAFETY: the group is alive.
        check("connect", unsafe { raw::thanos_group_connect(self.raw) })
    }

    /// The GPU of an NCCL group.
    pub fn gpu(&self) -> Option<usize> {
        self.gpu
    }

    pub(crate) fn raw(&self) -> *mut raw::Group {
        self.raw
    }

    pub fn rank(&self) -> usize {
        self.rank
    }

    pub fn size(&self) -> usize {
        self.size
    }

    /// Replaces `tensor` by its sum over the ranks. It must be contiguous.
    ///
    /// On NCCL this and the other collectives return when they are launched. Results that are read
    /// on the host, or that change a state, are safe only after [`Self::synchronize`].
    pub fn all_reduce(&self, tensor: &mut Tensor) -> Result<(), Error> {
        // SAFETY: group and tensor are alive; the shim keeps no pointer.
        check("all_reduce", unsafe { raw::thanos_all_reduce(self.raw, tensor_ptr(tensor)) })
    }

    /// The sums of numbers over the ranks, the same on all of them.
    pub fn sum(&self, numbers: &[f64]) -> Result<Vec<f64>, Error> {
        let mut sums = Tensor::from_slice(numbers).to_device(self.device());
        self.all_reduce(&mut sums)?;
        self.read(&sums)
    }

    /// The sums over the ranks of a row [n] f64 on the training device and of numbers of the host,
    /// and then what the ranks hold alike, [m] f64: all of it read at once, as each reading waits
    /// for the device.
    pub fn sum_and_read(
        &self,
        row: &Tensor,
        numbers: &[f64],
        alike: &Tensor,
    ) -> Result<Vec<f64>, Error> {
        if self.size == 1 {
            let mut read: Vec<f64> = self.read(&Tensor::cat(&[row, alike], 0))?;
            let sums = row.size()[0] as usize;
            read.splice(sums..sums, numbers.iter().copied());
            return Ok(read);
        }
        let own = Tensor::from_slice(numbers).to_device(row.device());
        let mut sums = Tensor::cat(&[row, &own], 0);
        self.all_reduce(&mut sums)?;
        self.read(&Tensor::cat(&[&sums, alike], 0))
    }

    /// The numbers of every rank, in rank order.
    pub fn gather(&self, numbers: &[i64]) -> Result<Vec<Vec<i64>>, Error> {
        let own = Tensor::from_slice(numbers).unsqueeze(0).to_device(self.device());
        let all = self.all_gather(&own)?; // [ranks, numbers]
        self.read(&all)
    }

    /// Replaces numbers by those of rank `root`.
    pub fn broadcast_numbers(&self, numbers: &mut [f64], root: usize) -> Result<(), Error> {
        let mut sent = Tensor::from_slice(numbers).to_device(self.device());
        self.broadcast(&mut sent, root)?;
        numbers.copy_from_slice(&self.read::<Vec<f64>>(&sent)?);
        Ok(())
    }

    /// Waits until the collectives that were called are done.
    ///
    /// # Errors
    /// If the group was aborted or NCCL has reported an error. After an abort the kernels of
    /// collectives return as if they were done, with anything in their results: call this before a
    /// result changes a state that outlives the group.
    pub fn synchronize(&self) -> Result<(), Error> {
        // SAFETY: the group is alive.
        check("synchronize", unsafe { raw::thanos_group_synchronize(self.raw) })
    }

    /// The values of a collective's result.
    fn read<T>(&self, result: &Tensor) -> Result<T, Error>
    where
        T: for<'a> TryFrom<&'a Tensor, Error = TchError>,
    {
        // Into pinned memory, so that one wait is for the collectives and for the copy.
        let result = match (result.device(), self.gpu) {
            (Device::Cuda(_), Some(_)) => {
                &result.to_device_(Device::Cpu, result.kind(), true, false)
            }
            _ => result,
        };
        self.synchronize()?;
        T::try_from(result).map_err(|error| Error {
            operation: "read",
            message: error.to_string(),
            kind: ErrorKind::Other,
        })
    }

    /// Where the numbers of [`Self::sum`] and [`Self::gather`] travel.
    fn device(&self) -> Device {
        self.gpu.map_or(Device::Cpu, Device::Cuda)
    }

    /// The `input` of every rank, concatenated in rank order: [n, ...] -> [size * n, ...]. Shapes
    /// must be equal.
    pub fn all_gather(&self, input: &Tensor) -> Result<Tensor, Error> {
        let input = input.detach().contiguous();
        if self.size == 1 {
            return Ok(input.copy());
        }
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
        if self.size == 1 {
            return Ok(input.copy());
        }
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
        // SAFETY: group and tensor are alive; the shim keeps no pointer.
        check("broadcast", unsafe {
            raw::thanos_broadcast(self.raw, tensor_ptr(tensor), root as i32)
        })
    }

    /// Returns when every rank has come here.
    pub fn barrier(&self) -> Result<(), Error> {
        // SAFETY: the group is alive.
        check("barrier", unsafe { raw::thanos_barrier(self.raw) })
    }

    /// The sum over the ranks, in the graph: its backward sums the gradients over the ranks.
    pub fn all_reduce_differentiable(&self, input: &Tensor) -> Result<Tensor, Error> {
        let mut output: *mut c_void = ptr::null_mut();
        // SAFETY: group, tensor and `output` are alive; the graph holds its own reference to the
        // group.
        check("all_reduce", unsafe {
            raw::thanos_all_reduce_differentiable(self.raw, tensor_ptr(input), &raw mut output)
        })?;
        // SAFETY: on success the shim has put a new `at::Tensor` there, which tch frees.
        Ok(unsafe { Tensor::from_ptr(output.cast()) })
    }

    fn create(
        operation: &'static str,
        (rank, size): (usize, usize),
        gpu: Option<usize>,
        make: impl FnOnce(*mut *mut raw::Group) -> *mut c_char,
    ) -> Result<Self, Error> {
        let mut raw = ptr::null_mut();
        check(operation, make(&raw mut raw))?;
        Ok(Self { raw, rank, size, gpu, exchanges: RefCell::default() })
    }

    /// What was exchanged since this was asked for the last time. On NCCL only after
    /// [`Self::synchronize`].
    ///
    /// # Errors
    /// If an exchange has not been reached on the GPU yet.
    pub fn take_exchanged(&self) -> Result<Exchanged, Error> {
        let Exchanges { bytes, time, spans } = self.exchanges.take();
        let on_gpu: Duration =
            spans.iter().map(|(begin, end)| begin.until(end)).sum::<Result<_, _>>()?;
        Ok(Exchanged { bytes, time: if spans.is_empty() { time } else { on_gpu } })
    }

    /// Forgets what was exchanged so far.
    pub fn forget_exchanged(&self) {
        self.exchanges.take();
    }

    /// A call that moves one rank's `part` to or from each of the others.
    fn exchange(
        &self,
        operation: &'static str,
        part: &Tensor,
        body: impl FnOnce() -> *mut c_char,
    ) -> Result<(), Error> {
        let event = || self.gpu.map(|_| DeviceEvent::record()).transpose();
        let (began, begin) = (Instant::now(), event()?);
        let done = check(operation, body());
        let end = event()?;
        let mut exchanges = self.exchanges.borrow_mut();
        exchanges.spans.extend(begin.zip(end));
        exchanges.time += began.elapsed();
        exchanges.bytes +=
            (part.numel() * part.kind().elt_size_in_bytes() * (self.size - 1)) as u64;
        done
    }
}

/// What `create` returns on a thread of its own, unless the rendezvous is over before.
fn until_over(
    create: impl FnOnce() -> Result<ProcessGroup, Error> + Send + 'static,
    rendezvous: &dyn KeyValueStore,
) -> Result<ProcessGroup, Error> {
    let failed = |message: String, kind| Error { operation: "gloo", message, kind };
    let (sender, created) = channel();
    // A group that is not waited for any more is closed there.
    let connect = move || drop(sender.send(create()));
    thread::Builder::new()
        .name("gloo-connect".into())
        .spawn(connect)
        .map_err(|error| failed(format!("no thread to connect: {error}"), ErrorKind::Other))?;
    let mut was_over = false;
    loop {
        match created.recv_timeout(OVER_INTERVAL) {
            Ok(group) => return group,
            Err(RecvTimeoutError::Timeout) if !was_over => was_over = rendezvous.is_over(),
            Err(RecvTimeoutError::Timeout) => {
                let message = "the rendezvous is over, and a peer has not connected";
                return Err(failed(message.into(), ErrorKind::PeerLost));
            }
            Err(RecvTimeoutError::Disconnected) => {
                let message = "the thread that connects has ended";
                return Err(failed(message.into(), ErrorKind::Other));
            }
        }
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
