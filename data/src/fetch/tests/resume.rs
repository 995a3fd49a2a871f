//! Downloads that break off and continue: within one run, from the part of an earlier run, and with
//! parts that are wrong. It must not know about real data sets, and needs no network.

use super::server::{Reply, Server, message, ok, rest, torn};
use super::*;

#[test]
fn a_torn_body_is_resumed() {
    let server = Server::start(|asked| match &asked.range {
        None => torn(sample(0).len(), &sample(0)[..TORN]),
        Some(range) => rest(&sample(0), from_start(range).unwrap()),
    });
    let mut trial = Trial::new();
    trial.fetch(&sample(0), &[server.url("/f")]).unwrap();
    trial.assert_only(&sample(0));
    assert_eq!(server.ranges("/f"), [None, Some(format!("bytes={TORN}-"))]);
    assert!(trial.notes.lines.len() == 1 && trial.notes.lines[0].contains("resuming, try 1 of 3"));
}

#[test]
fn a_body_that_is_always_torn_gives_way_to_the_next_address() {
    let start = |whole: bool| {
        Server::start(move |asked| match &asked.range {
            None => torn(sample(0).len(), &sample(0)[..TORN]),
            Some(range) if asked.path == "/next" && whole => {
                rest(&sample(0), from_start(range).unwrap())
            }
            // One byte more each time.
            Some(range) => {
                let from = from_start(range).unwrap();
                let Reply::Bytes(mut bytes) = rest(&sample(0), from) else { unreachable!() };
                bytes.truncate(bytes.len() - (sample(0).len() - from) + 1);
                Reply::Bytes(bytes)
            }
        })
    };
    let server = start(true);
    let mut trial = Trial::new();
    trial.fetch(&sample(0), &[server.url("/torn"), server.url("/next")]).unwrap();
    trial.assert_only(&sample(0));
    // The first try and MAX_RESUMES more; the next address continues from there.
    let ranges = server.ranges("/torn");
    assert_eq!(ranges.len(), 4);
    assert_eq!(ranges[3], Some(format!("bytes={}-", TORN + 2)));
    assert_eq!(server.ranges("/next"), [Some(format!("bytes={}-", TORN + 3))]);

    let server = start(false);
    let mut trial = Trial::new();
    let (code, message) = trial.fails(&sample(0), &[server.url("/torn")]);
    assert!(
        code == 69
            && message.contains(&format!("broke at {} of {} bytes", TORN + 3, sample(0).len())),
        "{message}"
    );
    trial.assert_only_part(&sample(0)[..TORN + 3]);
}

#[test]
fn a_break_without_progress_is_not_tried_again() {
    let server = Server::start(|_| torn(sample(0).len(), b""));
    let mut trial = Trial::new();
    let (code, message) = trial.fails(&sample(0), &[server.url("/f")]);
    assert!(code == 69 && message.contains("broke at 0 of"), "{message}");
    assert_eq!(server.asked().len(), 1);
    trial.assert_empty();
}

#[test]
fn a_body_that_only_the_close_ends_may_be_right_or_torn() {
    let server = Server::start(|asked| match asked.before {
        0 => Reply::Bytes(message("200 OK", &[("Connection", "close")], &sample(0)[..TORN])),
        _ => Reply::Bytes(message("200 OK", &[("Connection", "close")], &sample(0))),
    });
    let mut trial = Trial::new();
    trial.fetch(&sample(0), &[server.url("/f")]).unwrap();
    trial.assert_only(&sample(0));
    assert_eq!(server.asked().len(), 2);
}

#[test]
fn an_older_part_is_resumed() {
    let server = plain_server();
    let mut trial = Trial::new();
    trial.put_part(&sample(0)[..TORN]);
    trial.fetch(&sample(0), &[server.url("/ranged")]).unwrap();
    trial.assert_only(&sample(0));
    assert_eq!(server.ranges("/ranged"), [Some(format!("bytes={TORN}-"))]);
}

#[test]
fn an_older_part_that_is_whole_needs_no_server() {
    let server = plain_server();
    let mut trial = Trial::new();
    trial.put_part(&sample(0));
    let fetched = trial.fetch(&sample(0), &[server.url("/ranged")]).unwrap();
    assert_eq!(fetched, [Fetched::Already { path: trial.dir.path().join(FILE) }]);
    assert!(server.asked().is_empty());
    trial.assert_only(&sample(0));
}

#[test]
fn a_part_that_cannot_be_resumed_is_emptied() {
    let server = plain_server();
    for part in [sample(1), [sample(0), vec![0]].concat()] {
        let mut trial = Trial::new();
        trial.put_part(&part);
        trial.fetch(&sample(0), &[server.url("/ranged")]).unwrap();
        trial.assert_only(&sample(0));
    }
    assert_eq!(server.ranges("/ranged"), [None, None]);
}

