//! The kind of an error of a real Gloo group: lost connections can be made again, and everything
//! else may repeat. The groups of one process share libtorch's flight recorder, which must be off.

use crate::rerun::{NO_RECORDER, has_or_reran};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;
use tch::{Kind, Tensor};
use thanos_c10d::{Address, Error, ErrorKind, KeyValueStore, MemoryStore, ProcessGroup};

pub(crate) fn join(
    store: &Arc<dyn KeyValueStore>,
    rank: usize,
    timeout: Duration,
) -> Result<ProcessGroup, Error> {
    ProcessGroup::gloo(store.clone(), rank, 2, &Address::Host("127.0.0.1".into()), timeout)
}

/// Both ranks of a group.
fn pair() -> [ProcessGroup; 2] {
    let store: Arc<dyn KeyValueStore> = Arc::new(MemoryStore::default());
    let join = |rank| join(&store, rank, Duration::from_secs(60)).expect("a group");
    thread::scope(|scope| {
        let ranks = [0, 1].map(|rank| scope.spawn(move || join(rank)));
        ranks.map(|rank| rank.join().expect("no panic"))
    })
}

/// The rendezvous of a rank that is interrupted, or gives up.
pub(crate) struct Rendezvous {
    pub(crate) store: Arc<dyn KeyValueStore>,
    /// The rank publishes its address and fails before it connects to its peer.
    pub(crate) is_interrupted: bool,
    pub(crate) is_over: AtomicBool,
}

impl Rendezvous {
    pub(crate) fn new(store: &Arc<dyn KeyValueStore>, is_interrupted: bool) -> Arc<Self> {
        Arc::new(Self { store: store.clone(), is_interrupted, is_over: AtomicBool::new(false) })
    }
}

impl KeyValueStore for Rendezvous {
    fn set(&self, key: &str, value: &[u8]) -> Result<(), String> {
        self.store.set(key, value)
    }

    fn get(&self, key: &str, timeout: Duration) -> Result<Vec<u8>, String> {
        self.wait(&[key], timeout)?;
        self.store.get(key, timeout)
    }

    fn add(&self, key: &str, amount: i64) -> Result<i64, String> {
        self.store.add(key, amount)
    }

    fn compare_set(&self, key: &str, expected: &[u8], desired: &[u8]) -> Result<Vec<u8>, String> {
        self.store.compare_set(key, expected, desired)
    }

    fn delete(&self, key: &str) -> Result<bool, String> {
        self.store.delete(key)
    }

    fn check(&self, keys: &[&str]) -> Result<bool, String> {
        self.store.check(keys)
    }

    fn wait(&self, keys: &[&str], timeout: Duration) -> Result<(), String> {
        match self.is_interrupted {
            true => Err("interrupted".into()),
            false => self.store.wait(keys, timeout),
        }
    }

    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }
}

#[track_caller]
fn check<T>(what: &str, outcome: Result<T, Error>, expected: ErrorKind, part: &str) {
    let error = outcome.err().unwrap_or_else(|| panic!("{what} succeeded"));
    assert_eq!(error.kind, expected, "{what}: {error}");
    assert!(error.message.contains(part), "{what}: no `{part}` in {error}");
}

#[test]
fn the_kind_of_an_error_says_whether_a_connection_was_lost() {
    let test = "group_errors::the_kind_of_an_error_says_whether_a_connection_was_lost";
    if !has_or_reran(test, NO_RECORDER) {
        return;
    }
    let [group, peer] = pair();
    let mut tensor = Tensor::ones([4], (Kind::Float, tch::Device::Cpu));
    check("an invalid root", group.broadcast(&mut tensor, 7), ErrorKind::Other, "root");
    drop(peer);
    check("a peer that left", group.all_reduce(&mut tensor), ErrorKind::PeerLost, "onnection");

    let lonely: Arc<dyn KeyValueStore> = Arc::new(MemoryStore::default());
    check(
        "a missing peer",
        join(&lonely, 0, Duration::from_millis(300)),
        ErrorKind::PeerLost,
        "store: ",
    );
    let store: Arc<dyn KeyValueStore> = Arc::new(MemoryStore::default());
    let interrupted: Arc<dyn KeyValueStore> = Rendezvous::new(&store, true);
    let timeout = Duration::from_secs(2);
    check(
        "a failing rendezvous",
        join(&interrupted, 1, timeout),
        ErrorKind::PeerLost,
        "store: interrupted",
    );
    check("an unreachable peer", join(&store, 0, timeout), ErrorKind::PeerLost, "connectFullMesh");
    let nowhere = Address::Interface("none0".into());
    let nowhere = ProcessGroup::gloo(store, 0, 2, &nowhere, timeout);
    check("an unknown interface", nowhere, ErrorKind::Other, "none0");
}

/// The error passes through libtorch's autograd engine.
#[test]
fn an_error_in_a_backward_pass_keeps_its_kind() {
    if !has_or_reran("group_errors::an_error_in_a_backward_pass_keeps_its_kind", NO_RECORDER) {
        return;
    }
    let forward = |group: &ProcessGroup| {
        let input = Tensor::ones([4], (Kind::Float, tch::Device::Cpu)).set_requires_grad(true);
        group.all_reduce_differentiable(&input).expect("a sum").sum(Kind::Float)
    };
    let backward = |output: &Tensor| {
        let error = output.f_backward().expect_err("its peer is not there").to_string();
        Error::in_backward(&error).map_or(Ok(()), Err)
    };
    let [group, peer] = pair();
    let (peer, sums) = thread::scope(|scope| {
        let other = scope.spawn(move || {
            let sum = forward(&peer);
            (peer, sum)
        });
        let sum = forward(&group);
        let (peer, other) = other.join().expect("no panic");
        (peer, [sum, other])
    });
    drop(peer);
    check("a peer that left", backward(&sums[0]), ErrorKind::PeerLost, "onnection");
    drop(group);
    check("a group that is over", backward(&sums[1]), ErrorKind::Other, "the group is closed");
}
