//! TinyImageNet: `wnids.txt` names 200 classes, `train/WNID/images` has their pictures, and
//! `val/val_annotations.txt` the class of each picture in `val/images`; or, sorted as for
//! torchvision, `val/WNID` has them. The official validation pictures are our test images; the
//! official test pictures have no labels and are not read.

use super::class_folders::{ClassFolders, notes_on_links};
use super::error::{DataError, RawFault};
use super::pack_file::Sink;
use super::picture::{Rules, Size};
use super::pictures::{Handling, Picture, decode_all, hash_into, is_picture};
use super::raw_set::RawSet;
use super::samples::{Decoded, OnProgress, Split};
use super::tree::{Tree, TreeFile};
use sha2::Sha256;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::Path;
use thanos_configs::{DataConfig, DataSet};

/// Folder that the official archive makes.
pub(super) const FOLDER: &str = "tiny-imagenet-200";
pub(super) const CLASSES: &str = "wnids.txt";
const ANNOTATIONS: &str = "val/val_annotations.txt";
const TEST_IMAGES: &str = "val/images/";

pub(super) struct TinyImageNet {
    tree: Tree,
    facts: DataSet,
    handling: Handling,
    notes: Vec<String>,
}

impl TinyImageNet {
    /// Reads the names of the classes; `root` is the folder, or the archive.
    pub(super) fn open(root: &Path, config: &DataConfig) -> Result<Self, DataError> {
        let mut tree = Tree::open(root)?;
        tree.top(&["train", "val"])?;
        [CLASSES, "train", "val"].into_iter().try_for_each(|name| tree.list(name))?;
        let mut facts = config.facts();
        let expected = facts.labels.coarse_of.len();
        facts.labels.fine_names = if tree.find(CLASSES).is_some() {
            read_list(&tree, CLASSES, |text| classes(text, expected))?
        } else {
            // The folders are the classes, too, if none is missing.
            let folders = ClassFolders::of(&tree, "train", BTreeSet::new());
            let names: Vec<String> =
                folders.classes.keys().map(|name| (*name).to_owned()).collect();
            if names.len() != expected {
                return Err(missing(root, names.len()));
            }
            names
        };
        let rules =
            Rules { size: Size::Exact(facts.side), exif_orientation: config.exif_orientation };
        let notes = notes_on_links(tree.skipped());
        Ok(Self {
            tree,
            facts,
            handling: Handling { rules, on_bad_image: config.on_bad_image },
            notes,
        })
    }

    fn fine(&self, wnid: &str) -> Option<i64> {
        self.facts
            .labels
            .fine_names
            .binary_search_by(|name| name.as_str().cmp(wnid))
            .ok()
            .map(|fine| fine as i64)
    }

    /// The pictures of a folder with one folder per class. Beside them, each class of the official
    /// one has a list of boxes.
    fn sorted(&self, folder: &str) -> Result<Vec<Picture<'_>>, DataError> {
        let mut pictures = Vec::new();
        for (name, file) in self.tree.below(folder) {
            if !is_picture(name) {
                continue;
            }
            let (wnid, _) = name.split_once('/').unwrap_or(("", name));
            let Some(fine) = self.fine(wnid) else {
                let got = wnid.to_owned();
                return Err(DataError::raw(
                    &self.tree.path(&file.name),
                    RawFault::UnknownWnid { line: None, got },
                ));
            };
            pictures.push(Picture { file, fine });
        }
        Ok(pictures)
    }

    fn train(&self) -> Result<Vec<Picture<'_>>, DataError> {
        let pictures = self.sorted("train/")?;
        let seen: HashSet<i64> = pictures.iter().map(|picture| picture.fine).collect();
        let lacks = |fine: &usize| !seen.contains(&(*fine as i64));
        if let Some(fine) = (0..self.facts.labels.fine_names.len()).find(lacks) {
            let folder = format!("train/{}/images", self.facts.labels.fine_names[fine]);
            return Err(DataError::raw(&self.tree.path(&folder), RawFault::NoPictures));
        }
        Ok(pictures)
    }

    fn test(&self) -> Result<Vec<Picture<'_>>, DataError> {
        let is_flat = self.tree.below(TEST_IMAGES).any(|(name, _)| is_picture(name));
        let is_sorted = || {
            let class_of =
                |(name, _): (&str, _)| name.split_once('/').and_then(|(wnid, _)| self.fine(wnid));
            self.tree.below("val/").any(|file| class_of(file).is_some())
        };
        if is_flat || !is_sorted() {
            return self.annotated();
        }
        // In the official order, whatever folder a picture was moved to.
        let mut pictures = self.sorted("val/")?;
        pictures.sort_by_key(|picture| (number(picture.file), &picture.file.name));
        Ok(pictures)
    }

    fn annotated(&self) -> Result<Vec<Picture<'_>>, DataError> {
        let annotated =
            read_list(&self.tree, ANNOTATIONS, |text| annotations(text, |wnid| self.fine(wnid)))?;
        let mut pictures = Vec::with_capacity(annotated.len());
        for (line, (name, fine)) in annotated.iter().enumerate() {
            let file = self.tree.find(&format!("{TEST_IMAGES}{name}")).ok_or_else(|| {
                let (line, name) = (line as u64 + 1, format!("{TEST_IMAGES}{name}"));
                DataError::raw(&self.tree.path(ANNOTATIONS), RawFault::NoSuchFile { line, name })
            })?;
            pictures.push(Picture { file, fine: *fine });
        }
        let named: HashSet<&str> = annotated.iter().map(|(name, _)| name.as_str()).collect();
        let unnamed = |(name, _): &(&str, _)| is_picture(name) && !named.contains(name);
        if let Some((_, file)) = self.tree.below(TEST_IMAGES).find(unnamed) {
            let fault = RawFault::NotAnnotated { list: ANNOTATIONS.into() };
            return Err(DataError::raw(&self.tree.path(&file.name), fault));
        }
        Ok(pictures)
    }
}

