//! A run that ends keeps what its workers hold: a stop or a failure in any phase, with workers that
//! are there, gone, or on their way back.

use crate::exit::{EXIT_IO, EXIT_UNREACHABLE};
use crate::run::tests::{
    NOW, begins, checkpoint, committed, end, failure, heartbeat, hello, notices, pass, ready,
    received, rejoin, start, step, training, written,
};
use crate::run::{Effect, Event, ExitCause, Notice, Run, SessionId, Start, Verdict};
use std::time::Duration;
use thanos_proto::{Command, Failed, Held, Hello, Rejoin, WorkerEvent};

/// Two ranks that have made ten steps.
fn ten_steps() -> Run {
    let mut run = training();
    for number in 0..10 {
        received(&mut run, 1, WorkerEvent::Step(step("a", number, 4)));
    }
    run
}

fn saves(effects: &[Effect]) -> Vec<SessionId> {
    let session = |effect: &Effect| match effect {
        Effect::Send { session, command: Command::Save } => Some(*session),
        _ => None,
    };
    effects.iter().filter_map(session).collect()
}

fn stop() -> Event {
    Event::StopRequested { reason: "SIGTERM".into() }
}

#[test]
fn a_stop_during_recovery_is_saved_from_memory() {
    let mut run = ten_steps();
    run.apply(Event::Closed { session: 2 }, NOW);
    let effects = run.apply(stop(), NOW);
    assert_eq!(end(&effects).0, None, "the survivor has not said yet what it holds");
    assert!(!effects.iter().any(|effect| matches!(effect, Effect::Restart { .. })));
    let effects = received(&mut run, 1, rejoin(10));
    assert_eq!(
        (saves(&effects), begins(&effects)),
        (vec![1], vec![]),
        "no generation is needed for it"
    );
    assert!(
        matches!(&notices(&effects)[..], [Notice::SavingBeforeEnd { step: 10, .. }]),
        "{effects:?}"
    );
    assert!(matches!(
        &received(&mut run, 1, WorkerEvent::Checkpoint(written(10)))[..],
        [Effect::Commit { session: 1, .. }]
    ));
    let effects = run.apply(committed(1, "a", 10, None), NOW);
    assert_eq!(end(&effects).0, Some(Verdict::Stopped { at: Some(("a".into(), 10)) }));
}

/// A stop is pending when workers return to a coordinator that was restarted, with 40 steps that no
/// checkpoint has.
#[test]
fn a_stop_after_a_restart_waits_for_returning_workers() {
    let adopted = vec!["worker-0".into(), "worker-1".into()];
    let next_step = Some(("a".into(), 40));
    let resume = Some(checkpoint("a", 30));
    let mut run = Run::new(
        Start { resume, next_step, adopted, last_generation: 4, ..start(2) },
        Duration::ZERO,
    );
    assert_eq!(end(&run.apply(stop(), NOW)).0, None);
    run.apply(
        Event::Opened { session: 1, hello: Hello { generation: 4, ..hello("worker-0") } },
        NOW,
    );
    let held = Some(Held { stage: 0, step: 40, post_step_done: true });
    let effects = received(
        &mut run,
        1,
        WorkerEvent::Rejoin(Rejoin { generation: 4, held, recent: Vec::new(), failure: None }),
    );
    assert!(saves(&effects).is_empty(), "the other one may hold more");
    let exited = Event::Exited {
        worker: "worker-1".into(),
        how: "ended".into(),
        cause: ExitCause::Vanished,
    };
    assert_eq!(saves(&run.apply(exited, NOW)), [1]);
}

#[test]
fn a_stop_that_finds_nothing_in_memory_ends_at_the_last_checkpoint() {
    let mut run = ten_steps();
    run.apply(committed(1, "a", 10, None), NOW);
    for session in [1, 2] {
        run.apply(Event::Closed { session }, NOW);
    }
    let effects = run.apply(stop(), NOW);
    assert_eq!(
        end(&effects).0,
        Some(Verdict::Stopped { at: Some(("a".into(), 10)) }),
        "no worker is waited for"
    );
}

/// Before a run is abandoned the survivors save; its cause and exit code stay.
#[test]
fn a_run_that_is_abandoned_saves_what_survivors_hold() {
    let mut run = ten_steps();
    let failed = Failed { phase: "forward".into(), message: "boom".into(), exit_code: 70 };
    let effects = received(&mut run, 2, WorkerEvent::Failed(failed));
    assert!(
        effects
            .iter()
            .any(|e| matches!(e, Effect::Send { session: 1, command: Command::Abandon { .. } }))
    );
    assert_eq!(saves(&received(&mut run, 1, rejoin(10))), [1]);
    received(&mut run, 1, WorkerEvent::Checkpoint(written(10)));
    let (message, exit_code) = failure(&run.apply(committed(1, "a", 10, None), NOW));
    assert!(message.ends_with("failed in forward: boom") && exit_code == 70, "{message}");
    // A node that does not come back in time.
    let mut run = ten_steps();
    run.apply(Event::Closed { session: 2 }, NOW);
    received(&mut run, 1, rejoin(10));
    assert_eq!(saves(&pass(&mut run, NOW * 601, &[(1, heartbeat(10, "waiting", 1))])), [1]);
    received(&mut run, 1, WorkerEvent::Checkpoint(written(10)));
    let (message, exit_code) = failure(&run.apply(committed(1, "a", 10, None), NOW));
    assert!(
        message.starts_with("1 of 2 workers were ready") && exit_code == EXIT_UNREACHABLE,
        "{message}"
    );
}

