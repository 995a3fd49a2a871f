//! TinyImageNet and folders of pictures: what is packed, skipped and refused.

use super::writers::{jpeg, png, tinyimagenet, unpacked, zip};
use super::*;
use thanos_configs::OnBadImage;

/// Two classes of three pictures to train on, of different sizes and formats, and one each to test.
fn image_folder() -> Folders {
    let folders = Folders::new();
    folders
        .put("train/cat/a.png", &png(80, 40, 1))
        .put("train/cat/b.jpg", &jpeg(32, 2))
        .put("train/cat/c.JPEG", &jpeg(50, 3));
    folders
        .put("train/dog/a.png", &png(32, 32, 4))
        .put("train/dog/b.PNG", &png(32, 90, 5))
        .put("train/dog/sub/c.jpg", &jpeg(32, 6));
    folders
        .put("test/cat/x.png", &png(32, 32, 7))
        .put("test/dog/y.png", &png(40, 40, 8))
        .put("train/.DS_Store", b"hidden");
    folders
}

fn config(folders: &Folders, change: impl FnOnce(&mut DataConfig)) -> DataConfig {
    let dir = Some(folders.raw.path().to_owned());
    let mut config =
        DataConfig { kind: DataKind::ImageFolder, dir, side: Some(32), ..DataConfig::default() };
    change(&mut config);
    config
}

fn pack_folder(
    folders: &Folders,
    change: impl FnOnce(&mut DataConfig),
) -> Result<Packs, DataError> {
    pack(&config(folders, change), folders.packs.path(), TestImages::Required, &|_, _, _| {})
}

#[track_caller]
fn refused(folders: &Folders, expected: &str) {
    let error = pack_folder(folders, |_| {}).unwrap_err();
    assert_eq!(error.exit_code(), 65);
    let message = error.to_string().replace(&folders.raw.path().display().to_string(), "RAW");
    assert!(message.starts_with(expected), "expected `{expected}`, got `{message}`");
}

#[test]
fn tinyimagenet_is_the_same_as_folder_and_as_zip() {
    let mut fingerprints = Vec::new();
    for prefix in ["", "tiny-imagenet-200/"] {
        let files = tinyimagenet(prefix);
        let folders = Folders::new();
        unpacked(folders.raw.path(), &files);
        let packs = folders.pack(DataKind::Tinyimagenet).unwrap();
        let (shape, images, fine, coarse) = tensors(&packs.train);
        assert_eq!(shape, [200, 64, 64, 3]);
        assert_eq!(fine, (0..200).collect::<Vec<i64>>());
        // The published map begins 14, 31, 16, 16, 8 and ends 58, 58, 27.
        assert_eq!((&coarse[..5], &coarse[197..]), (&[14, 31, 16, 16, 8][..], &[58, 58, 27][..]));
        let gray = |image: usize| {
            images[image * 12288..(image + 1) * 12288]
                .as_chunks::<3>()
                .0
                .iter()
                .all(|[r, g, b]| r == g && g == b)
        };
        assert!(gray(2) && !gray(0), "the third is grey");
        assert_eq!(tensors(&packs.test).2, [7, 150, 7]);
        let header = PackHeader::read(&packs.train.path).unwrap();
        assert_eq!((header.fine_names[7].as_str(), header.coarse_names.len()), ("n007", 67));
        fingerprints.push((packs.train.fingerprint, packs.test.fingerprint));
        let folders = Folders::new();
        let packs = folders
            .put("tiny-imagenet-200.zip", &zip(&files))
            .pack(DataKind::Tinyimagenet)
            .unwrap();
        fingerprints.push((packs.train.fingerprint, packs.test.fingerprint));
        assert!(folders.pack(DataKind::Tinyimagenet).unwrap().reused);
    }
    assert!(fingerprints.iter().all(|other| *other == fingerprints[0]), "{fingerprints:?}");
}

