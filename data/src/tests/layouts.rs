//! The data sets of a few files as torchvision, Kaggle and people lay them out: the same packs from
//! all of them.

use super::writers::{gzip, tar, tar_gz, tinyimagenet, unpacked, zip};
use super::*;

type Raw = Vec<(String, Vec<u8>)>;

fn mnist_files() -> Raw {
    let files = [
        ("train-images-idx3-ubyte", idx_images(3)),
        ("train-labels-idx1-ubyte", idx_labels(&[9, 0, 4])),
        ("t10k-images-idx3-ubyte", idx_images(2)),
        ("t10k-labels-idx1-ubyte", idx_labels(&[5, 5])),
    ];
    files.map(|(name, content)| (name.to_owned(), content)).to_vec()
}

fn cifar_files() -> Raw {
    let record = |batch: u8| cifar_record(batch, [10 * batch, 1, 2]);
    let names = CIFAR_BATCHES.iter().chain(&["test_batch.bin"]);
    names.zip(0..).map(|(name, batch)| ((*name).to_owned(), record(batch))).collect()
}

fn renamed(files: &Raw, name: impl Fn(&str) -> String) -> Raw {
    files.iter().map(|(old, content)| (name(old), content.clone())).collect()
}

fn prints(packs: Packs) -> [String; 2] {
    [packs.train.fingerprint, packs.test.fingerprint]
}

#[track_caller]
fn check(kind: DataKind, files: &Raw, expected: &[String; 2]) {
    let folders = Folders::new();
    unpacked(folders.raw.path(), files);
    let packs = folders.pack(kind).unwrap();
    assert_eq!(&prints(packs), expected);
    assert!(folders.pack(kind).unwrap().reused);
}

#[test]
fn mnist_is_found_where_torchvision_and_kaggle_put_it() {
    let files = mnist_files();
    let kind = DataKind::Mnist;
    let expected = prints(mnist().pack(kind).unwrap());
    check(kind, &renamed(&files, |name| format!("MNIST/raw/{name}")), &expected);
    check(kind, &renamed(&files, |name| format!("raw/{name}")), &expected);
    check(kind, &renamed(&files, |name| format!("{name}/{name}")), &expected);
    check(
        kind,
        &vec![("archive.zip".into(), zip(&renamed(&files, |name| format!("{name}/{name}"))))],
        &expected,
    );
    // torchvision keeps what it downloaded beside what it unpacked.
    let mut both = renamed(&files, |name| format!("MNIST/raw/{name}"));
    both.extend(
        files.iter().map(|(name, content)| (format!("MNIST/raw/{name}.gz"), gzip(content))),
    );
    check(kind, &both, &expected);
    // A root of torchvision's may have several data sets. Their files have the same names.
    let mut other = renamed(&files, |name| format!("FashionMNIST/raw/{name}"));
    other.iter_mut().for_each(|(_, content)| *content.last_mut().unwrap() ^= 1);
    let folders = Folders::new();
    unpacked(folders.raw.path(), &other);
    let refused = folders.refusal(DataKind::Mnist);
    assert!(
        refused.contains("looked in RAW (there is FashionMNIST/) and RAW/MNIST/raw and RAW/raw"),
        "{refused}"
    );
    folders.pack(DataKind::FashionMnist).unwrap();
    unpacked(folders.raw.path(), &renamed(&files, |name| format!("MNIST/raw/{name}")));
    assert_eq!(prints(folders.pack(DataKind::Mnist).unwrap()), expected);
}

#[test]
fn cifar_may_be_packed_again_in_any_way() {
    let files = cifar_files();
    let kind = DataKind::Cifar10;
    let folders = Folders::new();
    unpacked(folders.raw.path(), &files);
    let expected = prints(folders.pack(kind).unwrap());
    let inside = |folder: &str| renamed(&files, |name| format!("{folder}{name}"));
    check(kind, &inside("cifar10-batches/"), &expected);
    check(kind, &vec![("CIFAR10.tgz".into(), tar_gz(&inside("mine/cifar/")))], &expected);
    check(kind, &vec![("cifar_10.tar".into(), tar(&inside("./")))], &expected);
    check(
        kind,
        &vec![("archive.zip".into(), zip(&inside("x/"))), ("notes.txt".into(), vec![])],
        &expected,
    );
    let both = vec![
        ("cifar10.tgz".into(), tar_gz(&inside(""))),
        ("cifar100.tgz".into(), b"other".to_vec()),
    ];
    check(kind, &both, &expected);
    let folders = Folders::new();
    unpacked(folders.raw.path(), &[("x.tar".into(), tar(&inside("a/")))]);
    let named =
        pack_from(kind, Some(&folders.raw.path().join("x.tar")), folders.packs.path()).unwrap();
    assert_eq!(prints(named), expected);

    let folders = Folders::new();
    let copies = [inside("a/"), inside("b/")].concat();
    unpacked(folders.raw.path(), &copies);
    let refused = folders.refusal(kind);
    assert_eq!(
        refused,
        "data.dir=RAW: found RAW/a and RAW/b; name the one that is meant, such as data.dir=RAW/a"
    );
    let folders = Folders::new();
    let wrong =
        folders.put("cifar.tgz", &tar_gz(&[("a/readme".into(), b"x".to_vec())])).refusal(kind);
    assert!(
        wrong.starts_with("RAW/cifar.tgz: missing data_batch_1.bin, ")
            && wrong.contains("it has a/readme;")
    );
}

#[test]
fn tinyimagenet_may_be_sorted_for_torchvision() {
    let files = tinyimagenet("");
    let kind = DataKind::Tinyimagenet;
    let folders = Folders::new();
    unpacked(folders.raw.path(), &files);
    let expected = prints(folders.pack(kind).unwrap());
    // The classes of the three pictures, as the list has them.
    let sorted = |inner: &str| {
        let sort = |name: &str| match name.strip_prefix("val/images/val_") {
            Some(rest) => format!(
                "val/{}/{inner}val_{rest}",
                if rest.starts_with('1') { "n150" } else { "n007" }
            ),
            None => name.to_owned(),
        };
        renamed(&files, sort)
    };
    check(kind, &sorted(""), &expected);
    check(kind, &sorted("images/"), &expected);
    let without =
        |name: &str| sorted("").into_iter().filter(|(file, _)| file != name).collect::<Raw>();
    check(kind, &without("val/val_annotations.txt"), &expected);
    check(kind, &without("wnids.txt"), &expected);
    check(
        kind,
        &vec![(
            "archive.zip".into(),
            zip(&renamed(&without("wnids.txt"), |name| format!("x/{name}"))),
        )],
        &expected,
    );
    let windows = |(name, content): &(String, Vec<u8>)| match name.as_str() {
        "wnids.txt" | "val/val_annotations.txt" => (
            name.clone(),
            String::from_utf8(content.clone()).unwrap().replace('\n', "\r\n").into_bytes(),
        ),
        _ => (name.clone(), content.clone()),
    };
    check(kind, &files.iter().map(windows).collect(), &expected);
    let few: Raw = without("wnids.txt")
        .into_iter()
        .filter(|(name, _)| !name.starts_with("train/n003/"))
        .collect();
    let folders = Folders::new();
    unpacked(folders.raw.path(), &few);
    let refused = folders.refusal(kind);
    assert!(
        refused.contains("missing wnids.txt (train/ has 199 classes, expected 200)"),
        "{refused}"
    );
}
