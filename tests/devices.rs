//! On what workers train: what is typed, what a machine has, and which program is started, on
//! machines with pretended GPUs. A copy of the CPU build under the name of the CUDA build stands
//! for one whose libtorch sees no GPU.

use serde_json::Value;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use thanos_tests::{Ran, Scene, lines, program};

const SHORT: [&str; 3] = ["digits_cnce", "train.max_steps=2", "rows=[]"];

/// A machine with this many GPUs, as the driver describes them, and the programs in a folder of
/// their own.
struct Machine {
    scene: Scene,
    root: String,
}

impl Machine {
    fn new(gpus: usize) -> Self {
        let scene = Scene::new();
        let root = scene.path("machine");
        fs::create_dir_all(root.join("dev")).expect("a folder");
        for index in 0..gpus {
            let bus = format!("0000:0{index}:00.0");
            let folder = root.join("proc/driver/nvidia/gpus").join(&bus);
            fs::create_dir_all(&folder).expect("a folder");
            let information = format!(
                "Model: \t\t NVIDIA H100 80GB HBM3\nGPU UUID: \t GPU-{index}\nBus Location: \t \
                {bus}\nDevice Minor: \t {index}\n"
            );
            fs::write(folder.join("information"), information).expect("a file");
            fs::write(root.join(format!("dev/nvidia{index}")), "").expect("a file");
        }
        fs::create_dir(scene.path("bin")).expect("a folder");
        // A program finds its neighbours by its own path, which a link would not have.
        fs::copy(program("thanos-coord"), scene.path("bin/thanos-coord")).expect("a copy");
        symlink(program("thanos-worker"), scene.path("bin/thanos-worker")).expect("a link");
        let root = root.to_str().expect("UTF-8").to_owned();
        Self { scene, root }
    }

    fn with_cuda_program(self) -> Self {
        symlink(program("thanos-worker"), self.scene.path("bin/thanos-worker-cuda"))
            .expect("a link");
        self
    }

    fn launch(&self, arguments: &[&str]) -> Ran {
        let arguments = [&["launch", "--threads-per-worker", "1"], arguments].concat();
        self.coord(&arguments, &[])
    }

