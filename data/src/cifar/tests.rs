//! Both CIFARs in both forms: what is good comes out as pixels, what is bad is an error.

use super::*;
use crate::tests::writers::{array, dict, list};
use thanos_configs::{DataKind, DataSet};

const RECORD: usize = 1 + PIXELS;

fn labels(cifar: Cifar) -> Labels {
    let kind = if cifar == Cifar::Ten { DataKind::Cifar10 } else { DataKind::Cifar100 };
    DataSet::of(kind, None).labels
}

/// A red, a green and a blue plane that differ, and within each the number of the pixel.
fn planes() -> Vec<u8> {
    let plane = |start: u8| (0..PLANE).map(move |pixel| start + (pixel % 50) as u8);
    plane(0).chain(plane(100)).chain(plane(200)).collect()
}

fn assert_pixels(images: &[u8], count: usize) {
    assert_eq!(images.len(), count * PIXELS);
    for image in images.chunks_exact(PIXELS) {
        for (pixel, rgb) in image.chunks_exact(3).enumerate() {
            let at = (pixel % 50) as u8;
            assert_eq!(rgb, [at, 100 + at, 200 + at], "pixel {pixel}");
        }
    }
}

#[test]
fn binary_planes_become_pixels() {
    let record = |head: &[u8]| [head, &planes()].concat();
    let ten = Cifar::Ten
        .decode_binary(&[record(&[9]), record(&[0])].concat(), &labels(Cifar::Ten))
        .expect("good");
    assert_eq!(ten.fine, [9, 0]);
    assert_pixels(&ten.images, 2);
    // An apple (0) is a fruit (4), a worm (99) a non-insect invertebrate (13).
    let content = [record(&[4, 0]), record(&[13, 99])].concat();
    let hundred = Cifar::Hundred.decode_binary(&content, &labels(Cifar::Hundred)).expect("good");
    assert_eq!(hundred.fine, [0, 99]);
    assert_pixels(&hundred.images, 2);
}

#[test]
fn pickled_planes_become_pixels() {
    let data = array(2, PIXELS, &[planes(), planes()].concat());
    let ten = dict(&[("data", data.clone()), ("labels", list(&[9, 0]))]);
    let ten = Cifar::Ten.decode_pickle(&ten, &labels(Cifar::Ten)).expect("good");
    assert_eq!(ten.fine, [9, 0]);
    assert_pixels(&ten.images, 2);
    let entries =
        [("coarse_labels", list(&[4, 13])), ("fine_labels", list(&[0, 99])), ("data", data)];
    let hundred =
        Cifar::Hundred.decode_pickle(&dict(&entries), &labels(Cifar::Hundred)).expect("good");
    assert_eq!(hundred.fine, [0, 99]);
    assert_pixels(&hundred.images, 2);
}

#[test]
fn bad_records_say_what_is_wrong() {
    let check = |cifar: Cifar, content: &[u8], expected: &str| {
        let error =
            cifar.decode_binary(content, &labels(cifar)).map(|_| ()).expect_err("bad").to_string();
        assert_eq!(error, expected);
    };
    check(Cifar::Ten, &[], "it holds no records");
    let partial = "expected a whole number of records of 3073 bytes, got";
    check(Cifar::Ten, &[0; 2 * RECORD - 1], &format!("{partial} 6145 bytes: record 1 is cut off"));
    check(Cifar::Ten, &[0; 2 * RECORD + 1], &format!("{partial} 6147 bytes: record 2 is cut off"));
    check(Cifar::Ten, &[0; 100], &format!("{partial} 100 bytes: record 0 is cut off"));
    check(Cifar::Ten, &[0; 2 * RECORD + 2], "this is CIFAR-100, expected CIFAR-10");
    check(Cifar::Hundred, &[0; 2 * RECORD], "this is CIFAR-10, expected CIFAR-100");
    let mut content = [0; 3 * RECORD];
    content[2 * RECORD] = 10;
    check(Cifar::Ten, &content, "record 2 at offset 6146: expected a label in 0..=9, got 10");
    let mut content = [0; 2 * (RECORD + 1)];
    (content[0], content[RECORD + 1], content[RECORD + 2]) = (4, 1, 100);
    check(Cifar::Hundred, &content, "record 1 at offset 3075: expected a label in 0..=99, got 100");
    content[RECORD + 2] = 0;
    check(
        Cifar::Hundred,
        &content,
        "record 1 at offset 3074: fine label 0 has coarse label 4, got 1",
    );
}

#[test]
fn pickles_of_another_structure_say_what_is_wrong() {
    let check = |cifar: Cifar, content: &[u8], expected: &str| {
        let error =
            cifar.decode_pickle(content, &labels(cifar)).map(|_| ()).expect_err("bad").to_string();
        assert!(error.contains(expected), "no `{expected}` in `{error}`");
    };
    let data = || array(1, PIXELS, &planes());
    check(Cifar::Ten, b"cos\nsystem\n(S'true'\ntR.", "the pickle asks for `os.system`");
    check(
        Cifar::Ten,
        &dict(&[("data", data())]),
        "key `labels`: expected a list of labels, got nothing under this key",
    );
    check(
        Cifar::Ten,
        &dict(&[("data", data()), ("labels", data())]),
        "expected a list of labels, got an array",
    );
    check(
        Cifar::Ten,
        &dict(&[("labels", list(&[1]))]),
        "key `data`: expected a numpy array of bytes, got nothing",
    );
    let two = [("data", data()), ("labels", list(&[1, 2]))];
    check(
        Cifar::Ten,
        &dict(&two),
        "key `data`: expected an array of [2, 3072], got one of [1, 3072]",
    );
    let eleven = [("data", data()), ("labels", list(&[11]))];
    check(Cifar::Ten, &dict(&eleven), "record 0 at offset 0: expected a label in 0..=9, got 11");
    check(
        Cifar::Ten,
        &dict(&[("data", data()), ("fine_labels", list(&[1]))]),
        "this is CIFAR-100, expected CIFAR-10",
    );
    check(
        Cifar::Hundred,
        &dict(&[("data", data()), ("labels", list(&[1]))]),
        "this is CIFAR-10, expected CIFAR-100",
    );
    let wrong = [("data", data()), ("fine_labels", list(&[0])), ("coarse_labels", list(&[3]))];
    check(Cifar::Hundred, &dict(&wrong), "fine label 0 has coarse label 4, got 3");
    let short = [("data", data()), ("fine_labels", list(&[0])), ("coarse_labels", list(&[]))];
    check(Cifar::Hundred, &dict(&short), "key `coarse_labels`: expected 1 labels, got 0");
}
