//! One curve: with dropout off, 1, 2, 3 and 4 real worker processes have the same first gradient and the same losses,
//! to float tolerance, also where the batch does not divide evenly and batch norm needs the global statistics.

use crate::tell;
use thanos_tests::{Scene, losses, numbers};

/// Relative deviation of a loss, and of the first gradient in its norm.
const TOLERANCE: f64 = 1e-5;

/// Trains 30 steps of a preset with this many workers; the losses, and Adam's first mean: (1 - 0.9) x the gradient.
fn train(scene: &Scene, preset: &str, stage: &str, workers: usize) -> (Vec<f64>, Vec<f32>) {
    let name = format!("{preset}-{workers}");
    let steps = ["train.max_steps=30", "checkpoint.every_steps=1", "checkpoint.keep_last=100", "rows=[]"];
    // 100 images a step: 3 does not divide them, and the last batch of an epoch has 93.
    let target = [&[preset, "model.dropout=0", "train.batch_size=100"][..], &steps].concat();
    scene.launch(&name, workers, &target).expect(0);
    let run_dir = scene.path(&name);
    let first = run_dir.join(format!("checkpoints/{stage}/step-00000001/optimizer.safetensors"));
    (losses(&run_dir, stage), numbers(&first, "exp_avg/"))
}

fn check(preset: &str, stage: &str) {
    let scene = Scene::new();
    let (alone, gradient) = train(&scene, preset, stage, 1);
    assert_eq!(alone.len(), 30);
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
    let length = norm(&mut gradient.iter().map(|value| f64::from(*value)));
    assert!(length > 1e-3 && gradient.len() > 10_000, "a gradient of length {length}");
    for workers in 2..=4 {
        let (shared, other) = train(&scene, preset, stage, workers);
        assert_eq!((shared.len(), other.len()), (alone.len(), gradient.len()));
        let pairs = gradient.iter().zip(&other);
        let apart = norm(&mut pairs.map(|(left, right)| f64::from(left - right))) / length;
        let worst = alone.iter().zip(&shared).map(|(left, right)| ((left - right) / left).abs()).fold(0.0, f64::max);
        tell(&format!("{preset}, {workers} workers against 1: gradient {apart:.1e}, worst of 30 losses {worst:.1e}"));
        assert!(apart < TOLERANCE, "{preset}, {workers} workers: the first gradient deviates by {apart}");
        assert!(worst < TOLERANCE, "{preset}, {workers} workers: {alone:?} {shared:?}");
    }
}

#[test]
fn a_contrastive_stage_has_one_curve() {
    check("digits_cnce", "cnce");
}

#[test]
fn an_autoencoder_has_one_curve() {
    check("digits_cae", "cae");
}
