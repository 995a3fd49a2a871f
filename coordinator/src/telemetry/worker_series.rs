//! The series of each connected worker, by its heartbeats. They begin with its session and end with
//! it, so that a worker that was replaced leaves no series.

use super::text::{Described, Sample};
use crate::run::SessionId;
use std::collections::BTreeMap;
use thanos_proto::Heartbeat;

/// Seconds since 1970 of the last heartbeat.
pub(super) const HEARTBEAT: Described = (
    "thanos_trainer_worker_heartbeat_timestamp_seconds",
    "gauge",
    "When the coordinator received the last heartbeat of a connected worker, since 1970",
);
pub(super) const COLLECTIVE: Described = (
    "thanos_trainer_worker_collective_seconds_total",
    "counter",
    "Time that a connected worker has spent in collectives; a straggler is the worker that the \
     others wait for, and spends the least",
);

/// The workers that are connected.
#[derive(Debug, Default)]
pub(super) struct WorkerSeries {
    /// The session that has just introduced itself, and its worker.
    opened: Option<(SessionId, String)>,
    workers: BTreeMap<SessionId, Worker>,
}

#[derive(Debug)]
struct Worker {
    id: String,
    last_message: f64,
    generation: u64,
    /// Of the generation, as the last heartbeat has it.
    waited_ms: u64,
    collective_ms: u64,
}

impl WorkerSeries {
    pub(super) fn opened(&mut self, session: SessionId, worker: &str) {
        self.opened = Some((session, worker.into()));
    }

    /// The session was admitted. One that is refused gets no series.
    pub(super) fn welcomed(&mut self, session: SessionId, now: f64) {
        let Some((_, id)) = self.opened.take().filter(|(opened, _)| *opened == session) else {
            return;
        };
        self.workers.retain(|_, worker| worker.id != id);
        self.workers.insert(
            session,
            Worker { id, last_message: now, generation: 0, waited_ms: 0, collective_ms: 0 },
        );
    }

    pub(super) fn closed(&mut self, session: SessionId) {
        self.workers.remove(&session);
    }

    pub(super) fn beat(&mut self, session: SessionId, heartbeat: &Heartbeat, now: f64) {
        let Some(worker) = self.workers.get_mut(&session) else { return };
        // It counts again in each generation.
        let before = if worker.generation == heartbeat.generation { worker.waited_ms } else { 0 };
        worker.collective_ms += heartbeat.waited_ms.saturating_sub(before);
        (worker.last_message, worker.generation, worker.waited_ms) =
            (now, heartbeat.generation, heartbeat.waited_ms);
    }

    /// The worker of a session that was admitted.
    pub(super) fn id(&self, session: SessionId) -> Option<&str> {
        self.workers.get(&session).map(|worker| worker.id.as_str())
    }

    /// Samples of [`HEARTBEAT`] and of [`COLLECTIVE`].
    pub(super) fn samples(&self) -> (Vec<Sample>, Vec<Sample>) {
        let sample = |worker: &Worker, value| (vec![("worker", worker.id.clone())], value);
        let heartbeat = |worker: &Worker| sample(worker, worker.last_message);
        let collective = |worker: &Worker| sample(worker, worker.collective_ms as f64 / 1e3);
        (
            self.workers.values().map(heartbeat).collect(),
            self.workers.values().map(collective).collect(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heartbeat(generation: u64, waited_ms: u64) -> Heartbeat {
        let (stage, phase) = ("supcon".into(), "forward".into());
        Heartbeat {
            generation,
            stage,
            step: 0,
            phase,
            collectives: 0,
            waited_ms,
            progress: 0,
            in_collective: false,
        }
    }

    #[test]
    fn time_in_collectives_accumulates_over_generations() {
        let mut series = WorkerSeries::default();
        series.opened(1, "worker-0");
        series.welcomed(1, 100.0);
        for (beat, time) in
            [(heartbeat(1, 500), 101.0), (heartbeat(1, 2000), 102.0), (heartbeat(2, 250), 103.0)]
        {
            series.beat(1, &beat, time);
        }
        let of_worker = || vec![("worker", "worker-0".to_owned())];
        assert_eq!(series.samples(), (vec![(of_worker(), 103.0)], vec![(of_worker(), 2.25)]));
        series.closed(1);
        assert_eq!(series.samples(), (vec![], vec![]));
    }

    #[test]
    fn a_refused_session_has_no_series_and_a_new_session_replaces_the_old_one() {
        let mut series = WorkerSeries::default();
        series.opened(1, "intruder");
        series.opened(2, "worker-0");
        series.welcomed(2, 1.0);
        series.opened(3, "worker-0");
        series.welcomed(3, 2.0);
        series.closed(2);
        assert_eq!(series.samples().0, [(vec![("worker", "worker-0".to_owned())], 2.0)]);
        assert_eq!((series.id(1), series.id(3)), (None, Some("worker-0")));
    }
}
