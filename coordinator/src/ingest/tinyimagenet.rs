//! TinyImageNet: `wnids.txt` names 200 classes, `train/WNID/images` has their pictures, and `val/val_annotations.txt`
//! the class of each picture in `val/images`. The official validation pictures are our test images; the official test
//! pictures have no labels and are not read.

use super::error::{DataError, RawFault};
use super::pack_file::Sink;
use super::picture::Size;
use super::pictures::{Picture, decode_all, hash_into, is_picture};
use super::tree::Tree;
use super::{Decoded, OnProgress, RawSet, Split};
use sha2::Sha256;
use std::collections::{HashMap, HashSet};
use std::path::Path;
use thanos_configs::{DataConfig, DataSet, OnBadImage};

/// Folder that the official archive makes.
const FOLDER: &str = "tiny-imagenet-200/";
const CLASSES: &str = "wnids.txt";
const ANNOTATIONS: &str = "val/val_annotations.txt";
const TEST_IMAGES: &str = "val/images/";

pub(super) struct TinyImageNet {
    tree: Tree,
    /// What stands in front of every name: nothing, or the archive's folder.
    prefix: &'static str,
    facts: DataSet,
    on_bad_image: OnBadImage,
}

impl TinyImageNet {
    /// Reads the names of the classes; `root` is the folder, or the archive.
    pub(super) fn open(root: &Path, config: &DataConfig) -> Result<Self, DataError> {
        let tree = Tree::open(root)?;
        let prefix = ["", FOLDER].into_iter().find(|prefix| tree.find(&format!("{prefix}{CLASSES}")).is_some());
        let Some(prefix) = prefix else {
            return Err(DataError::Missing {
                dataset: "tinyimagenet".into(),
                files: [CLASSES, "train/", ANNOTATIONS].join(", "),
                places: format!("{0} and {0}/{FOLDER}", root.display()),
                advice: "get tiny-imagenet-200.zip, unpacked or not",
            });
        };
        let mut facts = DataSet::of(config);
        let expected = facts.labels.coarse_of.len();
        facts.labels.fine_names = read_list(&tree, &format!("{prefix}{CLASSES}"), |text| classes(text, expected))?;
        Ok(Self { tree, prefix, facts, on_bad_image: config.on_bad_image })
    }

    fn name(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn fine(&self, wnid: &str) -> Option<i64> {
        self.facts.labels.fine_names.binary_search_by(|name| name.as_str().cmp(wnid)).ok().map(|fine| fine as i64)
    }

    fn train(&self) -> Result<Vec<Picture<'_>>, DataError> {
        let mut pictures = Vec::new();
        for (name, file) in self.tree.below(&self.name("train/")) {
            let (wnid, rest) = name.split_once('/').unwrap_or(("", name));
            let Some(fine) = self.fine(wnid) else {
                let got = wnid.to_owned();
                return Err(DataError::raw(&self.tree.path(&file.name), RawFault::UnknownWnid { line: None, got }));
            };
            // Beside the pictures, each class has a list of boxes.
            if rest.starts_with("images/") || is_picture(rest) {
                pictures.push(Picture { file, fine });
            }
        }
        let seen: HashSet<i64> = pictures.iter().map(|picture| picture.fine).collect();
        let lacks = |fine: &usize| !seen.contains(&(*fine as i64));
        if let Some(fine) = (0..self.facts.labels.fine_names.len()).find(lacks) {
            let folder = self.name(&format!("train/{}/images", self.facts.labels.fine_names[fine]));
            return Err(DataError::raw(&self.tree.path(&folder), RawFault::NoPictures));
        }
        Ok(pictures)
    }

    fn test(&self) -> Result<Vec<Picture<'_>>, DataError> {
        let list = self.name(ANNOTATIONS);
        let annotated = read_list(&self.tree, &list, |text| annotations(text, |wnid| self.fine(wnid)))?;
        let folder = self.name(TEST_IMAGES);
        let mut pictures = Vec::with_capacity(annotated.len());
        for (line, (name, fine)) in annotated.iter().enumerate() {
            let file = self.tree.find(&format!("{folder}{name}")).ok_or_else(|| {
                let (line, name) = (line as u64 + 1, format!("{TEST_IMAGES}{name}"));
                DataError::raw(&self.tree.path(&list), RawFault::NoSuchFile { line, name })
            })?;
            pictures.push(Picture { file, fine: *fine });
        }
        let named: HashSet<&str> = annotated.iter().map(|(name, _)| name.as_str()).collect();
        if let Some((_, file)) = self.tree.below(&folder).find(|(name, _)| !named.contains(name)) {
            return Err(DataError::raw(&self.tree.path(&file.name), RawFault::NotAnnotated { list }));
        }
        Ok(pictures)
    }
}

impl RawSet for TinyImageNet {
    fn facts(&self) -> &DataSet {
        &self.facts
    }

    fn hash_into(&self, _: Split, hash: &mut Sha256) -> Result<(), DataError> {
        hash_into(&self.tree, self.on_bad_image, hash);
        Ok(())
    }

