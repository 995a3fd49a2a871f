//! The session's own thread: it opens the stream, pumps events out and commands in, heartbeats,
//! opens another stream when one breaks, and ends the process when the coordinator says so or does
//! not come back.

use super::admission::{Admission, unless_refused, unless_untrusted};
use super::connection::{Connection, ConnectionPeer};
use super::{Shared, signals};
use crate::error::{Result, WorkerError};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;
use std::time::Duration;
use thanos_c10d::exit_now;
use thanos_formats::{EXIT_CONFIG, EXIT_STOPPED, EXIT_UNREACHABLE};
use thanos_proto::v1::coordinator_client::CoordinatorClient;
use thanos_proto::{Command, Hello, Welcome, WorkerEvent, v1};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

pub(super) type Client = CoordinatorClient<Channel>;

/// Between two attempts to reach a coordinator.
const ATTEMPT_INTERVAL: Duration = Duration::from_millis(100);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const HEARTBEAT: Duration = Duration::from_millis(250);
/// A coordinator that does not answer for this long, asked once a second, is lost: nothing may have
/// closed the connection.
const PING_INTERVAL: Duration = Duration::from_secs(1);
const MAX_SILENCE: Duration = Duration::from_secs(3);

/// Keeps a stream to the coordinator.
pub(super) struct Reconnector {
    coordinator: String,
    admission: Admission,
    hello: Hello,
    shared: Arc<Shared>,
    /// To the training thread: streams that were opened in a lost one's stead.
    opened: Sender<Connection>,
    welcome: Option<Welcome>,
}

/// A stream that is open, and the training thread's end of it.
struct Open {
    commands: Streaming<v1::Command>,
    answers: Sender<Command>,
    window: Arc<super::connection::AckWindow>,
}

/// A reconnector with its first stream.
pub(super) struct Reconnecting {
    reconnector: Reconnector,
    open: Open,
}

impl Reconnector {
    pub(super) fn new(
        coordinator: &str,
        admission: Admission,
        hello: Hello,
        (shared, opened): (Arc<Shared>, Sender<Connection>),
    ) -> Self {
        Self { coordinator: coordinator.into(), admission, hello, shared, opened, welcome: None }
    }

    /// Waits until the coordinator is up, for this long.
    ///
    /// # Errors
    /// [`WorkerError::StoppedWaiting`] if a stop signal arrives first: there is no coordinator that
    /// could be asked to stop.
    pub(super) async fn open_first(
        mut self,
        wait: Duration,
    ) -> Result<(Reconnecting, Client, Connection)> {
        let mut stop_request = self.shared.stop_request.subscribe();
        let (client, connection, open) = tokio::select! {
            opened = self.open(wait) => opened?,
            _ = stop_request.wait_for(Option::is_some) => return Err(WorkerError::StoppedWaiting),
        };
        if let Admission::Certificate { identity, .. } = &self.admission {
            _ = self.shared.identity.set(identity.clone());
        }
        Ok((Reconnecting { reconnector: self, open }, client, connection))
    }

    /// Opens a stream and introduces this worker, again and again for some time.
    async fn open(&mut self, wait: Duration) -> Result<(Client, Connection, Open)> {
        let deadline = Instant::now() + wait;
        let mut reason = "it does not answer".to_owned();
        loop {
            match timeout_at(deadline, self.open_once()).await {
                Ok(Ok(opened)) => return Ok(opened),
                // Asking again changes nothing.
                Ok(Err(refused @ WorkerError::Refused { .. })) => return Err(refused),
                Ok(Err(error)) => reason = format!("{error}{}", self.admission.hint()),
                Err(_) => {}
            }
            if Instant::now() >= deadline {
                return Err(WorkerError::NotReached {
                    coordinator: self.coordinator.clone(),
                    within: wait,
                    reason,
                });
            }
            sleep(ATTEMPT_INTERVAL).await;
        }
    }

    /// As [`Self::open`]; the lease is of a coordinator that is not there. While its port accepts
    /// connections it is only paused, or being restarted, and what this worker holds is kept.
    async fn reconnect(&mut self, lease: Duration) -> Result<(Client, Connection, Open)> {
        loop {
            match self.open(lease).await {
                Err(error @ WorkerError::NotReached { .. }) if accepts(&self.coordinator).await => {
                    tracing::warn!("{error}; its port accepts connections: retrying");
                }
                opened => return opened,
            }
        }
    }

    async fn open_once(&mut self) -> Result<(Client, Connection, Open)> {
        let endpoint = self.admission.endpoint(&self.coordinator, &self.hello.worker_id).await?;
        let endpoint = endpoint
            .tcp_nodelay(true)
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(MAX_SILENCE)
            .keep_alive_while_idle(true);
        let mut client =
            CoordinatorClient::new(endpoint.connect().await.map_err(unless_untrusted)?);
        let (connection, ConnectionPeer { events, answers, window }) = Connection::new();
        let first = tokio_stream::once(WorkerEvent::Hello(self.hello.clone()));
        let stream = first.chain(ReceiverStream::new(events)).map(v1::WorkerEvent::from);
        let commands = client.session(stream).await.map_err(unless_refused)?.into_inner();
        tokio::spawn(heartbeats(connection.events(), self.shared.clone()));
        tokio::spawn(signals::report(connection.events(), self.shared.stop_request.subscribe()));
        Ok((client, connection, Open { commands, answers, window }))
    }
}

