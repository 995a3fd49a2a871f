//! Every evaluation image is counted once, whatever the number of workers and the batch: the
//! accuracies of a run are those of one forward pass over all images here, as shares of exactly N.
//! The images are IDX files of 28 x 28 made for the test: 211 for training and 101 for the test,
//! which neither 2 nor 3 nor a batch divides.

use safetensors::SafeTensors;
use std::fs;
use std::path::Path;
use std::rc::Rc;
use tch::{Device, Kind, Tensor};
use thanos_configs::{EncoderConfig, Plan, split_train_validation};
use thanos_tests::{Scene, checkpoints, idx, lines, results};
use thanos_worker::load_weights;
use thanos_worker::model::{Alone, BatchSum, Mode, Model};
use thanos_worker::tensors::copy_into;

const TRAIN: usize = 211;
const TEST: usize = 101;
const SMALL: [&str; 7] = [
    "model.encoder.vit={width: 16, depth: 1, heads: 2, mlp: 16, patch: 7}",
    "model.decoder.width=16",
    "train.epochs=2",
    "train.batch_size=50",
    "transfer.epochs=2",
    "transfer.features=augmented",
    "train.cosine_period=null",
];

/// Images of a pack, [n, 1, 28, 28] normalised, and labels by name.
pub(crate) fn read(pack: &Path, plan: &Plan, label: &str) -> (Tensor, Tensor) {
    let bytes = fs::read(pack).expect("a pack");
    let file = SafeTensors::deserialize(&bytes).expect("safetensors");
    let images = file.tensor("images").expect("images");
    let [n, h, w, c] = images.shape() else { panic!("{:?}", images.shape()) };
    let shape = [*n as i64, *h as i64, *w as i64, *c as i64];
    let pixels =
        Tensor::from_slice(images.data()).reshape(shape).permute([0, 3, 1, 2]).to_kind(Kind::Float)
            / 255.0;
    let normalised = (pixels - plan.data().mean[0]) / plan.data().std[0];
    let labels = file.tensor(label).expect("labels");
    (
        normalised,
        Tensor::f_from_data_size(labels.data(), &[*n as i64], Kind::Int64).expect("labels"),
    )
}

/// A trained backbone.
pub(crate) fn backbone(plan: &Plan, weights: &Path) -> Model {
    let alone: Rc<dyn BatchSum> = Rc::new(Alone);
    let model = Model::new(&plan.config().model, plan.data(), false, Device::Cpu, &alone);
    copy_into(&model.state(), &load_weights(weights).expect("weights")).expect("they fit");
    model
}

/// Right answers of a trained backbone's own head.
fn count(plan: &Plan, weights: &Path, images: &Tensor, labels: &Tensor) -> i64 {
    let model = backbone(plan, weights);
    let _no_graph = tch::no_grad_guard();
    let chosen = model
        .logits(&model.encoder.forward(images, Mode::Eval).expect("embeddings"))
        .argmax(1, false);
    chosen.eq_tensor(labels).sum(Kind::Int64).int64_value(&[])
}

#[test]
fn every_image_is_counted_once_at_any_number_of_workers() {
    let scene = Scene::new();
    idx::write(&scene.path("idx"), TRAIN, TEST);
    let dir = format!("data.dir={}", scene.path("idx").display());
    let target = [&["mnist_thanos", &dir][..], &SMALL].concat();
    for workers in [1, 2, 3] {
        let name = format!("run-{workers}");
        scene.launch(&name, workers, &target).expect(0);
        let run_dir = scene.path(&name);
        let text = fs::read_to_string(run_dir.join("config.yaml")).expect("config.yaml");
        let plan = Plan::from_file(&text, "config.yaml", &[]).expect("valid");
        assert!(matches!(plan.config().model.encoder, EncoderConfig::Vit { width: 16, .. }));
        let packed = scene.coord(&["data", "pack", "mnist", "--dir", "idx"]).expect(0).stdout;
        let paths: Vec<&str> = packed.lines().filter_map(|line| line.rsplit(", ").next()).collect();
        let [train, test] = paths[..] else { panic!("{packed}") };

        let (images, labels) = read(Path::new(test), &plan, "coarse");
        let (train_images, train_labels) = read(Path::new(train), &plan, "coarse");
        let held_out: Vec<i64> = split_train_validation(TRAIN as u64, 0.1)
            .validation
            .iter()
            .map(|id| *id as i64)
            .collect();
        let held_out = Tensor::from_slice(&held_out);
        let backbones = results(&run_dir)["backbones"].as_array().expect("rows").clone();
        for (stage, row) in ["cnce", "cae"].iter().zip(&backbones) {
            let last = checkpoints(&run_dir, stage).pop().expect("a checkpoint");
            let right = count(&plan, &last, &images, &labels);
            let percent = |right: i64, of: usize| (right as f64 / of as f64 * 1e5).round() / 1e3;
            assert_eq!(
                row["coarse_test_accuracy"],
                percent(right, TEST),
                "{workers} workers, {stage}"
            );
            let (images, labels) =
                (train_images.index_select(0, &held_out), train_labels.take(&held_out));
            let right = count(&plan, &last, &images, &labels);
            assert_eq!(
                row["coarse_validation_accuracy"],
                percent(right, 22),
                "{workers} workers, {stage}"
            );
        }
        // The linear probe's share is one of exactly N images as well.
        let fine = results(&run_dir)["rows"][0]["fine_test_accuracy"].as_f64().expect("a number");
        let right = (fine / 100.0 * TEST as f64).round();
        assert!(
            (fine - right / TEST as f64 * 100.0).abs() < 1e-3,
            "{fine} % is no share of {TEST}"
        );
        let evaluated = lines(&run_dir, "events.jsonl")
            .iter()
            .filter(|line| line["event"] == "evaluated")
            .count();
        assert_eq!(evaluated, 6, "two epochs of three stages");
    }
}
