//! A user's map from classes to coarse classes: a YAML file of `CLASS: COARSE CLASS` lines.
//! It must not know which classes there are.

use crate::error::{ConfigError, ConfigErrors};
use crate::yaml;
use serde_json::Value;
use std::collections::BTreeMap;

/// Reads a map; `source` is its name for messages.
///
/// # Errors
/// Every class that occurs twice or that is not a text, each with its line.
pub fn class_map(text: &str, source: &str) -> Result<BTreeMap<String, String>, ConfigErrors> {
    let refuse = |line, key: &str, message: String| ConfigError {
        source: source.into(),
        line,
        key: key.into(),
        message,
    };
    let document =
        yaml::parse(text).map_err(|mistake| refuse(mistake.line, &mistake.key, mistake.message))?;
    let mut errors: Vec<ConfigError> = document
        .mistakes
        .into_iter()
        .map(|mistake| refuse(mistake.line, &mistake.key, mistake.message))
        .collect();
    let Value::Object(entries) = document.value else {
        return Err(refuse(Some(1), "", "expected lines of `CLASS: COARSE CLASS`".into()).into());
    };
    let mut map = BTreeMap::new();
    for (class, coarse) in entries {
        let coarse = match coarse {
            Value::String(name) => name,
            // A class may be called 7.
            Value::Number(number) => number.to_string(),
            other => {
                let line = document.lines.get(&class).copied();
                errors.push(refuse(
                    line,
                    &class,
                    format!("expected the name of a coarse class, got {other}"),
                ));
                continue;
            }
        };
        map.insert(class, coarse);
    }
    if errors.is_empty() { Ok(map) } else { Err(ConfigErrors(errors)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_has_one_coarse_class() {
        let map = class_map("cat: animal\ncar: vehicle\n7: 1\n", "map.yaml").expect("a map");
        let expected = [("7", "1"), ("car", "vehicle"), ("cat", "animal")];
        assert_eq!(
            map,
            expected.map(|(class, coarse)| (class.to_owned(), coarse.to_owned())).into()
        );
    }

    #[test]
    fn mistakes_have_their_line() {
        let check = |text: &str, parts: &[&str]| {
            let message = class_map(text, "map.yaml").expect_err("a mistake").to_string();
            for part in parts {
                assert!(message.contains(part), "no `{part}` in\n{message}");
            }
        };
        check("- cat\n", &["map.yaml:1: ", "expected lines of `CLASS: COARSE CLASS`"]);
        check(
            "cat: a\ncat: b\ncar: [x]\n",
            &["map.yaml:2: cat: ", "map.yaml:3: car: expected the name"],
        );
        check("cat: &x a\ncar: *x\n", &["map.yaml:"]);
    }
}
