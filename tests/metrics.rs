//! What a run shows over HTTP: its metrics are what the ledger says, and Prometheus itself accepts,
//! scrapes and evaluates them, where it is installed.

use crate::print_line;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use thanos_coord::PHASE_SECONDS;
use thanos_tests::{Running, Scene, lines, root};

/// Starts a run that shows itself, and returns where.
fn start(scene: &Scene, status: &str) -> (Running, String) {
    start_with(scene, &["--status", status, "digits_cnce", "train.epochs=100000"])
}

/// As [`start`], with these options and this target.
pub(crate) fn start_with(scene: &Scene, arguments: &[&str]) -> (Running, String) {
    let launch = ["launch", "--nodes", "2", "--threads-per-worker", "1", "--run-dir", "run"];
    let mut running = scene.start(&[&launch[..], arguments].concat());
    running.wait_for_line("metrics and status at http://");
    let printed = std::fs::read_to_string(scene.path(".stderr")).expect("standard error");
    let address = printed
        .split("status at http://")
        .nth(1)
        .and_then(|rest| rest.lines().next())
        .expect("an address");
    (running, address.trim().to_owned())
}

/// Status code and body of a GET.
pub(crate) fn get(address: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).expect("it listens");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")
        .expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a code");
    (code, body.to_owned())
}

/// The value of the first series with this name and these labels (`stage="cnce"`), among others.
pub(crate) fn value(metrics: &str, name: &str, labels: &[&str]) -> Option<f64> {
    let found = metrics
        .lines()
        .filter_map(|line| line.strip_prefix(name)?.strip_prefix('{')?.rsplit_once("} "));
    let has_all = |(has, _): &(&str, &str)| {
        labels.iter().all(|label| has.split(',').any(|one| one == *label))
    };
    found.into_iter().find(has_all).and_then(|(_, value)| value.parse().ok())
}

