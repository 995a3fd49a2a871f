//! Experiment trackers: `log.csv` and the files of Weights & Biases hold every step of the ledger
//! once, whatever was killed. Where W&B's own client is installed (PyPI), it uploads them to a
//! small server of this test. Other trackers are in `tracker_servers.rs`.

use crate::print_line;
use crate::recovery::launch;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;
use thanos_tests::processes::{coordinator, send};
use thanos_tests::{Scene, lines};

const TARGET: [&str; 3] = ["digits_supcon", "rows=[]", "train.epochs=12"];

/// A run whose coordinator is killed twice, and which is stopped and resumed once.
fn disturbed(scene: &Scene, log: &[&str]) {
    let run = scene.path("run");
    let mut running = launch(scene, "run", "2", &[&TARGET[..], log].concat());
    for steps in [20, 40] {
        running.wait_for_steps("run", steps);
        send(coordinator(&run).expect("it is running"), Signal::SIGKILL);
    }
    running.wait_for_steps("run", 60);
    running.interrupt().expect(75);
    scene.coord(&["launch", "--resume", "--run-dir", "run"]).expect(0);
}

#[test]
fn log_csv_is_the_ledger() {
    let scene = Scene::new();
    disturbed(&scene, &["log.csv=true"]);
    let text = fs::read_to_string(scene.path("run/log.csv")).expect("log.csv");
    let mut table = text.lines().map(|line| line.split(',').map(str::to_owned).collect::<Vec<_>>());
    let header = table.next().expect("a header");
    let cells: Vec<BTreeMap<String, String>> =
        table.map(|line| header.iter().cloned().zip(line).collect()).collect();
    let ledger = lines(&scene.path("run"), "steps.jsonl");
    assert_eq!(cells.len(), ledger.len());
    for (cell, line) in cells.iter().zip(&ledger) {
        assert_eq!((cell["stage"].as_str(), &cell["step"]), ("supcon", &line["step"].to_string()));
        for (column, expected) in
            [("loss", &line["loss"]), ("contrastive", &line["losses"]["contrastive"])]
        {
            assert_eq!(cell[column].parse::<f64>().ok(), expected.as_f64(), "{column}: {cell:?}");
        }
    }
    let accuracies = cells.iter().filter(|cell| !cell["validation_accuracy"].is_empty()).count();
    assert_eq!(accuracies, 12, "one an epoch");
}

/// The last step of a run that fails and is never resumed.
#[test]
fn the_last_row_of_a_failed_run_is_there() {
    let scene = Scene::new();
    let arguments =
        ["launch", "--nodes", "2", "--threads-per-worker", "1", "--run-dir", "run", "digits_cnce"];
    let keys = ["rows=[]", "train.max_steps=30", "log.csv=true", "wandb.mode=offline"];
    let failing = [("FAILPOINTS", "poison-gradient=return(1:7)")];
    scene.start_with(&[&arguments[..], &keys].concat(), &failing).wait().expect(70);
    let run = scene.path("run");
    assert_eq!(lines(&run, "steps.jsonl").len(), 7);
    let table = fs::read_to_string(run.join("log.csv")).expect("log.csv");
    assert_eq!(table.lines().count(), 8, "{table}");
    let Some((histories, _)) = synced(&scene) else { return };
    let history = histories.values().next().expect("a run");
    assert_eq!(
        history.iter().map(|line| &line["_step"]).collect::<Vec<_>>(),
        [0, 1, 2, 3, 4, 5, 6]
    );
}

/// A file that cannot be written is reported once, and the run ends as without it.
#[test]
fn a_tracker_that_fails_is_reported_once_and_ends_nothing() {
    let scene = Scene::new();
    fs::create_dir_all(scene.path("run/log.csv")).expect("a directory, where a file has to be");
    let ran = scene.launch("run", 1, &[&TARGET[..], &["log.csv=true"]].concat()).expect(0);
    assert_eq!(ran.stderr.matches("log.csv: ").count(), 1, "{}", ran.stderr);
}

#[test]
fn without_its_client_an_online_run_is_kept_offline() {
    let scene = Scene::new();
    let arguments = [&["launch", "--run-dir", "run"], &TARGET[..], &["wandb.mode=online"]].concat();
    let ran = scene.start_with(&arguments, &[("PATH", "/nowhere:/usr/bin:/bin")]).wait().expect(0);
    let reports = ran.stderr.matches("the run is kept offline, `wandb sync ").count();
    assert_eq!(reports, 1, "{}", ran.stderr);
}

