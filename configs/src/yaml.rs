//! YAML text to a plain value with the line of every key, and back. Duplicate keys are refused; so
//! are tags, aliases and several documents, which a configuration has no use for. It must not know
//! what the keys mean.

use crate::error::Mistake;
use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, StrInput};
use serde_json::{Map, Number, Value};
use std::collections::HashMap;

/// Maps and lists within each other; a configuration has five.
const MAX_DEPTH: usize = 32;

/// The line, from 1, of every dotted key.
pub(crate) type Lines = HashMap<String, usize>;

/// A YAML document; of a duplicate key it holds the first value, and a mistake.
#[derive(Debug)]
pub(crate) struct Document {
    pub(crate) value: Value,
    pub(crate) lines: Lines,
    pub(crate) mistakes: Vec<Mistake>,
}

/// Reads one document; an empty text is null. Errors: the text is not the YAML that is read here.
pub(crate) fn parse(text: &str) -> Result<Document, Mistake> {
    let mut reader = Reader {
        parser: Parser::new_from_str(text),
        path: Vec::new(),
        lines: Lines::new(),
        mistakes: Vec::new(),
        last_line: 1,
    };
    let mut value = None;
    loop {
        match reader.next()? {
            Event::StreamEnd => break,
            Event::StreamStart | Event::DocumentStart(_) | Event::DocumentEnd | Event::Nothing => {}
            _ if value.is_some() => {
                return Err(reader.refuse("a second document starts here: only one is supported"));
            }
            event => value = Some(reader.node(event)?),
        }
    }
    let value = value.unwrap_or(Value::Null);
    Ok(Document { value, lines: reader.lines, mistakes: reader.mistakes })
}

/// Block YAML of a plain value; [`parse`] reads the same value again.
pub(crate) fn write(value: &Value) -> String {
    serde_yaml::to_string(value)
        .expect("maps, lists and scalars with text keys can always be written")
}

/// Joins the parts of a key.
pub(crate) fn dotted(path: &[String]) -> String {
    path.join(".")
}

struct Reader<'a> {
    parser: Parser<'a, StrInput<'a>>,
    path: Vec<String>,
    lines: Lines,
    mistakes: Vec<Mistake>,
    last_line: usize,
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<Event<'a>, Mistake> {
        match self.parser.next_event() {
            None => Ok(Event::StreamEnd),
            Some(Ok((event, span))) => {
                self.last_line = span.start.line();
                Ok(event)
            }
            Some(Err(error)) => Err(syntax(&error)),
        }
    }

    fn refuse(&self, message: impl Into<String>) -> Mistake {
        Mistake { line: Some(self.last_line), key: dotted(&self.path), message: message.into() }
    }

    /// The value that starts with `event`.
    fn node(&mut self, event: Event<'a>) -> Result<Value, Mistake> {
        if self.path.len() > MAX_DEPTH {
            return Err(Mistake {
                line: Some(self.last_line),
                key: String::new(),
                message: format!("maps and lists are nested deeper than {MAX_DEPTH}"),
            });
        }
        match event {
            Event::Scalar(_, _, _, Some(tag))
            | Event::SequenceStart(_, Some(tag))
            | Event::MappingStart(_, Some(tag)) => Err(self.refuse(format!(
                "the tag `{tag}` is not supported: write a choice as a key, a text in quotes"
            ))),
            Event::Scalar(text, ScalarStyle::Plain, _, None) => Ok(plain_scalar(&text)),
            Event::Scalar(text, _, _, None) => Ok(Value::String(text.into_owned())),
            Event::SequenceStart(_, None) => self.list(),
            Event::MappingStart(_, None) => self.map(),
            Event::Alias(_) => {
                Err(self.refuse("anchors and aliases are not supported: write the value out"))
            }
            other => Err(self.refuse(format!("expected a value, got {other:?}"))),
        }
    }

    fn list(&mut self) -> Result<Value, Mistake> {
        let mut items = Vec::new();
        loop {
            let event = self.next()?;
            if event == Event::SequenceEnd {
                return Ok(Value::Array(items));
            }
            self.path.push(items.len().to_string());
            self.lines.insert(dotted(&self.path), self.last_line);
            items.push(self.node(event)?);
            self.path.pop();
        }
    }

    fn map(&mut self) -> Result<Value, Mistake> {
        let mut entries = Map::new();
        loop {
            let key = match self.next()? {
                Event::MappingEnd => return Ok(Value::Object(entries)),
                Event::Scalar(text, _, _, None) => text.into_owned(),
                _ => return Err(self.refuse("a key must be a plain text")),
            };
            let line = self.last_line;
            self.path.push(key.clone());
            let path = dotted(&self.path);
            if entries.contains_key(&key) {
                let first = self.lines.get(&path).copied().unwrap_or(line);
                let message = format!("this key is already on line {first}: keep one of the two");
                self.mistakes.push(Mistake { line: Some(line), key: path, message });
                // The second value is read past; its keys must not move the lines of the first
                // one's.
                let lines = self.lines.clone();
                let event = self.next()?;
                self.node(event)?;
                self.lines = lines;
            } else {
                self.lines.insert(path, line);
                let event = self.next()?;
                let value = self.node(event)?;
                entries.insert(key, value);
            }
            self.path.pop();
        }
    }
}

