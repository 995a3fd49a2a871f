//! The coordinator as the rendezvous of a process group: each store operation is one call, fenced
//! by generation. A rank sets its own address and gets those of all others in one call, however
//! many they are.

use super::stream::Client;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use thanos_c10d::KeyValueStore;
use thanos_proto::v1::{self, store_request::Operation};
use tokio::runtime::Handle;

pub(super) struct CoordinatorStore {
    client: Client,
    runtime: Handle,
    generation: u64,
    world_size: usize,
    /// Values that have come before they were asked for: Gloo asks for 128 at a time.
    ahead: Mutex<HashMap<String, Vec<u8>>>,
    /// Whether the generation is over.
    is_over: Box<dyn Fn() -> bool + Send + Sync>,
}

impl CoordinatorStore {
    pub(super) fn new(
        client: Client,
        runtime: Handle,
        (generation, world_size): (u64, usize),
        is_over: impl Fn() -> bool + Send + Sync + 'static,
    ) -> Self {
        let is_over = Box::new(is_over);
        Self { client, runtime, generation, world_size, ahead: Mutex::default(), is_over }
    }

    fn call(&self, operation: Operation) -> Result<v1::StoreReply, String> {
        let mut client = self.client.clone();
        let request = v1::StoreRequest { generation: self.generation, operation: Some(operation) };
        let reply = self.runtime.block_on(async move { client.store(request).await });
        reply.map(tonic::Response::into_inner).map_err(|status| status.message().to_string())
    }

    fn values(&self, keys: &[&str], timeout: Duration) -> Result<Vec<Vec<u8>>, String> {
        let keys = keys.iter().map(|key| key.to_string()).collect();
        let wait_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        let reply = self.call(Operation::Get(v1::StoreGet { keys, wait_ms }))?;
        Ok(reply.values.into_iter().map(Into::into).collect())
    }

    /// What has come ahead, if all of these have.
    fn take_ahead(&self, keys: &[&str]) -> Option<Vec<Vec<u8>>> {
        let mut ahead = self.ahead.lock().unwrap_or_else(PoisonError::into_inner);
        let all = keys.iter().all(|key| ahead.contains_key(*key));
        all.then(|| keys.iter().filter_map(|key| ahead.remove(*key)).collect())
    }
}

/// The keys of all ranks, if these are the keys of the first ones: a prefix and the numbers from 0
/// on.
fn keys_of_all_ranks(keys: &[&str], world_size: usize) -> Option<Vec<String>> {
    let prefix = keys.first()?.strip_suffix('0')?;
    let are_first = keys.iter().enumerate().all(|(rank, key)| *key == format!("{prefix}{rank}"));
    // A single key is no list of ranks.
    let is_part = 1 < keys.len() && keys.len() < world_size;
    (are_first && is_part).then(|| (0..world_size).map(|rank| format!("{prefix}{rank}")).collect())
}

impl KeyValueStore for CoordinatorStore {
    fn set(&self, key: &str, value: &[u8]) -> Result<(), String> {
        self.call(Operation::Set(v1::StoreSet { key: key.into(), value: value.to_vec().into() }))
            .map(drop)
    }

    fn get(&self, key: &str, timeout: Duration) -> Result<Vec<u8>, String> {
        let first = self.values(&[key], timeout)?.into_iter().next();
        first.ok_or_else(|| format!("the coordinator answered `{key}` without a value"))
    }

    fn multi_get(&self, keys: &[&str], timeout: Duration) -> Result<Vec<Vec<u8>>, String> {
        if let Some(values) = self.take_ahead(keys) {
            return Ok(values);
        }
        let Some(all) = keys_of_all_ranks(keys, self.world_size) else {
            return self.values(keys, timeout);
        };
        let mut values =
            self.values(&all.iter().map(String::as_str).collect::<Vec<_>>(), timeout)?;
        let rest = values.split_off(keys.len().min(values.len()));
        let ahead = all.into_iter().skip(keys.len()).zip(rest);
        self.ahead.lock().unwrap_or_else(PoisonError::into_inner).extend(ahead);
        Ok(values)
    }

    fn add(&self, key: &str, amount: i64) -> Result<i64, String> {
        self.call(Operation::Add(v1::StoreAdd { key: key.into(), amount }))
            .map(|reply| reply.number)
    }

    fn compare_set(&self, key: &str, expected: &[u8], desired: &[u8]) -> Result<Vec<u8>, String> {
        let request = v1::StoreCompareSet {
            key: key.into(),
            expected: expected.into(),
            desired: desired.into(),
        };
        let first = self.call(Operation::CompareSet(request))?.values.into_iter().next();
        first
            .map(Into::into)
            .ok_or_else(|| format!("the coordinator answered `{key}` without a value"))
    }

    fn delete(&self, key: &str) -> Result<bool, String> {
        self.call(Operation::Delete(v1::StoreDelete { key: key.into() }))
            .map(|reply| reply.number != 0)
    }

    fn check(&self, keys: &[&str]) -> Result<bool, String> {
        let keys = keys.iter().map(|key| key.to_string()).collect();
        self.call(Operation::Check(v1::StoreCheck { keys })).map(|reply| reply.number != 0)
    }

    fn wait(&self, keys: &[&str], timeout: Duration) -> Result<(), String> {
        self.values(keys, timeout).map(drop)
    }

    fn is_over(&self) -> bool {
        (self.is_over)()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_first_batch_of_ranks_is_completed_to_all() {
        let all = |keys: &[&str], world_size| {
            keys_of_all_ranks(keys, world_size).map(|keys| keys.join(" "))
        };
        for (keys, world_size, expected) in [
            (&["0/0", "0/1"][..], 4, Some("0/0 0/1 0/2 0/3")),
            (&["0/0", "0/1"], 2, None),
            (&["0/2", "0/3"], 4, None),
            (&["0/0", "0/2"], 4, None),
            (&["id0"], 4, None),
            (&[], 4, None),
        ] {
            assert_eq!(all(keys, world_size).as_deref(), expected, "{keys:?} of {world_size}");
        }
    }
}
