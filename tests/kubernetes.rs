//! The manifests of deploy/kubernetes: they build and are valid, every pod is restricted, exit codes and ports are ours, and
//! the commands of the pods, played in network and mount namespaces without a shared file system, end with the table.

use crate::security::https;
use crate::tell;
use nix::sys::signal::Signal;
use serde_yaml::Value;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use thanos_tests::network::Network;
use thanos_tests::processes::send;
use thanos_tests::{Running, Scene, lines, program, root};

const OVERLAYS: [&str; 5] = ["cpu", "gpu", "data", "no-shared-volume", "jobset"];

fn folder() -> PathBuf {
    root().join("deploy/kubernetes")
}

/// The documents of a file of manifests.
fn documents(file: &str) -> Vec<Value> {
    let text = fs::read_to_string(folder().join(file)).expect(file);
    serde_yaml::Deserializer::from_str(&text).map(|one| serde::Deserialize::deserialize(one).expect("YAML")).collect()
}

fn find<'a>(documents: &'a [Value], kind: &str) -> &'a Value {
    documents.iter().find(|one| one["kind"] == kind).unwrap_or_else(|| panic!("there is no {kind}"))
}

/// The specification of the pods of one of the two Jobs.
fn pod(file: &str) -> Value {
    find(&documents(file), "Job")["spec"]["template"]["spec"].clone()
}

fn strings(value: &Value) -> Vec<String> {
    value.as_sequence().into_iter().flatten().filter_map(|one| Some(one.as_str()?.to_owned())).collect()
}

/// Where `make` or a user has put a tool.
fn tool(name: &str) -> Option<OsString> {
    let cache = std::env::var("HOME").unwrap_or_default() + "/.cache/thanos/kubernetes-validate/bin/";
    let candidates = [name.to_owned(), cache + name, format!("/opt/k8s-venv/bin/{name}")];
    let works = |path: &String| Command::new(path).arg("--help").output().is_ok_and(|told| told.status.success());
    candidates.into_iter().find(works).map(Into::into)
}

#[test]
fn every_overlay_builds_and_is_valid() {
    let (Some(kubectl), Some(validate)) = (tool("kubectl"), tool("kubernetes-validate")) else {
        tell("skipped: kubectl and kubernetes-validate (PyPI) are not installed");
        return;
    };
    let scene = Scene::new();
    for overlay in OVERLAYS {
        let built = Command::new(&kubectl).arg("kustomize").arg(folder().join("overlays").join(overlay)).output();
        let built = built.expect("it runs");
        assert!(built.status.success(), "{overlay}: {}", String::from_utf8_lossy(&built.stderr));
        let file = scene.path(overlay);
        fs::write(&file, &built.stdout).expect("written");
        let told = Command::new(&validate).args(["--strict", "--no-warn"]).arg(&file).output().expect("it runs");
        let told = String::from_utf8_lossy(&told.stdout).into_owned() + &String::from_utf8_lossy(&told.stderr);
        let valid = told.matches(" passed for resource ").count();
        let kinds = String::from_utf8_lossy(&built.stdout).lines().filter(|line| line.starts_with("kind: ")).count();
        // Of JobSets it has no schema.
        let known = kinds - usize::from(overlay == "jobset");
        assert_eq!((valid, told.contains("failed")), (known, false), "{overlay}: {told}");
        // An image by its full name, everywhere.
        assert!(!String::from_utf8_lossy(&built.stdout).contains("image: thanos\n"), "{overlay}");
    }
}

