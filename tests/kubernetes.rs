//! The manifests of deploy/kubernetes: every combination of components builds and is valid,
//! `render` writes what kustomize builds, pods are restricted, selectors name one run, and exit
//! codes, ports and periods of grace agree with the programs. What the pods' processes do is in
//! `pods`.

use crate::print_line;
use serde_yaml::Value;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use thanos_tests::{Scene, root};

/// Components in the order that README.md gives, with the options of `render` for the same.
const CHANGES: [(&str, &[&str]); 3] = [
    ("gpu", &["--gpus", "1"]),
    ("data", &["--data", "thanos-data"]),
    ("shared-volume", &["--shared-volume"]),
];

fn folder() -> PathBuf {
    root().join("deploy/kubernetes")
}

fn parse(text: &str) -> Vec<Value> {
    serde_yaml::Deserializer::from_str(text)
        .map(|one| serde::Deserialize::deserialize(one).expect("YAML"))
        .collect()
}

/// The documents of a file of manifests.
fn documents(file: &str) -> Vec<Value> {
    parse(&fs::read_to_string(folder().join(file)).expect(file))
}

fn find<'a>(documents: &'a [Value], kind: &str) -> &'a Value {
    documents.iter().find(|one| one["kind"] == kind).unwrap_or_else(|| panic!("there is no {kind}"))
}

/// The specification of the pods of one of the two Jobs.
fn pod(file: &str) -> Value {
    find(&documents(file), "Job")["spec"]["template"]["spec"].clone()
}

fn strings(value: &Value) -> Vec<String> {
    value
        .as_sequence()
        .into_iter()
        .flatten()
        .filter_map(|one| Some(one.as_str()?.to_owned()))
        .collect()
}

/// A variable of the pod's container.
fn variable(pod: &Value, name: &str) -> String {
    let variables = pod["containers"][0]["env"].as_sequence().expect("variables");
    let found =
        variables.iter().find(|one| one["name"] == name).unwrap_or_else(|| panic!("no {name}"));
    found["value"].as_str().expect("text").to_owned()
}

/// Where CI or a user has put a tool.
fn tool(name: &str) -> Option<OsString> {
    let cache =
        std::env::var("HOME").unwrap_or_default() + "/.cache/thanos/kubernetes-validate/bin/";
    let works = |path: &String| {
        Command::new(path).arg("--help").output().is_ok_and(|ran| ran.status.success())
    };
    [cache + name, name.to_owned()].into_iter().find(works).map(Into::into)
}

/// A Python that has the schemas.
fn schemas() -> Option<OsString> {
    let python = tool("python")?;
    let has = Command::new(&python)
        .args(["-c", "import kubernetes_validate, kubeflow_trainer_api"])
        .output();
    has.is_ok_and(|has| has.status.success()).then_some(python)
}

/// A combination of components, and what is rendered for it.
struct Combination {
    components: Vec<&'static str>,
    options: Vec<&'static str>,
}

impl Combination {
    /// All of them: each change or not, Jobs or a JobSet, queued or not.
    fn all() -> Vec<Self> {
        (0..1 << (CHANGES.len() + 2)).map(Self::number).collect()
    }

    fn number(number: usize) -> Self {
        let has = |bit: usize| number >> bit & 1 == 1;
        let mut combination = Self { components: Vec::new(), options: Vec::new() };
        for (bit, (component, options)) in CHANGES.into_iter().enumerate() {
            if has(bit) {
                combination.components.push(component);
                combination.options.extend(options);
            }
        }
        let jobset = has(CHANGES.len());
        combination.options.extend(["--api", if jobset { "jobset" } else { "job" }]);
        if jobset {
            combination.components.push("jobset");
        }
        if has(CHANGES.len() + 1) {
            combination.components.push("kueue");
            combination.options.extend(["--queue", "thanos"]);
        }
        combination
    }

    fn name(&self) -> String {
        format!("base+{}", self.components.join("+"))
    }

    /// What kustomize builds.
    fn build(&self, kubectl: &OsString, scene: &Scene) -> String {
        let place = scene.path(&self.name());
        fs::create_dir_all(&place).expect("a folder");
        let components: Vec<PathBuf> =
            self.components.iter().map(|name| folder().join("components").join(name)).collect();
        // kustomize takes relative paths only.
        let up = "../".repeat(place.canonicalize().expect("it exists").components().count());
        let relative = |path: PathBuf| format!("{up}{}", path.display());
        let list: Vec<String> =
            components.into_iter().map(|path| format!("  - {}\n", relative(path))).collect();
        let text = format!(
            "resources:\n  - {}\ncomponents:\n{}",
            relative(folder().join("base")),
            list.concat()
        );
        let text =
            if self.components.is_empty() { text.replace("components:\n", "") } else { text };
        fs::write(place.join("kustomization.yaml"), text).expect("written");
        kustomize(kubectl, &place)
    }

