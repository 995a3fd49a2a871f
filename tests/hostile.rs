//! Clients that mean harm, with a certificate and without: what they send costs the coordinator a
//! few KB, keeps no worker waiting, names no folder, and ends no run.

use crate::print_line;
use rcgen::{CertificateParams, KeyPair};
use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use thanos_proto::v1::coordinator_client::CoordinatorClient;
use thanos_proto::v1::file_part::Part;
use thanos_proto::v1::store_request::Operation;
use thanos_proto::v1::{
    self, CheckpointFile, EnrolRequest, FileHead, FilePart, StoreRequest, StoreSet,
};
use thanos_proto::{
    COORDINATOR_NAME, Command, Device, Evaluated, Heartbeat, Hello, RankPhase, StepDone,
    WorkerEvent,
};
use thanos_tests::processes::status_kb;
use thanos_tests::proxy::{Mode, Proxy};
use thanos_tests::{Invitation, Running, Scene, lines};
use tokio::net::{TcpSocket, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Status, Streaming};

/// What a hostile client may add to the coordinator's memory: a connection's buffers, and what the
/// allocator rounds up to.
const MAX_KB_OF_A_CONNECTION: u64 = 100;

/// A run that waits for two workers, as a client sees it.
struct Target {
    address: String,
    ca: Certificate,
    token: String,
}

fn serve(scene: &Scene) -> (Running, Target) {
    let arguments = ["serve", "--nodes", "2", "--run-dir", "run", "digits_cae", "rows=[]"];
    let mut serving = scene.spawn("thanos-coord", "serve", &arguments, &[]);
    let address = serving.invitation().address;
    let read =
        |name: &str| fs::read_to_string(scene.path("run/credentials").join(name)).expect(name);
    let target =
        Target { address, ca: Certificate::from_pem(read("ca.pem")), token: read("token") };
    (serving, target)
}

impl Target {
    async fn connect(
        &self,
        identity: Option<Identity>,
    ) -> Result<CoordinatorClient<Channel>, tonic::transport::Error> {
        let tls =
            ClientTlsConfig::new().ca_certificate(self.ca.clone()).domain_name(COORDINATOR_NAME);
        let tls = identity.into_iter().fold(tls, ClientTlsConfig::identity);
        let endpoint = Endpoint::from_shared(format!("https://{}", self.address))
            .expect("an address")
            .tls_config(tls);
        Ok(CoordinatorClient::new(endpoint.expect("valid").connect().await?))
    }

    async fn enrol(&self, worker: &str, token: &str, key: &KeyPair) -> Result<Identity, Status> {
        let certificate_request =
            CertificateParams::default().serialize_request(key).expect("a request");
        let (worker_id, certificate_request) = (worker.into(), certificate_request.der().to_vec());
        let request = EnrolRequest { worker_id, token: token.into(), certificate_request };
        let mut client =
            self.connect(None).await.map_err(|error| Status::unavailable(error.to_string()))?;
        let certificate = client.enrol(request).await?.into_inner().certificate;
        Ok(Identity::from_pem(certificate, key.serialize_pem()))
    }

    /// Enrols and opens a session, up to the coordinator's welcome.
    async fn join(&self, worker: &str) -> Member {
        let key = KeyPair::generate().expect("a key");
        let identity = self.enrol(worker, &self.token, &key).await.expect("a certificate");
        let mut client = self.connect(Some(identity)).await.expect("it listens");
        let (events, queue) = mpsc::channel(8);
        let (host, version) = ("h".into(), env!("CARGO_PKG_VERSION").into());
        let device = Device::cpu("c");
        let hello =
            Hello { worker_id: worker.into(), host, pid: 1, version, generation: 0, device };
        events.send(WorkerEvent::Hello(hello)).await.expect("room");
        let stream = ReceiverStream::new(queue).map(v1::WorkerEvent::from);
        let commands = client.session(stream).await.expect("a session").into_inner();
        let mut member = Member { client, events, commands, digest: String::new() };
        let Some(Command::Welcome(welcome)) = member.next().await else {
            panic!("{worker} is not welcome")
        };
        member.digest = welcome.config_digest;
        member
    }
}

/// A client that was let in.
struct Member {
    client: CoordinatorClient<Channel>,
    events: mpsc::Sender<WorkerEvent>,
    commands: Streaming<v1::Command>,
    digest: String,
}

impl Member {
    /// The next command; `None`: the session has ended.
    async fn next(&mut self) -> Option<Command> {
        let command = self.commands.message().await.ok()??;
        Some(Command::try_from(command).expect("well formed"))
    }

    async fn ready(&self) {
        let config_digest = self.digest.clone();
        self.events.send(WorkerEvent::Ready { config_digest }).await.expect("room");
    }

    async fn begin(&mut self) -> thanos_proto::Begin {
        match self.next().await {
            Some(Command::Begin(begin)) => begin,
            other => panic!("expected a generation, got {other:?}"),
        }
    }

