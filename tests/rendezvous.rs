//! How many calls a generation's rendezvous takes: two a rank, however many ranks there are. Each
//! call is one message to the coordinator, which answers those of all ranks.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;
use thanos_c10d::{Address, KeyValueStore, MemoryStore, ProcessGroup};

/// A store that counts what c10d asks of it.
#[derive(Default)]
struct Counted {
    store: MemoryStore,
    calls: AtomicUsize,
    bytes: AtomicUsize,
}

impl Counted {
    fn count(&self) -> &MemoryStore {
        self.calls.fetch_add(1, Ordering::Relaxed);
        &self.store
    }
}

impl KeyValueStore for Counted {
    fn set(&self, key: &str, value: &[u8]) -> Result<(), String> {
        self.bytes.fetch_max(value.len(), Ordering::Relaxed);
        self.count().set(key, value)
    }

    fn get(&self, key: &str, timeout: Duration) -> Result<Vec<u8>, String> {
        self.count().get(key, timeout)
    }

    fn multi_get(&self, keys: &[&str], timeout: Duration) -> Result<Vec<Vec<u8>>, String> {
        self.count().multi_get(keys, timeout)
    }

    fn add(&self, key: &str, amount: i64) -> Result<i64, String> {
        self.count().add(key, amount)
    }

    fn compare_set(&self, key: &str, expected: &[u8], desired: &[u8]) -> Result<Vec<u8>, String> {
        self.count().compare_set(key, expected, desired)
    }

    fn delete(&self, key: &str) -> Result<bool, String> {
        self.count().delete(key)
    }

    fn check(&self, keys: &[&str]) -> Result<bool, String> {
        self.count().check(keys)
    }

    fn wait(&self, keys: &[&str], timeout: Duration) -> Result<(), String> {
        self.count().wait(keys, timeout)
    }
}

#[test]
fn a_gloo_group_takes_two_calls_a_rank() {
    for world_size in [2, 4, 8] {
        let store = Arc::new(Counted::default());
        let join = |rank| {
            let address = Address::Host("127.0.0.1".into());
            ProcessGroup::gloo(store.clone(), rank, world_size, &address, Duration::from_secs(60))
                .expect("a group")
        };
        let groups: Vec<ProcessGroup> = thread::scope(|scope| {
            let ranks: Vec<_> =
                (0..world_size).map(|rank| scope.spawn(move || join(rank))).collect();
            ranks.into_iter().map(|rank| rank.join().expect("no panic")).collect()
        });
        assert_eq!(groups.len(), world_size);
        assert_eq!(store.calls.load(Ordering::Relaxed), 2 * world_size, "of {world_size} ranks");
        // An address and a host name, without a number for each peer.
        let bytes = store.bytes.load(Ordering::Relaxed);
        assert!(bytes < 400, "{bytes} bytes with {world_size} ranks");
    }
}
