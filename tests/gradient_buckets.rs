//! Gradients are summed in buckets while the backward pass makes the others: the sums are those of
//! a sum after it, the curve does not depend on the number of workers, and a worker that is lost
//! meanwhile costs no step.

use crate::exchanges::in_gloo_group;
use crate::recovery::{assert_equal, launch};
use crate::rerun::{NO_RECORDER, has_or_reran};
use nix::sys::signal::Signal;
use tch::{Device, Kind, Tensor};
use thanos_c10d::{GradientBuckets, ProcessGroup};
use thanos_tests::processes::{send, workers};
use thanos_tests::{Scene, losses};

const RANKS: usize = 3;
const STEPS: usize = 3;
/// Parameters of this many rows and columns; no gradient reaches the third one.
const SHAPES: [[i64; 2]; 4] = [[60, 500], [500, 400], [300, 300], [400, 7]];

/// `digits_cnce` with 2.9 MB of parameters, which are two buckets.
const LARGE: [&str; 6] = [
    "digits_cnce",
    "rows=[]",
    "model.encoder.vit.width=128",
    "model.encoder.vit.mlp=512",
    "model.encoder.vit.depth=4",
    "train.batch_size=100",
];

/// On one rank: after each step the row of the buckets, and the sums of the same gradients after
/// the backward pass.
fn rows(group: &ProcessGroup) -> Vec<[Tensor; 2]> {
    tch::manual_seed(7);
    let options = (Kind::Double, Device::Cpu);
    let parameters = SHAPES.map(|shape| Tensor::randn(shape, options).set_requires_grad(true));
    let refs: Vec<&Tensor> = parameters.iter().collect();
    let buckets = GradientBuckets::new(group, &refs, &[1, 3, 4]).expect("buckets");
    let mut rows = Vec::new();
    for step in 0..STEPS {
        let [first, second, _, last] = &parameters;
        let own = (group.rank() + 10 * step + 1) as f64;
        let x = Tensor::full([5, SHAPES[0][0]], 0.01 * own, options);
        let loss = x.matmul(first).tanh().matmul(second).tanh().matmul(last).sum(Kind::Double);
        let drop_gradients = || thanos_fused::drop_gradients(&parameters).expect("dropped");
        drop_gradients();
        buckets.begin().expect("begun");
        loss.backward();
        let own: Vec<Tensor> = parameters
            .iter()
            .map(|parameter| match parameter.grad() {
                gradient if gradient.defined() => gradient.reshape(-1),
                _ => parameter.detach().zeros_like().reshape(-1),
            })
            .collect();
        buckets.finish().expect("summed");
        let mut expected = Tensor::cat(&own, 0);
        group.all_reduce(&mut expected).expect("summed");
        rows.push([buckets.row().copy(), expected]);
    }
    // Without its buckets, a parameter is as before.
    drop(buckets);
    (&parameters[0] * 2.0).sum(Kind::Double).backward();
    rows
}

#[test]
fn the_sums_are_those_of_a_sum_after_the_backward_pass() {
    let test = "gradient_buckets::the_sums_are_those_of_a_sum_after_the_backward_pass";
    if !has_or_reran(test, NO_RECORDER) {
        return;
    }
    let ranks = in_gloo_group(RANKS, rows);
    for step in 0..STEPS {
        let [first, expected] = &ranks[0][step];
        let largest = expected.abs().max().double_value(&[]);
        assert!(largest > 1e-3, "the largest gradient is {largest}");
        // The ring adds the ranks in another order at another place of a row.
        let off = (first - expected).abs().max().double_value(&[]) / largest;
        assert!(off < 1e-14, "step {step}: off by {off:.1e}");
        for rank in &ranks {
            assert_eq!(rank[step][0], *first, "step {step}: ranks differ");
        }
    }
}

#[test]
fn the_curve_does_not_depend_on_the_number_of_workers() {
    let scene = Scene::new();
    let steps = ["train.max_steps=12", "train.epochs=1"];
    let train = |workers: usize| {
        let name = format!("run-{workers}");
        scene.launch(&name, workers, &[&LARGE[..], &steps].concat()).expect(0);
        losses(&scene.path(&name), "cnce")
    };
    let one = train(1);
    assert_eq!(one.len(), 12);
    for workers in [2, 3] {
        for (left, right) in one.iter().zip(train(workers)) {
            assert!(((left - right) / left).abs() < 1e-5, "{workers} workers: {left} {right}");
        }
    }
}

#[test]
fn a_lost_worker_costs_no_step() {
    let scene = Scene::new();
    let target = [&LARGE[..], &["train.epochs=4"]].concat();
    scene.launch("whole", 2, &target).expect(0);
    let mut running = launch(&scene, "run", "2", &target);
    for steps in [5, 15, 25] {
        running.wait_for_steps("run", steps);
        let pid = *workers(&scene.path("run")).values().next().expect("a worker");
        send(pid, Signal::SIGKILL);
    }
    running.wait().expect(0);
    assert_equal(&scene, &scene.path("whole"), &scene.path("run"), &["cnce"]);
}
