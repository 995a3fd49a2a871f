//! What a worker's process is started with.

use super::slurm::SlurmNodes;
use super::*;
use std::path::Path;

/// The arguments and the variables of a worker's process.
fn started(
    device: DeviceChoice,
    shares_gpu_by_nccl: bool,
    target: Arc<dyn LaunchTarget>,
) -> (Vec<String>, HashMap<String, String>) {
    let logs = tempfile::tempdir().expect("a folder");
    let command = WorkerCommand {
        program: "/bin/thanos-worker".into(),
        coordinator: "127.0.0.1:1".into(),
        credentials: None,
        threads: 1,
        device,
        shares_gpu_by_nccl,
        target,
        interface: None,
        shows: false,
        logs: logs.path().into(),
    };
    let command = command.build("worker-1").expect("a log");
    let command = command.as_std();
    let text = |text: &std::ffi::OsStr| text.to_string_lossy().into_owned();
    let program = std::iter::once(command.get_program());
    let words = program.chain(command.get_args()).map(text).collect();
    let set = command.get_envs().filter_map(|(name, value)| Some((text(name), text(value?))));
    (words, set.collect())
}

/// The value of an option.
fn value<'a>(words: &'a [String], option: &str) -> Option<&'a str> {
    let at = words.iter().position(|word| word == option)?;
    words.get(at + 1).map(String::as_str)
}

/// Credentials of trackers are the coordinator's alone.
#[test]
fn a_worker_does_not_inherit_the_secrets_of_trackers() {
    let mut command = std::process::Command::new("/bin/thanos-worker");
    let (coordinator, device) = ("127.0.0.1:1", DeviceChoice::Auto);
    WorkerProcess { coordinator, id: "worker-0", local_rank: "0", threads: 1, device }
        .put_into(&mut command);
    for secret in ["WANDB_API_KEY", "MLFLOW_TRACKING_PASSWORD", "TRACKIO_WRITE_TOKEN"] {
        let removed = command.get_envs().any(|(name, value)| name == secret && value.is_none());
        assert!(removed, "{secret}");
    }
}

#[test]
fn a_worker_gets_its_device_and_its_place() {
    let (words, variables) =
        started(DeviceChoice::Cuda, false, Arc::new(ThisMachine { workers: 2 }));
    assert_eq!(words[0], "/bin/thanos-worker");
    assert_eq!(
        (value(&words, "--device"), value(&words, "--local-rank")),
        (Some("cuda"), Some("1"))
    );
    assert!(!variables.keys().any(|name| name.starts_with("NCCL_")), "{variables:?}");
    // On another node the worker decides, by its own environment.
    let nodes = || Arc::new(SlurmNodes { nodes: Vec::new(), srun_arguments: Vec::new() });
    let (words, _) = started(DeviceChoice::Auto, false, nodes());
    assert_eq!((words[0].as_str(), value(&words, "--device")), ("srun", None));
    assert!(
        words.iter().any(|word| Path::new(word) == Path::new("/bin/thanos-worker")),
        "{words:?}"
    );
    assert_eq!(value(&started(DeviceChoice::Cpu, false, nodes()).0, "--device"), Some("cpu"));
}

#[test]
fn workers_that_share_a_gpu_are_hosts_of_their_own_to_nccl() {
    let (words, variables) =
        started(DeviceChoice::CudaIndex(0), true, Arc::new(ThisMachine { workers: 2 }));
    assert_eq!(value(&words, "--device"), Some("cuda:0"));
    let variable = |name: &str| variables.get(name).map(String::as_str);
    assert_eq!(
        (variable("NCCL_HOSTID"), variable("NCCL_SOCKET_IFNAME")),
        (Some("worker-1"), Some("lo"))
    );
    assert_eq!((variable("NCCL_IB_DISABLE"), variable("NCCL_NVLS_ENABLE")), (Some("1"), Some("0")));
}

/// Also when it is polled again, as a loop around `select!` does.
#[tokio::test]
async fn a_process_is_not_asked_to_end_by_a_sender_that_is_gone() {
    let (sender, receiver) = oneshot::channel();
    let mut killed = asked_to_end(receiver);
    drop(sender);
    for _ in 0..2 {
        let polled = tokio::time::timeout(Duration::from_millis(1), &mut killed).await;
        assert!(polled.is_err(), "it resolved");
    }
    let (sender, receiver) = oneshot::channel();
    sender.send(()).expect("the receiver is there");
    asked_to_end(receiver).await;
}
