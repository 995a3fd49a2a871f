//! Stop requests by signals: Ctrl-C, SIGTERM, SIGUSR1, and SIGHUP of a terminal that was closed.
//! They are acted on before anything is printed. What a stop does is not known here.

use crate::exit::EXIT_STOPPED;
use crate::run::Event;
use crate::terminal;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::getppid;
use signal_hook::consts::SIGCHLD;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use thanos_transport::hangup_is_ignored;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

/// The same signal again within this time is one request: Slurm, systemd and supervisors deliver it
/// twice.
pub(crate) const DUPLICATE_INTERVAL: Duration = Duration::from_secs(1);

/// The signals that ask this process to stop: SIGHUP is one unless it is ignored, as `nohup` has
/// it.
pub(crate) fn stop_signals() -> Vec<Signal> {
    let mut signals = vec![Signal::SIGINT, Signal::SIGTERM, Signal::SIGUSR1];
    if !hangup_is_ignored() {
        signals.push(Signal::SIGHUP);
    }
    signals
}

/// Stop signals, and the ends of child processes, of a process that waits for one.
pub(crate) fn stop_and_child_signals() -> impl Iterator<Item = i32> {
    stop_signals().into_iter().map(|signal| signal as i32).chain([SIGCHLD])
}

/// Asks the kernel for `signal` at the end of the process `parent`, which has started this one.
/// `false`: it has ended already.
///
/// # Errors
/// If the kernel refuses.
pub(crate) fn end_with_parent(parent: i32, signal: Signal) -> nix::Result<bool> {
    set_pdeathsig(signal)?;
    Ok(getppid().as_raw() == parent)
}

/// Stop signals that this process receives from now on. Must be called within the runtime.
pub(crate) fn received() -> mpsc::Receiver<Signal> {
    let (received, signals) = mpsc::channel(16);
    for kind in stop_signals() {
        match signal(SignalKind::from_raw(kind as i32)) {
            Ok(mut stream) => {
                let received = received.clone();
                tokio::spawn(async move {
                    while stream.recv().await.is_some() {
                        _ = received.send(kind).await;
                    }
                });
            }
            Err(error) => {
                tracing::warn!("cannot handle {kind}, which will not save a checkpoint: {error}")
            }
        }
    }
    signals
}

/// The stop signals of a coordinator, from its start. Until there is a run to stop, one ends the
/// process.
pub(crate) struct StopSignals {
    run: Arc<OnceLock<mpsc::Sender<Event>>>,
}

impl StopSignals {
    /// Must be called within the runtime, whose own thread acts on the signals.
    pub(crate) fn watch() -> Self {
        let run = Arc::new(OnceLock::new());
        tokio::spawn(act_on(received(), run.clone()));
        Self { run }
    }

    /// From here on the first signal is an event of the run.
    pub(crate) fn deliver_to(&self, events: mpsc::Sender<Event>) {
        _ = self.run.set(events);
    }
}

/// The first signal asks for a stop; a second one ends the program at once.
async fn act_on(mut signals: mpsc::Receiver<Signal>, run: Arc<OnceLock<mpsc::Sender<Event>>>) {
    let mut first: Option<(Instant, Signal)> = None;
    while let Some(signal) = signals.recv().await {
        let reason = if signal == Signal::SIGINT { "Ctrl-C" } else { signal.as_str() };
        match (first, run.get()) {
            (Some((when, first)), _) if is_duplicate(first, signal, when.elapsed()) => {}
            (Some(_), _) => {
                exit(&format!("a second signal ({reason}): exiting at once, without a checkpoint"))
            }
            (None, None) => exit(&format!("stopped before the run began: {reason}")),
            (None, Some(events)) => {
                first = Some((Instant::now(), signal));
                let (events, asked) =
                    (events.clone(), Event::StopRequested { reason: reason.into() });
                // A full queue must not keep the second signal waiting.
                tokio::spawn(async move { events.send(asked).await });
            }
        }
    }
}

/// Whether a signal repeats the first one. systemd and shells may send SIGHUP after another one.
fn is_duplicate(first: Signal, signal: Signal, elapsed: Duration) -> bool {
    (signal == first || signal == Signal::SIGHUP) && elapsed < DUPLICATE_INTERVAL
}

/// A folder that this process removes when a signal ends it at once.
static REMOVED_AT_EXIT: OnceLock<PathBuf> = OnceLock::new();

/// Lets a signal that ends this process at once remove a temporary folder first.
pub(crate) fn remove_at_exit(folder: &Path) {
    _ = REMOVED_AT_EXIT.set(folder.to_owned());
}

fn exit(message: &str) -> ! {
    terminal::line(message);
    if let Some(folder) = REMOVED_AT_EXIT.get() {
        // Workers that end now may still write a log there.
        _ = std::fs::remove_dir_all(folder);
    }
    terminal::flush_briefly();
    std::process::exit(i32::from(EXIT_STOPPED))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_that_was_delivered_twice_is_one_request() {
        let (soon, late) = (Duration::from_millis(100), Duration::from_millis(1100));
        let cases = [
            (Signal::SIGTERM, Signal::SIGTERM, soon, true),
            (Signal::SIGTERM, Signal::SIGHUP, soon, true),
            (Signal::SIGINT, Signal::SIGTERM, soon, false),
            (Signal::SIGTERM, Signal::SIGTERM, late, false),
            (Signal::SIGTERM, Signal::SIGHUP, late, false),
        ];
        for (first, signal, elapsed, duplicate) in cases {
            assert_eq!(is_duplicate(first, signal, elapsed), duplicate, "{first}, then {signal}");
        }
    }
}
