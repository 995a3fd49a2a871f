//! The rendezvous: a key-value store for each generation, through which the ranks' process groups
//! find each other. Only the newest generation has one: a stale worker cannot touch it.

use prost::bytes::Bytes;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use thanos_proto::v1::store_request::Operation;
use thanos_proto::v1::{StoreReply, StoreRequest};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

/// Keys, and bytes of a value: c10d needs a few keys a rank, each of a few hundred bytes.
const MAX_KEYS: usize = 1 << 16;
const MAX_VALUE_BYTES: usize = 1 << 20;
/// Calls that wait: one a rank, and those whose callers have given up meanwhile.
const MAX_WAITERS: usize = 1 << 16;
/// The longest that one call may wait for a key.
const MAX_WAIT: Duration = Duration::from_secs(600);

/// Why an operation was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("this is generation {current}; generation {asked} is over")]
    Stale { asked: u64, current: u64 },
    #[error("{missing}, one of {keys} keys, was not set within {waited:?}")]
    Timeout { missing: String, keys: usize, waited: Duration },
    #[error("{0}")]
    Invalid(String),
}

/// The store of the newest generation.
#[derive(Default)]
pub(crate) struct Store {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    generation: u64,
    values: HashMap<String, Bytes>,
    /// Calls that wait, each at the first of its keys that is missing: a change wakes those alone
    /// that it completes.
    waiters: HashMap<String, Vec<Waiter>>,
    waiting: usize,
}

/// A call that waits for its keys.
struct Waiter {
    keys: Vec<String>,
    /// Keys before this one were there when they were looked at.
    seen: usize,
    answer: oneshot::Sender<Vec<Bytes>>,
}

impl Store {
    /// Starts an empty store for a new generation; calls that wait in an older one fail.
    pub(crate) fn open(&self, generation: u64) {
        // Waiters that are dropped are notified that their generation is over.
        *self.lock() = Inner { generation, ..Inner::default() };
    }

    /// Answers one operation; a `get` waits until all its keys are there, at most as long as it
    /// says.
    pub(crate) async fn answer(&self, request: StoreRequest) -> Result<StoreReply, Refusal> {
        let operation =
            request.operation.ok_or_else(|| Refusal::Invalid("the request is empty".into()))?;
        if let Operation::Get(get) = operation {
            let wait = Duration::from_millis(get.wait_ms).min(MAX_WAIT);
            return self.get(request.generation, get.keys, wait).await;
        }
        self.change(request.generation, operation)
    }

    /// Whether this is the newest generation.
    pub(crate) fn is_current(&self, generation: u64) -> bool {
        self.current(generation).is_ok()
    }

    async fn get(
        &self,
        generation: u64,
        keys: Vec<String>,
        wait: Duration,
    ) -> Result<StoreReply, Refusal> {
        let deadline = Instant::now() + wait;
        let (answer, mut answered) = oneshot::channel();
        let asked = keys.clone();
        self.current(generation)?.advance(Waiter { keys, seen: 0, answer })?;
        match timeout_at(deadline, &mut answered).await {
            Ok(Ok(values)) => Ok(StoreReply { values, number: 0 }),
            Ok(Err(_)) => {
                Err(Refusal::Stale { asked: generation, current: self.lock().generation })
            }
            Err(_) => {
                let inner = self.current(generation)?;
                let missing = asked
                    .iter()
                    .find(|key| !inner.values.contains_key(*key))
                    .cloned()
                    .unwrap_or_default();
                Err(Refusal::Timeout { missing, keys: asked.len(), waited: wait })
            }
        }
    }

