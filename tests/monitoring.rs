//! What a site's monitoring relies on: every metric that an alert or a panel names is exposed by a
//! real run, each alert has a runbook, the manifests of Kubernetes have the same alerts, and the
//! end of a run is seen: by a last scrape, in `metrics.prom`, and by targets that disappear.

use crate::metrics::{get, start_with, tool, value};
use crate::print_line;
use nix::sys::signal::Signal;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Instant;
use thanos_coord::{COUNTERS, GAUGES, HISTOGRAMS, LIVE_METRICS};
use thanos_tests::processes::{send, workers};
use thanos_tests::{Scene, lines, root};
use thanos_worker::{WORKER_COUNTERS, WORKER_GAUGES, WORKER_PHASE_SECONDS};

/// Only with a GPU.
const GPU_MEMORY: &str = "thanos_trainer_worker_gpu_memory_peak_bytes";
const PROMETHEUS: &str = "127.0.0.1:19092";

fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// A metric's name without what a histogram adds to it.
fn base(name: &str) -> &str {
    ["_sum", "_count", "_bucket"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name)
}

/// The metrics that a text names.
fn named(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words.filter(|word| word.starts_with("thanos_trainer_")).map(base).collect()
}

/// The metrics that a page has series of.
fn exposed(page: &str) -> BTreeSet<&str> {
    let types = page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    types.filter(|name| page.lines().any(|line| line.starts_with(*name))).collect()
}

fn alerts() -> Vec<serde_yaml::Value> {
    let alerts: serde_yaml::Value =
        serde_yaml::from_str(&read("deploy/prometheus/alerts.yml")).expect("YAML");
    alerts["groups"][0]["rules"].as_sequence().expect("rules").clone()
}

#[test]
fn every_alert_has_a_duration_a_severity_a_runbook_and_a_test() {
    let (runbook, tests) = (read("docs/runbook.md"), read("deploy/prometheus/alerts_test.yml"));
    let rules = alerts();
    assert!(rules.len() >= 14, "{} alerts", rules.len());
    for rule in &rules {
        let name = rule["alert"].as_str().expect("a name");
        assert!(rule["for"].is_string(), "{name}: for");
        assert!(
            ["page", "warning"].contains(&rule["labels"]["severity"].as_str().expect("a severity")),
            "{name}"
        );
        let link = format!("docs/runbook.md#{}", name.to_lowercase());
        assert_eq!(rule["annotations"]["runbook"].as_str(), Some(link.as_str()), "{name}");
        let section =
            runbook.split("\n## ").find(|section| section.starts_with(&format!("{name}\n")));
        let section = section.unwrap_or_else(|| panic!("docs/runbook.md has no section {name}"));
        for part in ["**Meaning.**", "**Check.**", "**Do.**"] {
            assert!(section.contains(part), "{name}: {part}");
        }
        assert!(tests.contains(name), "alerts_test.yml has no case of {name}");
    }
    assert_eq!(
        runbook.matches("\n## ").count(),
        rules.len(),
        "a section for each alert, and no other"
    );
}

#[test]
fn the_manifests_of_kubernetes_have_the_same_alerts() {
    let folder = "deploy/kubernetes/components/monitoring";
    let rules: serde_yaml::Value =
        serde_yaml::from_str(&read(&format!("{folder}/rules.yaml"))).expect("YAML");
    assert_eq!(rules["kind"].as_str(), Some("PrometheusRule"));
    assert_eq!(rules["spec"]["groups"][0]["rules"].as_sequence(), Some(&alerts()));
    let component: serde_yaml::Value =
        serde_yaml::from_str(&read(&format!("{folder}/kustomization.yaml"))).expect("YAML");
    assert_eq!(component["kind"].as_str(), Some("Component"));
    for resource in component["resources"].as_sequence().expect("files") {
        assert!(
            root().join(folder).join(resource.as_str().expect("a name")).is_file(),
            "{resource:?}"
        );
    }
    let monitors = read(&format!("{folder}/pod-monitor.yaml"));
    let monitors: Vec<serde_yaml::Value> = monitors
        .split("\n---\n")
        .map(|document| serde_yaml::from_str(document).expect("YAML"))
        .collect();
    for (monitor, (component, job)) in monitors
        .iter()
        .zip([("coordinator", "thanos_trainer"), ("worker", "thanos_trainer_workers")])
    {
        let labels = &monitor["spec"]["selector"]["matchLabels"];
        assert_eq!(labels["app.kubernetes.io/name"].as_str(), Some("thanos-trainer"));
        assert_eq!(labels["app.kubernetes.io/component"].as_str(), Some(component));
        let endpoint = &monitor["spec"]["podMetricsEndpoints"][0];
        assert_eq!(
            (endpoint["port"].as_str(), endpoint["honorLabels"].as_bool()),
            (Some("metrics"), Some(true))
        );
        let relabelings = endpoint["relabelings"].as_sequence().expect("a list");
        assert!(
            relabelings.iter().any(|one| one["targetLabel"] == "job" && one["replacement"] == job),
            "{component}"
        );
    }
    assert_eq!(monitors.len(), 2);
}

