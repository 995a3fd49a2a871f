//! The table of the published files: names, addresses, sizes and MD5 sums, as their publishers give
//! them. It must not know how files are fetched or what is inside them.

/// One published file.
#[derive(Debug)]
pub struct Resource {
    /// Its name, also in the user's folder.
    pub file: &'static str,
    /// Where it is published, in the order to try.
    pub urls: &'static [&'static str],
    pub bytes: u64,
    /// 32 lower-case hex digits. MD5 is what the publishers give; it guards against damage and
    /// mix-ups, while against forgery there is https.
    pub md5: &'static str,
}

/// A data set that can be downloaded.
#[derive(Debug)]
pub struct Published {
    /// Its name, then other spellings.
    pub names: &'static [&'static str],
    pub files: &'static [Resource],
}

/// All that can be downloaded.
pub static PUBLISHED: [Published; 5] = [
    Published { names: &["mnist"], files: &MNIST },
    Published { names: &["fashion-mnist", "fashion_mnist"], files: &FASHION_MNIST },
    Published { names: &["cifar10"], files: &CIFAR10 },
    Published { names: &["cifar100"], files: &CIFAR100 },
    Published { names: &["tinyimagenet"], files: &TINYIMAGENET },
];

/// The files of a data set, or `None` for a name that is not in the table.
pub fn resources(name: &str) -> Option<&'static [Resource]> {
    PUBLISHED.iter().find(|published| published.names.contains(&name)).map(|found| found.files)
}

static CIFAR10: [Resource; 1] = [Resource {
    file: "cifar-10-binary.tar.gz",
    urls: &["https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"],
    bytes: 170_052_171,
    md5: "c32a1d4ab5d03f1284b67883e8d87530",
}];

static CIFAR100: [Resource; 1] = [Resource {
    file: "cifar-100-binary.tar.gz",
    urls: &["https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz"],
    bytes: 168_513_733,
    md5: "03b5dce01913d631647c71ecec9e9cb8",
}];

/// The two mirrors that the deep-learning frameworks use: the official host, yann.lecun.com, has no
/// https.
macro_rules! mnist_urls {
    ($file:literal) => {
        &[
            concat!("https://ossci-datasets.s3.amazonaws.com/mnist/", $file),
            concat!("https://storage.googleapis.com/cvdf-datasets/mnist/", $file),
        ]
    };
}

static MNIST: [Resource; 4] = [
    Resource {
        file: "train-images-idx3-ubyte.gz",
        urls: mnist_urls!("train-images-idx3-ubyte.gz"),
        bytes: 9_912_422,
        md5: "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    },
    Resource {
        file: "train-labels-idx1-ubyte.gz",
        urls: mnist_urls!("train-labels-idx1-ubyte.gz"),
        bytes: 28_881,
        md5: "d53e105ee54ea40749a09fcbcd1e9432",
    },
    Resource {
        file: "t10k-images-idx3-ubyte.gz",
        urls: mnist_urls!("t10k-images-idx3-ubyte.gz"),
        bytes: 1_648_877,
        md5: "9fb629c4189551a2d022fa330f9573f3",
    },
    Resource {
        file: "t10k-labels-idx1-ubyte.gz",
        urls: mnist_urls!("t10k-labels-idx1-ubyte.gz"),
        bytes: 4_542,
        md5: "ec29112dd5afa0611ce80d1b7f02629c",
    },
];

/// The first address redirects to the host of the second one, over https.
macro_rules! fashion_urls {
    ($file:literal) => {
        &[
            concat!(
                "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
                $file
            ),
            concat!(
                "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/",
                "master/data/fashion/",
                $file
            ),
        ]
    };
}

static FASHION_MNIST: [Resource; 4] = [
    Resource {
        file: "train-images-idx3-ubyte.gz",
        urls: fashion_urls!("train-images-idx3-ubyte.gz"),
        bytes: 26_421_880,
        md5: "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    },
    Resource {
        file: "train-labels-idx1-ubyte.gz",
        urls: fashion_urls!("train-labels-idx1-ubyte.gz"),
        bytes: 29_515,
        md5: "25c81989df183df01b3e8a0aad5dffbe",
    },
    Resource {
        file: "t10k-images-idx3-ubyte.gz",
        urls: fashion_urls!("t10k-images-idx3-ubyte.gz"),
        bytes: 4_422_102,
        md5: "bef4ecab320f06d8554ea6380940ec79",
    },
    Resource {
        file: "t10k-labels-idx1-ubyte.gz",
        urls: fashion_urls!("t10k-labels-idx1-ubyte.gz"),
        bytes: 5_148,
        md5: "bb300cfdad3c16e7a12a480ee83cd310",
    },
];

static TINYIMAGENET: [Resource; 1] = [Resource {
    file: "tiny-imagenet-200.zip",
    urls: &[
        "https://cs231n.stanford.edu/tiny-imagenet-200.zip",
        "https://image-net.org/data/tiny-imagenet-200.zip",
    ],
    bytes: 248_100_043,
    md5: "90528d7ca1a48142e341f4ef8d21d0de",
}];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_table_is_well_formed() {
        for Published { names, files } in &PUBLISHED {
            let name = names[0];
            let names: BTreeSet<&str> = files.iter().map(|each| each.file).collect();
            assert_eq!(names.len(), files.len(), "{name}: names must be unique within one folder");
            for each in *files {
                assert!(!each.urls.is_empty() && each.bytes > 0);
                assert_eq!(each.md5.len(), 32, "{}", each.file);
                assert!(
                    each.md5
                        .bytes()
                        .all(|digit| digit.is_ascii_digit() || (b'a'..=b'f').contains(&digit))
                );
                assert!(!each.file.contains(['/', '\\']) && !each.file.starts_with('.'));
                for url in each.urls {
                    assert!(
                        url.starts_with("https://") && url.ends_with(&format!("/{}", each.file)),
                        "{url}"
                    );
                }
            }
        }
        assert!(resources("imagenet").is_none());
        assert!(resources("fashion_mnist").is_some());
    }

    #[test]
    fn no_two_files_share_a_sum() {
        let all = PUBLISHED.iter().flat_map(|published| published.files);
        let sums: Vec<&str> = all.map(|each| each.md5).collect();
        assert_eq!(sums.iter().collect::<BTreeSet<_>>().len(), sums.len());
    }
}