    fn decode(&self, split: Split, sink: &mut Sink<'_>, progress: OnProgress<'_>) -> Result<Decoded, DataError> {
        let pictures = match split {
            Split::Train => self.train()?,
            Split::Test => self.test()?,
        };
        decode_all(&self.tree, &pictures, (Size::Exact(self.facts.side), self.on_bad_image), sink, progress)
    }
}

fn read_list<T>(tree: &Tree, name: &str, parse: impl FnOnce(&str) -> Result<T, RawFault>) -> Result<T, DataError> {
    let read = || {
        let file = tree.find(name).ok_or(RawFault::NotThere)?;
        let content = tree.read(file)?;
        parse(std::str::from_utf8(&content).map_err(|_| RawFault::NotUtf8)?)
    };
    read().map_err(|fault| DataError::raw(&tree.path(name), fault))
}

/// The lines of a list, numbered from 1; the last may end without a line feed.
///
/// # Errors
/// A line that ends in CR LF: somebody's editor has been at it.
fn lines(text: &str) -> impl Iterator<Item = Result<(u64, &str), RawFault>> {
    let numbered = text.strip_suffix('\n').unwrap_or(text).split('\n').enumerate();
    numbered.map(|(at, line)| {
        let number = at as u64 + 1;
        if line.ends_with('\r') { Err(RawFault::CarriageReturn { line: number }) } else { Ok((number, line)) }
    })
}

/// The classes in sorted order, which is the order of their labels.
fn classes(text: &str, expected: usize) -> Result<Vec<String>, RawFault> {
    let mut first_seen = HashMap::new();
    for line in lines(text) {
        let (number, wnid) = line?;
        let plain = !wnid.is_empty() && wnid.len() <= 32 && wnid.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if !plain {
            return Err(RawFault::BadWnid { line: Some(number), got: shown(wnid) });
        }
        if let Some(first) = first_seen.insert(wnid, number) {
            return Err(RawFault::Twice { line: number, first, name: wnid.into() });
        }
    }
    if first_seen.len() != expected {
        return Err(RawFault::Classes { expected: expected as u64, got: first_seen.len() as u64 });
    }
    let mut wnids: Vec<String> = first_seen.into_keys().map(str::to_owned).collect();
    wnids.sort();
    Ok(wnids)
}

/// File and fine label of each line: file, wnid and a box, separated by tabs.
fn annotations(text: &str, fine: impl Fn(&str) -> Option<i64>) -> Result<Vec<(String, i64)>, RawFault> {
    let mut first_seen = HashMap::new();
    let mut annotated = Vec::new();
    for line in lines(text) {
        let (number, text) = line?;
        let mut columns = text.split('\t');
        let (Some(name), Some(wnid)) = (columns.next(), columns.next()) else {
            return Err(RawFault::Columns { line: number, got: shown(text) });
        };
        let fine = fine(wnid).ok_or_else(|| RawFault::UnknownWnid { line: Some(number), got: shown(wnid) })?;
        if let Some(first) = first_seen.insert(name, number) {
            return Err(RawFault::Twice { line: number, first, name: shown(name) });
        }
        annotated.push((name.to_owned(), fine));
    }
    Ok(annotated)
}

/// A stranger's text in a message: short, and without control characters.
fn shown(text: &str) -> String {
    text.chars().take(60).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_sorted() {
        assert_eq!(classes("n2\nn1\n", 2).expect("good"), ["n1", "n2"]);
        assert_eq!(classes("n2\nn1", 2).expect("good"), ["n1", "n2"]);
    }

    #[test]
    fn bad_lists_say_what_is_wrong() {
        let check = |text: &str, expected: &str| assert_eq!(classes(text, 2).expect_err(text).to_string(), expected);
        check("n1\nn2\nn3\n", "expected 2 classes, got 3");
        check("n1\r\nn2\r\n", "line 1 ends in CR LF, expected LF: convert the file, or get it again");
        check("n1\nn2\nn1\n", "line 3: `n1` is there twice, first in line 1");
        check("n1\n\nn2\n", "line 2: expected a wnid such as n01443537, got ``");
        check("n1\n../x\n", "line 2: expected a wnid such as n01443537, got `../x`");
        let check = |text: &str, expected: &str| {
            let fine = |wnid: &str| (wnid == "n1").then_some(0);
            assert_eq!(annotations(text, fine).expect_err(text).to_string(), expected);
        };
        check("a.JPEG n1\n", "line 1: expected a file and a wnid separated by a tab, got `a.JPEG n1`");
        check("a.JPEG\tn1\t0\nb.JPEG\tn9\t0\n", "line 2: expected a wnid of wnids.txt, got `n9`");
        check("a.JPEG\tn1\na.JPEG\tn1\n", "line 2: `a.JPEG` is there twice, first in line 1");
        check("a.JPEG\tn1\r\n", "line 1 ends in CR LF, expected LF: convert the file, or get it again");
    }
}