    async fn store_file(&mut self, generation: u64, stage: &str) -> Result<(), Status> {
        let file =
            CheckpointFile { stage: stage.into(), step: 7, name: "model.safetensors".into() };
        let head = FileHead { generation, file: Some(file), first: true };
        let parts =
            [Part::Head(head), Part::Chunk(vec![1; 8])].map(|part| FilePart { part: Some(part) });
        self.client.store_file(tokio_stream::iter(parts)).await.map(drop)
    }
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime")
}

#[test]
fn a_client_without_a_certificate_costs_a_few_kb() {
    const CONNECTIONS: u64 = 16;
    let scene = Scene::new();
    let (serving, target) = serve(&scene);
    runtime().block_on(async {
        // What the first connection makes once is not counted.
        drop(target.join("a").await);
        let before = status_kb(serving.pid() as u32, "VmRSS");
        let mut most = before;
        let mut calls = tokio::task::JoinSet::new();
        for _ in 0..CONNECTIONS {
            let client = target.connect(None).await.expect("it listens");
            for _ in 0..128 {
                let mut client = client.clone();
                calls.spawn(async move {
                    let set = StoreSet { key: "k".into(), value: vec![1; 4_000_000].into() };
                    let request =
                        StoreRequest { generation: 1, operation: Some(Operation::Set(set)) };
                    client.store(request).await.expect_err("without a certificate")
                });
            }
            most = most.max(status_kb(serving.pid() as u32, "VmRSS"));
        }
        let mut codes = BTreeMap::new();
        while let Some(status) = calls.join_next().await {
            *codes.entry(format!("{:?}", status.expect("no panic").code())).or_insert(0) += 1;
            most = most.max(status_kb(serving.pid() as u32, "VmRSS"));
        }
        let each = (most - before) / CONNECTIONS;
        print_line(&format!(
            "128 streams of 4 MB without a certificate: {each} KB a connection; {codes:?}"
        ));
        assert!(each < MAX_KB_OF_A_CONNECTION, "{before} KB before, {most} KB at most");
        // An enrolment is bounded, too.
        let mut client = target.connect(None).await.expect("it listens");
        let (worker_id, token) = ("b".into(), "t".repeat(1 << 20));
        let request = EnrolRequest { worker_id, token, certificate_request: Vec::new() };
        client.enrol(request).await.expect_err("1 MB of a token");
        target.join("b").await;
    });
    serving.interrupt().expect(75);
}

