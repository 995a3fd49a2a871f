//! `Breaker`: ends a group's connections from another thread. A rank whose peer is stopped, hung or cut off waits in its
//! collective until the group's timeout, as nothing closes the connection: somebody else has to.

use nix::sys::socket::{Shutdown, getsockopt, shutdown, sockopt};
use std::collections::BTreeMap;
use std::fs::{read_dir, read_link};
use std::os::fd::{BorrowedFd, RawFd};

/// The sockets that a group will open are those that this process has not got yet; libtorch names none of them.
#[derive(Debug)]
pub struct Breaker {
    before: BTreeMap<RawFd, String>,
}

impl Breaker {
    /// Made before the group is: what is open now is not the group's.
    #[allow(clippy::new_without_default, reason = "a breaker is of the moment in which it was made")]
    pub fn new() -> Self {
        Self { before: sockets() }
    }

    /// Shuts down every connection that was opened since: a collective, or a rendezvous, that waits for a peer fails at
    /// once on this rank, and on its peers. Sockets that listen are left alone.
    pub fn break_connections(&self) {
        for (descriptor, socket) in sockets() {
            if self.before.get(&descriptor) != Some(&socket) && !listens(descriptor) {
                // One that is closing already has nothing to be shut down.
                _ = shutdown(descriptor, Shutdown::Both);
            }
        }
    }
}

/// Descriptors and names (`socket:[inode]`) of this process's sockets: a number that is used again has another name.
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
    // SAFETY: only used within this call; should the number be closed meanwhile, the call fails or answers of another
    // socket, and changes nothing.
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
        let breaker = Breaker::new();
        let (_near, mut newer) = connect();
        breaker.break_connections();
        assert_eq!(newer.read(&mut [0]).expect("ended"), 0);
        let nothing_yet = older.read(&mut [0]).expect_err("open, and silent");
        assert_eq!(nothing_yet.kind(), std::io::ErrorKind::WouldBlock);
        connect();
    }
}
