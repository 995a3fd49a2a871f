//! The user's own pictures: a folder of training and one of test images, each with one folder per
//! class. Classes are the folders of the training images in sorted order; a YAML map gives each its
//! coarse class, or every class is its own.

use super::class_folders::{ClassFolders, class_name, notes_on_links};
use super::error::{DataError, RawFault};
use super::pack_file::Sink;
use super::picture::{Rules, Size};
use super::pictures::{Handling, Picture, decode_all, hash_into};
use super::raw_set::{RawSet, TestImages};
use super::samples::{Decoded, OnProgress, Split};
use super::splits::{self, Splits};
use super::tree::Tree;
use sha2::Sha256;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::Path;
use thanos_configs::{DataConfig, DataSet, Labels, class_map};

pub(super) struct ImageFolder {
    tree: Tree,
    splits: Splits,
    facts: DataSet,
    handling: Handling,
    notes: Vec<String>,
}

impl ImageFolder {
    /// Lists the classes, and reads the map; `root` is the folder that holds those of the splits,
    /// or a .zip of it.
    ///
    /// # Errors
    /// If a split is not there, has no pictures or a class that the other has not, or the map does
    /// not fit.
    pub(super) fn open(
        root: &Path,
        config: &DataConfig,
        test: TestImages,
    ) -> Result<Self, DataError> {
        let mut tree = Tree::open(root)?;
        let top = tree.top(&splits::names())?;
        let splits = splits::find(config, root, &top, |folder| tree.has_folder(folder))?;
        if splits.test.is_none() && test == TestImages::Required {
            let found = format!("found {}/ and no test images", splits.train);
            let advice = "name their folder with data.test_folder=FOLDER, or train backbones only \
                with rows=[]"
                .into();
            return Err(DataError::Layout { dir: root.into(), found, advice });
        }
        tree.list(&splits.train)?;
        splits.test.iter().try_for_each(|test| tree.list(test))?;
        let mut facts = config.facts();
        let train = class_folders(&tree, &splits.train)?;
        let fine_names = train.names(&tree, &splits.train)?;
        let mut notes = train.notes(&splits.train);
        if let Some(test) = &splits.test {
            notes.extend(class_folders(&tree, test)?.notes(test));
        }
        notes.extend(notes_on_links(tree.skipped()));
        facts.labels = labels_of(fine_names, config)?;
        let rules =
            Rules { size: Size::Fit(facts.side), exif_orientation: config.exif_orientation };
        Ok(Self {
            tree,
            splits,
            facts,
            handling: Handling { rules, on_bad_image: config.on_bad_image },
            notes,
        })
    }

    /// The pictures of a split; none of a test split that is not there.
    fn pictures(&self, split: Split) -> Result<Vec<Picture<'_>>, DataError> {
        let folder = match split {
            Split::Train => &self.splits.train,
            Split::Test => match &self.splits.test {
                Some(test) => test,
                None => return Ok(Vec::new()),
            },
        };
        let names = &self.facts.labels.fine_names;
        let labels: HashMap<&str, i64> = names.iter().map(String::as_str).zip(0..).collect();
        class_folders(&self.tree, folder)?.pictures(|class| {
            labels.get(class_name(class).as_str()).copied().ok_or_else(|| {
                let train = format!("{}/", self.splits.train);
                let fault =
                    RawFault::UnknownClass { class: class.into(), train, classes: shown(names) };
                DataError::raw(&self.tree.path(&format!("{folder}/{class}")), fault)
            })
        })
    }
}

impl RawSet for ImageFolder {
    fn facts(&self) -> &DataSet {
        &self.facts
    }

    fn notes(&self) -> &[String] {
        &self.notes
    }

    fn has_test(&self) -> bool {
        self.splits.test.is_some()
    }

    // Of both splits, whichever is asked for: test images are normalised as training images are.
    fn hash_into(&self, _: Split, hash: &mut Sha256) -> Result<(), DataError> {
        self.handling.hash_into(hash);
        for split in [Split::Train, Split::Test] {
            hash_into(&self.pictures(split)?, hash);
        }
        Ok(())
    }

    fn decode(
        &self,
        split: Split,
        sink: &mut Sink<'_>,
        progress: OnProgress<'_>,
    ) -> Result<Decoded, DataError> {
        decode_all(&self.tree, &self.pictures(split)?, self.handling, sink, progress)
    }
}

