//! `chaos`: kills and stops workers of a live run on this machine at random moments, and reports
//! what it cost. It reads the run's events and sends signals; the run is not notified.

use crate::exit::{EXIT_DATA, EXIT_USAGE, Fatal};
use crate::run_dir::identity;
use crate::run_dir::ledger::read_steps;
use crate::workers::is_worker_since;
use anyhow::Result;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};
use thanos_configs::SplitMix64;
use thanos_formats::EVENTS_JSONL;

/// How often the run is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// What is done to a run, and how often.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chaos {
    /// Weights of the two faults.
    pub(crate) kill: u32,
    pub(crate) stop: u32,
    /// Mean time between two faults; they come as a Poisson process.
    pub(crate) every: Duration,
    pub(crate) seed: u64,
    /// `None`: until the run has ended.
    pub(crate) max_faults: Option<u32>,
}

/// What it cost.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Cost {
    pub(crate) kills: u32,
    pub(crate) stops: u32,
    /// Workers that the run has lost since.
    pub(crate) lost: usize,
    /// Seconds from a loss to the next generation, sorted.
    pub(crate) recoveries: Vec<f64>,
    pub(crate) seconds: f64,
    /// Steps that were committed meanwhile.
    pub(crate) steps: usize,
    /// How the run ended, if it did.
    pub(crate) ended: Option<String>,
}

impl fmt::Display for Cost {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            out,
            "{} kills and {} stops in {:.0} s, {} workers lost",
            self.kills, self.stops, self.seconds, self.lost
        )?;
        if let Some(last) = self.recoveries.len().checked_sub(1) {
            let at = |share: f64| self.recoveries[(last as f64 * share).round() as usize];
            let n = self.recoveries.len();
            writeln!(
                out,
                "{n} recoveries: median {:.2} s, 95 % {:.2} s, max {:.2} s",
                at(0.5),
                at(0.95),
                at(1.0)
            )?;
        }
        let spent = 1.0 - self.recoveries.iter().sum::<f64>() / self.seconds.max(f64::MIN_POSITIVE);
        write!(
            out,
            "{} steps committed, {:.1} % of the time in complete generations",
            self.steps,
            spent * 100.0
        )?;
        match &self.ended {
            Some(how) => write!(out, "; the run has ended: {how}"),
            None => write!(out, "; the run continues"),
        }
    }
}

/// Disturbs a run until it has ended, or enough was done; `on_fault` gets one line per fault.
///
/// # Errors
/// 64 if it is not a run directory; 65 if its events are damaged, or the run has ended already.
pub(crate) fn chaos(
    run_dir: &Path,
    chaos: &Chaos,
    on_fault: &mut dyn FnMut(&str),
) -> Result<Cost, Fatal> {
    identity(run_dir)?;
    let before = events(run_dir)?;
    if ending(&before).is_some() {
        return Err(Fatal::new(
            EXIT_DATA,
            format!("{}: the run has ended already", run_dir.display()),
        ));
    }
    if chaos.kill + chaos.stop == 0 {
        return Err(Fatal::new(
            EXIT_USAGE,
            "nothing to do: give --kill or --stop a weight above 0",
        ));
    }
    let (steps_before, started) = (read_steps(run_dir)?.len(), Instant::now());
    let mut stream = SplitMix64::new(chaos.seed);
    let (mut kills, mut stops) = (0, 0);
    let mut next = started + pause(&mut stream, chaos.every);
    loop {
        let events = events(run_dir)?;
        let enough = chaos.max_faults.is_some_and(|max| kills + stops >= max);
        if ending(&events).is_some() || enough {
            return Ok(cost(
                &events[before.len()..],
                (kills, stops),
                started.elapsed(),
                read_steps(run_dir)?.len() - steps_before,
            ));
        }
        if Instant::now() >= next {
            next += pause(&mut stream, chaos.every);
            let here = host();
            let is_ours = |(worker, process): &(String, Process)| {
                process.host == here && is_worker_since(process.pid, worker, process.joined)
            };
            let workers: Vec<(String, Process)> =
                alive(&events).into_iter().filter(is_ours).collect();
            if !workers.is_empty() {
                let (worker, Process { pid, .. }) =
                    &workers[stream.below(workers.len() as u64) as usize];
                let kills_it =
                    stream.below(u64::from(chaos.kill + chaos.stop)) < u64::from(chaos.kill);
                let (signal, word) = if kills_it {
                    (Signal::SIGKILL, "killed")
                } else {
                    (Signal::SIGSTOP, "stopped")
                };
                if kill(Pid::from_raw(*pid), signal).is_ok() {
                    (kills, stops) = if kills_it { (kills + 1, stops) } else { (kills, stops + 1) };
                    on_fault(&format!(
                        "{:>7.1} s  {word} {worker} (pid {pid})",
                        started.elapsed().as_secs_f64()
                    ));
                }
            }
        }
        thread::sleep(POLL_INTERVAL);
    }
}

