//! SIGTERM for most workers stops the run; for a few it is the loss of those, in time.

use super::TERMINATION_LIMIT;
use crate::run::tests::{
    NOW, begins, end, heartbeat, hello, notices, pass, ready, received, rejoin, start, training,
};
use crate::run::{Effect, Event, Notice, Run, SessionId, Start};
use std::time::Duration;
use thanos_proto::{Command, WorkerEvent};

/// A run in its first generation, with this many workers.
fn running(workers: usize, min_workers: usize) -> Run {
    let mut run = Run::new(Start { min_workers, ..start(workers) }, Duration::ZERO);
    for index in 0..workers {
        let session = index as SessionId + 1;
        run.apply(Event::Opened { session, hello: hello(&format!("worker-{index}")) }, NOW);
        received(&mut run, session, ready());
    }
    run
}

fn notice(run: &mut Run, session: SessionId) -> Vec<Effect> {
    received(run, session, WorkerEvent::TerminationNotice)
}

fn stops(effects: &[Effect]) -> Option<&str> {
    effects.iter().find_map(|effect| match effect {
        Effect::Notify(Notice::Stopping { reason }) => Some(reason.as_str()),
        _ => None,
    })
}

#[test]
fn the_run_stops_when_most_workers_received_sigterm() {
    let check = |workers: usize, enough: usize, reason: &str| {
        let mut run = running(workers, workers);
        for reported in 1..enough as SessionId {
            assert_eq!(stops(&notice(&mut run, reported)), None, "{reported} of {workers}");
        }
        let effects = notice(&mut run, enough as SessionId);
        assert_eq!(stops(&effects), Some(reason), "{enough} of {workers}");
        let asked =
            |effect: &&Effect| matches!(effect, Effect::Send { command: Command::Stop { .. }, .. });
        assert_eq!(effects.iter().filter(asked).count(), workers, "{effects:?}");
        assert_eq!(notice(&mut run, workers as SessionId), [], "a stop is requested once");
    };
    check(1, 1, "SIGTERM received by worker-0");
    check(2, 2, "SIGTERM received by worker-0 and 1 more of 2 workers");
    check(3, 2, "SIGTERM received by worker-0 and 1 more of 3 workers");
    check(4, 3, "SIGTERM received by worker-0 and 2 more of 4 workers");
}

#[test]
fn one_worker_that_received_sigterm_trains_on_until_it_is_killed() {
    let mut run = training();
    let effects = notice(&mut run, 2);
    let expected = Notice::Terminating { worker: "worker-1".into(), limit: TERMINATION_LIMIT };
    assert_eq!(effects, [Effect::Notify(expected)], "no rank is interrupted");
    assert_eq!(notice(&mut run, 2), [], "a reconnected worker reports it again");
    // It is killed: recovery as of any loss.
    let effects = run.apply(Event::Closed { session: 2 }, NOW);
    assert!(matches!(&notices(&effects)[..], [Notice::Lost { .. }]), "{effects:?}");
    assert_eq!(end(&effects).0, None);
    // The one that is left is all there are, and yet not most of the run.
    assert_eq!(stops(&notice(&mut run, 1)), None);
}

#[test]
fn a_worker_that_is_not_killed_is_terminated_and_the_others_continue() {
    let mut run = running(3, 2);
    notice(&mut run, 3);
    let beats =
        |number: u64| [1, 2, 3].map(|session| (session, heartbeat(number, "forward", number)));
    assert_eq!(pass(&mut run, TERMINATION_LIMIT - NOW, &beats(1)), []);
    let effects = pass(&mut run, NOW * 2, &beats(2));
    let killed = Effect::Kill { worker: "worker-2".into() };
    assert!(effects.contains(&killed), "{effects:?}");
    assert!(
        !effects
            .iter()
            .any(|effect| matches!(effect, Effect::Kill { worker } if *worker != "worker-2"))
    );
    received(&mut run, 1, rejoin(10));
    received(&mut run, 2, rejoin(10));
    let rendezvous_timeout = run.start.rendezvous_timeout;
    assert_eq!(
        begins(&pass(&mut run, rendezvous_timeout + NOW, &beats(2)[..2])).len(),
        2,
        "with those that are left"
    );
}

/// Two of four are drained, and the others are lost: no other rank would hold the state.
#[test]
fn ranks_that_are_all_to_leave_save_first() {
    let mut run = running(4, 1);
    notice(&mut run, 1);
    notice(&mut run, 2);
    for session in [3, 4] {
        run.apply(Event::Closed { session }, NOW);
    }
    received(&mut run, 1, rejoin(10));
    received(&mut run, 2, rejoin(10));
    let beats = [1, 2].map(|session| (session, heartbeat(1, "forward", 1)));
    let rendezvous_timeout = run.start.rendezvous_timeout;
    assert_eq!(begins(&pass(&mut run, rendezvous_timeout + NOW, &beats)).len(), 2);
    let effects = pass(&mut run, TERMINATION_LIMIT, &beats);
    assert_eq!(stops(&effects), Some("SIGTERM received by worker-0 and 1 more of 2 workers"));
    assert!(!effects.iter().any(|effect| matches!(effect, Effect::Kill { .. })), "{effects:?}");
}

#[test]
fn a_stop_is_not_disturbed_by_the_limit() {
    let mut run = running(2, 2);
    notice(&mut run, 1);
    notice(&mut run, 2);
    let beats = [1, 2].map(|session| (session, heartbeat(1, "save", 1)));
    let effects = pass(&mut run, TERMINATION_LIMIT * 2, &beats);
    assert!(!effects.iter().any(|effect| matches!(effect, Effect::Kill { .. })), "{effects:?}");
}
