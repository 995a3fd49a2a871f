//! What `render kubernetes` writes for given numbers, names and sites.

use super::*;
use crate::exit::EXIT_USAGE;
use std::collections::BTreeMap;

fn setting(nodes: usize, gpus: usize) -> Setting<'static> {
    Setting {
        name: "b".parse().expect("a name"),
        image: "r/thanos:1",
        api: Api::Job,
        numbers: Numbers { nodes, gpus, grace: Duration::from_secs(200) },
        data: None,
        site: Site::default(),
    }
}

fn rendered(preset: &str, overrides: &[&str], setting: &Setting<'_>) -> Vec<Value> {
    let overrides: Vec<String> = overrides.iter().map(|&text| text.into()).collect();
    let plan = Plan::from_preset(preset, &overrides).expect("valid");
    parse(&kubernetes(&plan, setting).expect("known")).expect("YAML")
}

/// The specifications of the two Jobs.
fn jobs(documents: &[Value]) -> [Value; 2] {
    ["b-coordinator", "b-workers"].map(|name| {
        let is_it = |one: &&Value| one["kind"] == "Job" && one["metadata"]["name"] == name;
        documents.iter().find(is_it).expect(name)["spec"].clone()
    })
}

fn variables(job: &Value) -> BTreeMap<String, String> {
    let entries = job["template"]["spec"]["containers"][0]["env"].as_sequence().expect("variables");
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    entries.iter().map(|one| (text(&one["name"]), text(&one["value"]))).collect()
}

#[test]
fn a_worker_for_each_gpu_of_each_pod() {
    let documents = rendered("digits_cae", &[], &setting(2, 8));
    let [coordinator, workers] = jobs(&documents);
    let of = |job: &Value, name: &str| variables(job)[name].clone();
    assert_eq!(
        (of(&coordinator, "NODES"), of(&coordinator, "WORKERS_PER_NODE")),
        ("2".into(), "8".into())
    );
    assert_eq!((of(&workers, "WORKERS"), &workers["completions"]), ("8".into(), &2.into()));
    let container = &workers["template"]["spec"]["containers"][0];
    let expected: Value =
        serde_yaml::from_str("{cpu: '32', memory: 128Gi, nvidia.com/gpu: 8}").expect("YAML");
    // Quality of service: Guaranteed.
    assert_eq!(
        (&container["resources"]["limits"], &container["resources"]["requests"]),
        (&expected, &expected)
    );
    let volumes = workers["template"]["spec"]["volumes"].as_sequence().expect("volumes");
    assert!(volumes.iter().any(|one| one["emptyDir"]["sizeLimit"] == "8Gi"), "{volumes:?}");
}

#[test]
fn the_numbers_of_a_stop_agree() {
    let [coordinator, workers] = jobs(&rendered("digits_cae", &[], &setting(3, 0)));
    assert_eq!(coordinator["template"]["spec"]["terminationGracePeriodSeconds"], 230);
    assert_eq!(workers["template"]["spec"]["terminationGracePeriodSeconds"], 230);
    assert_eq!(
        (&variables(&coordinator)["GRACE"][..], &variables(&workers)["GRACE"][..]),
        ("200s", "220s")
    );
    let plan = Plan::from_preset("digits_cae", &[]).expect("valid");
    let documents = rendered("digits_cae", &[], &setting(3, 0));
    let map = documents.iter().find(|one| one["kind"] == "ConfigMap").expect("a ConfigMap");
    let experiment = map["data"]["experiment.yaml"].as_str().expect("text");
    assert_eq!(
        Plan::from_file(experiment, "experiment.yaml", &[]).expect("valid").digest(),
        plan.digest()
    );
}

