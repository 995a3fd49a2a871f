//! What Pillow makes of small pictures of every kind, in golden/pillow.zip (golden/pillow.py wrote
//! it): the same are read, to the same pixels, as near as two decoders of a lossy format come.

use super::super::picture::{Oddity, Rules, Size, decode_rgb};
use std::collections::HashMap;
use std::io::{Cursor, Read};
use zip::ZipArchive;

const GOLDEN: &[u8] = include_bytes!("golden/pillow.zip");

/// TIFF files of a kind that the `tiff` crate does not decode.
const READ_BY_PILLOW_ALONE: [&str; 2] = ["grey_alpha.tif", "palette.tif"];
/// Damaged data: what is made of the rest is each decoder's own.
const OWN_PIXELS: [&str; 2] = ["hole.jpg", "early_end.jpg"];

/// A picture and its size; 0 x 0 of one that Pillow refuses.
type Sized = (String, u32, u32);

fn golden() -> (Vec<Sized>, HashMap<String, Vec<u8>>) {
    let mut archive = ZipArchive::new(Cursor::new(GOLDEN)).unwrap();
    let mut files = HashMap::new();
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index).unwrap();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        files.insert(entry.name().unwrap().into_owned(), content);
    }
    let sizes = String::from_utf8(files["sizes.txt"].clone()).unwrap();
    let line = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        (words[0].to_owned(), words[1].parse().unwrap(), words[2].parse().unwrap())
    };
    (sizes.lines().map(line).collect(), files)
}

/// The largest and the mean difference of a channel.
fn difference(ours: &[u8], theirs: &[u8]) -> (u8, f64) {
    let all = ours.iter().zip(theirs).map(|(ours, theirs)| ours.abs_diff(*theirs));
    let sum: u64 = all.clone().map(u64::from).sum();
    (all.max().unwrap_or(0), sum as f64 / ours.len() as f64)
}

#[test]
fn the_same_pictures_are_read_to_the_same_pixels() {
    let (sizes, files) = golden();
    assert!(sizes.len() > 70, "{} pictures", sizes.len());
    let rules = Rules { size: Size::Fit(8), exif_orientation: false };
    let mut wrong = Vec::new();
    for (name, width, height) in &sizes {
        match (decode_rgb(&files[name], rules), *width > 0) {
            (Err(_), false) => {}
            (Err(_), true) if READ_BY_PILLOW_ALONE.contains(&name.as_str()) => {}
            (Err(error), true) => wrong.push(format!("{name}: Pillow reads it: {error}")),
            (Ok(_), false) => wrong.push(format!("{name}: Pillow does not read it")),
            (Ok((picture, _)), true) => {
                let theirs = &files[&format!("{name}.rgb")];
                if picture.dimensions() != (*width, *height) {
                    wrong.push(format!(
                        "{name}: {:?}, expected {width} x {height}",
                        picture.dimensions()
                    ));
                    continue;
                }
                let (max, mean) = difference(picture.as_raw(), theirs);
                let is_lossy = files[name].starts_with(&[0xff, 0xd8])
                    || name == "lossy.webp"
                    || name == "jpeg.tif";
                let allowed = if is_lossy { (6, 1.0) } else { (0, 0.0) };
                if (max > allowed.0 || mean > allowed.1) && !OWN_PIXELS.contains(&name.as_str()) {
                    wrong.push(format!("{name}: differs by up to {max}, {mean:.3} on average"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_is_odd_is_noted() {
    let (_, files) = golden();
    let check = |name: &str, expected: Option<Oddity>| {
        let rules = Rules { size: Size::Fit(8), exif_orientation: false };
        assert_eq!(decode_rgb(&files[name], rules).expect(name).1, expected, "{name}");
    };
    check("base.jpg", None);
    check("tail_zeros.jpg", None);
    check("comment.jpg", None);
    check("tail_newline.jpg", Some(Oddity::BytesAfterEnd));
    check("tail_motion_photo.jpg", Some(Oddity::BytesAfterEnd));
    check("preview.mpo.jpg", Some(Oddity::BytesAfterEnd));
    check("early_end.jpg", Some(Oddity::BytesAfterEnd));
    check("no_end.png", Some(Oddity::Damaged));
}

/// Orientation 6: the first row of pixels is the right column of the picture.
#[test]
fn exif_orientation_is_applied_on_request() {
    let (_, files) = golden();
    for name in ["exif6.jpg", "exif6.png"] {
        let read = |exif_orientation| {
            decode_rgb(&files[name], Rules { size: Size::Fit(8), exif_orientation }).expect(name).0
        };
        let (plain, turned) = (read(false), read(true));
        assert_eq!((plain.dimensions(), turned.dimensions()), ((31, 22), (22, 31)), "{name}");
        let right_column: Vec<_> = (0..31).map(|y| *turned.get_pixel(21, y)).collect();
        let first_row: Vec<_> = (0..31).map(|x| *plain.get_pixel(x, 0)).collect();
        assert_eq!(right_column, first_row, "{name}");
    }
}
