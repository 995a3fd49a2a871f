//! The rules one by one: what happens, and exactly what is to be done about it.

mod elastic;

use super::*;
use std::collections::BTreeMap;
use thanos_configs::TimeoutsConfig;
use thanos_proto::{
    Begin, BenchReport, BenchRequest, CheckpointWritten, Device, Evaluated, Failed, Heartbeat,
    Held, PackRef, Rejoin, StageResult, StepDone,
};

pub(in crate::run) const NOW: Duration = Duration::from_secs(1);

pub(in crate::run) fn start(workers: usize) -> Start {
    let pack = PackRef { split: "train".into(), path: "/p".into(), fingerprint: "f".into() };
    Start {
        workers,
        min_workers: workers,
        rendezvous_timeout: Duration::from_secs(10),
        launched: true,
        welcome: Welcome {
            run_id: "run".into(),
            run_dir: "/run".into(),
            config: String::new(),
            config_digest: "digest".into(),
            packs: vec![pack],
            lease: Duration::from_secs(4),
            scrape_token_sha256: None,
            grace: None,
            bench: None,
        },
        version: "1".into(),
        last_generation: 3,
        stages: vec!["a".into(), "b".into()],
        stage: 0,
        resume: None,
        complete: Vec::new(),
        next_step: None,
        adopted: Vec::new(),
        grace: None,
        collectives: CollectivesChoice::Auto,
        shares_gpu: false,
        timeouts: Timeouts::new(&TimeoutsConfig::default(), Placement::Local),
    }
}

/// So long passes, with ticks and with heartbeats of these sessions.
pub(in crate::run) fn pass(
    run: &mut Run,
    time: Duration,
    beats: &[(SessionId, WorkerEvent)],
) -> Vec<Effect> {
    let (mut effects, from) = (Vec::new(), run.last_event);
    for tenth in 1..=time.as_millis() / 100 {
        let now = from + Duration::from_millis(100) * u32::try_from(tenth).expect("minutes");
        for (session, event) in beats {
            effects.extend(
                run.apply(Event::Received { session: *session, event: event.clone() }, now),
            );
        }
        effects.extend(run.apply(Event::Tick, now));
    }
    effects
}

pub(in crate::run) fn checkpoint(stage: &str, step: u64) -> CheckpointRef {
    CheckpointRef { stage: stage.into(), folder: "f".into(), manifest_sha256: "0".into(), step }
}

/// A checkpoint of stage a that rank 0 has written in generation 4.
pub(in crate::run) fn written(step: u64) -> CheckpointWritten {
    CheckpointWritten {
        stage: "a".into(),
        epoch: 0,
        step,
        generation: 4,
        world_size: 2,
        folder: "f".into(),
        files: Vec::new(),
        result: None,
        seconds: 1.0,
        best: None,
        post_step_done: true,
    }
}

/// A commit that has succeeded.
pub(in crate::run) fn committed(
    session: SessionId,
    stage: &str,
    step: u64,
    result: Option<StageResult>,
) -> Event {
    let commit =
        CommitOutcome { stage: stage.into(), step, outcome: Ok(checkpoint(stage, step)), result };
    Event::Committed { session, commit }
}

pub(in crate::run) fn hello(worker: &str) -> Hello {
    let (host, version, device) = ("h".into(), "1".into(), Device::cpu("Xeon"));
    Hello { worker_id: worker.into(), host, pid: 7, version, generation: 0, device }
}

pub(in crate::run) fn ready() -> WorkerEvent {
    WorkerEvent::Ready { config_digest: "digest".into() }
}

pub(crate) fn step(stage: &str, step: u64, generation: u64) -> StepDone {
    StepDone {
        stage: stage.into(),
        step,
        generation,
        world_size: 2,
        loss: 1.0,
        lr: 0.1,
        images: 8,
        total_steps: 10,
        ..StepDone::default()
    }
}

