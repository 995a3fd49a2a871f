//! What is published about each data set: shapes, class names, the coarse label of each fine one, mean and std.

use crate::run_config::DataKind;

/// A data set's fixed facts; `side` in pixels, `mean` and `std` per channel of images scaled to [0, 1].
#[derive(Clone, Debug, PartialEq)]
pub struct DataSet {
    pub name: &'static str,
    pub side: usize,
    pub channels: usize,
    pub mean: &'static [f64],
    pub std: &'static [f64],
    pub labels: Labels,
}

/// The two label sets. `coarse_of[fine]` is the coarse label of a fine one.
#[derive(Clone, Debug, PartialEq)]
pub struct Labels {
    pub fine_names: &'static [&'static str],
    pub coarse_names: &'static [&'static str],
    pub coarse_of: &'static [i64],
}

const DIGIT_NAMES: [&str; 10] = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"];

/// Digits below five against the others (the published set-up).
const DIGITS: Labels =
    Labels { fine_names: &DIGIT_NAMES, coarse_names: &["0-4", "5-9"], coarse_of: &[0, 0, 0, 0, 0, 1, 1, 1, 1, 1] };

impl DataSet {
    /// The facts of a kind. Means and deviations are the published ones; digits and Fashion-MNIST: measured on their
    /// training images (`thanos-coord data info` prints them).
    pub fn of(kind: DataKind) -> Self {
        match kind {
            DataKind::Digits => {
                Self { name: "digits", side: 8, channels: 1, mean: &[0.3055], std: &[0.3761], labels: DIGITS }
            }
            DataKind::Mnist => {
                Self { name: "mnist", side: 28, channels: 1, mean: &[0.1307], std: &[0.3081], labels: DIGITS }
            }
            DataKind::FashionMnist => {
                Self { name: "fashion_mnist", side: 28, channels: 1, mean: &[0.2860], std: &[0.3530], labels: FASHION }
            }
            DataKind::Cifar10 => Self {
                name: "cifar10",
                side: 32,
                channels: 3,
                mean: &[0.491_399_68, 0.482_158_41, 0.446_530_91],
                std: &[0.247_032_23, 0.243_485_13, 0.261_587_84],
                labels: CIFAR10,
            },
        }
    }
}

/// Garments of the upper body against the others.
const FASHION: Labels = Labels {
    fine_names: &["t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle_boot"],
    coarse_names: &["upper_body", "other"],
    coarse_of: &[0, 1, 0, 0, 0, 1, 0, 1, 1, 1],
};

const CIFAR10: Labels = Labels {
    fine_names: &["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"],
    coarse_names: &["animal", "vehicle"],
    coarse_of: &[1, 1, 0, 0, 0, 0, 0, 0, 1, 1],
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fine_label_has_a_name_and_a_known_coarse_label() {
        for kind in [DataKind::Digits, DataKind::Mnist, DataKind::FashionMnist, DataKind::Cifar10] {
            let data = DataSet::of(kind);
            let labels = &data.labels;
            assert_eq!(labels.fine_names.len(), labels.coarse_of.len(), "{}", data.name);
            let coarse: Vec<i64> = (0..labels.coarse_names.len() as i64).collect();
            let mut used = labels.coarse_of.to_vec();
            used.sort_unstable();
            used.dedup();
            assert_eq!(used, coarse, "{}", data.name);
            assert_eq!((data.mean.len(), data.std.len()), (data.channels, data.channels), "{}", data.name);
            assert!(data.std.iter().all(|std| *std > 0.0), "{}", data.name);
        }
    }

    /// As published: animals are 0 and vehicles 1, upper body 0 and the rest 1.
    #[test]
    fn coarse_labels_are_the_published_ones() {
        let coarse = |kind, name: &str| {
            let labels = DataSet::of(kind).labels;
            let fine = labels.fine_names.iter().position(|fine| *fine == name).expect(name);
            labels.coarse_names[labels.coarse_of[fine] as usize]
        };
        assert_eq!(coarse(DataKind::Cifar10, "frog"), "animal");
        assert_eq!(coarse(DataKind::Cifar10, "truck"), "vehicle");
        assert_eq!(coarse(DataKind::FashionMnist, "shirt"), "upper_body");
        assert_eq!(coarse(DataKind::FashionMnist, "bag"), "other");
        assert_eq!(coarse(DataKind::Mnist, "4"), "0-4");
        assert_eq!(coarse(DataKind::Digits, "5"), "5-9");
    }
}