/// Runs a tool of Prometheus; `None`: it is not installed.
pub(crate) fn tool(name: &str, arguments: &[&str], stdin: &str) -> Option<(bool, String)> {
    let folder = root().join("deploy/prometheus");
    let command = Command::new(name)
        .args(arguments)
        .current_dir(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = command.ok()?;
    child.stdin.take().expect("piped").write_all(stdin.as_bytes()).expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    let printed = [output.stdout, output.stderr]
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .concat();
    Some((output.status.success(), printed))
}

/// A worker's floating-point operations are those that a benchmark counts, but for the short last
/// batch of an epoch.
fn check_flops(scene: &Scene, worker: &str) {
    let counted = |name: &str| {
        value(worker, &format!("thanos_trainer_worker_{name}_total"), &[]).expect("a counter")
    };
    let arguments = ["bench", "--workers", "2", "--threads-per-worker", "1", "--steps", "1"];
    let ran = scene.coord(&[&arguments[..], &["digits_cnce", "train.batch_size=64"]].concat());
    let bench: serde_json::Value =
        serde_json::from_str(&ran.expect(0).stdout).expect("a line of JSON");
    let of_rank = bench["flops_per_step"].as_f64().expect("a number") / 2.0;
    let share = counted("flops") / counted("steps") / of_rank;
    assert!((0.9..=1.001).contains(&share), "{share} of {of_rank}");
}

#[test]
fn metrics_are_what_the_ledger_says() {
    let scene = Scene::new();
    let (mut running, address) = start(&scene, "127.0.0.1:0");
    running.wait_for_steps("run", 30);
    assert_eq!(get(&address, "/healthz"), (200, "alive\n".into()));
    assert_eq!(get(&address, "/readyz"), (200, "training\n".into()));
    assert_eq!(get(&address, "/nothing").0, 404);
    let status: serde_json::Value =
        serde_json::from_str(&get(&address, "/status").1).expect("JSON");
    assert_eq!(
        (&status["position"]["stage"], &status["generation"]),
        (&"cnce".into(), &1.into()),
        "{status}"
    );
    assert_eq!(status["ranks"], serde_json::json!(["worker-0", "worker-1"]));
    let devices = status["devices"].as_array().expect("a list");
    assert!(
        devices.len() == 2 && devices.iter().all(|device| device["name"].is_string()),
        "{status}"
    );
    assert!(status["collectives"].is_string(), "{status}");
    let (code, metrics) = get(&address, "/metrics");
    assert_eq!(code, 200);
    let step = value(&metrics, "thanos_trainer_step", &["stage=\"cnce\"", "run=\"run\""])
        .expect("a step") as usize;
    let line = lines(&scene.path("run"), "steps.jsonl").remove(step - 1);
    let loss = value(&metrics, "thanos_trainer_loss", &["stage=\"cnce\"", "term=\"total\""]);
    assert_eq!(loss, line["loss"].as_f64(), "step {step}: {metrics}");
    assert_eq!(value(&metrics, "thanos_trainer_steps_total", &[]), Some(step as f64));
    for phase in ["data", "forward", "gather", "backward", "reduce", "update"] {
        let count =
            value(&metrics, &format!("{PHASE_SECONDS}_count"), &[&format!("phase=\"{phase}\"")]);
        assert_eq!(count, Some(step as f64), "{phase}: {metrics}");
    }
    let gathered = value(&metrics, "thanos_trainer_gathered_bytes_total", &[]).expect("bytes");
    // Of 64 candidates of 48 numbers each rank has half: it receives the others, and sends their
    // gradients.
    let (most, steps) = ((2 * 32 * 48 * 4 * step) as f64, step as f64);
    assert!((0.9 * most..=most).contains(&gathered), "{gathered} bytes in {steps} steps");
    let targets: serde_json::Value = serde_json::from_str(&get(&address, "/sd").1).expect("JSON");
    let targets = targets.as_array().expect("an array");
    assert_eq!(
        (targets.len(), &targets[1]["labels"]["worker"]),
        (2, &"worker-1".into()),
        "{targets:?}"
    );
    let worker = get(targets[1]["targets"][0].as_str().expect("an address"), "/metrics").1;
    let of_worker = ["run=\"run\"", "worker=\"worker-1\""];
    assert_eq!(value(&worker, "thanos_trainer_worker_rank", &of_worker), Some(1.0), "{worker}");
    assert!(
        value(&worker, "thanos_trainer_worker_step", &["stage=\"cnce\""]).expect("a step") >= steps
    );
    assert!(
        value(&worker, "thanos_trainer_worker_gradient_norm", &of_worker).expect("a norm") > 0.0,
        "{worker}"
    );
    check_flops(&scene, &worker);
    for text in [&metrics, &worker] {
        match tool("promtool", &["check", "metrics"], text) {
            Some((accepted, printed)) => assert!(accepted, "{printed}"),
            None => print_line("promtool is not installed: it was not asked"),
        }
    }
    running.interrupt().expect(75);
}

/// The configuration and the rules that are delivered, on a live run.
#[test]
fn prometheus_scrapes_a_run_and_evaluates_the_alerts() {
    let checks: [&[&str]; 4] = [
        &["check", "config", "prometheus.yml"],
        &["check", "config", "--syntax-only", "site.yml"],
        &["check", "rules", "alerts.yml"],
        &["test", "rules", "alerts_test.yml"],
    ];
    for arguments in checks {
        let Some((good, printed)) = tool("promtool", arguments, "") else {
            print_line("skipped: Prometheus is not installed (apt-get install prometheus)");
            return;
        };
        assert!(good, "{arguments:?}: {printed}");
    }
    let scene = Scene::new();
    let (mut running, _) = start(&scene, "127.0.0.1:9464");
    let config = root().join("deploy/prometheus/prometheus.yml").display().to_string();
    let flags = [
        "--config.file",
        &config,
        "--storage.tsdb.path",
        "tsdb",
        "--web.listen-address",
        "127.0.0.1:19090",
    ];
    let mut prometheus = scene.spawn_program(Path::new("prometheus"), "prometheus", &flags, &[]);
    let mut answer = String::new();
    prometheus.wait_until("a loss in Prometheus", || {
        let asked = TcpStream::connect("127.0.0.1:19090").is_ok();
        answer = if asked {
            get("127.0.0.1:19090", "/api/v1/query?query=thanos_trainer_loss").1
        } else {
            String::new()
        };
        answer.contains("\"term\":\"total\"")
    });
    let mut workers = String::new();
    prometheus.wait_until("both workers in Prometheus", || {
        workers = get("127.0.0.1:19090", "/api/v1/query?query=thanos_trainer_worker_step").1;
        ["worker-0", "worker-1"]
            .iter()
            .all(|worker| workers.contains(&format!("\"worker\":\"{worker}\"")))
    });
    assert!(
        answer.contains("\"stage\":\"cnce\"") && answer.contains("\"job\":\"thanos_trainer\""),
        "{answer}"
    );
    running.wait_for_steps("run", 1);
    prometheus.interrupt().expect(0);
    running.interrupt().expect(75);
}

/// As at an address that others can reach: HTTPS, the run's authority, the scrape token, for
/// `/metrics` and `/sd`.
#[test]
fn prometheus_brings_the_token() {
    if tool("promtool", &["--version"], "").is_none() {
        print_line("skipped: Prometheus is not installed (apt-get install prometheus)");
        return;
    }
    let scene = Scene::new();
    let arguments =
        ["launch", "--nodes", "2", "--threads-per-worker", "1", "--run-dir", "run", "--status"];
    let target = ["0.0.0.0:9466", "digits_cnce", "train.epochs=100000"];
    let mut running = scene.start(&[&arguments[..], &target].concat());
    running.wait_for_steps("run", 1);
    let credentials = scene.path("run/credentials").display().to_string();
    let config = format!(
        "global: {{scrape_interval: 1s}}
scrape_configs:
  - job_name: run
    scheme: https
    authorization: &token {{type: Bearer, credentials_file: {credentials}/scrape-token}}
    tls_config: &tls {{ca_file: {credentials}/ca.pem, server_name: thanos-coordinator}}
    static_configs: [{{targets: ['127.0.0.1:9466']}}]
  - job_name: workers
    http_sd_configs:
      - {{url: 'https://127.0.0.1:9466/sd', refresh_interval: 1s, authorization: *token, \
      tls_config: *tls}}
"
    );
    std::fs::write(scene.path("https.yml"), config).expect("written");
    let file = scene.path("https.yml").display().to_string();
    let flags = [
        "--config.file",
        &file,
        "--storage.tsdb.path",
        "tsdb",
        "--web.listen-address",
        "127.0.0.1:19091",
    ];
    let mut prometheus = scene.spawn_program(Path::new("prometheus"), "prometheus", &flags, &[]);
    let ask = |query: &str| match TcpStream::connect("127.0.0.1:19091") {
        Ok(_) => get("127.0.0.1:19091", &format!("/api/v1/query?query={query}")).1,
        Err(_) => String::new(),
    };
    prometheus.wait_until("a loss", || ask("thanos_trainer_loss").contains("\"term\":\"total\""));
    prometheus.wait_until("a worker", || {
        ask("thanos_trainer_worker_step").contains("\"worker\":\"worker-1\"")
    });
    prometheus.interrupt().expect(0);
    running.interrupt().expect(75);
}
