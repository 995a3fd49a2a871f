//! The kind of an error of a real Gloo group: lost connections can be made again, and everything
//! else may repeat. The groups of one process share libtorch's flight recorder, which must be off.

use crate::rerun::{NO_RECORDER, has_or_reran};
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use tch::{Kind, Tensor};
use thanos_c10d::{Address, Error, ErrorKind, KeyValueStore, MemoryStore, ProcessGroup};

fn join(
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

/// The rendezvous of a rank that publishes its address and fails before it connects to its peer.
struct Interrupted(Arc<dyn KeyValueStore>);

impl KeyValueStore for Interrupted {
    fn set(&self, key: &str, value: &[u8]) -> Result<(), String> {
        self.0.set(key, value)
    }

    fn get(&self, _: &str, _: Duration) -> Result<Vec<u8>, String> {
        Err("interrupted".into())
    }

    fn add(&self, key: &str, amount: i64) -> Result<i64, String> {
        self.0.add(key, amount)
    }

    fn compare_set(&self, key: &str, expected: &[u8], desired: &[u8]) -> Result<Vec<u8>, String> {
        self.0.compare_set(key, expected, desired)
    }

    fn delete(&self, key: &str) -> Result<bool, String> {
        self.0.delete(key)
    }

    fn check(&self, keys: &[&str]) -> Result<bool, String> {
        self.0.check(keys)
    }

    fn wait(&self, _: &[&str], _: Duration) -> Result<(), String> {
        Err("interrupted".into())
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
    let interrupted: Arc<dyn KeyValueStore> = Arc::new(Interrupted(store.clone()));
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
