//! Contact sheets: some images of a pack and augmented views of each, as the trainer sees them, as
//! one PNG file, so that the augmentation can be checked at a glance.

use super::error::DataError;
use super::pack_file::{self, Images};
use image::imageops::thumbnail;
use image::{ImageFormat, Rgb, RgbImage};
use std::io::Cursor;
use std::path::Path;
use thanos_configs::{ViewsConfig, view_key};
use thanos_formats::{PackFault, PackHeader};
use thanos_views::{Augmentation, Scratch};

/// Images of a sheet.
const IMAGES: usize = 12;
/// Pixels between two pictures.
const GAP: usize = 2;
/// A picture's least side on the sheet: smaller ones are shown larger, each pixel a square.
const MIN_SIDE: usize = 64;
/// A wider sheet of a report is made smaller.
const MAX_REPORT_WIDTH: u32 = 900;
const PAPER: Rgb<u8> = Rgb([255, 255, 255]);

/// Where pictures are on a sheet: an image with its views is a group, and so many groups are next
/// to each other.
#[derive(Clone, Copy)]
struct Layout {
    views: usize,
    across: usize,
    /// Pixels between two groups.
    apart: usize,
}
const ONE_A_ROW: Layout = Layout { views: 9, across: 1, apart: 0 };
const IN_A_REPORT: Layout = Layout { views: 2, across: 4, apart: 12 };

/// Draws a sheet of a pack to `out`: the images in the first column, as they are; views of the
/// first epoch of `seed` after each. Every row is of another fine class, as far as there are that
/// many.
///
/// # Errors
/// If the pack cannot be read, or the sheet not written.
pub fn contact_sheet(
    pack: &Path,
    views: &ViewsConfig,
    seed: u64,
    out: &Path,
) -> Result<(), DataError> {
    let (header, rows) = read(pack)?;
    let written =
        draw(&header, &rows, (views, seed), ONE_A_ROW).save_with_format(out, ImageFormat::Png);
    written.map_err(|error| DataError::Sheet { path: out.to_owned(), reason: error.to_string() })
}

/// The same images with two views each, several images next to each other, as a PNG file.
///
/// # Errors
/// If the pack cannot be read.
pub fn report_sheet(pack: &Path, views: &ViewsConfig, seed: u64) -> Result<Vec<u8>, DataError> {
    let (header, rows) = read(pack)?;
    let mut sheet = draw(&header, &rows, (views, seed), IN_A_REPORT);
    if sheet.width() > MAX_REPORT_WIDTH {
        let height = sheet.height() * MAX_REPORT_WIDTH / sheet.width();
        sheet = thumbnail(&sheet, MAX_REPORT_WIDTH, height.max(1));
    }
    let mut png = Vec::new();
    let written = sheet.write_to(&mut Cursor::new(&mut png), ImageFormat::Png);
    let refuse = |error: image::ImageError| DataError::Sheet {
        path: pack.to_owned(),
        reason: error.to_string(),
    };
    written.map_err(refuse)?;
    Ok(png)
}

/// An image of a pack with its id.
struct Row {
    id: u64,
    image: Vec<u8>,
}

fn read(pack: &Path) -> Result<(PackHeader, Vec<Row>), DataError> {
    let refuse = |fault| DataError::Pack { path: pack.to_owned(), fault };
    let (header, labels) = pack_file::read_labels(pack).map_err(refuse)?;
    if header.shape[1] != header.shape[2] || ![1, 3].contains(&header.shape[3]) {
        let shape =
            format!("its images are {:?}, expected squares of 1 or 3 channels", &header.shape[1..]);
        return Err(refuse(PackFault::Header(shape)));
    }
    let chosen = choose(&labels.fine, header.fine_names.len());
    let mut images = Images::open(pack).map_err(refuse)?;
    let row = |at: usize| Ok(Row { id: at as u64, image: images.image(at as u64)? });
    let rows: Result<Vec<Row>, PackFault> = chosen.into_iter().map(row).collect();
    Ok((header, rows.map_err(refuse)?))
}

