//! `data fetch` against a server on 127.0.0.1 that has something else than what is published:
//! reported, with the right exit code, and nothing is left. What a good server gives is tested next
//! to `data/src/fetch.rs`, with files small enough to have.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::thread;
use thanos_tests::Scene;

/// Answers every request with these bytes, until the test ends.
fn server(answer: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = format!("http://{}", listener.local_addr().expect("an address"));
    thread::spawn(move || {
        for connection in listener.incoming() {
            let Ok(mut connection) = connection else { return };
            let head = BufReader::new(connection.try_clone().expect("a handle")).lines();
            head.map_while(Result::ok).take_while(|line| !line.is_empty()).for_each(drop);
            _ = connection.write_all(answer.as_bytes());
        }
    });
    address
}

#[test]
fn wrong_files_are_reported_and_not_kept() {
    let scene = Scene::new();
    // The published addresses cannot be reached through a proxy that is not there: only the mirror
    // answers.
    let check = |answer: &'static str, code: i32, part: &str| {
        let mirror = server(answer);
        let arguments = ["data", "fetch", "mnist", "--dir", "raw", "--mirror", &mirror];
        let ran = scene
            .start_with(
                &arguments,
                &[("HTTPS_PROXY", "http://127.0.0.1:9"), ("https_proxy", "http://127.0.0.1:9")],
            )
            .wait();
        assert_eq!(ran.code, Some(code), "{}{}", ran.stdout, ran.stderr);
        let expected = format!("{mirror}/train-images-idx3-ubyte.gz: {part}");
        assert!(ran.stderr.contains(&expected), "no `{expected}` in\n{}", ran.stderr);
        assert!(
            ran.stderr.contains("error: train-images-idx3-ubyte.gz: all 3 addresses failed"),
            "{}",
            ran.stderr
        );
        let left: Vec<_> = fs::read_dir(scene.path("raw")).expect("a folder").collect();
        assert!(left.is_empty(), "{left:?}");
    };
    check(
        "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        69,
        "HTTP status 404",
    );
    check(
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello",
        69,
        "it declares 5 bytes, expected 9912422",
    );
    check(
        "HTTP/1.1 302 Found\r\nLocation: ftp://127.0.0.1/x\r\nContent-Length: 0\r\nConnection: \
        close\r\n\r\n",
        69,
        "",
    );
    let ran = scene.coord(&[
        "data",
        "fetch",
        "mnist",
        "--dir",
        "raw",
        "--mirror",
        "http://example.org/mnist",
    ]);
    assert!(
        ran.stderr.contains("http://example.org/mnist/train-images-idx3-ubyte.gz: "),
        "{}",
        ran.stderr
    );
}