    /// What `render` writes, with the same name, image and numbers.
    fn render(&self, scene: &Scene) -> String {
        let has = |name: &str| self.components.contains(&name);
        let image =
            if has("gpu") { "registry.example/thanos:cuda" } else { "registry.example/thanos:cpu" };
        let mut arguments = vec!["render", "kubernetes", "--image", image, "--name", "thanos"];
        arguments.extend(&self.options);
        if has("data") {
            arguments.extend(["mnist_cnce", "data.dir=/data"]);
        } else {
            arguments.push("digits_table");
        }
        scene.coord(&arguments).expect(0).stdout
    }
}

fn kustomize(kubectl: &OsString, folder: &std::path::Path) -> String {
    let built = Command::new(kubectl).arg("kustomize").arg(folder).output().expect("it runs");
    assert!(
        built.status.success(),
        "{}: {}",
        folder.display(),
        String::from_utf8_lossy(&built.stderr)
    );
    String::from_utf8(built.stdout).expect("text")
}

/// Objects by kind and name. The order of entries with names is nothing that Kubernetes looks at.
fn objects(text: &str) -> BTreeMap<String, Value> {
    let named = |mut one: Value| {
        sort_entries(&mut one);
        if one["kind"] == "ConfigMap" {
            one["data"] = Value::Null;
        }
        (
            format!(
                "{} {}",
                one["kind"].as_str().expect("a kind"),
                one["metadata"]["name"].as_str().expect("a name")
            ),
            one,
        )
    };
    parse(text).into_iter().map(named).collect()
}

fn sort_entries(value: &mut Value) {
    match value {
        Value::Mapping(map) => {
            for (key, value) in map.iter_mut() {
                sort_entries(value);
                if let (Some("env" | "volumes" | "volumeMounts"), Some(entries)) =
                    (key.as_str(), value.as_sequence_mut())
                {
                    entries.sort_by_key(|entry| {
                        format!("{:?}{:?}", entry["name"], entry["mountPath"])
                    });
                }
            }
        }
        Value::Sequence(entries) => entries.iter_mut().for_each(sort_entries),
        _ => {}
    }
}

/// Every combination of components builds; what `render` writes is the same, and valid.
#[test]
fn every_combination_builds_is_valid_and_is_what_render_writes() {
    let (Some(kubectl), Some(python)) = (tool("kubectl"), schemas()) else {
        print_line(
            "skipped: kubectl, or kubernetes-validate and kubeflow-trainer-api (PyPI), are not \
            installed",
        );
        return;
    };
    let scene = Scene::new();
    let mut files = vec![folder().join("examples/kubeflow-trainer/train-job.yaml")];
    let mut keep = |name: &str, text: &str| {
        assert!(!text.contains("image: thanos\n"), "{name}: an image without a registry");
        let file = scene.path(&format!("{name}.yaml"));
        fs::write(&file, text).expect("written");
        files.push(file);
    };
    for combination in Combination::all() {
        let name = combination.name();
        let (built, rendered) = (combination.build(&kubectl, &scene), combination.render(&scene));
        let (built_objects, rendered_objects) = (objects(&built), objects(&rendered));
        assert_eq!(
            built_objects.keys().collect::<Vec<_>>(),
            rendered_objects.keys().collect::<Vec<_>>(),
            "{name}"
        );
        for (object, one) in &rendered_objects {
            assert_eq!(one, &built_objects[object], "{name}: {object}");
        }
        // Valid is then the other as well.
        keep(&name, &built);
    }
    for example in ["cpu", "gpu", "jobs", "kubeflow-trainer"] {
        keep(example, &kustomize(&kubectl, &folder().join("examples").join(example)));
    }
    let site = "render kubernetes --image r/x@sha256:0 --name b --gpus 8 --queue q \
        --priority-class p --toleration a=b:NoExecute --node-selector pool=gpu --storage-class s \
        --image-pull-secret i --cpus 3 --memory 5Gi digits_table";
    keep("site", &scene.coord(&site.split_whitespace().collect::<Vec<_>>()).expect(0).stdout);
    let ran = Command::new(python)
        .arg(root().join("tests/kubernetes_schemas.py"))
        .args(&files)
        .output()
        .expect("it runs");
    let printed = String::from_utf8_lossy(&ran.stdout).into_owned();
    let wrong: Vec<&str> = printed.lines().filter(|line| line.contains(": ")).collect();
    assert!(
        ran.status.success() && wrong.is_empty(),
        "{wrong:#?}\n{}",
        String::from_utf8_lossy(&ran.stderr)
    );
    let given: usize =
        files.iter().map(|file| parse(&fs::read_to_string(file).expect("a file")).len()).sum();
    assert_eq!(printed.lines().count(), given);
}

