//! Published forms other than plain files: archives and pickles give the same pack, and bad ones
//! are errors.

use super::writers::{array, dict, gzip, list, tar_gz, unpacked};
use super::*;

type Files = Vec<(String, Vec<u8>)>;

/// One image a batch: its label, and its planes.
fn batch(batch: u8) -> (u8, Vec<u8>) {
    (batch, (0..3072_u32).map(|at| (at * 7 + u32::from(batch) * 31) as u8).collect())
}

fn in_folder(folder: &str, files: Vec<(String, Vec<u8>)>) -> Files {
    files.into_iter().map(|(name, content)| (format!("{folder}/{name}"), content)).collect()
}

fn cifar10_binary() -> Files {
    let names =
        (1..=5).map(|number| format!("data_batch_{number}.bin")).chain(["test_batch.bin".into()]);
    let content = |at| {
        let (label, planes) = batch(at);
        [&[label][..], &planes].concat()
    };
    in_folder(
        "cifar-10-batches-bin",
        names.zip(0..).map(|(name, at)| (name, content(at))).collect(),
    )
}

fn cifar10_python() -> Files {
    let names = (1..=5).map(|number| format!("data_batch_{number}")).chain(["test_batch".into()]);
    let content = |at| {
        let (label, planes) = batch(at);
        dict(&[("data", array(1, 3072, &planes)), ("labels", list(&[i64::from(label)]))])
    };
    let mut files: Files = names.zip(0..).map(|(name, at)| (name, content(at))).collect();
    files.push(("batches.meta".into(), dict(&[("num_vis", b"K\x0c".to_vec())])));
    in_folder("cifar-10-batches-py", files)
}

/// Coarse label 4 (fruit) of 0 (apple), and 0 (aquatic mammals) of 30 (dolphin).
fn cifar100_binary() -> Files {
    let record = |coarse: u8, fine: u8| [&[coarse, fine][..], &batch(fine).1].concat();
    in_folder(
        "cifar-100-binary",
        vec![("train.bin".into(), record(4, 0)), ("test.bin".into(), record(0, 30))],
    )
}

fn cifar100_python() -> Files {
    let content = |coarse, fine: u8| {
        let labels =
            [("coarse_labels", list(&[coarse])), ("fine_labels", list(&[i64::from(fine)]))];
        dict(&[&labels[..], &[("data", array(1, 3072, &batch(fine).1))]].concat())
    };
    in_folder(
        "cifar-100-python",
        vec![("train".into(), content(4, 0)), ("test".into(), content(0, 30))],
    )
}

#[test]
fn every_published_form_gives_the_same_pack() {
    let check = |kind: DataKind, forms: [(&str, Files); 2]| {
        let mut fingerprints = Vec::new();
        for (archive, files) in forms {
            let folders = Folders::new();
            folders.put(archive, &tar_gz(&files));
            let archived = folders.pack(kind).unwrap();
            let folders = Folders::new();
            unpacked(folders.raw.path(), &files);
            let unpacked = folders.pack(kind).unwrap();
            let inner = folders.raw.path().join(files[0].0.split('/').next().unwrap());
            let direct = pack_from(kind, Some(&inner), folders.packs.path()).unwrap();
            fingerprints.extend(
                [archived, unpacked, direct]
                    .map(|packs| (packs.train.fingerprint, packs.test.fingerprint)),
            );
        }
        assert!(
            fingerprints.iter().all(|other| *other == fingerprints[0]),
            "{kind:?}: {fingerprints:?}"
        );
    };
    check(
        DataKind::Cifar10,
        [
            ("cifar-10-binary.tar.gz", cifar10_binary()),
            ("cifar-10-python.tar.gz", cifar10_python()),
        ],
    );
    check(
        DataKind::Cifar100,
        [
            ("cifar-100-binary.tar.gz", cifar100_binary()),
            ("cifar-100-python.tar.gz", cifar100_python()),
        ],
    );
}

