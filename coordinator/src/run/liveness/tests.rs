//! Which workers are evicted, and which are left alone, however long their steps, checkpoints and
//! evaluations take.

use crate::run::tests::{
    NOW, begins, heartbeat, hello, notices, pass, ready, received, rejoin, step, training,
};
use crate::run::{Effect, Event, Notice, Run, SessionId};
use std::collections::BTreeMap;
use std::time::Duration;
use thanos_proto::{Heartbeat, Hello, StepDone, WorkerEvent};

const SECOND: Duration = NOW;

/// Two ranks that have made ten steps, each of so many seconds.
fn paced(seconds: f64) -> Run {
    let mut run = training();
    for number in 0..10 {
        let phase_seconds =
            BTreeMap::from([("forward".into(), seconds / 2.0), ("backward".into(), seconds / 2.0)]);
        let done = StepDone { phase_seconds, ..step("a", number, 4) };
        received(&mut run, 1, WorkerEvent::Step(done));
    }
    run
}

fn killed(effects: &[Effect]) -> Vec<&str> {
    let worker = |effect: &'_ Effect| match effect {
        Effect::Kill { worker } => Some(worker.clone()),
        _ => None,
    };
    let names = effects.iter().filter_map(worker);
    names.map(|name| if name == "worker-0" { "worker-0" } else { "worker-1" }).collect()
}

fn beats(first: (&str, u64), second: (&str, u64)) -> [(SessionId, WorkerEvent); 2] {
    [(1, heartbeat(10, first.0, first.1)), (2, heartbeat(10, second.0, second.1))]
}

#[test]
fn a_hung_worker_is_named_and_evicted() {
    let mut run = paced(0.01);
    let waits = beats(("reduce", 31), ("forward", 30));
    assert_eq!(notices(&pass(&mut run, SECOND * 10, &waits)), [], "not yet");
    let effects = pass(&mut run, SECOND, &waits);
    assert_eq!(killed(&effects), ["worker-1"]);
    let Some(Notice::Lost { reason, .. }) = notices(&effects).into_iter().next() else {
        panic!("{effects:?}")
    };
    assert!(
        reason.contains("rank 1")
            && reason.contains("is hung (heartbeats continue, no progress for 10"),
        "{reason}"
    );
    assert!(reason.contains("last seen in forward of step 10 of stage a"), "{reason}");
}

/// Limits follow the stage: five times its longest recent step, and generous ones until that is
/// known, or where ranks load images, evaluate and save.
#[test]
fn a_slow_worker_is_left_alone() {
    let waits = |phase| beats(("reduce", 31), (phase, 30));
    assert_eq!(killed(&pass(&mut paced(8.0), SECOND * 39, &waits("forward"))), [""; 0]);
    assert_eq!(killed(&pass(&mut paced(8.0), SECOND * 41, &waits("forward"))), ["worker-1"]);
    for phase in ["data", "evaluate", "save", "measure", "set up"] {
        assert_eq!(
            killed(&pass(&mut paced(0.01), SECOND * 590, &waits(phase))),
            [""; 0],
            "{phase}"
        );
    }
    // Another stage begins, whose steps are slower.
    let mut run = paced(0.01);
    run.start.stage = 1;
    received(&mut run, 1, WorkerEvent::Step(step("b", 0, 4)));
    assert_eq!(killed(&pass(&mut run, SECOND * 60, &waits("forward"))), [""; 0]);
    // A lone rank, too, is measured by what is known of its stage.
    let mut run = training();
    received(&mut run, 1, WorkerEvent::Step(step("a", 0, 4)));
    assert_eq!(killed(&pass(&mut run, SECOND * 60, &waits("forward"))), [""; 0]);
}

#[test]
fn a_worker_that_makes_progress_is_left_alone() {
    let mut run = paced(0.01);
    for second in 0..60 {
        let beat = |event| match event {
            WorkerEvent::Heartbeat(beat) => {
                WorkerEvent::Heartbeat(Heartbeat { progress: second, ..beat })
            }
            other => other,
        };
        let waits =
            beats(("reduce", 31), ("forward", 30)).map(|(session, event)| (session, beat(event)));
        assert_eq!(killed(&pass(&mut run, SECOND, &waits)), [""; 0]);
    }
}

