//! Writes small files in the published formats, for tests of what reads them.

use flate2::Compression;
use flate2::write::GzEncoder;
use image::codecs::jpeg::JpegEncoder;
use image::{DynamicImage, GrayImage, ImageFormat, RgbImage};
use std::fs;
use std::io::{Cursor, Write};
use std::path::Path;
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

/// A protocol 2 pickle as Python 2 wrote the published batches: a dict of `entries`, each pickled
/// already.
pub(crate) fn dict(entries: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut pickle = b"\x80\x02}(".to_vec();
    for (key, value) in entries {
        pickle.extend(text(key.as_bytes()));
        pickle.extend(value);
    }
    pickle.extend(b"u.");
    pickle
}

fn text(bytes: &[u8]) -> Vec<u8> {
    [&b"T"[..], &(bytes.len() as u32).to_le_bytes(), bytes].concat()
}

pub(crate) fn list(labels: &[i64]) -> Vec<u8> {
    let items =
        labels.iter().flat_map(|label| [&b"J"[..], &(*label as i32).to_le_bytes()].concat());
    b"](".iter().copied().chain(items).chain(*b"e").collect()
}

/// A numpy array of [rows, columns] u8.
pub(crate) fn array(rows: usize, columns: usize, bytes: &[u8]) -> Vec<u8> {
    let number = |n: usize| [&b"J"[..], &(n as u32).to_le_bytes()].concat();
    [
        &b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85U\x01b\x87R(K\x01"[..],
        &number(rows),
        &number(columns),
        b"\x86cnumpy\ndtype\nU\x02u1K\0K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\
             \xffK\0tb\x89",
        &text(bytes),
        b"tb",
    ]
    .concat()
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A .tar.gz of files.
pub(crate) fn tar_gz(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    gzip(&tar(files))
}

/// A .tar of files.
pub(crate) fn tar(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, content.as_slice()).unwrap();
    }
    tar.into_inner().unwrap()
}

/// A .zip of files.
pub(crate) fn zip(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, content) in files {
        zip.start_file(name.as_str(), SimpleFileOptions::default()).unwrap();
        zip.write_all(content).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

/// A JPEG of side x side pixels that differ with `seed`; every third is grey.
pub(crate) fn jpeg(side: u32, seed: u8) -> Vec<u8> {
    let mut file = Vec::new();
    let mut encoder = JpegEncoder::new_with_quality(&mut file, 90);
    let value = |x: u32, y: u32| (x * 3 + y * 2 + u32::from(seed) * 11) as u8;
    if seed % 3 == 2 {
        encoder
            .encode_image(&GrayImage::from_fn(side, side, |x, y| image::Luma([value(x, y)])))
            .unwrap();
    } else {
        let pixel = |x, y| image::Rgb([value(x, y), value(y, x), seed]);
        encoder.encode_image(&RgbImage::from_fn(side, side, pixel)).unwrap();
    }
    file
}

pub(crate) fn png(width: u32, height: u32, seed: u8) -> Vec<u8> {
    let mut file = Cursor::new(Vec::new());
    let picture = RgbImage::from_fn(width, height, |x, y| image::Rgb([x as u8, y as u8, seed]));
    DynamicImage::from(picture).write_to(&mut file, ImageFormat::Png).unwrap();
    file.into_inner()
}

/// A picture of 8 x 8 pixels of one grey.
pub(crate) fn solid_png(grey: u8) -> Vec<u8> {
    let mut file = Cursor::new(Vec::new());
    DynamicImage::from(RgbImage::from_pixel(8, 8, image::Rgb([grey; 3])))
        .write_to(&mut file, ImageFormat::Png)
        .unwrap();
    file.into_inner()
}

/// A small picture of many colours in a format.
pub(crate) fn picture_in(format: ImageFormat) -> Vec<u8> {
    let mut file = Cursor::new(Vec::new());
    let picture = RgbImage::from_fn(21, 17, |x, y| image::Rgb([x as u8 * 9, y as u8 * 11, 40]));
    DynamicImage::from(picture).write_to(&mut file, format).unwrap();
    file.into_inner()
}

/// Puts files below a folder.
pub(crate) fn unpacked(folder: &Path, files: &[(String, Vec<u8>)]) {
    for (name, content) in files {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
}

/// A TinyImageNet of 200 classes n00..n199 with a picture each, and three pictures to test; names
/// begin with `prefix`.
pub(crate) fn tinyimagenet(prefix: &str) -> Vec<(String, Vec<u8>)> {
    let wnid = |class: usize| format!("n{class:03}");
    // Not in sorted order, like the official list.
    let list: String = (0..200).rev().map(|class| wnid(class) + "\n").collect();
    let mut files = vec![("wnids.txt".to_owned(), list.into_bytes())];
    for class in 0..200 {
        let folder = format!("train/{}", wnid(class));
        files.push((format!("{folder}/images/{}_0.JPEG", wnid(class)), jpeg(64, class as u8)));
        files.push((
            format!("{folder}/{}_boxes.txt", wnid(class)),
            b"n_0.JPEG\t0\t0\t62\t62\n".to_vec(),
        ));
    }
    let mut annotations = String::new();
    for (image, class) in [7, 150, 7].into_iter().enumerate() {
        files.push((format!("val/images/val_{image}.JPEG"), jpeg(64, 200 + image as u8)));
        annotations += &format!("val_{image}.JPEG\t{}\t0\t32\t44\t62\n", wnid(class));
    }
    files.push(("val/val_annotations.txt".into(), annotations.into_bytes()));
    files.push(("test/images/test_0.JPEG".into(), b"not read".to_vec()));
    files.into_iter().map(|(name, content)| (format!("{prefix}{name}"), content)).collect()
}
