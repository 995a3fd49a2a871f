//! From a YAML file or a preset, with overrides, to a `RunConfig` or a `Plan`: every mistake at
//! once, each with its line or its override. It must not know what a valid run is: that is
//! `Plan`'s.

use crate::effect::{Layer, settle};
use crate::error::{ConfigError, ConfigErrors, Mistake};
use crate::overlays::{self, EXTENDS};
use crate::plan::Plan;
use crate::presets::{preset_value, unknown_preset};
use crate::redacted::redacted;
use crate::run_config::RunConfig;
use crate::shared_objective::{self, OwnObjectives};
use crate::text::text_value;
use crate::typed::typed;
use crate::yaml::{self, Lines};
use serde_json::Value;

/// Reads a file's text; `source` is the file's name for messages, `overrides` are
/// `dotted.key=value` with YAML values. A file may say `extends: PRESET`. Errors: all mistakes in
/// keys and types; rules across keys are `Plan`'s.
pub fn load_file(
    text: &str,
    source: &str,
    overrides: &[String],
) -> Result<RunConfig, ConfigErrors> {
    Layered::of_file(text, source)?.with(overrides).settled().map(|settled| settled.config)
}

/// As [`load_file`], for a preset by name.
pub fn load_preset(name: &str, overrides: &[String]) -> Result<RunConfig, ConfigErrors> {
    Layered::of_preset(name)?.with(overrides).settled().map(|settled| settled.config)
}

impl Plan {
    /// A configuration file's plan, as [`crate::load_file`] reads it: all mistakes in keys and
    /// types, or else all broken rules, or else all keys without effect, each with its line or
    /// override.
    pub fn from_file(text: &str, source: &str, overrides: &[String]) -> Result<Self, ConfigErrors> {
        plan(Layered::of_file(text, source)?.with(overrides).settled()?)
    }

    /// As [`Plan::from_file`], for the resolved configuration of a run, which is taken as it is:
    /// keys without effect, which an earlier version let through, are not a mistake.
    pub fn from_resolved(
        text: &str,
        source: &str,
        overrides: &[String],
    ) -> Result<Self, ConfigErrors> {
        let (config, origin) = Layered::of_file(text, source)?.with(overrides).config()?;
        plan(Settled { config, origin, idle: Vec::new() })
    }

    /// As [`Plan::from_file`], for a preset by name.
    pub fn from_preset(name: &str, overrides: &[String]) -> Result<Self, ConfigErrors> {
        plan(Layered::of_preset(name)?.with(overrides).settled()?)
    }
}

/// The resolved configuration as YAML, keys in the order of the struct; loads again to an equal
/// one.
pub fn to_yaml(config: &RunConfig) -> String {
    yaml::write(&serde_json::to_value(config).expect("a RunConfig holds only what JSON can"))
}

fn plan(settled: Settled) -> Result<Plan, ConfigErrors> {
    let Settled { config, origin, idle } = settled;
    let plan = Plan::new(config).map_err(|broken| {
        let broken = broken.into_iter().map(|rule| Mistake {
            line: None,
            key: rule.key,
            message: rule.message,
        });
        origin.locate_all(broken.collect())
    })?;
    if idle.is_empty() { Ok(plan) } else { Err(origin.locate_all(idle)) }
}

/// A configuration whose keys without effect are reset, and those that may not be.
struct Settled {
    config: RunConfig,
    origin: Origin,
    idle: Vec<Mistake>,
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
    value: Value,
}

impl Override {
    fn source(&self) -> String {
        format!("override '{}'", redacted(&self.typed))
    }

    /// Whether it sets a key, or one below it.
    fn sets(&self, key: &str) -> bool {
        let key: Vec<&str> = key.split('.').collect();
        let shared = self.path.iter().zip(&key).all(|(part, wanted)| part == wanted);
        let below = key.get(self.path.len()..).unwrap_or_default();
        shared && below.iter().try_fold(&self.value, |place, part| place.get(part)).is_some()
    }
}

impl Origin {
    /// All mistakes in reading order: the file's by line, then the overrides'.
    fn locate_all(&self, mistakes: Vec<Mistake>) -> ConfigErrors {
        let mut located: Vec<_> =
            mistakes.into_iter().map(|mistake| self.locate(mistake)).collect();
        located.sort_by_key(|(order, error)| (*order, error.line));
        ConfigErrors(located.into_iter().map(|(_, error)| error).collect())
    }

    /// The last layer that set a key.
    fn layer_of(&self, key: &str) -> Layer {
        if self.overrides.iter().any(|over| over.sets(key)) {
            Layer::Override
        } else if self.lines.contains_key(key) {
            Layer::File
        } else {
            Layer::Preset
        }
    }

