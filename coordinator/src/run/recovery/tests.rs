//! A coordinator that was killed and restarts, and workers that come back to it, or to one that
//! continued.

use crate::exit::EXIT_STOPPED;
use crate::run::tests::{
    NOW, begins, checkpoint, end, hello, pass, ready, received, start, step, training,
};
use crate::run::{Effect, Event, ExitCause, Notice, Run, SessionId, Start, Verdict};
use std::time::Duration;
use thanos_proto::{CheckpointRef, Command, Held, Hello, Rejoin, WorkerEvent};

/// Two workers of a coordinator that was killed, which comes back with what is on the disk: 40
/// steps in the ledger, the last checkpoint after step 30.
fn restarted() -> Run {
    let checkpoint = CheckpointRef {
        stage: "a".into(),
        folder: "f".into(),
        manifest_sha256: "0".into(),
        step: 30,
    };
    let adopted = vec!["worker-0".into(), "worker-1".into()];
    let start =
        Start { resume: Some(checkpoint), next_step: Some(("a".into(), 40)), adopted, ..start(2) };
    Run::new(Start { last_generation: 4, ..start }, Duration::ZERO)
}

/// A worker that reconnects, from a generation, with the state after this many steps.
fn come_back(run: &mut Run, session: SessionId, generation: u64, made: u64) -> Vec<Effect> {
    let worker = format!("worker-{}", session - 1);
    let mut effects = run
        .apply(Event::Opened { session, hello: Hello { generation, ..hello(&worker) } }, NOW / 2);
    let recent =
        (made.saturating_sub(65)..made).map(|number| step("a", number, generation)).collect();
    let held = Some(Held { stage: 0, step: made, post_step_done: true });
    let rejoin = WorkerEvent::Rejoin(Rejoin { generation, held, recent, failure: None });
    effects.extend(run.apply(Event::Received { session, event: rejoin }, NOW / 2));
    effects
}

#[test]
fn a_coordinator_that_starts_again_loses_no_step() {
    let mut run = restarted();
    let effects = come_back(&mut run, 1, 4, 42);
    // Sent to the coordinator that was killed, or not; made in any case.
    for number in [40, 41] {
        assert!(effects.contains(&Effect::Record(step("a", number, 4))), "{effects:?}");
    }
    let effects = come_back(&mut run, 2, 4, 42);
    let begun = begins(&effects);
    assert_eq!((begun.len(), begun[0].1.generation, begun[0].1.source), (2, 5, Some(0)));
    assert!(
        !effects.iter().any(|effect| matches!(effect, Effect::Record(_) | Effect::CutSteps { .. })),
        "{effects:?}"
    );
    assert_eq!(pass(&mut run, NOW * 2, &[]), [], "all came back");
}

#[test]
fn missing_workers_are_respawned_and_the_ledger_goes_back_with_the_state() {
    let mut run = restarted();
    // Its generation was over already when the coordinator was killed: what it holds does not
    // count.
    assert!(
        !come_back(&mut run, 1, 3, 45).iter().any(|effect| matches!(effect, Effect::Record(_)))
    );
    assert_eq!(pass(&mut run, NOW * 59, &[]), [], "its process runs: it is waited for");
    let effects = pass(&mut run, NOW, &[]);
    assert!(effects.contains(&Effect::Kill { worker: "worker-1".into() }), "{effects:?}");
    assert!(
        effects.contains(&Effect::Restart { worker: "worker-1".into(), after: Duration::ZERO }),
        "{effects:?}"
    );
    run.apply(Event::Opened { session: 3, hello: hello("worker-1") }, NOW);
    let effects = run.apply(Event::Received { session: 3, event: ready() }, NOW);
    let cut = Effect::CutSteps { stages: Vec::new(), first: Some(("a".into(), 30)) };
    assert!(effects.contains(&cut), "{effects:?}");
    assert_eq!(begins(&effects)[0].1.resume.as_ref().map(|checkpoint| checkpoint.step), Some(30));
    let done = step("a", 30, 5);
    assert_eq!(received(&mut run, 1, WorkerEvent::Step(done.clone())), [Effect::Record(done)]);
}

#[test]
fn a_state_whose_steps_the_ledger_lacks_is_not_taken() {
    let mut run = restarted();
    come_back(&mut run, 1, 4, 120);
    let begun = begins(&come_back(&mut run, 2, 4, 120));
    assert!(
        begun.iter().all(|(_, begin)| begin.source.is_none() && begin.resume.is_some()),
        "{begun:?}"
    );
}