/// The number of an official picture, `val_123.JPEG`; others come last.
fn number(file: &TreeFile) -> u64 {
    let name = file.name.rsplit('/').next().unwrap_or_default();
    let digits =
        name.strip_prefix("val_").and_then(|rest| rest.split_once('.')).map(|(digits, _)| digits);
    digits.and_then(|digits| digits.parse().ok()).unwrap_or(u64::MAX)
}

fn missing(root: &Path, classes: usize) -> DataError {
    let files = match classes {
        0 => [CLASSES, "train/", ANNOTATIONS].join(", "),
        _ => format!("{CLASSES} (train/ has {classes} classes, expected 200)"),
    };
    DataError::Missing {
        dataset: "tinyimagenet".into(),
        files,
        places: format!("{0} and {0}/{FOLDER}", root.display()),
        advice: "get tiny-imagenet-200.zip, unpacked or not",
    }
}

impl RawSet for TinyImageNet {
    fn facts(&self) -> &DataSet {
        &self.facts
    }

    fn notes(&self) -> &[String] {
        &self.notes
    }

    fn hash_into(&self, _: Split, hash: &mut Sha256) -> Result<(), DataError> {
        self.handling.hash_into(hash);
        hash_into(&self.train()?, hash);
        hash_into(&self.test()?, hash);
        Ok(())
    }

    fn decode(
        &self,
        split: Split,
        sink: &mut Sink<'_>,
        progress: OnProgress<'_>,
    ) -> Result<Decoded, DataError> {
        let pictures = match split {
            Split::Train => self.train()?,
            Split::Test => self.test()?,
        };
        decode_all(&self.tree, &pictures, self.handling, sink, progress)
    }
}

fn read_list<T>(
    tree: &Tree,
    name: &str,
    parse: impl FnOnce(&str) -> Result<T, RawFault>,
) -> Result<T, DataError> {
    let read = || {
        let file = tree.find(name).ok_or(RawFault::NotThere)?;
        let content = tree.read(file)?;
        parse(std::str::from_utf8(&content).map_err(|_| RawFault::NotUtf8)?)
    };
    read().map_err(|fault| DataError::raw(&tree.path(name), fault))
}

/// The lines of a list, numbered from 1; they end in LF or CR LF, the last perhaps in neither.
fn lines(text: &str) -> impl Iterator<Item = (u64, &str)> {
    let numbered = text.strip_suffix('\n').unwrap_or(text).split('\n').enumerate();
    numbered.map(|(at, line)| (at as u64 + 1, line.strip_suffix('\r').unwrap_or(line)))
}

/// The classes in sorted order, which is the order of their labels.
fn classes(text: &str, expected: usize) -> Result<Vec<String>, RawFault> {
    let mut first_seen = HashMap::new();
    for (number, wnid) in lines(text) {
        let plain = !wnid.is_empty()
            && wnid.len() <= 32
            && wnid.bytes().all(|byte| byte.is_ascii_alphanumeric());
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
fn annotations(
    text: &str,
    fine: impl Fn(&str) -> Option<i64>,
) -> Result<Vec<(String, i64)>, RawFault> {
    let mut first_seen = HashMap::new();
    let mut annotated = Vec::new();
    for (number, text) in lines(text) {
        let mut columns = text.split('\t');
        let (Some(name), Some(wnid)) = (columns.next(), columns.next()) else {
            return Err(RawFault::Columns { line: number, got: shown(text) });
        };
        let fine = fine(wnid)
            .ok_or_else(|| RawFault::UnknownWnid { line: Some(number), got: shown(wnid) })?;
        if let Some(first) = first_seen.insert(name, number) {
            return Err(RawFault::Twice { line: number, first, name: shown(name) });
        }
        annotated.push((name.to_owned(), fine));
    }
    Ok(annotated)
}

/// Untrusted text in a message: short, and without control characters.
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
        assert_eq!(classes("n2\r\nn1\r\n", 2).expect("good"), ["n1", "n2"]);
    }

    #[test]
    fn bad_lists_say_what_is_wrong() {
        let check = |text: &str, expected: &str| {
            assert_eq!(classes(text, 2).expect_err(text).to_string(), expected)
        };
        check("n1\nn2\nn3\n", "expected 2 classes, got 3");
        check("n1\nn2\nn1\n", "line 3: `n1` occurs twice, first in line 1");
        check("n1\n\nn2\n", "line 2: expected a wnid such as n01443537, got ``");
        check("n1\n../x\n", "line 2: expected a wnid such as n01443537, got `../x`");
        let check = |text: &str, expected: &str| {
            let fine = |wnid: &str| (wnid == "n1").then_some(0);
            assert_eq!(annotations(text, fine).expect_err(text).to_string(), expected);
        };
        check(
            "a.JPEG n1\n",
            "line 1: expected a file and a wnid separated by a tab, got `a.JPEG n1`",
        );
        check("a.JPEG\tn1\t0\nb.JPEG\tn9\t0\n", "line 2: expected a wnid of wnids.txt, got `n9`");
        check("a.JPEG\tn1\na.JPEG\tn1\n", "line 2: `a.JPEG` occurs twice, first in line 1");
    }
}
