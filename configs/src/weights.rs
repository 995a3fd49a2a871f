//! What a file of weights records about the network that it belongs to, and how that is compared
//! with a run's network. Tensor shapes alone do not show the number of attention heads, for one.

use crate::dataset::DataSet;
use crate::run_config::ModelConfig;
use serde_json::{Map, Value, json};

/// The entry of a safetensors file's `__metadata__` that holds the record, as JSON. It is one
/// entry, as the file's writer orders several at random.
pub const WEIGHTS_METADATA_KEY: &str = "thanos";

/// Version of the record.
const FORMAT: u64 = 1;
/// Which kind of encoder it is: compared first, as the other keys depend on it.
const KIND: &str = "model.encoder";

/// Everything that decides what an encoder computes from given weights: configuration keys with
/// their values.
#[derive(Clone, Debug, PartialEq)]
pub struct Architecture(Map<String, Value>);

impl Architecture {
    pub fn of(model: &ModelConfig, data: &DataSet) -> Self {
        let mut keys = Map::new();
        let encoder = serde_json::to_value(&model.encoder).expect("an encoder is plain data");
        for (kind, sizes) in encoder.as_object().into_iter().flatten() {
            keys.insert(KIND.into(), json!(kind));
            for (name, size) in sizes.as_object().into_iter().flatten() {
                keys.insert(format!("{KIND}.{kind}.{name}"), size.clone());
            }
        }
        keys.insert("data.channels".into(), json!(data.channels));
        keys.insert("data.side".into(), json!(data.side));
        Self(keys)
    }

    /// The record for a stage's files: the architecture, and what else is needed to use the weights
    /// elsewhere. `backbones` are those that a probe was trained on, in the order of its inputs;
    /// empty for a backbone.
    pub fn record(&self, stage: &str, data: &DataSet, backbones: &[String]) -> String {
        let normalisation = json!({"data_set": data.name, "mean": data.mean, "std": data.std});
        json!({
            "format": FORMAT,
            "stage": stage,
            "probe_of": backbones,
            "architecture": self.0,
            "normalisation": normalisation,
        })
        .to_string()
    }

    /// Compares this architecture with a record of [`Self::record`].
    ///
    /// # Errors
    /// Names each key that differs with the value found and the one expected, or says that the
    /// record is damaged.
    pub fn check(&self, record: &str) -> Result<(), String> {
        let record: Value = serde_json::from_str(record).map_err(|error| {
            format!("its metadata `{WEIGHTS_METADATA_KEY}` is not JSON: {error}")
        })?;
        let found = record["architecture"].as_object().ok_or_else(|| {
            format!("its metadata `{WEIGHTS_METADATA_KEY}` has no `architecture`")
        })?;
        let differs = |key: &str| {
            let (found, expected) =
                (found.get(key).unwrap_or(&Value::Null), self.0.get(key).unwrap_or(&Value::Null));
            (found != expected).then(|| {
                format!("{key}: found {found} in the file, expected {expected} as in this run")
            })
        };
        let differences: Vec<String> = match differs(KIND) {
            Some(kind) => vec![kind],
            None => {
                let unknown = found.keys().filter(|key| !self.0.contains_key(*key));
                self.0.keys().chain(unknown).filter_map(|key| differs(key)).collect()
            }
        };
        match differences.is_empty() {
            true => Ok(()),
            false => Err(format!(
                "these are weights of another architecture: {}",
                differences.join("; ")
            )),
        }
    }
}

/// What to do with a file that is not safetensors but begins like a PyTorch file (`.pt`, `.pth`: a
/// zip archive, or in older versions a pickle). `None`: it begins like something else.
pub fn pytorch_file_advice(start: &[u8], path: &str) -> Option<String> {
    let is_pickle = matches!(start, [0x80, 2..=5, ..]);
    if !is_pickle && !start.starts_with(b"PK\x03\x04") {
        return None;
    }
    let converted = match path.rsplit_once('.') {
        Some((stem, extension)) if !extension.contains('/') => format!("{stem}.safetensors"),
        _ => format!("{path}.safetensors"),
    };
    let (from, to) = (python_string(path), python_string(&converted));
    Some(format!(
        "this looks like a PyTorch file, which can run code when it is opened and is not read; \
        convert it with these two \
         lines of Python, and give {converted} instead:\n  \
         import torch, safetensors.torch\n  \
         safetensors.torch.save_file({{name: value.contiguous().clone() for name, value in \
         torch.load({from}, \
         map_location=\"cpu\", weights_only=True).items()}}, {to})\n\
         (if the file also holds other things than weights, take them by their key: \
         torch.load(...)[\"state_dict\"].items())"
    ))
}

fn python_string(text: &str) -> String {
    Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::load_preset;

    fn architecture(overrides: &[&str]) -> (Architecture, DataSet) {
        let overrides: Vec<String> = overrides.iter().map(|&text| text.into()).collect();
        let config = load_preset("digits_cnce", &overrides).expect("valid");
        let data = config.data.facts();
        (Architecture::of(&config.model, &data), data)
    }

    /// Weights of the preset against a run with this override: the differences that are named.
    #[test]
    fn another_architecture_is_named_by_key_with_both_values() {
        let (recorded, data) = architecture(&[]);
        let record = recorded.record("cnce", &data, &[]);
        let check = |text: &str, expected: &[&str]| {
            let (run, _) = architecture(&[text]);
            let refusal = run.check(&record).err();
            assert_eq!(refusal.is_none(), expected.is_empty(), "{text}: {refusal:?}");
            for part in expected {
                assert!(
                    refusal.as_ref().is_some_and(|refusal| refusal.contains(part)),
                    "{text}: {part} in {refusal:?}"
                );
            }
        };
        check("seed=0", &[]);
        check("model.dropout=0.3", &[]);
        check("model.precision=float64", &[]);
        check(
            "model.encoder.vit.heads=2",
            &["model.encoder.vit.heads: found 4 in the file, expected 2 as in this run"],
        );
        check("model.encoder.vit.depth=5", &["model.encoder.vit.depth: found "]);
        check(
            "model.encoder={resnet18: {stem: cifar}}",
            &["model.encoder: found \"vit\" in the file, expected \"resnet18\""],
        );
        check("data.kind=mnist", &["data.side: found 8 in the file, expected 28"]);
    }

    #[test]
    fn a_damaged_record_is_refused() {
        let (run, _) = architecture(&[]);
        assert!(run.check("{").is_err_and(|refusal| refusal.contains("is not JSON")));
        assert!(run.check("{}").is_err_and(|refusal| refusal.contains("has no `architecture`")));
    }

    #[test]
    fn a_pytorch_file_comes_with_the_lines_that_convert_it() {
        let advice =
            pytorch_file_advice(b"PK\x03\x04rest", "/w/my\"resnet.pth").expect("a zip archive");
        for part in [
            "give /w/my\"resnet.safetensors",
            "torch.load(\"/w/my\\\"resnet.pth\"",
            "weights_only=True",
        ] {
            assert!(advice.contains(part), "no {part} in {advice}");
        }
        assert!(pytorch_file_advice(&[0x80, 2, b'}'], "x.pt").is_some(), "a pickle");
        assert!(pytorch_file_advice(b"text", "x.pt").is_none());
    }
}