#[test]
fn pods_are_restricted_and_have_their_own_files_alone() {
    for (file, name) in [("base/coordinator.yaml", "coordinator"), ("base/workers.yaml", "worker")] {
        let job = find(&documents(file), "Job").clone();
        let pod = &job["spec"]["template"]["spec"];
        let container = &pod["containers"][0];
        let context = &container["securityContext"];
        assert_eq!(
            (&pod["securityContext"]["runAsNonRoot"], &context["readOnlyRootFilesystem"]),
            (&true.into(), &true.into())
        );
        assert_eq!(
            (&context["allowPrivilegeEscalation"], &pod["automountServiceAccountToken"]),
            (&false.into(), &false.into())
        );
        assert_eq!(strings(&context["capabilities"]["drop"]), ["ALL"]);
        assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
        assert_eq!((&container["name"], &pod["restartPolicy"]), (&name.into(), &"Never".into()));
        // What a second attempt does not put right, and what is no failure.
        let rules = &job["spec"]["podFailurePolicy"]["rules"];
        let codes = |rule: usize| -> Vec<u64> {
            let values = rules[rule]["onExitCodes"]["values"].as_sequence().expect("codes");
            values.iter().filter_map(Value::as_u64).collect()
        };
        let final_codes = [
            thanos_coord::EXIT_USAGE,
            thanos_coord::EXIT_DATA,
            thanos_coord::EXIT_NO_PERMISSION,
            thanos_coord::EXIT_CONFIG,
        ];
        assert_eq!((codes(0), &rules[0]["action"]), (final_codes.map(u64::from).to_vec(), &"FailJob".into()));
        assert_eq!((codes(1), &rules[1]["action"]), (vec![thanos_coord::EXIT_STOPPED.into()], &"Ignore".into()));
        let disrupted = (&rules[2]["onPodConditions"][0]["type"], &rules[2]["action"]);
        assert_eq!(disrupted, (&"DisruptionTarget".into(), &"Ignore".into()));
        // The schemas do not know these words.
        assert!((0..2).all(|rule| rules[rule]["onExitCodes"]["operator"] == "In"));
        assert_eq!(container["livenessProbe"]["httpGet"]["scheme"], "HTTPS");
    }
    let items = &pod("base/workers.yaml")["volumes"][0]["secret"]["items"];
    let keys: Vec<&str> = items.as_sequence().expect("items").iter().filter_map(|item| item["key"].as_str()).collect();
    assert_eq!(keys, ["ca.pem", "token"], "never the authority's key");
    let (coordinator, workers) = (pod("base/coordinator.yaml"), find(&documents("base/workers.yaml"), "Job").clone());
    let nodes = format!("--nodes={}", workers["spec"]["completions"].as_u64().expect("a number"));
    assert!(strings(&coordinator["containers"][0]["args"]).contains(&nodes), "{nodes}");
    assert_eq!(workers["spec"]["completions"], workers["spec"]["parallelism"]);
    let grace = strings(&coordinator["containers"][0]["args"]);
    let grace =
        grace.iter().find_map(|argument| argument.strip_prefix("--grace=")?.strip_suffix('s')?.parse::<u64>().ok());
    assert!(coordinator["terminationGracePeriodSeconds"].as_u64() > grace, "{grace:?}");
}

/// A JobSet's pods are those of the two Jobs, with the labels that kustomize gives the latter.
#[test]
fn the_jobset_has_the_pods_of_the_base() {
    let jobset = find(&documents("overlays/jobset/jobset.yaml"), "JobSet").clone();
    for (index, file) in ["base/coordinator.yaml", "base/workers.yaml"].into_iter().enumerate() {
        let mut job = find(&documents(file), "Job")["spec"].clone();
        let labels = job["template"]["metadata"]["labels"].as_mapping_mut().expect("labels");
        labels.insert("app.kubernetes.io/name".into(), "thanos".into());
        assert_eq!(jobset["spec"]["replicatedJobs"][index]["template"]["spec"], job, "{file}");
    }
}

/// Every port that a pod opens, and who the network policy lets in.
#[test]
fn the_network_policy_lets_in_who_the_run_needs() {
    let policies = documents("base/network-policy.yaml");
    for (policy, file) in policies.iter().zip(["base/coordinator.yaml", "base/workers.yaml"]) {
        let ports = pod(file)["containers"][0]["ports"].as_sequence().expect("ports").clone();
        let rules = policy["spec"]["ingress"].as_sequence().expect("rules");
        let open = |port: &Value| rules.iter().any(|rule| rule["ports"][0]["port"] == port["containerPort"]);
        assert!(ports.iter().all(open), "{policy:?}");
        for rule in rules {
            // Who may come to any port is a worker, to a worker.
            let component = &rule["from"][0]["podSelector"]["matchLabels"]["app.kubernetes.io/component"];
            assert!(!rule["ports"].is_null() || (component == "worker" && file.contains("workers")), "{rule:?}");
            assert_eq!(rule["from"].as_sequence().map(Vec::len), Some(1), "{rule:?}");
        }
        assert_eq!(strings(&policy["spec"]["policyTypes"]), ["Ingress", "Egress"]);
    }
}

const PODS: [&str; 5] = ["coordinator", "worker-0", "worker-1", "worker-2", "worker-3"];

