//! The pods' own commands, variables, files, volumes and users, in network, mount and PID
//! namespaces, started and deleted as the model of Kubernetes' Job controller says; and their
//! programs as process 1, which signals reach only through handlers.

use crate::job_controller::{JobController, JobSetAction, JobState, Order, PodEnd, jobset_action};
use crate::print_line;
use crate::security::https;
use nix::sys::signal::Signal;
use serde_yaml::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use thanos_tests::network::Network;
use thanos_tests::processes::send;
use thanos_tests::{Ran, Running, Scene, lines, program, root};

/// Longest wait for what must happen, on a machine that does other things as well.
const DEADLINE: Duration = Duration::from_secs(240);
/// Long enough for a signal and the end of a process, much shorter than any period of grace.
const SOON: Duration = Duration::from_secs(20);

/// Whether namespaces can be made here.
fn has_namespaces() -> bool {
    let made = Command::new("unshare").args(["--pid", "--fork", "--mount-proc", "true"]).output();
    made.is_ok_and(|made| made.status.success())
}

/// Children of a process.
fn children(pid: i32) -> Vec<i32> {
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// Whether a process handles a signal, instead of its default, which process 1 does not have.
fn handles(pid: i32, signal: Signal) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).map(str::trim);
    let mask = mask.and_then(|mask| u64::from_str_radix(mask, 16).ok()).unwrap_or(0);
    mask >> (signal as u32 - 1) & 1 == 1
}

/// Starts a program of this workspace as process 1 of a PID namespace.
fn start_as_process_1(scene: &Scene, name: &str, arguments: &[&str]) -> Running {
    let program = program(name).display().to_string();
    let unshare = ["--pid", "--fork", "--mount-proc", "--kill-child", &program];
    scene.spawn_program(Path::new("unshare"), name, &[&unshare[..], arguments].concat(), &[])
}

/// Waits for process 1 of the namespace to have `count` children that handle SIGTERM, and to do so
/// itself.
fn wait_for_handlers(running: &mut Running, count: usize) -> (i32, Vec<i32>) {
    let outer = running.pid();
    let found = || {
        let process_1 = children(outer).first().copied()?;
        let workers = children(process_1);
        let is_ready = workers.len() == count
            && handles(process_1, Signal::SIGTERM)
            && workers.iter().all(|worker| handles(*worker, Signal::SIGTERM));
        is_ready.then_some((process_1, workers))
    };
    running.wait_until("processes that handle SIGTERM", || found().is_some());
    found().expect("it has just been so")
}

/// An address of this machine at which nothing listens.
const NOTHING: [&str; 3] = ["--coordinator", "127.0.0.1:1", "--insecure"];

/// A worker that waits for its coordinator has nothing to save.
#[test]
fn a_waiting_worker_that_is_process_1_ends_at_sigterm() {
    if !has_namespaces() {
        print_line("skipped: no PID namespace can be made here (it needs root)");
        return;
    }
    let scene = Scene::new();
    let arguments = [&NOTHING[..], &["--id", "w", "--wait", "10m", "--device", "cpu"]].concat();
    let mut worker = start_as_process_1(&scene, "thanos-worker", &arguments);
    let (process_1, _) = wait_for_handlers(&mut worker, 0);
    let sent = Instant::now();
    send(process_1, Signal::SIGTERM);
    let ran = worker.wait().expect(75);
    assert!(sent.elapsed() < SOON, "{:?}", sent.elapsed());
    assert!(ran.stderr.contains("stopped while waiting for the coordinator"), "{}", ran.stderr);
}