/// Exponentially distributed, as the pauses of a Poisson process are.
fn pause(stream: &mut SplitMix64, mean: Duration) -> Duration {
    mean.mul_f64(-(1.0 - stream.unit()).ln())
}

/// The whole lines of `events.jsonl`.
fn events(run_dir: &Path) -> Result<Vec<Value>, Fatal> {
    let path = run_dir.join(EVENTS_JSONL);
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let read = |line: &str| {
        serde_json::from_str(line)
            .map_err(|error| Fatal::new(EXIT_DATA, format!("{}: {error}", path.display())))
    };
    whole.lines().map(read).collect()
}

/// How the run ended, by its last event.
fn ending(events: &[Value]) -> Option<String> {
    let last = events.last().filter(|event| event["event"] == "ended")?;
    Some(last["how"].as_str().unwrap_or("somehow").into())
}

/// The process of a worker, as its run knows it.
#[derive(Clone, Debug, PartialEq)]
struct Process {
    host: String,
    pid: i32,
    /// When it joined, in seconds since 1970: its process was started before.
    joined: f64,
}

/// As workers name the machine that they are on.
fn host() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned()
}

/// The processes of the workers that have joined and are not lost.
fn alive(events: &[Value]) -> BTreeMap<String, Process> {
    let mut alive = BTreeMap::new();
    for event in events {
        let Some(worker) = event["worker"].as_str() else { continue };
        match event["event"].as_str() {
            Some("joined") => {
                // Signalling others would reach every process, or init.
                let pid = event["pid"]
                    .as_i64()
                    .and_then(|pid| i32::try_from(pid).ok())
                    .filter(|pid| *pid > 1);
                if let (Some(pid), Some(joined)) = (pid, event["time"].as_f64()) {
                    let host = event["host"].as_str().unwrap_or_default().to_owned();
                    alive.insert(worker.to_owned(), Process { host, pid, joined });
                }
            }
            Some("lost") => _ = alive.remove(worker),
            _ => {}
        }
    }
    alive
}

fn cost(events: &[Value], (kills, stops): (u32, u32), elapsed: Duration, steps: usize) -> Cost {
    let of = |kind: &'static str| events.iter().filter(move |event| event["event"] == kind);
    let mut recoveries: Vec<f64> =
        of("recovered").filter_map(|event| event["seconds"].as_f64()).collect();
    recoveries.sort_by(f64::total_cmp);
    let (lost, seconds) = (of("lost").count(), elapsed.as_secs_f64());
    Cost { kills, stops, lost, recoveries, seconds, steps, ended: ending(events) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn workers_that_joined_and_were_not_lost_are_alive() {
        let joined = |worker: &str, pid: i64| {
            json!({"time": 5.0, "event": "joined",
        "worker": worker, "host": "node", "pid": pid})
        };
        let events = [
            joined("worker-0", 10),
            joined("worker-1", 11),
            json!({"event": "lost", "worker": "worker-0"}),
            joined("worker-0", 12),
            json!({"event": "lost", "worker": "worker-1"}),
            // Signalling these would reach every process, or init.
            joined("worker-2", -1),
            joined("worker-3", 1),
        ];
        assert_eq!(
            alive(&events),
            BTreeMap::from([(
                "worker-0".to_owned(),
                Process { host: "node".into(), pid: 12, joined: 5.0 }
            )])
        );
    }

    #[test]
    fn the_cost_is_read_from_the_events() {
        let events = [
            json!({"event": "lost", "worker": "worker-0"}),
            json!({"event": "recovered", "seconds": 3.0}),
            json!({"event": "recovered", "seconds": 1.0}),
            json!({"event": "ended", "how": "done"}),
        ];
        let cost = cost(&events, (2, 1), Duration::from_secs(40), 100);
        assert_eq!((cost.lost, &cost.recoveries), (1, &vec![1.0, 3.0]));
        let expected = "2 kills and 1 stops in 40 s, 1 workers lost\n2 recoveries: median 3.00 s, \
            95 % 3.00 s, max \
                        3.00 s\n100 steps committed, 90.0 % of the time in complete generations; \
                        the run has \
                        ended: done";
        assert_eq!(cost.to_string(), expected);
    }

    /// Mean and median of an exponential distribution: 10 s, and 10 ln 2 s.
    #[test]
    fn faults_come_as_a_poisson_process() {
        let mut stream = SplitMix64::new(7);
        let mut pauses: Vec<f64> = (0..10_000)
            .map(|_| pause(&mut stream, Duration::from_secs(10)).as_secs_f64())
            .collect();
        pauses.sort_by(f64::total_cmp);
        let mean = pauses.iter().sum::<f64>() / 10_000.0;
        assert!(
            (mean - 10.0).abs() < 0.4 && (pauses[5_000] - 6.93).abs() < 0.4,
            "{mean} {}",
            pauses[5_000]
        );
    }
}
