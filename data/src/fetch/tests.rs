//! Downloads from a scripted server on this machine: what must end under the final name, what must
//! not, and what the user is notified. It must not know about real data sets, and needs no network.

mod resume;
mod server;

use std::fs;
use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;

use super::*;
use server::{Reply, Server, message, not_found, ok, redirect, rest};

const FILE: &str = "data.bin";
/// For tests where an answer is expected: long enough for a loaded machine to answer.
const PATIENT: Timeouts =
    Timeouts { connect: Duration::from_secs(20), idle: Duration::from_secs(20) };
const IMPATIENT: Timeouts =
    Timeouts { connect: Duration::from_secs(20), idle: Duration::from_secs(1) };

struct Notes {
    lines: Vec<String>,
    last: (u64, u64),
}

impl Watch for Notes {
    fn at(&mut self, file: &str, done: u64, total: u64) {
        assert_eq!(file, FILE);
        assert!(done <= total, "{done} of {total}");
        self.last = (done, total);
    }

    fn say(&mut self, line: &str) {
        self.lines.push(line.to_string());
    }
}

/// A folder and what a fetch into it said.
struct Trial {
    dir: TempDir,
    notes: Notes,
}

impl Trial {
    fn new() -> Self {
        Self { dir: TempDir::new().unwrap(), notes: Notes { lines: Vec::new(), last: (0, 0) } }
    }

    /// Fetches `whole` as published at `urls`.
    fn fetch(&mut self, whole: &[u8], urls: &[String]) -> Result<Vec<Fetched>, FetchError> {
        self.fetch_within(PATIENT, whole, urls)
    }

    fn fetch_within(
        &mut self,
        times: Timeouts,
        whole: &[u8],
        urls: &[String],
    ) -> Result<Vec<Fetched>, FetchError> {
        fetch_within(times, &[published(whole, urls)], &[], self.dir.path(), &mut self.notes)
    }

    fn fails(&mut self, whole: &[u8], urls: &[String]) -> (u8, String) {
        let error = self.fetch(whole, urls).unwrap_err();
        (error.exit_code(), error.to_string())
    }

    fn put(&self, name: &str, bytes: &[u8]) {
        fs::write(self.dir.path().join(name), bytes).unwrap();
    }

    fn put_part(&self, bytes: &[u8]) {
        self.put(&format!(".{FILE}.part"), bytes);
    }

    /// The names and bytes of all that is in the folder.
    fn holds(&self) -> Vec<(String, Vec<u8>)> {
        let entry = |entry: io::Result<fs::DirEntry>| {
            let entry = entry.unwrap();
            (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())
        };
        let mut all: Vec<_> = fs::read_dir(self.dir.path()).unwrap().map(entry).collect();
        all.sort();
        all
    }

    fn assert_only(&self, whole: &[u8]) {
        assert!(
            self.holds() == [(FILE.to_string(), whole.to_vec())],
            "the folder must hold the file and nothing else"
        );
    }

    fn assert_only_part(&self, bytes: &[u8]) {
        assert!(
            self.holds() == [(format!(".{FILE}.part"), bytes.to_vec())],
            "the folder must hold the part alone"
        );
    }

    fn assert_empty(&self) {
        let names: Vec<String> = self.holds().into_iter().map(|(name, _)| name).collect();
        assert!(names.is_empty(), "{names:?}");
    }
}

fn published(whole: &[u8], urls: &[String]) -> Resource {
    let urls: Vec<&'static str> = urls.iter().map(|url| &*url.clone().leak()).collect();
    Resource { file: FILE, urls: urls.leak(), bytes: whole.len() as u64, md5: md5(whole).leak() }
}

fn md5(mut bytes: &[u8]) -> String {
    part::md5_of(&mut bytes).unwrap()
}

/// Bytes that differ everywhere from those of another `salt`, and over more than one chunk.
fn sample(salt: u8) -> Vec<u8> {
    (0..3 * CHUNK as u32 + 17).map(|at| (at % 251) as u8 ^ (at >> 8) as u8 ^ salt).collect()
}

/// How far the torn answers go.
const TORN: usize = CHUNK + 1000;

fn from_start(range: &str) -> Option<usize> {
    range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
}

/// A server whose `/good` is whole, `/ranged` honours Range, `/bad` is of the right length but
/// wrong, and which has nothing else.
fn plain_server() -> Server {
    Server::start(|asked| match (asked.path.as_str(), &asked.range) {
        ("/ranged", Some(range)) => rest(&sample(0), from_start(range).unwrap()),
        ("/good" | "/ranged", _) => ok(&sample(0)),
        ("/bad", _) => ok(&sample(1)),
        _ => not_found(),
    })
}

#[test]
fn a_file_comes_whole_and_leaves_no_part() {
    let server = plain_server();
    let mut trial = Trial::new();
    let url = server.url("/good");
    let fetched = trial.fetch(&sample(0), std::slice::from_ref(&url)).unwrap();
    assert_eq!(fetched, [Fetched::New { path: trial.dir.path().join(FILE), url }]);
    trial.assert_only(&sample(0));
    let length = sample(0).len() as u64;
    assert_eq!(trial.notes.last, (length, length));
    assert!(trial.notes.lines.is_empty());
    assert_eq!(server.ranges("/good"), [None]);
}

