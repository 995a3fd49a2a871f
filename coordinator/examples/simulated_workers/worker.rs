//! One simulated worker: it enrols, opens a session, heartbeats, and meets its peers in the
//! coordinator's store as Gloo or NCCL would; it trains nothing.

use crate::Failure;
use rcgen::{CertificateParams, KeyPair};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use thanos_proto::v1::coordinator_client::CoordinatorClient;
use thanos_proto::v1::store_request::Operation;
use thanos_proto::v1::{self, EnrolRequest, StoreGet, StoreRequest, StoreSet};
use thanos_proto::{
    Begin, COORDINATOR_NAME, Command, Device, Heartbeat, Hello, RankPhase, Rejoin, WorkerEvent,
};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

/// As a real worker does.
const HEARTBEAT: Duration = Duration::from_millis(250);
const RETRY_INTERVAL: Duration = Duration::from_millis(100);
/// Bytes of a rank's address, as Gloo's is with a host name of 20 letters, and of NCCL's id.
const GLOO_ADDRESS: usize = 184;
const NCCL_ID: usize = 128;

/// How ranks find each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rendezvous {
    /// Each sets its own address and gets those of all.
    Gloo,
    /// Rank 0 sets an id that all get.
    Nccl,
}

/// A rank that has met its peers.
pub(crate) struct Met {
    pub(crate) generation: u64,
    pub(crate) rank: u32,
}

/// The run that the workers join.
pub(crate) struct Run {
    address: String,
    ca: Certificate,
    token: String,
    pub(crate) rendezvous: Rendezvous,
    store_calls: AtomicU64,
}

impl Run {
    pub(crate) fn open(
        run_dir: &Path,
        address: String,
        rendezvous: Rendezvous,
    ) -> Result<Self, Failure> {
        let read = |name: &str| std::fs::read_to_string(run_dir.join("credentials").join(name));
        let (ca, token) =
            (Certificate::from_pem(read("ca.pem")?), read("token")?.trim().to_owned());
        Ok(Self { address, ca, token, rendezvous, store_calls: AtomicU64::new(0) })
    }

    pub(crate) fn store_calls(&self) -> u64 {
        self.store_calls.load(Ordering::Relaxed)
    }

    async fn connect(&self, tls: ClientTlsConfig) -> Result<CoordinatorClient<Channel>, Failure> {
        let endpoint = Endpoint::from_shared(format!("https://{}", self.address))?
            .tcp_nodelay(true)
            .tls_config(tls)?;
        Ok(CoordinatorClient::new(endpoint.connect().await?))
    }

    fn trusted(&self) -> ClientTlsConfig {
        ClientTlsConfig::new().ca_certificate(self.ca.clone()).domain_name(COORDINATOR_NAME)
    }

    /// A certificate for the session, by the join token.
    async fn enrol(&self, worker: &str, key: &KeyPair) -> Result<Identity, Failure> {
        let certificate_request =
            CertificateParams::default().serialize_request(key)?.der().to_vec();
        let request = EnrolRequest {
            worker_id: worker.into(),
            token: self.token.clone(),
            certificate_request,
        };
        let reply = self.connect(self.trusted()).await?.enrol(request).await?;
        Ok(Identity::from_pem(reply.into_inner().certificate, key.serialize_pem()))
    }
}

/// Lives until the program ends; once, when `lost` resolves, it dies and is restarted.
pub(crate) async fn simulate(
    run: Arc<Run>,
    worker: String,
    met: mpsc::UnboundedSender<Met>,
    mut lost: oneshot::Receiver<()>,
) {
    let key = KeyPair::generate().expect("a key");
    let identity = loop {
        match run.enrol(&worker, &key).await {
            Ok(identity) => break identity,
            Err(error) => retry(&worker, &error).await,
        }
    };
    let mut is_lost = false;
    for pid in 1.. {
        let hello = Hello {
            worker_id: worker.clone(),
            host: "simulated".into(),
            pid,
            version: env!("CARGO_PKG_VERSION").into(),
            generation: 0,
            device: Device::cpu("simulated"),
        };
        tokio::select! {
            ended = session(&run, hello, identity.clone(), &met) => {
                let error = ended.err().unwrap_or_else(|| "the coordinator closed the \
                    session".into());
                retry(&worker, &error).await;
            }
            Ok(()) = &mut lost, if !is_lost => is_lost = true,
        }
    }
}

