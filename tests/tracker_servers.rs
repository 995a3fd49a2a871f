//! MLflow and trackio, each with its real server, read back through its own client (PyPI): they
//! have every step of the ledger once, whatever was killed, and know how the run ended.

use crate::print_line;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use thanos_tests::processes::{coordinator, send};
use thanos_tests::{Running, Scene, lines};

const TOKEN: &str = "a-token-of-this-test";
const TARGET: [&str; 3] = ["digits_supcon", "rows=[]", "train.epochs=24"];
/// A step takes longer, so that a run lasts as long as servers need to start.
const SLOW: (&str, &str) = ("FAILPOINTS", "step=sleep(15)");
const START_TIMEOUT: Duration = Duration::from_secs(90);

const SERVE_TRACKIO: &str = "import sys, trackio
trackio.show(open_browser=False, server_port=int(sys.argv[1]))";

/// What the server has of each of our runs.
const READ_MLFLOW: &str = "import json, sys
from mlflow import MlflowClient
client = MlflowClient(sys.argv[1])
experiment = client.get_experiment_by_name('digits')
runs = {}
for run in client.search_runs([experiment.experiment_id]):
    history = {key: [[m.step, m.value] for m in client.get_metric_history(run.info.run_id, key)] \
    for key in run.data.metrics}
    found = dict(status=run.info.status, params=run.data.params, history=history, \
    name=run.info.run_name)
    assert run.data.tags['thanos.run_id'] not in runs, 'a run is there twice'
    runs[run.data.tags['thanos.run_id']] = found
print(json.dumps(runs))";

const READ_TRACKIO: &str = "import json, sys
from trackio.remote_client import RemoteClient
client = RemoteClient(sys.argv[1])
logs = client.predict(api_name='/get_logs', project='digits', run_id=sys.argv[2])
configs = client.predict(api_name='/get_run_configs', project='digits')
runs = client.predict(api_name='/get_runs_for_project', project='digits')
print(json.dumps(dict(logs=logs, configs=configs, runs=runs)))";

/// A server with all of its processes; killed when this is dropped.
struct Server(Child);

impl Server {
    fn start(command: &mut Command) -> Self {
        let command = command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Self(command.spawn().expect("it starts"))
    }

    fn wait(&mut self, port: u16) {
        let started = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(self.0.try_wait().expect("our child").is_none(), "the server has ended");
            assert!(started.elapsed() < START_TIMEOUT, "the server does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let group = Pid::from_raw(i32::try_from(self.0.id()).expect("process ids fit"));
        _ = killpg(group, Signal::SIGKILL);
        _ = self.0.wait();
    }
}

/// A port that nothing listens on.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .expect("a port")
        .port()
}

/// The interpreter of a tool's own environment, where the tool is installed.
fn python(tool: &str) -> Option<String> {
    let python =
        std::env::var("HOME").unwrap_or_default() + &format!("/.cache/thanos/{tool}/bin/python");
    let find = format!("import importlib.util as u; assert u.find_spec('{tool}')");
    let found = Command::new(&python).args(["-c", &find]).stderr(Stdio::null()).status();
    let is_there = found.is_ok_and(|status| status.success());
    if !is_there {
        print_line(&format!(
            "skipped: {tool} (PyPI) is not installed, its server was not sent a run"
        ));
    }
    is_there.then_some(python)
}

/// Over HTTPS, with a certificate of an authority of this test.
struct Mlflow {
    python: String,
    port: u16,
    /// The authority's certificate.
    authority: String,
}

impl Mlflow {
    fn new(scene: &Scene, python: String) -> Self {
        let file = |name: &str| scene.path(name).display().to_string();
        let authority_key = KeyPair::generate().expect("a key");
        let mut authority = CertificateParams::default();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority.distinguished_name.push(DnType::CommonName, "the authority of a test");
        authority.use_authority_key_identifier_extension = true;
        let certificate = authority.self_signed(&authority_key).expect("a certificate");
        fs::write(file("authority.pem"), certificate.pem()).expect("written");
        let key = KeyPair::generate().expect("a key");
        let mut server = CertificateParams::new(vec!["127.0.0.1".into()]).expect("an address");
        server.use_authority_key_identifier_extension = true;
        let issuer = Issuer::new(authority, authority_key);
        let certificate = server.signed_by(&key, &issuer).expect("a certificate");
        fs::write(file("server.pem"), certificate.pem()).expect("written");
        fs::write(file("server.key"), key.serialize_pem()).expect("written");
        Self { python, port: free_port(), authority: file("authority.pem") }
    }

