//! The live page of a run: what it serves and to which clients, that it follows the ledger through
//! a killed coordinator, and, where Debian's `chromium` and PyPI's `playwright` are installed, what
//! a browser sees (`page_browser.py`).

use crate::metrics::{get, start_with};
use crate::print_line;
use nix::sys::signal::Signal;
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use thanos_tests::processes::{coordinator, send, workers};
use thanos_tests::terminal::{Terminal, coord};
use thanos_tests::{Running, Scene, lines, losses, root};

/// Pages that a run serves at a time, as `coordinator/src/telemetry/page.rs` has it.
const MAX_PAGES: usize = 32;

/// Head and body of the answer to a request with these headers.
fn ask(address: &str, path: &str, headers: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).expect("it listens");
    write!(stream, "GET {path} HTTP/1.1\r\nConnection: close\r\n{headers}\r\n").expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    (head.to_owned(), body.to_owned())
}

/// A page's stream of updates, as a browser keeps it open.
struct Stream(BufReader<TcpStream>);

impl Stream {
    /// `last`: the id that it has seen last.
    fn open(address: &str, last: Option<&str>) -> Self {
        let (head, stream) = Self::request(address, last);
        assert!(head.contains(" 200 "), "{head}");
        stream
    }

    /// The first line of the answer, too, which may be a refusal.
    fn request(address: &str, last: Option<&str>) -> (String, Self) {
        let mut stream = TcpStream::connect(address).expect("it listens");
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
        let last = last.map_or(String::new(), |last| format!("Last-Event-ID: {last}\r\n"));
        // HTTP/1.0: the answer is not in chunks, and lasts as long as the connection.
        write!(stream, "GET /events HTTP/1.0\r\nHost: {address}\r\n{last}\r\n").expect("sent");
        let mut stream = Self(BufReader::new(stream));
        (stream.line().expect("a head"), stream)
    }

    /// `None`: it has ended.
    fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        match self.0.read_line(&mut line) {
            Ok(0) | Err(_) => None,
            Ok(_) => Some(line.trim_end().to_owned()),
        }
    }

    /// The next update and its id.
    fn update(&mut self) -> Option<(String, Value)> {
        let (mut id, mut data) = (String::new(), None);
        loop {
            let line = self.line()?;
            if let Some(text) = line.strip_prefix("id: ") {
                id = text.into();
            } else if let Some(text) = line.strip_prefix("data: ") {
                data = Some(serde_json::from_str(text).expect("JSON"));
            } else if let (true, Some(data)) = (line.is_empty(), data.take()) {
                return Some((id, data));
            }
        }
    }
}

/// The losses of a stage that a page has after these updates.
fn follow(has: &mut Vec<f64>, update: &Value) {
    if update["reset"] == true {
        has.clear();
    }
    let new = &update["series"]["supcon"];
    if let Some(from) = new["from"].as_u64() {
        has.truncate(from as usize);
        has.extend(
            new["loss"]
                .as_array()
                .expect("a list")
                .iter()
                .map(|loss| loss.as_f64().expect("a number")),
        );
    }
}

const TARGET: [&str; 3] = ["digits_supcon", "train.epochs=100000", "rows=[]"];

#[test]
fn a_page_follows_the_ledger_and_continues_after_the_coordinator_was_killed() {
    let scene = Scene::new();
    let (mut running, address) =
        start_with(&scene, &[&["--status", "127.0.0.1:0"][..], &TARGET].concat());
    let run = scene.path("run");
    let mut stream = Stream::open(&address, None);
    let (mut id, mut has) = (String::new(), Vec::new());
    while has.len() < 20 {
        let update;
        (id, update) = stream.update().expect("the run continues");
        follow(&mut has, &update);
    }
    send(coordinator(&run).expect("it lives"), Signal::SIGKILL);
    while let Some((last, update)) = stream.update() {
        id = last;
        follow(&mut has, &update);
    }
    let before = has.len();
    // The supervisor holds the port: the page is answered by the next coordinator, at the same
    // address.
    let mut stream = Stream::open(&address, Some(&id));
    let (_, first) = stream.update().expect("an update");
    assert_eq!(
        (&first["reset"], &first["run"]),
        (&Value::Bool(false), &Value::Null),
        "it continues where it was"
    );
    follow(&mut has, &first);
    while has.len() < before + 20 {
        let (_, update) = stream.update().expect("the run continues");
        follow(&mut has, &update);
    }
    assert_eq!(has, losses(&run, "supcon")[..has.len()]);
    running.wait_for_steps("run", has.len());
    let state: Value = serde_json::from_str(&get(&address, "/series").1).expect("JSON");
    assert_eq!(state["state"]["starts"], 2);
    // It is evaluated at the end of every epoch.
    let now = state["state"]["state"].as_str().expect("a state");
    assert!(["training", "evaluating"].contains(&now), "{now}");
    assert_eq!(state["run"]["preset"], "digits_supcon");
    running.interrupt().expect(75);
    // The last update before the end has the end.
    let mut last = Value::Null;
    while let Some((_, update)) = stream.update() {
        follow(&mut has, &update);
        last = update;
    }
    assert_eq!(last["state"]["state"], "stopped", "{last}");
    assert_eq!(has, losses(&run, "supcon"));
}

