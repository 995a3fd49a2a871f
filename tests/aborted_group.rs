//! What Gloo does not end when connections are lost ends with the generation all the same: a
//! broadcast whose receiver was killed in the middle of a message, and a rendezvous with a peer
//! that does not connect.

use crate::group_errors::{Rendezvous, join};
use crate::rerun::{OWN_PROCESS, has_or_reran};
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};
use tch::{Device, Kind, Tensor};
use thanos_c10d::{ErrorKind, GroupAborter, KeyValueStore, MemoryStore, ProcessGroup};
use thanos_tests::processes::status_kb;

const TEST: &str = "aborted_group::a_rank_leaves_a_broadcast_whose_receiver_was_killed";
/// The folder of the rendezvous, in the process of rank 1.
const RENDEZVOUS: &str = "THANOS_TEST_RENDEZVOUS";
/// As long as a hang would last.
const GROUP_TIMEOUT: Duration = Duration::from_secs(120);
/// What is broadcast: more than the sockets hold.
const BYTES: i64 = 1 << 30;

/// A rendezvous of several processes: a file a key.
struct Folder(PathBuf);

impl Folder {
    fn path(&self, key: &str) -> PathBuf {
        self.0.join(key.replace('/', "_"))
    }
}

impl KeyValueStore for Folder {
    fn set(&self, key: &str, value: &[u8]) -> Result<(), String> {
        let path = self.path(key);
        let unfinished = path.with_extension("unfinished");
        fs::write(&unfinished, value)
            .and_then(|()| fs::rename(unfinished, path))
            .map_err(|error| error.to_string())
    }

    fn get(&self, key: &str, timeout: Duration) -> Result<Vec<u8>, String> {
        let path = self.path(key);
        let deadline = Instant::now() + timeout;
        loop {
            match fs::read(&path) {
                Ok(value) => return Ok(value),
                Err(_) if Instant::now() < deadline => thread::sleep(Duration::from_millis(5)),
                Err(error) => return Err(format!("{key}: {error}")),
            }
        }
    }

    fn add(&self, _: &str, _: i64) -> Result<i64, String> {
        Err("Gloo's rendezvous does not add".into())
    }

    fn compare_set(&self, _: &str, _: &[u8], _: &[u8]) -> Result<Vec<u8>, String> {
        Err("Gloo's rendezvous does not compare".into())
    }

    fn delete(&self, _: &str) -> Result<bool, String> {
        Err("Gloo's rendezvous does not delete".into())
    }

    fn check(&self, keys: &[&str]) -> Result<bool, String> {
        Ok(keys.iter().all(|key| self.path(key).exists()))
    }

    fn wait(&self, keys: &[&str], timeout: Duration) -> Result<(), String> {
        keys.iter().try_for_each(|key| self.get(key, timeout).map(drop))
    }
}

fn join_at(folder: &Path, rank: usize) -> ProcessGroup {
    let store: Arc<dyn KeyValueStore> = Arc::new(Folder(folder.into()));
    join(&store, rank, GROUP_TIMEOUT).expect("a group")
}

/// Rank 1, until it is killed.
fn receive(folder: &Path) {
    let mut tensor = Tensor::empty([BYTES / 4], (Kind::Float, Device::Cpu));
    _ = join_at(folder, 1).broadcast(&mut tensor, 0);
}

/// The rank that waits for its peer's connection and the one that connects are chosen by their
/// ports: several times, so that both are seen.
#[test]
fn a_rank_leaves_a_rendezvous_whose_peer_does_not_connect() {
    let test = "aborted_group::a_rank_leaves_a_rendezvous_whose_peer_does_not_connect";
    if !has_or_reran(test, OWN_PROCESS) {
        return;
    }
    for _ in 0..8 {
        let store: Arc<dyn KeyValueStore> = Arc::new(MemoryStore::default());
        let interrupted: Arc<dyn KeyValueStore> = Rendezvous::new(&store, true);
        join(&interrupted, 1, GROUP_TIMEOUT).err().expect("it is interrupted");
        let rendezvous = Rendezvous::new(&store, false);
        let waited_at: Arc<dyn KeyValueStore> = rendezvous.clone();
        thread::scope(|scope| {
            let waiting = scope.spawn(|| join(&waited_at, 0, GROUP_TIMEOUT));
            let began = Instant::now();
            rendezvous.is_over.store(true, Ordering::Relaxed);
            let error = waiting.join().expect("no panic").err().expect("its peer does not connect");
            let took = began.elapsed();
            println!("left {took:?} after the end: {error}");
            assert_eq!(error.kind, ErrorKind::PeerLost, "{error}");
            assert!(took < Duration::from_secs(3), "{took:?}");
        });
    }
}

#[test]
fn a_rank_leaves_a_broadcast_whose_receiver_was_killed() {
    if let Some(folder) = env::var_os(RENDEZVOUS) {
        return receive(Path::new(&folder));
    }
    if !has_or_reran(TEST, OWN_PROCESS) {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let this = env::current_exe().expect("the path of this binary");
    let mut peer = Command::new(this)
        .args(["--exact", TEST])
        .env(RENDEZVOUS, folder.path())
        .stdout(Stdio::null())
        .spawn()
        .expect("this binary starts");
    let mut aborter = GroupAborter::new();
    let group = join_at(folder.path(), 0);
    aborter.watch(&group);
    let before_kb = status_kb(peer.id(), "VmRSS");
    let (sender, outcome) = channel();
    thread::spawn(move || {
        let mut tensor = Tensor::ones([BYTES / 4], (Kind::Float, Device::Cpu));
        let error = group.broadcast(&mut tensor, 0).expect_err("its receiver was killed");
        let began = Instant::now();
        drop(group);
        _ = sender.send((error, began.elapsed()));
    });
    // It has received a quarter.
    while status_kb(peer.id(), "VmRSS") < before_kb + BYTES as u64 / 4 / 1024 {
        assert!(peer.try_wait().expect("its state").is_none(), "rank 1 ended by itself");
        thread::sleep(Duration::from_millis(1));
    }
    peer.kill().expect("it is running");
    peer.wait().expect("it has ended");
    let began = Instant::now();
    aborter.abort();
    let (error, drop_took) = outcome
        .recv_timeout(Duration::from_secs(30))
        .expect("the rank leaves the broadcast within 30 s of the abort");
    let took = began.elapsed();
    println!("left {took:?} after the abort, closed within {drop_took:?}: {error}");
    assert_eq!(error.kind, ErrorKind::PeerLost, "{error}");
    assert!(took < Duration::from_secs(3) && drop_took < Duration::from_secs(1));
}
