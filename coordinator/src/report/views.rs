//! Some training images with two of their views each, as the seed of the run makes them.

use super::figure::{Canvas, Figure};
use crate::run_dir::{identity, plan_of_run};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::path::Path;
use thanos_data::{find_packs, report_sheet};

/// What every PNG file begins with, and where its width and height are.
const SIGNATURE: &[u8] = b"\x89PNG\r\n\x1a\n";
const SIZES: usize = 16;

/// The sheet of a run as a PNG file; `None` if its images are not there.
pub(super) fn make(run_dir: &Path, packs_dir: Option<&Path>) -> Option<Vec<u8>> {
    let plan = plan_of_run(run_dir, &[]).ok()?;
    let data = identity(run_dir).ok()?.data?;
    let config = plan.config();
    let packs = find_packs(&config.data, packs_dir?, [&data.train, &data.test])?;
    report_sheet(&packs.train.path, &config.views, config.seed).ok()
}

pub(super) fn figure(png: &[u8]) -> Option<Figure> {
    let (width, height) = size(png)?;
    let mut canvas = Canvas::default();
    canvas.raw(&format!(
        "<image width=\"{width}\" height=\"{height}\" href=\"data:image/png;base64,{}\"/>",
        STANDARD.encode(png)
    ));
    Some(Figure {
        name: "views",
        caption: "Training images, each with two of its views in the first epoch".into(),
        label: "Training images, each followed by two augmented views".into(),
        size: (f64::from(width), f64::from(height)),
        canvas,
    })
}

/// Width and height of a PNG file; `None`: it is not one.
fn size(png: &[u8]) -> Option<(u32, u32)> {
    let number = |at: usize| Some(u32::from_be_bytes(png.get(at..at + 4)?.try_into().ok()?));
    let size = (number(SIZES)?, number(SIZES + 4)?);
    png.starts_with(SIGNATURE).then_some(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_png_file_is_drawn() {
        let mut png = SIGNATURE.to_vec();
        png.extend(b"\0\0\0\rIHDR\0\0\x03\x84\0\0\x01\x00");
        let figure = figure(&png).expect("it has a header");
        assert_eq!(figure.size, (900.0, 256.0));
        assert!(super::figure(&png[..20]).is_none() && super::figure(&[b'x'; 40]).is_none());
    }
}