#[test]
fn process_1_forwards_sigterm_restarts_a_killed_worker_and_reaps_orphans() {
    if !has_namespaces() {
        print_line("skipped: no PID namespace can be made here (it needs root)");
        return;
    }
    let scene = Scene::new();
    let arguments = [
        &["workers"],
        &NOTHING[..],
        &["--count", "2", "--index", "3", "--wait", "10m", "--device", "cpu"],
    ];
    let mut group = start_as_process_1(&scene, "thanos-coord", &arguments.concat());
    let (process_1, workers) = wait_for_handlers(&mut group, 2);
    send(workers[1], Signal::SIGKILL);
    group.wait_for_line("was killed by signal 9: restarting it in 1s");
    let (_, again) = wait_for_handlers(&mut group, 2);
    assert!(again.contains(&workers[0]) && !again.contains(&workers[1]), "{workers:?} {again:?}");
    let sent = Instant::now();
    send(process_1, Signal::SIGTERM);
    let ran = group.wait().expect(75);
    assert!(sent.elapsed() < SOON, "{:?}", sent.elapsed());
    for part in [
        "SIGTERM: forwarded to the workers",
        "worker-6: ",
        "worker-7: ",
        "stopped while waiting for the coordinator",
    ] {
        assert!(ran.stderr.contains(part), "no `{part}` in {}", ran.stderr);
    }
}

/// A worker that does not end is killed before the kubelet would kill the pod.
#[test]
fn workers_that_do_not_end_within_the_grace_are_killed() {
    let scene = Scene::new();
    let arguments = [
        &["workers"],
        &NOTHING[..],
        &["--count", "2", "--wait", "10m", "--grace", "1s", "--device", "cpu"],
    ];
    let mut group = scene.start(&arguments.concat());
    let pid = group.pid();
    group.wait_until("two workers", || {
        children(pid).iter().filter(|pid| handles(**pid, Signal::SIGTERM)).count() == 2
    });
    send(children(pid)[0], Signal::SIGSTOP);
    send(pid, Signal::SIGTERM);
    let ran = group.wait().expect(75);
    assert!(
        ran.stderr.contains("workers are still running after 1s: killing them"),
        "{}",
        ran.stderr
    );
}

/// Kubernetes gets to know that there is no coordinator, and decides.
#[test]
fn workers_wait_for_a_coordinator_until_their_timeout() {
    let scene = Scene::new();
    let arguments =
        [&["workers"], &NOTHING[..], &["--count", "2", "--wait", "1s", "--device", "cpu"]].concat();
    let started = Instant::now();
    let ran = scene.coord(&arguments).expect(69);
    assert!((Duration::from_secs(1)..SOON).contains(&started.elapsed()), "{:?}", started.elapsed());
    assert!(ran.stderr.contains("no coordinator at 127.0.0.1:1 within 1s"), "{}", ran.stderr);
    assert!(!ran.stderr.contains("restarting it"), "{}", ran.stderr);
}

/// Pods, and the names of their network namespaces.
const PODS: [&str; 3] = ["coordinator", "workers-0", "workers-1"];

/// Pods without a file system that two of them see, with addresses and names of their own, none of
/// them as root.
struct Cluster<'a> {
    scene: &'a Scene,
    /// The specifications of the Jobs, as rendered.
    jobs: BTreeMap<&'static str, Value>,
    controllers: BTreeMap<&'static str, JobController>,
    running: BTreeMap<String, Running>,
    /// What pods that have ended said, oldest first.
    ended: Vec<(String, Ran)>,
    _network: Network,
}

fn run(program: &str, arguments: &[&str]) {
    let ended = Command::new(program).args(arguments).status().expect("it runs");
    assert!(ended.success(), "{program} {arguments:?}");
}

/// The folder of libtorch that the worker was linked with.
fn libtorch() -> String {
    let printed = Command::new("ldd").arg(program("thanos-worker")).output().expect("ldd");
    let printed = String::from_utf8_lossy(&printed.stdout).into_owned();
    let line = printed.lines().find(|line| line.contains("libtorch_cpu")).expect("it is linked");
    let file = line.split("=> ").nth(1).and_then(|rest| rest.split(' ').next()).expect("a path");
    Path::new(file).parent().expect("a folder").display().to_string()
}

fn strings(value: &Value) -> Vec<String> {
    value
        .as_sequence()
        .into_iter()
        .flatten()
        .filter_map(|one| Some(one.as_str()?.to_owned()))
        .collect()
}

