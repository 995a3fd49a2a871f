//! Every domain type goes over the wire and comes back equal; what is malformed does not come
//! through.

use super::*;
use crate::message::{Collectives, Device, DeviceKind, Hello};
use prost::Message;
use std::collections::BTreeMap;

fn check_event(event: WorkerEvent) {
    let bytes = v1::WorkerEvent::from(event.clone()).encode_to_vec();
    let wire = v1::WorkerEvent::decode(bytes.as_slice()).expect("what prost wrote");
    assert_eq!(WorkerEvent::try_from(wire), Ok(event));
}

fn check_command(command: Command) {
    let bytes = v1::Command::from(command.clone()).encode_to_vec();
    let wire = v1::Command::decode(bytes.as_slice()).expect("what prost wrote");
    assert_eq!(Command::try_from(wire), Ok(command));
}

fn checkpoint() -> CheckpointRef {
    CheckpointRef { stage: "cae".into(), folder: "f".into(), manifest_sha256: "00".into(), step: 7 }
}

#[test]
fn events_come_back_equal() {
    let result = StageResult {
        stage: "cae".into(),
        seconds: 1.5,
        validation_accuracy: 0.5,
        coarse_test_accuracy: 0.75,
        fine_test_accuracy: None,
        knn_fine_accuracy: 0.25,
        cosine_within_coarse: Some(-0.5),
        cosine_within_fine: None,
        cosine_between_views: 1.0,
        data_wait_seconds: 0.25,
    };
    let written = CheckpointWritten {
        stage: "cae".into(),
        epoch: 1,
        step: 2,
        generation: 3,
        world_size: 4,
        folder: "checkpoints/cae/.tmp".into(),
        files: vec![WrittenFile { name: "model".into(), bytes: 5, sha256: "ab".into() }],
        result: Some(StageResult { fine_test_accuracy: Some(0.0), ..result }),
        seconds: 0.1,
        best: Some(Best { epoch: 0, validation_accuracy: 0.0 }),
        post_step_done: true,
    };
    check_event(WorkerEvent::Checkpoint(CheckpointWritten {
        result: None,
        best: None,
        ..written.clone()
    }));
    check_event(WorkerEvent::Checkpoint(written));
}

#[test]
fn steps_come_back_equal() {
    let made = StepDone {
        stage: "s".into(),
        epoch: 1,
        step: 2,
        generation: 3,
        world_size: 4,
        loss: 0.1,
        losses: BTreeMap::from([("a".into(), 1.0), ("b".into(), f64::MIN_POSITIVE)]),
        lr: 1e-3,
        images: 128,
        samples_sha256: "ef".into(),
        total_steps: 9,
        skipped: None,
        phase_seconds: BTreeMap::from([("forward".into(), 0.25)]),
        gathered_bytes: 9,
    };
    check_event(WorkerEvent::Step(made.clone()));
    let held = Held { stage: 1, step: 2, post_step_done: true };
    let skipped = StepDone { skipped: Some("a loss".into()), ..made.clone() };
    let message = "broadcast: invalid usage".into();
    let failure = GroupFailure { stage: "cnce".into(), step: 9, message, peer_lost: true };
    let recent = vec![made, skipped];
    check_event(WorkerEvent::Rejoin(Rejoin {
        generation: 3,
        held: Some(held),
        recent,
        failure: Some(failure),
    }));
    check_event(WorkerEvent::Rejoin(Rejoin {
        generation: 3,
        held: None,
        recent: Vec::new(),
        failure: None,
    }));
}

#[test]
fn small_events_come_back_equal() {
    let hello = Hello {
        worker_id: "w".into(),
        host: "h".into(),
        pid: 1,
        version: "v".into(),
        generation: 2,
        device: Device::cpu("c"),
    };
    let gpu = Device { kind: DeviceKind::Cuda, name: "g".into(), id: Some("GPU-1".into()) };
    check_event(WorkerEvent::Hello(Hello { device: gpu, ..hello.clone() }));
    check_event(WorkerEvent::Hello(hello));
    check_event(WorkerEvent::Ready { config_digest: "d".into() });
    check_event(WorkerEvent::Fetching(Fetching {
        split: "train".into(),
        from: 0,
        done: 1,
        total: u64::MAX,
    }));
    let heartbeat = Heartbeat {
        generation: 1,
        stage: "s".into(),
        step: 2,
        phase: "p".into(),
        collectives: 3,
        waited_ms: 4,
        progress: 5,
        in_collective: true,
    };
    check_event(WorkerEvent::Heartbeat(heartbeat));
    check_event(WorkerEvent::Repaired { problem: "p".into() });
    check_event(WorkerEvent::Shows { address: "h:1".into() });
    check_event(WorkerEvent::StopRequested { reason: "SIGINT received by worker-0".into() });
    check_event(WorkerEvent::TerminationNotice);
    let measure = "coarse_head".into();
    let evaluated =
        Evaluated { stage: "s".into(), epoch: 1, validation_accuracy: 0.5, best: true, measure };
    check_event(WorkerEvent::Evaluated(evaluated));
    check_event(WorkerEvent::NotSaved { stage: "s".into(), step: 3, reason: "full".into() });
    check_event(WorkerEvent::StageFinished { stage: "s".into() });
    check_event(WorkerEvent::Stopped { stage: "s".into(), step: 3 });
    check_event(WorkerEvent::Failed(Failed {
        phase: "p".into(),
        message: "m".into(),
        exit_code: 255,
    }));
    check_event(WorkerEvent::Finished);
}

