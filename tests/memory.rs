//! Memory of the contrastive loss: a batch whose matrix of logits has 1 GB a copy (in the long form
//! 4 GB) is contrasted in a few hundred MB. The test measures a process of its own, this binary
//! restarted, so that other tests do not blur the number.

use crate::exchanges::SingleRank;
use crate::print_line;
use crate::rerun::alone;
use std::env;
use std::fs;
use std::time::Instant;
use tch::{Device, Kind, Tensor};
use thanos_tests::processes::status_kb;
use thanos_worker::loss::{LossForm, Similarity, Tile};
use thanos_worker::{Comparison, contrast_globally};

const WIDTH: i64 = 128;
const LIMIT_MB: u64 = 600;

/// The number of images; set in the process that measures.
const MEASURE: &str = "THANOS_TEST_MEASURE_MEMORY";
const ANSWER: &str = "peak memory above the inputs: ";

#[test]
fn a_large_batch_needs_no_square_of_itself() {
    check("memory::a_large_batch_needs_no_square_of_itself", "16384");
}

#[test]
#[ignore = "takes half a minute: make chaos"]
fn a_larger_batch_needs_no_square_of_itself() {
    check("memory::a_larger_batch_needs_no_square_of_itself", "32768");
}

fn check(test: &str, images: &str) {
    if let Ok(images) = env::var(MEASURE) {
        return measure(images.parse().expect("a number"));
    }
    let text = alone(test, (MEASURE, images));
    let answer = text.lines().find(|line| line.contains(ANSWER)).expect("the process answers");
    print_line(answer);
    let number =
        answer.split(ANSWER).nth(1).and_then(|text| text.split(' ').next()).map(str::parse::<u64>);
    let peak_mb = number.and_then(Result::ok).expect("an answer holds a number");
    assert!(
        peak_mb > 0 && peak_mb < LIMIT_MB,
        "{peak_mb} MB above the inputs, at most {LIMIT_MB} are allowed"
    );
}

/// Prints the peak of one loss and gradient above what the process held before.
fn measure(images: i64) {
    let comparison = Comparison {
        form: LossForm {
            attract: 1.0,
            spread: 1.0,
            clamp_positive_logits: None,
            positives_in_denominator: false,
        },
        similarity: Similarity::Cosine,
        temperature: 0.5,
        both_directions: false,
        tile: Tile::square(1024),
    };
    let rows = |images: i64| Tensor::randn([images, WIDTH], (Kind::Float, Device::Cpu));
    let labels = |images: i64| Tensor::arange(images, (Kind::Int64, Device::Cpu)).remainder(10);
    let contrast = |view0: &Tensor, view1: &Tensor, labels: &Tensor| {
        contrast_globally(&SingleRank, view0, view1, labels, &comparison)
            .expect("a loss")
            .value
            .double_value(&[])
    };
    // Threads and libraries hold memory of their own, from the first call on.
    contrast(&rows(64), &rows(64), &labels(64));
    let (view0, view1, labels) = (rows(images), rows(images), labels(images));

    let before_kb = status_kb(std::process::id(), "VmRSS");
    fs::write("/proc/self/clear_refs", "5").expect("the peak is reset");
    let start = Instant::now();
    let value = contrast(&view0, &view1, &labels);
    let seconds = start.elapsed().as_secs_f64();
    let peak_mb =
        status_kb(std::process::id(), "VmHWM").saturating_sub(before_kb) * 1024 / 1_000_000;
    assert!(value.is_finite(), "the loss is {value}");
    print_line(&format!("{ANSWER}{peak_mb} MB at {images} x {WIDTH}, {seconds:.1} s"));
}
