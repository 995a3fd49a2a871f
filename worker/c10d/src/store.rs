//! The rendezvous: the key-value store through which the ranks of a group find each other.
//! The caller implements [`KeyValueStore`]; this file hands it to C++ and back.

use crate::raw::{self, Bytes, Slice};
use std::collections::HashMap;
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What c10d asks of a store. Errors are words for a human; they reach the caller of the
/// collective.
pub trait KeyValueStore: Send + Sync {
    fn set(&self, key: &str, value: &[u8]) -> Result<(), String>;
    /// Waits until `key` is there, at most `timeout`.
    fn get(&self, key: &str, timeout: Duration) -> Result<Vec<u8>, String>;
    /// Waits until all keys are there, at most `timeout`, and returns their values in this order.
    fn multi_get(&self, keys: &[&str], timeout: Duration) -> Result<Vec<Vec<u8>>, String> {
        keys.iter().map(|key| self.get(key, timeout)).collect()
    }
    /// Adds to the decimal number at `key`, which is 0 at first, and returns the sum.
    fn add(&self, key: &str, amount: i64) -> Result<i64, String>;
    /// Sets `key` to `desired` if it holds `expected` (or is absent and `expected` is empty);
    /// returns what it holds.
    fn compare_set(&self, key: &str, expected: &[u8], desired: &[u8]) -> Result<Vec<u8>, String>;
    fn delete(&self, key: &str) -> Result<bool, String>;
    /// Whether all keys are there.
    fn check(&self, keys: &[&str]) -> Result<bool, String>;
    /// Waits until all keys are there, at most `timeout`.
    fn wait(&self, keys: &[&str], timeout: Duration) -> Result<(), String>;
    /// Whether the rendezvous is given up: a group that is being made is not waited for any more.
    fn is_over(&self) -> bool {
        false
    }
}

/// A store within one process, for groups whose ranks are threads.
#[derive(Default)]
pub struct MemoryStore {
    values: Mutex<HashMap<String, Vec<u8>>>,
    changed: Condvar,
}

impl MemoryStore {
    fn update<T>(&self, change: impl FnOnce(&mut HashMap<String, Vec<u8>>) -> T) -> T {
        let result = change(&mut self.values.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
        result
    }
}

impl KeyValueStore for MemoryStore {
    fn set(&self, key: &str, value: &[u8]) -> Result<(), String> {
        self.update(|values| values.insert(key.into(), value.into()));
        Ok(())
    }

    fn get(&self, key: &str, timeout: Duration) -> Result<Vec<u8>, String> {
        self.wait(&[key], timeout)?;
        self.update(|values| values.get(key).cloned())
            .ok_or_else(|| format!("`{key}` was deleted while it was read"))
    }

    fn add(&self, key: &str, amount: i64) -> Result<i64, String> {
        self.update(|values| {
            let held =
                values.get(key).map_or(Ok(0), |text| String::from_utf8_lossy(text).parse::<i64>());
            let sum = held.map_err(|error| format!("`{key}` is not a number: {error}"))? + amount;
            values.insert(key.into(), sum.to_string().into_bytes());
            Ok(sum)
        })
    }

    fn compare_set(&self, key: &str, expected: &[u8], desired: &[u8]) -> Result<Vec<u8>, String> {
        Ok(self.update(|values| {
            let matches = values.get(key).map_or(expected.is_empty(), |held| held == expected);
            if matches {
                values.insert(key.into(), desired.into());
            }
            values.get(key).cloned().unwrap_or_else(|| expected.into())
        }))
    }

    fn delete(&self, key: &str) -> Result<bool, String> {
        Ok(self.update(|values| values.remove(key).is_some()))
    }

    fn check(&self, keys: &[&str]) -> Result<bool, String> {
        Ok(self.update(|values| keys.iter().all(|key| values.contains_key(*key))))
    }

