//! A folder of class folders, as torchvision's `ImageFolder` reads one: which pictures each class
//! has, in which order, and what else is there. It knows neither what is in the pictures nor how
//! splits are called.

use super::error::{DataError, RawFault};
use super::pictures::{Picture, is_picture};
use super::tree::{Passed, Tree, TreeFile};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use unicode_normalization::UnicodeNormalization;

/// Names that a note shows.
const MAX_NAMED: usize = 3;

/// The name that a class is known by: one for all encodings of an accent.
pub(super) fn class_name(folder: &str) -> String {
    folder.nfc().collect()
}

/// What is below a folder of class folders.
pub(super) struct ClassFolders<'a> {
    /// Pictures by the name of their folder, in torchvision's order: by the folder that they are
    /// in, then by name.
    pub(super) classes: BTreeMap<&'a str, Vec<&'a TreeFile>>,
    /// Pictures that are in no class folder.
    pub(super) loose: Vec<&'a str>,
    /// Files that are not pictures.
    others: Vec<&'a str>,
    /// Class folders without a picture.
    empty: Vec<String>,
}

impl<'a> ClassFolders<'a> {
    /// `folder` is the name of a listed folder of the tree; `all` are the folders directly in it.
    pub(super) fn of(tree: &'a Tree, folder: &str, all: BTreeSet<String>) -> Self {
        let (mut classes, mut loose, mut others) =
            (BTreeMap::<_, Vec<_>>::new(), Vec::new(), Vec::new());
        for (name, file) in tree.below(&format!("{folder}/")) {
            match name.split_once('/') {
                _ if !is_picture(name) => others.push(file.name.as_str()),
                None => loose.push(file.name.as_str()),
                Some((class, _)) => classes.entry(class).or_default().push(file),
            }
        }
        for files in classes.values_mut() {
            files.sort_by_key(|file| file.name.rsplit_once('/'));
        }
        let empty = all.into_iter().filter(|name| !classes.contains_key(name.as_str())).collect();
        Self { classes, loose, others, empty }
    }

    /// The names of the classes, in the order of their folders' names.
    ///
    /// # Errors
    /// If two folders have one name.
    pub(super) fn names(&self, tree: &Tree, folder: &str) -> Result<Vec<String>, DataError> {
        let mut seen = HashMap::new();
        for class in self.classes.keys() {
            if let Some(other) = seen.insert(class_name(class), *class) {
                let fault = RawFault::SameName { other: other.into() };
                return Err(DataError::raw(&tree.path(&format!("{folder}/{class}")), fault));
            }
        }
        Ok(self.classes.keys().map(|class| class_name(class)).collect())
    }

    /// All pictures, class after class in the order of the labels, each with what `fine` gives its
    /// class.
    ///
    /// # Errors
    /// As `fine`'s.
    pub(super) fn pictures(
        &self,
        fine: impl Fn(&str) -> Result<i64, DataError>,
    ) -> Result<Vec<Picture<'a>>, DataError> {
        let mut labelled = Vec::with_capacity(self.classes.len());
        for (class, files) in &self.classes {
            labelled.push((fine(class)?, files));
        }
        labelled.sort_by_key(|(fine, _)| *fine);
        let of_class = |(fine, files): (i64, &Vec<&'a TreeFile>)| {
            files.iter().map(move |file| Picture { file, fine }).collect::<Vec<_>>()
        };
        Ok(labelled.into_iter().flat_map(of_class).collect())
    }

    /// What is there and not used, for people.
    pub(super) fn notes(&self, folder: &str) -> Vec<String> {
        let mut notes = Vec::new();
        let mut note = |names: &[&str], what: &str| {
            if !names.is_empty() {
                notes.push(format!("{} {what}: {}", names.len(), some(names)));
            }
        };
        note(&self.loose, &format!("images in {folder}/ are in no class folder and not used"));
        note(
            &self.others,
            &format!("files in {folder}/ are not used, as their names are not those of images"),
        );
        let empty: Vec<&str> = self.empty.iter().map(String::as_str).collect();
        note(&empty, &format!("folders in {folder}/ have no images and are not classes"));
        notes
    }
}

/// What could not be followed, for people.
pub(super) fn notes_on_links(skipped: &[Passed]) -> Vec<String> {
    let reasons: BTreeSet<&str> = skipped.iter().map(|passed| passed.reason).collect();
    let note = |reason: &str| {
        let mut names: Vec<&str> = skipped
            .iter()
            .filter(|passed| passed.reason == reason)
            .map(|passed| passed.name.as_str())
            .collect();
        names.sort_unstable();
        format!("{} entries are {reason} and not used: {}", names.len(), some(&names))
    };
    reasons.into_iter().map(note).collect()
}

fn some(names: &[&str]) -> String {
    let more = names.len().saturating_sub(MAX_NAMED);
    let shown = names[..names.len() - more].join(", ");
    if more == 0 { shown } else { format!("{shown} and {more} more") }
}