/// A disk that is full for a moment does not cost the last save; one that stays full ends the run
/// with 74.
#[test]
fn a_save_before_the_end_is_tried_again() {
    let mut run = ten_steps();
    run.apply(stop(), NOW);
    run.apply(Event::Closed { session: 2 }, NOW);
    received(&mut run, 1, rejoin(10));
    let not_saved =
        || WorkerEvent::NotSaved { stage: "a".into(), step: 10, reason: "No space left".into() };
    assert_eq!(end(&received(&mut run, 1, not_saved())).0, None);
    let mut attempts = 0;
    let ended = loop {
        let effects = pass(&mut run, Duration::from_millis(100), &[]);
        if saves(&effects) == [1] {
            attempts += 1;
            let effects = received(&mut run, 1, not_saved());
            if end(&effects).0.is_some() {
                break effects;
            }
        }
    };
    let (message, exit_code) = failure(&ended);
    assert!(
        message.ends_with("could not be saved: No space left") && exit_code == EXIT_IO,
        "{message}"
    );
    assert!((30..=61).contains(&attempts), "{attempts}");
}

#[test]
fn storage_that_stays_blocked_ends_the_run_with_74() {
    let mut run = ten_steps();
    let effects =
        run.apply(Event::Storage { problem: Some("steps.jsonl: No space left".into()) }, NOW);
    assert!(matches!(&notices(&effects)[..], [Notice::StorageBlocked { .. }]));
    let beats = [1, 2].map(|session| (session, heartbeat(10, "update", 1)));
    assert_eq!(end(&pass(&mut run, NOW * 599, &beats)).0, None);
    let effects = pass(&mut run, NOW * 2, &beats);
    assert!(
        effects.iter().any(|e| matches!(e, Effect::Send { command: Command::Abandon { .. }, .. })),
        "{effects:?}"
    );
    received(&mut run, 1, rejoin(10));
    assert_eq!(saves(&received(&mut run, 2, rejoin(10))).len(), 1);
}

/// A worker that is not in the generation fails, again and again: the run neither ends nor waits
/// for it.
#[test]
fn a_newcomer_cannot_harm_the_run() {
    let elastic = Start { min_workers: 1, ..start(2) };
    let mut run = Run::new(elastic.clone(), Duration::ZERO);
    run.apply(Event::Opened { session: 1, hello: hello("worker-0") }, NOW);
    received(&mut run, 1, ready());
    let mut begun = Vec::new();
    for session in 10..40 {
        let now = run.last_event;
        run.apply(
            Event::Opened { session, hello: Hello { pid: session as u32, ..hello("worker-1") } },
            now,
        );
        let failed = Failed { phase: "start".into(), message: "no packs".into(), exit_code: 65 };
        let effects = received(&mut run, session, WorkerEvent::Failed(failed));
        assert_eq!(end(&effects).0, None, "{effects:?}");
        begun.extend(begins(&pass(&mut run, NOW / 2, &[])));
    }
    assert_eq!(
        begun.len(),
        1,
        "the run began after its rendezvous timeout, without the worker that crashes"
    );
    // One that is ready and crashes in each generation interrupts the others ever less often.
    let mut run = Run::new(elastic, Duration::ZERO);
    run.apply(Event::Opened { session: 1, hello: hello("worker-0") }, NOW);
    received(&mut run, 1, ready());
    pass(&mut run, NOW * 10, &[]);
    let mut regroups = 0;
    for session in 10..130 {
        let now = run.last_event;
        run.apply(
            Event::Opened { session, hello: Hello { pid: session as u32, ..hello("worker-1") } },
            now,
        );
        let effects = received(&mut run, session, ready());
        let asked = effects
            .iter()
            .any(|effect| matches!(effect, Effect::Send { command: Command::Regroup { .. }, .. }));
        run.apply(Event::Closed { session }, now);
        if asked {
            regroups += 1;
            let rejoin = WorkerEvent::Rejoin(Rejoin {
                generation: run.generation,
                held: None,
                recent: Vec::new(),
                failure: None,
            });
            received(&mut run, 1, rejoin);
            pass(&mut run, NOW, &[]);
        } else {
            pass(&mut run, NOW, &[(1, heartbeat(0, "forward", 1))]);
        }
    }
    assert!((2..=8).contains(&regroups), "{regroups} in two minutes");
}

/// The process that reconnects before the first generation takes its own place.
#[test]
fn a_process_that_reconnects_is_not_its_own_rival() {
    let mut run = Run::new(start(2), Duration::ZERO);
    run.apply(Event::Opened { session: 1, hello: hello("worker-0") }, NOW);
    let effects = run.apply(Event::Opened { session: 2, hello: hello("worker-0") }, NOW);
    assert!(
        matches!(effects[1], Effect::Send { session: 2, command: Command::Welcome(_) }),
        "{effects:?}"
    );
    assert!(run.members.contains_key(&2) && !run.members.contains_key(&1));
}
