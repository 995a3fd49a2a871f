//! A short fuzz run over each reader of raw files: whatever bytes come, it ends, without a panic,
//! with samples that are whole or a fault that says something. Mutations are seeded, so a failure
//! names the seed that repeats it.

use super::super::cifar::Cifar;
use super::super::picture::{self, Rules, Size};
use super::super::{digits, idx, pickle};
use super::writers::{array, dict, jpeg, list, picture_in, png, tar_gz, zip};
use super::*;
use crate::archive::unpack;
use crate::raw::RawFile;
use crate::samples::{Samples, Split};
use crate::tree::Tree;
use image::ImageFormat;
use thanos_configs::{DataSet, SplitMix64};

const SEEDS: u64 = 4_000;

/// Some bytes changed, inserted, removed, doubled or cut off at the end.
fn mutated(good: &[u8], seed: u64) -> Vec<u8> {
    let mut stream = SplitMix64::new(seed);
    let mut bytes = good.to_vec();
    for _ in 0..=stream.below(4) {
        if bytes.is_empty() {
            break;
        }
        // Headers are where the structure is: half of the changes fall into the first 64 bytes.
        let within = if stream.below(2) == 0 { bytes.len().min(64) } else { bytes.len() };
        let at = stream.below(within as u64) as usize;
        match stream.below(6) {
            0 => bytes[at] = stream.next_u64() as u8,
            1 => bytes[at] ^= 1 << stream.below(8),
            2 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][stream.below(5) as usize],
            3 => bytes.insert(at, stream.next_u64() as u8),
            4 => _ = bytes.remove(at),
            _ => bytes.truncate(at),
        }
    }
    bytes
}

/// Runs a reader on the good bytes, which must pass, and on mutations of them; `whole` checks what
/// it accepts.
fn fuzz<T, E: std::fmt::Display>(
    name: &str,
    good: &[u8],
    read: impl Fn(&[u8]) -> Result<T, E>,
    whole: impl Fn(&T) -> bool,
) {
    match read(good) {
        Ok(read) => assert!(whole(&read), "{name}: the good file"),
        Err(error) => panic!("{name}: the good file: {error}"),
    }
    let mut refused = 0;
    for seed in 0..SEEDS {
        match read(&mutated(good, seed)) {
            Ok(read) => {
                assert!(whole(&read), "{name}, seed {seed}: something half-read was accepted")
            }
            Err(error) => {
                refused += 1;
                assert!(!error.to_string().is_empty(), "{name}, seed {seed}");
            }
        }
    }
    assert!(refused > SEEDS / 20, "{name}: {refused} of {SEEDS} mutations were refused");
}

fn cifar(kind: DataKind) -> DataSet {
    DataSet::of(kind, None)
}

fn is_whole(samples: &Samples, bytes: usize, classes: i64) -> bool {
    let labels = samples.fine.iter().all(|label| (0..classes).contains(label));
    labels && !samples.fine.is_empty() && samples.images.len() == samples.fine.len() * bytes
}

#[test]
fn idx_and_digits() {
    fuzz(
        "idx images",
        &idx_images(2),
        |bytes| idx::images(bytes, 28).map(<[u8]>::len),
        |len| len % 784 == 0,
    );
    let labels = idx_labels(&[1, 2, 3]);
    fuzz(
        "idx labels",
        &labels,
        |bytes| idx::labels(bytes, 10),
        |labels| labels.iter().all(|label| *label < 10),
    );
    let content = RawFile::embedded(digits::NAME, digits::EMBEDDED).content().unwrap().into_owned();
    let read = |bytes: &[u8]| digits::decode(bytes, Split::Train);
    // The text is long and mostly right after any change: fewer seeds would do, and all are quick.
    match read(&content) {
        Ok(samples) => assert!(is_whole(&samples, 64, 10)),
        Err(error) => panic!("{error}"),
    }
    for seed in 0..50 {
        if let Ok(samples) = read(&mutated(&content, seed)) {
            assert!(is_whole(&samples, 64, 10), "seed {seed}");
        }
    }
}

#[test]
fn cifar_in_both_forms() {
    let record = |head: &[u8]| [head, &[9; 3072]].concat();
    let (ten, hundred) = (cifar(DataKind::Cifar10).labels, cifar(DataKind::Cifar100).labels);
    fuzz(
        "CIFAR-10, binary",
        &[record(&[3]), record(&[1])].concat(),
        |bytes| Cifar::Ten.decode_binary(bytes, &ten),
        |samples| is_whole(samples, 3072, 10),
    );
    fuzz(
        "CIFAR-100, binary",
        &record(&[4, 0]),
        |bytes| Cifar::Hundred.decode_binary(bytes, &hundred),
        |samples| is_whole(samples, 3072, 100),
    );
    let pickle = dict(&[("labels", list(&[3])), ("data", array(1, 3072, &[9; 3072]))]);
    fuzz("pickle", &pickle, pickle::read, |_| true);
    fuzz(
        "CIFAR-10, pickled",
        &pickle,
        |bytes| Cifar::Ten.decode_pickle(bytes, &ten),
        |samples| is_whole(samples, 3072, 10),
    );
}

#[test]
fn archives() {
    let files = [("a/one".to_owned(), vec![1; 700]), ("a/two".to_owned(), vec![2; 9])];
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("archive");
    let read = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        unpack(&RawFile::read(&path)?, 2, |name| {
            ["one", "two"].iter().position(|known| *known == name)
        })
    };
    let contents = |(files, _): &(Vec<Option<RawFile>>, Vec<String>)| {
        // The checksum covers every byte: what is accepted is what was written.
        files
            .iter()
            .flatten()
            .map(|file| file.content().unwrap().into_owned())
            .all(|file| file == [1; 700] || file == [2; 9])
    };
    fuzz("tar.gz", &tar_gz(&files), read, contents);
    fuzz("zip of a few files", &zip(&files), read, contents);
    let read = |bytes: &[u8]| -> Result<Vec<Vec<u8>>, DataError> {
        fs::write(&path, bytes).unwrap();
        let mut tree = Tree::open(&path)?;
        tree.top(&["train"])?;
        tree.list("")?;
        let read = |(_, file)| tree.read(file).map_err(|fault| DataError::raw(&path, fault));
        tree.below("").map(read).collect()
    };
    let contents = |files: &Vec<Vec<u8>>| {
        files.iter().all(|file| [&[1; 700][..], &[2; 9]].contains(&file.as_slice()))
    };
    fuzz("zip", &zip(&files), read, contents);
}

#[test]
fn pictures() {
    let read = |bytes: &[u8]| {
        let mut out = vec![0; 16 * 16 * 3];
        picture::decode(bytes, Rules { size: Size::Fit(16), exif_orientation: true }, &mut out)
            .map(|_| out)
    };
    let whole = |out: &Vec<u8>| out.len() == 768;
    fuzz("JPEG", &jpeg(16, 1), read, whole);
    fuzz("grey JPEG", &jpeg(24, 2), read, whole);
    fuzz("PNG", &png(20, 16, 3), read, whole);
    for format in
        [ImageFormat::WebP, ImageFormat::Bmp, ImageFormat::Tiff, ImageFormat::Gif, ImageFormat::Pnm]
    {
        fuzz(&format!("{format:?}"), &picture_in(format), read, whole);
    }
}