/// Five pods: no file system that two of them see, addresses and names of their own, nobody is root.
struct Cluster<'a> {
    scene: &'a Scene,
    _network: Network,
}

fn run(program: &str, arguments: &[&str]) {
    let ended = Command::new(program).args(arguments).status().expect("it runs");
    assert!(ended.success(), "{program} {arguments:?}");
}

impl<'a> Cluster<'a> {
    fn new(scene: &'a Scene) -> Option<Self> {
        let network = Network::new("thanos-pods", "10.213.88", &PODS)?;
        let make = |name: &str| fs::create_dir_all(scene.path(name)).expect("a folder");
        // Not everywhere where namespaces can be made may a root be laid over another.
        ["probe/upper", "probe/work", "probe/root"].into_iter().for_each(make);
        let probe = "mount -t overlay -o lowerdir=/,upperdir=upper,workdir=work overlay root";
        let probe =
            Command::new("unshare").args(["--mount", "sh", "-c", probe]).current_dir(scene.path("probe")).output();
        if !probe.is_ok_and(|probe| probe.status.success()) {
            return None;
        }
        scene.coord(&["credentials", "secret"]).expect(0);
        fs::write(scene.path("hosts"), "127.0.0.1 localhost\n10.213.88.2 thanos-coordinator\n").expect("written");
        ["config", "runs", "worker-secret", "bin"].into_iter().for_each(make);
        PODS.iter().for_each(|pod| make(&format!("packs/{pod}")));
        let small = "extends: digits_table\ntrain: {epochs: 4}\ncheckpoint: {every_steps: 10}\n";
        fs::write(scene.path("config/experiment.yaml"), small).expect("written");
        for name in ["ca.pem", "token"] {
            fs::copy(scene.path("secret").join(name), scene.path("worker-secret").join(name)).expect(name);
        }
        for name in ["thanos-coord", "thanos-worker"] {
            fs::copy(program(name), scene.path("bin").join(name)).expect(name);
        }
        let all = scene.path("").display().to_string();
        run("chown", &["-R", "10001:10001", &all]);
        run("chmod", &["755", &all]);
        Some(Self { scene, _network: network })
    }

    /// Starts a pod as its manifest says; of the overlay without a shared volume, so workers have no /runs.
    fn start(&self, pod_name: &str) -> Running {
        let is_worker = pod_name != "coordinator";
        let pod = pod(if is_worker { "base/workers.yaml" } else { "base/coordinator.yaml" });
        let container = &pod["containers"][0];
        let variables =
            BTreeMap::from([("WORKER_INDEX", pod_name.rsplit('-').next().unwrap_or_default()), ("CORES", "1")]);
        let known = |text: &str| {
            variables.iter().fold(text.to_owned(), |text, (name, value)| text.replace(&format!("$({name})"), value))
        };
        let path = |name: &str| self.scene.path(name).display().to_string();
        let packs = format!("/packs={}", path(&format!("packs/{pod_name}")));
        let volumes = match is_worker {
            true => vec![format!("/credentials={}", path("worker-secret")), packs],
            false => vec![
                format!("/credentials={}", path("secret")),
                format!("/config={}", path("config")),
                format!("/runs={}", path("runs")),
                packs,
            ],
        };
        let env = container["env"].as_sequence().into_iter().flatten();
        let env = env.filter_map(|one| {
            let name = one["name"].as_str()?;
            let value =
                variables.get(name).map(|value| (*value).to_owned()).or_else(|| one["value"].as_str().map(known))?;
            Some(format!("{name}={value}"))
        });
        let script = root().join("tests/pod.sh").display().to_string();
        let mut arguments = vec![script, pod_name.into(), path(pod_name), path("hosts"), path("bin"), libtorch()];
        arguments.extend(volumes);
        arguments.push("--".into());
        arguments.extend(env);
        arguments.extend(strings(&container["command"]));
        arguments.extend(strings(&container["args"]).iter().map(|argument| known(argument)));
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        self.scene.spawn_program(Path::new("sh"), pod_name, &arguments, &[])
    }
}

/// The folder of libtorch that the worker was linked with.
fn libtorch() -> String {
    let told = Command::new("ldd").arg(program("thanos-worker")).output().expect("ldd");
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    let line = told.lines().find(|line| line.contains("libtorch_cpu")).expect("it is linked");
    let file = line.split("=> ").nth(1).and_then(|rest| rest.split(' ').next()).expect("a path");
    Path::new(file).parent().expect("a folder").display().to_string()
}