    fn change(&self, generation: u64, operation: Operation) -> Result<StoreReply, Refusal> {
        let mut inner = self.current(generation)?;
        let values = &inner.values;
        let number = |number: i64| StoreReply { values: Vec::new(), number };
        match operation {
            Operation::Set(set) => inner.insert(set.key, set.value).map(|()| number(0)),
            Operation::Add(add) => {
                let held = values
                    .get(&add.key)
                    .map_or(Ok(0), |text| String::from_utf8_lossy(text).parse::<i64>());
                let held =
                    held.map_err(|_| Refusal::Invalid(format!("`{}` is not a number", add.key)))?;
                let sum = held.wrapping_add(add.amount);
                inner.insert(add.key, sum.to_string().into()).map(|()| number(sum))
            }
            Operation::CompareSet(request) => {
                let held = values.get(&request.key);
                if held.map_or(request.expected.is_empty(), |held| *held == request.expected) {
                    inner.insert(request.key.clone(), request.desired.into())?;
                }
                let holds =
                    inner.values.get(&request.key).cloned().unwrap_or(request.expected.into());
                Ok(StoreReply { values: vec![holds], number: 0 })
            }
            Operation::Delete(delete) => {
                Ok(number(i64::from(inner.values.remove(&delete.key).is_some())))
            }
            Operation::Check(check) => {
                Ok(number(i64::from(check.keys.iter().all(|key| values.contains_key(key)))))
            }
            Operation::Get(_) => Err(Refusal::Invalid("a get does not change anything".into())),
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

impl Inner {
    fn insert(&mut self, key: String, value: Bytes) -> Result<(), Refusal> {
        if value.len() > MAX_VALUE_BYTES
            || self.values.len() >= MAX_KEYS && !self.values.contains_key(&key)
        {
            let message =
                format!("`{key}`: at most {MAX_KEYS} keys of {MAX_VALUE_BYTES} bytes are kept");
            return Err(Refusal::Invalid(message));
        }
        let waiters = self.waiters.remove(&key).unwrap_or_default();
        self.values.insert(key, value);
        self.waiting -= waiters.len();
        waiters
            .into_iter()
            .filter(|waiter| !waiter.answer.is_closed())
            .try_for_each(|waiter| self.advance(waiter))
    }

    /// Answers a call whose keys are all there; else it waits at the first that is missing.
    fn advance(&mut self, mut waiter: Waiter) -> Result<(), Refusal> {
        let is_there = |key: &String| self.values.contains_key(key);
        waiter.seen += waiter.keys[waiter.seen..].iter().take_while(|key| is_there(key)).count();
        if waiter.seen == waiter.keys.len() {
            // One may have been deleted since it was looked at.
            waiter.seen = waiter.keys.iter().take_while(|key| is_there(key)).count();
        }
        if let Some(missing) = waiter.keys.get(waiter.seen) {
            if self.waiting >= MAX_WAITERS {
                return Err(Refusal::Invalid(format!("more than {MAX_WAITERS} calls are waiting")));
            }
            self.waiting += 1;
            self.waiters.entry(missing.clone()).or_default().push(waiter);
            return Ok(());
        }
        let values = waiter.keys.iter().filter_map(|key| self.values.get(key).cloned()).collect();
        // A caller that has given up gets no answer.
        _ = waiter.answer.send(values);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use thanos_proto::v1::{
        StoreAdd, StoreCheck, StoreCompareSet, StoreDelete, StoreGet, StoreSet,
    };

    fn request(generation: u64, operation: Operation) -> StoreRequest {
        StoreRequest { generation, operation: Some(operation) }
    }

    fn set(key: &str, value: &[u8]) -> Operation {
        Operation::Set(StoreSet { key: key.into(), value: value.to_vec().into() })
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
            let expected: Vec<Bytes> = values.iter().map(|value| value.to_vec().into()).collect();
            assert_eq!((reply.values, reply.number), (expected, number), "{operation:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_get_waits_for_its_key_and_no_longer_than_its_timeout() {
        let store = std::sync::Arc::new(Store::default());
        store.open(1);
        let waiting = tokio::spawn({
            let store = store.clone();
            async move { store.answer(request(1, get("late", 60_000))).await }
        });
        tokio::time::sleep(Duration::from_secs(1)).await;
        store.answer(request(1, set("late", b"v"))).await.expect("set");
        assert_eq!(waiting.await.expect("no panic").expect("the key came").values, [&b"v"[..]]);
        let refusal =
            store.answer(request(1, get("never", 2000))).await.expect_err("it never comes");
        assert_eq!(
            refusal,
            Refusal::Timeout { missing: "never".into(), keys: 1, waited: Duration::from_secs(2) }
        );
    }

    /// Ranks that all wait for all keys, which come in any order, and one of which is deleted
    /// meanwhile.
    #[tokio::test]
    async fn a_change_wakes_the_calls_that_it_completes_and_no_others() {
        let store = std::sync::Arc::new(Store::default());
        store.open(1);
        let all = || {
            Operation::Get(StoreGet {
                keys: vec!["a".into(), "b".into(), "c".into()],
                wait_ms: 60_000,
            })
        };
        let waiting: Vec<_> = [all(), all(), get("c", 60_000)]
            .map(|operation| {
                let store = store.clone();
                tokio::spawn(async move {
                    store.answer(request(1, operation)).await.expect("all came").values
                })
            })
            .into();
        tokio::task::yield_now().await;
        let set_now = async |key: &str| {
            store.answer(request(1, set(key, key.as_bytes()))).await.expect("set");
            tokio::task::yield_now().await;
        };
        let done = || waiting.iter().map(|task| task.is_finished()).collect::<Vec<_>>();
        set_now("c").await;
        assert_eq!((done(), store.lock().waiting), (vec![false, false, true], 2));
        set_now("a").await;
        store
            .answer(request(1, Operation::Delete(StoreDelete { key: "a".into() })))
            .await
            .expect("deleted");
        set_now("b").await;
        assert_eq!(
            (done(), store.lock().waiting),
            (vec![false, false, true], 2),
            "one was deleted"
        );
        set_now("a").await;
        assert_eq!((done(), store.lock().waiting), (vec![true; 3], 0));
        for (task, values) in
            waiting.into_iter().zip([&["a", "b", "c"][..], &["a", "b", "c"], &["c"]])
        {
            assert_eq!(task.await.expect("no panic"), values);
        }
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
        let large = vec![0; MAX_VALUE_BYTES + 1];
        assert!(matches!(
            store.answer(request(1, set("a", &large))).await,
            Err(Refusal::Invalid(_))
        ));
        let nothing = StoreRequest { generation: 1, operation: None };
        assert!(matches!(store.answer(nothing).await, Err(Refusal::Invalid(_))));
    }
}