/// A TrainJob's run has its name, in the arguments of both containers.
#[test]
fn the_training_runtime_names_the_run_after_its_train_job() {
    let Some(kubectl) = tool("kubectl") else {
        print_line("skipped: kubectl is not installed");
        return;
    };
    let built = parse(&kustomize(&kubectl, &folder().join("examples/kubeflow-trainer")));
    let runtime = &find(&built, "TrainingRuntime")["spec"];
    let jobs = &runtime["template"]["spec"]["replicatedJobs"];
    for job in jobs.as_sequence().expect("jobs") {
        let container = &job["template"]["spec"]["template"]["spec"]["containers"][0];
        let run = container["env"]
            .as_sequence()
            .expect("variables")
            .iter()
            .find(|one| one["name"] == "RUN");
        let label = "metadata.labels['jobset.sigs.k8s.io/jobset-name']";
        assert_eq!(run.expect("RUN")["valueFrom"]["fieldRef"]["fieldPath"], label);
        assert!(
            strings(&container["args"]).iter().any(|argument| argument.contains("$(RUN)")),
            "{container:?}"
        );
    }
    let nodes = jobs[0]["template"]["spec"]["template"]["spec"].clone();
    assert_eq!(
        variable(&nodes, "NODES"),
        runtime["mlPolicy"]["numNodes"].as_u64().expect("a number").to_string()
    );
    let train_job = &documents("examples/kubeflow-trainer/train-job.yaml")[0];
    assert_eq!(
        train_job["spec"]["runtimeRef"]["name"],
        find(&built, "TrainingRuntime")["metadata"]["name"]
    );
}

#[test]
fn pods_are_restricted_and_read_only_their_own_files() {
    for (file, name) in [("base/coordinator.yaml", "coordinator"), ("base/workers.yaml", "worker")]
    {
        let job = find(&documents(file), "Job").clone();
        let pod = &job["spec"]["template"]["spec"];
        let container = &pod["containers"][0];
        let context = &container["securityContext"];
        let yes: &Value = &true.into();
        assert_eq!(
            (&pod["securityContext"]["runAsNonRoot"], &context["readOnlyRootFilesystem"]),
            (yes, yes)
        );
        assert_eq!(
            (&context["allowPrivilegeEscalation"], &pod["automountServiceAccountToken"]),
            (&false.into(), &false.into())
        );
        assert_eq!(strings(&context["capabilities"]["drop"]), ["ALL"]);
        assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
        assert_eq!(pod["securityContext"]["fsGroupChangePolicy"], "OnRootMismatch");
        assert_eq!((&container["name"], &pod["restartPolicy"]), (&name.into(), &"Never".into()));
        let annotations = &job["spec"]["template"]["metadata"]["annotations"];
        assert_eq!(annotations["cluster-autoscaler.kubernetes.io/safe-to-evict"], "false");
        assert_eq!(annotations["karpenter.sh/do-not-disrupt"], "true");
        check_failure_policy(&job["spec"]["podFailurePolicy"]["rules"]);
    }
    let items = &pod("base/workers.yaml")["volumes"][0]["secret"]["items"];
    let keys: Vec<&str> = items
        .as_sequence()
        .expect("items")
        .iter()
        .filter_map(|item| item["key"].as_str())
        .collect();
    assert_eq!(keys, ["ca.pem", "token"], "never the authority's key");
}

/// Failures that a retry repeats, and ends that are not failures.
fn check_failure_policy(rules: &Value) {
    let codes = |rule: usize| -> Vec<u64> {
        let values = rules[rule]["onExitCodes"]["values"].as_sequence().expect("codes");
        values.iter().filter_map(Value::as_u64).collect()
    };
    let permanent = [
        thanos_coord::EXIT_USAGE,
        thanos_coord::EXIT_DATA,
        thanos_worker::EXIT_SOFTWARE,
        thanos_coord::EXIT_NO_PERMISSION,
        thanos_coord::EXIT_CONFIG,
    ];
    assert_eq!(
        (codes(0), &rules[0]["action"]),
        (permanent.map(u64::from).to_vec(), &"FailJob".into())
    );
    assert_eq!(
        (codes(1), &rules[1]["action"]),
        (vec![thanos_coord::EXIT_STOPPED.into()], &"Ignore".into())
    );
    let disrupted = (&rules[2]["onPodConditions"][0]["type"], &rules[2]["action"]);
    assert_eq!(disrupted, (&"DisruptionTarget".into(), &"Ignore".into()));
    // The schemas do not know these words.
    assert!((0..2).all(|rule| rules[rule]["onExitCodes"]["operator"] == "In"));
}