/// Waits until a file of a run is there.
fn wait_for_file(running: &mut thanos_tests::Running, path: &Path) -> String {
    running.wait_until(&path.display().to_string(), || path.exists());
    fs::read_to_string(path).expect("it is replaced at once, never half written")
}

fn seconds_by_state_add_up(page: &str) {
    let start = value(page, "thanos_trainer_start_timestamp_seconds", &[]).expect("a time");
    let end = value(page, "thanos_trainer_end_timestamp_seconds", &[]).expect("a time");
    let states =
        page.lines().filter(|line| line.starts_with("thanos_trainer_state_seconds_total{"));
    let states: Vec<f64> =
        states.map(|line| line.rsplit(' ').next().expect("a value").parse().expect("it")).collect();
    assert_eq!(states.len(), 6, "{page}");
    let sum: f64 = states.iter().sum();
    assert!((sum - (end - start)).abs() < 0.25, "{sum} s in states, {} s in all", end - start);
}

fn counters_begin_at_zero(page: &str) {
    for (name, labels) in [
        ("thanos_trainer_checkpoints_total", "outcome=\"failed\""),
        ("thanos_trainer_restarts_total", "reason=\"hung\""),
        ("thanos_trainer_redone_steps_total", "run=\"run\""),
        ("thanos_trainer_recovery_seconds_count", "run=\"run\""),
    ] {
        assert_eq!(
            value(page, name, &[labels]),
            Some(0.0),
            "{name} is there before it is first needed"
        );
    }
}

/// A run to its end: what its last scrape shows is complete, is what alerts and panels name, and is
/// in the file.
#[test]
fn the_end_of_a_run_is_seen() {
    let scene = Scene::new();
    let target = ["digits_supcon", "train.max_steps=300", "rows=[]"];
    let (mut running, address) = start_with(
        &scene,
        &[&["--status", "127.0.0.1:0", "--linger", "200s"][..], &target].concat(),
    );
    let targets = wait_for_file(&mut running, &scene.path("run/targets.json"));
    let targets: Value = serde_json::from_str(&targets).expect("JSON");
    assert_eq!(targets[0]["targets"][0], address.as_str(), "{targets}");
    let labels = serde_json::json!({
        "job": "thanos_trainer", "run": "run", "component": "coordinator", "__scheme__": "http",
    });
    assert_eq!(targets[0]["labels"], labels);
    running.wait_for_steps("run", 4);
    // Workers report their pages by heartbeats.
    let discovered = || serde_json::from_str::<Value>(&get(&address, "/sd").1).expect("JSON");
    running.wait_until("the workers' pages", || {
        discovered().as_array().is_some_and(|targets| targets.len() == 2)
    });
    let sd = discovered();
    let worker = get(sd[0]["targets"][0].as_str().expect("an address"), "/metrics").1;
    let worker_id = sd[0]["labels"]["worker"].as_str().expect("a worker").to_owned();
    // No last scrape is answered before the end, however often the page was read.
    get(&address, "/metrics");
    running.wait_for_line("waiting up to 200s for a last scrape");
    assert!(scene.path("run/results.json").exists(), "the run is complete before it waits");
    let file = fs::read_to_string(scene.path("run/metrics.prom")).expect("written before the wait");
    let before = Instant::now();
    let page = get(&address, "/metrics").1;
    running.wait().expect(0);
    assert!(before.elapsed().as_secs() < 60, "the scrape ends the wait");
    assert!(!scene.path("run/targets.json").exists(), "nothing is served any more");

    assert_eq!(value(&page, "thanos_trainer_ended", &["outcome=\"done\""]), Some(1.0), "{page}");
    assert_eq!(
        value(&page, "thanos_trainer_state", &["state=\"ended\"", "run=\"run\""]),
        Some(1.0)
    );
    let result = thanos_tests::results(&scene.path("run"));
    let accuracy = value(
        &page,
        "thanos_trainer_test_accuracy_ratio",
        &["classes=\"coarse\"", "stage=\"supcon\""],
    );
    assert!(accuracy.is_some(), "{result}");
    seconds_by_state_add_up(&page);
    let steps = lines(&scene.path("run"), "steps.jsonl").len() as f64;
    assert_eq!(value(&page, "thanos_trainer_steps_total", &[]), Some(steps));
    counters_begin_at_zero(&page);
    all_are_labelled(&page, &["run=\"run\""]);
    all_are_labelled(&worker, &["run=\"run\"", &format!("worker=\"{worker_id}\"")]);
    what_is_named_is_exposed(&page, &worker);
    let missing: Vec<&str> = exposed(&page)
        .difference(&exposed(&file))
        .copied()
        .filter(|name| !name.starts_with("process_"))
        .collect();
    assert_eq!(missing, Vec::<&str>::new(), "in metrics.prom");
    assert!(!file.contains("process_"), "node_exporter has these itself");
    for text in [&page, &worker, &file] {
        match tool("promtool", &["check", "metrics"], text) {
            Some((accepted, problem)) => assert!(accepted, "{problem}"),
            None => print_line("promtool is not installed: it was not asked"),
        }
    }
}