/// Two runs in one namespace share no object, and neither selects the pods of the other.
#[test]
fn every_object_and_selector_has_the_name_of_the_run() {
    for api in [Api::Job, Api::Jobset] {
        let with_monitors = || {
            let site = Site { pod_monitors: true, ..Site::default() };
            rendered("digits_cae", &[], &Setting { api, site, ..setting(2, 1) })
        };
        assert_eq!(with_monitors().iter().filter(|one| one["kind"] == "PodMonitor").count(), 2);
        for document in with_monitors() {
            let name = document["metadata"]["name"].as_str().expect("a name");
            assert!(name == "b" || name.starts_with("b-"), "{name}");
            assert_eq!(document["metadata"]["labels"]["app.kubernetes.io/instance"], "b", "{name}");
            check_labels(&document, name);
        }
        let text = serde_yaml::to_string(&with_monitors()).expect("YAML");
        // Left are the program, the product, and the image.
        for word in text.split(|c: char| !c.is_ascii_alphanumeric() && !"-_/:".contains(c)) {
            let is_known = [
                "thanos-coord",
                "thanos-trainer",
                "thanos_trainer",
                "thanos_trainer_workers",
                "r/thanos:1",
            ]
            .contains(&word);
            assert!(is_known || !word.contains("thanos"), "{word}");
        }
    }
}

/// Prometheus asks every worker of a pod, at the port that the worker serves.
#[test]
fn pod_monitors_list_every_worker() {
    for gpus in [0, 1, 3] {
        let site = Site { pod_monitors: true, ..Site::default() };
        let documents = rendered("digits_cae", &[], &Setting { site, ..setting(2, gpus) });
        let [coordinator, workers] = jobs(&documents).map(|job| {
            let ports = job["template"]["spec"]["containers"][0]["ports"]
                .as_sequence()
                .expect("ports")
                .clone();
            let named = ports.iter().filter(|port| {
                port["name"].as_str().is_some_and(|name| name.starts_with("metrics"))
            });
            named
                .map(|port| (port["name"].clone(), port["containerPort"].as_u64().expect("a port")))
                .collect::<Vec<_>>()
        });
        assert_eq!(
            workers.iter().map(|port| port.1).collect::<Vec<_>>(),
            &[9465, 9466, 9467][..gpus.max(1)]
        );
        for (monitor, ports) in
            documents.iter().filter(|one| one["kind"] == "PodMonitor").zip([coordinator, workers])
        {
            let endpoints =
                monitor["spec"]["podMetricsEndpoints"].as_sequence().expect("endpoints");
            let listed: Vec<&Value> = endpoints.iter().map(|endpoint| &endpoint["port"]).collect();
            assert_eq!(listed, ports.iter().map(|port| &port.0).collect::<Vec<_>>());
        }
    }
}

fn check_labels(value: &Value, object: &str) {
    match value {
        Value::Mapping(map) => {
            if map.contains_key("app.kubernetes.io/name") {
                let found = (&map["app.kubernetes.io/name"], &map["app.kubernetes.io/instance"]);
                assert_eq!(found, (&"thanos-trainer".into(), &"b".into()), "{object}");
            }
            map.iter().for_each(|(_, value)| check_labels(value, object));
        }
        Value::Sequence(entries) => entries.iter().for_each(|value| check_labels(value, object)),
        _ => {}
    }
}

#[test]
fn a_jobset_has_the_pods_of_the_jobs_and_the_queue() {
    let [coordinator, workers] = jobs(&rendered("digits_cae", &[], &setting(2, 8)));
    let site = Site { queue: Some("team".into()), ..Site::default() };
    let documents =
        rendered("digits_cae", &[], &Setting { api: Api::Jobset, site, ..setting(2, 8) });
    let jobset = documents.iter().find(|one| one["kind"] == "JobSet").expect("a JobSet");
    assert!(documents.iter().all(|one| one["kind"] != "Job"));
    for (index, job) in [coordinator, workers].iter().enumerate() {
        let replicated = &jobset["spec"]["replicatedJobs"][index]["template"]["spec"];
        assert_eq!(
            (&replicated["template"], &replicated["suspend"]),
            (&job["template"], &Value::Null)
        );
        assert_eq!(
            (&replicated["ttlSecondsAfterFinished"], &job["ttlSecondsAfterFinished"]),
            (&Value::Null, &604_800.into())
        );
    }
    assert_eq!(
        (&jobset["metadata"]["name"], &jobset["spec"]["network"]["subdomain"]),
        (&"b".into(), &"b".into())
    );
    let queued =
        (&jobset["metadata"]["labels"]["kueue.x-k8s.io/queue-name"], &jobset["spec"]["suspend"]);
    assert_eq!(queued, (&"team".into(), &true.into()));
}

