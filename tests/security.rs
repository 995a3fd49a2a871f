//! The promises of SECURITY.md: who may join a run and who may not, what a worker may say, where
//! secrets are and where not, and which ports are open.

use rcgen::{CertificateParams, KeyPair};
use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use thanos_proto::v1::coordinator_client::CoordinatorClient;
use thanos_proto::v1::{self, EnrolRequest, PackRequest, StoreRequest};
use thanos_proto::{COORDINATOR_NAME, Device, Hello, WorkerEvent};
use thanos_tests::processes::{commands_in, listening};
use thanos_tests::{Invitation, Running, Scene};
use tokio_stream::StreamExt;
use tonic::Code;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

const ENDLESS: [&str; 3] = ["digits_supcon", "rows=[]", "train.epochs=100000"];

fn serve(scene: &Scene, run_dir: &str, more: &[&str]) -> (Running, Invitation) {
    let arguments = [
        &["serve", "--nodes", "2", "--run-dir", run_dir],
        more,
        &ENDLESS,
        &["checkpoint.every_steps=5"],
    ]
    .concat();
    let mut serving = scene.spawn("thanos-coord", run_dir, &arguments, &[]);
    let invitation = serving.invitation();
    (serving, invitation)
}

/// A folder of credentials with the files of two others.
fn mixed(scene: &Scene, ca: &str, token: &str) -> String {
    let folder = scene.path("mixed");
    fs::create_dir_all(&folder).expect("a folder");
    fs::copy(scene.path(ca).join("ca.pem"), folder.join("ca.pem")).expect("ca.pem");
    fs::copy(scene.path(token).join("token"), folder.join("token")).expect("token");
    folder.display().to_string()
}

#[test]
fn an_unauthorised_worker_gets_the_reason_and_exits_with_77() {
    let scene = Scene::new();
    let (serving, invitation) = serve(&scene, "one", &[]);
    let (other, _) = serve(&scene, "two", &[]);
    let joined = |address: &str, credentials: &str| {
        let invitation =
            Invitation { address: address.into(), credentials: Some(credentials.into()) };
        scene.worker(&invitation, "a", &[]).wait().expect(77).stderr
    };
    let asked = Instant::now();
    let printed = joined(&invitation.address, &mixed(&scene, "one/credentials", "two/credentials"));
    assert!(
        asked.elapsed() >= Duration::from_secs(1),
        "who guesses tokens guesses slowly: {:?}",
        asked.elapsed()
    );
    assert!(
        printed.contains("invalid join token for worker `a`, or it was already used"),
        "{printed}"
    );
    let printed = joined(&invitation.address, &mixed(&scene, "two/credentials", "one/credentials"));
    assert!(printed.contains("it is not of the run whose ca.pem this worker has"), "{printed}");
    let printed = joined(&invitation.address, "nothing");
    assert!(printed.contains("cannot read nothing/ca.pem: No such file"), "{printed}");
    let printed = scene
        .spawn("thanos-worker", "b", &["--coordinator", "h:1", "--id", "b"], &[])
        .wait()
        .expect(64)
        .stderr;
    assert!(printed.contains("--credentials <DIR>"), "{printed}");
    other.interrupt().expect(75);
    let printed = serving.interrupt().expect(75).stderr;
    assert_eq!(
        printed.matches("a worker may not join: invalid join token").count(),
        1,
        "{printed}"
    );
}

async fn client(address: &str, tls: ClientTlsConfig) -> CoordinatorClient<Channel> {
    let endpoint =
        Endpoint::from_shared(format!("https://{address}")).expect("an address").tls_config(tls);
    CoordinatorClient::new(endpoint.expect("valid").connect().await.expect("it listens"))
}

