//! Runs of fewer workers than they may have: they grow and shrink.

use super::*;

/// Two workers at least, three at most, and a rendezvous timeout of ten seconds for the third.
fn elastic() -> Run {
    let mut run = Run::new(Start { min_workers: 2, ..start(3) }, Duration::ZERO);
    for (session, worker) in [(1, "worker-0"), (2, "worker-1")] {
        run.apply(Event::Opened { session, hello: hello(worker) }, NOW);
        assert_eq!(begins(&received(&mut run, session, ready())), [], "a third may come");
    }
    assert_eq!(pass(&mut run, NOW * 9, &[]), []);
    assert_eq!(begins(&pass(&mut run, NOW, &[])).len(), 2);
    run
}

#[test]
fn a_run_begins_with_min_workers_and_grows_when_more_join() {
    let mut run = elastic();
    let later = |event| Event::Received { session: 3, event };
    run.apply(Event::Opened { session: 3, hello: hello("worker-2") }, NOW * 11);
    let effects = run.apply(later(ready()), NOW * 11);
    let regroup = |session| Effect::Send { session, command: Command::Regroup { generation: 4 } };
    assert_eq!(effects, [regroup(1), regroup(2)], "they finish their step");
    run.apply(Event::Received { session: 1, event: rejoin(5) }, NOW * 12);
    let effects = run.apply(Event::Received { session: 2, event: rejoin(5) }, NOW * 12);
    let ranks: Vec<(SessionId, u32, Option<u32>)> = begins(&effects)
        .iter()
        .map(|(session, begin)| (*session, begin.world_size, begin.source))
        .collect();
    assert_eq!(ranks, [(1, 3, Some(0)), (2, 3, Some(0)), (3, 3, Some(0))]);
    assert!(
        !notices(&effects).iter().any(|notice| matches!(notice, Notice::Recovered { .. })),
        "nothing was lost"
    );
}

#[test]
fn a_run_shrinks_when_no_worker_rejoins_in_time() {
    let mut run = elastic();
    run.apply(Event::Opened { session: 3, hello: hello("worker-2") }, NOW * 11);
    // It dies before it takes part: the others do not notice.
    received(&mut run, 3, ready());
    assert_eq!(notices(&run.apply(Event::Closed { session: 3 }, NOW * 11)).len(), 1);
    let mut run = Run::new(Start { min_workers: 1, ..start(2) }, Duration::ZERO);
    for (session, worker) in [(1, "worker-0"), (2, "worker-1")] {
        run.apply(Event::Opened { session, hello: hello(worker) }, NOW);
        received(&mut run, session, ready());
    }
    run.apply(Event::Closed { session: 2 }, NOW);
    assert_eq!(begins(&received(&mut run, 1, rejoin(5))), []);
    let begun = begins(&pass(&mut run, NOW * 10, &[(1, heartbeat(5, "waiting", 1))]));
    assert_eq!((begun.len(), begun[0].1.world_size, begun[0].1.source), (1, 1, Some(0)));
}

#[test]
fn a_worker_that_dies_before_it_joins_ends_the_run() {
    let mut run = Run::new(start(2), Duration::ZERO);
    let exited = Event::Exited {
        worker: "worker-1".into(),
        how: "ended with exit code 127".into(),
        cause: ExitCause::Exited(127),
    };
    let (message, _) = failure(&run.apply(exited, NOW));
    assert_eq!(message, "worker-1 ended with exit code 127 before it joined the run");
    // One that was killed from outside is only restarted.
    let mut run = Run::new(start(2), Duration::ZERO);
    let killed = Event::Exited {
        worker: "worker-1".into(),
        how: "was killed by signal 9".into(),
        cause: ExitCause::Signalled(9),
    };
    let effects = run.apply(killed, NOW);
    assert!(
        effects.contains(&Effect::Restart { worker: "worker-1".into(), after: Duration::ZERO }),
        "{effects:?}"
    );
}
