//! What happens after a worker's process has ended: it is restarted, or the whole group ends. Pure
//! decisions.

use crate::exit::{EXIT_STOPPED, EXIT_UNREACHABLE, PERMANENT};
use std::fmt;
use std::time::Duration;

/// Delay before the first restart; it doubles with each, up to the maximum.
const RESTART_BACKOFF: Duration = Duration::from_secs(1);
const MAX_BACKOFF: Duration = Duration::from_secs(30);
/// Exit codes of processes that a signal has killed, as shells have them.
const SIGNALLED: u8 = 128;

/// How a process has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    Exited(u8),
    Killed(i32),
}

/// The life of the process that has ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attempt {
    /// How often this worker was restarted before.
    pub(super) restarts: u32,
    pub(super) max_restarts: u32,
    pub(super) ran: Duration,
    /// How long it tried to reach the coordinator at its start, if it did not.
    pub(super) wait: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Start the worker again after this delay.
    Restart(Duration),
    /// The group ends with this exit code.
    End(u8),
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "ended with exit code {code}"),
            Self::Killed(signal) => write!(f, "was killed by signal {signal}"),
        }
    }
}

impl Ended {
    fn code(self) -> u8 {
        match self {
            Self::Exited(code) => code,
            Self::Killed(signal) => {
                u8::try_from(signal).map_or(u8::MAX, |signal| SIGNALLED.saturating_add(signal))
            }
        }
    }
}

/// What follows. `coordinator_accepts` is asked only of a worker that may have waited in vain for a
/// coordinator.
pub(super) fn after(
    ended: Ended,
    attempt: Attempt,
    coordinator_accepts: impl FnOnce() -> bool,
) -> Next {
    let code = ended.code();
    let Attempt { restarts, max_restarts, ran, wait } = attempt;
    if code == 0 || code == EXIT_STOPPED || PERMANENT.contains(&code) || restarts >= max_restarts {
        return Next::End(code);
    }
    // Waiting once more, in this pod, would hide from its owner that there is no coordinator.
    if code == EXIT_UNREACHABLE && ran >= wait && !coordinator_accepts() {
        return Next::End(code);
    }
    Next::Restart(RESTART_BACKOFF.saturating_mul(1 << restarts.min(8)).min(MAX_BACKOFF))
}

#[cfg(test)]
mod tests {
    use super::*;
    use Ended::{Exited, Killed};

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn what_follows_an_end() {
        let check = |ended, (restarts, ran_seconds, accepts), expected| {
            let attempt =
                Attempt { restarts, max_restarts: 3, ran: SECOND * ran_seconds, wait: SECOND * 60 };
            assert_eq!(
                after(ended, attempt, || accepts),
                expected,
                "{ended:?}, {restarts} restarts, {ran_seconds} s"
            );
        };
        for code in [0, 75, 64, 65, 70, 77, 78] {
            check(Exited(code), (0, 5, true), Next::End(code));
        }
        for ended in [Exited(69), Exited(74), Exited(101), Killed(9), Killed(11)] {
            check(ended, (0, 5, true), Next::Restart(SECOND));
            check(ended, (2, 5, true), Next::Restart(SECOND * 4));
            check(ended, (3, 5, true), Next::End(ended.code()));
        }
        // Out of memory, as Kubernetes reports it.
        assert_eq!(Killed(9).code(), 137);
        // The coordinator was there until just now, is there again, or has never been.
        check(Exited(69), (0, 59, false), Next::Restart(SECOND));
        check(Exited(69), (0, 60, true), Next::Restart(SECOND));
        check(Exited(69), (0, 60, false), Next::End(69));
        // Only a coordinator can be unreachable.
        check(Exited(74), (0, 60, false), Next::Restart(SECOND));
    }

    #[test]
    fn delays_have_a_maximum() {
        let attempt = Attempt { restarts: 40, max_restarts: 100, ran: SECOND, wait: SECOND };
        assert_eq!(after(Killed(9), attempt, || true), Next::Restart(MAX_BACKOFF));
    }
}