#[test]
fn a_worker_speaks_for_itself_alone() {
    let scene = Scene::new();
    let (serving, Invitation { address, .. }) = serve(&scene, "run", &[]);
    let read =
        |name: &str| fs::read_to_string(scene.path("run/credentials").join(name)).expect(name);
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(read("ca.pem")))
        .domain_name(COORDINATOR_NAME);
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let hello = |id: &str| {
            let (worker_id, host, version) =
                (id.into(), "h".into(), env!("CARGO_PKG_VERSION").into());
            let device = Device::cpu("c");
            let hello = Hello { worker_id, host, pid: 1, version, generation: 0, device };
            tokio_stream::once(v1::WorkerEvent::from(WorkerEvent::Hello(hello)))
                .chain(tokio_stream::pending())
        };
        let mut unauthenticated = client(&address, tls.clone()).await;
        let codes = [
            unauthenticated.session(hello("a")).await.err().map(|status| status.code()),
            unauthenticated.store(StoreRequest::default()).await.err().map(|status| status.code()),
            unauthenticated
                .fetch_pack(PackRequest::default())
                .await
                .err()
                .map(|status| status.code()),
        ];
        assert_eq!(codes, [Some(Code::Unauthenticated); 3]);

        let key = KeyPair::generate().expect("a key");
        // What the request says of itself is not believed.
        let mut params = CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, "b");
        let certificate_request = params.serialize_request(&key).expect("a request").der().to_vec();
        let request =
            EnrolRequest { worker_id: "a".into(), token: read("token"), certificate_request };
        let certificate =
            unauthenticated.enrol(request).await.expect("its token").into_inner().certificate;
        let mut worker =
            client(&address, tls.identity(Identity::from_pem(certificate, key.serialize_pem())))
                .await;
        let first = |commands: tonic::Response<tonic::Streaming<v1::Command>>| async {
            let command =
                commands.into_inner().message().await.expect("an answer").expect("a command");
            thanos_proto::Command::try_from(command).expect("well formed")
        };
        let refused = first(worker.session(hello("b")).await.expect("a session")).await;
        let thanos_proto::Command::Refused { reason, exit_code } = refused else {
            panic!("{refused:?}")
        };
        assert_eq!(
            (reason.as_str(), exit_code),
            ("the certificate belongs to worker `a`, but Hello names `b`", 77)
        );
        let welcome = first(worker.session(hello("a")).await.expect("a session")).await;
        assert!(matches!(welcome, thanos_proto::Command::Welcome(_)), "{welcome:?}");
    });
    serving.interrupt().expect(75);
}

/// Everything that a run writes, shows, and passes on, apart from the folder that secrets are in.
fn what_others_see(scene: &Scene) -> Vec<(String, Vec<u8>)> {
    let mut seen = Vec::new();
    for (pid, command) in commands_in(&scene.path("")) {
        let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        seen.push((format!("arguments of {command}"), command.clone().into_bytes()));
        seen.push((format!("variables of {command}"), environ));
    }
    let mut folders = vec![scene.path("")];
    while let Some(folder) = folders.pop() {
        for entry in
            fs::read_dir(&folder).expect("readable").map(|entry| entry.expect("readable").path())
        {
            if entry.is_dir() && !entry.ends_with("credentials") {
                folders.push(entry);
            } else if entry.is_file() {
                seen.push((entry.display().to_string(), fs::read(&entry).unwrap_or_default()));
            }
        }
    }
    seen
}

#[test]
fn secrets_are_in_their_files_alone() {
    let scene = Scene::new();
    let (mut serving, invitation) = serve(&scene, "run", &["--status", "127.0.0.1:0"]);
    let wrong =
        Invitation { address: invitation.address.clone(), credentials: Some("wrong".into()) };
    fs::create_dir(scene.path("wrong")).expect("a folder");
    fs::copy(scene.path("run/credentials/ca.pem"), scene.path("wrong/ca.pem")).expect("copied");
    fs::write(scene.path("wrong/token"), "5ec2e7".repeat(10)).expect("written");
    scene.worker(&wrong, "c", &[]).wait().expect(77);
    fs::remove_dir_all(scene.path("wrong")).expect("removed");
    let workers = ["a", "b"].map(|id| scene.worker(&invitation, id, &[]));
    serving.wait_for_steps("run", 12);
    let mut secrets = vec!["5ec2e75ec2e7".to_owned()];
    for name in ["token", "scrape-token", "ca.key"] {
        let text = fs::read_to_string(scene.path("run/credentials").join(name)).expect(name);
        // Of a key in PEM its first line of content.
        secrets
            .push(text.lines().find(|line| !line.starts_with("---")).expect("a line").to_owned());
    }
    let seen = what_others_see(&scene);
    assert!(seen.len() > 15, "{} files, arguments and variables", seen.len());
    for (whose, bytes) in seen {
        for secret in &secrets {
            let found = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
            assert!(!found, "{whose} has a secret");
        }
    }
    serving.interrupt().expect(75);
    for worker in workers {
        worker.wait().expect(75);
    }
}

