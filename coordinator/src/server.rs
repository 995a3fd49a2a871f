//! The gRPC service: it numbers sessions, turns their messages into events and commands into messages. It decides
//! nothing; `run.rs` does.

use crate::door::connections;
use crate::packs::PackShelf;
use crate::run::{Event, SessionId};
use crate::store::{Refusal, Store};
use anyhow::Result;
use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use thanos_proto::v1::coordinator_server::{Coordinator, CoordinatorServer};
use thanos_proto::{Command, WorkerEvent, v1};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::{ReceiverStream, UnboundedReceiverStream};
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

/// Bytes of one message; the largest is the configuration.
const MOST_MESSAGE: usize = 4 << 20;
/// How long a new session may take to introduce itself.
const MOST_SILENCE_BEFORE_HELLO: Duration = Duration::from_secs(10);

/// The sessions that are open, and the way to each.
#[derive(Clone, Default)]
pub(crate) struct Sessions {
    // A session is sent a handful of commands in its life: welcome, begin, commits, stop, leave.
    outbound: Arc<Mutex<HashMap<SessionId, mpsc::UnboundedSender<Command>>>>,
}

impl Sessions {
    /// A session that has closed is sent nothing.
    pub(crate) fn send(&self, session: SessionId, command: Command) {
        let ends = matches!(command, Command::Leave { .. } | Command::Refused { .. });
        let mut outbound = self.lock();
        if let Some(sender) = outbound.get(&session) {
            _ = sender.send(command);
        }
        if ends {
            // The stream ends behind its last command.
            outbound.remove(&session);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SessionId, mpsc::UnboundedSender<Command>>> {
        self.outbound.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Serves on `listener` until `stop` resolves; what happens goes to `events`.
pub(crate) async fn serve(
    listener: TcpListener,
    events: mpsc::Sender<Event>,
    sessions: Sessions,
    (store, packs): (Arc<Store>, Arc<PackShelf>),
    stop: oneshot::Receiver<()>,
) -> Result<()> {
    let service = Service { events, sessions, store, packs, next_session: AtomicU64::new(1) };
    let service = CoordinatorServer::new(service).max_decoding_message_size(MOST_MESSAGE);
    tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(20)))
        .add_service(service)
        .serve_with_incoming_shutdown(connections(listener), async {
            _ = stop.await;
        })
        .await?;
    Ok(())
}

struct Service {
    events: mpsc::Sender<Event>,
    sessions: Sessions,
    store: Arc<Store>,
    packs: Arc<PackShelf>,
    next_session: AtomicU64,
}

#[tonic::async_trait]
impl Coordinator for Service {
    type FetchPackStream = Pin<Box<dyn Stream<Item = Result<v1::PackPart, Status>> + Send>>;

    async fn fetch_pack(&self, request: Request<v1::PackRequest>) -> Result<Response<Self::FetchPackStream>, Status> {
        let parts = self.packs.clone().send(request.into_inner())?;
        Ok(Response::new(Box::pin(ReceiverStream::new(parts))))
    }

    type SessionStream = Pin<Box<dyn Stream<Item = Result<v1::Command, Status>> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<v1::WorkerEvent>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let session = self.next_session.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = mpsc::unbounded_channel();
        self.sessions.lock().insert(session, sender);
        tokio::spawn(listen(session, request.into_inner(), self.events.clone(), self.sessions.clone()));
        let commands = UnboundedReceiverStream::new(receiver).map(|command| Ok(v1::Command::from(command)));
        Ok(Response::new(Box::pin(commands)))
    }

    async fn store(&self, request: Request<v1::StoreRequest>) -> Result<Response<v1::StoreReply>, Status> {
        self.store.answer(request.into_inner()).await.map(Response::new).map_err(|refusal| match refusal {
            Refusal::Stale { .. } => Status::failed_precondition(refusal.to_string()),
            Refusal::Timeout { .. } => Status::deadline_exceeded(refusal.to_string()),
            Refusal::Invalid(_) => Status::invalid_argument(refusal.to_string()),
        })
    }
}

/// Hands a session's messages on until its stream ends.
async fn listen(
    session: SessionId,
    mut messages: Streaming<v1::WorkerEvent>,
    events: mpsc::Sender<Event>,
    sessions: Sessions,
) {
    let first = tokio::time::timeout(MOST_SILENCE_BEFORE_HELLO, next(&mut messages)).await;
    let Ok(Some(WorkerEvent::Hello(hello))) = first else {
        tracing::warn!(session, "a connection did not introduce itself as a worker");
        sessions.lock().remove(&session);
        return;
    };
    if events.send(Event::Opened { session, hello }).await.is_err() {
        return;
    }
    while let Some(event) = next(&mut messages).await {
        if events.send(Event::Said { session, event }).await.is_err() {
            return;
        }
    }
    sessions.lock().remove(&session);
    _ = events.send(Event::Closed { session }).await;
}

/// The next well-formed message; `None`: the stream ended, broke, or brought a malformed one.
async fn next(messages: &mut Streaming<v1::WorkerEvent>) -> Option<WorkerEvent> {
    match messages.next().await? {
        Ok(message) => match WorkerEvent::try_from(message) {
            Ok(event) => Some(event),
            Err(malformed) => {
                tracing::warn!("{malformed}");
                None
            }
        },
        Err(status) => {
            tracing::debug!("a session broke: {}", status.message());
            None
        }
    }
}
