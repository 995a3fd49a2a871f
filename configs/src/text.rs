//! Overrides of keys that hold text (names, paths): their value is the word as typed, not YAML. `#`
//! starts no comment in it, and a name may look like a number.

use crate::typed::{TextKey, text_key};
use crate::yaml;
use serde_json::Value;

/// The value of an override at `path`, if the key there holds text: all that follows the `=`.
///
/// A word in quotes stands for what is in them, as in a file; `null`, or nothing, clears a key that
/// may be null.
pub(crate) fn text_value(path: &[String], word: &str) -> Option<Value> {
    let key = text_key(path)?;
    if key == TextKey::Optional && (word.is_empty() || word == "null") {
        return Some(Value::Null);
    }
    Some(unquoted(word).unwrap_or_else(|| Value::String(word.to_owned())))
}

/// The text of a word that is in YAML's quotes from its first character to its last.
fn unquoted(word: &str) -> Option<Value> {
    let is_quoted = |quote| word.len() >= 2 && word.starts_with(quote) && word.ends_with(quote);
    if !is_quoted('\'') && !is_quoted('"') {
        return None;
    }
    yaml::parse(word).ok().map(|document| document.value).filter(Value::is_string)
}

#[cfg(test)]
mod tests {
    use crate::load::load_preset;
    use std::path::{Path, PathBuf};

    fn load(overrides: &[&str]) -> crate::RunConfig {
        let overrides: Vec<String> = overrides.iter().map(|&text| text.to_owned()).collect();
        load_preset("mnist_thanos", &overrides)
            .unwrap_or_else(|error| panic!("{overrides:?}: {error}"))
    }

    #[test]
    fn the_value_of_a_text_key_is_what_was_typed() {
        for word in [
            "/data/set #1",
            "#1",
            "~/x",
            "~",
            "/a: b",
            "[x]",
            "{x}",
            "*",
            "&a",
            "!t",
            "- a",
            "12",
            "1e3",
            "true",
            "nul",
            " a ",
            "a=b",
            "it's",
            "'a' and 'b'",
            "%TEMP%",
            "|",
            "é\u{301}",
            "a\nb",
        ] {
            let config =
                load(&[&format!("data.dir={word}"), &format!("backbones.0.checkpoint={word}")]);
            assert_eq!(config.data.dir.as_deref(), Some(Path::new(word)));
            assert_eq!(config.backbones[0].checkpoint.as_deref(), Some(Path::new(word)));
            assert_eq!(load(&[&format!("name={word}")]).name, word);
            assert_eq!(load(&[&format!("rows.0.method={word}")]).rows[0].method, word);
            assert_eq!(load(&[&format!("rows.0.backbones.1={word}")]).rows[0].backbones[1], word);
        }
    }

    #[test]
    fn quotes_and_null_are_as_in_a_file() {
        assert_eq!(load(&["name='12'"]).name, "12");
        assert_eq!(load(&["name=\"a\\tb\""]).name, "a\tb");
        assert_eq!(load(&["name=null"]).name, "null");
        assert_eq!(load(&["data.dir=/x", "data.dir=null"]).data.dir, None);
        assert_eq!(load(&["data.dir=/x", "data.dir="]).data.dir, None);
        assert_eq!(load(&["data.dir='null'"]).data.dir, Some(PathBuf::from("null")));
    }

    #[test]
    fn other_keys_are_yaml() {
        let config = load(&[
            "train.epochs=3 # a comment",
            "data={dir: '/a #1', drop_last: true}",
            "rows.0.backbones=[cae]",
        ]);
        assert_eq!((config.train.epochs, config.data.drop_last), (3, true));
        assert_eq!(config.data.dir.as_deref(), Some(Path::new("/a #1")));
        assert_eq!(config.rows[0].backbones, ["cae"]);
    }
}