    /// The last override that set the key, or a part that holds it; else the file, at the key or
    /// what holds it.
    fn locate(&self, mistake: Mistake) -> (usize, ConfigError) {
        let Mistake { line, key, message } = mistake;
        let inside = |outer: &str| {
            key == outer || key.strip_prefix(outer).is_some_and(|rest| rest.starts_with('.'))
        };
        let by = self.overrides.iter().rposition(|over| inside(&over.path.join(".")));
        if let Some(index) = by.filter(|_| line.is_none()) {
            let source = self.overrides[index].source();
            return (index + 1, ConfigError { source, line: None, key, message });
        }
        let holders = std::iter::successors(Some(key.as_str()), |key| {
            key.rsplit_once('.').map(|(holder, _)| holder)
        });
        let line =
            line.or_else(|| holders.filter_map(|holder| self.lines.get(holder).copied()).next());
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
            return Err(ConfigError {
                source,
                line: None,
                key: String::new(),
                message: unknown_preset(name),
            }
            .into());
        };
        let mut value = defaults();
        overlays::merge(&mut value, preset);
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
                        Ok(preset) => {
                            mistakes.extend(shared_objective::of_file(&preset, &entries));
                            overlays::merge(&mut value, preset);
                        }
                        Err(message) => {
                            mistakes.push(Mistake { line: None, key: EXTENDS.into(), message })
                        }
                    }
                }
                overlays::merge(&mut value, Value::Object(entries));
            }
            other => value = other,
        }
        let origin =
            Origin { source: source.to_owned(), lines: document.lines, overrides: Vec::new() };
        Ok(Self { value, origin, mistakes, refused: Vec::new() })
    }

    fn with(mut self, overrides: &[String]) -> Self {
        let own = OwnObjectives::of(&self.value);
        for typed in overrides {
            if let Err((key, message)) = self.lay(typed, &own) {
                let source = format!("override '{}'", redacted(typed));
                self.refused.push(ConfigError { source, line: None, key, message });
            }
        }
        self
    }

    /// Lays one override over the value. `own` is what backbones had before all overrides. Errors:
    /// its key, and what is wrong with it.
    fn lay(&mut self, typed: &str, own: &OwnObjectives) -> Result<(), (String, String)> {
        let example = "write key=value, such as train.epochs=10";
        let Some((key, value)) = typed.split_once('=') else {
            return Err((String::new(), format!("missing `=`: {example}")));
        };
        let key = key.trim();
        let mut path: Vec<String> = key.split('.').map(str::to_owned).collect();
        // As the published code has it.
        if path[0] == "wandb" {
            path.insert(0, "log".into());
        }
        if path.iter().any(String::is_empty) {
            return Err((String::new(), format!("the key `{key}` has an empty part: {example}")));
        }
        if key == EXTENDS {
            return Err((
                key.to_owned(),
                "only a file can extend a preset: write it in the file".into(),
            ));
        }
        let path = overlays::numbered(&self.value, &path);
        let value = text_value(&path, value).map_or_else(|| yaml_value(key, value), Ok)?;
        own.check(&path, &value)?;
        overlays::set(&mut self.value, &path, value.clone())
            .map_err(|message| (key.to_owned(), message))?;
        self.origin.overrides.push(Override { typed: typed.to_owned(), path, value });
        Ok(())
    }

    fn settled(self) -> Result<Settled, ConfigErrors> {
        let (config, origin) = self.config()?;
        let (config, idle) = settle(config, |key| origin.layer_of(key));
        Ok(Settled { config, origin, idle })
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
            Some(config) if mistakes.is_empty() && self.refused.is_empty() => {
                Ok((config, self.origin))
            }
            _ => {
                let mut errors = self.origin.locate_all(mistakes);
                errors.0.extend(self.refused);
                Err(errors)
            }
        }
    }
}

/// The value of an override of a key that does not hold text. Errors: its key, and what is wrong
/// with it.
fn yaml_value(key: &str, value: &str) -> Result<Value, (String, String)> {
    let document = yaml::parse(value).map_err(|mistake| (key.to_owned(), mistake.message))?;
    match document.mistakes.first() {
        None => Ok(document.value),
        Some(mistake) => {
            Err((format!("{key}.{}", mistake.key), "duplicate key: keep one of the two".into()))
        }
    }
}

/// What every configuration lies over.
fn defaults() -> Value {
    serde_json::to_value(RunConfig::default()).expect("a RunConfig holds only what JSON can")
}

/// The keys of the preset that a file extends. Errors: what is wrong with its name.
fn extended(preset: &Value) -> Result<Value, String> {
    let name = preset
        .as_str()
        .ok_or("expected the name of a preset (`thanos-coord presets` lists them)")?;
    preset_value(name).ok_or_else(|| unknown_preset(name))
}

#[cfg(test)]
mod tests;
