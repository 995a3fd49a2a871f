//! Packing from folders as a user has them, on small files in the real formats: what is packed,
//! reused and refused.

use super::*;
use safetensors::SafeTensors;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::thread;
use tempfile::TempDir;
use thanos_configs::{DataConfig, DataKind};
use thanos_formats::PackHeader;
use writers::gzip;

mod archives;
mod class_folders;
mod fuzz;
mod layouts;
mod pictures;
mod pillow;
pub(super) mod writers;

const CIFAR_BATCHES: [&str; 5] = [
    "data_batch_1.bin",
    "data_batch_2.bin",
    "data_batch_3.bin",
    "data_batch_4.bin",
    "data_batch_5.bin",
];

/// A folder of raw files and one of packs.
struct Folders {
    raw: TempDir,
    packs: TempDir,
}

impl Folders {
    fn new() -> Self {
        Self { raw: tempfile::tempdir().unwrap(), packs: tempfile::tempdir().unwrap() }
    }

    fn put(&self, name: &str, bytes: &[u8]) -> &Self {
        let path = self.raw.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
        self
    }

    fn pack(&self, kind: DataKind) -> Result<Packs, DataError> {
        pack_from(kind, Some(self.raw.path()), self.packs.path())
    }

    /// The message of the refusal, with the folder called RAW.
    fn refusal(&self, kind: DataKind) -> String {
        let error = self.pack(kind).unwrap_err();
        assert_eq!(error.exit_code(), 65);
        assert_eq!(fs::read_dir(self.packs.path()).unwrap().filter(is_temporary).count(), 0);
        error.to_string().replace(&self.raw.path().display().to_string(), "RAW")
    }
}

fn pack_from(kind: DataKind, dir: Option<&Path>, packs_dir: &Path) -> Result<Packs, DataError> {
    let config = DataConfig { kind, dir: dir.map(Path::to_owned), ..DataConfig::default() };
    pack(&config, packs_dir, TestImages::Required, &|_, _, _| {})
}

fn is_temporary(entry: &std::io::Result<fs::DirEntry>) -> bool {
    entry.as_ref().unwrap().file_name().to_string_lossy().starts_with('.')
}

/// Image i is 28 x 28 of the byte i + 1.
fn idx_images(count: u32) -> Vec<u8> {
    let header = [0x803, count, 28, 28].into_iter().flat_map(u32::to_be_bytes);
    header.chain((0..count).flat_map(|image| [image as u8 + 1; 28 * 28])).collect()
}

fn idx_labels(labels: &[u8]) -> Vec<u8> {
    [&0x801_u32.to_be_bytes(), &(labels.len() as u32).to_be_bytes(), labels].concat()
}

/// Three images to train on, two to test.
fn mnist() -> Folders {
    let folders = Folders::new();
    folders
        .put("train-images-idx3-ubyte", &idx_images(3))
        .put("train-labels-idx1-ubyte", &idx_labels(&[9, 0, 4]));
    folders
        .put("t10k-images-idx3-ubyte", &idx_images(2))
        .put("t10k-labels-idx1-ubyte", &idx_labels(&[5, 5]));
    folders
}

/// A record of CIFAR-10: red, green and blue are one byte each.
fn cifar_record(label: u8, rgb: [u8; 3]) -> Vec<u8> {
    [label].into_iter().chain(rgb.into_iter().flat_map(|value| [value; 1024])).collect()
}

/// Batch i has one record of label i and a red of 10 i; the test batch has two of label 9.
fn cifar(folder: &str) -> Folders {
    let folders = Folders::new();
    for (batch, name) in CIFAR_BATCHES.iter().enumerate() {
        folders
            .put(&format!("{folder}{name}"), &cifar_record(batch as u8, [10 * batch as u8, 1, 2]));
    }
    folders.put(&format!("{folder}test_batch.bin"), &cifar_record(9, [7, 8, 9]).repeat(2));
    folders
}

/// The tensors as the safetensors crate reads them: shape of images, images, fine, coarse.
fn tensors(pack: &PackFile) -> (Vec<usize>, Vec<u8>, Vec<i64>, Vec<i64>) {
    let bytes = fs::read(&pack.path).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let images = tensors.tensor("images").unwrap();
    let labels = |name| {
        let labels = tensors.tensor(name).unwrap();
        labels
            .data()
            .chunks_exact(8)
            .map(|label| i64::from_le_bytes(label.try_into().unwrap()))
            .collect()
    };
    (images.shape().to_vec(), images.data().to_vec(), labels("fine"), labels("coarse"))
}