impl<'a> Cluster<'a> {
    /// Two pods with two workers each. `experiment` is the configuration; `None`: namespaces cannot
    /// be made here.
    fn new(scene: &'a Scene, experiment: &str) -> Option<Self> {
        let network = Network::new("thanos-pods", "10.213.88", &PODS)?;
        let make = |name: &str| fs::create_dir_all(scene.path(name)).expect("a folder");
        // Not everywhere where namespaces can be made may a root be laid over another.
        ["probe/upper", "probe/work", "probe/root"].into_iter().for_each(make);
        let probe = "mount -t overlay -o lowerdir=/,upperdir=upper,workdir=work overlay root";
        let probe = Command::new("unshare")
            .args(["--mount", "sh", "-c", probe])
            .current_dir(scene.path("probe"))
            .output();
        if !probe.is_ok_and(|probe| probe.status.success()) {
            return None;
        }
        let arguments = [
            "render",
            "kubernetes",
            "--api",
            "job",
            "--image",
            "x",
            "--name",
            "a",
            "--nodes",
            "2",
            "--gpus",
            "2",
        ];
        let rendered = scene.coord(&[&arguments[..], &["digits_table"]].concat()).expect(0).stdout;
        let documents = serde_yaml::Deserializer::from_str(&rendered);
        let documents: Vec<Value> =
            documents.map(|one| serde::Deserialize::deserialize(one).expect("YAML")).collect();
        let job = |name: &'static str| {
            let is_it = |one: &&Value| {
                one["kind"] == "Job" && one["metadata"]["name"] == format!("a-{name}")
            };
            (name, documents.iter().find(is_it).expect("a Job")["spec"].clone())
        };
        let jobs = BTreeMap::from(["coordinator", "workers"].map(job));
        scene.coord(&["credentials", "secret"]).expect(0);
        fs::write(scene.path("hosts"), "127.0.0.1 localhost\n10.213.88.2 a-coordinator\n")
            .expect("written");
        ["config", "runs", "worker-secret", "bin"].into_iter().for_each(make);
        PODS.iter().for_each(|pod| make(&format!("packs/{pod}")));
        fs::write(scene.path("config/experiment.yaml"), experiment).expect("written");
        for name in ["ca.pem", "token"] {
            fs::copy(scene.path("secret").join(name), scene.path("worker-secret").join(name))
                .expect(name);
        }
        for name in ["thanos-coord", "thanos-worker"] {
            fs::copy(program(name), scene.path("bin").join(name)).expect(name);
        }
        let all = scene.path("").display().to_string();
        run("chown", &["-R", "10001:10001", &all]);
        run("chmod", &["755", &all]);
        let controllers =
            jobs.iter().map(|(name, spec)| (*name, JobController::new(spec))).collect();
        Some(Self {
            scene,
            jobs,
            controllers,
            running: BTreeMap::new(),
            ended: Vec::new(),
            _network: network,
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scene.path(name)
    }

    /// Starts a pod as its manifest says.
    fn start(&self, job: &str, index: usize) -> Running {
        let pod_name = pod_name(job, index);
        let container = &self.jobs[job]["template"]["spec"]["containers"][0];
        let entries = container["env"].as_sequence().into_iter().flatten();
        let text = |value: &Value| value.as_str().expect("text").to_owned();
        let mut variables: BTreeMap<String, String> =
            entries.map(|one| (text(&one["name"]), text(&one["value"]))).collect();
        if job == "workers" {
            // The Job controller adds it.
            variables.insert("JOB_COMPLETION_INDEX".into(), index.to_string());
            // Rendered for two GPUs a pod, it would not train without them.
            assert_eq!(
                variables.insert("THANOS_DEVICE".into(), "cpu".into()).as_deref(),
                Some("cuda")
            );
        }
        let expand = |text: &str| {
            variables.iter().fold(text.to_owned(), |text, (name, value)| {
                text.replace(&format!("$({name})"), value)
            })
        };
        let path = |name: &str| self.path(name).display().to_string();
        let packs = format!("/packs={}", path(&format!("packs/{pod_name}")));
        let volumes = match job {
            "workers" => vec![format!("/credentials={}", path("worker-secret")), packs],
            _ => vec![
                format!("/credentials={}", path("secret")),
                format!("/config={}", path("config")),
                format!("/runs={}", path("runs")),
                packs,
            ],
        };
        let script = root().join("tests/pod.sh").display().to_string();
        let mut arguments =
            vec![script, pod_name.clone(), path(&pod_name), path("hosts"), path("bin"), libtorch()];
        arguments.extend(volumes);
        arguments.push("--".into());
        arguments.extend(variables.iter().map(|(name, value)| format!("{name}={value}")));
        arguments.extend(strings(&container["command"]));
        arguments.extend(strings(&container["args"]).iter().map(|argument| expand(argument)));
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        self.scene.spawn_program(Path::new("sh"), &pod_name, &arguments, &[])
    }

    /// SIGTERM to the pod's process 1, as the kubelet sends it.
    fn delete(&self, pod_name: &str) {
        let process_1 = children(self.running[pod_name].pid())[0];
        send(process_1, Signal::SIGTERM);
    }

    /// Does what the controllers order, and reports the ends of pods to them.
    fn reconcile(&mut self) {
        for job in ["coordinator", "workers"] {
            for order in self.controllers.get_mut(job).expect("a Job").orders() {
                match order {
                    Order::Start { index } => {
                        let pod = self.start(job, index);
                        self.running.insert(pod_name(job, index), pod);
                    }
                    Order::Delete { index } => self.delete(&pod_name(job, index)),
                }
            }
        }
        let has_ended =
            |(name, running): (&String, &mut Running)| running.has_ended().then(|| name.clone());
        let ended: Vec<String> = self.running.iter_mut().filter_map(has_ended).collect();
        for name in ended {
            let ran = self.running.remove(&name).expect("it was there").wait();
            let (job, index) = name.split_once('-').unwrap_or((&name, "0"));
            let end = PodEnd { exit_code: ran.code.unwrap_or(137), disrupted: false };
            self.controllers
                .get_mut(job)
                .expect("a Job")
                .pod_ended(index.parse().expect("an index"), end);
            self.ended.push((name, ran));
        }
    }

    /// Reconciles until something holds.
    fn until(&mut self, what: &str, mut holds: impl FnMut(&Self) -> bool) {
        let started = Instant::now();
        while !holds(self) {
            assert!(
                started.elapsed() < DEADLINE,
                "waited {DEADLINE:?} for {what}; ended: {:#?}",
                self.ended
            );
            self.reconcile();
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn state(&self, job: &str) -> JobState {
        self.controllers[job].state()
    }

    fn ends_of<'b>(&'b self, pod: &'b str) -> impl Iterator<Item = &'b Ran> {
        self.ended.iter().filter(move |(name, _)| name == pod).map(|(_, ran)| ran)
    }
}

fn pod_name(job: &str, index: usize) -> String {
    if job == "workers" { format!("workers-{index}") } else { job.into() }
}

const SMALL: &str = "extends: digits_table\ntrain: {epochs: 4}\ncheckpoint: {every_steps: 10}\n";

#[test]
fn pods_with_two_workers_each_train_without_a_shared_file_system() {
    let scene = Scene::new();
    let Some(mut cluster) = Cluster::new(&scene, SMALL) else {
        print_line("skipped: no namespaces or overlays can be made here (it needs root)");
        return;
    };
    let ledger = scene.path("runs/a/steps.jsonl");
    let steps = || fs::read_to_string(&ledger).unwrap_or_default().lines().count();
    cluster.until("25 steps", |_| steps() >= 25);
    check_pages(&scene);
    // The coordinator's pod is deleted: all stop at a common step, and new pods take their places.
    cluster.delete("coordinator");
    cluster.until("both Jobs to be complete", |cluster| {
        ["coordinator", "workers"].iter().all(|job| cluster.state(job) == JobState::Complete)
    });
    let codes = |pod: &str| cluster.ends_of(pod).map(|ran| ran.code).collect::<Vec<_>>();
    for pod in PODS {
        assert_eq!(codes(pod), [Some(75), Some(0)], "{pod}: {:#?}", cluster.ended);
    }
    assert!(cluster.controllers.values().all(|job| job.counted_failures() == 0));
    let ends: Vec<&Ran> = cluster.ends_of("coordinator").collect();
    let (stopped, done) = (ends[0], ends[1]);
    assert!(stopped.stderr.contains("stopping at a common step: SIGTERM"), "{}", stopped.stderr);
    assert!(
        done.stdout.contains("\nthanos ") && done.stdout.contains("cnce + cae"),
        "{}",
        done.stdout
    );
    let worker = cluster.ends_of("workers-1").last().expect("it has ended");
    assert!(worker.stderr.contains("worker-3: "), "{}", worker.stderr);
    assert!(
        worker.stderr.contains("/runs/a is not seen here: checkpoints go to the coordinator"),
        "{}",
        worker.stderr
    );
    let joined: Vec<String> = lines(&scene.path("runs/a"), "events.jsonl")
        .iter()
        .filter(|event| event["event"] == "joined")
        .map(|event| format!("{} {}", event["worker"], event["host"]))
        .collect();
    for (worker, host) in [(0, 0), (1, 0), (2, 1), (3, 1)] {
        let expected = format!("\"worker-{worker}\" \"workers-{host}\"");
        assert_eq!(joined.iter().filter(|one| **one == expected).count(), 2, "{joined:?}");
    }
}

/// As probes and Prometheus ask.
fn check_pages(scene: &Scene) {
    let (ca, scrape) = (
        scene.path("secret/ca.pem"),
        fs::read_to_string(scene.path("secret/scrape-token")).expect("made"),
    );
    let status = ("10.213.88.2:9464", thanos_proto::COORDINATOR_NAME);
    assert_eq!(https(&ca, status, "/healthz", ""), "200 alive");
    assert_eq!(https(&ca, status, "/readyz", ""), "200 training");
    let refused = https(&ca, status, "/metrics", "");
    assert!(refused.starts_with("401 "), "{refused}");
    let targets = https(&ca, status, "/sd", scrape.trim());
    // A port for each worker of a pod.
    for target in ["10.213.88.3:9465", "10.213.88.3:9466", "10.213.88.4:9465", "10.213.88.4:9466"] {
        assert!(targets.contains(target), "{targets}");
        // Its certificate is for the address that Prometheus uses.
        let worker = (target, target.split(':').next().expect("an address"));
        assert_eq!(https(&ca, worker, "/healthz", ""), "200 alive");
        assert!(https(&ca, worker, "/metrics", scrape.trim()).starts_with("200 # HELP"));
    }
}

/// A configuration that no retry makes right fails the Job at once, and the JobSet with it; the
/// workers, which are waiting, are deleted and end at once.
#[test]
fn a_permanent_failure_ends_the_jobset_and_its_waiting_workers() {
    let scene = Scene::new();
    let Some(mut cluster) = Cluster::new(&scene, "extends: digits_table\ntrain: {epochs: -1}\n")
    else {
        print_line("skipped: no namespaces or overlays can be made here (it needs root)");
        return;
    };
    cluster
        .until("a failed coordinator", |cluster| cluster.state("coordinator") != JobState::Active);
    let state = cluster.state("coordinator");
    assert_eq!(state, JobState::Failed("PodFailurePolicy"), "{:#?}", cluster.ended);
    let file = root().join("deploy/kubernetes/components/jobset/copy/jobset.yaml");
    let jobset: Value =
        serde_yaml::from_str(&fs::read_to_string(file).expect("jobset.yaml")).expect("YAML");
    assert_eq!(jobset_action(&jobset["spec"], "coordinator", &state, 0), JobSetAction::Fail);
    // A pod that has just been created may be deleted before its program can handle a signal: it is
    // then killed.
    let ready = |cluster: &Cluster<'_>| {
        let process_1 = |pod: &str| children(cluster.running[pod].pid()).first().copied();
        PODS[1..].iter().all(|pod| {
            process_1(pod)
                .is_some_and(|pid| handles(pid, Signal::SIGTERM) && children(pid).len() == 2)
        })
    };
    cluster.until("workers that wait", ready);
    let deleted = Instant::now();
    cluster.controllers.get_mut("workers").expect("a Job").set_suspended(true);
    cluster.until("the end of the workers", |cluster| cluster.running.is_empty());
    assert!(deleted.elapsed() < SOON, "{:?}", deleted.elapsed());
    for pod in &PODS[1..] {
        assert_eq!(
            cluster.ends_of(pod).map(|ran| ran.code).collect::<Vec<_>>(),
            [Some(75)],
            "{:#?}",
            cluster.ended
        );
    }
}