/// A run whose two workers are in training, sessions 1 (rank 0) and 2 (rank 1).
pub(in crate::run) fn training() -> Run {
    let mut run = Run::new(start(2), Duration::ZERO);
    for (session, worker) in [(1, "worker-0"), (2, "worker-1")] {
        run.apply(Event::Opened { session, hello: hello(worker) }, NOW);
        received(&mut run, session, ready());
    }
    assert_eq!(run.phase, Phase::Training);
    run
}

/// A message comes; a generation that begins with it is durable at once.
pub(in crate::run) fn received(
    run: &mut Run,
    session: SessionId,
    event: WorkerEvent,
) -> Vec<Effect> {
    let effects = run.apply(Event::Received { session, event }, NOW);
    if !begins(&effects).is_empty() {
        assert_eq!(run.apply(Event::BeginSent { generation: run.generation }, NOW), []);
    }
    effects
}

/// The verdict among the effects, and the sessions that were sent `Leave`.
pub(in crate::run) fn end(effects: &[Effect]) -> (Option<Verdict>, Vec<SessionId>) {
    let verdict = effects.iter().find_map(|effect| match effect {
        Effect::End(verdict) => Some(verdict.clone()),
        _ => None,
    });
    let is_stopped = matches!(verdict, Some(Verdict::Stopped { .. }));
    let notified = effects.iter().filter_map(|effect| match effect {
        Effect::Send { session, command: Command::Leave { .. } } => Some(*session),
        Effect::Send { session, command: Command::Refused { exit_code: EXIT_STOPPED, .. } }
            if is_stopped =>
        {
            Some(*session)
        }
        _ => None,
    });
    (verdict, notified.collect())
}

pub(in crate::run) fn failure(effects: &[Effect]) -> (String, u8) {
    match end(effects).0 {
        Some(Verdict::Failed { message, exit_code }) => (message, exit_code),
        other => panic!("expected a failure, got {other:?} of {effects:?}"),
    }
}

#[test]
fn ranks_follow_the_workers_names_and_generations_rise() {
    let mut run = Run::new(start(11), Duration::ZERO);
    let mut effects = Vec::new();
    // worker-10 comes first, and is rank 10 all the same.
    for session in (0..11).rev() {
        run.apply(Event::Opened { session, hello: hello(&format!("worker-{session}")) }, NOW);
        effects = received(&mut run, session, ready());
    }
    assert_eq!(effects[0], Effect::OpenStore { generation: 4 });
    let ranks: Vec<(SessionId, u32, u32)> = effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Send { session, command: Command::Begin(begin) } => {
                Some((*session, begin.rank, begin.world_size))
            }
            _ => None,
        })
        .collect();
    assert_eq!(ranks, (0..11).map(|rank| (rank, rank as u32, 11)).collect::<Vec<_>>());
}

#[test]
fn an_unsuitable_worker_is_refused_and_the_run_continues() {
    let check = |run: &mut Run, hello: Hello, exit_code: u8, part: &str| {
        let effects = run.apply(Event::Opened { session: 9, hello }, NOW);
        match &effects[..] {
            [
                Effect::Send { session: 9, command: Command::Refused { reason, exit_code: code } },
                Effect::Notify(_),
            ] => {
                assert!(*code == exit_code && reason.contains(part), "{reason}");
            }
            other => panic!("expected a refusal, got {other:?}"),
        }
    };
    let mut run = Run::new(start(2), Duration::ZERO);
    check(
        &mut run,
        Hello { version: "2".into(), ..hello("w") },
        EXIT_CONFIG,
        "is version 2, the coordinator 1",
    );
    run.apply(Event::Opened { session: 1, hello: hello("w") }, NOW);
    let other = Hello { pid: 8, ..hello("w") };
    check(&mut run, other, EXIT_UNREACHABLE, "a worker named w has joined already (pid 7 on h)");
    check(
        &mut training(),
        hello("late"),
        EXIT_STOPPED,
        "all 2 workers of this run have joined already",
    );
}