/// The lines of a run's history that the server was sent, by their position.
type Histories = Arc<Mutex<BTreeMap<String, Vec<Value>>>>;

/// Each file continues where the server says that the run's history ends.
#[test]
fn wandb_sync_delivers_the_ledger() {
    let scene = Scene::new();
    let keys = [
        "wandb.mode=offline",
        "wandb.project=p",
        "wandb.entity=e",
        "wandb.group=g",
        "wandb.tags=[a, b]",
    ];
    disturbed(&scene, &keys);
    let run = scene.path("run");
    let folders = fs::read_dir(run.join("wandb")).expect("a folder").count();
    // One a coordinator; one that was killed at once may have delivered nothing.
    assert!((2..=4).contains(&folders), "{folders}");
    let Some((histories, requests)) = synced(&scene) else { return };
    let id: Value =
        serde_json::from_str(&fs::read_to_string(run.join("run.json")).expect("run.json"))
            .expect("JSON");
    let history = &histories[id["id"].as_str().expect("text")];
    let ledger = lines(&run, "steps.jsonl");
    let steps: Vec<&Value> = history.iter().map(|line| &line["_step"]).collect();
    assert_eq!(history.len(), ledger.len(), "{steps:?}");
    for (index, (sent, line)) in history.iter().zip(&ledger).enumerate() {
        assert_eq!(
            (&sent["_step"], &sent["step"], &sent["stage"]),
            (&json!(index), &line["step"], &line["stage"])
        );
        assert_eq!(sent["supcon/loss/total"].as_f64(), line["loss"].as_f64());
    }
    let evaluated =
        history.iter().filter(|sent| sent["supcon/validation/accuracy"].is_f64()).count();
    assert_eq!(evaluated, 12, "one an epoch");
    for part in
        ["\"groupName\":\"g\"", "\"project\":\"p\"", "\"entity\":\"e\"", "\"tags\":[\"a\",\"b\"]"]
    {
        assert!(requests.contains(part), "no {part} in {requests}");
    }
}

/// What W&B's client uploads of the run: the histories of each run, and what it asked for. `None`:
/// there is no client.
fn synced(scene: &Scene) -> Option<(BTreeMap<String, Vec<Value>>, String)> {
    let run = scene.path("run");
    let Some(client) = client() else {
        print_line("skipped: wandb (PyPI) is not installed, its client has not read the files");
        return None;
    };
    let server = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = format!("http://{}", server.local_addr().expect("an address"));
    let (histories, requests) = (Histories::default(), Arc::new(Mutex::new(String::new())));
    serve(server, histories.clone(), requests.clone());
    let synced = Command::new(&client)
        .args(["sync", "--yes"])
        .arg(run.join("wandb"))
        .current_dir(scene.path(""))
        .envs([
            ("WANDB_BASE_URL", address.as_str()),
            ("WANDB_API_KEY", &"a".repeat(40)),
            ("HOME", "/nowhere"),
        ])
        .output()
        .expect("the client runs");
    assert!(synced.status.success(), "{}", String::from_utf8_lossy(&synced.stderr));
    // It is successful as well where it could not read a file: then this mark is missing.
    for folder in fs::read_dir(run.join("wandb"))
        .expect("a folder")
        .map(|entry| entry.expect("an entry").path())
    {
        let names = fs::read_dir(&folder)
            .expect("a run's folder")
            .map(|entry| entry.expect("an entry").file_name());
        let names: Vec<String> = names.map(|name| name.to_string_lossy().into_owned()).collect();
        assert!(
            names.iter().any(|name| name.ends_with(".wandb.synced")),
            "{}: {names:?}",
            folder.display()
        );
    }
    let histories = histories.lock().expect("no thread panicked").clone();
    let requests = requests.lock().expect("no thread panicked").clone();
    Some((histories, requests))
}

/// W&B's client, where it is installed.
fn client() -> Option<String> {
    let cache = std::env::var("HOME").unwrap_or_default() + "/.cache/thanos/wandb/bin/wandb";
    [cache.as_str(), "wandb"]
        .into_iter()
        .find(|program| Command::new(program).arg("--version").output().is_ok())
        .map(Into::into)
}

