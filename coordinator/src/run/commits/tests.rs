//! Steps and checkpoints: which are recorded and committed, and whose are refused.

use crate::run::tests::{
    NOW, begins, checkpoint, committed, end, hello, notices, ready, received, rejoin, start, step,
    training, written,
};
use crate::run::{CommitOutcome, Effect, Event, Notice, Run, Start};
use std::time::Duration;
use thanos_proto::{CheckpointWritten, Command, StageResult, StepDone, WorkerEvent, WrittenFile};

#[test]
fn steps_come_from_rank_0_in_order_and_of_this_generation() {
    let mut run = training();
    let send_step = |run: &mut Run, stage, number| {
        let done = step(stage, number, 4);
        assert_eq!(received(run, 1, WorkerEvent::Step(done.clone())), [Effect::Record(done)]);
    };
    send_step(&mut run, "a", 0);
    send_step(&mut run, "a", 1);
    let result = Some(StageResult { stage: "a".into(), ..StageResult::default() });
    run.apply(committed(1, "a", 2, result), NOW);
    send_step(&mut run, "b", 0);
    // One that does not keep to the protocol is evicted, and the run continues.
    let check = |session, done: StepDone, part: &str| {
        let effects = received(&mut training(), session, WorkerEvent::Step(done));
        let Some(Notice::Lost { reason, .. }) = notices(&effects).into_iter().next() else {
            panic!("{effects:?}")
        };
        assert!(reason.contains(part), "{reason}");
        assert_eq!(end(&effects), (None, vec![]));
        assert!(!effects.iter().any(|effect| matches!(effect, Effect::Record(_))));
    };
    check(2, step("a", 0, 4), "only rank 0");
    check(1, step("a", 0, 3), "a message of generation 3 in generation 4");
    check(1, step("a", 1, 4), "it reported step 1 of stage a, expected 0");
    check(1, step("b", 0, 4), "a message about stage `b`");
    check(1, step("../other", 0, 4), "a message about stage `../other`");
}

#[test]
fn a_resumed_stage_continues_after_its_checkpoint() {
    let next_step = Some(("b".into(), 5));
    let complete = vec![checkpoint("a", 9)];
    let start =
        Start { resume: Some(checkpoint("b", 5)), stage: 1, complete, next_step, ..start(1) };
    let mut run = Run::new(start, Duration::ZERO);
    run.apply(Event::Opened { session: 1, hello: hello("w") }, NOW);
    received(&mut run, 1, ready());
    let done = step("b", 5, 4);
    assert_eq!(received(&mut run, 1, WorkerEvent::Step(done.clone())), [Effect::Record(done)]);
}

#[test]
fn a_commit_is_answered_and_a_complete_stage_reported() {
    let mut run = training();
    let files = vec![WrittenFile { name: "m".into(), bytes: 1, sha256: "0".into() }];
    let written = CheckpointWritten { files, ..written(1) };
    for number in 0..2 {
        received(&mut run, 1, WorkerEvent::Step(step("a", number, 4)));
    }
    let commit = [Effect::Commit { session: 1, written: written.clone() }];
    assert_eq!(received(&mut run, 1, WorkerEvent::Checkpoint(written.clone())), commit);
    let violates = |session, change: fn(&mut CheckpointWritten)| {
        let mut written = written.clone();
        change(&mut written);
        let mut run = training();
        received(&mut run, 1, WorkerEvent::Step(step("a", 0, 4)));
        let effects = received(&mut run, session, WorkerEvent::Checkpoint(written));
        assert!(matches!(notices(&effects)[0], Notice::Lost { .. }), "{effects:?}");
        assert!(
            !effects.iter().any(|effect| matches!(effect, Effect::Commit { .. })),
            "{effects:?}"
        );
    };
    violates(2, |_| {});
    violates(1, |written| written.stage = "b".into());
    violates(1, |written| written.step = 2);
    violates(1, |written| written.generation = 3);
    violates(1, |written| {
        written.result = Some(StageResult { stage: "b".into(), ..StageResult::default() })
    });
    let answer = run.apply(committed(1, "a", 1, None), NOW);
    let saved = checkpoint("a", 1);
    assert!(answer.contains(&Effect::Send { session: 1, command: Command::Committed(Ok(saved)) }));
    let refused = Err("no space left".to_string());
    let commit =
        CommitOutcome { stage: "a".into(), step: 1, outcome: refused.clone(), result: None };
    let failed = Event::Committed { session: 1, commit };
    let answer = run.apply(failed, NOW);
    assert!(answer.contains(&Effect::Send { session: 1, command: Command::Committed(refused) }));
    let notice = Notice::NotSaved { stage: "a".into(), step: 1, reason: "no space left".into() };
    assert_eq!(notices(&answer), [notice], "of the step that was to be saved, not of the next one");
}

#[test]
fn without_state_in_memory_a_generation_continues_from_the_last_commit() {
    let mut run = training();
    let saved = checkpoint("a", 1);
    run.apply(committed(1, "a", 1, None), NOW);
    for session in [1, 2] {
        run.apply(Event::Closed { session }, NOW);
    }
    for (session, worker) in [(3, "worker-0"), (4, "worker-1")] {
        run.apply(Event::Opened { session, hello: hello(worker) }, NOW);
    }
    received(&mut run, 3, ready());
    let begun = begins(&received(&mut run, 4, ready()));
    assert!(
        begun
            .iter()
            .all(|(_, begin)| begin.resume == Some(saved.clone()) && begin.source.is_none()),
        "{begun:?}"
    );
}

#[test]
fn steps_are_answered_so_that_no_rank_runs_ahead_of_the_ledger() {
    let mut run = training();
    let is_answered = |effects: &[Effect]| {
        effects.iter().any(|e| matches!(e, Effect::Send { command: Command::Recorded { .. }, .. }))
    };
    for number in 0..15 {
        assert!(!is_answered(&received(&mut run, 1, WorkerEvent::Step(step("a", number, 4)))));
    }
    let effects = received(&mut run, 1, WorkerEvent::Step(step("a", 15, 4)));
    assert_eq!(effects[1], Effect::Send { session: 1, command: Command::Recorded { steps: 16 } });
}

/// All survivors still hold the end of a stage whose commit was the last that rank 0 did: the next
/// one begins.
#[test]
fn a_stage_that_is_committed_is_not_done_again() {
    let mut run = training();
    let saved = checkpoint("a", 9);
    for number in 0..9 {
        received(&mut run, 1, WorkerEvent::Step(step("a", number, 4)));
    }
    received(&mut run, 1, WorkerEvent::Checkpoint(written(9)));
    run.apply(Event::Closed { session: 1 }, NOW);
    run.apply(Event::Opened { session: 3, hello: hello("worker-0") }, NOW);
    received(&mut run, 3, ready());
    assert_eq!(begins(&received(&mut run, 2, rejoin(9))), [], "a commit is under way");
    let result = StageResult { stage: "a".into(), ..StageResult::default() };
    let begun = begins(&run.apply(committed(1, "a", 9, Some(result)), NOW));
    assert_eq!(begun.len(), 2);
    for (_, begin) in begun {
        assert_eq!((begin.stage, begin.source, begin.complete), (1, None, vec![saved.clone()]));
    }
}