#[test]
fn another_digest_ends_the_run_with_both() {
    let mut run = Run::new(start(2), Duration::ZERO);
    run.apply(Event::Opened { session: 1, hello: hello("w") }, NOW);
    let effects = received(&mut run, 1, WorkerEvent::Ready { config_digest: "other".into() });
    let (message, exit_code) = failure(&effects);
    assert_eq!(exit_code, EXIT_CONFIG);
    assert!(
        message.contains("other") && message.contains("digest at the coordinator"),
        "{message}"
    );
}

/// Two stages, both committed.
fn complete() -> Run {
    let mut run = training();
    for stage in ["a", "b"] {
        let result = StageResult { stage: stage.into(), ..StageResult::default() };
        run.apply(committed(1, stage, 9, Some(result)), NOW);
    }
    run
}

#[test]
fn the_run_is_done_when_the_last_has_finished() {
    let mut run = complete();
    assert_eq!(end(&received(&mut run, 2, WorkerEvent::Finished)), (None, vec![2]));
    assert_eq!(run.apply(Event::Closed { session: 2 }, NOW), []);
    assert_eq!(end(&received(&mut run, 1, WorkerEvent::Finished)), (Some(Verdict::Done), vec![1]));
    assert_eq!(run.apply(Event::Closed { session: 1 }, NOW), []);
}

#[test]
fn a_stop_is_sent_once_and_ends_at_the_agreed_step() {
    let mut run = training();
    let asked = || Event::StopRequested { reason: "SIGTERM".into() };
    let notified: Vec<Effect> = run.apply(asked(), NOW);
    let stop =
        |session| Effect::Send { session, command: Command::Stop { reason: "SIGTERM".into() } };
    assert!(notified.contains(&stop(1)) && notified.contains(&stop(2)), "{notified:?}");
    assert_eq!(run.apply(asked(), NOW), []);
    run.apply(committed(1, "a", 7, None), NOW);
    let stopped = || WorkerEvent::Stopped { stage: "a".into(), step: 7 };
    assert_eq!(end(&received(&mut run, 1, stopped())).0, None);
    let at = Some(("a".to_string(), 7));
    assert_eq!(end(&received(&mut run, 2, stopped())).0, Some(Verdict::Stopped { at: at.clone() }));
    // Once one has stopped the stop is committed: another that dies then changes nothing.
    let mut run = training();
    run.apply(asked(), NOW);
    run.apply(committed(1, "a", 7, None), NOW);
    received(&mut run, 1, stopped());
    assert_eq!(end(&run.apply(Event::Closed { session: 2 }, NOW)).0, Some(Verdict::Stopped { at }));
}

/// Neither a worker that says that it has finished, or stopped, nor one that introduces itself
/// twice ends a run.
#[test]
fn last_messages_that_cannot_be_true_end_only_their_sender() {
    for event in [
        WorkerEvent::Finished,
        WorkerEvent::Stopped { stage: "a".into(), step: 7 },
        WorkerEvent::Hello(hello("again")),
        WorkerEvent::Repaired { problem: "p".into() },
        WorkerEvent::NotSaved { stage: "a".into(), step: 1, reason: "r".into() },
        WorkerEvent::Evaluated(Evaluated {
            stage: "a".into(),
            epoch: 0,
            validation_accuracy: 1.0,
            best: true,
            measure: "coarse_head".into(),
        }),
    ] {
        let mut run = training();
        let effects = received(&mut run, 2, event.clone());
        assert_eq!(end(&effects), (None, vec![]), "{event:?}");
        assert!(matches!(&notices(&effects)[..], [Notice::Lost { .. }]), "{event:?}: {effects:?}");
        assert!(run.members.contains_key(&1) && !run.members.contains_key(&2));
    }
}

