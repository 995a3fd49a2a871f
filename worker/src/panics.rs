//! Panics of tch as errors.

use crate::error::Result;
use anyhow::anyhow;
use std::panic::AssertUnwindSafe;

/// libtorch's errors reach us as panics of tch wherever it has no fallible call: they are failures
/// like others.
pub(crate) fn without_panic<T>(body: impl FnOnce() -> Result<T>) -> Result<T> {
    std::panic::catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or(panic.downcast_ref::<&str>().copied());
        let first_line = text.and_then(|text| text.split("\\n").next()?.lines().next());
        Err(anyhow!("{}", first_line.unwrap_or("it panicked without a message")).into())
    })
}
