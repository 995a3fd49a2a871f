//! What is published about each data set: shapes, class names, the coarse label of each fine one,
//! mean and std. It knows no file; class names that only the files contain are empty here and come
//! with the pack.

mod labels;

use serde::{Deserialize, Serialize};

/// Side of the images of `image_folder` where `data.side` is null, in pixels.
const SIDE_OF_FOLDERS: usize = 64;

/// The data sets, by the reader of their files and what is published about them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum DataKind {
    /// UCI digits, 8 x 8, embedded.
    Digits,
    /// MNIST, 28 x 28.
    Mnist,
    /// Fashion-MNIST, 28 x 28.
    FashionMnist,
    /// CIFAR-10, 32 x 32.
    Cifar10,
    /// CIFAR-100, 32 x 32.
    Cifar100,
    /// CIFAR-100 with unbalanced training images.
    #[serde(rename = "cifar100_u")]
    Cifar100U,
    /// TinyImageNet, 64 x 64.
    Tinyimagenet,
    /// The user's own: `train/` and `test/` with one folder per class.
    ImageFolder,
}

/// A data set's facts; `side` in pixels, `mean` and `std` per channel of images scaled to [0, 1].
///
/// Before there is a pack, what only the raw files contain is empty: the class names of
/// TinyImageNet and of a folder of images, and a folder's mean and std, which are measured.
#[derive(Clone, Debug, PartialEq)]
pub struct DataSet {
    pub name: String,
    pub side: usize,
    pub channels: usize,
    pub mean: Vec<f64>,
    pub std: Vec<f64>,
    pub labels: Labels,
}

/// The two label sets. `coarse_of[fine]` is the coarse label of a fine one.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Labels {
    pub fine_names: Vec<String>,
    pub coarse_names: Vec<String>,
    pub coarse_of: Vec<i64>,
}

impl Labels {
    /// Names are separated by white space.
    fn new(fine_names: &str, coarse_names: &str, coarse_of: &[i64]) -> Self {
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect();
        Self {
            fine_names: words(fine_names),
            coarse_names: words(coarse_names),
            coarse_of: coarse_of.to_vec(),
        }
    }

    /// Digits below five against the others (the published set-up).
    fn digits() -> Self {
        Self::new("0 1 2 3 4 5 6 7 8 9", "0-4 5-9", &[0, 0, 0, 0, 0, 1, 1, 1, 1, 1])
    }

    fn cifar100() -> Self {
        Self::new(labels::CIFAR100_FINE, labels::CIFAR100_COARSE, &labels::CIFAR100_COARSE_OF)
    }

    /// Classes are named by the files; the published coarse labels have numbers alone.
    fn tinyimagenet() -> Self {
        let coarse: Vec<String> =
            (0..labels::TINYIMAGENET_COARSE).map(|label| label.to_string()).collect();
        Self::new("", &coarse.join(" "), &labels::TINYIMAGENET_COARSE_OF)
    }
}

impl DataSet {
    /// What is published about a data set; `side` is that of the images where nothing is published.
    /// Means and deviations are the published ones; those of digits and Fashion-MNIST were measured
    /// on their training images (`thanos-coord data info` prints them).
    pub fn of(kind: DataKind, side: Option<usize>) -> Self {
        let name = kind.name().to_owned();
        let gray = |side, mean: f64, std: f64, labels| Self {
            name: name.clone(),
            side,
            channels: 1,
            mean: vec![mean],
            std: vec![std],
            labels,
        };
        let rgb = |side, mean: [f64; 3], std: [f64; 3], labels| Self {
            name: name.clone(),
            side,
            channels: 3,
            mean: mean.to_vec(),
            std: std.to_vec(),
            labels,
        };
        let cifar100 = || {
            let mean = [0.507_075_16, 0.486_548_87, 0.440_917_84];
            rgb(32, mean, [0.267_334_29, 0.256_438_46, 0.276_150_47], Labels::cifar100())
        };
        match kind {
            DataKind::Digits => gray(8, 0.3055, 0.3761, Labels::digits()),
            DataKind::Mnist => gray(28, 0.1307, 0.3081, Labels::digits()),
            DataKind::FashionMnist => gray(
                28,
                0.2860,
                0.3530,
                // Garments of the upper body against the others.
                Labels::new(
                    "t-shirt trouser pullover dress coat sandal shirt sneaker bag ankle_boot",
                    "upper_body other",
                    &[0, 1, 0, 0, 0, 1, 0, 1, 1, 1],
                ),
            ),
            DataKind::Cifar10 => rgb(
                32,
                [0.491_399_68, 0.482_158_41, 0.446_530_91],
                [0.247_032_23, 0.243_485_13, 0.261_587_84],
                Labels::new(
                    "airplane automobile bird cat deer dog frog horse ship truck",
                    "animal vehicle",
                    &[1, 1, 0, 0, 0, 0, 0, 0, 1, 1],
                ),
            ),
            DataKind::Cifar100 | DataKind::Cifar100U => cifar100(),
            DataKind::Tinyimagenet => {
                rgb(64, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225], Labels::tinyimagenet())
            }
            DataKind::ImageFolder => Self {
                name,
                side: side.unwrap_or(SIDE_OF_FOLDERS),
                channels: 3,
                mean: Vec::new(),
                std: Vec::new(),
                labels: Labels::default(),
            },
        }
    }
}