fn all_are_labelled(page: &str, labels: &[&str]) {
    let series: Vec<&str> =
        page.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    assert!(series.len() > 20, "{page}");
    for one in series {
        assert!(labels.iter().all(|label| one.contains(label)), "{one} has not {labels:?}");
    }
}

/// What alerts and panels name is exposed, and all that the sources list.
fn what_is_named_is_exposed(page: &str, worker: &str) {
    let here: BTreeSet<&str> = exposed(page).union(&exposed(worker)).copied().collect();
    // Series of connected workers end with their sessions, so that a run that is over has none.
    let of_sessions =
        LIVE_METRICS.iter().map(|(name, ..)| *name).filter(|name| name.contains("_worker_"));
    let listed = GAUGES
        .iter()
        .chain(&COUNTERS)
        .chain(&WORKER_GAUGES)
        .chain(&WORKER_COUNTERS)
        .map(|(name, ..)| *name);
    let listed = listed
        .chain(HISTOGRAMS.iter().map(|(name, _)| *name))
        .chain(LIVE_METRICS.iter().map(|(name, ..)| *name));
    let absent: BTreeSet<&str> = of_sessions.chain([GPU_MEMORY]).collect();
    for name in listed.chain([WORKER_PHASE_SECONDS]).filter(|name| !absent.contains(name)) {
        assert!(here.contains(name), "{name} is listed and not exposed");
    }
    for file in [
        "deploy/prometheus/alerts.yml",
        "deploy/prometheus/alerts_test.yml",
        "deploy/grafana/thanos_trainer.json",
    ] {
        let text = read(file);
        let names = named(&text);
        assert!(names.len() > 7, "{file} names {} metrics", names.len());
        for name in names {
            assert!(here.contains(name) || absent.contains(name), "{file} names {name}");
        }
    }
}

