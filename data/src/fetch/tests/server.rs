//! A small HTTP/1.1 server for tests: on this machine, a thread a connection, one request a
//! connection, and answers that the test scripts by path and by how often that path was asked for.
//! It must not know what is fetched or how: it also gives answers that no proper server would give.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

/// A request as it came in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) path: String,
    pub(super) range: Option<String>,
    /// How many requests for the same path came before this one.
    pub(super) before: usize,
}

/// What the server does with a request.
pub(super) enum Reply {
    /// Sends these bytes, head and body, and closes the connection.
    Bytes(Vec<u8>),
    /// Sends these bytes and then nothing until the other side gives up.
    Stall(Vec<u8>),
    /// Sends a chunked body that never ends.
    Endless,
}

pub(super) struct Server {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
    stopped: Arc<AtomicBool>,
    accepting: Option<JoinHandle<()>>,
}

impl Server {
    pub(super) fn start(answer: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let stopped = Arc::new(AtomicBool::new(false));
        let (log, stop, answer) = (asked.clone(), stopped.clone(), Arc::new(answer));
        let accepting = thread::spawn(move || {
            for stream in listener.incoming() {
                if stop.load(Ordering::SeqCst) {
                    break;
                }
                let (stream, log, answer) = (stream.unwrap(), log.clone(), answer.clone());
                thread::spawn(move || serve(stream, &log, &*answer));
            }
        });
        Self { address, asked, stopped, accepting: Some(accepting) }
    }

    pub(super) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(super) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    /// The Range headers of all requests for `path`, in order.
    pub(super) fn ranges(&self, path: &str) -> Vec<Option<String>> {
        self.asked()
            .into_iter()
            .filter(|asked| asked.path == path)
            .map(|asked| asked.range)
            .collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::SeqCst);
        // A connection of our own wakes the thread that waits for one.
        let _ = TcpStream::connect(self.address);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}

fn serve(mut stream: TcpStream, log: &Mutex<Vec<Asked>>, answer: &dyn Fn(&Asked) -> Reply) {
    let Some(asked) = read_request(&stream, log) else { return };
    // The other side may hang up at any time, so failed writes are no failure of the test.
    match answer(&asked) {
        Reply::Bytes(bytes) => {
            let _ = stream.write_all(&bytes);
        }
        Reply::Stall(bytes) => {
            let _ = stream.write_all(&bytes);
            let _ = stream.read(&mut [0]);
        }
        Reply::Endless => {
            let mut sent =
                stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
            while sent.is_ok() {
                sent = stream.write_all(format!("400\r\n{}\r\n", "x".repeat(0x400)).as_bytes());
            }
        }
    }
}

fn read_request(stream: &TcpStream, log: &Mutex<Vec<Asked>>) -> Option<Asked> {
    let mut lines = BufReader::new(stream).lines();
    let path = lines.next()?.ok()?.split(' ').nth(1)?.to_string();
    let mut range = None;
    for line in lines {
        let line = line.ok()?;
        match line.split_once(':') {
            Some((name, value)) if name.eq_ignore_ascii_case("range") => {
                range = Some(value.trim().to_string())
            }
            Some(_) => {}
            None => break,
        }
    }
    let mut log = log.lock().unwrap();
    let before = log.iter().filter(|earlier| earlier.path == path).count();
    let asked = Asked { path, range, before };
    log.push(asked.clone());
    Some(asked)
}

/// A whole answer.
pub(super) fn ok(body: &[u8]) -> Reply {
    Reply::Bytes(message("200 OK", &[("Content-Length", &body.len().to_string())], body))
}

/// An answer that announces `length` bytes and sends fewer.
pub(super) fn torn(length: usize, body: &[u8]) -> Reply {
    Reply::Bytes(message("200 OK", &[("Content-Length", &length.to_string())], body))
}

/// The rest of `whole` from `start` on, as `206 Partial Content`.
pub(super) fn rest(whole: &[u8], start: usize) -> Reply {
    let range = format!("bytes {start}-{}/{}", whole.len() - 1, whole.len());
    let length = (whole.len() - start).to_string();
    let headers = [("Content-Length", length.as_str()), ("Content-Range", range.as_str())];
    Reply::Bytes(message("206 Partial Content", &headers, &whole[start..]))
}

pub(super) fn not_found() -> Reply {
    Reply::Bytes(message("404 Not Found", &[("Content-Length", "4")], b"gone"))
}

pub(super) fn redirect(location: &str) -> Reply {
    Reply::Bytes(message("302 Found", &[("Location", location), ("Content-Length", "0")], b""))
}

pub(super) fn message(status: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let lines: Vec<String> =
        headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let mut all = format!("HTTP/1.1 {status}\r\n{}\r\n", lines.concat()).into_bytes();
    all.extend_from_slice(body);
    all
}
