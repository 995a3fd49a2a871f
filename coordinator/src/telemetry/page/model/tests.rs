//! The model of a run directory against ledgers as they are written.

use super::*;
use crate::run::test_step;
use crate::run_dir::ledger::Ledger;
use std::collections::HashMap;
use thanos_proto::StepDone;

fn step(stage: &str, number: u64) -> StepDone {
    let loss = number as f64;
    StepDone {
        epoch: number / 4,
        loss,
        losses: BTreeMap::from([("supcon".into(), loss)]),
        ..test_step(stage, number, 1)
    }
}

/// A ledger with these steps, and an open one to continue.
fn ledger(folder: &Path, steps: u64) -> Ledger {
    let mut ledger = Ledger::open(folder).expect("new");
    for number in 0..steps {
        ledger.step(&step("supcon", number)).expect("written");
    }
    ledger.event("began", &json!({"generation": 1, "ranks": ["a"]})).expect("written");
    ledger
}

fn steps_of(new: &Map<String, Value>) -> Value {
    new["series"]["supcon"]["step"].clone()
}

fn stages(model: &Model) -> Vec<(String, String, Value)> {
    let state = model.state(&LiveView::default());
    let stages = state["stages"].as_array().expect("a list");
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    stages
        .iter()
        .map(|stage| (text(&stage["name"]), text(&stage["state"]), stage["total"].clone()))
        .collect()
}

#[test]
fn a_reader_gets_what_it_lacks_and_everything_once_the_ledger_was_cut() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut ledger = ledger(folder.path(), 3);
    let mut model = Model::new(folder.path());
    model.read().expect("readable");
    let first = model.since(None);
    assert_eq!((&first["reset"], steps_of(&first)), (&json!(true), json!([0, 1, 2])));
    assert_eq!(first["events"].as_array().map(Vec::len), Some(1));
    let cursor = Cursor::parse(first["cursor"].as_str().expect("text")).expect("as it was written");
    assert_eq!(cursor, model.cursor());
    ledger.step(&step("supcon", 3)).expect("written");
    model.read().expect("readable");
    let next = model.since(Some(&cursor));
    assert_eq!((&next["reset"], steps_of(&next)), (&json!(false), json!([3])));
    assert_eq!(next["events"], json!([]));
    // As another coordinator sees it, for a reader of this one.
    let mut restarted = Model::new(folder.path());
    restarted.read().expect("readable");
    assert_eq!(restarted.since(Some(&cursor)), next);
    ledger.cut(|line| line.step < 2).expect("cut");
    ledger.step(&step("supcon", 2)).expect("written");
    ledger.step(&step("supcon", 3)).expect("written");
    for model in [&mut model, &mut restarted] {
        model.read().expect("readable");
        let all = model.since(Some(&cursor));
        assert_eq!((&all["reset"], steps_of(&all)), (&json!(true), json!([0, 1, 2, 3])));
    }
}

#[test]
fn a_stage_is_waiting_active_complete_and_reopened() {
    let folder = tempfile::tempdir().expect("a folder");
    let plan = Plan::from_preset("digits_supcon", &["train.epochs=3".into()]).expect("valid");
    let names: Vec<String> = plan.stages().iter().map(|stage| stage.name().to_owned()).collect();
    assert_eq!(names[0], "supcon");
    fs::write(folder.path().join("config.yaml"), thanos_configs::to_yaml(plan.config()))
        .expect("written");
    let mut ledger = ledger(folder.path(), 3);
    let mut model = Model::new(folder.path());
    let mut check = |first: (&str, Value), second: &str| {
        model.read().expect("readable");
        let found = stages(&model);
        assert_eq!(
            (found[0].1.as_str(), &found[0].2, found[1].1.as_str()),
            (first.0, &first.1, second)
        );
    };
    check(("active", Value::Null), "waiting");
    ledger
        .step(&step("supcon", 3))
        .and_then(|()| ledger.step(&step("supcon", 4)))
        .expect("written");
    check(("active", json!(12)), "waiting");
    ledger.event("stage_complete", &json!({"stage": "supcon", "seconds": 1.0})).expect("written");
    check(("complete", json!(5)), "active");
    ledger.event("reconfigured", &json!({"changes": [], "superseded": null})).expect("written");
    check(("complete", json!(5)), "active");
    ledger
        .event("reconfigured", &json!({"superseded": "1", "reopened": "supcon"}))
        .expect("written");
    check(("active", json!(12)), "waiting");
}

#[test]
fn evaluations_are_by_epoch_and_thinned_and_events_are_the_newest() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut ledger = ledger(folder.path(), 1);
    let evaluated = |epoch: u64, accuracy: f64| {
        json!({"stage": "supcon", "epoch": epoch,
    "validation_accuracy": accuracy, "best": false, "measure": "knn"})
    };
    ledger.event("evaluated", &evaluated(0, 0.25)).expect("written");
    ledger.event("evaluated", &evaluated(0, 0.5)).expect("written");
    let mut model = Model::new(folder.path());
    model.read().expect("readable");
    let once = model.since(None)["evaluations"]["supcon"].clone();
    assert_eq!(once, json!([{"epoch": 0, "accuracy": 0.5, "best": false, "measure": "knn"}]));
    let cursor = model.cursor();
    assert_eq!(model.since(Some(&cursor))["evaluations"], json!({}));
    for epoch in 1..3000 {
        ledger.event("evaluated", &evaluated(epoch, 0.5)).expect("written");
        ledger.event("checkpoint", &json!({"stage": "supcon", "step": epoch})).expect("written");
    }
    model.read().expect("readable");
    let new = model.since(Some(&cursor));
    let evaluations = new["evaluations"]["supcon"].as_array().expect("a list");
    assert!(
        (MAX_EVALUATIONS / 2..=MAX_EVALUATIONS).contains(&evaluations.len()),
        "{}",
        evaluations.len()
    );
    let events = new["events"].as_array().expect("a list");
    assert_eq!((events.len(), &events[MAX_EVENTS - 1]["step"]), (MAX_EVENTS, &json!(2999)));
    let state = model.state(&LiveView::default());
    assert_eq!(
        (&state["checkpoint_count"], state["checkpoints"].as_array().map(Vec::len)),
        (&json!(2999), Some(20))
    );
}

#[test]
fn the_time_that_is_left_is_that_of_the_stage_in_training() {
    let folder = tempfile::tempdir().expect("a folder");
    ledger(folder.path(), 4);
    fs::write(folder.path().join("events.jsonl"), "no JSON\n").expect("written");
    let mut model = Model::new(folder.path());
    model.read().expect("readable");
    let totals = BTreeMap::from([("supcon".to_owned(), 12)]);
    let live = LiveView {
        totals,
        steps_per_second: Some(2.0),
        workers: HashMap::new(),
        ..LiveView::default()
    };
    let state = model.state(&live);
    assert_eq!((&state["eta_seconds"], &state["damaged"]), (&json!(4.0), &json!(1)));
    assert_eq!(model.state(&LiveView::default())["eta_seconds"], Value::Null);
}