#[test]
fn bad_tinyimagenets_say_what_is_wrong() {
    let check = |name: &str, content: Option<&[u8]>, expected: &str| {
        let folders = Folders::new();
        unpacked(folders.raw.path(), &tinyimagenet(""));
        match content {
            Some(content) => _ = folders.put(name, content),
            None => fs::remove_file(folders.raw.path().join(name)).unwrap(),
        }
        let refusal = folders.refusal(DataKind::Tinyimagenet);
        assert!(refusal.starts_with(expected), "expected `{expected}`, got `{refusal}`");
    };
    let list = |edit: &dyn Fn(String) -> String| {
        edit((0..200).map(|class| format!("n{class:03}\n")).collect()).into_bytes()
    };
    check(
        "wnids.txt",
        Some(&list(&|text| text.replace("n004", "n003"))),
        "RAW/wnids.txt: line 5: `n003` occurs twice",
    );
    check(
        "wnids.txt",
        Some(&list(&|text| text + "n200\n")),
        "RAW/wnids.txt: expected 200 classes, got 201",
    );
    check(
        "train/n999/images/a.JPEG",
        Some(&jpeg(64, 1)),
        "RAW/train/n999/images/a.JPEG: expected a wnid of wnids.txt, got `n999`",
    );
    check(
        "train/n005/images/n005_0.JPEG",
        None,
        "RAW/train/n005/images: there are no images in it",
    );
    let cut = &jpeg(64, 5)[..300];
    check(
        "train/n005/images/n005_0.JPEG",
        Some(cut),
        "RAW/train/n005/images/n005_0.JPEG: the JPEG is cut off after 300 bytes",
    );
    check(
        "train/n005/images/n005_0.JPEG",
        Some(&jpeg(32, 5)),
        "RAW/train/n005/images/n005_0.JPEG: expected 64 x 64 pixels, got 32 x 32",
    );
    check(
        "train/n005/images/n005_1.JPEG",
        Some(b"GIF89a"),
        "RAW/train/n005/images/n005_1.JPEG: the image is damaged",
    );
    check(
        "val/val_annotations.txt",
        Some(b"val_0.JPEG\tn777\t0\n"),
        "RAW/val/val_annotations.txt: line 1: expected a wnid of wnids.txt, got `n777`",
    );
    check(
        "val/val_annotations.txt",
        Some(b"val_9.JPEG\tn007\t0\n"),
        "RAW/val/val_annotations.txt: line 1: there is no file val/images/val_9.JPEG",
    );
    check(
        "val/val_annotations.txt",
        Some(b"val_0.JPEG\tn007\t0\n"),
        "RAW/val/images/val_1.JPEG: it has no line in val/val_annotations.txt",
    );
    check("val/val_annotations.txt", None, "RAW/val/val_annotations.txt: it does not exist");
}

#[test]
fn a_folder_has_its_classes_and_a_measured_mean() {
    let folders = image_folder();
    let packs = pack_folder(&folders, |_| {}).unwrap();
    let (shape, _, fine, coarse) = tensors(&packs.train);
    assert_eq!((shape, &fine, &coarse), (vec![6, 32, 32, 3], &vec![0, 0, 0, 1, 1, 1], &fine));
    let (train, test) =
        (info(&packs.train.path).unwrap(), PackHeader::read(&packs.test.path).unwrap());
    assert_eq!(PackHeader::read(&packs.train.path).unwrap().mean, train.mean);
    assert_eq!((test.mean, test.std), (train.mean, train.std), "those of the training images");
    assert_eq!(test.fine_names, ["cat", "dog"]);
    assert!(pack_folder(&folders, |_| {}).unwrap().reused);
    assert!(!pack_folder(&folders, |config| config.side = Some(16)).unwrap().reused);
    folders.put("map.yaml", b"cat: pet\ndog: pet\n");
    let mapped = pack_folder(&folders, |config| {
        config.coarse_map = Some(folders.raw.path().join("map.yaml"))
    })
    .unwrap();
    assert_eq!(tensors(&mapped.train).3, [0; 6]);
    let error =
        pack_folder(&folders, |config| config.coarse_map = Some("/none.yaml".into())).unwrap_err();
    assert!(
        error.to_string().starts_with("data.coarse_map=/none.yaml: cannot be read: "),
        "{error}"
    );
}

#[test]
fn bad_folders_say_what_is_wrong() {
    let check = |name: &str, content: &[u8], expected: &str| {
        let folders = image_folder();
        folders.put(name, content);
        refused(&folders, expected);
    };
    check("train/cat/d.png", &png(9, 9, 1)[..40], "RAW/train/cat/d.png: the image is damaged");
    refused(
        &Folders::new(),
        "data.dir=RAW: there is no folder of training images such as train/ in it",
    );
}

