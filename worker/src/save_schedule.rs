//! When a stage is saved besides its end and a stop: after every so many steps, and when enough
//! time has passed since the last save. Only rank 0 writes, so that ranks need not agree on the
//! moment. It starts no save itself.

use std::cell::Cell;
use std::time::{Duration, Instant};
use thanos_configs::CheckpointConfig;

/// Both intervals of `checkpoint`, and the clock of the second.
pub(crate) struct SaveSchedule<'a> {
    every_steps: Option<u64>,
    interval: Option<Duration>,
    /// When the last save had been started; it outlives stages and generations.
    last_start: &'a Cell<Instant>,
}

/// Why a save is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Due {
    Steps,
    /// Only if no other save is under way: a timed save never blocks a step.
    Time,
}

impl<'a> SaveSchedule<'a> {
    pub(crate) fn new(config: &CheckpointConfig, last_start: &'a Cell<Instant>) -> Self {
        let interval = |seconds| Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
        Self {
            every_steps: config.every_steps,
            interval: config.every_seconds.map(interval),
            last_start,
        }
    }

    /// Whether a save is due now, after so many steps of the stage.
    pub(crate) fn due(&self, steps: u64, now: Instant) -> Option<Due> {
        let elapsed = now.saturating_duration_since(self.last_start.get());
        match (self.every_steps, self.interval) {
            (Some(every), _) if steps.is_multiple_of(every) => Some(Due::Steps),
            (_, Some(interval)) if elapsed >= interval => Some(Due::Time),
            _ => None,
        }
    }

    /// A save was started, or the stage begins with what a checkpoint has: the interval starts
    /// again.
    pub(crate) fn restart(&self, now: Instant) {
        self.last_start.set(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_save_is_due_after_so_many_steps_or_seconds() {
        let began = Instant::now();
        let check =
            |(every_steps, every_seconds), steps: u64, seconds: f64, expected: Option<Due>| {
                let last_start = Cell::new(began);
                let config =
                    CheckpointConfig { every_steps, every_seconds, ..CheckpointConfig::default() };
                let due = SaveSchedule::new(&config, &last_start)
                    .due(steps, began + Duration::from_secs_f64(seconds));
                assert_eq!(
                    due, expected,
                    "{every_steps:?} and {every_seconds:?} after {steps} steps and {seconds} s"
                );
            };
        check((None, Some(60.0)), 1, 59.9, None);
        check((None, Some(60.0)), 1, 60.0, Some(Due::Time));
        check((None, Some(0.5)), 1, 0.5, Some(Due::Time));
        check((Some(20), None), 19, 1e6, None);
        check((Some(20), None), 20, 0.0, Some(Due::Steps));
        check((Some(20), Some(60.0)), 40, 61.0, Some(Due::Steps));
        check((Some(20), Some(60.0)), 41, 61.0, Some(Due::Time));
        check((None, None), 1000, 1e6, None);
        // Longer than any clock runs.
        check((None, Some(1e300)), 1000, 1e6, None);
    }

    #[test]
    fn the_interval_begins_when_a_save_has_started() {
        let began = Instant::now();
        let after = |seconds| began + Duration::from_secs(seconds);
        let last_start = Cell::new(began);
        let config = CheckpointConfig { every_seconds: Some(60.0), ..CheckpointConfig::default() };
        let schedule = SaveSchedule::new(&config, &last_start);
        assert_eq!(schedule.due(1, after(70)), Some(Due::Time));
        // It was skipped until then, as another one was under way.
        assert_eq!(schedule.due(2, after(90)), Some(Due::Time));
        schedule.restart(after(90));
        assert_eq!(schedule.due(3, after(149)), None);
        // In the next stage, or the next generation.
        assert_eq!(SaveSchedule::new(&config, &last_start).due(1, after(150)), Some(Due::Time));
    }
}