#[test]
fn idx_files_become_packs_in_every_spelling() {
    let check = |names: [&str; 4], gzipped: bool| {
        let folders = Folders::new();
        let contents = [idx_images(3), idx_labels(&[9, 0, 4]), idx_images(2), idx_labels(&[5, 5])];
        for (name, content) in names.iter().zip(contents) {
            if gzipped {
                folders.put(&format!("{name}.gz"), &gzip(&content));
            } else {
                folders.put(name, &content);
            }
        }
        let packs = folders.pack(DataKind::FashionMnist).unwrap();
        let (shape, images, fine, coarse) = tensors(&packs.train);
        assert_eq!((packs.train.images, packs.test.images, packs.reused), (3, 2, false));
        assert_eq!(shape, [3, 28, 28, 1]);
        assert!(
            images.iter().enumerate().all(|(index, pixel)| usize::from(*pixel) == index / 784 + 1)
        );
        assert_eq!((fine, coarse), (vec![9, 0, 4], vec![1, 0, 0]));
        assert_eq!(tensors(&packs.test).2, [5, 5]);
        packs.train.fingerprint
    };
    let dashes = [
        "train-images-idx3-ubyte",
        "train-labels-idx1-ubyte",
        "t10k-images-idx3-ubyte",
        "t10k-labels-idx1-ubyte",
    ];
    let dots = [
        "train-images.idx3-ubyte",
        "train-labels.idx1-ubyte",
        "t10k-images.idx3-ubyte",
        "t10k-labels.idx1-ubyte",
    ];
    let fingerprint = check(dashes, false);
    assert_eq!(check(dashes, true), fingerprint);
    assert_eq!(check(dots, false), fingerprint);
    assert_eq!(check(dots, true), fingerprint);
}

#[test]
fn cifar_batches_are_joined_in_their_order() {
    for folder in ["", "cifar-10-batches-bin/"] {
        let folders = cifar(folder);
        let packs = folders.pack(DataKind::Cifar10).unwrap();
        assert_eq!((packs.train.images, packs.test.images), (5, 2), "{folder}");
        let (shape, images, fine, coarse) = tensors(&packs.train);
        assert_eq!(shape, [5, 32, 32, 3]);
        assert_eq!((fine, coarse), (vec![0, 1, 2, 3, 4], vec![1, 1, 0, 0, 0]));
        let batch_and_channel = |index: usize| [10 * (index / 3072), 1, 2][index % 3];
        assert!(
            images
                .iter()
                .enumerate()
                .all(|(index, pixel)| usize::from(*pixel) == batch_and_channel(index))
        );
    }
}

#[test]
fn digits_need_no_folder() {
    let packs_dir = tempfile::tempdir().unwrap();
    let packs =
        pack_from(DataKind::Digits, None, &packs_dir.path().join("made/on/the/way")).unwrap();
    assert_eq!((packs.train.images, packs.test.images), (1437, 360));
    verify(&packs.train.path).unwrap();
    let info = info(&packs.train.path).unwrap();
    assert_eq!(
        (info.name.as_str(), info.split.as_str(), info.shape),
        ("digits", "train", [8, 8, 1])
    );
    // Coarse: the fine counts below 5, and the others.
    assert_eq!(info.fine_counts, [138, 147, 140, 147, 146, 149, 145, 142, 137, 146]);
    assert_eq!(info.coarse_counts, [718, 719]);
    // In PyTorch, over the rows torch.randperm(1797,
    // generator=torch.Generator().manual_seed(42))[:1437]: x = ((v * 255 + 8) // 16).double() /
    // 255; x.mean(), x.std(unbiased=False)
    let measured = format!("{:.4} {:.4}", info.mean[0], info.std[0]);
    assert_eq!(measured, "0.3055 0.3761");
    let report = info.to_string();
    assert!(report.starts_with("digits train: 1437 images of 8 x 8 x 1, "), "{report}");
    assert!(report.contains("\nmean         0.3055\nstd          0.3761\n"), "{report}");
    assert!(report.contains("\n  0-4               718\n"), "{report}");
    assert_eq!(info.bytes, fs::metadata(&packs.train.path).unwrap().len());
}

