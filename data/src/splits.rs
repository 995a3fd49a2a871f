//! Which folders of a user's own pictures are the training and the test images: those that the
//! configuration names, or those with common names. It decides by names alone.

use super::error::DataError;
use super::tree::Top;
use std::path::Path;
use thanos_configs::DataConfig;

/// Common names of the folder of the training images, in lower case; the first is ours.
const TRAIN_NAMES: [&str; 2] = ["train", "training"];
/// The same of the test images. Where a name before it is there, one is not used.
const TEST_NAMES: [&str; 5] = ["test", "testing", "val", "valid", "validation"];
/// Names that a message shows.
const MAX_SHOWN: usize = 8;

/// All names of splits.
pub(super) fn names() -> Vec<&'static str> {
    TRAIN_NAMES.into_iter().chain(TEST_NAMES).collect()
}

/// The folders of the two splits below `data.dir`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Splits {
    pub(super) train: String,
    pub(super) test: Option<String>,
}

/// Finds the folders of the splits. `has` says whether a folder is there.
///
/// # Errors
/// If one that is named is not there, there is no training folder, or two may be meant.
pub(super) fn find(
    config: &DataConfig,
    root: &Path,
    top: &Top,
    has: impl Fn(&str) -> bool,
) -> Result<Splits, DataError> {
    let search = Search { config, root, top };
    for (key, name) in
        [("data.train_folder", &config.train_folder), ("data.test_folder", &config.test_folder)]
    {
        if let Some(name) = name.as_ref().filter(|name| !has(name)) {
            let advice = format!("name a folder below data.dir with {key}=FOLDER");
            return Err(search.refuse(
                format!("there is no {name}/ in it, there is {}", search.shown()),
                advice,
            ));
        }
    }
    let test = match &config.test_folder {
        Some(name) => Some(name.clone()),
        None => search.choose(&TEST_NAMES, "data.test_folder")?,
    };
    let train = match &config.train_folder {
        Some(name) => Some(name.clone()),
        None => search.choose(&TRAIN_NAMES, "data.train_folder")?,
    };
    match train {
        Some(train) => Ok(Splits { train, test }),
        None => Err(search.no_train(has)),
    }
}

struct Search<'a> {
    config: &'a DataConfig,
    root: &'a Path,
    top: &'a Top,
}

impl Search<'_> {
    /// The folder with the first of some names that is there; the spelling in lower case comes
    /// first.
    fn choose(&self, names: &[&str], key: &str) -> Result<Option<String>, DataError> {
        for name in names {
            if self.top.folders.contains(*name) {
                return Ok(Some((*name).into()));
            }
            let found: Vec<&String> =
                self.top.folders.iter().filter(|found| found.eq_ignore_ascii_case(name)).collect();
            match found.as_slice() {
                [] => {}
                [one] => return Ok(Some((*one).clone())),
                [one, ..] => {
                    let all: Vec<String> = found.iter().map(|name| format!("{name}/")).collect();
                    let advice = format!("name the one that is meant, such as {key}={one}");
                    return Err(self.refuse(format!("found {}", all.join(" and ")), advice));
                }
            }
        }
        Ok(None)
    }

    fn refuse(&self, found: String, advice: String) -> DataError {
        DataError::Layout { dir: self.root.into(), found, advice }
    }

    /// Says what is there, and what to type if it can be guessed.
    fn no_train(&self, has: impl Fn(&str) -> bool) -> DataError {
        let found = format!(
            "there is no folder of training images such as train/ in it, there is {}",
            self.shown()
        );
        let mut below = self
            .top
            .folders
            .iter()
            .filter(|folder| TRAIN_NAMES.iter().any(|name| has(&format!("{folder}/{name}"))));
        if let Some(folder) = below.next() {
            return self
                .refuse(found, format!("set data.dir={}", self.root.join(folder).display()));
        }
        let named = |part: &[&str]| {
            let named = |name: &&String| part.iter().any(|part| name.to_lowercase().contains(part));
            self.top.folders.iter().find(named).map_or("FOLDER", String::as_str)
        };
        let test = self
            .config
            .test_folder
            .as_deref()
            .unwrap_or_else(|| named(&["test", "val", "eval", "dev"]));
        let (train, test) = (named(&["train"]), test);
        let advice = format!(
            "name the folders, each with one folder per class, with data.train_folder={} \
            data.test_folder={}",
            quoted(train),
            quoted(test)
        );
        self.refuse(found, advice)
    }

    /// What is in `data.dir`.
    fn shown(&self) -> String {
        let folders = self.top.folders.iter().map(|name| format!("{name}/"));
        let all: Vec<String> = folders.chain(self.top.files.iter().cloned()).collect();
        match all.len() {
            0 => "nothing".into(),
            1..=MAX_SHOWN => all.join(", "),
            more => format!("{} and {} more", all[..MAX_SHOWN].join(", "), more - MAX_SHOWN),
        }
    }
}