    fn wait(&self, keys: &[&str], timeout: Duration) -> Result<(), String> {
        let deadline = Instant::now() + timeout;
        let mut values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        while !keys.iter().all(|key| values.contains_key(*key)) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(format!("not all of {keys:?} were there after {timeout:?}"));
            }
            values =
                self.changed.wait_timeout(values, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }
}

/// Gives a store to C++, which frees it with [`drop_store`].
pub(crate) fn into_raw(store: Arc<dyn KeyValueStore>) -> *mut c_void {
    Box::into_raw(Box::new(store)).cast()
}

/// # Safety
/// `store` came from [`into_raw`] and is not used again.
pub(crate) unsafe extern "C" fn drop_store(store: *mut c_void) {
    // SAFETY: the caller's promise.
    drop(unsafe { Box::from_raw(store.cast::<Arc<dyn KeyValueStore>>()) });
}

/// Answers one store operation of the shim; a panic of the store becomes an error, as nothing may
/// unwind into C++.
///
/// # Safety
/// `store` came from [`into_raw`]; `slices` points to `count` slices and `out` to a vector, all
/// alive for the call.
pub(crate) unsafe extern "C" fn call_store(
    store: *mut c_void,
    operation: i32,
    slices: *const Slice,
    count: usize,
    number: i64,
    out: *mut Bytes,
) -> i64 {
    // SAFETY: the caller's promise; the store outlives the call.
    let store = unsafe { &*store.cast::<Arc<dyn KeyValueStore>>() };
    // SAFETY: the caller's promise. Empty slices may have a null pointer, which `from_raw_parts`
    // must not see.
    let parts: Vec<&[u8]> = unsafe { (0..count).map(|i| &*slices.add(i)).collect::<Vec<_>>() }
        .into_iter()
        .map(|slice| match slice.len {
            0 => &[][..],
            // SAFETY: the caller's promise: data points to len bytes.
            len => unsafe { std::slice::from_raw_parts(slice.data, len) },
        })
        .collect();
    let answer =
        catch_unwind(AssertUnwindSafe(|| answer(store.as_ref(), operation, &parts, number)))
            .unwrap_or_else(|_| Err("the store panicked".into()));
    let (number, bytes) = match answer {
        Ok((number, bytes)) => (number, bytes),
        Err(message) => (raw::STORE_FAILED, message.into_bytes()),
    };
    // SAFETY: `out` is alive by the caller's promise; the shim copies the bytes.
    unsafe { raw::thanos_bytes_assign(out, bytes.as_ptr(), bytes.len()) };
    number
}

fn answer(
    store: &dyn KeyValueStore,
    operation: i32,
    parts: &[&[u8]],
    number: i64,
) -> Result<(i64, Vec<u8>), String> {
    let text = |part: &[u8]| {
        String::from_utf8(part.to_vec()).map_err(|error| format!("a key is not UTF-8: {error}"))
    };
    let keys = || parts.iter().map(|part| text(part)).collect::<Result<Vec<_>, _>>();
    let key =
        || parts.first().ok_or_else(|| "no key was given".to_string()).and_then(|part| text(part));
    let value = |at: usize| {
        parts.get(at).copied().ok_or_else(|| format!("operation {operation} lacks value {at}"))
    };
    let wait = Duration::from_millis(number.max(0) as u64);
    match operation {
        raw::STORE_SET => store.set(&key()?, value(1)?).map(|()| (0, Vec::new())),
        raw::STORE_GET => store.get(&key()?, wait).map(|value| (0, value)),
        raw::STORE_ADD => store.add(&key()?, number).map(|sum| (sum, Vec::new())),
        raw::STORE_COMPARE_SET => {
            store.compare_set(&key()?, value(1)?, value(2)?).map(|value| (0, value))
        }
        raw::STORE_DELETE => store.delete(&key()?).map(|deleted| (i64::from(deleted), Vec::new())),
        raw::STORE_CHECK | raw::STORE_WAIT | raw::STORE_MULTI_GET => {
            let keys = keys()?;
            let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
            match operation {
                raw::STORE_WAIT => store.wait(&keys, wait).map(|()| (0, Vec::new())),
                raw::STORE_CHECK => store.check(&keys).map(|all| (i64::from(all), Vec::new())),
                _ => store.multi_get(&keys, wait).map(|values| (0, framed(&values))),
            }
        }
        other => Err(format!("unknown store operation {other}")),
    }
}

/// Values as the shim takes them apart: each after its length.
fn framed(values: &[Vec<u8>]) -> Vec<u8> {
    let length = |value: &Vec<u8>| (value.len() as u64).to_ne_bytes();
    values.iter().flat_map(|value| [&length(value)[..], value].concat()).collect()
}