#[test]
fn missing_files_are_all_named() {
    let four = "train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte, \
        t10k-labels-idx1-ubyte";
    let packs_dir = tempfile::tempdir().unwrap();
    let error = pack_from(DataKind::Mnist, None, packs_dir.path()).unwrap_err().to_string();
    let expected = format!(
        "data set mnist needs a folder, but none is given: set data.dir=DIR, the folder of {four}"
    );
    assert_eq!(error, expected);
    let error = pack_from(DataKind::Mnist, Some(Path::new("/none/here")), packs_dir.path())
        .unwrap_err()
        .to_string();
    let end = format!("; set data.dir=DIR to the folder of {four}, or to an archive of them");
    assert!(
        error.starts_with("data.dir=/none/here: No such file") && error.ends_with(&end),
        "{error}"
    );
    let folders = mnist();
    folders.put("file", b"");
    let error =
        pack_from(DataKind::Mnist, Some(&folders.raw.path().join("file")), packs_dir.path())
            .unwrap_err();
    assert!(error.to_string().contains("/file: not a folder; set data.dir=DIR"), "{error}");

    fs::remove_file(folders.raw.path().join("train-labels-idx1-ubyte")).unwrap();
    fs::remove_file(folders.raw.path().join("t10k-images-idx3-ubyte")).unwrap();
    let expected = "data set mnist: missing train-labels-idx1-ubyte, t10k-images-idx3-ubyte; \
        looked in RAW (there is file, t10k-labels-idx1-ubyte, train-images-idx3-ubyte) and \
        RAW/MNIST/raw and RAW/raw; get the four IDX files, gzipped (.gz) or not (`thanos-coord \
        data fetch`), and set data.dir=DIR to their folder";
    assert_eq!(folders.refusal(DataKind::Mnist), expected);

    // Whichever folder has the most is meant.
    let folders = cifar("cifar-10-batches-bin/");
    fs::remove_file(folders.raw.path().join("cifar-10-batches-bin/data_batch_3.bin")).unwrap();
    let expected = "data set cifar10: missing data_batch_3.bin; looked in RAW (there is \
        cifar-10-batches-bin/) and RAW/cifar-10-batches-bin and";
    let refusal = folders.refusal(DataKind::Cifar10);
    assert!(refusal.starts_with(expected), "{refusal}");
}

#[test]
fn bad_files_are_named_with_the_place() {
    let check = |name: &str, bytes: &[u8], expected: &str| {
        let folders = mnist();
        let refusal = folders.put(name, bytes).refusal(DataKind::Mnist);
        assert!(refusal.starts_with(expected) && refusal.contains("data.dir=DIR"), "{refusal}");
    };
    let (images, labels) = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte");
    check(
        images,
        &idx_labels(&[0; 8]),
        "RAW/train-images-idx3-ubyte: offset 0: expected magic number 0x00000803",
    );
    check(
        images,
        &idx_images(3)[..2000],
        "RAW/train-images-idx3-ubyte: its header declares 3 records, which is 2368",
    );
    check(
        images,
        b"",
        "RAW/train-images-idx3-ubyte: its header is cut off: expected 16 bytes, got 0",
    );
    let expected =
        "RAW/train-labels-idx1-ubyte: 2 labels, but RAW/train-images-idx3-ubyte has 3 images";
    check(labels, &idx_labels(&[1, 2]), expected);
    let expected =
        "RAW/train-labels-idx1-ubyte: record 1 at offset 9: expected a label in 0..=9, got 200";
    check(labels, &idx_labels(&[1, 200, 3]), expected);
    let packed = gzip(&idx_images(3));
    let expected = "RAW/train-images-idx3-ubyte: the gzip stream is cut off after ";
    check(images, &packed[..packed.len() - 5], expected);
    check(
        "t10k-labels-idx1-ubyte",
        &idx_labels(&[]),
        "RAW/t10k-labels-idx1-ubyte: it holds no records",
    );

    let check = |name: &str, bytes: &[u8], expected: &str| {
        let folders = cifar("");
        let refusal = folders.put(name, bytes).refusal(DataKind::Cifar10);
        assert!(refusal.starts_with(expected) && refusal.contains("data.dir=DIR"), "{refusal}");
    };
    let two = cifar_record(1, [0; 3]).repeat(2);
    check(
        "data_batch_4.bin",
        &[&two[..], &[0; 2]].concat(),
        "RAW/data_batch_4.bin: this is CIFAR-100, expected",
    );
    check(
        "test_batch.bin",
        &two[1..],
        "RAW/test_batch.bin: expected a whole number of records of 3073 bytes, got 6145",
    );
    check("data_batch_5.bin", b"", "RAW/data_batch_5.bin: it holds no records");
    let bad_label = [two, cifar_record(10, [0; 3])].concat();
    check(
        "data_batch_2.bin",
        &bad_label,
        "RAW/data_batch_2.bin: record 2 at offset 6146: expected a label in 0..=9",
    );
}