#[test]
fn the_page_is_one_document_for_this_machine_and_a_bounded_number_of_readers() {
    let scene = Scene::new();
    let (mut running, address) =
        start_with(&scene, &[&["--status", "127.0.0.1:0"][..], &TARGET].concat());
    let host = format!("Host: {address}\r\n");
    let (head, html) = ask(&address, "/", &host);
    let head = head.to_lowercase();
    for part in [
        "200 ok",
        "content-type: text/html",
        "content-security-policy: default-src 'none'; script-src 'sha256-",
        "connect-src 'self'",
        "frame-ancestors 'none'",
        "x-content-type-options: nosniff",
        "referrer-policy: no-referrer",
    ] {
        assert!(head.contains(part), "no `{part}` in {head}");
    }
    assert!(!head.contains("unsafe"), "{head}");
    assert!(html.starts_with("<!doctype html>") && html.len() < 120_000, "{} bytes", html.len());
    print_line(&format!("the page is {} bytes", html.len()));
    for path in ["/", "/series", "/figures", "/events", "/status", "/metrics"] {
        let (head, _) = ask(&address, path, "Host: attacker.example\r\n");
        assert!(head.contains(" 403 "), "{path}: {head}");
    }
    assert_eq!(
        get(&address.replace("127.0.0.1", "localhost"), "/healthz").0,
        200,
        "a tunnel's name"
    );
    let streams: Vec<Stream> = (0..MAX_PAGES).map(|_| Stream::open(&address, None)).collect();
    let (head, body) = ask(&address, "/events", &host);
    assert!(head.contains(" 503 ") && body.contains("32 pages"), "{head}: {body}");
    // None of them reads: the run continues.
    running.wait_for_steps("run", 40);
    drop(streams);
    running
        .wait_until("a place for a page", || Stream::request(&address, None).0.contains(" 200 "));
    running.interrupt().expect(75);
}

/// Where others can reach it: TLS, and the token or what a browser gets for it.
#[test]
fn a_browser_gets_a_cookie_for_the_token() {
    const ASK: &str = "import http.client, ssl, sys
ca, port, token, run = sys.argv[1:]
def ask(path, headers={}):
    connection = http.client.HTTPSConnection('127.0.0.1', int(port), \
    context=ssl._create_unverified_context(cafile=ca))
    connection.request('GET', path, headers=headers)
    answer = connection.getresponse()
    return answer.status, answer
assert ask('/')[0] == 401
assert ask('/?token=0')[0] == 401
status, answer = ask('/?token=' + token)
assert (status, answer.getheader('Location')) == (303, '/'), status
cookie = answer.getheader('Set-Cookie')
assert all(part in cookie for part in ['; HttpOnly', '; Secure', '; SameSite=Strict', 'thanos-' + \
run]), cookie
assert token not in cookie and answer.getheader('Referrer-Policy') == 'no-referrer'
pair = cookie.split(';')[0]
for path in ['/', '/series', '/figures', '/status', '/metrics']:
    assert ask(path, {'Cookie': 'a=b; ' + pair})[0] == 200, path
    assert ask(path, {'Cookie': pair[:-1]})[0] == 401, path
assert ask('/series', {'Authorization': 'Bearer ' + token})[0] == 200";
    let scene = Scene::new();
    let arguments = ["serve", "--nodes", "2", "--run-dir", "run", "--status", "0.0.0.0:0"];
    let mut serving = scene.start(&[&arguments[..], &TARGET].concat());
    serving.wait_for_line("live page, metrics and status at https://");
    serving.wait_for_line("?token=TOKEN");
    let printed = std::fs::read_to_string(scene.path(".stderr")).expect("standard error");
    let port = printed
        .split("https://0.0.0.0:")
        .nth(1)
        .and_then(|rest| rest.split(',').next())
        .expect("a port");
    let token =
        std::fs::read_to_string(scene.path("run/credentials/scrape-token")).expect("a token");
    assert!(!printed.contains(token.trim()), "the token is not printed");
    let run: Value =
        serde_json::from_slice(&std::fs::read(scene.path("run/run.json")).expect("a run"))
            .expect("JSON");
    let ca = scene.path("run/credentials/ca.pem").display().to_string();
    let run = run["id"].as_str().expect("an id");
    let asked = Command::new("python3")
        .args(["-c", ASK, &ca, port, token.trim(), run])
        .output()
        .expect("python3");
    assert!(asked.status.success(), "{}", String::from_utf8_lossy(&asked.stderr));
    serving.interrupt().expect(75);
}