    /// What makes our programs trust the server.
    fn trust(&self) -> (&str, &str) {
        ("SSL_CERT_FILE", &self.authority)
    }

    fn serve(&self, scene: &Scene) -> Server {
        let database = format!("sqlite:///{}", scene.path("mlflow.db").display());
        let mut command = Command::new(&self.python);
        command.args(["-m", "uvicorn", "--host", "127.0.0.1", "--port", &self.port.to_string()]);
        command.args(["--ssl-certfile", "server.pem", "--ssl-keyfile", "server.key"]);
        command.arg("mlflow.server.fastapi_app:app");
        // What `mlflow server` starts, as it starts it, without waiting twice for Python's imports.
        let variables = [
            ("_MLFLOW_SERVER_FILE_STORE", database.as_str()),
            ("_MLFLOW_SERVER_REGISTRY_STORE", &database),
            ("_MLFLOW_SERVER_ARTIFACT_ROOT", "mlflow-artifacts:/"),
            ("_MLFLOW_SERVER_SERVE_ARTIFACTS", "true"),
            ("MLFLOW_DISABLE_TELEMETRY", "true"),
            ("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false"),
        ];
        Server::start(command.current_dir(scene.path("")).envs(variables))
    }

    fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    fn read(&self) -> Value {
        let mut command = Command::new(&self.python);
        command.env("MLFLOW_TRACKING_SERVER_CERT_PATH", &self.authority);
        printed(command.args(["-c", READ_MLFLOW, &self.url()]))
    }
}

struct Trackio {
    python: String,
    port: u16,
}