/// A name as it is typed in a shell.
fn quoted(name: &str) -> String {
    let plain = name.chars().all(|c| c.is_alphanumeric() || "-_./".contains(c));
    if plain { name.into() } else { format!("'{}'", name.replace('\'', "'\\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(config: &DataConfig, folders: &[&str]) -> Result<Splits, String> {
        let top =
            Top { folders: folders.iter().map(|name| (*name).into()).collect(), ..Top::default() };
        let has = |name: &str| folders.contains(&name) || name == "deep/train";
        find(config, Path::new("/data"), &top, has).map_err(|error| error.to_string())
    }

    #[test]
    fn common_names_are_found() {
        let check = |folders: &[&str], train: &str, test: Option<&str>| {
            let expected = Splits { train: train.into(), test: test.map(str::to_owned) };
            assert_eq!(found(&DataConfig::default(), folders), Ok(expected), "{folders:?}");
        };
        check(&["test", "train"], "train", Some("test"));
        check(&["Train", "val"], "Train", Some("val"));
        check(&["TRAIN", "Train", "train", "validation"], "train", Some("validation"));
        check(&["logs", "test", "training", "val", "valid"], "training", Some("test"));
        check(&["Testing", "Training"], "Training", Some("Testing"));
        check(&["train"], "train", None);
    }

    #[test]
    fn what_is_named_is_taken() {
        let config = DataConfig {
            train_folder: Some("a".into()),
            test_folder: Some("train".into()),
            ..DataConfig::default()
        };
        assert_eq!(
            found(&config, &["a", "train"]),
            Ok(Splits { train: "a".into(), test: Some("train".into()) })
        );
        let expected = "data.dir=/data: there is no a/ in it, there is b/; name a folder below \
            data.dir with data.train_folder=FOLDER";
        assert_eq!(found(&config, &["b"]), Err(expected.into()));
    }

    #[test]
    fn refusals_say_what_is_there_and_what_to_type() {
        let check = |folders: &[&str], expected: &str| {
            let error = found(&DataConfig::default(), folders).expect_err("nothing to train on");
            assert!(error.ends_with(expected), "expected `{expected}`, got `{error}`");
        };
        check(
            &["TRAIN", "Train"],
            "found TRAIN/ and Train/; name the one that is meant, such as data.train_folder=TRAIN",
        );
        check(&["deep"], "in it, there is deep/; set data.dir=/data/deep");
        let end = "with data.train_folder=my_train data.test_folder='my tests'";
        check(
            &["my tests", "my_train"],
            &format!("name the folders, each with one folder per class, {end}"),
        );
        check(
            &["cat", "dog"],
            "there is cat/, dog/; name the folders, each with one folder per class, with \
                                data.train_folder=FOLDER data.test_folder=FOLDER",
        );
        check(
            &[],
            "there is nothing; name the folders, each with one folder per class, with \
             data.train_folder=FOLDER data.test_folder=FOLDER",
        );
    }
}
