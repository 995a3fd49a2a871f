//! A step that fails in the same way in two generations ends the run; any other sequence of errors
//! does not.

use crate::run::tests::{
    NOW, begins, committed, failure, hello, notices, ready, received, rejoin, training, written,
};
use crate::run::{Effect, Event, Notice, Run, SessionId, Verdict};
use std::time::Duration;
use thanos_proto::{Command, GroupFailure, WorkerEvent};

const SHAPE: &str = "all_reduce: Tensors must be CUDA and dense";

fn error(step: u64, message: &str, peer_lost: bool) -> GroupFailure {
    GroupFailure { stage: "a".into(), step, message: message.into(), peer_lost }
}

/// A rank leaves this generation with ten updates made.
fn leaves(
    run: &mut Run,
    session: SessionId,
    generation: u64,
    failure: Option<GroupFailure>,
) -> Vec<Effect> {
    let WorkerEvent::Rejoin(mut rejoin) = rejoin(10) else { unreachable!("it is a Rejoin") };
    (rejoin.generation, rejoin.failure) = (generation, failure);
    received(run, session, WorkerEvent::Rejoin(rejoin))
}

/// The first rank's errors in two generations; its peer loses the connection to it. Returns what
/// the second one leads to.
fn twice(first: Option<GroupFailure>, second: Option<GroupFailure>) -> Vec<Effect> {
    let mut run = training();
    for (generation, failure) in [(4, first), (5, second)] {
        leaves(&mut run, 1, generation, failure.clone());
        let effects =
            leaves(&mut run, 2, generation, Some(error(10, "all_reduce: Connection closed", true)));
        if generation == 5 {
            return effects;
        }
        assert_eq!(
            begins(&effects).len(),
            2,
            "the first failure is followed by another attempt: {effects:?}"
        );
    }
    Vec::new()
}

fn check(first: Option<GroupFailure>, second: Option<GroupFailure>, ends: bool) {
    let effects = twice(first.clone(), second.clone());
    let saves =
        effects.iter().any(|effect| matches!(effect, Effect::Send { command: Command::Save, .. }));
    let expected = if ends { (0, true) } else { (2, false) };
    assert_eq!(
        (begins(&effects).len(), saves),
        expected,
        "{first:?}, then {second:?}: {effects:?}"
    );
}

#[test]
fn only_the_same_failure_at_the_same_step_ends_the_run() {
    let shape = || Some(error(10, SHAPE, false));
    check(shape(), shape(), true);
    check(shape(), Some(error(11, SHAPE, false)), false);
    check(shape(), Some(error(10, "all_reduce: Duplicate GPU detected", false)), false);
    check(shape(), Some(GroupFailure { stage: "b".into(), ..error(10, SHAPE, false) }), false);
    check(shape(), None, false);
    check(None, shape(), false);
    check(
        Some(error(10, "all_reduce: Connection reset", true)),
        Some(error(10, "all_reduce: Connection reset", true)),
        false,
    );
    // What differs between two attempts in any case.
    check(
        Some(error(10, "pid 17 uses 3.4 GiB", false)),
        Some(error(10, "pid 1802 uses 12.25 GiB", false)),
        true,
    );
}

/// The state in memory is saved, and then the run ends with the cause.
#[test]
fn the_run_ends_with_the_cause_after_it_saved_its_state() {
    let mut run = training();
    let notice = notices(&leaves(&mut run, 1, 4, Some(error(10, SHAPE, false))));
    let reason = format!("worker-0 (rank 0, pid 7 on h) failed in step 10 of stage a: {SHAPE}");
    assert_eq!(notice, [Notice::GroupFailed { worker: "worker-0".into(), reason }]);
    leaves(&mut run, 2, 4, None);
    let effects = leaves(&mut run, 2, 5, Some(error(10, SHAPE, false)));
    let abandoned = |effect: &Effect| {
        matches!(
            effect,
            Effect::Send { session: 1, command: Command::Abandon { generation: 5, .. } }
        )
    };
    assert!(effects.iter().any(abandoned), "{effects:?}");
    // Both hold as much; the last one is asked.
    let saves = leaves(&mut run, 1, 5, None);
    assert!(saves.contains(&Effect::Send { session: 2, command: Command::Save }), "{saves:?}");
    received(&mut run, 2, WorkerEvent::Checkpoint(written(10)));
    let effects = run.apply(committed(2, "a", 10, None), NOW);
    assert_eq!(
        failure(&effects),
        (format!("step 10 of stage a failed twice in the same way: {SHAPE} (worker-1)"), 70)
    );
}

/// A lost member explains the errors of the others: neither generation that lost one counts.
#[test]
fn a_generation_that_lost_a_member_does_not_count() {
    for lost_in in [4, 5] {
        let mut run = training();
        let mut session = 2;
        for generation in 4..=6 {
            let mut effects = leaves(&mut run, 1, generation, Some(error(10, SHAPE, false)));
            if generation == lost_in {
                run.apply(Event::Closed { session }, NOW);
                session = 3;
                run.apply(
                    Event::Opened { session, hello: hello("worker-1") },
                    NOW + Duration::from_secs(1),
                );
                effects = received(&mut run, session, ready());
            } else {
                effects.extend(leaves(&mut run, session, generation, None));
            }
            let saves = effects
                .iter()
                .any(|effect| matches!(effect, Effect::Send { command: Command::Save, .. }));
            // After a loss in generation 4, the first one that counts is generation 5.
            assert_eq!(
                saves,
                lost_in == 4 && generation == 6,
                "lost in {lost_in}, {generation}: {effects:?}"
            );
            let verdict =
                effects.iter().find(|effect| matches!(effect, Effect::End(Verdict::Failed { .. })));
            assert_eq!(verdict, None);
        }
    }
}