/// Each port of a run that listens, by who has it: the table in SECURITY.md.
#[test]
fn no_other_port_listens_than_those_of_the_table() {
    let scene = Scene::new();
    let (mut serving, invitation) = serve(&scene, "run", &["--status", "127.0.0.1:0"]);
    let workers = ["a", "b"].map(|id| scene.worker(&invitation, id, &[]));
    serving.wait_for_steps("run", 5);
    let loopback = |ports: &BTreeSet<SocketAddr>| ports.iter().all(|port| port.ip().is_loopback());
    let ports = listening(serving.pid());
    assert!(
        ports.len() == 2 && loopback(&ports),
        "the coordinator's --listen and --status: {ports:?}"
    );
    assert!(ports.contains(&invitation.address.parse().expect("an address")), "{ports:?}");
    for worker in &workers {
        let ports = listening(worker.pid());
        assert!(ports.len() == 1 && loopback(&ports), "a worker's Gloo: {ports:?}");
    }
    serving.interrupt().expect(75);
    for worker in workers {
        worker.wait().expect(75);
    }
}

/// Asks over HTTPS, as the run's own scraper does; code and first line. `name` is what the
/// certificate must be for.
pub(crate) fn https(ca: &Path, (address, name): (&str, &str), path: &str, token: &str) -> String {
    const ASK: &str = "import http.client, socket, ssl, sys
ca, host, port, name, path, token = sys.argv[1:]
connection = http.client.HTTPSConnection(name, context=ssl.create_default_context(cafile=ca))
plain = socket.create_connection((host, int(port)))
connection.sock = connection._context.wrap_socket(plain, server_hostname=name)
connection.request('GET', path, headers={'Authorization': 'Bearer ' + token} if token else {})
answer = connection.getresponse()
print(answer.status, answer.readline().decode().strip())";
    let (host, port) = address.rsplit_once(':').expect("HOST:PORT");
    let ca = ca.display().to_string();
    let asked =
        Command::new("python3").args(["-c", ASK, &ca, host, port, name, path, token]).output();
    let output = asked.expect("python3 is there");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[test]
fn metrics_that_others_can_reach_need_a_token() {
    let scene = Scene::new();
    let (mut serving, _) = serve(&scene, "run", &["--status", "0.0.0.0:0"]);
    serving.wait_for_line("metrics and status at https://");
    let printed = fs::read_to_string(scene.path(".runstderr")).expect("standard error");
    let address = printed
        .split("status at https://")
        .nth(1)
        .and_then(|rest| rest.split(',').next())
        .expect("an address");
    let read =
        |name: &str| fs::read_to_string(scene.path("run/credentials").join(name)).expect(name);
    let (scrape, join, ca) =
        (read("scrape-token"), read("token"), scene.path("run/credentials/ca.pem"));
    for (path, token, answer) in [
        ("/healthz", "", "200 alive"),
        ("/readyz", "", "503 waiting for workers"),
        ("/metrics", "", "401"),
        ("/status", join.trim(), "401"),
        ("/metrics", "0", "401"),
        ("/metrics", scrape.trim(), "200 # HELP"),
        ("/status", scrape.trim(), "200 {\"run\""),
    ] {
        let printed = https(&ca, (address, COORDINATOR_NAME), path, token);
        assert!(printed.starts_with(answer), "{path}: {printed}");
    }
    serving.interrupt().expect(75);
}