#[test]
fn unresponsive_workers_are_evicted_together() {
    let mut run = training();
    let effects = pass(&mut run, SECOND * 2, &[]);
    assert_eq!(effects, [], "not yet");
    let effects = pass(&mut run, SECOND * 2, &[]);
    assert_eq!(killed(&effects), ["worker-0", "worker-1"]);
    let reason = "worker-1 (rank 1, pid 7 on h) sent no heartbeat for 3s and is terminated, last \
        seen in start";
    let lost = Notice::Lost { worker: "worker-1".into(), reason: reason.into() };
    assert!(notices(&effects).contains(&lost), "{effects:?}");
    let opened = effects.iter().filter(|effect| matches!(effect, Effect::OpenStore { .. })).count();
    assert_eq!(opened, 1, "one regroup for all");
}

/// Nothing is expected of ranks whose `Begin` waits for the disk, however long it takes.
#[test]
fn a_generation_that_is_not_durable_yet_is_not_counted() {
    let mut run = training();
    run.apply(Event::Closed { session: 2 }, NOW);
    run.apply(Event::Opened { session: 3, hello: Hello { pid: 9, ..hello("worker-1") } }, NOW);
    run.apply(Event::Received { session: 3, event: ready() }, NOW);
    let effects = run.apply(Event::Received { session: 1, event: rejoin(10) }, NOW);
    assert_eq!(begins(&effects).len(), 2);
    assert_eq!(killed(&pass(&mut run, SECOND * 700, &[])), [""; 0]);
    let generation = run.generation;
    run.apply(Event::BeginSent { generation: generation - 1 }, run.last_event);
    assert_eq!(killed(&pass(&mut run, SECOND * 4, &[])), [""; 0], "of the one before");
    run.apply(Event::BeginSent { generation }, run.last_event);
    assert_eq!(killed(&pass(&mut run, SECOND * 2, &[])), [""; 0]);
    assert_eq!(killed(&pass(&mut run, SECOND * 2, &[])), ["worker-0", "worker-1"]);
}

/// A pause of this process is not a worker's fault, however long it is, and whatever its heartbeats
/// report later.
#[test]
fn a_pause_of_the_coordinator_is_not_counted() {
    let mut run = paced(0.01);
    let waits = beats(("reduce", 31), ("forward", 30));
    pass(&mut run, SECOND, &waits);
    for _ in 0..10 {
        let later = run.last_event + SECOND * 60;
        assert_eq!(killed(&run.apply(Event::Tick, later)), [""; 0]);
        pass(&mut run, Duration::from_millis(100), &waits);
    }
}

/// Lines cannot be written: rank 0 waits within its step until they can.
#[test]
fn storage_that_blocks_is_not_counted() {
    let mut run = paced(0.01);
    run.apply(Event::Storage { problem: Some("No space left on device".into()) }, SECOND);
    let waits = beats(("update", 30), ("reduce", 31));
    assert_eq!(killed(&pass(&mut run, SECOND * 60, &waits)), [""; 0]);
    let now = run.last_event;
    assert!(matches!(
        &notices(&run.apply(Event::Storage { problem: None }, now))[..],
        [Notice::StorageRecovered { .. }]
    ));
    assert_eq!(killed(&pass(&mut run, SECOND * 9, &waits)), [""; 0]);
    assert_eq!(killed(&pass(&mut run, SECOND * 2, &waits)), ["worker-0"]);
}

