//! The name of a run in its namespace: of every object, of the label `app.kubernetes.io/instance`,
//! and of its folder.

use serde_yaml::Value;

/// The run's name in the files of deploy/kubernetes/base.
pub(super) const BASE_NAME: &str = "thanos";
/// What follows the name in names of objects.
const OBJECTS: [&str; 6] = ["coordinator", "workers", "credentials", "experiment", "runs", "packs"];
/// Names of pods are host names, of at most 63 characters; after the name they have
/// `-coordinator-0-0-abcde` at most.
const MAX_LEN: usize = 40;

/// A DNS label that is short enough for the pods' names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RunName(String);

impl std::str::FromStr for RunName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let inside = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let is_valid = text.len() <= MAX_LEN
            && text.starts_with(|c: char| c.is_ascii_lowercase())
            && !text.ends_with('-')
            && text.chars().all(inside);
        let expected = format!(
            "expected lower-case letters, digits and `-`, beginning with a letter, ending with a \
             letter or digit, at most {MAX_LEN} characters"
        );
        if is_valid { Ok(Self(text.into())) } else { Err(expected) }
    }
}

impl RunName {
    /// The name of an experiment, with what is not allowed replaced by `-`.
    pub(crate) fn of_experiment(experiment: &str) -> Self {
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        let name: String =
            experiment.to_lowercase().chars().map(|c| if allowed(c) { c } else { '-' }).collect();
        let name = name.trim_start_matches(|c: char| !c.is_ascii_lowercase());
        let name = name.get(..MAX_LEN).unwrap_or(name).trim_end_matches('-');
        Self(if name.is_empty() { BASE_NAME } else { name }.into())
    }

    /// Replaces the base's names in a document.
    pub(super) fn replace_in(&self, value: &mut Value) {
        match value {
            Value::String(text) => {
                if let Some(name) = self.renamed(text) {
                    *text = name;
                }
            }
            Value::Sequence(entries) => entries.iter_mut().for_each(|entry| self.replace_in(entry)),
            Value::Mapping(map) => map.iter_mut().for_each(|(_, entry)| self.replace_in(entry)),
            _ => {}
        }
    }

    /// The name in this run of what the base names so; `None`: it is not a name of the base.
    fn renamed(&self, text: &str) -> Option<String> {
        let rest = text.strip_prefix(BASE_NAME)?;
        let object = rest
            .strip_prefix('-')
            .map(|rest| rest.split_once(':').map_or(rest, |(object, _)| object));
        let is_known = rest.is_empty() || object.is_some_and(|object| OBJECTS.contains(&object));
        is_known.then(|| format!("{}{rest}", self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_dns_labels() {
        for name in ["a", "digits-2", "x1"] {
            assert_eq!(name.parse(), Ok(RunName(name.into())));
        }
        for name in ["", "2a", "-a", "a-", "A", "a_b", "a.b", &"a".repeat(41)] {
            assert!(name.parse::<RunName>().is_err(), "{name}");
        }
    }

    #[test]
    fn the_experiment_names_its_run() {
        let check = |experiment: &str, expected: &str| {
            let name = RunName::of_experiment(experiment);
            assert_eq!((&name.0[..], name.0.parse()), (expected, Ok(name.clone())), "{experiment}");
        };
        check("digits_table", "digits-table");
        check("My.Experiment/2", "my-experiment-2");
        check("2024 run", "run");
        check("日本", "thanos");
        check(&"ab_".repeat(20), &"ab-".repeat(20)[..40]);
    }

    #[test]
    fn only_names_of_the_base_are_replaced() {
        let check = |text: &str, expected: Option<&str>| {
            assert_eq!(RunName("b".into()).renamed(text).as_deref(), expected, "{text}");
        };
        check("thanos", Some("b"));
        check("thanos-coordinator", Some("b-coordinator"));
        check("thanos-coordinator:7070", Some("b-coordinator:7070"));
        check("thanos-coord", None);
        check("thanos-trainer", None);
        check("my-thanos", None);
    }
}