#[test]
fn an_archive_may_be_named_itself() {
    let folders = Folders::new();
    folders.put("cifar-100-python.tar.gz", &tar_gz(&cifar100_python()));
    let archive = folders.raw.path().join("cifar-100-python.tar.gz");
    let packs = pack_from(DataKind::Cifar100U, Some(&archive), folders.packs.path()).unwrap();
    let (_, _, fine, coarse) = tensors(&packs.test);
    assert_eq!((fine, coarse), (vec![30], vec![0]));
    let refused =
        pack_from(DataKind::Cifar10, Some(&archive), folders.packs.path()).unwrap_err().to_string();
    let missing = "cifar-100-python.tar.gz: missing data_batch_1.bin, ";
    assert!(
        refused.contains(missing) && refused.contains("; it has cifar-100-python/train, "),
        "{refused}"
    );
}

#[test]
fn bad_archives_say_what_is_wrong() {
    let check = |bytes: &[u8], expected: &str| {
        let folders = Folders::new();
        let refusal = folders.put("cifar-10-binary.tar.gz", bytes).refusal(DataKind::Cifar10);
        let expected = format!("RAW/cifar-10-binary.tar.gz{expected}");
        assert!(refusal.starts_with(&expected), "expected `{expected}`, got `{refusal}`");
    };
    let good = cifar10_binary();
    let mut twice = good.clone();
    twice.push(good[2].clone());
    check(
        &tar_gz(&twice),
        "/cifar-10-batches-bin/data_batch_3.bin: it occurs twice in the archive",
    );
    let without: Files =
        good.iter().filter(|(name, _)| !name.ends_with("_2.bin")).cloned().collect();
    check(
        &tar_gz(&without),
        ": missing data_batch_2.bin; it has cifar-10-batches-bin/test_batch.bin; get the official \
        archive again",
    );
    let mut same = good.clone();
    same[4].1 = good[1].1.clone();
    check(&tar_gz(&same), "/cifar-10-batches-bin/data_batch_5.bin: it has the same content as");
    let mut long = good.clone();
    long[0].1.extend([7, 7]);
    check(
        &tar_gz(&long),
        "/cifar-10-batches-bin/data_batch_1.bin: expected a whole number of records",
    );
    let whole = tar_gz(&good);
    for cut in [1, 9, whole.len() / 3, whole.len() - 9, whole.len() - 1] {
        check(&whole[..cut], ": the archive is ");
    }
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 0x10;
    check(&flipped, ": the archive is ");
    check(b"PK\x03\x04 no zip at all", ": the .zip is damaged");
    check(b"no gzip at all", ": the archive is ");
    check(&gzip(b"no tar"), ": the archive is ");
}

/// An entry that is a link has no content of its own: what it points at is not read.
#[test]
fn links_in_an_archive_are_refused() {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    tar.append_link(&mut header, "cifar-100-binary/train.bin", "/etc/passwd").unwrap();
    let folders = Folders::new();
    folders.put("cifar-100-binary.tar.gz", &gzip(&tar.into_inner().unwrap()));
    let refusal = folders.refusal(DataKind::Cifar100);
    let expected = "RAW/cifar-100-binary.tar.gz/cifar-100-binary/train.bin: it is not a regular \
        file in the archive";
    assert!(refusal.starts_with(expected), "{refusal}");
}

#[test]
fn one_cifar_in_place_of_the_other_is_recognised() {
    let folders = Folders::new();
    let mut files = cifar10_python();
    files[1].1 = cifar100_python()[0].1.clone();
    unpacked(folders.raw.path(), &files);
    let refusal = folders.refusal(DataKind::Cifar10);
    let expected = "RAW/cifar-10-batches-py/data_batch_2: this is CIFAR-100, expected CIFAR-10";
    assert!(refusal.starts_with(expected), "{refusal}");
    files[1].1 = b"cposix\nsystem\n(S'touch /tmp/never'\ntR.".to_vec();
    unpacked(folders.raw.path(), &files);
    let refusal = folders.refusal(DataKind::Cifar10);
    assert!(
        refusal.contains("data_batch_2: offset 0: the pickle asks for `posix.system`"),
        "{refusal}"
    );
}