/// The program that views a run directory, and where.
fn view(scene: &Scene, run_dir: &str) -> (Running, String) {
    let mut viewing = scene.spawn("thanos-coord", "view", &["view", run_dir], &[]);
    viewing.wait_for_line("live page of ");
    let printed = std::fs::read_to_string(scene.path(".viewstderr")).expect("standard error");
    let address = printed
        .split(" at http://")
        .nth(1)
        .and_then(|rest| rest.split('/').next())
        .expect("an address");
    (viewing, address.to_owned())
}

/// The file that a run has left, and one that is written again, hold what a server would send, and
/// ask for nothing.
fn check_report(scene: &Scene, left: &Path, shown: &Value) {
    scene.coord(&["report", "run", "--html=page.html"]).expect(0);
    for file in [left, &scene.path("page.html")] {
        let html = std::fs::read_to_string(file).expect("a report");
        let snapshot =
            html.split("id=\"snapshot\">").nth(1).and_then(|rest| rest.split("</script>").next());
        let snapshot: Value =
            serde_json::from_str(&snapshot.expect("a snapshot").replace("<\\/", "</"))
                .expect("JSON");
        for part in ["series", "evaluations", "events", "run"] {
            assert_eq!(snapshot[part], shown[part], "{part} of {}", file.display());
        }
        assert!(
            !html.contains("src=") && !html.contains("<link rel=\"stylesheet"),
            "{}",
            file.display()
        );
    }
    let refused = scene.coord(&["report", "run", "run", "--html"]).expect(64);
    assert!(refused.stderr.contains("name one directory"), "{}", refused.stderr);
}

/// The figures of a served page are those of the report that the page does not draw itself.
fn check_figures(scene: &Scene, address: &str) {
    let report = std::fs::read_to_string(scene.path("run/report/index.html")).expect("a report");
    let figures = get(address, "/figures").1;
    for name in ["accuracy per class", "confusion", "embeddings", "views"] {
        assert!(figures.contains(&format!("Figure: {name}\"")), "{name}: {figures}");
    }
    assert!(report.contains(&figures), "{figures}");
    let Some(python) = playwright() else { return };
    in_browser(&python, &format!("http://{address}/"), &shots(scene), &["--ended"]);
}

#[test]
fn a_run_that_has_ended_is_viewed() {
    let scene = Scene::new();
    let target = ["digits_supcon", "train.max_steps=12", "transfer.max_steps=12"];
    scene.launch("run", 2, &target).expect(0);
    let (viewing, address) = view(&scene, "run");
    let shown: Value = serde_json::from_str(&get(&address, "/series").1).expect("JSON");
    let run = scene.path("run");
    let state = &shown["state"];
    assert_eq!((&state["state"], &state["is_live"]), (&"done".into(), &false.into()));
    let stages = state["stages"].as_array().expect("a list");
    assert!(stages.len() >= 2, "{stages:?}");
    for stage in stages {
        let name = stage["name"].as_str().expect("a name");
        assert_eq!((&stage["state"], &stage["steps"]), (&"complete".into(), &12.into()), "{name}");
        let shown: Vec<f64> =
            serde_json::from_value(shown["series"][name]["loss"].clone()).expect("numbers");
        assert_eq!(shown, losses(&run, name), "{name}");
        assert!(stage["result"]["cosine_between_views"].is_f64(), "{stage}");
    }
    assert_eq!(state["results"], thanos_tests::results(&run));
    assert_eq!(state["workers"].as_array().map(Vec::len), Some(2));
    let events = lines(&run, "events.jsonl");
    assert_eq!(shown["events"].as_array().expect("a list").last(), events.last());
    check_report(&scene, &run.join("report/index.html"), &shown);
    check_figures(&scene, &address);
    viewing.interrupt().expect(0);
    let refused = scene.coord(&["view", "run", "--listen", "0.0.0.0:0"]).expect(64);
    assert!(refused.stderr.contains("ssh -L"), "{}", refused.stderr);
    scene.coord(&["view", "nothing"]).expect(64);
}

