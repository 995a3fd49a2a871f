//! Which devices fit together, and what a generation communicates with.

use crate::exit::EXIT_CONFIG;
use crate::run::CollectivesChoice::{self, Auto, Gloo, Nccl};
use crate::run::tests::{NOW, failure, hello, ready, received, start};
use crate::run::{Effect, Event, ExitCause, Notice, Run, Start};
use std::time::Duration;
use thanos_proto::{Collectives, Command, Device, DeviceKind, Hello};

fn gpu(id: Option<&str>) -> Device {
    Device { kind: DeviceKind::Cuda, name: "H100".into(), id: id.map(Into::into) }
}

fn on(worker: &str, host: &str, device: Device) -> Hello {
    Hello { host: host.into(), device, ..hello(worker) }
}

fn run(collectives: CollectivesChoice, shares_gpu: bool, workers: usize) -> Run {
    Run::new(Start { collectives, shares_gpu, ..start(workers) }, Duration::ZERO)
}

/// What the generation of these workers communicates with, and what is said of its devices.
fn began(mut run: Run, hellos: &[Hello]) -> (Collectives, String) {
    let mut effects = Vec::new();
    for (session, hello) in (1..).zip(hellos) {
        run.apply(Event::Opened { session, hello: hello.clone() }, NOW);
        effects = received(&mut run, session, ready());
    }
    let mut sent = effects.iter().filter_map(|effect| match effect {
        Effect::Send { command: Command::Begin(begin), .. } => Some(begin.collectives),
        _ => None,
    });
    let first = sent.next().expect("a generation began");
    assert!(sent.all(|other| other == first), "the same for all ranks");
    let notice = effects.iter().find_map(|effect| match effect {
        Effect::Notify(Notice::Began { devices, collectives, .. }) => {
            Some((*collectives, devices.clone()))
        }
        _ => None,
    });
    assert_eq!(notice.as_ref().map(|(collectives, _)| *collectives), Some(first));
    notice.expect("it is reported")
}

#[test]
fn collectives_follow_from_the_gpus() {
    let cpu = || Device::cpu("Xeon");
    let check = |(choice, shares), devices: &[(&str, Device)], collectives, described: &str| {
        let named = (0..).zip(devices);
        let hellos: Vec<Hello> = named
            .map(|(index, (host, device))| on(&format!("worker-{index}"), host, device.clone()))
            .collect();
        let expected = (collectives, described.to_owned());
        assert_eq!(
            began(run(choice, shares, hellos.len()), &hellos),
            expected,
            "{choice:?} {devices:?}"
        );
    };
    let auto = (Auto, false);
    check(auto, &[("a", cpu())], Collectives::Gloo, "CPU (Xeon)");
    check(auto, &[("a", cpu()), ("b", cpu())], Collectives::Gloo, "CPU (Xeon)");
    check(auto, &[("a", cpu()), ("b", Device::cpu("EPYC"))], Collectives::Gloo, "CPU (EPYC, Xeon)");
    check(auto, &[("a", gpu(Some("1")))], Collectives::Nccl, "CUDA (H100)");
    check(
        auto,
        &[("a", gpu(Some("1"))), ("a", gpu(Some("2")))],
        Collectives::Nccl,
        "CUDA (2 x H100)",
    );
    check(
        auto,
        &[("a", gpu(Some("1"))), ("b", gpu(Some("1")))],
        Collectives::Nccl,
        "CUDA (2 x H100)",
    );
    check(
        auto,
        &[("a", gpu(Some("1"))), ("a", gpu(Some("1")))],
        Collectives::Gloo,
        "CUDA (H100, shared)",
    );
    check(auto, &[("a", gpu(None)), ("a", gpu(None))], Collectives::Gloo, "CUDA (H100, shared)");
    check(auto, &[("a", gpu(None)), ("b", gpu(None))], Collectives::Nccl, "CUDA (2 x H100)");
    let mixed = Device { name: "A100".into(), ..gpu(Some("3")) };
    let three = [("a", gpu(Some("1"))), ("a", gpu(Some("2"))), ("a", mixed)];
    check(auto, &three, Collectives::Nccl, "CUDA (A100, 2 x H100)");
    check((Gloo, false), &three[..2], Collectives::Gloo, "CUDA (2 x H100)");
    check((Nccl, false), &three[..2], Collectives::Nccl, "CUDA (2 x H100)");
    check(
        (Nccl, true),
        &[("a", gpu(Some("1"))), ("a", gpu(Some("1")))],
        Collectives::Nccl,
        "CUDA (H100, shared)",
    );
}

