//! From a YAML file or a preset, with overrides, to a `RunConfig` or a `Plan`: every mistake at once, each with its
//! line or its override. It must not know what a valid run is: that is `Plan`'s.

use crate::error::{ConfigError, ConfigErrors, Mistake};
use crate::layers::{self, EXTENDS};
use crate::plan::Plan;
use crate::presets::{preset_value, unknown_preset};
use crate::run_config::RunConfig;
use crate::typed::typed;
use crate::yaml::{self, Lines};
use serde_json::Value;

/// Reads a file's text; `source` is the file's name for messages, `overrides` are `dotted.key=value` with YAML values.
/// A file may say `extends: PRESET`. Errors: all mistakes in keys and types; rules across keys are `Plan::new`'s.
pub fn load_file(text: &str, source: &str, overrides: &[String]) -> Result<RunConfig, ConfigErrors> {
    Layered::of_file(text, source)?.with(overrides).config().map(|(config, _)| config)
}

/// As [`load_file`], for a preset by name.
pub fn load_preset(name: &str, overrides: &[String]) -> Result<RunConfig, ConfigErrors> {
    Layered::of_preset(name)?.with(overrides).config().map(|(config, _)| config)
}

/// A file's plan: all mistakes in keys and types, or else all broken rules, each with its line.
pub(crate) fn plan_file(text: &str, source: &str, overrides: &[String]) -> Result<Plan, ConfigErrors> {
    plan(Layered::of_file(text, source)?.with(overrides))
}

/// As [`plan_file`], for a preset by name.
pub(crate) fn plan_preset(name: &str, overrides: &[String]) -> Result<Plan, ConfigErrors> {
    plan(Layered::of_preset(name)?.with(overrides))
}

/// The resolved configuration as YAML, keys in the order of the struct; loads again to an equal one.
pub fn to_yaml(config: &RunConfig) -> String {
    yaml::write(&serde_json::to_value(config).expect("a RunConfig holds only what JSON can"))
}

fn plan(layered: Layered) -> Result<Plan, ConfigErrors> {
    let (config, origin) = layered.config()?;
    Plan::new(config).map_err(|broken| {
        let broken = broken.into_iter().map(|rule| Mistake { line: None, key: rule.key, message: rule.message });
        origin.locate_all(broken.collect())
    })
}

/// Where values came from.
struct Origin {
    source: String,
    lines: Lines,
    overrides: Vec<Override>,
}

/// `key=value`, as typed and as read.
struct Override {
    typed: String,
    path: Vec<String>,
}

impl Override {
    fn source(&self) -> String {
        format!("override '{}'", self.typed)
    }
}

impl Origin {
    /// All mistakes in reading order: the file's by line, then the overrides'.
    fn locate_all(&self, mistakes: Vec<Mistake>) -> ConfigErrors {
        let mut located: Vec<_> = mistakes.into_iter().map(|mistake| self.locate(mistake)).collect();
        located.sort_by_key(|(order, error)| (*order, error.line));
        ConfigErrors(located.into_iter().map(|(_, error)| error).collect())
    }

    /// The last override that set the key, or a part that holds it; else the file, at the key or what holds it.
    fn locate(&self, mistake: Mistake) -> (usize, ConfigError) {
        let Mistake { line, key, message } = mistake;
        let inside = |outer: &str| key == outer || key.strip_prefix(outer).is_some_and(|rest| rest.starts_with('.'));
        let by = self.overrides.iter().rposition(|over| inside(&over.path.join(".")));
        if let Some(index) = by.filter(|_| line.is_none()) {
            let source = self.overrides[index].source();
            return (index + 1, ConfigError { source, line: None, key, message });
        }
        let holders = std::iter::successors(Some(key.as_str()), |key| key.rsplit_once('.').map(|(holder, _)| holder));
        let line = line.or_else(|| holders.filter_map(|holder| self.lines.get(holder).copied()).next());
        (0, ConfigError { source: self.source.clone(), line, key, message })
    }
}

/// The layers laid over each other so far, and what was wrong with them.
struct Layered {
    value: Value,
    origin: Origin,
    mistakes: Vec<Mistake>,
    /// Mistakes of overrides, which name their place themselves.
    refused: Vec<ConfigError>,
}

