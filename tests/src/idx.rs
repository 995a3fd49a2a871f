//! Small data sets in MNIST's file format, with images that can be distinguished: each class is a
//! bar at a place of its own, with noise.

use std::fs;
use std::path::Path;
use thanos_configs::SplitMix64;

const SIDE: usize = 28;

/// Writes the four files into `folder`, which is made.
///
/// # Panics
/// If they cannot be written.
pub fn write(folder: &Path, train: usize, test: usize) {
    fs::create_dir_all(folder).expect("a folder");
    for (prefix, images, seed) in [("train", train, 1), ("t10k", test, 2)] {
        let mut stream = SplitMix64::new(seed);
        let labels: Vec<u8> = (0..images).map(|image| (image % 10) as u8).collect();
        let pixels: Vec<u8> =
            labels.iter().flat_map(|label| picture(*label, &mut stream)).collect();
        let count = (images as u32).to_be_bytes();
        let side = (SIDE as u32).to_be_bytes();
        let with_header = |magic: u32, header: &[[u8; 4]], data: &[u8]| {
            [&magic.to_be_bytes()[..], &header.concat(), data].concat()
        };
        fs::write(
            folder.join(format!("{prefix}-images-idx3-ubyte")),
            with_header(0x803, &[count, side, side], &pixels),
        )
        .expect("images");
        fs::write(
            folder.join(format!("{prefix}-labels-idx1-ubyte")),
            with_header(0x801, &[count], &labels),
        )
        .expect("labels");
    }
}

fn picture(label: u8, stream: &mut SplitMix64) -> Vec<u8> {
    let (row, column) = (usize::from(label) / 5 * 14, usize::from(label) % 5 * 5);
    (0..SIDE * SIDE)
        .map(|pixel| {
            let inside = (row..row + 12).contains(&(pixel / SIDE))
                && (column..column + 5).contains(&(pixel % SIDE));
            stream.below(60) as u8 + if inside { 180 } else { 0 }
        })
        .collect()
}