impl Reconnecting {
    /// Until the worker has left.
    pub(super) async fn pump_until_left(self) {
        let Self { mut reconnector, mut open } = self;
        loop {
            let Some(reason) = reconnector.pump(&mut open).await else { return };
            open.window.lose();
            // Without a coordinator a rank cannot learn which workers are lost: all leave the
            // generation, and keep their state.
            reconnector.shared.break_group(None);
            let lease =
                reconnector.welcome.as_ref().map_or(Duration::ZERO, |welcome| welcome.lease);
            reconnector.hello.generation = reconnector.shared.heartbeat().generation;
            tracing::warn!("{reason}; retrying for {lease:?}");
            match reconnector.reconnect(lease).await {
                Ok((_, connection, again)) => {
                    // Dropping the old end notifies the training thread; the new one is there by
                    // then.
                    _ = reconnector.opened.send(connection);
                    open = again;
                }
                Err(error) => {
                    let exit_code = match error {
                        WorkerError::Refused { exit_code, .. } => exit_code,
                        _ => EXIT_UNREACHABLE,
                    };
                    end(&error.to_string(), exit_code)
                }
            }
        }
    }
}

impl Reconnector {
    /// Hands commands on until the stream ends, and says why it did; `None`: the worker was asked
    /// to leave, as it wanted. A worker whose run is over while it still trains ends at once: its
    /// training thread may hang in a collective with a dead peer.
    async fn pump(&mut self, open: &mut Open) -> Option<String> {
        loop {
            let command = match open.commands.next().await {
                Some(Ok(command)) => Command::try_from(command).map_err(|error| error.to_string()),
                Some(Err(status)) => Err(format!("the session failed: {}", status.message())),
                None => Err("the coordinator closed the session".into()),
            };
            let done = self.shared.done.load(Ordering::Relaxed);
            match command {
                Err(reason) => return Some(reason),
                Ok(command @ (Command::Leave { .. } | Command::Refused { .. }))
                    if done || self.welcome.is_none() =>
                {
                    _ = open.answers.send(command);
                    return None;
                }
                Ok(Command::Leave { reason }) => {
                    end(&format!("leaving: {reason}"), EXIT_UNREACHABLE)
                }
                Ok(Command::Refused { reason, exit_code }) => {
                    end(&format!("refused: {reason}"), exit_code)
                }
                Ok(Command::Welcome(welcome)) => match &self.welcome {
                    None => {
                        self.welcome = Some(welcome.clone());
                        _ = open.answers.send(Command::Welcome(welcome));
                    }
                    Some(first)
                        if (&first.run_id, &first.config_digest)
                            == (&welcome.run_id, &welcome.config_digest) => {}
                    Some(first) if first.run_id == welcome.run_id => {
                        let reason = "the run was resumed with another configuration: this worker \
                            must be restarted";
                        end(reason, EXIT_STOPPED);
                    }
                    Some(first) => {
                        let (ours, theirs) = (&first.run_id, &welcome.run_id);
                        end(
                            &format!(
                                "this worker is of run {ours}, the coordinator now has run {theirs}"
                            ),
                            EXIT_CONFIG,
                        );
                    }
                },
                Ok(command) => self.obey(command, open),
            }
        }
    }

    fn obey(&self, command: Command, open: &Open) {
        let shared = &self.shared;
        match command {
            Command::Stop { reason } => {
                let grace = self.welcome.as_ref().and_then(|welcome| welcome.grace);
                _ = shared.stop_deadline.set(grace.map(|grace| std::time::Instant::now() + grace));
                shared.stop.store(true, Ordering::Relaxed);
                open.window.release(true);
                _ = open.answers.send(Command::Stop { reason });
            }
            Command::Regroup { generation } => {
                let mut position = shared.position();
                position.regroup = position.regroup.max(generation);
            }
            Command::Recorded { steps } => open.window.recorded(steps),
            Command::Abandon { generation, reason } => {
                tracing::warn!("generation {generation} has ended: {reason}");
                open.window.release(true);
                shared.break_group(Some(generation));
            }
            command => {
                if matches!(command, Command::Begin(_)) {
                    open.window.release(shared.stop.load(Ordering::Relaxed));
                }
                _ = open.answers.send(command);
            }
        }
    }
}

/// Whether something listens at HOST:PORT.
async fn accepts(address: &str) -> bool {
    let connected =
        tokio::time::timeout(CONNECT_TIMEOUT, tokio::net::TcpStream::connect(address)).await;
    matches!(connected, Ok(Ok(_)))
}

fn end(reason: &str, exit_code: u8) -> ! {
    tracing::error!("{reason}");
    exit_now(exit_code)
}

/// Four times a second, until the stream ends: generation, stage, step, phase, and what was waited
/// for.
async fn heartbeats(events: mpsc::Sender<WorkerEvent>, shared: Arc<Shared>) {
    let mut ticks = tokio::time::interval(HEARTBEAT);
    let mut shown = false;
    loop {
        ticks.tick().await;
        if let (false, Some(address)) = (shown, shared.shows.get()) {
            shown = events.send(WorkerEvent::Shows { address: address.to_string() }).await.is_ok();
        }
        let heartbeat = shared.heartbeat();
        if heartbeat.generation > 0 && events.send(WorkerEvent::Heartbeat(heartbeat)).await.is_err()
        {
            return;
        }
    }
}
