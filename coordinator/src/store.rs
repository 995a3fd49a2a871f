//! The rendezvous: a key-value store for each generation, through which the ranks' process groups find each other.
//! Only the newest generation has one: a stale worker cannot touch it.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use thanos_proto::v1::store_request::Operation;
use thanos_proto::v1::{StoreReply, StoreRequest};
use tokio::sync::Notify;
use tokio::time::Instant;

/// Keys, and bytes of a value: c10d needs a few dozen keys a rank, each of a few hundred bytes.
const MOST_KEYS: usize = 1 << 16;
const MOST_VALUE: usize = 1 << 20;
/// The longest that one call may wait for a key.
const MOST_WAIT: Duration = Duration::from_secs(600);

/// Why an operation was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("this is generation {current}; generation {asked} is over")]
    Stale { asked: u64, current: u64 },
    #[error("{keys:?} did not come within {waited:?}")]
    Timeout { keys: Vec<String>, waited: Duration },
    #[error("{0}")]
    Invalid(String),
}

/// The store of the newest generation.
#[derive(Default)]
pub(crate) struct Store {
    inner: Mutex<Inner>,
    changed: Notify,
}

#[derive(Default)]
struct Inner {
    generation: u64,
    values: HashMap<String, Vec<u8>>,
}

impl Store {
    /// Starts an empty store for a new generation; calls that wait in an older one fail.
    pub(crate) fn open(&self, generation: u64) {
        *self.lock() = Inner { generation, values: HashMap::new() };
        self.changed.notify_waiters();
    }

    /// Answers one operation; a `get` waits until all its keys are there, at most as long as it says.
    pub(crate) async fn answer(&self, request: StoreRequest) -> Result<StoreReply, Refusal> {
        let operation = request.operation.ok_or_else(|| Refusal::Invalid("it asks for nothing".into()))?;
        if let Operation::Get(get) = operation {
            let wait = Duration::from_millis(get.wait_ms).min(MOST_WAIT);
            return self.get(request.generation, get.keys, wait).await;
        }
        let reply = self.change(request.generation, operation)?;
        self.changed.notify_waiters();
        Ok(reply)
    }

    /// Whether this is the newest generation.
    pub(crate) fn is_current(&self, generation: u64) -> bool {
        self.current(generation).is_ok()
    }