#[test]
fn a_worker_that_returns_too_late_is_refused() {
    let mut run = training();
    run.apply(Event::Closed { session: 2 }, NOW);
    run.apply(Event::Opened { session: 3, hello: Hello { pid: 8, ..hello("worker-1") } }, NOW);
    let late = Hello { generation: 4, ..hello("worker-1") };
    let effects = run.apply(Event::Opened { session: 4, hello: late.clone() }, NOW);
    let refused = |effect: &Effect| match effect {
        Effect::Send { session: 4, command: Command::Refused { exit_code, .. } } => {
            Some(*exit_code)
        }
        _ => None,
    };
    assert_eq!(effects.iter().find_map(refused), Some(EXIT_STOPPED));
    // The same process on another connection takes its own place.
    let mut run = training();
    let effects = run.apply(Event::Opened { session: 4, hello: late }, NOW);
    assert!(
        effects
            .iter()
            .any(|e| matches!(e, Effect::Send { session: 4, command: Command::Welcome(_) })),
        "{effects:?}"
    );
    assert!(run.members.contains_key(&4) && !run.members.contains_key(&2));
}

#[test]
fn workers_that_wait_for_a_lost_worker_are_notified_at_once() {
    let mut run = training();
    let effects = run.apply(Event::Closed { session: 2 }, NOW);
    let notified = |effect: &Effect| {
        matches!(
            effect,
            Effect::Send { session: 1, command: Command::Abandon { generation: 4, .. } }
        )
    };
    assert!(effects.iter().any(notified), "{effects:?}");
}

/// Two starts of one worker: one was asked to stop while it loaded its libraries, the other was
/// killed.
#[test]
fn a_stop_signal_that_ends_a_starting_worker_stops_the_run() {
    let ended = |signal: i32| {
        let mut run = Run::new(start(2), Duration::ZERO);
        let cause = ExitCause::Signalled(signal);
        run.apply(
            Event::Exited {
                worker: "worker-1".into(),
                how: format!("was killed by signal {signal}"),
                cause,
            },
            NOW,
        )
    };
    for signal in [1, 2, 10, 15] {
        assert_eq!(end(&ended(signal)).0, Some(Verdict::Stopped { at: None }), "signal {signal}");
    }
    assert_eq!(end(&ended(9)).0, None, "it is restarted");
}

#[test]
fn a_worker_that_received_a_stop_signal_stops_every_rank() {
    let mut run = training();
    let asked = WorkerEvent::StopRequested { reason: "SIGINT received by worker-1".into() };
    let effects = received(&mut run, 2, asked.clone());
    let stop = |session| Effect::Send {
        session,
        command: Command::Stop { reason: "SIGINT received by worker-1".into() },
    };
    let notified =
        Effect::Notify(Notice::Stopping { reason: "SIGINT received by worker-1".into() });
    // The ranks first: a notice may take time.
    assert_eq!(effects, [stop(1), stop(2), notified]);
    assert_eq!(received(&mut run, 1, asked), [], "the other worker's request is the same stop");
}

/// The coordinator killed it, whatever the signal was.
#[test]
fn a_hung_worker_is_restarted_as_one_that_was_hung() {
    let mut run = training();
    run.apply(Event::Closed { session: 2 }, NOW);
    let exited = Event::Exited {
        worker: "worker-1".into(),
        how: "did not respond".into(),
        cause: ExitCause::Hung,
    };
    let effects = run.apply(exited, NOW);
    let cause = effects.iter().find_map(|effect| match effect {
        Effect::Notify(Notice::Restarting { cause, .. }) => Some(*cause),
        _ => None,
    });
    assert_eq!(cause, Some(ExitCause::Hung), "{effects:?}");
}

/// The final checkpoint of a stage is damaged, and an older one is what remains: the ledger is in
/// the next stage, at a step of the same number perhaps.
#[test]
fn the_ledger_goes_back_to_an_earlier_stage() {
    for recorded in [3, 5] {
        let next_step = Some(("b".into(), recorded));
        let mut run = Run::new(
            Start { resume: Some(checkpoint("a", 3)), next_step, ..start(1) },
            Duration::ZERO,
        );
        run.apply(Event::Opened { session: 1, hello: hello("worker-0") }, NOW);
        let effects = received(&mut run, 1, ready());
        let cut = Effect::CutSteps { stages: Vec::new(), first: Some(("a".into(), 3)) };
        assert!(effects.contains(&cut), "{effects:?}");
        let done = step("a", 3, 4);
        assert_eq!(received(&mut run, 1, WorkerEvent::Step(done.clone())), [Effect::Record(done)]);
    }
}