impl Layered {
    fn of_preset(name: &str) -> Result<Self, ConfigErrors> {
        let source = format!("preset {name}");
        let Some(preset) = preset_value(name) else {
            return Err(ConfigError { source, line: None, key: String::new(), message: unknown_preset(name) }.into());
        };
        let mut value = defaults();
        layers::merge(&mut value, preset);
        let origin = Origin { source, lines: Lines::new(), overrides: Vec::new() };
        Ok(Self { value, origin, mistakes: Vec::new(), refused: Vec::new() })
    }

    fn of_file(text: &str, source: &str) -> Result<Self, ConfigErrors> {
        let place = |mistake: Mistake| ConfigError {
            source: source.to_owned(),
            line: mistake.line,
            key: mistake.key,
            message: mistake.message,
        };
        let document = yaml::parse(text).map_err(place)?;
        let mut mistakes = document.mistakes;
        let mut value = defaults();
        match document.value {
            Value::Null => {}
            Value::Object(mut entries) => {
                if let Some(preset) = entries.shift_remove(EXTENDS) {
                    match extended(&preset) {
                        Ok(preset) => layers::merge(&mut value, preset),
                        Err(message) => mistakes.push(Mistake { line: None, key: EXTENDS.into(), message }),
                    }
                }
                layers::merge(&mut value, Value::Object(entries));
            }
            other => value = other,
        }
        let origin = Origin { source: source.to_owned(), lines: document.lines, overrides: Vec::new() };
        Ok(Self { value, origin, mistakes, refused: Vec::new() })
    }

    fn with(mut self, overrides: &[String]) -> Self {
        for typed in overrides {
            if let Err((key, message)) = self.lay(typed) {
                let source = format!("override '{typed}'");
                self.refused.push(ConfigError { source, line: None, key, message });
            }
        }
        self
    }

    /// Lays one override over the value. Errors: its key, and what is wrong with it.
    fn lay(&mut self, typed: &str) -> Result<(), (String, String)> {
        let example = "write key=value, such as train.epochs=10";
        let Some((key, value)) = typed.split_once('=') else {
            return Err((String::new(), format!("there is no `=`: {example}")));
        };
        let key = key.trim();
        let path: Vec<String> = key.split('.').map(str::to_owned).collect();
        if path.iter().any(String::is_empty) {
            return Err((String::new(), format!("the key `{key}` has an empty part: {example}")));
        }
        if key == EXTENDS {
            return Err((key.to_owned(), "only a file can extend a preset: write it in the file".into()));
        }
        let document = yaml::parse(value).map_err(|mistake| (key.to_owned(), mistake.message))?;
        if let Some(mistake) = document.mistakes.first() {
            return Err((format!("{key}.{}", mistake.key), "this key is there twice: keep one of the two".into()));
        }
        layers::set(&mut self.value, &path, document.value).map_err(|message| (key.to_owned(), message))?;
        self.origin.overrides.push(Override { typed: typed.to_owned(), path });
        Ok(())
    }

    fn config(self) -> Result<(RunConfig, Origin), ConfigErrors> {
        let mut mistakes = self.mistakes;
        let config = match typed(self.value) {
            Ok(config) => Some(config),
            Err(found) => {
                mistakes.extend(found);
                None
            }
        };
        match config {
            Some(config) if mistakes.is_empty() && self.refused.is_empty() => Ok((config, self.origin)),
            _ => {
                let mut errors = self.origin.locate_all(mistakes);
                errors.0.extend(self.refused);
                Err(errors)
            }
        }
    }
}

/// What every configuration lies over.
fn defaults() -> Value {
    serde_json::to_value(RunConfig::default()).expect("a RunConfig holds only what JSON can")
}

/// The keys of the preset that a file extends. Errors: what is wrong with its name.
fn extended(preset: &Value) -> Result<Value, String> {
    let name = preset.as_str().ok_or("expected the name of a preset (`thanos-coord presets` lists them)")?;
    preset_value(name).ok_or_else(|| unknown_preset(name))
}

#[cfg(test)]
mod tests;