#[test]
fn a_straggler_is_reported_once_and_stays() {
    let mut run = training();
    let mut all = Vec::new();
    for tenth in 0..400_u64 {
        let now = NOW + Duration::from_millis(100 * tenth);
        for (session, waited_ms) in [(1, tenth * 60), (2, tenth * 2)] {
            let WorkerEvent::Heartbeat(beat) = heartbeat(tenth, "forward", tenth) else { return };
            let event = WorkerEvent::Heartbeat(Heartbeat { waited_ms, ..beat });
            all.extend(run.apply(Event::Received { session, event }, now));
        }
        all.extend(run.apply(Event::Tick, now));
    }
    match &notices(&all)[..] {
        [Notice::Straggler { worker, last_position, share }] => {
            assert_eq!(worker, "worker-1");
            assert!(last_position.starts_with("forward of step "), "{last_position}");
            assert!((share - 0.58).abs() < 0.01, "{share}");
        }
        other => panic!("{other:?}"),
    }
}

/// Rank 2 of three is lost, and with it the generation; rank 0 has left it and holds the state,
/// rank 1 has not.
fn draining(phase: &str, in_collective: bool, held: bool, time: Duration) -> Vec<Effect> {
    let mut run = Run::new(crate::run::tests::start(3), Duration::ZERO);
    for (session, worker) in [(1, "worker-0"), (2, "worker-1"), (3, "worker-2")] {
        run.apply(Event::Opened { session, hello: hello(worker) }, NOW);
        received(&mut run, session, ready());
    }
    for number in 0..10 {
        let phase_seconds = BTreeMap::from([("forward".into(), 8.0)]);
        received(
            &mut run,
            1,
            WorkerEvent::Step(StepDone { phase_seconds, ..step("a", number, 4) }),
        );
    }
    let WorkerEvent::Heartbeat(beat) = heartbeat(10, phase, 30) else { return Vec::new() };
    let beat = WorkerEvent::Heartbeat(Heartbeat { in_collective, ..beat });
    pass(&mut run, SECOND, &[(1, beat.clone()), (2, beat.clone()), (3, beat.clone())]);
    run.apply(Event::Closed { session: 3 }, run.last_event);
    let first = if held { received(&mut run, 1, rejoin(10)) } else { Vec::new() };
    assert_eq!(begins(&first), []);
    pass(&mut run, time, &[(1, beat.clone()), (2, beat)])
}

#[test]
fn a_worker_that_does_not_leave_a_generation_is_evicted_unless_it_computes() {
    // Its closed connections should have woken it.
    assert_eq!(killed(&draining("reduce", true, true, SECOND * 9)), [""; 0]);
    assert_eq!(killed(&draining("reduce", true, true, SECOND * 11)), ["worker-1"]);
    // In a forward pass of eight seconds it is not notified.
    assert_eq!(killed(&draining("forward", false, true, SECOND * 39)), [""; 0]);
    assert_eq!(killed(&draining("forward", false, true, SECOND * 41)), ["worker-1"]);
    assert_eq!(killed(&draining("save", false, true, SECOND * 500)), [""; 0]);
    assert_eq!(killed(&draining("evaluate", false, true, SECOND * 500)), [""; 0]);
    // State that only these two hold is not given up so soon.
    assert_eq!(killed(&draining("reduce", true, false, SECOND * 39)), [""; 0]);
}

/// A newcomer that keeps a generation from its first step is evicted, and not those that hold the
/// state.
#[test]
fn a_newcomer_that_blocks_a_generation_is_evicted_alone() {
    let mut run = paced(0.01);
    run.apply(Event::Closed { session: 2 }, NOW);
    received(&mut run, 1, rejoin(10));
    run.apply(Event::Opened { session: 3, hello: Hello { pid: 9, ..hello("worker-1") } }, NOW);
    assert_eq!(begins(&received(&mut run, 3, ready())).len(), 2);
    let waits = [1, 3].map(|session| {
        let WorkerEvent::Heartbeat(beat) = heartbeat(10, "rendezvous", 0) else { unreachable!() };
        (session, WorkerEvent::Heartbeat(Heartbeat { generation: 5, ..beat }))
    });
    assert_eq!(killed(&pass(&mut run, SECOND * 599, &waits)), [""; 0]);
    assert_eq!(killed(&pass(&mut run, SECOND * 2, &waits)), ["worker-1"]);
    assert!(run.members.contains_key(&1));
}