async fn retry(worker: &str, error: &Failure) {
    eprintln!("{worker}: {error}");
    tokio::time::sleep(RETRY_INTERVAL).await;
}

/// A session until it ends; dropping it is the death of the process.
async fn session(
    run: &Arc<Run>,
    hello: Hello,
    identity: Identity,
    met: &mpsc::UnboundedSender<Met>,
) -> Result<(), Failure> {
    let mut client = run.connect(run.trusted().identity(identity)).await?;
    let (events, queue) = mpsc::channel::<WorkerEvent>(64);
    events.send(WorkerEvent::Hello(hello)).await?;
    let stream = ReceiverStream::new(queue).map(v1::WorkerEvent::from);
    let mut commands = client.session(stream).await?.into_inner();
    let (generation, watched) = watch::channel(0);
    let heart = tokio::spawn(heartbeats(events.clone(), watched));
    let _stops = AbortOnDrop(heart);
    let mut rendezvous: Option<AbortOnDrop> = None;
    while let Some(command) = commands.next().await {
        match Command::try_from(command?)? {
            Command::Welcome(welcome) => {
                events.send(WorkerEvent::Ready { config_digest: welcome.config_digest }).await?;
            }
            Command::Begin(begin) => {
                _ = generation.send(begin.generation);
                let (run, client, met) = (run.clone(), client.clone(), met.clone());
                rendezvous = Some(AbortOnDrop(tokio::spawn(async move {
                    if let Err(error) = meet(&run, client, &begin, &met).await {
                        eprintln!(
                            "rank {} of generation {}: {error}",
                            begin.rank, begin.generation
                        );
                    }
                })));
            }
            Command::Abandon { generation, .. } => {
                rendezvous = None;
                events
                    .send(WorkerEvent::Rejoin(Rejoin {
                        generation,
                        held: None,
                        recent: Vec::new(),
                        failure: None,
                    }))
                    .await?;
            }
            Command::Refused { reason, .. } | Command::Leave { reason } => {
                return Err(reason.into());
            }
            _ => {}
        }
    }
    drop(rendezvous);
    Ok(())
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Four times a second, as if a step were made each time.
async fn heartbeats(events: mpsc::Sender<WorkerEvent>, generation: watch::Receiver<u64>) {
    let mut ticks = tokio::time::interval(HEARTBEAT);
    for step in 1.. {
        ticks.tick().await;
        let (generation, stage, phase) =
            (*generation.borrow(), "cae".to_owned(), RankPhase::Forward);
        let heartbeat = Heartbeat {
            generation,
            stage,
            step,
            phase,
            collectives: step,
            waited_ms: 0,
            progress: 0,
            in_collective: false,
        };
        if generation > 0 && events.send(WorkerEvent::Heartbeat(heartbeat)).await.is_err() {
            return;
        }
    }
}

/// The calls of a rank to the store, until it knows what it needs of its peers.
async fn meet(
    run: &Run,
    mut client: CoordinatorClient<Channel>,
    begin: &Begin,
    met: &mpsc::UnboundedSender<Met>,
) -> Result<(), Failure> {
    let Begin { generation, rank, world_size, .. } = *begin;
    let (own, value, keys) = match run.rendezvous {
        Rendezvous::Gloo => {
            let keys = (0..world_size).map(|rank| format!("0/{rank}")).collect();
            (Some(format!("0/{rank}")), vec![7; GLOO_ADDRESS], keys)
        }
        Rendezvous::Nccl => {
            ((rank == 0).then(|| "0".into()), vec![7; NCCL_ID], vec!["0".to_owned()])
        }
    };
    let request = |operation| StoreRequest { generation, operation: Some(operation) };
    if let Some(key) = own {
        run.store_calls.fetch_add(1, Ordering::Relaxed);
        client.store(request(Operation::Set(StoreSet { key, value: value.into() }))).await?;
    }
    run.store_calls.fetch_add(1, Ordering::Relaxed);
    let (asked, wait_ms) = (keys.len(), 120_000);
    let reply =
        client.store(request(Operation::Get(StoreGet { keys, wait_ms }))).await?.into_inner();
    if reply.values.len() != asked {
        return Err(format!("{} values for {asked} keys", reply.values.len()).into());
    }
    met.send(Met { generation, rank })?;
    Ok(())
}