#[test]
fn a_stop_before_the_first_generation_ends_at_once() {
    let mut run = Run::new(start(2), Duration::ZERO);
    run.apply(Event::Opened { session: 1, hello: hello("w") }, NOW);
    let effects = run.apply(Event::StopRequested { reason: "Ctrl-C".into() }, NOW);
    assert_eq!(end(&effects), (Some(Verdict::Stopped { at: None }), vec![1]));
}

#[test]
fn a_failure_names_worker_rank_and_phase() {
    let mut run = training();
    let failed =
        Failed { phase: "forward of step 3".into(), message: "boom".into(), exit_code: 70 };
    let effects = received(&mut run, 2, WorkerEvent::Failed(failed.clone()));
    assert_eq!(
        end(&effects),
        (None, vec![2]),
        "the other one may hold more than the last checkpoint"
    );
    assert!(matches!(
        &effects[2],
        Effect::Send { session: 1, command: Command::Abandon { generation: 4, .. } }
    ));
    let effects = received(
        &mut run,
        1,
        WorkerEvent::Rejoin(Rejoin {
            generation: 4,
            held: None,
            recent: Vec::new(),
            failure: None,
        }),
    );
    let expected = "worker-1 (rank 1, pid 7 on h) failed in forward of step 3: boom".to_string();
    assert_eq!(failure(&effects), (expected, 70));
    // The first error is the run's.
    let mut run = training();
    received(&mut run, 2, WorkerEvent::Failed(failed.clone()));
    let later =
        received(&mut run, 1, WorkerEvent::Failed(Failed { message: "later".into(), ..failed }));
    assert!(failure(&later).0.ends_with("boom"), "{later:?}");
}

/// From generation 4, with the state after this many steps of stage a.
pub(in crate::run) fn rejoin(made: u64) -> WorkerEvent {
    let held = Some(Held { stage: 0, step: made, post_step_done: true });
    let recent = (0..made).map(|number| step("a", number, 4)).collect();
    WorkerEvent::Rejoin(Rejoin { generation: 4, held, recent, failure: None })
}

pub(in crate::run) fn heartbeat(step: u64, phase: &str, collectives: u64) -> WorkerEvent {
    let (stage, phase) = ("a".into(), phase.into());
    WorkerEvent::Heartbeat(Heartbeat {
        generation: 4,
        stage,
        step,
        phase,
        collectives,
        waited_ms: 0,
        progress: 0,
        in_collective: false,
    })
}

/// The notices, without what is sent.
pub(in crate::run) fn notices(effects: &[Effect]) -> Vec<Notice> {
    let notice = |effect: &Effect| match effect {
        Effect::Notify(notice) => Some(notice.clone()),
        _ => None,
    };
    effects.iter().filter_map(notice).collect()
}

/// The starts of a generation, by session.
pub(in crate::run) fn begins(effects: &[Effect]) -> Vec<(SessionId, Begin)> {
    let begin = |effect: &Effect| match effect {
        Effect::Send { session, command: Command::Begin(begin) } => Some((*session, begin.clone())),
        _ => None,
    };
    effects.iter().filter_map(begin).collect()
}

/// Its session ends, then its process; or the other way round.
#[test]
fn a_lost_worker_is_named_and_restarted() {
    let lost = "worker-1 (rank 1, pid 7 on h) disconnected unexpectedly, last seen in reduce of \
        step 3 of stage a";
    let exited = || Event::Exited {
        worker: "worker-1".into(),
        how: "was killed by signal 9".into(),
        cause: ExitCause::Signalled(9),
    };
    let notice = |reason: &str| Notice::Lost { worker: "worker-1".into(), reason: reason.into() };
    let restart = Effect::Restart { worker: "worker-1".into(), after: Duration::ZERO };

    let mut run = training();
    received(&mut run, 2, heartbeat(3, "reduce", 1));
    let effects = run.apply(Event::Closed { session: 2 }, NOW);
    assert_eq!(notices(&effects), [notice(lost)]);
    assert!(
        effects.contains(&Effect::OpenStore { generation: 5 }),
        "no rank waits in the old rendezvous: {effects:?}"
    );
    assert_eq!(end(&effects), (None, vec![]), "the others stay");
    assert!(run.apply(exited(), NOW).contains(&restart));

    let mut run = training();
    received(&mut run, 2, heartbeat(3, "reduce", 1));
    assert_eq!(run.apply(exited(), NOW), []);
    let effects = run.apply(Event::Closed { session: 2 }, NOW);
    assert_eq!(notices(&effects)[0], notice(&format!("{lost}; it was killed by signal 9")));
    assert!(effects.contains(&restart));
}

