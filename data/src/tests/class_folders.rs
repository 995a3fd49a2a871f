//! Folders of pictures as people have them: which folders are the splits and the classes, which
//! files count, in torchvision's order, and what is next to them.

use super::super::tree::Tree;
use super::writers::{jpeg, png, solid_png, zip};
use super::*;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use thanos_configs::split_train_validation;

/// golden/image_folder.py wrote it.
const GOLDEN: &str = include_str!("golden/image_folder.txt");

fn folder_config(folders: &Folders) -> DataConfig {
    let dir = Some(folders.raw.path().to_owned());
    DataConfig { kind: DataKind::ImageFolder, dir, side: Some(8), ..DataConfig::default() }
}

fn pack_with(folders: &Folders, change: impl FnOnce(&mut DataConfig)) -> Result<Packs, DataError> {
    let mut config = folder_config(folders);
    change(&mut config);
    pack(&config, folders.packs.path(), TestImages::Required, &|_, _, _| {})
}

#[track_caller]
fn refusal(folders: &Folders, change: impl FnOnce(&mut DataConfig)) -> String {
    let error = pack_with(folders, change).expect_err("it is refused");
    error.to_string().replace(&folders.raw.path().display().to_string(), "RAW")
}

/// A class `cat` and a class `dog` with a picture each, in both splits.
fn two_classes(train: &str, test: &str) -> Folders {
    let folders = Folders::new();
    for (number, name) in [(1, "cat/a.png"), (2, "dog/a.png")] {
        folders.put(&format!("{train}/{name}"), &solid_png(number));
        folders.put(&format!("{test}/{name}"), &solid_png(number + 10));
    }
    folders
}

/// Every file is of a colour of its own, so that an image of the pack names its file.
#[test]
fn samples_labels_and_classes_are_those_of_torchvision() {
    let of = |kind: &str| {
        GOLDEN.lines().filter_map(|line| line.strip_prefix(kind)).map(str::to_owned).collect()
    };
    let (files, links, classes, samples): (Vec<String>, Vec<String>, Vec<String>, Vec<String>) =
        (of("file "), of("link "), of("class "), of("sample "));
    let folders = Folders::new();
    for (number, name) in files.iter().enumerate() {
        folders.put(name, &solid_png(number as u8 * 5));
    }
    for link in &links {
        let (name, target) = link.split_once('\t').unwrap();
        symlink(target, folders.raw.path().join(name)).unwrap();
    }
    let packs = pack_with(&folders, |config| config.test_folder = Some("train".into()));
    assert!(packs.is_ok(), "{packs:?}");
    let packs = packs.unwrap();
    assert_eq!(PackHeader::read(&packs.train.path).unwrap().fine_names, classes);
    let (_, images, fine, _) = tensors(&packs.train);
    assert_eq!((fine.len(), images.len()), (samples.len(), samples.len() * 192));
    for (at, sample) in samples.iter().enumerate() {
        let (name, label) = sample.split_once('\t').unwrap();
        let file = fs::canonicalize(folders.raw.path().join(name)).unwrap();
        let number = files
            .iter()
            .position(|name| fs::canonicalize(folders.raw.path().join(name)).unwrap() == file);
        assert_eq!(usize::from(images[at * 192]), number.unwrap() * 5, "sample {at}, {name}");
        assert_eq!(fine[at].to_string(), label, "sample {at}, {name}");
    }
    let notes = packs.notes.join("\n");
    assert!(
        notes.contains("1 images in train/ are in no class folder and not used: train/loose.png"),
        "{notes}"
    );
    assert!(notes.contains(
        "3 files in train/ are not used, as their names are not those of images: train/9/x.png.bak"
    ));
}