#[test]
fn the_pods_processes_train_without_a_shared_file_system() {
    let scene = Scene::new();
    let Some(cluster) = Cluster::new(&scene) else {
        tell("skipped: no namespaces or overlays can be made here (it needs root)");
        return;
    };
    let start_all = || PODS.map(|pod| cluster.start(pod));
    let [mut coordinator, workers @ ..] = start_all();
    let run = scene.path("runs/run");
    coordinator.wait_for_steps("runs/run", 25);
    let (ca, scrape) =
        (scene.path("secret/ca.pem"), fs::read_to_string(scene.path("secret/scrape-token")).expect("made"));
    let status = ("10.213.88.2:9464", thanos_proto::COORDINATOR_NAME);
    // As the probes and Prometheus ask.
    assert_eq!(https(&ca, status, "/healthz", ""), "200 alive");
    assert_eq!(https(&ca, status, "/readyz", ""), "200 training");
    assert_eq!(https(&ca, status, "/metrics", ""), "401");
    let targets = https(&ca, status, "/sd", scrape.trim());
    assert!(targets.contains("10.213.88.5:9465"), "{targets}");
    let worker = ("10.213.88.5:9465", "10.213.88.5");
    assert_eq!(https(&ca, worker, "/healthz", ""), "200 alive");
    assert!(https(&ca, worker, "/metrics", scrape.trim()).starts_with("200 # HELP"));
    // The pod is deleted: all stop at a common step, and other pods take their places.
    send(coordinator.pid(), Signal::SIGTERM);
    let told = coordinator.wait().expect(75).stderr;
    assert!(told.contains("stopping at a common step: SIGTERM"), "{told}");
    for worker in workers {
        worker.wait().expect(75);
    }
    let [coordinator, workers @ ..] = start_all();
    let told = coordinator.wait().expect(0).stdout;
    assert!(told.contains("\nthanos ") && told.contains("cnce + cae"), "{told}");
    for worker in workers {
        let told = worker.wait().expect(0).stderr;
        assert!(told.contains("/runs/run is not seen here: checkpoints go to the coordinator"), "{told}");
    }
    let joined: Vec<String> = lines(&run, "events.jsonl")
        .iter()
        .filter(|event| event["event"] == "joined")
        .map(|event| format!("{} {}", event["worker"], event["host"]))
        .collect();
    assert!(joined.contains(&"\"worker-3\" \"worker-3\"".to_owned()), "{joined:?}");
}

/// What `render` prints is what kustomize builds, but for the experiment.
#[test]
fn rendered_manifests_are_those_of_the_overlay() {
    let Some(kubectl) = tool("kubectl") else {
        tell("skipped: kubectl is not installed");
        return;
    };
    let built = Command::new(&kubectl).arg("kustomize").arg(folder().join("overlays/cpu")).output().expect("it runs");
    let scene = Scene::new();
    let arguments = ["render", "kubernetes", "--image", "registry.example/thanos:cpu", "digits_table"];
    let rendered = scene.coord(&arguments).expect(0).stdout;
    let parsed = |text: &str| -> BTreeMap<(String, String), Value> {
        let documents = serde_yaml::Deserializer::from_str(text);
        let documents = documents.map(|one| -> Value { serde::Deserialize::deserialize(one).expect("YAML") });
        let named = |one: Value| {
            let kind = one["kind"].as_str().expect("a kind").to_owned();
            ((kind, one["metadata"]["name"].as_str().expect("a name").to_owned()), one)
        };
        documents.map(named).filter(|((kind, _), _)| kind != "ConfigMap").collect()
    };
    // The name of a ConfigMap has a hash of its content.
    let text = String::from_utf8_lossy(&built.stdout).into_owned();
    let hashed =
        text.split_whitespace().find(|word| word.starts_with("thanos-experiment-")).expect("a hash").to_owned();
    let (rendered, built) = (parsed(&rendered), parsed(&text.replace(&hashed, "thanos-experiment")));
    assert_eq!(rendered.keys().collect::<Vec<_>>(), built.keys().collect::<Vec<_>>());
    for (name, one) in &rendered {
        assert_eq!(one, &built[name], "{name:?}");
    }
}