#[test]
fn a_poisoned_part_is_started_over_once() {
    let server = plain_server();
    let mut trial = Trial::new();
    trial.put_part(&sample(1)[..TORN]);
    trial.fetch(&sample(0), &[server.url("/ranged")]).unwrap();
    trial.assert_only(&sample(0));
    assert_eq!(server.ranges("/ranged"), [Some(format!("bytes={TORN}-")), None]);
    assert!(trial.notes.lines.len() == 1 && trial.notes.lines[0].contains("starting over"));

    // A server whose bytes are wrong too is asked for the whole once and not again.
    let server = Server::start(|asked| match &asked.range {
        Some(range) => rest(&sample(2), from_start(range).unwrap()),
        None => ok(&sample(2)),
    });
    let mut trial = Trial::new();
    trial.put_part(&sample(1)[..TORN]);
    assert_eq!(trial.fails(&sample(0), &[server.url("/f")]).0, 65);
    assert_eq!(server.asked().len(), 2);
    trial.assert_empty();
}

#[test]
fn a_server_that_ignores_range_gives_the_whole() {
    let server = plain_server();
    let mut trial = Trial::new();
    trial.put_part(&sample(1)[..TORN]);
    trial.fetch(&sample(0), &[server.url("/good")]).unwrap();
    trial.assert_only(&sample(0));
    assert_eq!(server.ranges("/good"), [Some(format!("bytes={TORN}-"))]);
}

#[test]
fn a_range_that_does_not_fit_is_requested_again() {
    let length = sample(0).len();
    let unfit = [
        format!("bytes 0-{}/{length}", length - 1),
        format!("bytes {TORN}-{}/{}", length - 1, length + 1),
        format!("bytes {TORN}-{}/{length}", length - 2),
    ];
    for range in unfit {
        let server = Server::start(move |asked| match asked.range {
            Some(_) => Reply::Bytes(message(
                "206 Partial Content",
                &[("Content-Range", &range)],
                &sample(0)[TORN..],
            )),
            None => ok(&sample(0)),
        });
        let mut trial = Trial::new();
        trial.put_part(&sample(0)[..TORN]);
        trial.fetch(&sample(0), &[server.url("/f")]).unwrap();
        trial.assert_only(&sample(0));
        assert_eq!(server.asked().len(), 2);
    }
}

#[test]
fn two_runs_do_not_write_to_one_part() {
    let server = plain_server();
    let mut trial = Trial::new();
    let held = Part::open(trial.dir.path(), FILE).unwrap();
    let (code, message) = trial.fails(&sample(0), &[server.url("/good")]);
    assert!(code == 74 && message.contains("another run"), "{message}");
    drop(held);
    trial.fetch(&sample(0), &[server.url("/good")]).unwrap();
    trial.assert_only(&sample(0));
}

#[test]
fn a_server_that_stalls_in_the_body_counts_as_broken() {
    let length = sample(0).len();
    let server = Server::start(move |asked| match asked.range {
        None => Reply::Stall(message(
            "200 OK",
            &[("Content-Length", &length.to_string())],
            &sample(0)[..TORN],
        )),
        Some(_) => {
            let range = format!("bytes {TORN}-{}/{length}", length - 1);
            Reply::Stall(message("206 Partial Content", &[("Content-Range", &range)], b""))
        }
    });
    let mut trial = Trial::new();
    let error = trial.fetch_within(IMPATIENT, &sample(0), &[server.url("/f")]).unwrap_err();
    assert!(
        error.exit_code() == 69 && error.to_string().contains(&format!("broke at {TORN} of")),
        "{error}"
    );
    assert_eq!(server.asked().len(), 2);
    trial.assert_only_part(&sample(0)[..TORN]);
}

#[test]
fn a_chunked_body_that_is_torn_is_resumed() {
    let server = Server::start(|asked| match &asked.range {
        None => {
            let body = [format!("{:x}\r\n", TORN).as_bytes(), &sample(0)[..TORN], b"\r\n"].concat();
            Reply::Bytes(message("200 OK", &[("Transfer-Encoding", "chunked")], &body))
        }
        Some(range) => rest(&sample(0), from_start(range).unwrap()),
    });
    let mut trial = Trial::new();
    trial.fetch(&sample(0), &[server.url("/f")]).unwrap();
    trial.assert_only(&sample(0));
    assert_eq!(server.ranges("/f"), [None, Some(format!("bytes={TORN}-"))]);
}

#[test]
fn a_refused_range_is_requested_as_a_whole() {
    let server = Server::start(|asked| match asked.range {
        Some(_) => {
            Reply::Bytes(message("416 Range Not Satisfiable", &[("Content-Length", "0")], b""))
        }
        None => ok(&sample(0)),
    });
    let mut trial = Trial::new();
    trial.put_part(&sample(0)[..TORN]);
    trial.fetch(&sample(0), &[server.url("/f")]).unwrap();
    trial.assert_only(&sample(0));
}