#[test]
fn a_pack_is_reused_until_its_raw_files_change() {
    let folders = mnist();
    let first = folders.pack(DataKind::Mnist).unwrap();
    let name = first.train.path.file_name().unwrap().to_string_lossy().into_owned();
    assert!(
        name.starts_with("mnist-train-") && name.len() == "mnist-train-.safetensors".len() + 16,
        "{name}"
    );
    // A pack that is written again is another file of the same name.
    let written = |packs: &Packs| fs::metadata(&packs.train.path).unwrap().ino();
    let file = written(&first);
    let second = folders.pack(DataKind::Mnist).unwrap();
    assert_eq!(second, Packs { reused: true, ..first.clone() });
    assert_eq!(written(&second), file);

    // Cut off: written again, to the same bytes.
    let bytes = fs::read(&first.test.path).unwrap();
    fs::write(&first.test.path, &bytes[..bytes.len() - 1]).unwrap();
    assert_eq!(folders.pack(DataKind::Mnist).unwrap(), first);
    assert_eq!(fs::read(&first.test.path).unwrap(), bytes);

    // Another data set of the same files, and other files of the same data set, are other packs.
    let fashion = folders.pack(DataKind::FashionMnist).unwrap();
    assert_ne!(fashion.train.path, first.train.path);
    let changed = folders
        .put("train-labels-idx1-ubyte", &idx_labels(&[9, 0, 5]))
        .pack(DataKind::Mnist)
        .unwrap();
    assert_ne!(changed.train.path, first.train.path);
    assert_ne!(changed.train.fingerprint, first.train.fingerprint);
    assert_eq!(changed.test, first.test);
}

#[test]
fn two_may_pack_at_once() {
    let folders = mnist();
    let packs: Vec<Packs> = thread::scope(|scope| {
        let both: Vec<_> =
            (0..4).map(|_| scope.spawn(|| folders.pack(DataKind::Mnist).unwrap())).collect();
        both.into_iter().map(|one| one.join().unwrap()).collect()
    });
    assert!(
        packs.iter().all(|other| (&other.train, &other.test) == (&packs[0].train, &packs[0].test))
    );
    verify(&packs[0].train.path).unwrap();
    assert_eq!(fs::read_dir(folders.packs.path()).unwrap().count(), 2);
}

#[test]
fn a_changed_pack_is_refused() {
    let folders = cifar("");
    let path = folders.pack(DataKind::Cifar10).unwrap().test.path;
    let good = fs::read(&path).unwrap();
    verify(&path).unwrap();
    let check = |change: &dyn Fn(&mut Vec<u8>), expected: &str| {
        let mut bytes = good.clone();
        change(&mut bytes);
        fs::write(&path, bytes).unwrap();
        let error = verify(&path).unwrap_err();
        let message = error.to_string();
        assert!(message.starts_with(&format!("pack {}: {expected}", path.display())), "{message}");
        assert!(
            message
                .ends_with("; if it exists, delete it: `thanos-coord data pack` writes a good one")
        );
        assert_eq!(error.exit_code(), 65);
    };
    let tensors_at = good.len() - 2 * (3072 + 16);
    let changed = "its header has fingerprint ";
    check(&|bytes| *bytes.last_mut().unwrap() ^= 1, changed);
    check(&|bytes| bytes[tensors_at] ^= 1, changed);
    check(&|bytes| bytes[tensors_at + 16] ^= 1, changed);
    let cut = format!("expected {} bytes, got {}: it was cut off", good.len(), good.len() - 1);
    check(&|bytes| bytes.truncate(bytes.len() - 1), &cut);
    check(
        &|bytes| bytes.push(0),
        &format!("expected {} bytes, got {}: ", good.len(), good.len() + 1),
    );
    check(&|bytes| bytes.truncate(100), &format!("expected {tensors_at} bytes, got 100: "));
    check(&|bytes| bytes.truncate(7), "expected 8 bytes, got 7: ");
    check(&|bytes| bytes[7] = 1, "its header is damaged: its length is ");
    check(&|bytes| bytes[8] = b'[', "its header is damaged: ");
    let replace = |from: &'static str, to: &'static str| {
        move |bytes: &mut Vec<u8>| {
            let at =
                bytes.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
            bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
        }
    };
    check(
        &replace(r#""format":"2""#, r#""format":"9""#),
        "it was written in format 9, this program reads format 2",
    );
    check(
        &replace("fingerprint", "fingerprinT"),
        "its header is damaged: it has no `fingerprint`: not a pack",
    );
    check(
        &replace(r#""coarse":{"#, r#""coarsE":{"#),
        "its header is damaged: it has no tensor `coarse`: not a pack",
    );
    // Whatever is not a pack is packed again.
    assert!(!folders.pack(DataKind::Cifar10).unwrap().reused);
    verify(&path).unwrap();
}

#[test]
fn what_cannot_be_written_or_read_is_named() {
    let folders = mnist();
    let file = folders.put("file", b"").raw.path().join("file");
    let error = pack_from(DataKind::Mnist, Some(folders.raw.path()), &file).unwrap_err();
    assert_eq!(error.exit_code(), 74);
    let message = error.to_string();
    assert!(
        message.starts_with(&format!("cannot write pack {}/mnist-train-", file.display())),
        "{message}"
    );
    let error = info(&folders.raw.path().join("none")).unwrap_err();
    assert!(error.to_string().contains("/none: cannot be read: No such file"), "{error}");
}
