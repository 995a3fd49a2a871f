//! The user's own pictures: `train/` and `test/` with a folder a class. Classes are the folders of `train/` in sorted
//! order; a YAML map gives each its coarse class, or every class is its own.

use super::error::{DataError, RawFault};
use super::pack_file::Sink;
use super::picture::Size;
use super::pictures::{Picture, decode_all, hash_into};
use super::tree::Tree;
use super::{Decoded, OnProgress, RawSet, Split};
use sha2::Sha256;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use thanos_configs::{DataConfig, DataSet, Labels, OnBadImage, class_map};

pub(super) struct ImageFolder {
    tree: Tree,
    facts: DataSet,
    on_bad_image: OnBadImage,
}

impl ImageFolder {
    /// Lists the classes, and reads the map; `root` is the folder that holds `train/` and `test/`, or a .zip of it.
    pub(super) fn open(root: &Path, config: &DataConfig) -> Result<Self, DataError> {
        let tree = Tree::open(root)?;
        let mut facts = DataSet::of(config);
        let mut classes = BTreeSet::new();
        for (name, file) in tree.below("train/") {
            let Some((class, _)) = name.split_once('/') else {
                return Err(DataError::raw(&tree.path(&file.name), RawFault::NoClass));
            };
            classes.insert(class.to_owned());
        }
        if classes.is_empty() {
            return Err(DataError::raw(&tree.path("train"), RawFault::NoPictures));
        }
        let fine_names: Vec<String> = classes.into_iter().collect();
        facts.labels = match &config.coarse_map {
            None => Labels {
                coarse_of: (0..fine_names.len() as i64).collect(),
                coarse_names: fine_names.clone(),
                fine_names,
            },
            Some(path) => mapped(fine_names, path)?,
        };
        Ok(Self { tree, facts, on_bad_image: config.on_bad_image })
    }
}

impl RawSet for ImageFolder {
    fn facts(&self) -> &DataSet {
        &self.facts
    }

    fn hash_into(&self, _: Split, hash: &mut Sha256) -> Result<(), DataError> {
        hash_into(&self.tree, self.on_bad_image, hash);
        Ok(())
    }

    fn decode(&self, split: Split, sink: &mut Sink<'_>, progress: OnProgress<'_>) -> Result<Decoded, DataError> {
        let folder = format!("{}/", split.name());
        let mut pictures = Vec::new();
        for (name, file) in self.tree.below(&folder) {
            let class = name.split_once('/').map(|(class, _)| class);
            let fine = class.and_then(|class| self.facts.labels.fine_names.iter().position(|name| name == class));
            let Some(fine) = fine else {
                let fault = match class {
                    Some(class) => RawFault::UnknownClass { class: class.into() },
                    None => RawFault::NoClass,
                };
                return Err(DataError::raw(&self.tree.path(&file.name), fault));
            };
            pictures.push(Picture { file, fine: fine as i64 });
        }
        if pictures.is_empty() {
            return Err(DataError::raw(&self.tree.path(split.name()), RawFault::NoPictures));
        }
        decode_all(&self.tree, &pictures, (Size::Fit(self.facts.side), self.on_bad_image), sink, progress)
    }
}

/// Labels by a map that must name every class and no other.
fn mapped(fine_names: Vec<String>, path: &Path) -> Result<Labels, DataError> {
    let refuse = |fault| DataError::CoarseMap { path: path.into(), fault };
    let text = fs::read_to_string(path).map_err(|error| refuse(format!("cannot be read: {error}")))?;
    let map = class_map(&text, &path.display().to_string()).map_err(|errors| refuse(errors.to_string()))?;
    labels(fine_names, &map).map_err(refuse)
}

fn labels(fine_names: Vec<String>, map: &BTreeMap<String, String>) -> Result<Labels, String> {
    let without: Vec<&str> = fine_names.iter().filter(|name| !map.contains_key(*name)).map(String::as_str).collect();
    if !without.is_empty() {
        return Err(format!("no coarse class for {}: give each a line", without.join(", ")));
    }
    if let Some(unknown) = map.keys().find(|name| !fine_names.contains(name)) {
        return Err(format!("`{unknown}` is no folder of train/: there are {}", fine_names.join(", ")));
    }
    let coarse_names: Vec<String> = map.values().cloned().collect::<BTreeSet<_>>().into_iter().collect();
    let coarse = |fine: &String| coarse_names.binary_search(&map[fine]).map_or(0, |coarse| coarse as i64);
    Ok(Labels { coarse_of: fine_names.iter().map(coarse).collect(), fine_names, coarse_names })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_gives_every_class_its_coarse_class() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let map = |entries: &[(&str, &str)]| {
            entries.iter().map(|(fine, coarse)| ((*fine).to_owned(), (*coarse).to_owned())).collect()
        };
        let fine = names(&["car", "cat", "dog"]);
        let found = labels(fine.clone(), &map(&[("cat", "pet"), ("dog", "pet"), ("car", "thing")])).expect("good");
        assert_eq!((found.coarse_names, found.coarse_of), (names(&["pet", "thing"]), vec![1, 0, 0]));
        let check = |entries: &[(&str, &str)], part: &str| {
            let error = labels(fine.clone(), &map(entries)).expect_err("bad");
            assert!(error.contains(part), "no `{part}` in `{error}`");
        };
        check(&[("cat", "pet")], "no coarse class for car, dog");
        check(&[("cat", "a"), ("dog", "a"), ("car", "a"), ("cow", "a")], "`cow` is no folder of train/");
    }
}
