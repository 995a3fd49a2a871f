//! Every data set of the paper, on small files in its published format, from raw files to a result:
//! each preset's sides, decoder, labels and split fit its images. Two workers, two steps a stage.

use std::fs;
use std::path::Path;
use thanos_tests::raw_files::{cifar100, image_folder, tinyimagenet_zip};
use thanos_tests::{Scene, lines, results};

/// As small as the encoder may be, so that what takes time is what is asked about.
const SMALL: [&str; 7] = [
    "model.encoder.vit.width=16",
    "model.encoder.vit.depth=1",
    "model.encoder.vit.heads=2",
    "model.encoder.vit.mlp=16",
    "model.decoder.width=8",
    "train.max_steps=2",
    "transfer.max_steps=2",
];

fn launch(scene: &Scene, preset: &str, dir: &Path, extra: &[&str]) {
    let dir = format!("data.dir={}", dir.display());
    let target =
        [&[preset, &dir, "train.batch_size=20", "transfer.batch_size=20"][..], &SMALL, extra]
            .concat();
    let output = scene.launch(preset, 2, &target).expect(0).stderr;
    assert_eq!(
        output.contains("note: 200 train images, "),
        !preset.starts_with("image_folder"),
        "{output}"
    );
    let fine = &results(&scene.path(preset))["rows"][0]["fine_test_accuracy"];
    assert!(fine.as_f64().is_some_and(|fine| (0.0..=100.0).contains(&fine)), "{preset}: {fine}");
}

#[test]
fn each_trains_and_is_probed() {
    let scene = Scene::new();
    cifar100(&scene.path("cifar100"), 200, 100);
    launch(&scene, "cifar100_thanos", &scene.path("cifar100"), &[]);
    launch(&scene, "cifar100_u_thanos", &scene.path("cifar100"), &[]);
    tinyimagenet_zip(&scene.path("tiny/tiny-imagenet-200.zip"));
    launch(&scene, "tinyimagenet_thanos", &scene.path("tiny"), &[]);
    image_folder(&scene.path("mine"));
    fs::write(scene.path("map.yaml"), "red: warm\nyellow: warm\nblue: cold\n").expect("a file");
    launch(
        &scene,
        "image_folder_thanos",
        &scene.path("mine"),
        &["data.coarse_map=map.yaml", "data.side=32"],
    );
}

/// The last batch of the only epoch has what is left: its ids are all below the number of training
/// images, and with selection on the test images no image is held out.
#[test]
fn selection_on_the_test_images_trains_on_all_others() {
    let scene = Scene::new();
    image_folder(&scene.path("mine"));
    let images = |validation: &str, run: &str| {
        let (validation, dir) = (
            format!("data.validation={validation}"),
            format!("data.dir={}", scene.path("mine").display()),
        );
        let target =
            ["image_folder_supcon", &dir, &validation, "data.side=32", "train.epochs=1", "rows=[]"];
        scene.launch(run, 1, &[&target[..], &SMALL[..4]].concat()).expect(0);
        lines(&scene.path(run), "steps.jsonl")
            .iter()
            .map(|step| step["images"].as_u64().expect("a number"))
            .sum::<u64>()
    };
    assert_eq!(images("held_out", "a"), 27);
    assert_eq!(images("test", "b"), 30);
}

/// The sheet has a row for each of twelve images: the image itself as it is in the file, and nine
/// views.
#[test]
fn a_contact_sheet_shows_images_and_views() {
    let scene = Scene::new();
    image_folder(&scene.path("mine"));
    let packed = scene
        .coord(&["data", "pack", "image_folder", "--dir", "mine", "--side", "32"])
        .expect(0)
        .stdout;
    let pack = packed.lines().next().and_then(|line| line.rsplit(", ").next()).expect("a path");
    let output = scene.coord(&["data", "info", pack, "--images", "sheet.png"]).expect(0).stdout;
    assert!(output.contains("image_folder train: 30 images of 32 x 32 x 3"), "{output}");
    assert!(output.ends_with("contact sheet: sheet.png\n"), "{output}");
    let sheet = image::open(scene.path("sheet.png")).expect("a PNG").to_rgb8();
    assert_eq!(sheet.dimensions(), (10 * 66 + 2, 12 * 66 + 2));
    // Classes in sorted order: blue comes first, then red and yellow.
    let at = |column: u32, row: u32| sheet.get_pixel(2 + column * 66 + 32, 2 + row * 66 + 32).0;
    assert_eq!([at(0, 0), at(0, 1), at(0, 2)], [[0, 0, 255], [255, 0, 0], [255, 255, 0]]);
    let coloured = (1..10).filter(|view| at(*view, 0)[2] > at(*view, 0)[0]).count();
    assert!(coloured >= 4, "{coloured} of 9 views of a blue image are blue: one in five is grey");
    let again = scene.coord(&["data", "info", pack, "--images", "again.png"]).expect(0);
    assert_eq!(again.stdout.replace("again.png", "sheet.png"), output);
    assert_eq!(
        fs::read(scene.path("again.png")).expect("a file"),
        fs::read(scene.path("sheet.png")).expect("a file")
    );
    scene.coord(&["data", "info", pack, "--images", "other.png", "--seed", "1"]).expect(0);
    assert_ne!(
        fs::read(scene.path("other.png")).expect("a file"),
        fs::read(scene.path("sheet.png")).expect("a file")
    );
}
