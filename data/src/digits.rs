//! The embedded digits: 1,797 rows of 64 pixel values 0..16 and a label, as text
//! (data/digits/README.md has the source). It decodes text and knows neither files nor gzip. The
//! division into two splits is ours.

use super::error::RawFault;
use super::samples::{Samples, Split};
use std::collections::BTreeSet;
use thanos_configs::split_train_validation;

/// The raw file, gzipped.
pub(super) const EMBEDDED: &[u8] = include_bytes!("../digits/digits.csv.gz");
/// What messages call it.
pub(super) const NAME: &str = "data/digits/digits.csv.gz (embedded)";

const ROWS: usize = 1797;
/// Share of the rows that are test images. They are drawn as a validation split is: nothing says
/// that the order of the file is random.
const TEST_FRACTION: f64 = 0.2;
const PIXELS: usize = 8 * 8;
/// The greatest value of a raw pixel; it becomes 255.
const WHITE: u16 = 16;

/// The images of a split, [N, 8, 8] u8, and their labels.
///
/// # Errors
/// Another number of rows, or a row that is not 64 values 0..16 and a label 0..9.
pub(super) fn decode(content: &[u8], split: Split) -> Result<Samples, RawFault> {
    let text = String::from_utf8_lossy(content);
    let got = text.lines().count();
    if got != ROWS {
        return Err(RawFault::Rows { expected: ROWS as u64, got: got as u64 });
    }
    let divided = split_train_validation(ROWS as u64, TEST_FRACTION);
    let rows = match split {
        Split::Train => divided.train,
        Split::Test => divided.validation,
    };
    let rows: BTreeSet<usize> = rows.into_iter().map(|row| row as usize).collect();
    let mut samples = Samples::with_capacity(rows.len(), PIXELS);
    for (row, line) in text.lines().enumerate().filter(|(row, _)| rows.contains(row)) {
        push_row(line, &mut samples).map_err(|(expected, got)| RawFault::Row {
            row: row as u64,
            expected,
            got,
        })?;
    }
    Ok(samples)
}

/// Errors: what was expected, and what is there.
fn push_row(line: &str, samples: &mut Samples) -> Result<(), (&'static str, String)> {
    let words: Vec<&str> = line.split(',').collect();
    let Some((label, pixels)) = words.split_last().filter(|(_, pixels)| pixels.len() == PIXELS)
    else {
        return Err(("65 values", format!("{} values", words.len())));
    };
    for word in pixels {
        let value = word.parse::<u16>().ok().filter(|value| *value <= WHITE);
        let value = value.ok_or_else(|| ("a pixel in 0..=16", (*word).to_owned()))?;
        samples.images.push(((value * 255 + WHITE / 2) / WHITE) as u8);
    }
    let value = label.parse::<i64>().ok().filter(|label| (0..10).contains(label));
    samples.fine.push(value.ok_or_else(|| ("a label in 0..=9", (*label).to_owned()))?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raw::RawFile;

    fn embedded(split: Split) -> Samples {
        let file = RawFile::embedded(NAME, EMBEDDED);
        decode(&file.content().unwrap(), split).unwrap()
    }

    /// Labels counted in Python over the rows `torch.randperm(1797,
    /// generator=torch.Generator().manual_seed(42))`, of which the first 1,437 are for training.
    #[test]
    fn the_embedded_digits_are_all_there() {
        let check = |split, expected: [usize; 10]| {
            let Samples { images, fine } = embedded(split);
            let counts: Vec<usize> =
                (0..10).map(|label| fine.iter().filter(|&&fine| fine == label).count()).collect();
            assert_eq!(counts, expected);
            assert_eq!(images.len(), fine.len() * 64);
            assert_eq!((images.iter().min(), images.iter().max()), (Some(&0), Some(&255)));
        };
        check(Split::Train, [138, 147, 140, 147, 146, 149, 145, 142, 137, 146]);
        check(Split::Test, [40, 35, 37, 36, 35, 33, 36, 37, 37, 34]);
    }

    /// The first row of the file begins `0,0,5,13,9,1,0,0,0,0,13,15` and its label is 0: 255 / 16
    /// of each, rounded.
    #[test]
    fn pixels_are_scaled_to_bytes() {
        let Samples { images, fine } = embedded(Split::Train);
        assert_eq!(images[..12], [0, 0, 80, 207, 143, 16, 0, 0, 0, 0, 207, 239]);
        assert_eq!(fine[0], 0);
    }

    #[test]
    fn bad_rows_say_what_is_wrong() {
        let good = [["0"; 65].join(","), "\n".into()].concat();
        let check = |row: &str, expected: &str| {
            let text = [&good.repeat(2), row, "\n", &good.repeat(1794)].concat();
            let error = decode(text.as_bytes(), Split::Train).map(|_| ()).unwrap_err().to_string();
            assert_eq!(error, expected);
        };
        let row = |pixel: &str, label: &str| [pixel, &["0"; 63].join(","), label].join(",");
        check("1,2", "row 2: expected 65 values, got `2 values`");
        check(&row("17", "0"), "row 2: expected a pixel in 0..=16, got `17`");
        check(&row("x", "0"), "row 2: expected a pixel in 0..=16, got `x`");
        check(&row("16", "10"), "row 2: expected a label in 0..=9, got `10`");
        check(&["1,2\n", &row("0", "0")].concat(), "expected 1797 rows, got 1798");
    }
}