impl Trackio {
    fn serve(&self, scene: &Scene) -> Server {
        let mut command = Command::new(&self.python);
        command.args(["-c", SERVE_TRACKIO, &self.port.to_string()]);
        let folder = scene.path("trackio").display().to_string();
        let variables =
            [("TRACKIO_WRITE_TOKEN", TOKEN), ("TRACKIO_DIR", &folder), ("HF_HUB_OFFLINE", "1")];
        Server::start(command.current_dir(scene.path("")).envs(variables))
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn read(&self, run: &str) -> Value {
        printed(Command::new(&self.python).args(["-c", READ_TRACKIO, &self.url(), run]))
    }
}

fn printed(command: &mut Command) -> Value {
    let ran = command.output().expect("it runs");
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    let text = String::from_utf8_lossy(&ran.stdout).into_owned();
    serde_json::from_str(text.lines().last().unwrap_or_default())
        .unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn start(scene: &Scene, arguments: &[&str], keys: &[String], variable: (&str, &str)) -> Running {
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    let size = ["--nodes", "2", "--threads-per-worker", "1", "--run-dir", "run"];
    let all = [&["launch"], arguments, &size, &TARGET, &keys].concat();
    scene.start_with(&all, &[SLOW, variable])
}

/// The position file of a tracker.
fn position(scene: &Scene, tracker: &str) -> Value {
    let text =
        fs::read_to_string(scene.path(&format!("run/trackers/{tracker}.json"))).unwrap_or_default();
    serde_json::from_str(&text).unwrap_or_default()
}

/// The loss of each step of the ledger.
fn ledger(scene: &Scene) -> Vec<(u64, f64)> {
    let number = |line: &Value| {
        (line["step"].as_u64().expect("a step"), line["loss"].as_f64().expect("a loss"))
    };
    lines(&scene.path("run"), "steps.jsonl").iter().map(number).collect()
}

fn accuracies(scene: &Scene) -> Vec<f64> {
    let events = lines(&scene.path("run"), "events.jsonl").into_iter();
    let evaluated = events.filter(|event| event["event"] == "evaluated");
    // An evaluation that is made again is the same.
    let by_epoch: BTreeMap<u64, f64> = evaluated
        .filter_map(|event| {
            Some((event["epoch"].as_u64()?, event["validation_accuracy"].as_f64()?))
        })
        .collect();
    by_epoch.into_values().collect()
}

fn id(scene: &Scene) -> String {
    let text = fs::read_to_string(scene.path("run/run.json")).expect("run.json");
    serde_json::from_str::<Value>(&text).expect("JSON")["id"].as_str().expect("text").into()
}

/// Steps and values, sorted, of a history that is not empty.
fn sorted(history: &Value) -> Vec<(u64, f64)> {
    let pairs = history.as_array().into_iter().flatten();
    let mut pairs: Vec<(u64, f64)> = pairs
        .map(|pair| (pair[0].as_u64().expect("a step"), pair[1].as_f64().expect("a number")))
        .collect();
    pairs.sort_by_key(|pair| pair.0);
    pairs
}

/// Stopped with no server, resumed with servers, coordinator and servers killed, and resumed when
/// all is done.
#[test]
fn mlflow_has_the_ledger_whatever_was_killed() {
    let Some(python) = python("mlflow") else { return };
    let scene = Scene::new();
    let mlflow = Mlflow::new(&scene, python);
    let keys = [format!("log.mlflow.uri={}/", mlflow.url()), "log.mlflow.experiment=digits".into()];
    let mut running = start(&scene, &[], &keys, mlflow.trust());
    running.wait_for_line("MLflow: cannot reach https://127.0.0.1:");
    running.wait_for_steps("run", 20);
    let ran = running.interrupt().expect(75);
    assert_eq!(ran.stderr.matches("MLflow: ").count(), 1, "{}", ran.stderr);
    assert!(ran.stderr.contains(
        "incomplete: MLflow; the ledger has every step, and `thanos-coord launch --resume"
    ));
    let mut server = mlflow.serve(&scene);
    server.wait(mlflow.port);
    let mut running = start(&scene, &["--resume"], &keys, mlflow.trust());
    running.wait_until("a batch", || position(&scene, "mlflow")["first"].as_u64() > Some(0));
    send(coordinator(&scene.path("run")).expect("it is running"), Signal::SIGKILL);
    let before = ledger(&scene).len() as u64;
    running.wait_until("more batches", || {
        position(&scene, "mlflow")["until"].as_u64() > Some(before + 20)
    });
    drop(server);
    let ran = running.wait().expect(0);
    assert_eq!(
        ran.stderr.matches("the run continues, and it is retried").count(),
        1,
        "{}",
        ran.stderr
    );
    server = mlflow.serve(&scene);
    server.wait(mlflow.port);
    let resume = ["launch", "--resume", "--run-dir", "run"];
    let ran = scene.coord(&resume).expect(0);
    assert!(
        ran.stderr.contains("its certificate is of an unknown authority: set SSL_CERT_FILE to"),
        "{}",
        ran.stderr
    );
    // The run is done: what is missing is delivered. A second time nothing is.
    for _ in 0..2 {
        let ran = scene.start_with(&resume, &[mlflow.trust()]).wait().expect(0);
        assert!(!ran.stderr.contains("incomplete: "), "{}", ran.stderr);
    }
    assert_mlflow_has_the_run(&scene, &mlflow);
    // A run that fails is there with its last step, and as a failed one.
    let target =
        ["digits_cnce", "rows=[]", "train.max_steps=30", "--run-dir", "failed", "--nodes", "2"];
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    let arguments = [&["launch"], &target[..], &keys].concat();
    let failing = [("FAILPOINTS", "poison-gradient=return(1:7)"), mlflow.trust()];
    scene.start_with(&arguments, &failing).wait().expect(70);
    let runs = mlflow.read();
    let failed = runs
        .as_object()
        .into_iter()
        .flatten()
        .find(|(run, _)| **run != id(&scene))
        .expect("a second run");
    assert_eq!(failed.1["status"], json!("FAILED"));
    assert_eq!(sorted(&failed.1["history"]["cnce/loss/total"]).len(), 7);
}

/// One run, finished, with every step and evaluation of the ledger.
fn assert_mlflow_has_the_run(scene: &Scene, mlflow: &Mlflow) {
    let runs = mlflow.read();
    assert_eq!(runs.as_object().map(serde_json::Map::len), Some(1), "{runs}");
    let run = &runs[id(scene)];
    assert_eq!(
        (&run["status"], &run["name"]),
        (&json!("FINISHED"), &json!("digits_supcon seed 0"))
    );
    assert_eq!(run["params"]["train.epochs"], json!("24"));
    assert_eq!(sorted(&run["history"]["supcon/loss/total"]), ledger(scene));
    assert_eq!(sorted(&run["history"]["supcon/learning_rate"]).len(), ledger(scene).len());
    let evaluated = sorted(&run["history"]["supcon/validation/accuracy"]);
    assert_eq!(
        evaluated.into_iter().map(|(_, value)| value).collect::<Vec<_>>(),
        accuracies(scene)
    );
    assert_eq!(sorted(&run["history"]["supcon/collapse/views"]).len(), 1);
    assert_eq!(sorted(&run["history"]["supcon/knn_fine_accuracy"]).len(), 1, "of the table");
}

#[test]
fn trackio_has_the_ledger_whatever_was_killed() {
    let Some(python) = python("trackio") else { return };
    let (scene, trackio) = (Scene::new(), Trackio { python, port: free_port() });
    let keys = [format!("log.trackio.url={}", trackio.url()), "log.trackio.project=digits".into()];
    let mut server = trackio.serve(&scene);
    server.wait(trackio.port);
    let mut running = start(&scene, &[], &keys, ("TRACKIO_WRITE_TOKEN", TOKEN));
    let (run, mut killed) = (scene.path("run"), None);
    for steps in [0, 40] {
        let next_row = || position(&scene, "trackio")["next_row"].as_u64();
        let is_another = || coordinator(&run).is_some_and(|pid| Some(pid) != killed);
        running.wait_until("a batch", || next_row() > Some(steps) && is_another());
        killed = coordinator(&run);
        send(killed.expect("it is running"), Signal::SIGKILL);
    }
    running.wait_for_steps("run", 120);
    drop(server);
    running.wait_for_line("trackio: cannot reach ");
    server = trackio.serve(&scene);
    server.wait(trackio.port);
    let ran = running.wait().expect(0);
    assert_eq!(
        ran.stderr.matches("the run continues, and it is retried").count(),
        1,
        "{}",
        ran.stderr
    );
    let resume = ["launch", "--resume", "--run-dir", "run"];
    // Without the token it says what is missing.
    let ran = scene.start_with(&resume, &[("TRACKIO_WRITE_TOKEN", "")]).wait().expect(0);
    for part in [
        "trackio: http://127.0.0.1:",
        "answered with HTTP status 400: A write_token is required",
        "incomplete: trackio",
    ] {
        assert!(ran.stderr.contains(part), "no `{part}` in {}", ran.stderr);
    }
    let ran = scene.start_with(&resume, &[("TRACKIO_WRITE_TOKEN", TOKEN)]).wait().expect(0);
    assert!(!ran.stderr.contains("incomplete: "), "{}", ran.stderr);
    let id = id(&scene);
    let found = trackio.read(&id);
    assert_eq!(found["runs"].as_array().map(Vec::len), Some(1), "{found}");
    assert!(found["configs"].to_string().contains("\"train.epochs\":24"), "{}", found["configs"]);
    let all = found["logs"].as_array().expect("a list");
    let of = |key: &str| -> Vec<(u64, f64)> {
        let mut values: Vec<(u64, f64)> = all
            .iter()
            .filter_map(|log| Some((log["step"].as_u64()?, log[key].as_f64()?)))
            .collect();
        values.sort_by_key(|pair| pair.0);
        values
    };
    assert_eq!(of("supcon/loss/total"), ledger(&scene));
    assert_eq!(
        of("supcon/validation/accuracy").into_iter().map(|(_, value)| value).collect::<Vec<_>>(),
        accuracies(&scene)
    );
    assert_eq!(of("supcon/knn_fine_accuracy").len(), 1, "of the table");
    // The token is in no file of the run.
    let files =
        Command::new("grep").args(["-r", "-l", TOKEN, "run"]).current_dir(scene.path("")).output();
    assert_eq!(String::from_utf8_lossy(&files.expect("grep runs").stdout), "");
}