#[test]
fn splits_have_any_common_name_or_a_given_one() {
    let expected = pack_with(&two_classes("train", "test"), |_| {}).unwrap();
    let prints = |packs: Packs| (packs.train.fingerprint, packs.test.fingerprint);
    let expected = prints(expected);
    for (train, test) in
        [("Train", "val"), ("training", "valid"), ("train", "Validation"), ("TRAINING", "TESTING")]
    {
        assert_eq!(
            prints(pack_with(&two_classes(train, test), |_| {}).unwrap()),
            expected,
            "{train} {test}"
        );
    }
    let named = |config: &mut DataConfig| {
        (config.train_folder, config.test_folder) =
            (Some("images/a".into()), Some("images/b".into()));
    };
    assert_eq!(prints(pack_with(&two_classes("images/a", "images/b"), named).unwrap()), expected);
    let check = |folders: Folders, expected: &str| {
        let got = refusal(&folders, |_| {});
        assert!(got.starts_with(expected), "expected `{expected}`, got `{got}`");
    };
    check(
        two_classes("my_train", "my_test"),
        "data.dir=RAW: there is no folder of training images such as train/ in it, there is \
         my_test/, my_train/; name the folders, each with one folder per class, with \
         data.train_folder=my_train data.test_folder=my_test",
    );
    check(
        two_classes("birds/train", "birds/val"),
        "data.dir=RAW: there is no folder of training images such as train/ in it, there is \
         birds/; set data.dir=RAW/birds",
    );
    let folders = two_classes("train", "val");
    folders.put("test/1.png", &solid_png(1));
    check(folders, "RAW/test: 1 images are directly in it, expected one folder per class");
    let folders = two_classes("train", "test");
    folders.put("test/cow/a.png", &solid_png(3));
    check(
        folders,
        "RAW/test/cow: `cow` is not a class of the training images, which are in train/: cat, dog",
    );
    let folders = Folders::new();
    fs::create_dir(folders.raw.path().join("train")).unwrap();
    folders.put("val/cat/a.png", &solid_png(3));
    check(folders, "RAW/train: there are no images in it (.jpg, ");
}

#[test]
fn without_test_images_those_held_out_are_measured() {
    let folders = Folders::new();
    for number in 0..20 {
        folders.put(&format!("train/{}/{number:02}.png", number % 2), &solid_png(number * 10));
    }
    let refused = refusal(&folders, |_| {});
    let expected = "data.dir=RAW: found train/ and no test images; name their folder with \
        data.test_folder=FOLDER, or train backbones only with rows=[]";
    assert_eq!(refused, expected);
    let config = folder_config(&folders);
    let packs =
        || pack(&config, folders.packs.path(), TestImages::Optional, &|_, _, _| {}).unwrap();
    let first = packs();
    let (_, all, labels, _) = tensors(&first.train);
    let held_out = split_train_validation(20, 0.1).validation;
    assert_eq!(held_out.len(), 2);
    let (_, images, fine, _) = tensors(&first.test);
    for (at, id) in held_out.iter().map(|id| *id as usize).enumerate() {
        assert_eq!((images[at * 192], fine[at]), (all[id * 192], labels[id]));
    }
    assert!(
        first.notes.iter().any(|note| note.starts_with("there are no test images")),
        "{:?}",
        first.notes
    );
    assert!(packs().reused);
    let third = DataConfig { validation_fraction: 0.3, ..config.clone() };
    let third = pack(&third, folders.packs.path(), TestImages::Optional, &|_, _, _| {}).unwrap();
    assert_eq!((third.train, third.test.images), (first.train, 6));
}

