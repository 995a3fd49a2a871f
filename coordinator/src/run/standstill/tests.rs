//! Who hangs, who is only slow, and who is left alone.

use crate::run::tests::{NOW, heartbeat, notices, step, training};
use crate::run::{Effect, Event, Notice, Run};
use std::time::Duration;
use thanos_proto::{Heartbeat, WorkerEvent};

/// Ticks and heartbeats, ten a second, of two ranks whose places are given by the tenths of a second.
fn beat(run: &mut Run, seconds: u32, place: impl Fn(u32) -> [(u64, &'static str, u64); 2]) -> Vec<Effect> {
    let mut all = Vec::new();
    for tenth in 0..seconds * 10 {
        let now = NOW + Duration::from_millis(100) * tenth;
        for (session, (step, phase, collectives)) in (1..).zip(place(tenth)) {
            all.extend(run.apply(Event::Said { session, event: heartbeat(step, phase, collectives) }, now));
        }
        all.extend(run.apply(Event::Tick, now));
    }
    all
}

/// Both make ten steps; then one is in its forward pass for ever, and the other in the first collective behind it.
#[test]
fn a_worker_that_hangs_is_named_and_ended() {
    let mut run = training();
    for number in 0..10 {
        run.apply(Event::Said { session: 1, event: WorkerEvent::Step(step("a", number, 4)) }, NOW);
    }
    let waits = |_| [(10, "reduce", 31), (10, "forward", 30)];
    assert_eq!(notices(&beat(&mut run, 2, waits)), [], "not yet");
    let effects = beat(&mut run, 3, waits);
    assert!(effects.contains(&Effect::Kill { worker: "worker-1".into() }), "{effects:?}");
    let Some(Notice::Lost { reason, .. }) = notices(&effects).into_iter().next() else { panic!("{effects:?}") };
    assert!(reason.contains("rank 1") && reason.contains("hangs: its heartbeats go on"), "{reason}");
    assert!(reason.contains("last seen in forward of step 10 of stage a"), "{reason}");
    // An evaluation may take long, and steps that go on are slow at worst.
    for place in
        [(|_| [(10, "evaluate", 31), (10, "evaluate", 30)]) as fn(u32) -> [(u64, &'static str, u64); 2], |tenth| {
            [(10, "reduce", 31 + u64::from(tenth / 10)), (10, "forward", 30 + u64::from(tenth / 10))]
        }]
    {
        let mut run = training();
        for number in 0..10 {
            run.apply(Event::Said { session: 1, event: WorkerEvent::Step(step("a", number, 4)) }, NOW);
        }
        assert_eq!(notices(&beat(&mut run, 10, place)), []);
    }
}

#[test]
fn a_straggler_is_named_once_and_stays() {
    let mut run = training();
    let mut all = Vec::new();
    for tenth in 0..400 {
        let now = NOW + Duration::from_millis(100) * tenth;
        for (session, waited_ms) in [(1, u64::from(tenth) * 60), (2, u64::from(tenth) * 2)] {
            let WorkerEvent::Heartbeat(beat) = heartbeat(u64::from(tenth), "forward", tenth.into()) else { return };
            let event = WorkerEvent::Heartbeat(Heartbeat { waited_ms, ..beat });
            all.extend(run.apply(Event::Said { session, event }, now));
        }
        all.extend(run.apply(Event::Tick, now));
    }
    match &notices(&all)[..] {
        [Notice::Straggler { worker, whereabouts, share }] => {
            assert_eq!(worker, "worker-1");
            assert!(whereabouts.starts_with("forward of step "), "{whereabouts}");
            assert!((share - 0.58).abs() < 0.01, "{share}");
        }
        other => panic!("{other:?}"),
    }
}

/// One is gone, and with it the generation; the other one's thread sleeps in a collective, though its heartbeats go on.
#[test]
fn a_worker_that_stays_in_a_generation_that_is_over_is_ended() {
    let ended = |phase: &'static str, seconds: u32| {
        let mut run = training();
        beat(&mut run, 1, |_| [(10, phase, 30), (10, phase, 30)]);
        run.apply(Event::Closed { session: 2 }, NOW);
        let mut all = Vec::new();
        for tenth in 0..seconds * 10 {
            let now = NOW + Duration::from_millis(100) * tenth;
            all.extend(run.apply(Event::Said { session: 1, event: heartbeat(10, phase, 30) }, now));
            all.extend(run.apply(Event::Tick, now));
        }
        all.contains(&Effect::Kill { worker: "worker-0".into() })
    };
    assert_eq!([("reduce", 2), ("reduce", 4)].map(|(phase, seconds)| ended(phase, seconds)), [false, true]);
    // What is no step ends by itself, and may take longer.
    assert!(!ended("evaluate", 4));
    // Who says that it has left waits for the next one.
    let mut run = training();
    run.apply(Event::Closed { session: 2 }, NOW);
    let left = thanos_proto::Rejoin { generation: 4, held: None, recent: Vec::new() };
    run.apply(Event::Said { session: 1, event: WorkerEvent::Rejoin(left) }, NOW);
    let late = run.apply(Event::Tick, NOW + Duration::from_secs(2));
    assert!(!late.contains(&Effect::Kill { worker: "worker-0".into() }), "{late:?}");
}
