//! What is handed to the journal is written in order. (Disks that fail are in the end-to-end
//! tests.)

use super::*;
use crate::run::test_step;
use crate::run_dir::ledger::read_steps;
use std::collections::BTreeMap;
use std::path::Path;

fn journal(run_dir: &Path) -> (Journal, mpsc::Receiver<Event>) {
    let (events, happened) = mpsc::channel(64);
    let checkpoints = Checkpoints {
        run_dir: run_dir.into(),
        run: "run".into(),
        config_digest: "digest".into(),
        keep_last: 2,
        data: None,
        total_steps: BTreeMap::new(),
    };
    let ledger = Ledger::open(run_dir).expect("new");
    (
        Journal::start(ledger, checkpoints, (Sessions::default(), events)).expect("a thread"),
        happened,
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn steps_are_written_in_order_and_a_finished_journal_has_them_all() {
    let folder = tempfile::tempdir().expect("a folder");
    let (journal, _happened) = journal(folder.path());
    for number in 0..100 {
        journal.carry_out(Effect::Record(test_step("a", number, 1)));
    }
    journal.event("ended", Value::Null);
    assert_eq!(journal.finish(Duration::from_secs(5)).await, None);
    let steps: Vec<u64> =
        read_steps(folder.path()).expect("whole").iter().map(|line| line.step).collect();
    assert_eq!(steps, (0..100).collect::<Vec<u64>>());
}