/// Systems, desktops and users leave files next to the images, and among them.
#[test]
fn what_is_beside_the_images_does_not_matter() {
    let folders = two_classes("train", "test");
    let first = pack_with(&folders, |_| {}).unwrap();
    let stamp = || raw_stamp(&folder_config(&folders)).unwrap();
    let before = stamp();
    folders
        .put("logs/run.log", b"1")
        .put("lost+found/x", b"")
        .put("train/Thumbs.db", b"x")
        .put(".git/x", b"");
    folders
        .put("train/cat/Thumbs.db", b"x")
        .put("train/.DS_Store", b"x")
        .put("train/cat/._a.png", b"x");
    folders
        .put("train/__MACOSX/a.png", b"x")
        .put("train/cat/labels.csv", b"x")
        .put("test/readme.md", b"x");
    folders.put(&format!("{}x", "deep/".repeat(60)), b"");
    fs::create_dir(folders.raw.path().join("train/empty")).unwrap();
    symlink("nowhere", folders.raw.path().join("link")).unwrap();
    symlink("nowhere", folders.raw.path().join("train/cat/gone.png")).unwrap();
    symlink("self.png", folders.raw.path().join("train/cat/self.png")).unwrap();
    symlink("..", folders.raw.path().join("train/cat/loop")).unwrap();
    nix::unistd::mkfifo(
        &folders.raw.path().join("train/cat/pipe.png"),
        nix::sys::stat::Mode::S_IRWXU,
    )
    .unwrap();
    let raw = std::ffi::OsStr::from_bytes(b"not \xff UTF-8");
    fs::create_dir(folders.raw.path().join(raw)).unwrap();
    let second = pack_with(&folders, |_| {}).unwrap();
    assert_eq!((&second.train, &second.test, second.reused), (&first.train, &first.test, true));
    assert_eq!(stamp(), before);
    let notes = second.notes.join("\n");
    for part in [
        "1 files in train/ are not used, as their names are not those of images: \
        train/cat/labels.csv",
        "1 files in test/ are not used",
        "2 entries are dangling links and not used: train/cat/gone.png, train/cat/self.png",
        "1 entries are circular links and not used: train/cat/loop",
        "1 entries are neither files nor folders and not used: train/cat/pipe.png",
        "1 folders in train/ have no images and are not classes: empty",
    ] {
        assert!(notes.contains(part), "no `{part}` in\n{notes}");
    }
    // A picture whose name is not UTF-8 is a picture.
    let name = std::ffi::OsStr::from_bytes(b"z\xff.png");
    fs::write(folders.raw.path().join("train/cat").join(name), solid_png(9)).unwrap();
    assert_eq!(tensors(&pack_with(&folders, |_| {}).unwrap().train).2, [0, 0, 1]);
}

#[test]
fn one_class_may_be_encoded_in_two_ways() {
    let (composed, decomposed) = ("caf\u{e9}", "cafe\u{301}");
    let folders = Folders::new();
    folders
        .put(&format!("train/{decomposed}/a.png"), &solid_png(1))
        .put("train/b/a.png", &solid_png(2));
    folders
        .put(&format!("test/{composed}/a.png"), &solid_png(3))
        .put("test/b/a.png", &solid_png(4));
    folders.put("map.yaml", format!("{composed}: food\nb: {decomposed}\n").as_bytes());
    let map = folders.raw.path().join("map.yaml");
    let packs = pack_with(&folders, |config| config.coarse_map = Some(map)).unwrap();
    assert_eq!((tensors(&packs.train).2, tensors(&packs.test).2), (vec![0, 1], vec![0, 1]));
    let header = PackHeader::read(&packs.train.path).unwrap();
    assert_eq!(
        (header.fine_names, header.coarse_names),
        (vec!["b".to_owned(), composed.into()], vec![composed.to_owned(), "food".into()])
    );
    folders.put(&format!("train/{composed}/a.png"), &solid_png(1));
    let refused = refusal(&folders, |_| {});
    assert!(
        refused.contains("differ only in how an accent is encoded (Unicode normalisation)"),
        "{refused}"
    );
}

#[test]
fn a_zip_is_the_same_with_and_without_folders_around_all() {
    let expected = pack_with(&two_classes("train", "val"), |_| {}).unwrap();
    for prefix in ["", "birds/", "a/b/"] {
        let mut files = Vec::new();
        for (number, name) in [(1, "cat/a.png"), (2, "dog/a.png")] {
            files.push((format!("{prefix}train/{name}"), solid_png(number)));
            files.push((format!("{prefix}val/{name}"), solid_png(number + 10)));
        }
        files.push((format!("__MACOSX/{prefix}train/cat/._a.png"), b"x".to_vec()));
        let folders = Folders::new();
        let path = folders.put("mine.ZIP", &zip(&files)).raw.path().join("mine.ZIP");
        let packs = pack_with(&folders, |config| config.dir = Some(path)).unwrap();
        let prints = (packs.train.fingerprint, packs.test.fingerprint);
        assert_eq!(
            prints,
            (expected.train.fingerprint.clone(), expected.test.fingerprint.clone()),
            "{prefix}"
        );
    }
}