/// The survivor has made a step that the lost rank 0 did not report: it is recorded, and all
/// continue after it.
#[test]
fn a_generation_continues_from_the_most_advanced_rank() {
    let mut run = training();
    let steps = [step("a", 0, 4), step("a", 1, 4)];
    received(&mut run, 1, WorkerEvent::Step(steps[0].clone()));
    run.apply(Event::Closed { session: 1 }, NOW);
    run.apply(
        Event::Exited {
            worker: "worker-0".into(),
            how: "was killed".into(),
            cause: ExitCause::Signalled(9),
        },
        NOW,
    );
    let effects = received(&mut run, 2, rejoin(2));
    assert_eq!(effects, [Effect::Record(steps[1].clone())]);
    run.apply(Event::Opened { session: 3, hello: hello("worker-0") }, NOW);
    let effects = run.apply(Event::Received { session: 3, event: ready() }, NOW * 2);
    let begun = begins(&effects);
    let ranks: Vec<(SessionId, u32, Option<u32>)> =
        begun.iter().map(|(s, begin)| (*s, begin.rank, begin.source)).collect();
    assert_eq!(ranks, [(3, 0, Some(1)), (2, 1, Some(1))]);
    assert_eq!(begun[0].1.generation, 5);
    let recovered = Notice::Recovered {
        generation: 5,
        stage: "a".into(),
        step: 2,
        seconds: 1.0,
        from: RecoveredFrom::Memory("worker-1".into()),
    };
    assert!(notices(&effects).contains(&recovered), "{effects:?}");
    // What is made again is not recorded again, and what follows is.
    assert_eq!(received(&mut run, 3, WorkerEvent::Step(step("a", 1, 5))), []);
    let next = step("a", 2, 5);
    assert_eq!(received(&mut run, 3, WorkerEvent::Step(next.clone())), [Effect::Record(next)]);
}

#[test]
fn a_worker_that_always_crashes_ends_the_run_with_the_first_loss() {
    let mut run = training();
    received(&mut run, 2, heartbeat(0, "forward", 1));
    run.apply(Event::Closed { session: 2 }, NOW);
    let mut pauses = Vec::new();
    let ended = loop {
        let effects = run.apply(
            Event::Exited {
                worker: "worker-1".into(),
                how: "ended with exit code 70".into(),
                cause: ExitCause::Exited(70),
            },
            NOW,
        );
        match effects.iter().find_map(|effect| match effect {
            Effect::Restart { after, .. } => Some(after.as_secs()),
            _ => None,
        }) {
            Some(pause) => pauses.push(pause),
            None => break received(&mut run, 1, rejoin(0)),
        }
    };
    assert_eq!(pauses, [0, 1, 2, 4, 8]);
    let (message, exit_code) = failure(&ended);
    assert!(
        message.starts_with(
            "giving up: worker-1 was restarted 5 times without a step; the first lost worker: "
        ),
        "{message}"
    );
    assert!(message.contains("last seen in forward of step 0 of stage a"), "{message}");
    assert_eq!(exit_code, EXIT_UNREACHABLE);
}