#[test]
fn the_page_is_on_by_default_on_a_terminal_and_off_elsewhere() {
    let scene = Scene::new();
    let run = |run_dir: &str, more: &[&str]| {
        let (terminal, slave) = Terminal::new();
        let arguments = ["launch", "--run-dir", run_dir, "--threads-per-worker", "1"];
        let target = ["digits_supcon", "train.max_steps=2", "rows=[]"];
        let command = coord(&scene, &[&arguments[..], more, &target].concat());
        terminal.read_to_end(thanos_tests::terminal::start(&scene, command, slave))
    };
    let (code, shown) = run("on", &[]);
    assert!(
        code == Some(0)
            && shown.matches("live page, metrics and status at http://127.0.0.1:").count() == 1,
        "{shown}"
    );
    let (code, shown) = run("off", &["--status", "off"]);
    assert!(code == Some(0) && !shown.contains("live page"), "{shown}");
    let elsewhere =
        scene.launch("elsewhere", 1, &["digits_supcon", "train.max_steps=2", "rows=[]"]).expect(0);
    assert!(!elsewhere.stderr.contains("live page"), "{}", elsewhere.stderr);
}

/// Python with playwright, where chromium is installed, too.
pub(crate) fn playwright() -> Option<PathBuf> {
    let home = PathBuf::from(std::env::var("HOME").unwrap_or_default());
    let cached = home.join(".cache/thanos/playwright/bin/python");
    let has = |python: &PathBuf| {
        let asked = Command::new(python).args(["-c", "import playwright"]).output();
        asked.is_ok_and(|asked| asked.status.success())
    };
    let python = [cached, "python3".into()].into_iter().find(has)?;
    Path::new("/usr/bin/chromium").exists().then_some(python)
}

/// Where axe-core is kept, or `-`.
fn axe() -> String {
    let home = std::env::var("HOME").unwrap_or_default();
    let axe = format!("{home}/.cache/thanos/axe-core/package/axe.min.js");
    if Path::new(&axe).exists() { axe } else { "-".into() }
}

/// Where screenshots are kept.
pub(crate) fn shots(scene: &Scene) -> PathBuf {
    let kept = std::env::var_os("PAGE_SHOTS").map_or_else(|| scene.path("shots"), PathBuf::from);
    std::fs::create_dir_all(&kept).expect("a folder");
    kept
}

/// Looks at a page with a browser, and prints what it found.
pub(crate) fn in_browser(python: &Path, url: &str, shots: &Path, arguments: &[&str]) {
    let asked = Command::new(python)
        .arg(root().join("tests/page_browser.py"))
        .args([url, &axe()])
        .arg(shots)
        .args(arguments)
        .output()
        .expect("it runs");
    let said = String::from_utf8_lossy(&asked.stdout).into_owned();
    assert!(asked.status.success(), "{said}{}", String::from_utf8_lossy(&asked.stderr));
    print_line(said.trim());
}

#[test]
fn a_browser_sees_the_run_and_a_killed_worker() {
    let Some(python) = playwright() else {
        print_line(
            "skipped: chromium (Debian) or playwright (PyPI) is not installed, the page was not \
            looked at",
        );
        return;
    };
    let scene = Scene::new();
    let target = ["digits_supcon", "train.epochs=100000", "train.evaluate_every=1", "rows=[]"];
    let (mut running, address) =
        start_with(&scene, &[&["--status", "127.0.0.1:0"][..], &target].concat());
    running.wait_for_steps("run", 40);
    let victim = workers(&scene.path("run"))["worker-1"].to_string();
    let url = format!("http://{address}/");
    in_browser(&python, &url, &shots(&scene), &["--kill", &victim]);
    running.interrupt().expect(75);
}
