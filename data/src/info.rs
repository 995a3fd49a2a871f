//! What a pack holds, measured, as a person reads it: counts of labels, mean and std of the pixels.
//! It must not know where packs come from.

use super::moments::Moments;
use super::pack_file::{self, Images};
use std::fmt;
use std::path::Path;
use thanos_formats::{PackFault, Skipped};

/// What is in a pack. `mean` and `std` are measured over its pixels in [0, 1], one a channel; std
/// is the population's. `fine_counts[label]` images have that fine label.
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
    /// Number of images that could not be decoded and were skipped, and the first of them.
    pub skipped_images: u64,
    pub skipped: Vec<Skipped>,
    /// What is unusual about its images, a sentence each.
    pub warnings: Vec<String>,
    /// As the header says.
    pub fingerprint: String,
    /// Length of the file.
    pub bytes: u64,
}

impl PackInfo {
    /// Errors: no pack, one that is cut off, or a label that names no class.
    pub(super) fn read(path: &Path) -> Result<Self, PackFault> {
        let (header, labels) = pack_file::read_labels(path)?;
        let images = header.images();
        let [_, h, w, c] = header.shape;
        let mut moments = Moments::new(c);
        Images::open(path)?.each(|images| moments.add(images))?;
        let (mean, std) = moments.mean_and_std();
        Ok(Self {
            fine_counts: counts("fine", &labels.fine, header.fine_names.len())?,
            coarse_counts: counts("coarse", &labels.coarse, header.coarse_names.len())?,
            name: header.name,
            split: header.split,
            shape: [h, w, c],
            images,
            fine_names: header.fine_names,
            coarse_names: header.coarse_names,
            mean,
            std,
            skipped_images: header.skipped_images.images,
            skipped: header.skipped_images.named,
            warnings: header.notes.warnings,
            fingerprint: header.fingerprint,
            bytes: header.bytes,
        })
    }
}

impl fmt::Display for PackInfo {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [h, w, c] = self.shape;
        let numbers = |values: &[f64]| {
            values.iter().map(|value| format!("{value:.4}")).collect::<Vec<_>>().join(" ")
        };
        writeln!(
            out,
            "{} {}: {} images of {h} x {w} x {c}, {} bytes",
            self.name, self.split, self.images, self.bytes
        )?;
        writeln!(out, "fingerprint  {}", self.fingerprint)?;
        writeln!(out, "mean         {}", numbers(&self.mean))?;
        write!(out, "std          {}", numbers(&self.std))?;
        for (set, names, counts) in [
            ("coarse", &self.coarse_names, &self.coarse_counts),
            ("fine", &self.fine_names, &self.fine_counts),
        ] {
            write!(out, "\n{set} labels")?;
            for (name, count) in names.iter().zip(counts) {
                write!(out, "\n  {name:<12} {count:>8}")?;
            }
        }
        for warning in &self.warnings {
            write!(out, "\nwarning      {warning}")?;
        }
        if self.skipped_images > 0 {
            write!(out, "\nskipped      {} that could not be decoded", self.skipped_images)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Channel 0 is 0 and 255, channel 1 is 51 twice.
    #[test]
    fn mean_and_std_are_per_channel() {
        let mut moments = Moments::new(2);
        moments.add(&[0, 51]);
        moments.add(&[255, 51]);
        let (mean, std) = moments.mean_and_std();
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
