//! Which tests run at the same time: `cargo test -- --test-threads=2` runs two side by side, as
//! most of them wait for processes most of the time. A test that measures time, or what processes
//! take of the machine, runs without any other.

use std::cell::Cell;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

static RUNNING: Mutex<Running> = Mutex::new(Running { shared: 0, is_alone: false, waiting: 0 });
static CHANGED: Condvar = Condvar::new();

#[derive(Debug)]
struct Running {
    /// Tests that run side by side.
    shared: usize,
    is_alone: bool,
    /// Tests that wait to run alone: no other one begins before them.
    waiting: usize,
}

/// What a thread's test holds.
#[derive(Clone, Copy)]
struct Held {
    turns: usize,
    is_alone: bool,
}

thread_local! {
    static HELD: Cell<Held> = const { Cell::new(Held { turns: 0, is_alone: false }) };
}

/// A test's permission to run, until its last one is dropped, on the thread that took it.
#[derive(Debug)]
pub(crate) struct Turn(());

impl Turn {
    /// Beside others, unless the test runs alone already.
    pub(crate) fn shared() -> Self {
        let held = HELD.get();
        HELD.set(Held { turns: held.turns + 1, ..held });
        if held.turns == 0 {
            let mut running = lock();
            while running.is_alone || running.waiting > 0 {
                running = CHANGED.wait(running).unwrap_or_else(PoisonError::into_inner);
            }
            running.shared += 1;
        }
        Self(())
    }

    /// Without any other.
    ///
    /// # Panics
    /// If the test has a turn already: it would wait for itself.
    pub(crate) fn alone() -> Self {
        assert_eq!(HELD.get().turns, 0, "a test that runs alone asks for it first");
        HELD.set(Held { turns: 1, is_alone: true });
        let mut running = lock();
        running.waiting += 1;
        while running.is_alone || running.shared > 0 {
            running = CHANGED.wait(running).unwrap_or_else(PoisonError::into_inner);
        }
        running.waiting -= 1;
        running.is_alone = true;
        Self(())
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let held = HELD.get();
        let turns = held.turns - 1;
        if turns > 0 {
            HELD.set(Held { turns, ..held });
            return;
        }
        HELD.set(Held { turns, is_alone: false });
        let mut running = lock();
        match held.is_alone {
            true => running.is_alone = false,
            false => running.shared -= 1,
        }
        drop(running);
        CHANGED.notify_all();
    }
}

fn lock() -> MutexGuard<'static, Running> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}