#[test]
fn bad_images_are_skipped_and_reported_on_request() {
    let folders = image_folder();
    folders.put("train/cat/bad.jpg", &jpeg(32, 1)[..200]).put("train/dog/bad.png", b"x");
    refused(
        &folders,
        "RAW/train/cat/bad.jpg: the JPEG is cut off after 200 bytes; replace it, or skip",
    );
    let skip = |config: &mut DataConfig| config.on_bad_image = OnBadImage::Skip;
    let packs = pack_folder(&folders, skip).unwrap();
    assert_eq!((packs.train.images, packs.test.images), (6, 2));
    let names: Vec<&str> = packs.train.skipped.iter().map(|image| image.name.as_str()).collect();
    assert_eq!(names, ["train/cat/bad.jpg", "train/dog/bad.png"]);
    assert_eq!(tensors(&packs.train).2, [0, 0, 0, 1, 1, 1], "labels stay with their images");
    let again = pack_folder(&folders, skip).unwrap();
    assert!(
        again.reused && again.train.skipped == packs.train.skipped,
        "reported again when the pack is used again"
    );
    verify(&packs.train.path).unwrap();
    let report = info(&packs.train.path).unwrap().to_string();
    assert!(
        report.contains(
            "skipped      2 that could not be decoded\n  train/cat/bad.jpg: the JPEG is cut off"
        ),
        "{report}"
    );
    let without = image_folder();
    assert_eq!(
        tensors(&pack_folder(&without, |_| {}).unwrap().train).1,
        tensors(&packs.train).1,
        "as if they were not there"
    );
}

#[test]
fn zips_that_lead_out_or_hide_a_name_are_refused() {
    let check = |bytes: &[u8], expected: &str| {
        let folders = Folders::new();
        let refusal = folders.put("tiny-imagenet-200.zip", bytes).refusal(DataKind::Tinyimagenet);
        let expected = format!("RAW/tiny-imagenet-200.zip{expected}");
        assert!(refusal.starts_with(&expected), "expected `{expected}`, got `{refusal}`");
    };
    let with = |name: &str| {
        let mut files = tinyimagenet("");
        files.push((name.into(), b"x".to_vec()));
        zip(&files)
    };
    check(
        &with("../../evil.JPEG"),
        ": the entry `../../evil.JPEG` leads out of the archive's folder",
    );
    check(
        &with("/etc/evil.JPEG"),
        ": the entry `/etc/evil.JPEG` leads out of the archive's folder",
    );
    check(&with("train\\evil.JPEG"), ": the entry `train\\\\evil.JPEG` leads out");
    // The writer refuses a name that occurs twice: one of the same length is renamed in the bytes.
    let mut twice = with("wnids.tx_");
    for at in 0..twice.len() - 9 {
        if &twice[at..at + 9] == b"wnids.tx_" {
            twice[at + 8] = b't';
        }
    }
    check(&twice, ": a name occurs twice in the .zip");
    let good = zip(&tinyimagenet(""));
    check(&good[..good.len() - 30], ": the .zip is damaged");
    check(b"no zip", ": the .zip is damaged");
    // A byte of a picture's compressed data is changed: its checksum shows it.
    let mut flipped = good.clone();
    let at = good.windows(6).position(|name| name == b"n000_0").unwrap() + 100;
    flipped[at] ^= 0x55;
    check(&flipped, "/train/n000/images/n000_0.JPEG: ");
}

/// A megabyte of zeros that is a kilobyte in the archive, where a picture should be, and one that
/// unpacks to more than any picture may have.
#[test]
fn bombs_in_a_zip_are_refused() {
    let mut files = tinyimagenet("");
    files.push(("train/n000/images/z.JPEG".into(), vec![0; 65 << 20]));
    let folders = Folders::new();
    let refusal =
        folders.put("tiny-imagenet-200.zip", &zip(&files)).refusal(DataKind::Tinyimagenet);
    let expected = "RAW/tiny-imagenet-200.zip/train/n000/images/z.JPEG: more than 67108864 bytes";
    assert!(refusal.starts_with(expected), "{refusal}");
}