#[test]
fn a_benchmark_round_trips() {
    let report = BenchReport {
        rank: 1,
        device: "d".into(),
        precision: "float32".into(),
        collectives: "gloo".into(),
        step_seconds: vec![0.5, 0.25],
        phase_seconds: BTreeMap::from([("forward".into(), 0.125)]),
        flops: 2,
        operators: 3,
        kernels: Some(0),
        ceiling_flops_per_s: 4.5,
        ceiling_product: "5 x 5 x 5".into(),
        peak_memory_bytes: 6,
        parameters: 7,
    };
    check_event(WorkerEvent::Benched(BenchReport { kernels: None, ..report.clone() }));
    check_event(WorkerEvent::Benched(report));
}

#[test]
fn commands_come_back_equal() {
    let pack = PackRef { split: "train".into(), path: "/p".into(), fingerprint: "f".into() };
    let welcome = Welcome {
        run_id: "r".into(),
        run_dir: "/r".into(),
        config: "seed: 0".into(),
        config_digest: "d".into(),
        packs: vec![pack],
        lease: Duration::from_millis(1500),
        scrape_token_sha256: Some("d".into()),
        grace: Some(Duration::from_millis(2500)),
        bench: Some(BenchRequest { warmup_steps: 1, steps: 2 }),
    };
    check_command(Command::Welcome(Welcome { bench: None, ..welcome.clone() }));
    check_command(Command::Welcome(Welcome { grace: None, ..welcome.clone() }));
    check_command(Command::Welcome(welcome));
    let begin = Begin {
        generation: 1,
        rank: 0,
        world_size: 2,
        stage: 1,
        resume: None,
        complete: vec![checkpoint()],
        source: None,
        collectives: Collectives::Gloo,
    };
    check_command(Command::Begin(Begin { collectives: Collectives::Nccl, ..begin.clone() }));
    check_command(Command::Begin(Begin {
        resume: Some(checkpoint()),
        source: Some(0),
        ..begin.clone()
    }));
    check_command(Command::Begin(begin));
    check_command(Command::Committed(Ok(checkpoint())));
    check_command(Command::Committed(Err("disk full".into())));
    check_command(Command::Regroup { generation: 3 });
    check_command(Command::Save);
    check_command(Command::Abandon { generation: 3, reason: "r".into() });
    check_command(Command::Recorded { steps: 48 });
    check_command(Command::Stop { reason: "r".into() });
    check_command(Command::Refused { reason: "r".into(), exit_code: 78 });
    check_command(Command::Leave { reason: "r".into() });
}

#[test]
fn what_is_malformed_says_so() {
    let empty = WorkerEvent::try_from(v1::WorkerEvent { event: None }).map(drop);
    assert_eq!(empty, Err(malformed("WorkerEvent", "it has no event")));
    assert!(Command::try_from(v1::Command { command: None }).is_err());
    let begin = v1::Begin { generation: 1, rank: 2, world_size: 2, ..v1::Begin::default() };
    assert_eq!(Begin::try_from(begin), Err(malformed("Begin", "rank 2 of 2 ranks")));
    let begin = v1::Begin {
        generation: 1,
        rank: 1,
        world_size: 2,
        source: Some(2),
        ..v1::Begin::default()
    };
    assert_eq!(Begin::try_from(begin), Err(malformed("Begin", "source 2 of 2 ranks")));
    let begin = v1::Begin { world_size: 1, ..v1::Begin::default() };
    assert_eq!(Begin::try_from(begin), Err(malformed("Begin", "its collectives are unknown")));
    assert_eq!(
        Hello::try_from(v1::Hello::default()),
        Err(malformed("Hello", "it names no device"))
    );
    let hello = v1::Hello {
        device: Some(v1::Device { kind: 3, ..v1::Device::default() }),
        ..v1::Hello::default()
    };
    assert_eq!(Hello::try_from(hello), Err(malformed("Device", "kind 3 is unknown")));
    let refused =
        v1::command::Command::Refused(v1::Refused { reason: String::new(), exit_code: 256 });
    assert!(Command::try_from(v1::Command { command: Some(refused) }).is_err());
}

/// The further one of two states is the greater: by stage, then by updates, then by what follows
/// the last.
#[test]
fn states_in_memory_are_in_the_order_of_training() {
    let held = |stage, step, post_step_done| Held { stage, step, post_step_done };
    let order = [
        held(0, 0, false),
        held(0, 5, false),
        held(0, 5, true),
        held(0, 6, false),
        held(1, 0, false),
    ];
    assert!(order.is_sorted());
}