/// One worker is killed, and its replacement takes over the state of the other; then both are, and
/// what no checkpoint has is made again.
#[test]
fn losses_recoveries_and_redone_steps_are_counted() {
    let scene = Scene::new();
    let target = [
        "--status",
        "127.0.0.1:0",
        "digits_supcon",
        "train.epochs=100000",
        "checkpoint.every_seconds=3600",
    ];
    let (mut running, address) = start_with(&scene, &target);
    running.wait_for_steps("run", 20);
    let count = |name: &str, labels: &[&str]| value(&get(&address, "/metrics").1, name, labels);
    let heartbeats =
        |page: &str| page.matches("\nthanos_trainer_worker_heartbeat_timestamp_seconds{").count();
    running
        .wait_until("both workers' heartbeats", || heartbeats(&get(&address, "/metrics").1) == 2);
    assert_eq!(count("thanos_trainer_lost_workers_total", &[]), Some(0.0));
    send(workers(&scene.path("run"))["worker-1"], Signal::SIGKILL);
    running.wait_until("a recovery", || {
        count("thanos_trainer_recovery_seconds_count", &[]) == Some(1.0)
    });
    running.wait_until("training", || {
        count("thanos_trainer_state", &["state=\"training\""]) == Some(1.0)
    });
    assert_eq!(count("thanos_trainer_lost_workers_total", &[]), Some(1.0));
    assert_eq!(count("thanos_trainer_restarts_total", &["reason=\"killed\""]), Some(1.0));
    assert_eq!(
        count("thanos_trainer_redone_steps_total", &[]),
        Some(0.0),
        "the state was in memory"
    );
    let recovering =
        count("thanos_trainer_state_seconds_total", &["state=\"recovering\""]).expect("a time");
    let took = count("thanos_trainer_recovery_seconds_sum", &[]).expect("a time");
    assert!(
        recovering >= took,
        "{recovering} s recovering, of which {took} s until the next generation"
    );
    workers(&scene.path("run")).values().for_each(|pid| send(*pid, Signal::SIGKILL));
    running.wait_until("redone steps", || {
        count("thanos_trainer_redone_steps_total", &[]) >= Some(20.0)
    });
    running
        .wait_until("both workers' heartbeats", || heartbeats(&get(&address, "/metrics").1) == 2);
    running.interrupt().expect(75);
}

/// Without a scrape, and with a signal, the wait ends as well; `metrics.prom` is written without
/// any page.
#[test]
fn lingering_has_an_end() {
    let scene = Scene::new();
    let target = ["digits_supcon", "train.max_steps=2", "rows=[]"];
    let (running, _) =
        start_with(&scene, &[&["--status", "127.0.0.1:0", "--linger", "1s"][..], &target].concat());
    let ran = running.wait().expect(0);
    assert!(ran.stderr.contains("no scrape within the limit"), "{}", ran.stderr);
    let scene = Scene::new();
    let (mut running, _) = start_with(
        &scene,
        &[&["--status", "127.0.0.1:0", "--linger", "200s"][..], &target].concat(),
    );
    running.wait_for_line("for a last scrape");
    running.interrupt().expect(0);
}

/// What cannot be written for monitoring costs a warning: the run continues, and ends well.
#[test]
fn monitoring_files_that_cannot_be_written_end_nothing() {
    let scene = Scene::new();
    for name in ["metrics.prom", "targets.json"] {
        // A folder cannot be replaced by a file.
        fs::create_dir_all(scene.path("run").join(name).join("x")).expect("made");
    }
    let target = ["--status", "127.0.0.1:0", "digits_supcon", "train.max_steps=2", "rows=[]"];
    let (running, _) = start_with(&scene, &target);
    let ran = running.wait().expect(0);
    let warnings = ran.stderr.matches("training continues").count();
    assert!(ran.stderr.contains("cannot write") && warnings <= 2, "{}", ran.stderr);
    assert!(scene.path("run/metrics.prom/x").is_dir());
}

