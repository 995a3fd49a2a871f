//! `augment*`: each image operation alone, and all of them in a chain whose name is their order.
//! Parameters stand in one row per image, under the names that their tensor's own name lists. The
//! operations are those of the CPU, on every machine; `device_views` holds a GPU's against them.

use super::golden::Golden;
use super::report::{Case, Report};
use anyhow::{Context, Result, bail, ensure};
use std::collections::HashMap;
use std::path::Path;
use tch::{Kind, Tensor};
use thanos_views::{
    self as views, Crop, adjust_brightness, adjust_contrast, adjust_hue, adjust_saturation, crop,
    to_gray,
};

const PARAMETERS: &str = "params_";

/// One image and what is done to it.
struct Image<'a> {
    /// [S, S, C]
    pixels: Vec<u8>,
    side: usize,
    channels: usize,
    parameters: HashMap<&'a str, f64>,
}

pub(crate) fn check(path: &Path, report: &mut Report) -> Result<()> {
    let golden = Golden::read(path)?;
    let images = images(&golden)?;
    for stage in golden.folder("stage").keys() {
        let name = format!("stage/{stage}");
        report
            .case(&name, |case| check_operations(&images, &[stage], &golden.tensor(&name)?, case));
    }
    for chain in golden.folder("chain").keys() {
        let (name, operations) = (format!("chain/{chain}"), chain.split('_').collect::<Vec<_>>());
        report.case(&name, |case| {
            check_operations(&images, &operations, &golden.tensor(&name)?, case)
        });
    }
    Ok(())
}

fn images(golden: &Golden) -> Result<Vec<Image<'_>>> {
    let listed = golden
        .names()
        .find(|name| name.starts_with(PARAMETERS))
        .context("there are no parameters")?;
    let (rows, pixels) = (golden.tensor(listed)?, golden.tensor("images_u8")?);
    let (n, channels, side, _) = pixels.size4()?;
    let names = listed[PARAMETERS.len()..].split('_');
    let image = |at: i64| {
        let value = |column: usize| rows.double_value(&[at, column as i64]);
        Ok(Image {
            pixels: Vec::try_from(pixels.get(at).permute([1, 2, 0]).contiguous().flatten(0, 2))?,
            side: side as usize,
            channels: channels as usize,
            parameters: names
                .clone()
                .enumerate()
                .map(|(column, name)| (name, value(column)))
                .collect(),
        })
    };
    (0..n).map(image).collect()
}

fn check_operations(
    images: &[Image<'_>],
    operations: &[&str],
    expected: &Tensor,
    case: &mut Case,
) -> Result<()> {
    let views = images.iter().map(|image| image.view(operations)).collect::<Result<Vec<_>>>()?;
    let found = Tensor::from_slice(&views.concat()).reshape_as(expected).to_kind(Kind::Float);
    case.tensor(&operations.join(" "), &found, expected);
    Ok(())
}

impl Image<'_> {
    /// [C, S, S] in [0, 1], after the operations in this order.
    fn view(&self, operations: &[&str]) -> Result<Vec<f32>> {
        let (area, flip, rest) = match operations {
            ["crop", "flip", rest @ ..] => (self.crop()?, true, rest),
            ["crop", rest @ ..] => (self.crop()?, false, rest),
            ["flip", rest @ ..] => (self.whole(), true, rest),
            rest => (self.whole(), false, rest),
        };
        let mut view = vec![0.0; self.pixels.len()];
        let image = views::Image { pixels: &self.pixels, side: self.side, channels: self.channels };
        crop(image, &area, flip, &mut view);
        for operation in rest {
            match *operation {
                "gray" => to_gray(&mut view),
                "brightness" => adjust_brightness(&mut view, self.parameter("brightness")? as f32),
                "contrast" => {
                    adjust_contrast(&mut view, self.channels, self.parameter("contrast")? as f32)
                }
                "saturation" => adjust_saturation(&mut view, self.parameter("saturation")? as f32),
                "hue" => adjust_hue(&mut view, self.parameter("hue")? as f32),
                other => bail!("`{other}` is no operation that can come here"),
            }
        }
        Ok(view)
    }

    fn crop(&self) -> Result<Crop> {
        let pixels = |name: &str| {
            let value = self.parameter(name)?;
            ensure!(
                value >= 0.0 && value.fract() == 0.0,
                "`{name}` is {value}, not a number of pixels"
            );
            Ok(value as usize)
        };
        Ok(Crop {
            top: pixels("top")?,
            left: pixels("left")?,
            height: pixels("height")?,
            width: pixels("width")?,
        })
    }

    fn whole(&self) -> Crop {
        Crop { top: 0, left: 0, height: self.side, width: self.side }
    }

    fn parameter(&self, name: &str) -> Result<f64> {
        self.parameters
            .get(name)
            .copied()
            .with_context(|| format!("no parameter is called `{name}`"))
    }
}