fn draw(
    header: &PackHeader,
    rows: &[Row],
    (views, seed): (&ViewsConfig, u64),
    layout: Layout,
) -> RgbImage {
    let [_, side, _, channels] = header.shape;
    // Without normalisation: pixels stay in [0, 1], and can be shown.
    let augmentation = Augmentation::new(views, side, &vec![0.0; channels], &vec![1.0; channels]);
    let scale = MIN_SIDE.div_ceil(side);
    let cell = side * scale + GAP;
    let extent = |cells: usize| (cells * cell + GAP) as u32;
    let group = 1 + layout.views;
    let lines = rows.len().div_ceil(layout.across);
    let width = extent(group * layout.across) + ((layout.across - 1) * layout.apart) as u32;
    let mut sheet = RgbImage::from_pixel(width, extent(lines), PAPER);
    let (mut scratch, mut view) = (Scratch::default(), vec![0.0; augmentation.pixels()]);
    for (at, Row { id, image }) in rows.iter().enumerate() {
        for picture in 0..group {
            match picture {
                0 => augmentation.plain(image, &mut view),
                _ => {
                    let key = view_key(seed, 0, *id, picture as u64 - 1);
                    augmentation.view(image, key, &mut scratch, &mut view);
                }
            }
            let column = at % layout.across;
            let left = (column * group + picture) * cell + column * layout.apart + GAP;
            let corner = (left, at / layout.across * cell + GAP);
            paint(&mut sheet, corner, &view, Tile { side, channels, scale });
        }
    }
    sheet
}

/// Ids of images: class by class the first of each, then the second, until there are enough.
fn choose(fine: &[i64], classes: usize) -> Vec<usize> {
    let mut seen = vec![0; classes];
    let mut ranked: Vec<(usize, usize)> = Vec::with_capacity(fine.len());
    for (id, label) in fine.iter().enumerate() {
        let Some(count) = usize::try_from(*label).ok().and_then(|label| seen.get_mut(label)) else {
            continue;
        };
        ranked.push((*count, id));
        *count += 1;
    }
    ranked.sort_by_key(|(count, id)| (*count, fine[*id]));
    ranked.into_iter().take(IMAGES).map(|(_, id)| id).collect()
}

/// How a view is drawn: S, C, and how many pixels of the sheet each of its pixels is wide and high.
#[derive(Clone, Copy)]
struct Tile {
    side: usize,
    channels: usize,
    scale: usize,
}

/// Puts a view, [C, S, S] in [0, 1], on the sheet with its corner there.
fn paint(sheet: &mut RgbImage, (left, top): (usize, usize), view: &[f32], tile: Tile) {
    let Tile { side, channels, scale } = tile;
    for y in 0..side * scale {
        for x in 0..side * scale {
            let at = (y / scale) * side + x / scale;
            let value = |c: usize| {
                (view[c.min(channels - 1) * side * side + at] * 255.0).round().clamp(0.0, 255.0)
                    as u8
            };
            sheet.put_pixel(
                (left + x) as u32,
                (top + y) as u32,
                Rgb([value(0), value(1), value(2)]),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_class_comes_before_a_second_of_one() {
        assert_eq!(choose(&[1, 1, 0, 2, 0], 3), [2, 0, 3, 4, 1]);
        assert_eq!(choose(&[0; 40], 1).len(), IMAGES);
    }

    /// Two images of one channel, 2 x 2 pixels, each shown 64 pixels wide.
    #[test]
    fn the_first_column_shows_the_images_as_they_are() {
        let mut sheet = RgbImage::from_pixel(8, 8, PAPER);
        paint(&mut sheet, (2, 2), &[0.0, 1.0, 0.5, 0.25], Tile { side: 2, channels: 1, scale: 2 });
        let grey = |x, y| sheet.get_pixel(x, y).0;
        assert_eq!(
            [grey(2, 2), grey(4, 3), grey(3, 5), grey(5, 5)],
            [[0; 3], [255; 3], [128; 3], [64; 3]]
        );
        assert_eq!(grey(6, 6), PAPER.0);
    }
}
