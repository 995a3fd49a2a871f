//! CUDA graphs: what a piece of code launches is recorded once, and then started by one call.

use crate::error::{Error, check};
use crate::raw;
use std::ptr;

/// Recorded kernels, with the memory that they work on.
#[derive(Debug)]
pub struct Graph {
    raw: *mut raw::Graph,
}

impl Graph {
    /// Records what `body` launches on the current stream; nothing of it runs. Tensors that `body`
    /// makes are where each [`Self::replay`] writes them; those that it reads must live as long as
    /// the graph, at the same place. It may not wait for the GPU.
    ///
    /// # Errors
    /// What `body` returns, and if something in it cannot be recorded. Stream and allocator then
    /// work as before.
    pub fn record<T, E: From<Error>>(body: impl FnOnce() -> Result<T, E>) -> Result<(Self, T), E> {
        let mut raw = ptr::null_mut();
        // SAFETY: `raw` lives through the call.
        check("graph_begin", unsafe { raw::thanos_graph_begin(&raw mut raw) })?;
        // Dropped by an error or a panic of `body`, it ends the recording as well.
        let mut recording = Recording { graph: Self { raw }, is_running: true };
        let made = body()?;
        recording.end()?;
        // The recording has nothing left to end.
        let graph = Self { raw: std::mem::replace(&mut recording.graph.raw, ptr::null_mut()) };
        Ok((graph, made))
    }

    /// Runs what was recorded, on the current stream.
    ///
    /// # Errors
    /// If it cannot be launched.
    pub fn replay(&self) -> Result<(), Error> {
        // SAFETY: the graph is alive.
        check("graph_replay", unsafe { raw::thanos_graph_replay(self.raw) })
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if !self.raw.is_null() {
            // SAFETY: made by `thanos_graph_begin`, freed once.
            unsafe { raw::thanos_graph_free(self.raw) }
        }
    }
}

struct Recording {
    graph: Graph,
    is_running: bool,
}

impl Recording {
    fn end(&mut self) -> Result<(), Error> {
        self.is_running = false;
        // SAFETY: the graph is alive.
        check("graph_end", unsafe { raw::thanos_graph_end(self.graph.raw) })
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        if self.is_running
            && let Err(error) = self.end()
        {
            tracing::debug!("a recording was abandoned: {error}");
        }
    }
}
