//! What a pack holds, measured, as a person reads it: counts of labels, mean and std of the pixels.
//! It must not know where packs come from.

use super::Skipped;
use super::error::PackFault;
use super::pack_file::Contents;
use super::pack_header::Header;
use std::fmt;

/// What is in a pack. `mean` and `std` are measured over its pixels in [0, 1], one a channel; std is the
/// population's. `fine_counts[label]` images have that fine label.
#[derive(Clone, Debug, PartialEq)]
pub struct PackInfo {
    pub name: String,
    /// `train` or `test`.
    pub split: String,
    /// H, W, C.
    pub shape: [usize; 3],
    /// Number of images.
    pub images: u64,
    pub fine_names: Vec<String>,
    pub coarse_names: Vec<String>,
    pub fine_counts: Vec<u64>,
    pub coarse_counts: Vec<u64>,
    pub mean: Vec<f64>,
    pub std: Vec<f64>,
    /// Images that could not be decoded and were left out, as far as they are named.
    pub skipped: Vec<Skipped>,
    /// As the header says.
    pub fingerprint: String,
    /// Length of the file.
    pub bytes: u64,
}

impl PackInfo {
    /// Errors: a label that names no class.
    pub(super) fn of((header, contents): (Header, Contents)) -> Result<Self, PackFault> {
        let images = header.images();
        let [_, h, w, c] = header.shape;
        let (mean, std) = mean_and_std(&contents.images, c);
        Ok(Self {
            fine_counts: counts("fine", &contents.fine, header.fine_names.len())?,
            coarse_counts: counts("coarse", &contents.coarse, header.coarse_names.len())?,
            name: header.name,
            split: header.split,
            shape: [h, w, c],
            images,
            fine_names: header.fine_names,
            coarse_names: header.coarse_names,
            mean,
            std,
            skipped: header.skipped,
            fingerprint: header.fingerprint,
            bytes: header.bytes,
        })
    }
}

impl fmt::Display for PackInfo {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [h, w, c] = self.shape;
        let numbers = |values: &[f64]| values.iter().map(|value| format!("{value:.4}")).collect::<Vec<_>>().join(" ");
        writeln!(out, "{} {}: {} images of {h} x {w} x {c}, {} bytes", self.name, self.split, self.images, self.bytes)?;
        writeln!(out, "fingerprint  {}", self.fingerprint)?;
        writeln!(out, "mean         {}", numbers(&self.mean))?;
        write!(out, "std          {}", numbers(&self.std))?;
        for (set, names, counts) in
            [("coarse", &self.coarse_names, &self.coarse_counts), ("fine", &self.fine_names, &self.fine_counts)]
        {
            write!(out, "\n{set} labels")?;
            for (name, count) in names.iter().zip(counts) {
                write!(out, "\n  {name:<12} {count:>8}")?;
            }
        }
        if !self.skipped.is_empty() {
            write!(out, "\nleft out     {} that could not be decoded", self.skipped.len())?;
        }
        for Skipped { name, reason } in &self.skipped {
            write!(out, "\n  {name}: {reason}")?;
        }
        Ok(())
    }
}

fn counts(set: &'static str, labels: &[i64], names: usize) -> Result<Vec<u64>, PackFault> {
    let mut counts = vec![0; names];
    for (image, &got) in labels.iter().enumerate() {
        let count = usize::try_from(got).ok().and_then(|label| counts.get_mut(label));
        *count.ok_or(PackFault::Label { set, image: image as u64, got, names: names as u64 })? += 1;
    }
    Ok(counts)
}

/// Of [.., C] u8 taken as [0, 1], one a channel. Sums are whole numbers, so no order of summing matters.
pub(super) fn mean_and_std(images: &[u8], channels: usize) -> (Vec<f64>, Vec<f64>) {
    let mut sums = vec![(0_u64, 0_u64); channels];
    for pixel in images.chunks_exact(channels) {
        for (&value, (sum, squares)) in pixel.iter().zip(&mut sums) {
            let value = u64::from(value);
            *sum += value;
            *squares += value * value;
        }
    }
    let n = (images.len() / channels) as f64;
    let measure = |(sum, squares): (u64, u64)| {
        let mean = sum as f64 / n;
        let variance = (squares as f64 / n - mean * mean).max(0.0);
        (mean / 255.0, variance.sqrt() / 255.0)
    };
    sums.into_iter().map(measure).unzip()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Channel 0 is 0 and 255, channel 1 is 51 twice.
    #[test]
    fn mean_and_std_are_per_channel() {
        let (mean, std) = mean_and_std(&[0, 51, 255, 51], 2);
        assert_eq!(mean, [0.5, 0.2]);
        assert_eq!(std, [0.5, 0.0]);
    }

    #[test]
    fn labels_are_counted_and_checked() {
        assert_eq!(counts("fine", &[0, 2, 2], 4).unwrap(), [1, 0, 2, 0]);
        let check = |label, expected: &str| {
            assert_eq!(counts("coarse", &[0, label], 2).unwrap_err().to_string(), expected);
        };
        check(2, "its coarse label of image 1 is 2, but it names 2 classes");
        check(-1, "its coarse label of image 1 is -1, but it names 2 classes");
    }
}