#[test]
fn a_rendezvous_that_lasts_too_long_names_the_ready_workers() {
    let mut run = Run::new(start(2), Duration::ZERO);
    run.apply(Event::Opened { session: 1, hello: hello("w") }, NOW);
    received(&mut run, 1, ready());
    assert_eq!(pass(&mut run, NOW * 598, &[]), []);
    let (message, _) = failure(&pass(&mut run, NOW * 2, &[]));
    assert!(message.starts_with("1 of 2 workers were ready within 600s (w)"), "{message}");
    // Workers that others start may come in the next hours.
    let timeouts = Timeouts::new(&TimeoutsConfig::default(), Placement::External);
    let mut run = Run::new(Start { timeouts, launched: false, ..start(2) }, Duration::ZERO);
    assert_eq!(pass(&mut run, NOW * 7200, &[]), []);
}

#[test]
fn events_after_the_end_are_ignored() {
    let mut run = training();
    for session in [1, 2] {
        received(
            &mut run,
            session,
            WorkerEvent::Failed(Failed { phase: "p".into(), message: "m".into(), exit_code: 70 }),
        );
    }
    assert_eq!(run.phase, Phase::Over);
    assert_eq!(received(&mut run, 1, WorkerEvent::Step(step("a", 0, 4))), []);
    let effects = run.apply(Event::Opened { session: 5, hello: hello("w") }, NOW);
    assert!(matches!(
        &effects[..],
        [Effect::Send { session: 5, command: Command::Refused { .. } }]
    ));
}

#[test]
fn a_stop_that_takes_too_long_ends_at_the_last_checkpoint() {
    let mut run = training();
    run.start.grace = Some(Duration::from_secs(30));
    run.apply(committed(1, "a", 5, None), NOW);
    run.apply(Event::StopRequested { reason: "SIGTERM".into() }, NOW);
    let beats = [1, 2].map(|session| (session, heartbeat(9, "evaluate", 1)));
    assert_eq!(pass(&mut run, Duration::from_millis(27_900), &beats), []);
    let effects = pass(&mut run, Duration::from_millis(100), &beats);
    assert_eq!(notices(&effects), [Notice::GraceOver]);
    assert_eq!(end(&effects), (Some(Verdict::Stopped { at: Some(("a".into(), 5)) }), vec![1, 2]));
}

/// A benchmark's ranks report and finish without a checkpoint; a report that was not asked for ends
/// its sender.
#[test]
fn a_benchmark_is_done_when_all_ranks_have_reported() {
    let report = |rank: u32| {
        WorkerEvent::Benched(BenchReport {
            rank,
            device: String::new(),
            precision: String::new(),
            collectives: String::new(),
            step_seconds: vec![0.1],
            phase_seconds: BTreeMap::new(),
            flops: 1,
            operators: 1,
            kernels: None,
            ceiling_flops_per_s: 1.0,
            ceiling_product: String::new(),
            peak_memory_bytes: 1,
            parameters: 1,
        })
    };
    let mut run = training();
    let effects = received(&mut run, 1, report(0));
    assert!(matches!(&notices(&effects)[..], [Notice::Lost { .. }]), "{effects:?}");
    let mut run = training();
    run.start.welcome.bench = Some(BenchRequest { warmup_steps: 1, steps: 1 });
    let effects = received(&mut run, 1, report(1));
    assert!(
        matches!(&notices(&effects)[..], [Notice::Lost { .. }]),
        "of another rank: {effects:?}"
    );
    let mut run = training();
    run.start.welcome.bench = Some(BenchRequest { warmup_steps: 1, steps: 1 });
    for (session, rank) in [(1, 0), (2, 1)] {
        let effects = received(&mut run, session, report(rank));
        assert!(matches!(&notices(&effects)[..], [Notice::Benched(_)]), "{effects:?}");
        let verdict = end(&received(&mut run, session, WorkerEvent::Finished)).0;
        assert_eq!(verdict, (rank == 1).then_some(Verdict::Done));
    }
}
