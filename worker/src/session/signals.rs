//! Stop signals of this worker: systemd, Slurm, process groups and preemption deliver them to
//! workers as well, or to workers only. The first one is reported to the coordinator, and training
//! continues: SIGTERM as a notice, as it may be for this worker only, when its node is drained; the
//! others as a request to stop the whole run, with a checkpoint. A later signal ends this process.

use anyhow::{Context, Result};
use std::time::{Duration, Instant};
use thanos_c10d::exit_now;
use thanos_formats::EXIT_STOPPED;
use thanos_proto::WorkerEvent;
use thanos_transport::hangup_is_ignored;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

/// Signals within this time of the first one are the same request: it may be delivered more than
/// once.
const DUPLICATE_INTERVAL: Duration = Duration::from_secs(1);

const SIGTERM: &str = "SIGTERM";

/// What the coordinator is sent; `None`: no signal has come.
pub(super) type StopRequest = watch::Sender<Option<WorkerEvent>>;

/// Handles stop signals from now on, on the runtime that this is called in: SIGHUP is one unless it
/// is ignored.
///
/// # Errors
/// If a signal cannot be handled.
pub(super) fn handle(request: StopRequest, worker_id: String) -> Result<()> {
    let (received, signals) = mpsc::channel(16);
    let mut kinds = vec![
        ("SIGINT", SignalKind::interrupt()),
        (SIGTERM, SignalKind::terminate()),
        ("SIGUSR1", SignalKind::user_defined1()),
    ];
    if !hangup_is_ignored() {
        kinds.push(("SIGHUP", SignalKind::hangup()));
    }
    for (name, kind) in kinds {
        let mut stream = signal(kind).with_context(|| format!("a handler of {name}"))?;
        let received = received.clone();
        tokio::spawn(async move {
            while stream.recv().await.is_some() {
                _ = received.send(name).await;
            }
        });
    }
    tokio::spawn(act_on(signals, request, worker_id));
    Ok(())
}

async fn act_on(
    mut signals: mpsc::Receiver<&'static str>,
    request: StopRequest,
    worker_id: String,
) {
    let mut first: Option<Instant> = None;
    while let Some(name) = signals.recv().await {
        match first {
            Some(first) if first.elapsed() < DUPLICATE_INTERVAL => {}
            // Nothing is logged before: a log that blocks must not keep this process.
            Some(_) => exit_now(EXIT_STOPPED),
            None => {
                first = Some(Instant::now());
                request.send_replace(Some(report_of(name, &worker_id)));
                tracing::warn!(
                    "{name}: reported to the coordinator, which decides whether the run stops"
                );
            }
        }
    }
}

fn report_of(signal: &str, worker_id: &str) -> WorkerEvent {
    match signal {
        SIGTERM => WorkerEvent::TerminationNotice,
        other => WorkerEvent::StopRequested { reason: format!("{other} received by {worker_id}") },
    }
}

/// Sends the report on a session's stream: at once if there is one, as after a reconnection.
pub(super) async fn report(
    events: mpsc::Sender<WorkerEvent>,
    mut request: watch::Receiver<Option<WorkerEvent>>,
) {
    let event = tokio::select! {
        () = events.closed() => return,
        asked = request.wait_for(Option::is_some) => asked.ok().and_then(|event| event.clone()),
    };
    if let Some(event) = event {
        // A stream that is lost has a successor, which gets the report as well.
        _ = events.send(event).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_signal_before_and_after_a_session_is_up_is_reported_on_each_stream() {
        let request = StopRequest::new(None);
        let (events, mut sent) = mpsc::channel(4);
        let before = tokio::spawn(report(events, request.subscribe()));
        request.send_replace(Some(report_of("SIGINT", "w")));
        let (again, mut sent_again) = mpsc::channel(4);
        report(again, request.subscribe()).await;
        before.await.expect("no panic");
        let expected =
            || Some(WorkerEvent::StopRequested { reason: "SIGINT received by w".into() });
        assert_eq!((sent.recv().await, sent_again.recv().await), (expected(), expected()));
        assert_eq!(report_of("SIGTERM", "w"), WorkerEvent::TerminationNotice);
    }
}
