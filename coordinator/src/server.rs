//! The gRPC service: it numbers sessions, turns their messages into events and commands into
//! messages. It decides nothing; `run.rs` does.

pub(crate) mod credentials;
mod descriptors;
mod enrol_only;
mod listen;
pub(crate) mod pack_stream;
mod plan_names;
pub(crate) mod rendezvous;

use crate::exit::EXIT_NO_PERMISSION;
use crate::run::{Event, SessionId};
use crate::run_dir::checkpoints::CheckpointFiles;
use crate::server::credentials::Credentials;
use crate::server::pack_stream::PackServer;
use crate::server::rendezvous::{Refusal, Store};
use anyhow::Result;
pub(crate) use descriptors::check_descriptors;
use enrol_only::EnrolOnly;
pub(crate) use listen::bind;
pub(crate) use plan_names::PlanNames;
use std::collections::{BTreeMap, HashMap};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use thanos_proto::v1::coordinator_server::{Coordinator, CoordinatorServer};
use thanos_proto::{Command, WorkerEvent, v1};
use thanos_transport::{Accepted, Connection, ConnectionLimits, Peer, PeerIdentity, connections};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::{ReceiverStream, UnboundedReceiverStream};
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

/// The metric of attempts to join that were refused.
pub(crate) const REFUSED_ENROLMENTS: &str = "thanos_trainer_refused_enrolments_total";
/// Workers of one run; a session each.
pub(crate) const MAX_WORKERS: usize = 4096;
/// Bytes of one message; the largest is the configuration.
const MAX_MESSAGE_BYTES: usize = 4 << 20;
/// Connections of workers at a time, and of one worker: it needs one, and the one before it may not
/// be known to be lost.
const MAX_CONNECTIONS: usize = 2 * MAX_WORKERS + 256;
const MAX_CONNECTIONS_OF_ONE: usize = 8;
/// Connections that have shown no certificate yet, at least: all workers of a run may start at the
/// same time.
const MIN_PENDING: usize = 256;
/// What a client without a certificate may have under way on one connection: one small call, and
/// its repetition.
const MAX_ENROL_MESSAGE: usize = 16 << 10;
const MAX_ENROL_STREAMS: u32 = 2;
const MAX_ENROL_HEADERS: u32 = 4 << 10;
const ENROL_WINDOW: u32 = 16 << 10;
/// Pause before the answer to a worker that may not join: it slows down guessing of tokens.
const REFUSAL_LINGER: Duration = Duration::from_secs(1);
/// Streams that a worker may have open on one connection; it needs four.
const MAX_STREAMS: u32 = 32;
/// A connection that does not answer for so long, asked as often, is closed.
const PING_INTERVAL: Duration = Duration::from_secs(20);
/// How long a new session may take to introduce itself.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// The sessions that are open, and the way to each.
#[derive(Clone, Default)]
pub(crate) struct Sessions {
    /// Where workers show themselves, by their ids.
    pages: Arc<Mutex<BTreeMap<String, (SessionId, String)>>>,
    // A session is sent a handful of commands in its life: welcome, begin, commits, stop, leave.
    outbound: Arc<Mutex<HashMap<SessionId, mpsc::UnboundedSender<Command>>>>,
    /// The newest generation and the worker that is its rank 0.
    rank_0: Arc<Mutex<(u64, String)>>,
    /// The worker that was asked to save what it holds, as the run ends.
    saver: Arc<Mutex<Option<String>>>,
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
            // The stream ends after its last command.
            outbound.remove(&session);
        }
    }

    /// A generation begins, with these workers in the order of their ranks.
    pub(crate) fn began(&self, generation: u64, workers: &[String]) {
        let rank_0 = workers.first().cloned().unwrap_or_default();
        *self.rank_0.lock().unwrap_or_else(PoisonError::into_inner) = (generation, rank_0);
    }

    /// Whether this peer may write what rank 0 of a generation writes. Without certificates only
    /// the generation is known.
    fn is_rank_0(&self, peer: &Peer, generation: u64) -> bool {
        let (newest, rank_0) = &*self.rank_0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_its_name = match &peer.identity {
            PeerIdentity::Worker(worker) => worker == rank_0,
            PeerIdentity::Unchecked => true,
            PeerIdentity::Unknown => false,
        };
        is_its_name && generation == *newest
    }

    /// This worker, of whatever rank, saves what it holds, as the run ends.
    pub(crate) fn saves(&self, worker: &str) {
        *self.saver.lock().unwrap_or_else(PoisonError::into_inner) = Some(worker.into());
    }

    fn is_saver(&self, peer: &Peer) -> bool {
        let saver = self.saver.lock().unwrap_or_else(PoisonError::into_inner);
        match &peer.identity {
            PeerIdentity::Worker(worker) => saver.as_ref() == Some(worker),
            PeerIdentity::Unchecked => saver.is_some(),
            PeerIdentity::Unknown => false,
        }
    }

    /// Where workers show themselves, by their ids: HOST:PORT.
    pub(crate) fn pages(&self) -> BTreeMap<String, String> {
        let pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        pages.iter().map(|(worker, (_, address))| (worker.clone(), address.clone())).collect()
    }

    /// `None`: the session is over.
    fn shows(&self, worker: &str, session: SessionId, address: Option<String>) {
        let mut pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        match address {
            Some(address) => _ = pages.insert(worker.into(), (session, address)),
            // Another session of this worker may have begun.
            None => pages.retain(|_, (of, _)| *of != session),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SessionId, mpsc::UnboundedSender<Command>>> {
        self.outbound.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the service reaches.
pub(crate) struct Service {
    pub(crate) events: mpsc::Sender<Event>,
    pub(crate) sessions: Sessions,
    pub(crate) store: Arc<Store>,
    pub(crate) packs: Arc<PackServer>,
    pub(crate) files: Arc<CheckpointFiles>,
    pub(crate) names: Arc<PlanNames>,
    /// Workers that the run may have.
    pub(crate) workers: usize,
    /// None: every client is admitted, and nothing is encrypted.
    pub(crate) credentials: Option<Arc<Credentials>>,
    pub(crate) next_session: AtomicU64,
}

/// Serves on `listener` until `stop` resolves.
pub(crate) async fn serve(
    listener: TcpListener,
    service: Service,
    stop: oneshot::Receiver<()>,
) -> Result<()> {
    let tls = match &service.credentials {
        Some(credentials) => Some(TlsAcceptor::from(Arc::new(credentials.tls(&["h2"])?))),
        None => None,
    };
    let limits = ConnectionLimits {
        open: MAX_CONNECTIONS,
        open_of_one: MAX_CONNECTIONS_OF_ONE,
        pending: max_pending(service.workers),
    };
    let Accepted { admitted, unknown } = connections(listener, tls, limits);
    let service = Arc::new(service);
    let enrolment = serve_enrolment(service.clone(), unknown);
    let service = CoordinatorServer::from_arc(service)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    let sessions = tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(PING_INTERVAL))
        .http2_keepalive_timeout(Some(PING_INTERVAL))
        .max_concurrent_streams(Some(MAX_STREAMS))
        .add_service(service)
        .serve_with_incoming_shutdown(admitted, async {
            _ = stop.await;
        });
    tokio::pin!(enrolment, sessions);
    tokio::select! {
        served = &mut sessions => return Ok(served?),
        enrolled = &mut enrolment => enrolled?,
    }
    // The listener has closed.
    Ok(sessions.await?)
}

/// Serves clients without a certificate, until there can be no more.
async fn serve_enrolment(
    service: Arc<Service>,
    clients: ReceiverStream<std::io::Result<Connection>>,
) -> Result<(), tonic::transport::Error> {
    let enrol = CoordinatorServer::from_arc(service)
        .max_decoding_message_size(MAX_ENROL_MESSAGE)
        .max_encoding_message_size(MAX_ENROL_MESSAGE);
    tonic::transport::Server::builder()
        .max_concurrent_streams(Some(MAX_ENROL_STREAMS))
        .initial_stream_window_size(Some(ENROL_WINDOW))
        .http2_max_header_list_size(Some(MAX_ENROL_HEADERS))
        .add_service(EnrolOnly(enrol))
        .serve_with_incoming(clients)
        .await
}

/// Connections that may be open without a certificate.
pub(crate) fn max_pending(workers: usize) -> usize {
    MIN_PENDING.max(2 * workers)
}

/// The peer of a call, if it may do anything but enrol.
fn admitted<T>(request: &Request<T>) -> Result<Peer, Status> {
    let peer = request
        .extensions()
        .get::<Peer>()
        .ok_or_else(|| Status::internal("a connection without a peer"))?;
    match peer.identity {
        PeerIdentity::Unknown => {
            Err(Status::unauthenticated("present the certificate that Enrol issues"))
        }
        PeerIdentity::Unchecked | PeerIdentity::Worker(_) => Ok(peer.clone()),
    }
}

#[tonic::async_trait]
impl Coordinator for Service {
    async fn enrol(
        &self,
        request: Request<v1::EnrolRequest>,
    ) -> Result<Response<v1::EnrolReply>, Status> {
        let from = request.extensions().get::<Peer>().map(|peer| peer.address);
        let v1::EnrolRequest { worker_id, token, certificate_request } = request.into_inner();
        let Some(credentials) = &self.credentials else {
            return Err(Status::failed_precondition("this run is insecure: it has no enrolment"));
        };
        match credentials.enrol(
            &worker_id,
            &token,
            &certificate_request,
            from.map(|from| from.ip()),
        ) {
            Ok(certificate) => Ok(Response::new(v1::EnrolReply { certificate })),
            Err(reason) => {
                metrics::counter!(REFUSED_ENROLMENTS).increment(1);
                tracing::warn!(?from, "a worker may not join: {reason}");
                tokio::time::sleep(REFUSAL_LINGER).await;
                Err(Status::permission_denied(reason.to_string()))
            }
        }
    }

    type FetchPackStream = Pin<Box<dyn Stream<Item = Result<v1::PackPart, Status>> + Send>>;

    async fn fetch_pack(
        &self,
        request: Request<v1::PackRequest>,
    ) -> Result<Response<Self::FetchPackStream>, Status> {
        admitted(&request)?;
        let parts = self.packs.clone().send(request.into_inner())?;
        Ok(Response::new(Box::pin(ReceiverStream::new(parts))))
    }

    type FetchFileStream = Pin<Box<dyn Stream<Item = Result<v1::FileChunk, Status>> + Send>>;

    async fn fetch_file(
        &self,
        request: Request<v1::CheckpointFile>,
    ) -> Result<Response<Self::FetchFileStream>, Status> {
        admitted(&request)?;
        let chunks = self.files.send(&request.into_inner())?;
        Ok(Response::new(Box::pin(ReceiverStream::new(chunks))))
    }

    async fn store_file(
        &self,
        request: Request<Streaming<v1::FilePart>>,
    ) -> Result<Response<v1::Stored>, Status> {
        let peer = admitted(&request)?;
        let may_write = |generation| {
            let is_rank_0 =
                self.store.is_current(generation) && self.sessions.is_rank_0(&peer, generation);
            is_rank_0 || self.sessions.is_saver(&peer)
        };
        self.files.clone().take(request.into_inner(), may_write).await?;
        Ok(Response::new(v1::Stored {}))
    }

    type SessionStream = Pin<Box<dyn Stream<Item = Result<v1::Command, Status>> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<v1::WorkerEvent>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let peer = admitted(&request)?;
        let session = self.next_session.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = mpsc::unbounded_channel();
        self.sessions.lock().insert(session, sender);
        let listener = Listener {
            session,
            peer,
            events: self.events.clone(),
            sessions: self.sessions.clone(),
            names: self.names.clone(),
        };
        tokio::spawn(listener.listen(request.into_inner()));
        let commands =
            UnboundedReceiverStream::new(receiver).map(|command| Ok(v1::Command::from(command)));
        Ok(Response::new(Box::pin(commands)))
    }

    async fn store(
        &self,
        request: Request<v1::StoreRequest>,
    ) -> Result<Response<v1::StoreReply>, Status> {
        admitted(&request)?;
        self.store.answer(request.into_inner()).await.map(Response::new).map_err(|refusal| {
            match refusal {
                Refusal::Stale { .. } => Status::failed_precondition(refusal.to_string()),
                Refusal::Timeout { .. } => Status::deadline_exceeded(refusal.to_string()),
                Refusal::Invalid(_) => Status::invalid_argument(refusal.to_string()),
            }
        })
    }
}

/// What brings one session's messages to the run.
struct Listener {
    session: SessionId,
    peer: Peer,
    events: mpsc::Sender<Event>,
    sessions: Sessions,
    names: Arc<PlanNames>,
}

impl Listener {
    /// Hands a session's messages on until its stream ends.
    async fn listen(self, mut messages: Streaming<v1::WorkerEvent>) {
        let Self { session, ref events, ref sessions, .. } = self;
        let first = tokio::time::timeout(HELLO_TIMEOUT, next(&mut messages)).await;
        let Ok(Some(WorkerEvent::Hello(hello))) = first else {
            tracing::warn!(from = %self.peer.address, "a connection sent no Hello");
            sessions.lock().remove(&session);
            return;
        };
        if let PeerIdentity::Worker(worker) = &self.peer.identity
            && *worker != hello.worker_id
        {
            return self.refuse(format!(
                "the certificate belongs to worker `{worker}`, but Hello names `{}`",
                hello.worker_id
            ));
        }
        let worker = hello.worker_id.clone();
        if events.send(Event::Opened { session, hello }).await.is_err() {
            return;
        }
        while let Some(event) = next(&mut messages).await {
            if let WorkerEvent::Shows { address } = event {
                sessions.shows(&worker, session, Some(address));
                continue;
            }
            // The session ends, and the run continues without this worker.
            if let Err(problem) = self.names.check(&event) {
                self.refuse(format!("worker `{worker}`: {problem}"));
                break;
            }
            if events.send(Event::Received { session, event }).await.is_err() {
                return;
            }
        }
        sessions.shows(&worker, session, None);
        sessions.lock().remove(&session);
        _ = events.send(Event::Closed { session }).await;
    }

    fn refuse(&self, reason: String) {
        tracing::warn!(from = %self.peer.address, "{reason}");
        self.sessions
            .send(self.session, Command::Refused { reason, exit_code: EXIT_NO_PERMISSION });
    }
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
            tracing::debug!("a session failed: {}", status.message());
            None
        }
    }
}
