//! `objective` is what backbones share: a key of it does nothing for a backbone with a value of its
//! own. A user who sets such a key over a preset that has several backbones means one of them, and
//! is asked which.

use crate::error::Mistake;
use serde_json::{Map, Value};

/// The section that backbones share.
const SECTION: &str = "objective";
/// The list of those that may have values of their own.
const BACKBONES: &str = "backbones";

/// The keys of `objective` for which some backbone has a value of its own.
pub(crate) struct OwnObjectives {
    /// Names of all backbones, and the keys that each has.
    backbones: Vec<(String, Vec<String>)>,
}

impl OwnObjectives {
    /// Those of a configuration that may not be valid yet.
    pub(crate) fn of(config: &Value) -> Self {
        let items = config.get(BACKBONES).and_then(Value::as_array).into_iter().flatten();
        let backbones = items.enumerate().map(|(index, backbone)| {
            let name = backbone.get("name").and_then(Value::as_str).filter(|name| !name.is_empty());
            let keys = backbone.get(SECTION).and_then(Value::as_object).into_iter().flatten();
            let set = keys.filter(|(_, value)| !value.is_null()).map(|(key, _)| key.clone());
            (name.map_or_else(|| index.to_string(), str::to_owned), set.collect())
        });
        Self { backbones: backbones.collect() }
    }

    /// Errors, for a value that is set at a path: the shared key that does not reach every
    /// backbone, and what to write.
    pub(crate) fn check(&self, path: &[String], value: &Value) -> Result<(), (String, String)> {
        let keys: Vec<&str> = match path {
            [section] if section == SECTION => {
                value.as_object().into_iter().flatten().map(|(key, _)| &**key).collect()
            }
            [section, key, ..] if section == SECTION => vec![key],
            _ => Vec::new(),
        };
        let refused =
            keys.into_iter().find_map(|key| Some((format!("{SECTION}.{key}"), self.refusal(key)?)));
        refused.map_or(Ok(()), Err)
    }

    /// Why a shared key cannot be set; `None`: every backbone takes it from there.
    fn refusal(&self, key: &str) -> Option<String> {
        let has = |keys: &[String]| keys.iter().any(|own| own == key);
        let with = |own: bool| -> Vec<&str> {
            self.backbones
                .iter()
                .filter(|(_, keys)| has(keys) == own)
                .map(|(name, _)| &**name)
                .collect()
        };
        let (own, others) = (with(true), with(false));
        let first = own.first()?;
        let example = format!("{BACKBONES}.{first}.{SECTION}.{key}");
        let reached = if others.is_empty() {
            "no backbone".into()
        } else {
            format!("only {}", others.join(", "))
        };
        Some(format!(
            "would change {reached}: {} has its own value; name the backbone that you mean, such \
             as {example} (backbones: {})",
            own.join(", "),
            self.backbones.iter().map(|(name, _)| &**name).collect::<Vec<_>>().join(", ")
        ))
    }
}

/// Mistakes of a file that extends a preset, sets shared keys, and leaves the backbones to the
/// preset.
pub(crate) fn of_file(preset: &Value, file: &Map<String, Value>) -> Vec<Mistake> {
    let Some(Value::Object(shared)) = file.get(SECTION).filter(|_| !file.contains_key(BACKBONES))
    else {
        return Vec::new();
    };
    let own = OwnObjectives::of(preset);
    let refused = shared.keys().filter_map(|key| Some((key, own.refusal(key)?)));
    refused
        .map(|(key, message)| Mistake { line: None, key: format!("{SECTION}.{key}"), message })
        .collect()
}

#[cfg(test)]
mod tests {
    use crate::load::{load_file, load_preset};
    use crate::objective::ObjectivePatch;

    fn load(preset: &str, overrides: &[&str]) -> Result<crate::RunConfig, String> {
        let overrides: Vec<String> = overrides.iter().map(|&text| text.to_owned()).collect();
        load_preset(preset, &overrides).map_err(|errors| errors.to_string())
    }

    #[test]
    fn a_shared_key_that_would_miss_a_backbone_is_refused() {
        let check = |preset: &str, over: &str, parts: &[&str]| {
            let shown = load(preset, &[over]).expect_err("refused");
            for part in parts {
                assert!(shown.contains(part), "{over}: no `{part}` in {shown}");
            }
        };
        let cae = "backbones.cae.objective.reconstruction";
        check("digits_thanos", "objective.reconstruction=0.5", &["would change only cnce", cae]);
        check(
            "digits_table",
            "objective.reconstruction=0.5",
            &["would change only supcon, cnce: cae has", cae],
        );
        check(
            "digits_table",
            "objective.spread=0.5",
            &["supcon, cae: cnce has", "backbones.cnce.objective.spread"],
        );
        check(
            "digits_table",
            "objective={temperature: .1, spread: 1}",
            &["objective.spread: would change"],
        );
        let file = "extends: digits_thanos\nobjective:\n  temperature: 0.1\n  contrastive: 0.5\n";
        let shown = load_file(file, "f", &[]).expect_err("refused").to_string();
        assert!(shown.starts_with("f:4: objective.contrastive: would change only cnce"), "{shown}");
    }

    #[test]
    fn what_every_backbone_shares_is_set() {
        let config =
            load("digits_table", &["objective.temperature=0.25", "objective.cross_entropy=0"])
                .expect("valid");
        assert_eq!((config.objective.temperature, config.objective.cross_entropy), (0.25, 0.0));
        assert_eq!(
            load("digits_cae", &["objective.reconstruction=0.5"])
                .expect("valid")
                .objective
                .reconstruction,
            0.5
        );
        let own = "extends: digits_thanos\nobjective: {spread: 0.5}\nbackbones:\n- name: a\n  \
            objective: {spread: 2}\n\
                   rows: []\n";
        load_file(own, "f", &[]).expect("a file with its own backbones says what it means");
    }

    #[test]
    fn a_backbone_is_addressed_by_its_name() {
        let by = |key: &str| {
            load("digits_table", &[&format!("{key}.objective.reconstruction=0.5")]).expect("valid")
        };
        let (name, number) = (by("backbones.cae"), by("backbones.2"));
        assert_eq!(name, number);
        let expected =
            ObjectivePatch { reconstruction: Some(0.5), ..name.backbones[2].objective.clone() };
        assert_eq!(name.backbones[2].objective, expected);
        let rows = load("digits_table", &["rows.thanos.backbones=[cae]"]).expect("valid").rows;
        assert_eq!(rows[4].backbones, ["cae"]);
        let shown = load("digits_table", &["backbones.cea.checkpoint=/x"]).expect_err("refused");
        assert!(shown.contains("its items are 0 to 2, or supcon, cnce, cae, got `cea`"), "{shown}");
        let shown = load("digits_table", &["backbones.cae.nam=x"]).expect_err("refused");
        assert!(
            shown.starts_with("override 'backbones.cae.nam=x': backbones.2.nam: unknown key"),
            "{shown}"
        );
    }
}