/// The dashboard is one that Grafana takes, and each of its queries has data in a Prometheus that
/// scrapes a run by its targets.json.
#[test]
fn every_panel_has_data_of_a_run_that_is_found_by_its_file() {
    let dashboard: Value =
        serde_json::from_str(&read("deploy/grafana/thanos_trainer.json")).expect("JSON");
    let queries = queries(&dashboard);
    if tool("promtool", &["--version"], "").is_none() {
        print_line("skipped: Prometheus is not installed (apt-get install prometheus)");
        return;
    }
    let scene = Scene::new();
    let token = scene.path("site-token");
    fs::write(&token, "a-token-of-this-site\n").expect("written");
    let token = token.display().to_string();
    fs::create_dir(scene.path("targets")).expect("made");
    let targets = scene.path("targets").display().to_string();
    let arguments = ["launch", "--nodes", "2", "--threads-per-worker", "1", "--run-dir", "run"];
    let arguments =
        [&arguments[..], &["--status", "0.0.0.0:0", "--scrape-token-file", &token]].concat();
    // Some seconds, as a rate needs two scrapes.
    let target = [
        "--targets-dir",
        &targets,
        "--linger",
        "60s",
        "digits_supcon",
        "train.max_steps=2000",
        "transfer.epochs=2",
    ];
    let config = format!(
        "global: {{scrape_interval: 1s}}
scrape_configs:
  - job_name: site
    honor_labels: true
    file_sd_configs: [{{files: ['{targets}/*.json'], refresh_interval: 1s}}]
    authorization: {{type: Bearer, credentials_file: '{token}'}}
    tls_config: {{insecure_skip_verify: true}}
"
    );
    fs::write(scene.path("site.yml"), config).expect("written");
    let file = scene.path("site.yml").display().to_string();
    let flags =
        ["--config.file", &file, "--storage.tsdb.path", "tsdb", "--web.listen-address", PROMETHEUS];
    let mut prometheus = scene.spawn_program(Path::new("prometheus"), "prometheus", &flags, &[]);
    prometheus.wait_until("Prometheus", || TcpStream::connect(PROMETHEUS).is_ok());
    let run = scene.start(&[&arguments[..], &target[..]].concat());
    // The wait at the end is for Prometheus, which scrapes once a second.
    let ran = run.wait().expect(0);
    assert!(!ran.stderr.contains("no scrape within the limit"), "{}", ran.stderr);
    assert_eq!(fs::read_dir(&targets).expect("a folder").count(), 0, "what is over is no target");
    let done = r#"{outcome="done",run="run",job="thanos_trainer"}"#;
    let ended = query(&format!("max_over_time(thanos_trainer_ended{done}[10m]) == 1"));
    assert_eq!(ended.len(), 1, "{ended:?}");
    for expression in queries {
        // As the panel was at any time of the run; what the last scrape brought is there until the
        // target is removed.
        let samples = query(&format!("last_over_time(({expression})[10m:50ms])"));
        let needs_gpu = expression.contains(GPU_MEMORY);
        assert_eq!(samples.is_empty(), needs_gpu, "{expression}: {samples:?}");
    }
    prometheus.interrupt().expect(0);
}

/// The series that a query has in Prometheus.
fn query(expression: &str) -> Vec<Value> {
    let encoded: String = expression.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let mut stream = TcpStream::connect(PROMETHEUS).expect("it listens");
    // By HTTP/1.0 the body comes in one piece.
    write!(stream, "GET /api/v1/query?query={encoded} HTTP/1.0\r\n\r\n").expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let (_, body) = answer.split_once("\r\n\r\n").expect("a head");
    let answer: Value =
        serde_json::from_str(body).unwrap_or_else(|error| panic!("{expression}: {error}: {body}"));
    assert_eq!(answer["status"], "success", "{expression}: {body}");
    answer["data"]["result"].as_array().expect("a vector").clone()
}

/// The queries of all panels, with the variables replaced as Grafana does for `All`; the structure
/// is checked on the way.
fn queries(dashboard: &Value) -> Vec<String> {
    let variables: Vec<&str> = dashboard["templating"]["list"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|one| one["name"].as_str())
        .collect();
    assert_eq!(variables, ["datasource", "run", "stage", "worker"]);
    assert!(dashboard["schemaVersion"].as_u64() >= Some(39) && dashboard["uid"].is_string());
    let panels = dashboard["panels"].as_array().expect("a list");
    let ids: BTreeSet<u64> =
        panels.iter().map(|panel| panel["id"].as_u64().expect("an id")).collect();
    assert_eq!(ids.len(), panels.len(), "ids are unique");
    let mut found = Vec::new();
    for panel in panels.iter().filter(|panel| panel["type"] != "row") {
        let title = panel["title"].as_str().expect("a title");
        let place =
            ["x", "y", "w", "h"].map(|key| panel["gridPos"][key].as_u64().expect("a number"));
        assert!(place[0] + place[2] <= 24 && place[3] > 0, "{title}: {place:?}");
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{title}");
        for target in panel["targets"].as_array().expect("queries") {
            let expression = target["expr"].as_str().expect("a query");
            assert!(expression.contains("run=~\"$run\""), "{title} mixes the runs: {expression}");
            let expression = ["$run", "$stage", "$worker"]
                .iter()
                .fold(expression.to_owned(), |text, variable| text.replace(variable, ".*"));
            found.push(expression.replace("$__rate_interval", "10s"));
        }
    }
    assert!(found.len() > 30, "{} queries", found.len());
    found
}