fn syntax(error: &ScanError) -> Mistake {
    let column = error.marker().col() + 1;
    Mistake {
        line: Some(error.marker().line()),
        key: String::new(),
        message: format!("invalid YAML: {} (column {column})", error.info()),
    }
}

/// A scalar without quotes by YAML 1.2's core schema (yaml.org/spec/1.2.2, 10.3.2); what JSON
/// cannot hold (infinity, not a number) stays a text, which no numeric key takes.
fn plain_scalar(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" => return Value::Bool(true),
        "false" | "False" | "FALSE" => return Value::Bool(false),
        _ => {}
    }
    let radix = |prefix, radix| u64::from_str_radix(text.strip_prefix(prefix)?, radix).ok();
    if let Some(number) =
        text.parse::<u64>().ok().or_else(|| radix("0x", 16)).or_else(|| radix("0o", 8))
    {
        return Value::from(number);
    }
    if let Ok(number) = text.parse::<i64>() {
        return Value::from(number);
    }
    let numeric = text.bytes().all(|byte| byte.is_ascii_digit() || b"+-.eE".contains(&byte));
    let float = text.parse::<f64>().ok().filter(|_| numeric).and_then(Number::from_f64);
    float.map_or_else(|| Value::String(text.to_owned()), Value::Number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn scalars_follow_the_core_schema() {
        let check = |text: &str, expected: Value| {
            assert_eq!(parse(text).expect(text).value, expected, "{text}");
        };
        check("", Value::Null);
        check("~", Value::Null);
        check("True", json!(true));
        check("yes", json!("yes"));
        check("12", json!(12));
        check("-12", json!(-12));
        check("0x1F", json!(31));
        check("0o17", json!(15));
        check("18446744073709551615", json!(u64::MAX));
        check("1e-3", json!(0.001));
        check(".5", json!(0.5));
        check("1e999", json!("1e999"));
        check(".inf", json!(".inf"));
        check("e", json!("e"));
        check("'12'", json!("12"));
        check("1.2.3", json!("1.2.3"));
        check("{a: [1, {b: }]}", json!({"a": [1, {"b": null}]}));
    }

    #[test]
    fn every_key_and_item_has_its_line() {
        let document = parse("# one\na:\n  b: 1\n  c:\n  - 2\n  - d: 3\n").expect("valid");
        let line = |key: &str| document.lines.get(key).copied();
        assert_eq!(
            [line("a"), line("a.b"), line("a.c"), line("a.c.0"), line("a.c.1"), line("a.c.1.d")],
            [Some(2), Some(3), Some(4), Some(5), Some(6), Some(6)]
        );
    }

    #[test]
    fn what_a_configuration_has_no_use_for_is_refused_with_its_line() {
        let check = |text: &str, line: usize, part: &str| {
            let mistake = parse(text).expect_err("refused");
            assert_eq!(mistake.line, Some(line), "{mistake:?}");
            assert!(mistake.message.contains(part), "{mistake:?}");
        };
        check("a: 1\nb: !vit {}\n", 2, "the tag `!vit`");
        check("a: &x 1\nb: *x\n", 2, "aliases");
        check("a: 1\n---\nb: 1\n", 3, "second document");
        check("a: 1\n[x]: 2\n", 2, "key must be a plain text");
        check("a: [1\nb: 2\n", 2, "invalid YAML");
        check(&"[".repeat(40), 1, "nested deeper");
        check(&"[".repeat(10_000), 1, "recursion limit");
    }

    #[test]
    fn a_duplicate_key_keeps_the_first_value() {
        let document = parse("a:\n  b: 1\na:\n  b: 2\n  c: 3\n").expect("valid but for the key");
        assert_eq!(document.value, json!({"a": {"b": 1}}));
        assert_eq!(document.lines["a.b"], 2);
        let found: Vec<_> =
            document.mistakes.iter().map(|mistake| (mistake.line, mistake.key.as_str())).collect();
        assert_eq!(found, [(Some(3), "a")]);
    }

    #[test]
    fn what_is_written_is_read_back() {
        for text in [
            "",
            "x",
            "null",
            "~",
            "true",
            "Yes",
            "no",
            "12",
            "+12",
            "007",
            "0x1F",
            "0o7",
            "1e3",
            ".5",
            "1_0",
            ".inf",
            "a: b",
            "- a",
            "#c",
            "a #b",
            " a ",
            "a\nb",
            "\"",
            "'",
            "{",
            "[",
            "*a",
            "&a",
            "!t",
            "%",
            "@",
            "`",
            "é",
            "\u{7f}\u{0}",
            "2024-01-01",
            "1:30",
            "=",
            "<<",
            "...",
            "---",
            "|",
            ">",
            "?",
            ":",
            "-",
            "\t",
            "\u{feff}",
        ] {
            let value = json!({ "key": text, "list": [text, [], {}] });
            let written = write(&value);
            assert_eq!(parse(&written).expect(&written).value, value, "{written}");
        }
        let numbers = json!([u64::MAX, i64::MIN, 0.1, 1.0, -0.0, 1e300, 5e-324, 4.0 / 3.0]);
        assert_eq!(parse(&write(&numbers)).expect("numbers").value, numbers);
    }
}
