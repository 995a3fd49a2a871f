//! The session's own thread: connect, pump events out and commands in, heartbeat, and end the process when the
//! coordinator is gone or says that the run is over.

use super::Shared;
use crate::exit::EXIT_UNREACHABLE;
use anyhow::{Context, Result};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};
use thanos_proto::v1::coordinator_client::CoordinatorClient;
use thanos_proto::{Command, Hello, WorkerEvent, v1};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

pub(super) type Client = CoordinatorClient<Channel>;

/// How long a coordinator may take to come up, and between two attempts to reach it.
const MOST_CONNECT: Duration = Duration::from_secs(60);
const BETWEEN_ATTEMPTS: Duration = Duration::from_millis(100);
const HEARTBEAT: Duration = Duration::from_secs(1);

/// Opens the stream; from then on commands arrive at `inbound`.
pub(super) async fn open(
    coordinator: &str,
    hello: Hello,
    outbound: mpsc::Receiver<WorkerEvent>,
    inbound: std::sync::mpsc::Sender<Command>,
    shared: Arc<Shared>,
) -> Result<Client> {
    let channel = connect(coordinator).await?;
    let mut client = CoordinatorClient::new(channel);
    let first = tokio_stream::once(WorkerEvent::Hello(hello));
    let events = first.chain(ReceiverStream::new(outbound)).map(v1::WorkerEvent::from);
    let commands = client.session(events).await.map_err(|status| anyhow::anyhow!("{}", status.message()))?.into_inner();
    tokio::spawn(pump(commands, inbound, shared));
    Ok(client)
}

async fn connect(coordinator: &str) -> Result<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{coordinator}"))
        .with_context(|| format!("`{coordinator}` is not HOST:PORT"))?
        .tcp_nodelay(true)
        .connect_timeout(Duration::from_secs(5));
    let deadline = Instant::now() + MOST_CONNECT;
    loop {
        match endpoint.connect().await {
            Ok(channel) => return Ok(channel),
            Err(error) if Instant::now() > deadline => {
                return Err(error).with_context(|| format!("not reached within {MOST_CONNECT:?}"));
            }
            Err(_) => tokio::time::sleep(BETWEEN_ATTEMPTS).await,
        }
    }
}

/// Hands commands on until the stream ends. A worker whose coordinator is gone, or whose run is over while it still
/// trains, ends at once: its training thread may hang in a collective with a dead peer.
async fn pump(mut commands: Streaming<v1::Command>, inbound: std::sync::mpsc::Sender<Command>, shared: Arc<Shared>) {
    loop {
        let command = match commands.next().await {
            Some(Ok(command)) => Command::try_from(command).map_err(|error| error.to_string()),
            Some(Err(status)) => Err(format!("the session broke: {}", status.message())),
            None => Err("the coordinator closed the session".into()),
        };
        let done = shared.done.load(Ordering::Relaxed);
        match command {
            Ok(Command::Leave { reason }) if !done => end(&format!("told to leave: {reason}")),
            Ok(Command::Stop { reason }) => {
                tracing::info!(reason, "asked to stop");
                shared.stop.store(true, Ordering::Relaxed);
                _ = inbound.send(Command::Stop { reason });
            }
            Ok(Command::Regroup) => shared.regroup.store(true, Ordering::Relaxed),
            Ok(command) => {
                if matches!(command, Command::Begin(_)) {
                    // What was asked for has come; what is asked for from here on is another one.
                    shared.regroup.store(false, Ordering::Relaxed);
                }
                _ = inbound.send(command);
            }
            Err(_) if done => return,
            Err(reason) => end(&reason),
        }
    }
}

fn end(reason: &str) -> ! {
    tracing::error!("{reason}");
    std::process::exit(i32::from(EXIT_UNREACHABLE));
}

/// Once a second: generation, stage, step, phase.
pub(super) async fn heartbeats(events: mpsc::Sender<WorkerEvent>, shared: Arc<Shared>) {
    let mut ticks = tokio::time::interval(HEARTBEAT);
    loop {
        ticks.tick().await;
        let heartbeat = shared.heartbeat.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if heartbeat.generation > 0 && events.send(WorkerEvent::Heartbeat(heartbeat)).await.is_err() {
            return;
        }
    }
}