/// A .zip of 5 GiB: zeros that nothing asks for, and then a directory of two pictures, whose
/// offsets need 64 bits.
#[test]
fn a_zip_may_be_longer_than_memory() {
    let folders = Folders::new();
    let path = folders.raw.path().join("long.zip");
    let mut file = fs::File::create(&path).unwrap();
    std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(5 << 30)).unwrap();
    let mut zip = ::zip::ZipWriter::new(file);
    for (number, name) in [(1, "train/cat/a.png"), (2, "test/cat/a.png")] {
        zip.start_file(name, ::zip::write::SimpleFileOptions::default()).unwrap();
        std::io::Write::write_all(&mut zip, &solid_png(number)).unwrap();
    }
    drop(zip.finish().unwrap());
    assert!(fs::metadata(&path).unwrap().len() > 5 << 30);
    let mut tree = Tree::open(&path).unwrap();
    tree.list("train").unwrap();
    assert_eq!(tree.read(tree.find("train/cat/a.png").unwrap()).unwrap(), solid_png(1));
    let packs = pack_with(&folders, |config| config.dir = Some(path)).unwrap();
    assert_eq!((packs.train.images, packs.test.images), (1, 1));
}

#[test]
fn bytes_after_the_end_are_noted_and_read_again() {
    let folders = two_classes("train", "test");
    let whole = jpeg(32, 1);
    folders.put("train/cat/b.jpg", &whole);
    let plain = pack_with(&folders, |_| {}).unwrap();
    folders.put("train/cat/b.jpg", &[&whole[..], b"\nmotion"].concat());
    let odd = pack_with(&folders, |_| {}).unwrap();
    let expected = "1 image has bytes after the end of the image, which are ignored; the first is \
        train/cat/b.jpg";
    assert_eq!(odd.train.warnings, [expected]);
    assert_eq!(odd.train.fingerprint, plain.train.fingerprint, "the same pixels and labels");
    verify(&odd.train.path).unwrap();
    assert_eq!(
        pack_with(&folders, |_| {}).unwrap().train.warnings,
        [expected],
        "when it is reused, too"
    );
    assert!(
        info(&odd.train.path).unwrap().to_string().contains(&format!("\nwarning      {expected}"))
    );
    folders.put("train/dog/b.png", &png(9, 9, 1));
    assert!(!pack_with(&folders, |_| {}).unwrap().reused);
}

/// The pictures are replaced by others of the same length and time: decoding them would show.
#[test]
fn a_new_map_decodes_nothing() {
    let folders = two_classes("train", "test");
    folders.put("train/cat/b.jpg", &[&jpeg(32, 1)[..], b"x"].concat());
    let first = pack_with(&folders, |_| {}).unwrap();
    let stamp =
        fs::metadata(folders.raw.path().join("train/cat/a.png")).unwrap().modified().unwrap();
    let length = solid_png(1).len();
    folders.put("train/cat/a.png", &vec![0; length]);
    let file =
        fs::File::options().write(true).open(folders.raw.path().join("train/cat/a.png")).unwrap();
    file.set_modified(stamp).unwrap();
    folders.put("map.yaml", b"cat: pet\ndog: pet\n");
    let map = folders.raw.path().join("map.yaml");
    let mapped = || pack_with(&folders, |config| config.coarse_map = Some(map.clone()));
    let second = mapped().unwrap();
    assert!(!second.reused);
    let ((shape, images, fine, _), (_, mapped_images, mapped_fine, coarse)) =
        (tensors(&first.train), tensors(&second.train));
    assert_eq!((images, fine), (mapped_images, mapped_fine));
    assert_eq!((shape[0], coarse), (3, vec![0, 0, 0]));
    assert_eq!(second.train.warnings, first.train.warnings);
    verify(&second.train.path).unwrap();
    // A damaged pack is no source of pixels.
    for path in [&first.train.path, &second.train.path] {
        let mut bytes = fs::read(path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(path, bytes).unwrap();
    }
    fs::write(&map, "cat: pet\ndog: animal\n").unwrap();
    let refused = mapped().unwrap_err().to_string();
    assert!(refused.contains("train/cat/a.png: it is not a JPEG, PNG, "), "{refused}");
}