/// What is in a split's folder, which is listed.
///
/// # Errors
/// If there are no pictures in class folders.
fn class_folders<'a>(tree: &'a Tree, folder: &str) -> Result<ClassFolders<'a>, DataError> {
    let found = ClassFolders::of(tree, folder, tree.folders_in(folder)?);
    if !found.classes.is_empty() {
        return Ok(found);
    }
    let (dir, loose) = (tree.path(folder), found.loose.len());
    let (found, advice) = if loose > 0 {
        let advice = "put the images of each class into a folder of its own, or name a folder \
            whose images have classes with data.train_folder=FOLDER or data.test_folder=FOLDER \
            (images without classes cannot be test images)";
        (
            format!(
                "{loose} images are directly in it, expected one folder per class, and images in \
                them"
            ),
            advice,
        )
    } else {
        let advice = "put one folder per class into it, or name another with \
            data.train_folder=FOLDER or data.test_folder=FOLDER";
        ("there are no images in it (.jpg, .png, .webp, .bmp, .tif and others)".into(), advice)
    };
    Err(DataError::Place { dir, found, advice: advice.into() })
}

/// Some names, for a message.
fn shown(names: &[String]) -> String {
    const MAX_SHOWN: usize = 8;
    match names.len() {
        ..=MAX_SHOWN => names.join(", "),
        more => format!("{} and {} more", names[..MAX_SHOWN].join(", "), more - MAX_SHOWN),
    }
}

fn labels_of(fine_names: Vec<String>, config: &DataConfig) -> Result<Labels, DataError> {
    match &config.coarse_map {
        None => Ok(Labels {
            coarse_of: (0..fine_names.len() as i64).collect(),
            coarse_names: fine_names.clone(),
            fine_names,
        }),
        Some(path) => mapped(fine_names, path),
    }
}

/// Labels by a map that must name every class and no other.
fn mapped(fine_names: Vec<String>, path: &Path) -> Result<Labels, DataError> {
    let refuse = |fault| DataError::CoarseMap { path: path.into(), fault };
    let text =
        fs::read_to_string(path).map_err(|error| refuse(format!("cannot be read: {error}")))?;
    let map = class_map(&text, &path.display().to_string())
        .map_err(|errors| refuse(errors.to_string()))?;
    let map =
        map.into_iter().map(|(class, coarse)| (class_name(&class), class_name(&coarse))).collect();
    labels(fine_names, &map).map_err(refuse)
}

fn labels(fine_names: Vec<String>, map: &BTreeMap<String, String>) -> Result<Labels, String> {
    let without: Vec<&str> =
        fine_names.iter().filter(|name| !map.contains_key(*name)).map(String::as_str).collect();
    if !without.is_empty() {
        let without: Vec<String> = without.into_iter().map(str::to_owned).collect();
        return Err(format!("no coarse class for {}: give each a line", shown(&without)));
    }
    let known: BTreeSet<&String> = fine_names.iter().collect();
    if let Some(unknown) = map.keys().find(|name| !known.contains(name)) {
        return Err(format!(
            "`{unknown}` is not a class of the training images: there are {}",
            shown(&fine_names)
        ));
    }
    let coarse_names: Vec<String> =
        map.values().cloned().collect::<BTreeSet<_>>().into_iter().collect();
    let coarse =
        |fine: &String| coarse_names.binary_search(&map[fine]).map_or(0, |coarse| coarse as i64);
    Ok(Labels { coarse_of: fine_names.iter().map(coarse).collect(), fine_names, coarse_names })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_gives_every_class_its_coarse_class() {
        let names =
            |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let map = |entries: &[(&str, &str)]| {
            entries
                .iter()
                .map(|(fine, coarse)| ((*fine).to_owned(), (*coarse).to_owned()))
                .collect()
        };
        let fine = names(&["car", "cat", "dog"]);
        let found = labels(fine.clone(), &map(&[("cat", "pet"), ("dog", "pet"), ("car", "thing")]))
            .expect("good");
        assert_eq!(
            (found.coarse_names, found.coarse_of),
            (names(&["pet", "thing"]), vec![1, 0, 0])
        );
        let check = |entries: &[(&str, &str)], part: &str| {
            let error = labels(fine.clone(), &map(entries)).expect_err("bad");
            assert!(error.contains(part), "no `{part}` in `{error}`");
        };
        check(&[("cat", "pet")], "no coarse class for car, dog");
        check(
            &[("cat", "a"), ("dog", "a"), ("car", "a"), ("cow", "a")],
            "`cow` is not a class of the training images",
        );
    }
}