/// Keeps opening connections from an address until the test ends; those that are closed are opened
/// again.
async fn flood(from: &str, to: SocketAddr) {
    let from: SocketAddr = format!("{from}:0").parse().expect("an address");
    let mut open: Vec<TcpStream> = Vec::new();
    loop {
        for _ in 0..16 {
            let socket = TcpSocket::new_v4().expect("a socket");
            socket.bind(from).expect("an address of this machine");
            if let Ok(stream) = socket.connect(to).await {
                open.push(stream);
            }
        }
        let excess = open.len().saturating_sub(400);
        open.drain(..excess);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[test]
fn two_addresses_cannot_keep_a_worker_out() {
    let scene = Scene::alone();
    let (serving, target) = serve(&scene);
    let to: SocketAddr = target.address.parse().expect("an address");
    let attackers = runtime();
    for from in ["127.0.0.2", "127.0.0.3"] {
        attackers.spawn(flood(from, to));
    }
    // All places are taken by then: the coordinator has as many descriptors as it lets connections
    // wait.
    let started = Instant::now();
    while thanos_tests::processes::descriptors(serving.pid()) < 256 {
        assert!(started.elapsed() < Duration::from_secs(20), "the flood does not fill the places");
        std::thread::sleep(Duration::from_millis(2));
    }
    let joins: Vec<Duration> = (0..5)
        .map(|index| {
            let started = Instant::now();
            runtime().block_on(async { drop(target.join(&format!("w{index}")).await) });
            started.elapsed()
        })
        .collect();
    print_line(&format!("joins during a flood from two addresses: {joins:.2?}"));
    assert!(joins.iter().all(|join| *join < Duration::from_secs(1)), "{joins:?}");
    attackers.shutdown_background();
    serving.interrupt().expect(75);
}

fn step(stage: &str, term: &str) -> WorkerEvent {
    WorkerEvent::Step(StepDone {
        stage: stage.into(),
        generation: 1,
        world_size: 2,
        loss: 1.0,
        losses: BTreeMap::from([(term.to_owned(), 1.0)]),
        lr: 0.1,
        images: 8,
        total_steps: 10,
        ..StepDone::default()
    })
}

#[test]
fn a_worker_that_names_what_the_plan_does_not_have_ends_its_session_and_no_run() {
    let scene = Scene::new();
    let (mut serving, target) = serve(&scene);
    let evaluated = |stage: &str| {
        let (stage, measure) = (stage.into(), "coarse_head".into());
        WorkerEvent::Evaluated(Evaluated {
            stage,
            epoch: 0,
            validation_accuracy: 1.0,
            best: true,
            measure,
        })
    };
    let phase = Heartbeat {
        generation: 1,
        stage: "cae".into(),
        step: 0,
        phase: RankPhase::Other("p".repeat(1000)),
        collectives: 0,
        waited_ms: 0,
        progress: 0,
        in_collective: false,
    };
    runtime().block_on(async {
        for (event, named) in [
            (step("../../other", "reconstruction"), "no stage `../../other`"),
            (step("cae", "made_up"), "no term `made_up`"),
            (evaluated("../../other"), "no stage `../../other`"),
        ] {
            let mut member = target.join("a").await;
            member.events.send(event).await.expect("room");
            let Some(Command::Refused { reason, exit_code }) = member.next().await else {
                panic!("not refused")
            };
            assert!(reason.contains(named) && exit_code == 77, "{exit_code}: {reason}");
        }
        // What no worker of ours sends is malformed, and ends the session without an answer.
        let mut member = target.join("a").await;
        member.events.send(WorkerEvent::Heartbeat(phase)).await.expect("room");
        assert_eq!(member.next().await, None);
        target.join("a").await;
    });
    assert!(!serving.has_ended() && !scene.path("other").exists());
    assert!(!scene.path("run/tensorboard").join("../../other").exists());
    serving.interrupt().expect(75);
}

#[test]
fn rank_0_alone_writes_files_of_a_checkpoint() {
    let scene = Scene::new();
    let (serving, target) = serve(&scene);
    runtime().block_on(async {
        let (mut a, mut b) = (target.join("a").await, target.join("b").await);
        a.ready().await;
        b.ready().await;
        let (of_a, of_b) = (a.begin().await, b.begin().await);
        assert_eq!((of_a.rank, of_b.rank), (0, 1));
        let generation = of_a.generation;
        let refused = b.store_file(generation, "cae").await.expect_err("it is rank 1");
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
        assert!(!scene.path("run/checkpoints/cae/.tmp-step-00000007").exists());
        a.store_file(generation - 1, "cae").await.expect_err("a generation that never was");
        a.store_file(generation, "../../other").await.expect_err("no stage of the plan");
        a.store_file(generation, "cae").await.expect("it is rank 0");
        assert!(scene.path("run/checkpoints/cae/.tmp-step-00000007/model.safetensors").exists());
    });
    // Its workers are gone: a stop would wait for others.
    drop(serving);
}

#[test]
fn an_enrolment_whose_answer_was_lost_can_be_repeated() {
    let scene = Scene::new();
    let (serving, target) = serve(&scene);
    // A token for one use, as the launcher writes it.
    let (folder, token) = (scene.path("run/credentials/workers/a"), "0123456789abcdef".repeat(4));
    fs::create_dir_all(&folder).expect("a folder");
    fs::write(folder.join("token"), &token).expect("written");
    runtime().block_on(async {
        let (key, other) =
            (KeyPair::generate().expect("a key"), KeyPair::generate().expect("a key"));
        target.enrol("a", &token, &key).await.expect("its token");
        let again = target.enrol("a", &token, &key).await.expect("the same key");
        target.connect(Some(again)).await.expect("a certificate that is taken");
        let refused = target.enrol("a", &token, &other).await.expect_err("another key");
        assert_eq!(refused.code(), Code::PermissionDenied);
    });
    serving.interrupt().expect(75);
}

/// The real worker, whose connection breaks when the coordinator has enrolled it and the answer is
/// still on its way.
#[test]
fn a_worker_that_lost_the_answer_to_its_enrolment_joins() {
    let scene = Scene::new();
    let (mut serving, target) = serve(&scene);
    let proxy = Proxy::before(&target.address, Mode::After(Duration::from_millis(300)));
    let folder = scene.path("run/credentials/workers/a");
    fs::create_dir_all(&folder).expect("a folder");
    fs::copy(scene.path("run/credentials/ca.pem"), folder.join("ca.pem")).expect("copied");
    fs::write(folder.join("token"), "0123456789abcdef".repeat(4)).expect("written");
    let credentials = Some(folder.display().to_string());
    let worker = scene.worker(&Invitation { address: proxy.address(), credentials }, "a", &[]);
    // The token is removed after its use is recorded.
    serving.wait_until("an enrolment", || {
        folder.join("enrolled").exists() && !folder.join("token").exists()
    });
    proxy.set(Mode::Silent);
    proxy.cut();
    proxy.set(Mode::After(Duration::ZERO));
    serving.wait_until("the worker", || {
        lines(&scene.path("run"), "events.jsonl").iter().any(|l| l["event"] == "joined")
    });
    serving.interrupt().expect(75);
    worker.wait();
}
