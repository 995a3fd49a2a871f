//! `GroupAborter`: ends a group from another thread. A rank whose peer is stopped, hung or cut off
//! waits in its collective until the group's timeout, as nothing closes the connection. Gloo waits
//! at sockets, which are shut down; so does NCCL while it makes its communicator. Once that is
//! there, its kernels wait for memory of the peer's GPU, which no socket ends: the communicator is
//! aborted.

use crate::error::check;
use crate::group::ProcessGroup;
use crate::raw;
use nix::sys::socket::{Shutdown, getsockopt, shutdown, sockopt};
use std::collections::BTreeMap;
use std::fs::{read_dir, read_link};
use std::os::fd::{BorrowedFd, RawFd};
use std::thread;

/// What is needed to end one group. The sockets that it will open are those that this process has
/// not got yet; libtorch names none of them.
#[derive(Debug)]
pub struct GroupAborter {
    before: BTreeMap<RawFd, String>,
    group: Option<SharedGroup>,
}

impl GroupAborter {
    /// Made before the group is: what is open now is not the group's.
    #[allow(
        clippy::new_without_default,
        reason = "an aborter belongs to the moment in which it was made"
    )]
    pub fn new() -> Self {
        Self { before: sockets(), group: None }
    }

    /// From now on [`Self::abort`] also aborts `group`, which is connected.
    pub fn watch(&mut self, group: &ProcessGroup) {
        self.group = Some(SharedGroup::of(group));
    }

    /// A collective, or a rendezvous, that waits for a peer fails at once on this rank, and on its
    /// peers. Sockets that listen are left alone. It does not block.
    pub fn abort(self) {
        let is_nccl = self.group.as_ref().is_some_and(|group| group.is_nccl);
        if let Some(group) = self.group {
            group.abort();
        }
        if !is_nccl {
            shut_down_since(&self.before);
        }
    }
}

/// A reference of its own to a group, for another thread than the one that owns it.
#[derive(Debug)]
struct SharedGroup {
    raw: *mut raw::Group,
    is_nccl: bool,
}

// SAFETY: the shim's reference count is atomic, and `thanos_group_abort` takes a lock.
unsafe impl Send for SharedGroup {}

impl SharedGroup {
    fn of(group: &ProcessGroup) -> Self {
        // SAFETY: the group is alive; the shim returns a new reference.
        let raw = unsafe { raw::thanos_group_share(group.raw()) };
        Self { raw, is_nccl: group.gpu().is_some() }
    }

    /// NCCL's abort waits for the kernels that run, so it gets a thread of its own.
    fn abort(self) {
        if !self.is_nccl {
            self.abort_here();
            return;
        }
        let spawned =
            thread::Builder::new().name("abort-group".into()).spawn(move || self.abort_here());
        if let Err(error) = spawned {
            tracing::warn!("no thread to abort the group: {error}");
        }
    }

    fn abort_here(&self) {
        // SAFETY: this reference is alive.
        if let Err(error) = check("abort", unsafe { raw::thanos_group_abort(self.raw) }) {
            tracing::warn!("{error}");
        }
    }
}

impl Drop for SharedGroup {
    fn drop(&mut self) {
        // SAFETY: made by `thanos_group_share`, dropped once.
        unsafe { raw::thanos_group_drop(self.raw) }
    }
}

/// Shuts down every connection that was opened since `before`.
fn shut_down_since(before: &BTreeMap<RawFd, String>) {
    for (descriptor, socket) in sockets() {
        if before.get(&descriptor) != Some(&socket) && !listens(descriptor) {
            // One that is closing already has nothing to be shut down.
            _ = shutdown(descriptor, Shutdown::Both);
        }
    }
}

/// Descriptors and names (`socket:[inode]`) of this process's sockets: a number that is used again
/// has another name.
fn sockets() -> BTreeMap<RawFd, String> {
    let entries = read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let socket = |entry: std::fs::DirEntry| {
        let descriptor = entry.file_name().to_str()?.parse().ok()?;
        let name = read_link(entry.path()).ok()?.to_str()?.to_owned();
        name.starts_with("socket:").then_some((descriptor, name))
    };
    entries.filter_map(socket).collect()
}

fn listens(descriptor: RawFd) -> bool {
    // SAFETY: only used within this call; should the number be closed meanwhile, the call fails or
    // answers of another socket, and changes nothing.
    let borrowed = unsafe { BorrowedFd::borrow_raw(descriptor) };
    getsockopt(&borrowed, sockopt::AcceptConn).unwrap_or(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn only_what_was_opened_since_is_shut_down() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let connect = || {
            let near = TcpStream::connect(address).expect("connected");
            let far = listener.accept().expect("accepted").0;
            far.set_nonblocking(true).expect("set");
            (near, far)
        };
        let (_near, mut older) = connect();
        let aborter = GroupAborter::new();
        let (_near, mut newer) = connect();
        aborter.abort();
        assert_eq!(newer.read(&mut [0]).expect("ended"), 0);
        let nothing_yet = older.read(&mut [0]).expect_err("open, and silent");
        assert_eq!(nothing_yet.kind(), std::io::ErrorKind::WouldBlock);
        connect();
    }
}