#[test]
fn a_mirror_is_tried_first_and_the_folder_is_created() {
    let server =
        Server::start(
            |asked| if asked.path == "/m/data.bin" { ok(&sample(0)) } else { not_found() },
        );
    let mut trial = Trial::new();
    let dir = trial.dir.path().join("a/b");
    let resource = published(&sample(0), &[server.url("/published")]);
    let mirrors = [server.url("/none"), server.url("/m/")];
    fetch(&[resource], &mirrors, &dir, &mut trial.notes).unwrap();
    assert_eq!(fs::read(dir.join(FILE)).unwrap(), sample(0));
    let paths: Vec<String> = server.asked().into_iter().map(|asked| asked.path).collect();
    assert_eq!(paths, ["/none/data.bin", "/m/data.bin"]);
}

#[test]
fn a_file_that_is_there_is_kept() {
    let server = plain_server();
    let mut trial = Trial::new();
    trial.put(FILE, &sample(0));
    let fetched = trial.fetch(&sample(0), &[server.url("/good")]).unwrap();
    assert_eq!(fetched, [Fetched::Already { path: trial.dir.path().join(FILE) }]);
    assert!(server.asked().is_empty());
    trial.assert_only(&sample(0));
}

#[test]
fn another_file_of_that_name_is_not_overwritten() {
    let server = plain_server();
    for there in [sample(1), b"short".to_vec()] {
        let mut trial = Trial::new();
        trial.put(FILE, &there);
        let (code, message) = trial.fails(&sample(0), &[server.url("/good")]);
        assert_eq!(code, 65);
        for part in [FILE, &md5(&there), &md5(&sample(0)), "delete it or move it"] {
            assert!(message.contains(part), "{message}");
        }
        trial.assert_only(&there);
    }
    let mut trial = Trial::new();
    fs::create_dir(trial.dir.path().join(FILE)).unwrap();
    let (code, message) = trial.fails(&sample(0), &[server.url("/good")]);
    assert!(code == 65 && message.contains("not a regular file"), "{message}");
    assert!(server.asked().is_empty());
}

#[test]
fn wrong_bytes_give_way_to_the_next_address() {
    let server = plain_server();
    let mut trial = Trial::new();
    trial.fetch(&sample(0), &[server.url("/bad"), server.url("/good")]).unwrap();
    trial.assert_only(&sample(0));
    assert_eq!(server.ranges("/good"), [None]);
    assert!(trial.notes.lines[0].contains(&md5(&sample(1))));
}

#[test]
fn wrong_bytes_everywhere_leave_nothing() {
    let server = plain_server();
    let mut trial = Trial::new();
    let (code, message) = trial.fails(&sample(0), &[server.url("/bad")]);
    assert_eq!(code, 65);
    let line = format!(
        "{}: its MD5 is {}, expected {}",
        server.url("/bad"),
        md5(&sample(1)),
        md5(&sample(0))
    );
    assert_eq!(message, format!("{FILE}: its only address failed:\n  {line}"));
    assert_eq!(trial.notes.lines, [format!("{FILE}: {line}")]);
    assert_eq!(server.asked().len(), 1);
    trial.assert_empty();
}

#[test]
fn a_404_gives_way_to_the_next_address() {
    let server = plain_server();
    let mut trial = Trial::new();
    trial.fetch(&sample(0), &[server.url("/none"), server.url("/good")]).unwrap();
    trial.assert_only(&sample(0));
    assert_eq!(trial.notes.lines, [format!("{FILE}: {}: HTTP status 404", server.url("/none"))]);
}

#[test]
fn all_reasons_are_listed() {
    let server = plain_server();
    let mut trial = Trial::new();
    let urls = [server.url("/none"), server.url("/bad")];
    let (code, message) = trial.fails(&sample(0), &urls);
    assert_eq!(code, 69);
    let lines: Vec<&str> = message.lines().collect();
    assert_eq!(lines[0], format!("{FILE}: all 2 addresses failed:"));
    assert_eq!(lines[1], format!("  {}: HTTP status 404", urls[0]));
    assert!(lines[2].starts_with(&format!("  {}: its MD5 is ", urls[1])) && lines.len() == 3);
    trial.assert_empty();
}

#[test]
fn a_body_without_end_is_cut() {
    let server = Server::start(|_| Reply::Endless);
    let mut trial = Trial::new();
    let (code, message) = trial.fails(&sample(0), &[server.url("/f")]);
    assert!(
        code == 65 && message.contains(&format!("more than {} bytes", sample(0).len())),
        "{message}"
    );
    trial.assert_empty();
}

