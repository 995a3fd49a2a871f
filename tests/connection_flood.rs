//! Unauthenticated clients at the coordinator's port: hundreds of connections that send nothing,
//! nonsense, or too much. They are turned away, the run continues, and its steps take as long as
//! before.

use crate::print_line;
use crate::recovery::launch;
use std::io::Write;
use std::net::TcpStream;
use std::time::Instant;
use thanos_tests::processes::{coordinator, descriptors, workers};
use thanos_tests::{Running, Scene, lines};

/// Steps of one measurement, and pairs of measurements.
const STEPS: usize = 40;
const PAIRS: usize = 3;

/// The coordinator's address, as it was given to its workers.
fn address(scene: &Scene) -> String {
    let pid = workers(&scene.path("run"))["worker-0"];
    let words = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).expect("it runs");
    words.split('\0').skip_while(|word| *word != "--coordinator").nth(1).expect("an address").into()
}

fn knock(address: &str, words: &[u8]) -> Option<TcpStream> {
    let mut stream = TcpStream::connect(address).ok()?;
    // It may have been closed already.
    _ = stream.write_all(words);
    Some(stream)
}

/// Seconds of the next steps.
fn time_steps(running: &mut Running, scene: &Scene) -> f64 {
    let next = lines(&scene.path("run"), "steps.jsonl").len() + 2;
    running.wait_for_steps("run", next);
    let started = Instant::now();
    running.wait_for_steps("run", next + STEPS);
    started.elapsed().as_secs_f64()
}

#[test]
fn unauthenticated_connections_do_not_slow_a_run_down() {
    let scene = Scene::alone();
    let mut running = launch(&scene, "run", "2", &["digits_cae", "train.epochs=100000"]);
    running.wait_for_steps("run", 10);
    let address = address(&scene);
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let mut rest = vec![0; 1 << 16];
    rest.iter_mut().enumerate().for_each(|(index, byte)| *byte = (index * 7 % 251) as u8);
    // The first bytes of a handshake of TLS, of which the rest never comes.
    let handshake = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";
    let words: [&[u8]; 5] = [b"", b"GET /metrics HTTP/1.1\r\n\r\n", &rest, preface, handshake];
    let mut ratios: Vec<f64> = (0..PAIRS)
        .map(|_| {
            let alone = time_steps(&mut running, &scene);
            let idle: Vec<_> =
                (0..2000).map(|number| knock(&address, words[number % words.len()])).collect();
            let beset = time_steps(&mut running, &scene);
            drop(idle);
            beset / alone
        })
        .collect();
    ratios.sort_by(f64::total_cmp);
    let pid = coordinator(&scene.path("run")).expect("it lives");
    let descriptors = descriptors(pid);
    print_line(&format!(
        "2000 unauthenticated connections: steps take {:.2} times as long (median of {PAIRS})",
        ratios[PAIRS / 2]
    ));
    assert!(ratios[PAIRS / 2] < 1.1, "{ratios:?}");
    assert!(descriptors < 1000, "{descriptors} descriptors are open");
    let output = running.interrupt().expect(75).stderr;
    assert!(!output.contains("generation 2"), "{output}");
}