impl DataKind {
    /// In the order of the list of presets.
    pub const ALL: [Self; 8] = [
        Self::Digits,
        Self::Mnist,
        Self::FashionMnist,
        Self::Cifar10,
        Self::Cifar100,
        Self::Cifar100U,
        Self::Tinyimagenet,
        Self::ImageFolder,
    ];

    /// As a configuration has it: also the name of its packs, and the first part of its presets'.
    pub fn name(self) -> &'static str {
        self.names()[0]
    }

    /// [`DataKind::name`], then other spellings that commands accept.
    pub fn names(self) -> &'static [&'static str] {
        match self {
            Self::Digits => &["digits"],
            Self::Mnist => &["mnist"],
            Self::FashionMnist => &["fashion_mnist", "fashion-mnist"],
            Self::Cifar10 => &["cifar10"],
            Self::Cifar100 => &["cifar100"],
            Self::Cifar100U => &["cifar100_u"],
            Self::Tinyimagenet => &["tinyimagenet"],
            Self::ImageFolder => &["image_folder", "image-folder"],
        }
    }

    /// In the summary of its presets.
    pub(crate) fn about(self) -> &'static str {
        match self {
            Self::Digits => "UCI digits 8x8 (embedded)",
            Self::Mnist => "MNIST 28x28 (IDX files in data.dir)",
            Self::FashionMnist => "Fashion-MNIST 28x28 (IDX files in data.dir)",
            Self::Cifar10 => "CIFAR-10 32x32 (any published form in data.dir)",
            Self::Cifar100 => "CIFAR-100 32x32 (any published form in data.dir)",
            Self::Cifar100U => "CIFAR-100 with unbalanced training images",
            Self::Tinyimagenet => "TinyImageNet 64x64 (folder or .zip in data.dir)",
            Self::ImageFolder => "your images (train/ and test/ in data.dir, one folder per class)",
        }
    }

    /// Its half of its presets, in YAML.
    pub(crate) fn recipe(self) -> &'static str {
        match self {
            Self::Digits => include_str!("../presets/datasets/digits.yaml"),
            Self::Mnist => include_str!("../presets/datasets/mnist.yaml"),
            Self::FashionMnist => include_str!("../presets/datasets/fashion_mnist.yaml"),
            Self::Cifar10 => include_str!("../presets/datasets/cifar10.yaml"),
            Self::Cifar100 => include_str!("../presets/datasets/cifar100.yaml"),
            Self::Cifar100U => include_str!("../presets/datasets/cifar100_u.yaml"),
            Self::Tinyimagenet => include_str!("../presets/datasets/tinyimagenet.yaml"),
            Self::ImageFolder => include_str!("../presets/datasets/image_folder.yaml"),
        }
    }

    /// Training and test images of the published data set; a folder has as many as it has.
    pub fn published_images(self) -> Option<[u64; 2]> {
        match self {
            Self::Digits => Some([1_437, 360]),
            Self::Mnist | Self::FashionMnist => Some([60_000, 10_000]),
            Self::Cifar10 | Self::Cifar100 | Self::Cifar100U => Some([50_000, 10_000]),
            Self::Tinyimagenet => Some([100_000, 10_000]),
            Self::ImageFolder => None,
        }
    }
}

