//! Exactly once: the ledger has every step once, and the samples of an epoch's steps are the
//! training images, each once, a short last batch included unless `data.drop_last` says otherwise.

use std::collections::BTreeSet;
use thanos_configs::{EpochOrder, samples_sha256, split_train_validation};
use thanos_tests::{Scene, lines, losses};

const IMAGES: u64 = 1437;

fn check(scene: &Scene, drop_last: bool, steps_per_epoch: u64, images_per_epoch: u64) {
    let name = format!("drop-{drop_last}");
    let drop = format!("data.drop_last={drop_last}");
    scene
        .launch(
            &name,
            2,
            &[
                "digits_supcon",
                "train.epochs=3",
                "train.batch_size=128",
                "seed=5",
                "rows=[]",
                &drop,
            ],
        )
        .expect(0);
    let run_dir = scene.path(&name);
    assert_eq!(losses(&run_dir, "supcon").len() as u64, 3 * steps_per_epoch);
    let train = split_train_validation(IMAGES, 0.1).train;
    let steps = lines(&run_dir, "steps.jsonl");
    for epoch in 0..3 {
        let order = EpochOrder::new(&train, 5, epoch, 128, drop_last);
        let lines: Vec<_> = steps.iter().filter(|line| line["epoch"] == epoch).collect();
        assert_eq!((order.steps(), lines.len() as u64), (steps_per_epoch, steps_per_epoch));
        let mut seen = BTreeSet::new();
        for (step, line) in lines.iter().enumerate() {
            let batch = order.batch(step as u64);
            assert_eq!(line["images"], batch.len() as u64);
            assert_eq!(line["samples_sha256"], samples_sha256(batch), "epoch {epoch}, step {step}");
            assert!(
                batch.iter().all(|sample| seen.insert(*sample)),
                "a sample twice in epoch {epoch}"
            );
        }
        assert_eq!(seen.len() as u64, images_per_epoch);
        assert!(seen.is_subset(&train.iter().copied().collect()));
    }
}

/// 1,437 x 0.9 = 1,293 training images: ten batches of 128, and one of 13.
#[test]
fn every_step_once_and_every_sample_once() {
    let scene = Scene::new();
    check(&scene, false, 11, 1293);
    check(&scene, true, 10, 1280);
}
