//! The workers of a run, from its events: the host, the rank, the losses and the restarts of each.

use super::live::LiveWorker;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};

/// Workers that are remembered, and those that the page lists.
const MAX_WORKERS: usize = 4096;
const MAX_LISTED: usize = 256;

#[derive(Clone, Debug, Default)]
pub(super) struct Roster {
    workers: BTreeMap<String, Worker>,
    /// What the newest generation trains on, and with what it communicates.
    pub(super) generation: u64,
    pub(super) devices: String,
    pub(super) collectives: String,
    pub(super) lost: u64,
}

#[derive(Clone, Debug, Default)]
struct Worker {
    host: String,
    pid: u64,
    device: String,
    rank: Option<usize>,
    restarts: u64,
    state: State,
    /// Why it was lost or restarted.
    reason: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Ready,
    Lost,
    Restarting,
    Abandoned,
    Ended,
}

impl State {
    fn label(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Lost => "lost",
            Self::Restarting => "restarting",
            Self::Abandoned => "abandoned",
            Self::Ended => "ended",
        }
    }
}

impl Roster {
    /// Takes a line of `events.jsonl`.
    pub(super) fn event(&mut self, event: &Value) {
        let text = |key: &str| event[key].as_str().unwrap_or_default().to_owned();
        match event["event"].as_str().unwrap_or_default() {
            "joined" => {
                if let Some(worker) = self.worker(event) {
                    worker.host = text("host");
                    worker.pid = event["pid"].as_u64().unwrap_or_default();
                    worker.device = event["device"]["name"].as_str().unwrap_or_default().into();
                    (worker.state, worker.rank) = (State::Ready, None);
                    worker.reason.clear();
                }
            }
            "began" => {
                self.generation = event["generation"].as_u64().unwrap_or_default();
                (self.devices, self.collectives) = (text("devices"), text("collectives"));
                self.workers.values_mut().for_each(|worker| worker.rank = None);
                let ranks =
                    event["ranks"].as_array().into_iter().flatten().filter_map(Value::as_str);
                for (rank, name) in ranks.take(MAX_WORKERS).enumerate() {
                    let worker = self.workers.entry(name.into()).or_default();
                    (worker.rank, worker.state) = (Some(rank), State::Ready);
                }
            }
            "lost" => {
                self.lost += 1;
                self.enter(event, State::Lost, text("reason"));
            }
            "restarting" => {
                self.enter(event, State::Restarting, text("how"));
                if let Some(worker) = self.worker(event) {
                    worker.restarts += 1;
                }
            }
            "abandoned" => self.enter(event, State::Abandoned, text("how")),
            "ended" => self
                .workers
                .values_mut()
                .for_each(|worker| (worker.state, worker.rank) = (State::Ended, None)),
            _ => {}
        }
    }

    fn enter(&mut self, event: &Value, state: State, reason: String) {
        if let Some(worker) = self.worker(event) {
            (worker.state, worker.reason, worker.rank) = (state, reason, None);
        }
    }

    /// The worker that an event names; `None` if there are too many already.
    fn worker(&mut self, event: &Value) -> Option<&mut Worker> {
        let name = event["worker"].as_str()?;
        if self.workers.len() >= MAX_WORKERS && !self.workers.contains_key(name) {
            return None;
        }
        Some(self.workers.entry(name.into()).or_default())
    }

    /// The workers as the page lists them, those that were lost first, by rank, then by name, with
    /// what is known of those that are connected; and how many more there are.
    pub(super) fn json(&self, live: &HashMap<String, LiveWorker>) -> (Vec<Value>, usize) {
        let mut workers: Vec<(&String, &Worker)> = self.workers.iter().collect();
        let is_well = |worker: &Worker| [State::Ready, State::Ended].contains(&worker.state);
        workers.sort_by_key(|(name, worker)| {
            (is_well(worker), worker.rank.unwrap_or(usize::MAX), *name)
        });
        let more = workers.len().saturating_sub(MAX_LISTED);
        let json = |(name, worker): (&String, &Worker)| {
            let mut json = json!({
                "worker": name, "rank": worker.rank, "host": worker.host, "pid": worker.pid,
                "device": worker.device,
                "state": worker.state.label(), "reason": worker.reason, "restarts": worker.restarts,
            });
            if let (Some(live), Value::Object(json)) = (live.get(name), &mut json) {
                json.extend(live.fields());
            }
            json
        };
        (workers.into_iter().take(MAX_LISTED).map(json).collect(), more)
    }

    pub(super) fn restarts(&self) -> u64 {
        self.workers.values().map(|worker| worker.restarts).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_is_followed_from_its_join_through_a_loss_to_the_end() {
        let mut roster = Roster::default();
        let mut check = |event: Value, expected: &[(&str, Option<u64>, &str, u64)]| {
            roster.event(&event);
            let (workers, more) = roster.json(&HashMap::new());
            let found: Vec<_> = workers
                .iter()
                .map(|worker| {
                    let text = |key: &str| worker[key].as_str().expect("text");
                    (
                        text("worker"),
                        worker["rank"].as_u64(),
                        text("state"),
                        worker["restarts"].as_u64().expect("a number"),
                    )
                })
                .collect();
            assert_eq!((found.as_slice(), more), (expected, 0), "{event}");
        };
        let joined =
            |worker: &str| json!({"event": "joined", "worker": worker, "host": "h", "pid": 1});
        check(joined("a"), &[("a", None, "ready", 0)]);
        check(joined("b"), &[("a", None, "ready", 0), ("b", None, "ready", 0)]);
        let began = |ranks: &[&str]| json!({"event": "began", "generation": 1, "ranks": ranks});
        check(began(&["a", "b"]), &[("a", Some(0), "ready", 0), ("b", Some(1), "ready", 0)]);
        let lost = json!({"event": "lost", "worker": "a", "reason": "its connection ended"});
        check(lost, &[("a", None, "lost", 0), ("b", Some(1), "ready", 0)]);
        let restarting =
            json!({"event": "restarting", "worker": "a", "how": "killed by SIGKILL", "restart": 1});
        check(restarting, &[("a", None, "restarting", 1), ("b", Some(1), "ready", 0)]);
        check(joined("a"), &[("b", Some(1), "ready", 0), ("a", None, "ready", 1)]);
        check(began(&["a", "b"]), &[("a", Some(0), "ready", 1), ("b", Some(1), "ready", 0)]);
        check(
            json!({"event": "ended", "how": "done"}),
            &[("a", None, "ended", 1), ("b", None, "ended", 0)],
        );
    }

    #[test]
    fn a_long_list_is_cut() {
        let mut roster = Roster::default();
        for number in 0..MAX_WORKERS + 10 {
            roster.event(&json!({"event": "joined", "worker": format!("worker-{number:05}")}));
        }
        let (listed, more) = roster.json(&HashMap::new());
        assert_eq!((listed.len(), more), (MAX_LISTED, MAX_WORKERS - MAX_LISTED));
    }
}
