//! Runs that differ in their seed, and runs that differ in keys.

use super::*;
use thanos_formats::DataIdentity;
use thanos_proto::StageResult;

/// A run of `digits_thanos` whose probe has this accuracy, as a share.
fn run(overrides: &[&str], fine: f64) -> RunResults {
    let overrides: Vec<String> = overrides.iter().map(|&text| text.to_owned()).collect();
    let plan = Plan::from_preset("digits_thanos", &overrides).expect("valid");
    let config = plan.config().clone();
    let data = DataIdentity { train: "t".into(), test: "e".into(), raw_stamp: None };
    let identity = Identity {
        id: "r".into(),
        preset: config.name.clone(),
        seed: config.seed,
        data: Some(data),
        ..Identity::default()
    };
    let stage = |stage: &str, fine| StageResult {
        stage: stage.into(),
        seconds: 1.0,
        validation_accuracy: 0.5,
        coarse_test_accuracy: 0.9,
        fine_test_accuracy: fine,
        knn_fine_accuracy: 0.75,
        cosine_within_coarse: Some(0.9),
        cosine_within_fine: None,
        cosine_between_views: 1.0,
        data_wait_seconds: 0.0,
    };
    let stages = [stage("cnce", None), stage("cae", None), stage("transfer_thanos", Some(fine))];
    let results = Results::new(&identity, &plan, &stages);
    RunResults { path: format!("runs/{}-{fine}", config.seed).into(), identity, config, results }
}

#[test]
fn runs_that_differ_in_their_seed_are_one_group() {
    let runs = [
        run(&["seed=2"], 0.98),
        run(&["seed=0"], 0.94),
        run(&["seed=1", "log.tensorboard=false"], 0.96),
    ];
    let table = RunTable::new(&runs);
    assert_eq!(
        (table.groups.len(), table.differing_keys.len(), table.paired_differences.len()),
        (1, 0, 0)
    );
    let group = &table.groups[0];
    assert_eq!((group.label.as_str(), &group.seeds), ("digits_thanos", &vec![0, 1, 2]));
    let fine = &group.rows[0].measures["fine_test_accuracy"];
    assert_eq!(
        (fine.n, fine.mean, fine.sd, &fine.values),
        (3, 96.0, Some(2.0), &vec![94.0, 96.0, 98.0])
    );
    assert!(!group.rows[0].measures.contains_key("cosine_within_fine"), "no run has it");
    let text = table.to_string();
    for part in ["digits_thanos: 3 runs, seeds 0 1 2", "96.00 ± 2.00", "0.900 ± 0.000", "n/a"] {
        assert!(text.contains(part), "no `{part}` in\n{text}");
    }
}

#[test]
fn groups_are_compared_over_the_seeds_that_both_have() {
    let hot = "objective.temperature=0.9";
    let runs = [
        run(&["seed=0"], 0.94),
        run(&["seed=1"], 0.96),
        run(&["seed=0", hot], 0.95),
        run(&["seed=1", hot], 0.98),
        run(&["seed=7", hot], 0.10),
    ];
    let table = RunTable::new(&runs);
    let labels: Vec<&str> = table.groups.iter().map(|group| group.label.as_str()).collect();
    assert_eq!(labels, ["objective.temperature=0.5", "objective.temperature=0.9"]);
    assert_eq!(table.differing_keys.len(), 1);
    assert_eq!(table.differing_keys[0].values, [Value::from(0.5), Value::from(0.9)]);
    let [difference] = &table.paired_differences[..] else {
        panic!("{:?}", table.paired_differences)
    };
    let fine = &difference.measures["fine_test_accuracy"];
    assert_eq!(fine.summary.values, [1.0, 2.0]);
    // R: t.test(c(1, 2))$conf.int
    let [low, high] = fine.confidence_interval_95.expect("two pairs");
    assert!(
        (low + 4.853_102_368).abs() < 1e-6 && (high - 7.853_102_368).abs() < 1e-6,
        "{low} {high}"
    );
    let text = table.to_string();
    for part in [
        "0.5 | 0.9",
        "+1.50 [-4.85, +7.85]",
        "thanos: objective.temperature=0.9 - objective.temperature=0.5",
    ] {
        assert!(text.contains(part), "no `{part}` in\n{text}");
    }
}

#[test]
fn csv_and_latex_hold_the_same_numbers() {
    let runs = [run(&["seed=0"], 0.94), run(&["seed=1"], 0.96), run(&["seed=0", "name=a_b"], 0.95)];
    let table = RunTable::new(&runs);
    let csv = table.to_csv();
    assert!(
        csv.starts_with("kind,group,minus,method,measure,n,mean,sd,ci95_low,ci95_high,seeds\n"),
        "{csv}"
    );
    let line = "mean,digits_thanos,,thanos,fine_test_accuracy,2,95,1.4142135623730951,,,0 1\n";
    assert!(csv.contains(line), "{csv}");
    assert!(
        csv.contains("paired_difference,a_b,digits_thanos,thanos,fine_test_accuracy,1,1,,,,\n"),
        "{csv}"
    );
    let latex = table.to_latex();
    for part in [
        "digits\\_thanos & thanos & 2 & $95.00 \\pm 1.41$",
        "a\\_b & thanos & 1 & $95.00$",
        " & -- & ",
    ] {
        assert!(latex.contains(part), "no `{part}` in\n{latex}");
    }
}

#[test]
fn a_run_is_complete_with_all_stages_of_the_same_plan() {
    let finished = run(&["seed=1"], 0.9);
    let check = |overrides: &[&str], expected: bool| {
        let overrides: Vec<String> = overrides.iter().map(|&text| text.to_owned()).collect();
        let plan = Plan::from_preset("digits_thanos", &overrides).expect("valid");
        assert_eq!(finished.is_complete(&plan), expected, "{overrides:?}");
    };
    check(&["seed=1"], true);
    check(&["seed=1", "checkpoint.keep_last=7"], true);
    check(&["seed=2"], false);
    check(&["seed=1", "train.epochs=99"], false);
    let mut partial = finished.clone();
    partial.results.rows.clear();
    assert!(
        !partial
            .is_complete(&Plan::from_preset("digits_thanos", &["seed=1".into()]).expect("valid"))
    );
}