    fn coord(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Ran {
        let program: PathBuf = self.scene.path("bin/thanos-coord");
        let variables = [&[("THANOS_MACHINE_ROOT", self.root.as_str())], variables].concat();
        self.scene.spawn_program(&program, "", arguments, &variables).wait()
    }

    /// The launch must end so, with this one message.
    #[track_caller]
    fn refuses(&self, arguments: &[&str], exit_code: i32, message: &str) {
        let ran = self.launch(&[arguments, &SHORT].concat()).expect(exit_code);
        assert!(ran.stderr.contains(message), "no `{message}` in\n{}", ran.stderr);
        assert_eq!(ran.stderr.matches("error: ").count(), 1, "one message, not\n{}", ran.stderr);
    }
}

#[test]
fn options_that_this_machine_cannot_satisfy_are_refused_at_once() {
    let none = Machine::new(0);
    let message = "--device cuda: no GPU is visible on this machine; `--device cpu` trains on CPUs";
    none.refuses(&["--device", "cuda"], 78, message);
    none.refuses(
        &["--device", "cpu", "--collectives", "nccl"],
        64,
        "--collectives nccl works between GPUs only",
    );
    none.refuses(
        &["--device", "auto", "--collectives", "nccl"],
        78,
        "needs GPUs, and none is visible",
    );
    none.refuses(&["--device", "gpu"], 64, "expected auto, cpu, cuda or cuda:N");
    none.refuses(&["--worker-program", "nothing"], 64, "--worker-program nothing is not a file");
    let serve = none.coord(&[&["serve", "--device", "cpu"], &SHORT[..]].concat(), &[]).expect(64);
    assert!(
        serve.stderr.contains("serve starts no workers: --device is for `launch`"),
        "{}",
        serve.stderr
    );
    let wrong =
        none.coord(&[&["launch"], &SHORT[..]].concat(), &[("THANOS_DEVICE", "gpu")]).expect(64);
    assert!(wrong.stderr.contains("THANOS_DEVICE=gpu: expected auto, cpu"), "{}", wrong.stderr);
    let one = Machine::new(1);
    let message = "2 workers but 1 GPU on this machine: start fewer workers, or let them share it \
        with --device cuda:0";
    one.refuses(&["--nodes", "2", "--device", "auto"], 78, message);
    one.refuses(&["--nodes", "2", "--device", "cuda"], 78, message);
    one.refuses(
        &["--device", "cuda:1"],
        78,
        "--device cuda:1: 1 GPU on this machine, numbered from 0",
    );
    for machine in [none, one] {
        assert!(!machine.scene.path("runs").exists(), "a refused launch leaves nothing");
    }
}

#[test]
fn unusable_gpus_are_an_error_without_a_silent_fallback() {
    let machine = Machine::new(2);
    let missing = "bin/thanos-worker-cuda does not exist: `make cuda` builds thanos-worker-cuda; \
        `--device cpu` trains";
    machine.refuses(&["--device", "auto"], 78, missing);
    machine.refuses(&["--device", "cuda:1", "--nodes", "2"], 78, missing);
    let machine = machine.with_cuda_program();
    let unused = "2 GPUs are on this machine or allocated to it, but the libtorch of this worker \
        is built for CPUs and sees none: `make cuda` builds thanos-worker-cuda; `--device cpu` \
        trains on CPUs";
    machine.refuses(&["--device", "auto", "--nodes", "2", "--run-dir", "run"], 78, unused);
    assert!(
        !machine.scene.path("run/run.json").exists(),
        "the fixed command finds the directory free"
    );
    machine.refuses(&["--device", "cuda", "--run-dir", "one"], 78, "1 of 2 GPUs is used\n");
    machine.refuses(
        &["--device", "auto", "--worker-program", "bin/thanos-worker", "--run-dir", "two"],
        78,
        unused,
    );
    let ran =
        machine.launch(&[&["--device", "cpu", "--run-dir", "run"], &SHORT[..]].concat()).expect(0);
    assert!(ran.stderr.contains("generation 1: 1 worker on CPU ("), "{}", ran.stderr);
}

/// Started by hand, it ends by itself: it does not even try to join.
#[test]
fn a_worker_started_by_hand_refuses_to_leave_gpus_idle() {
    let machine = Machine::new(1);
    let worker = |arguments: &[&str]| {
        let join = ["--coordinator", "127.0.0.1:1", "--id", "a", "--insecure"];
        let variables = [("THANOS_MACHINE_ROOT", machine.root.as_str())];
        machine
            .scene
            .spawn("thanos-worker", "a", &[&join[..], arguments].concat(), &variables)
            .wait()
    };
    let ran = worker(&["--device", "auto"]).expect(78);
    assert!(
        ran.stderr.contains("1 GPU is on this machine or allocated to it, but the libtorch"),
        "{}",
        ran.stderr
    );
    worker(&["--device", "nothing"]).expect(64);
}

#[test]
fn a_run_shows_and_remembers_its_devices() {
    let machine = Machine::new(0);
    let launch = ["--nodes", "2", "--device", "auto", "--run-dir", "run"];
    let ran = machine.launch(&[&launch, &SHORT[..]].concat()).expect(0);
    let began =
        ran.stderr.lines().find(|line| line.starts_with("generation 1: ")).expect("it began");
    assert!(
        began.starts_with("generation 1: 2 workers on CPU (") && began.ends_with("), Gloo"),
        "{began}"
    );
    let run = machine.scene.path("run");
    let events = lines(&run, "events.jsonl");
    let joined: Vec<&Value> = events.iter().filter(|event| event["event"] == "joined").collect();
    assert_eq!(joined.len(), 2);
    for event in joined {
        let device = &event["device"];
        assert_eq!((&device["kind"], &device["id"]), (&"cpu".into(), &Value::Null));
        assert!(began.contains(device["name"].as_str().expect("a name")), "{device}");
    }
    let event = events.iter().find(|event| event["event"] == "began").expect("it began");
    assert_eq!(event["collectives"], "gloo");
    let status = machine.coord(&["status", "run"], &[]).expect(0).stdout;
    assert!(status.contains(&began.replacen("generation 1: ", "generation   1: ", 1)), "{status}");
    let recorded = || -> Value {
        serde_json::from_str(&fs::read_to_string(run.join("run.json")).expect("a run"))
            .expect("JSON")
    };
    let with = |key: &str| recorded()["started_with"][key].clone();
    assert_eq!((with("device"), with("collectives")), ("auto".into(), "auto".into()));
    let resume = ["--resume", "--run-dir", "run"];
    let typed = ["--device", "cpu", "--collectives", "gloo", "train.max_steps=3"];
    machine.launch(&[&resume[..], &typed].concat()).expect(0);
    assert_eq!((with("device"), with("collectives")), ("cpu".into(), "gloo".into()));
    let changed: Vec<Value> = recorded()["changes"].as_array().expect("changes").clone();
    let device = changed.iter().find(|change| change["key"] == "--device").expect("recorded");
    assert_eq!((&device["old"], &device["new"]), (&"auto".into(), &"cpu".into()));
    let nccl = machine.launch(&[&resume[..], &["--collectives", "nccl"]].concat()).expect(64);
    assert!(nccl.stderr.contains("omit --device cpu"), "the device is remembered: {}", nccl.stderr);
}
