//! The coordinator as the rendezvous of a process group: each store operation is one call, fenced by generation.

use super::stream::Client;
use std::time::Duration;
use thanos_c10d::KeyValueStore;
use thanos_proto::v1::{self, store_request::Operation};
use tokio::runtime::Handle;

pub(super) struct CoordinatorStore {
    client: Client,
    runtime: Handle,
    generation: u64,
}

impl CoordinatorStore {
    pub(super) fn new(client: Client, runtime: Handle, generation: u64) -> Self {
        Self { client, runtime, generation }
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
        self.call(Operation::Get(v1::StoreGet { keys, wait_ms })).map(|reply| reply.values)
    }
}

impl KeyValueStore for CoordinatorStore {
    fn set(&self, key: &str, value: &[u8]) -> Result<(), String> {
        self.call(Operation::Set(v1::StoreSet { key: key.into(), value: value.into() })).map(drop)
    }

    fn get(&self, key: &str, timeout: Duration) -> Result<Vec<u8>, String> {
        let first = self.values(&[key], timeout)?.into_iter().next();
        first.ok_or_else(|| format!("the coordinator answered `{key}` without a value"))
    }

    fn add(&self, key: &str, amount: i64) -> Result<i64, String> {
        self.call(Operation::Add(v1::StoreAdd { key: key.into(), amount })).map(|reply| reply.number)
    }

    fn compare_set(&self, key: &str, expected: &[u8], desired: &[u8]) -> Result<Vec<u8>, String> {
        let request = v1::StoreCompareSet { key: key.into(), expected: expected.into(), desired: desired.into() };
        let first = self.call(Operation::CompareSet(request))?.values.into_iter().next();
        first.ok_or_else(|| format!("the coordinator answered `{key}` without a value"))
    }

    fn delete(&self, key: &str) -> Result<bool, String> {
        self.call(Operation::Delete(v1::StoreDelete { key: key.into() })).map(|reply| reply.number != 0)
    }

    fn check(&self, keys: &[&str]) -> Result<bool, String> {
        let keys = keys.iter().map(|key| key.to_string()).collect();
        self.call(Operation::Check(v1::StoreCheck { keys })).map(|reply| reply.number != 0)
    }

    fn wait(&self, keys: &[&str], timeout: Duration) -> Result<(), String> {
        self.values(keys, timeout).map(drop)
    }
}