#[test]
fn the_site_is_in_the_pods() {
    let site = Site {
        priority_class: Some("high".into()),
        tolerations: vec!["pool=thanos:NoSchedule".parse().expect("a toleration")],
        node_selector: vec![("pool".into(), "thanos".into())],
        storage_class: Some("fast".into()),
        shared_volume: true,
        image_pull_secrets: vec!["thanos".into()],
        pod_monitors: false,
        resources: Resources { cpus: Some(3), memory: Some("6Gi".parse().expect("memory")) },
        queue: None,
    };
    let digest = "r/thanos@sha256:0123";
    let documents = rendered("digits_cae", &[], &Setting { site, image: digest, ..setting(2, 2) });
    let [coordinator, workers] = jobs(&documents).map(|job| job["template"]["spec"].clone());
    for pod in [&coordinator, &workers] {
        assert_eq!(
            (&pod["priorityClassName"], &pod["imagePullSecrets"][0]["name"]),
            (&"high".into(), &"thanos".into())
        );
        assert_eq!(pod["containers"][0]["image"], digest);
        let last =
            pod["tolerations"].as_sequence().and_then(|all| all.last()).expect("a toleration");
        assert_eq!((&last["key"], &last["value"]), (&"pool".into(), &"thanos".into()));
    }
    assert_eq!(
        workers["tolerations"].as_sequence().map(Vec::len),
        Some(2),
        "its own, and that of GPUs"
    );
    assert_eq!(
        (&workers["nodeSelector"]["pool"], &coordinator["nodeSelector"]),
        (&"thanos".into(), &Value::Null)
    );
    let limits = &workers["containers"][0]["resources"]["limits"];
    assert_eq!((&limits["cpu"], &limits["memory"]), (&"6".into(), &"12Gi".into()));
    let claims: Vec<&Value> =
        documents.iter().filter(|one| one["kind"] == "PersistentVolumeClaim").collect();
    assert_eq!(claims.len(), 2);
    for claim in claims {
        assert_eq!(
            (&claim["spec"]["storageClassName"], &claim["spec"]["accessModes"][0]),
            (&"fast".into(), &"ReadWriteMany".into())
        );
    }
    let claims = workers["volumes"]
        .as_sequence()
        .expect("volumes")
        .iter()
        .filter_map(|one| one["persistentVolumeClaim"]["claimName"].as_str());
    assert_eq!(claims.collect::<Vec<_>>(), ["b-packs", "b-runs"]);
}

#[test]
fn raw_data_is_mounted_where_the_coordinator_reads_it() {
    let volume = DataVolume::Claim("mnist".into());
    let with_data = Setting { data: Some(&volume), ..setting(2, 0) };
    let [coordinator, workers] = jobs(&rendered("mnist_cae", &["data.dir=/data"], &with_data));
    let has = |job: &Value| {
        let volumes = job["template"]["spec"]["volumes"].as_sequence().expect("volumes");
        volumes.iter().any(|volume| volume["persistentVolumeClaim"]["claimName"] == "mnist")
    };
    assert_eq!((has(&coordinator), has(&workers)), (true, false));
    let plan = Plan::from_preset("mnist_cae", &["data.dir=/data".into()]).expect("valid");
    assert!(kubernetes(&plan, &setting(2, 0)).is_err_and(|fatal| fatal.exit_code == EXIT_USAGE));
}
