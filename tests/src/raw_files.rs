//! Raw files of data sets, small and in their published formats: what a user has before a run.

use image::codecs::jpeg::JpegEncoder;
use image::{Rgb, RgbImage};
use std::fs;
use std::io::{Cursor, Write};
use std::path::Path;
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

/// The superclass of each class of CIFAR-100 (cs.toronto.edu/~kriz/cifar.html).
const COARSE_OF: [u8; 100] = [
    4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11, 6, 11, 5, 10, 7, 6, 13, 15,
    3, 15, 0, 11, 1, 10, 12, 14, 16, 9, 11, 5, 5, 19, 8, 8, 15, 13, 14, 17, 18, 10, 16, 4, 17, 4,
    2, 0, 17, 4, 18, 17, 10, 3, 2, 12, 12, 16, 12, 1, 9, 19, 2, 10, 0, 1, 16, 12, 9, 13, 15, 13,
    16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0, 17, 8, 14, 13,
];

/// The binary version of CIFAR-100, its labels in turn.
///
/// # Panics
/// If a file cannot be written.
pub fn cifar100(folder: &Path, train: usize, test: usize) {
    fs::create_dir_all(folder).expect("a folder");
    for (name, images) in [("train.bin", train), ("test.bin", test)] {
        let record = |image: usize| {
            let fine = image % 100;
            let pixels = (0..3072).map(move |at| (at * 5 + image * 37) as u8);
            [COARSE_OF[fine], fine as u8].into_iter().chain(pixels)
        };
        fs::write(folder.join(name), (0..images).flat_map(record).collect::<Vec<u8>>())
            .expect("a file");
    }
}

/// The binary version of CIFAR-10: six batches of this many images, their labels in turn.
///
/// # Panics
/// If a file cannot be written.
pub fn cifar10(folder: &Path, images: usize) {
    fs::create_dir_all(folder).expect("a folder");
    let names =
        (1..=5).map(|number| format!("data_batch_{number}.bin")).chain(["test_batch.bin".into()]);
    for (batch, name) in names.enumerate() {
        let record = |image: usize| {
            let pixels = (0..3072).map(move |at| (at * 3 + image * 41 + batch * 7) as u8);
            [(image % 10) as u8].into_iter().chain(pixels)
        };
        fs::write(folder.join(name), (0..images).flat_map(record).collect::<Vec<u8>>())
            .expect("a file");
    }
}

/// A TinyImageNet of 200 classes with one picture each to train on, and ten to test.
///
/// # Panics
/// If the archive cannot be written.
pub fn tinyimagenet_zip(path: &Path) {
    let jpeg = |seed: usize| {
        let mut file = Vec::new();
        let pixel = |x: u32, y: u32| Rgb([(x * 4) as u8, (y * 4) as u8, seed as u8]);
        JpegEncoder::new_with_quality(&mut file, 90)
            .encode_image(&RgbImage::from_fn(64, 64, pixel))
            .expect("a JPEG");
        file
    };
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let mut put = |name: &str, content: &[u8]| {
        zip.start_file(format!("tiny-imagenet-200/{name}"), SimpleFileOptions::default())
            .expect("an entry");
        zip.write_all(content).expect("an entry");
    };
    put("wnids.txt", (0..200).map(|class| format!("n{class:08}\n")).collect::<String>().as_bytes());
    for class in 0..200 {
        put(&format!("train/n{class:08}/images/n{class:08}_0.JPEG"), &jpeg(class));
    }
    let mut annotations = String::new();
    for image in 0..10 {
        put(&format!("val/images/val_{image}.JPEG"), &jpeg(image * 20));
        annotations += &format!("val_{image}.JPEG\tn{:08}\t0\t0\t63\t63\n", image * 20);
    }
    put("val/val_annotations.txt", annotations.as_bytes());
    let bytes = zip.finish().expect("an archive").into_inner();
    fs::create_dir_all(path.parent().expect("in a folder")).expect("a folder");
    fs::write(path, bytes).expect("a file");
}

/// Three colours, ten pictures each to train on and two to test, of several sizes.
///
/// # Panics
/// If a picture cannot be written.
pub fn image_folder(folder: &Path) {
    for (class, colour) in [("red", [255, 0, 0]), ("yellow", [255, 255, 0]), ("blue", [0, 0, 255])]
    {
        for (split, pictures) in [("train", 10), ("test", 2)] {
            let folder = folder.join(split).join(class);
            fs::create_dir_all(&folder).expect("a folder");
            for picture in 0..pictures {
                let image = RgbImage::from_pixel(32 + 3 * picture, 40 + picture, Rgb(colour));
                image.save(folder.join(format!("{picture}.png"))).expect("a PNG");
            }
        }
    }
}