/// How many training images each fine class of CIFAR-100-U keeps: of the five classes of a
/// superclass, in ascending order of their labels, 500, 250, 100, 50 and 50. `coarse_of` is
/// CIFAR-100's.
pub(crate) fn images_kept_of_cifar100_u(coarse_of: &[i64]) -> Vec<usize> {
    let place =
        |fine: usize| coarse_of[..fine].iter().filter(|coarse| **coarse == coarse_of[fine]).count();
    (0..coarse_of.len()).map(|fine| labels::CIFAR100_U_KEPT[place(fine)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_configurations() {
        for kind in DataKind::ALL {
            let named: DataKind =
                serde_json::from_str(&format!("\"{}\"", kind.name())).expect("a data set");
            assert_eq!(named, kind);
        }
    }

    fn data_set(kind: DataKind) -> DataSet {
        DataSet::of(kind, None)
    }

    #[test]
    fn every_fine_label_has_a_name_and_a_known_coarse_label() {
        use DataKind::{Cifar10, Cifar100, Cifar100U, Digits, FashionMnist, Mnist};
        for kind in [Digits, Mnist, FashionMnist, Cifar10, Cifar100, Cifar100U] {
            let data = data_set(kind);
            let labels = &data.labels;
            assert_eq!(labels.fine_names.len(), labels.coarse_of.len(), "{}", data.name);
            let coarse: Vec<i64> = (0..labels.coarse_names.len() as i64).collect();
            let mut used = labels.coarse_of.clone();
            used.sort_unstable();
            used.dedup();
            assert_eq!(used, coarse, "{}", data.name);
            assert_eq!(
                (data.mean.len(), data.std.len()),
                (data.channels, data.channels),
                "{}",
                data.name
            );
            assert!(data.std.iter().all(|std| *std > 0.0), "{}", data.name);
        }
    }

    /// As published: animals are 0 and vehicles 1, upper body 0 and the rest 1.
    #[test]
    fn coarse_labels_are_the_published_ones() {
        let coarse = |kind, name: &str| {
            let labels = data_set(kind).labels;
            let fine = labels.fine_names.iter().position(|fine| *fine == name).expect(name);
            labels.coarse_names[labels.coarse_of[fine] as usize].clone()
        };
        assert_eq!(coarse(DataKind::Cifar10, "frog"), "animal");
        assert_eq!(coarse(DataKind::Cifar10, "truck"), "vehicle");
        assert_eq!(coarse(DataKind::FashionMnist, "shirt"), "upper_body");
        assert_eq!(coarse(DataKind::FashionMnist, "bag"), "other");
        assert_eq!(coarse(DataKind::Mnist, "4"), "0-4");
        assert_eq!(coarse(DataKind::Digits, "5"), "5-9");
        for (fine, superclass) in [
            ("apple", "fruit_and_vegetables"),
            ("beaver", "aquatic_mammals"),
            ("television", "household_electrical_devices"),
            ("willow_tree", "trees"),
            ("tractor", "vehicles_2"),
            ("worm", "non-insect_invertebrates"),
        ] {
            assert_eq!(coarse(DataKind::Cifar100, fine), superclass, "{fine}");
        }
    }

    /// The published map: 200 classes, 52 of 67 labels.
    #[test]
    fn tinyimagenet_has_200_classes_and_52_coarse_labels() {
        let labels = data_set(DataKind::Tinyimagenet).labels;
        let mut used = labels.coarse_of.clone();
        used.sort_unstable();
        used.dedup();
        assert_eq!((labels.coarse_of.len(), labels.coarse_names.len(), used.len()), (200, 67, 52));
        assert!(used.iter().all(|label| (0..67).contains(label)));
    }

    /// Aquatic mammals are beaver (4), dolphin (30), otter (55), seal (72) and whale (95).
    #[test]
    fn cifar100_u_keeps_fewer_of_each_next_class() {
        let kept = images_kept_of_cifar100_u(&Labels::cifar100().coarse_of);
        assert_eq!([4, 30, 55, 72, 95].map(|fine| kept[fine]), [500, 250, 100, 50, 50]);
        assert_eq!(kept.iter().sum::<usize>(), 20 * 950);
    }

    #[test]
    fn a_folder_has_the_configured_side() {
        let folder = |side| DataSet::of(DataKind::ImageFolder, side);
        assert_eq!((folder(None).side, folder(Some(96)).side), (64, 96));
        assert!(folder(None).labels.fine_names.is_empty(), "its folders name the classes");
    }
}