#[test]
fn a_chunked_body_may_be_right_or_short() {
    let server = Server::start(|asked| {
        let body = if asked.path == "/short" { &sample(0)[..TORN] } else { &sample(0)[..] };
        let chunks = [format!("{:x}\r\n", body.len()).as_bytes(), body, b"\r\n0\r\n\r\n"].concat();
        Reply::Bytes(message("200 OK", &[("Transfer-Encoding", "chunked")], &chunks))
    });
    let mut trial = Trial::new();
    let (code, message) = trial.fails(&sample(0), &[server.url("/short")]);
    assert!(code == 65 && message.contains(&format!("ended after {TORN} bytes")), "{message}");
    trial.assert_empty();
    trial.fetch(&sample(0), &[server.url("/right")]).unwrap();
    trial.assert_only(&sample(0));
}

#[test]
fn a_wrong_announced_length_is_refused_before_the_body() {
    let server = Server::start(|_| {
        // If the body were waited for, this would end only after the long timeout and with another
        // reason.
        Reply::Stall(message(
            "200 OK",
            &[("Content-Length", &(sample(0).len() + 1).to_string())],
            b"",
        ))
    });
    let mut trial = Trial::new();
    trial.put_part(&sample(0)[..10]);
    let (code, message) = trial.fails(&sample(0), &[server.url("/f")]);
    let length = sample(0).len();
    assert!(
        code == 65
            && message.contains(&format!("declares {} bytes, expected {length}", length + 1)),
        "{message}"
    );
    // Nothing was read, so what an earlier run brought is still good.
    trial.assert_only_part(&sample(0)[..10]);
}

#[test]
fn a_redirect_on_this_machine_is_followed_with_its_range() {
    let server = Server::start(|asked| match (asked.path.as_str(), &asked.range) {
        ("/a/b", _) => redirect("../c?d=1"),
        ("/c?d=1", Some(range)) => rest(&sample(0), from_start(range).unwrap()),
        _ => not_found(),
    });
    let mut trial = Trial::new();
    trial.put_part(&sample(0)[..7]);
    trial.fetch(&sample(0), &[server.url("/a/b")]).unwrap();
    trial.assert_only(&sample(0));
    assert_eq!(server.ranges("/c?d=1"), [Some("bytes=7-".to_string())]);
}

#[test]
fn a_redirect_elsewhere_is_refused() {
    for (location, why) in [
        ("https://127.0.0.1:1/f", "from http to https"),
        ("ftp://127.0.0.1/f", "from http to ftp"),
        ("file:///etc/passwd", "from http to file"),
        ("http://192.0.2.1/f", "http is for this machine only"),
    ] {
        let server = Server::start(move |_| redirect(location));
        let mut trial = Trial::new();
        let (code, message) = trial.fails(&sample(0), &[server.url("/f")]);
        assert!(code == 69 && message.contains(why) && message.contains(location), "{message}");
        assert_eq!(server.asked().len(), 1);
        trial.assert_empty();
    }
}

#[test]
fn a_redirect_loop_ends() {
    let server = Server::start(|_| redirect("/f"));
    let mut trial = Trial::new();
    let (code, message) = trial.fails(&sample(0), &[server.url("/f")]);
    assert!(code == 69 && message.contains("more than 5 redirects"), "{message}");
    assert_eq!(server.asked().len(), 6);
}

#[test]
fn plain_http_to_another_machine_is_refused() {
    let mut trial = Trial::new();
    let (code, message) = trial.fails(&sample(0), &["http://192.0.2.1/f".to_string()]);
    assert!(code == 69 && message.contains("use https"), "{message}");
    trial.assert_empty();
}

#[test]
fn an_unresponsive_server_times_out() {
    let server = Server::start(|_| Reply::Stall(Vec::new()));
    let mut trial = Trial::new();
    let error = trial.fetch_within(IMPATIENT, &sample(0), &[server.url("/f")]).unwrap_err();
    assert!(error.exit_code() == 69 && error.to_string().contains("no answer: timeout"), "{error}");
    trial.assert_empty();
}

#[test]
fn a_server_that_only_claims_https_is_no_answer() {
    let server = plain_server();
    let mut trial = Trial::new();
    let url = server.url("/good").replacen("http", "https", 1);
    let (code, message) = trial.fails(&sample(0), &[url]);
    assert!(code == 69 && message.contains("no answer"), "{message}");
    trial.assert_empty();
}

#[test]
fn a_refused_connection_is_an_error() {
    // The port of a listener that is gone again.
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut trial = Trial::new();
    let (code, message) = trial.fails(&sample(0), &[format!("http://{address}/f")]);
    assert!(code == 69 && message.contains("no answer"), "{message}");
    trial.assert_empty();
}

#[test]
fn a_folder_that_cannot_be_made_is_an_io_error() {
    let server = plain_server();
    let mut trial = Trial::new();
    trial.put("file", b"");
    let below: &Path = &trial.dir.path().join("file/below");
    let resource = published(&sample(0), &[server.url("/good")]);
    let error = fetch(&[resource], &[], below, &mut trial.notes).unwrap_err();
    assert_eq!(error.exit_code(), 74);
    assert!(error.to_string().contains("cannot make the folder"), "{error}");
    assert!(server.asked().is_empty());
}