    async fn get(&self, generation: u64, keys: Vec<String>, wait: Duration) -> Result<StoreReply, Refusal> {
        let deadline = Instant::now() + wait;
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Registered before the look: a change between the look and the wait is not missed.
            changed.as_mut().enable();
            {
                let inner = self.current(generation)?;
                let values: Option<Vec<Vec<u8>>> = keys.iter().map(|key| inner.values.get(key).cloned()).collect();
                if let Some(values) = values {
                    return Ok(StoreReply { values, number: 0 });
                }
            }
            if tokio::time::timeout_at(deadline, changed).await.is_err() {
                return Err(Refusal::Timeout { keys, waited: wait });
            }
        }
    }

    fn change(&self, generation: u64, operation: Operation) -> Result<StoreReply, Refusal> {
        let mut inner = self.current(generation)?;
        let values = &mut inner.values;
        let number = |number: i64| StoreReply { values: Vec::new(), number };
        match operation {
            Operation::Set(set) => insert(values, set.key, set.value).map(|()| number(0)),
            Operation::Add(add) => {
                let held = values.get(&add.key).map_or(Ok(0), |text| String::from_utf8_lossy(text).parse::<i64>());
                let held = held.map_err(|_| Refusal::Invalid(format!("`{}` holds no number", add.key)))?;
                let sum = held.wrapping_add(add.amount);
                insert(values, add.key, sum.to_string().into_bytes()).map(|()| number(sum))
            }
            Operation::CompareSet(request) => {
                let held = values.get(&request.key);
                if held.map_or(request.expected.is_empty(), |held| *held == request.expected) {
                    insert(values, request.key.clone(), request.desired)?;
                }
                let holds = values.get(&request.key).cloned().unwrap_or(request.expected);
                Ok(StoreReply { values: vec![holds], number: 0 })
            }
            Operation::Delete(delete) => Ok(number(i64::from(values.remove(&delete.key).is_some()))),
            Operation::Check(check) => Ok(number(i64::from(check.keys.iter().all(|key| values.contains_key(key))))),
            Operation::Get(_) => Err(Refusal::Invalid("a get changes nothing".into())),
        }
    }

    fn current(&self, asked: u64) -> Result<MutexGuard<'_, Inner>, Refusal> {
        let inner = self.lock();
        let current = inner.generation;
        if asked == current { Ok(inner) } else { Err(Refusal::Stale { asked, current }) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn insert(values: &mut HashMap<String, Vec<u8>>, key: String, value: Vec<u8>) -> Result<(), Refusal> {
    if value.len() > MOST_VALUE || values.len() >= MOST_KEYS && !values.contains_key(&key) {
        let message = format!("`{key}`: at most {MOST_KEYS} keys of {MOST_VALUE} bytes are kept");
        return Err(Refusal::Invalid(message));
    }
    values.insert(key, value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use thanos_proto::v1::{StoreAdd, StoreCheck, StoreCompareSet, StoreDelete, StoreGet, StoreSet};

    fn request(generation: u64, operation: Operation) -> StoreRequest {
        StoreRequest { generation, operation: Some(operation) }
    }

    fn set(key: &str, value: &[u8]) -> Operation {
        Operation::Set(StoreSet { key: key.into(), value: value.into() })
    }

    fn get(key: &str, wait_ms: u64) -> Operation {
        Operation::Get(StoreGet { keys: vec![key.into()], wait_ms })
    }

    #[tokio::test]
    async fn every_operation_answers_as_c10d_expects() {
        let store = Store::default();
        store.open(1);
        let add = |amount| Operation::Add(StoreAdd { key: "n".into(), amount });
        let compare_set = |expected: &[u8], desired: &[u8]| {
            let (expected, desired) = (expected.into(), desired.into());
            Operation::CompareSet(StoreCompareSet { key: "c".into(), expected, desired })
        };
        for (operation, values, number) in [
            (set("a", b"x"), &[][..], 0),
            (get("a", 0), &[&b"x"[..]][..], 0),
            (add(2), &[], 2),
            (add(-3), &[], -1),
            (get("n", 0), &[b"-1"], 0),
            (compare_set(b"", b"1"), &[b"1"], 0),
            (compare_set(b"0", b"2"), &[b"1"], 0),
            (compare_set(b"1", b"2"), &[b"2"], 0),
            (Operation::Check(StoreCheck { keys: vec!["a".into(), "c".into()] }), &[], 1),
            (Operation::Delete(StoreDelete { key: "a".into() }), &[], 1),
            (Operation::Delete(StoreDelete { key: "a".into() }), &[], 0),
            (Operation::Check(StoreCheck { keys: vec!["a".into(), "c".into()] }), &[], 0),
        ] {
            let reply = store.answer(request(1, operation.clone())).await.expect("answered");
            let expected: Vec<Vec<u8>> = values.iter().map(|value| value.to_vec()).collect();
            assert_eq!((reply.values, reply.number), (expected, number), "{operation:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_get_waits_for_its_key_and_no_longer_than_asked() {
        let store = std::sync::Arc::new(Store::default());
        store.open(1);
        let waiting = tokio::spawn({
            let store = store.clone();
            async move { store.answer(request(1, get("late", 60_000))).await }
        });
        tokio::time::sleep(Duration::from_secs(1)).await;
        store.answer(request(1, set("late", b"v"))).await.expect("set");
        assert_eq!(waiting.await.expect("no panic").expect("the key came").values, [b"v"]);
        let refusal = store.answer(request(1, get("never", 2000))).await.expect_err("it never comes");
        assert_eq!(refusal, Refusal::Timeout { keys: vec!["never".into()], waited: Duration::from_secs(2) });
    }

    #[tokio::test]
    async fn another_generation_is_refused_also_while_it_waits() {
        let store = std::sync::Arc::new(Store::default());
        store.open(1);
        let waiting = tokio::spawn({
            let store = store.clone();
            async move { store.answer(request(1, get("k", 60_000))).await }
        });
        tokio::task::yield_now().await;
        store.open(2);
        let stale = Err(Refusal::Stale { asked: 1, current: 2 });
        assert_eq!(waiting.await.expect("no panic"), stale);
        assert_eq!(store.answer(request(1, set("k", b"v"))).await, stale);
        assert!(store.answer(request(2, set("k", b"v"))).await.is_ok());
    }

    #[tokio::test]
    async fn what_is_too_large_or_empty_is_refused() {
        let store = Store::default();
        store.open(1);
        let large = vec![0; MOST_VALUE + 1];
        assert!(matches!(store.answer(request(1, set("a", &large))).await, Err(Refusal::Invalid(_))));
        let nothing = StoreRequest { generation: 1, operation: None };
        assert!(matches!(store.answer(nothing).await, Err(Refusal::Invalid(_))));
    }
}