/// Answers as much of W&B's protocol as its client needs to upload a history.
fn serve(server: TcpListener, histories: Histories, requests: Arc<Mutex<String>>) {
    thread::spawn(move || {
        for connection in server.incoming().map_while(Result::ok) {
            let (histories, requests) = (histories.clone(), requests.clone());
            thread::spawn(move || answer_all(&connection, &histories, &requests));
        }
    });
}

fn answer_all(connection: &TcpStream, histories: &Histories, requests: &Mutex<String>) {
    let mut reader = BufReader::new(connection);
    while let Some((path, body)) = request(&mut reader) {
        let answer = match serde_json::from_slice::<Value>(&body) {
            Ok(body) => {
                *requests.lock().expect("no thread panicked") += &body["variables"].to_string();
                answer(&path, &body, histories)
            }
            // Telemetry of the client.
            Err(_) => json!({}),
        };
        let answer = answer.to_string();
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            answer.len()
        );
        let mut connection = connection;
        if connection.write_all((head + &answer).as_bytes()).is_err() {
            return;
        }
    }
}

/// Path and body of the next request.
fn request(reader: &mut BufReader<&TcpStream>) -> Option<(String, Vec<u8>)> {
    let mut first = String::new();
    reader.read_line(&mut first).ok().filter(|read| *read > 0)?;
    let (mut length, mut is_gzip) = (0, false);
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).ok()?;
        // A value may be empty, as that of `X-Wandb-Username` is.
        let header = header.trim_end().to_ascii_lowercase();
        let Some((name, value)) = header.split_once(':') else { break };
        match (name, value.trim()) {
            ("content-length", value) => length = value.parse().ok()?,
            ("content-encoding", value) => is_gzip = value == "gzip",
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    if is_gzip {
        let mut plain = Vec::new();
        flate2::read::GzDecoder::new(&body[..]).read_to_end(&mut plain).ok()?;
        body = plain;
    }
    Some((first.split(' ').nth(1)?.to_owned(), body))
}

fn answer(path: &str, body: &Value, histories: &Histories) -> Value {
    let mut histories = histories.lock().expect("no thread panicked");
    if let Some(run) = Path::new(path).parent().filter(|_| path.ends_with("/file_stream")) {
        let run =
            run.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let sent = &body["files"]["wandb-history.jsonl"];
        let history = histories.entry(run).or_default();
        let offset = usize::try_from(sent["offset"].as_u64().unwrap_or(0)).expect("small");
        let lines = sent["content"].as_array().into_iter().flatten().filter_map(Value::as_str);
        for (index, line) in lines.enumerate() {
            history.resize(history.len().max(offset + index + 1), Value::Null);
            history[offset + index] = serde_json::from_str(line).expect("a line of JSON");
        }
        return json!({"exitcode": null, "limits": {}});
    }
    let (query, variables) = (body["query"].as_str().unwrap_or(""), &body["variables"]);
    let name = variables["name"].as_str().unwrap_or("run");
    let count = histories.get(name).map_or(0, Vec::len);
    if query.contains("upsertBucket") {
        let project =
            json!({"id": "p", "name": variables["project"], "entity": {"id": "e", "name": "e"}});
        let bucket = json!({
            "id": "storage", "name": name, "displayName": variables["displayName"],
            "description": "", "config": "{}",
            "sweepName": null, "historyLineCount": count, "project": project,
        });
        return json!({"data": {"upsertBucket": {"bucket": bucket, "inserted": count == 0}}});
    }
    if query.contains("createRunFiles") {
        let created = json!({"runID": "storage", "uploadHeaders": [], "files": []});
        return json!({"data": {"createRunFiles": created}});
    }
    if query.contains("viewer") {
        let viewer = json!({
            "id": "u", "entity": "e", "username": "e", "flags": "{}", "teams": {"edges": []},
        });
        return json!({"data": {"viewer": viewer, "serverInfo": null}});
    }
    if query.contains("bucket(") && count > 0 {
        let bucket = json!({
            "id": "storage", "name": name, "summaryMetrics": "{}", "displayName": "",
            "logLineCount": 0,
            "historyLineCount": count, "eventsLineCount": 0, "historyTail": "[]",
            "eventsTail": "[]", "config": "{}",
            "tags": [], "wandbConfig": "{}",
        });
        let project =
            json!({"id": "p", "name": "p", "entity": {"id": "e", "name": "e"}, "bucket": bucket});
        return json!({"data": {"model": project}});
    }
    json!({"data": {"model": null}})
}