#[test]
fn numbers_of_the_base_agree() {
    let (coordinator, workers) =
        (pod("base/coordinator.yaml"), find(&documents("base/workers.yaml"), "Job").clone());
    assert_eq!(workers["spec"]["completions"], workers["spec"]["parallelism"]);
    let completions = workers["spec"]["completions"].as_u64().expect("a number");
    assert_eq!(variable(&coordinator, "NODES"), completions.to_string());
    let workers = &workers["spec"]["template"]["spec"];
    assert_eq!(variable(&coordinator, "WORKERS_PER_NODE"), variable(workers, "WORKERS"));
    let seconds = |text: String| {
        text.strip_suffix('s').and_then(|text| text.parse::<u64>().ok()).expect("seconds")
    };
    // The coordinator stops the run; then the supervisor of a pod gives up; then the kubelet kills.
    let (stop, give_up) =
        (seconds(variable(&coordinator, "GRACE")), seconds(variable(workers, "GRACE")));
    let kill = workers["terminationGracePeriodSeconds"].as_u64().expect("seconds");
    assert!(stop < give_up && give_up < kill, "{stop} {give_up} {kill}");
    assert_eq!(coordinator["terminationGracePeriodSeconds"], kill);
}

/// A second run in the namespace has other pods than those that this one selects.
#[test]
fn every_selector_names_the_run() {
    let files = ["base/coordinator.yaml", "base/workers.yaml", "base/network-policy.yaml"];
    let mut selectors = 0;
    let mut check = |labels: &Value| {
        selectors += 1;
        let found = (&labels["app.kubernetes.io/name"], &labels["app.kubernetes.io/instance"]);
        assert_eq!(found, (&"thanos-trainer".into(), &"thanos".into()), "{labels:?}");
    };
    for document in files.iter().flat_map(|file| documents(file)) {
        visit(&document, "", &mut |path, value| {
            let selects_pods = path.ends_with("podSelector/matchLabels")
                || path.ends_with("labelSelector/matchLabels");
            if selects_pods || path == "/spec/selector" || path.ends_with("metadata/labels") {
                check(value);
            }
        });
    }
    assert!(selectors >= 15, "{selectors}");
}

/// Calls `act` with every value, and its path.
fn visit(value: &Value, path: &str, act: &mut impl FnMut(&str, &Value)) {
    act(path, value);
    match value {
        Value::Mapping(map) => {
            for (key, value) in map {
                visit(value, &format!("{path}/{}", key.as_str().unwrap_or("?")), act);
            }
        }
        Value::Sequence(entries) => entries.iter().for_each(|value| visit(value, path, act)),
        _ => {}
    }
}

/// Every port that a pod opens, and from where the network policy admits connections.
#[test]
fn the_network_policy_admits_what_the_run_needs() {
    let policies = documents("base/network-policy.yaml");
    for (policy, file) in policies.iter().zip(["base/coordinator.yaml", "base/workers.yaml"]) {
        let ports = pod(file)["containers"][0]["ports"].as_sequence().expect("ports").clone();
        let rules = policy["spec"]["ingress"].as_sequence().expect("rules");
        let open = |port: &Value| {
            rules.iter().any(|rule| rule["ports"][0]["port"] == port["containerPort"])
        };
        assert!(ports.iter().all(open), "{policy:?}");
        assert!(ports.iter().any(|port| port["name"] == "metrics"), "{ports:?}");
        for rule in rules {
            // Only a worker may connect to any port, and only of a worker.
            let component =
                &rule["from"][0]["podSelector"]["matchLabels"]["app.kubernetes.io/component"];
            assert!(
                !rule["ports"].is_null() || (component == "worker" && file.contains("workers")),
                "{rule:?}"
            );
            assert_eq!(rule["from"].as_sequence().map(Vec::len), Some(1), "{rule:?}");
        }
        assert_eq!(strings(&policy["spec"]["policyTypes"]), ["Ingress", "Egress"]);
    }
    // As many workers as `workers --count` allows, a port each.
    let metrics = &policies[1]["spec"]["ingress"][1]["ports"][0];
    let (first, last) = (metrics["port"].as_u64(), metrics["endPort"].as_u64());
    assert_eq!(last.zip(first).map(|(last, first)| last - first + 1), Some(64));
    let dns = &policies[1]["spec"]["egress"][2];
    let ports: Vec<u64> = dns["ports"]
        .as_sequence()
        .expect("ports")
        .iter()
        .filter_map(|one| one["port"].as_u64())
        .collect();
    assert_eq!(
        (ports, &dns["to"][1]["ipBlock"]["cidr"]),
        (vec![53, 53, 5353, 5353], &"169.254.20.10/32".into())
    );
}