/// The reason for which a worker is refused, which must be one of the configuration.
#[track_caller]
fn refusal(run: &mut Run, hello: Hello) -> String {
    let effects = run.apply(Event::Opened { session: 9, hello }, NOW);
    match &effects[..] {
        [
            Effect::Send { session: 9, command: Command::Refused { reason, exit_code } },
            Effect::Notify(_),
        ] => {
            assert_eq!(*exit_code, EXIT_CONFIG, "{reason}");
            reason.clone()
        }
        other => panic!("expected a refusal, got {other:?}"),
    }
}

#[test]
fn all_workers_train_on_one_kind_of_device() {
    let mut run = run(Auto, false, 2);
    run.apply(Event::Opened { session: 1, hello: on("a", "h", gpu(Some("1"))) }, NOW);
    let reason = refusal(&mut run, on("b", "h", Device::cpu("Xeon")));
    assert!(reason.starts_with("worker b trains on CPU (Xeon), the others on CUDA: "), "{reason}");
    assert!(reason.ends_with("the replicas would diverge"), "{reason}");
    // Also when all that made the run one of GPUs are lost.
    run.apply(Event::Opened { session: 2, hello: on("b", "h", gpu(Some("2"))) }, NOW);
    received(&mut run, 1, ready());
    received(&mut run, 2, ready());
    run.apply(Event::Closed { session: 1 }, NOW);
    run.apply(Event::Closed { session: 2 }, NOW);
    refusal(&mut run, on("a", "h", Device::cpu("Xeon")));
}

#[test]
fn nccl_needs_a_gpu_for_each_worker_unless_one_is_shared_on_purpose() {
    let mut nccl = run(Nccl, false, 3);
    let reason = refusal(&mut nccl, on("a", "h", Device::cpu("Xeon")));
    assert_eq!(reason, "worker a trains on CPU (Xeon): --collectives nccl needs GPUs");
    nccl.apply(Event::Opened { session: 1, hello: on("a", "h", gpu(Some("GPU-1"))) }, NOW);
    let reason = refusal(&mut nccl, on("b", "h", gpu(Some("GPU-1"))));
    let expected = "workers a and b share the GPU GPU-1 (H100) of h: NCCL needs a GPU for each; \
        use --collectives gloo, or --device cuda:N for tests";
    assert_eq!(reason, expected);
    let accepted = |run: &mut Run, hello: Hello| {
        let effects = run.apply(Event::Opened { session: 5, hello }, NOW);
        assert!(
            matches!(effects[0], Effect::Send { command: Command::Welcome(_), .. }),
            "{effects:?}"
        );
    };
    accepted(&mut nccl, on("b", "other", gpu(Some("GPU-1"))));
    let mut shared = run(Nccl, true, 2);
    shared.apply(Event::Opened { session: 1, hello: on("a", "h", gpu(Some("GPU-1"))) }, NOW);
    accepted(&mut shared, on("b", "h", gpu(Some("GPU-1"))));
}

/// A worker that finds its device unusable ends before it joins: its message and its exit code are
/// the run's.
#[test]
fn a_configuration_error_of_a_worker_is_that_of_the_run() {
    let ended = |code: i32| {
        let exited = Event::Exited {
            worker: "worker-0".into(),
            how: format!("ended with exit code {code} (log: why)"),
            cause: ExitCause::Exited(code),
        };
        failure(&run(Auto, false, 2).apply(exited, NOW))
    };
    let (message, exit_code) = ended(78);
    assert_eq!(
        (message.as_str(), exit_code),
        ("worker-0 ended with exit code 78 (log: why) before it joined the run", 78)
    );
    assert_eq!(ended(1).1, crate::exit::EXIT_UNREACHABLE);
}
