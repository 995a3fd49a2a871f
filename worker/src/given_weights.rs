//! Weights that a user gives: a safetensors file of this program, of the published code or of
//! PyTorch, read into an encoder. What can be read without a doubt is read; what cannot is refused
//! with what to do about it.

use crate::checkpoint::BEST;
use crate::model::Model;
use crate::probe_weights::{BIAS, WEIGHT};
use crate::tensors::{StateDict, copy_into, read_floats};
use anyhow::{Context, Result, anyhow, bail, ensure};
use safetensors::tensor::SafeTensors;
use std::fs;
use std::path::Path;
use tch::Tensor;
use thanos_configs::{Architecture, WEIGHTS_METADATA_KEY, pytorch_file_advice};

/// What wrappers of PyTorch put before every name: DistributedDataParallel and `torch.compile`.
const WRAPPERS: [&str; 2] = ["module.", "_orig_mod."];
/// Names of a file that an error quotes.
const MAX_QUOTED: usize = 5;

/// A file of weights: its floating-point tensors by name.
pub(crate) struct GivenWeights {
    pub(crate) tensors: StateDict,
    /// What the file records about its network, as JSON.
    record: Option<String>,
}

impl GivenWeights {
    /// Reads a safetensors file, or the best weights in a checkpoint folder. Tensors in half
    /// precision become float32; tensors of other types, which no encoder has, are skipped.
    ///
    /// # Errors
    /// Names the file, and for a PyTorch file how to convert it.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let file = if path.is_dir() { path.join(BEST) } else { path.to_path_buf() };
        let place = || format!("weights {}", file.display());
        let bytes = fs::read(&file).with_context(place)?;
        let parsed = SafeTensors::read_metadata(&bytes).and_then(|(_, header)| {
            let entries = header.metadata().as_ref();
            let record = entries.and_then(|entries| entries.get(WEIGHTS_METADATA_KEY)).cloned();
            Ok((SafeTensors::deserialize(&bytes)?, record))
        });
        let (parsed, record) = parsed
            .map_err(|error| match pytorch_file_advice(&bytes, &file.to_string_lossy()) {
                Some(advice) => anyhow!(advice),
                None => anyhow!("not a safetensors file: {error}"),
            })
            .with_context(place)?;
        let mut tensors = StateDict::new();
        for (name, tensor) in read_floats(&parsed).with_context(place)? {
            let plain = without_wrappers(&name).to_owned();
            let twice = tensors.insert(plain.clone(), tensor).is_some();
            ensure!(!twice, "{}: `{plain}` is there with and without a wrapper's prefix", place());
        }
        Ok(Self { tensors, record })
    }

    /// Copies the weights into a model without a decoder. A file without the coarse head `cls`
    /// gives an encoder whose head is all zeros.
    ///
    /// # Errors
    /// Names the keys by which the architectures differ, or the tensor that is missing or has
    /// another shape.
    pub(crate) fn load_into(self, model: &Model, architecture: &Architecture) -> Result<()> {
        match &self.record {
            Some(record) => architecture.check(record).map_err(|difference| anyhow!(difference))?,
            None => tracing::info!(
                "the file records no architecture: names and shapes alone are compared"
            ),
        }
        let mut expected = model.state();
        let has_head = self.tensors.contains_key(WEIGHT) || self.tensors.contains_key(BIAS);
        let head: Vec<Tensor> = match has_head {
            true => Vec::new(),
            false => [WEIGHT, BIAS].into_iter().filter_map(|name| expected.remove(name)).collect(),
        };
        expected.iter().try_for_each(|(name, tensor)| self.check(name, &tensor.size()))?;
        copy_into(&expected, &self.tensors)?;
        if !has_head {
            tracing::warn!(
                "the file has no coarse head `cls`: it is all zeros, and coarse accuracies mean \
                nothing"
            );
        }
        head.into_iter().for_each(|mut tensor| _ = tch::no_grad(|| tensor.zero_()));
        Ok(())
    }

    /// Whether a tensor is there with this shape.
    fn check(&self, name: &str, expected: &[i64]) -> Result<()> {
        let Some(tensor) = self.tensors.get(name) else {
            let quoted: Vec<&str> =
                self.tensors.keys().map(String::as_str).take(MAX_QUOTED).collect();
            let (count, quoted) = (self.tensors.len(), quoted.join(", "));
            bail!(
                "it has no tensor `{name}`, and has {count} others ({quoted}, ...): set \
                 `model.encoder` to the encoder that they belong to, or rename them to the names \
                 in a checkpoint of this program"
            );
        };
        let found = tensor.size();
        if found == expected {
            return Ok(());
        }
        let is_head = name == WEIGHT || name == BIAS;
        let advice = match is_head && found.get(1..) == expected.get(1..) {
            true => {
                format!(
                    ": it is a head of other coarse classes; remove {WEIGHT} and {BIAS} to use the \
                    encoder alone"
                )
            }
            false => String::new(),
        };
        bail!("`{name}` has shape {found:?}, expected {expected:?}{advice}")
    }
}

fn without_wrappers(name: &str) -> &str {
    let mut name = name;
    while let Some(rest) = WRAPPERS.iter().find_map(|wrapper| name.strip_prefix(wrapper)) {
        name = rest;
    }
    name
}

/// Weights that the user names by path: a safetensors file, or a checkpoint folder, whose best
/// weights are taken.
///
/// # Errors
/// Names the file, and for a PyTorch file how to convert it.
pub fn load_weights(path: &Path) -> Result<StateDict> {
    Ok(GivenWeights::read(path)?.tensors)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Alone, BatchSum};
    use crate::tensors::snapshot;
    use safetensors::tensor::{Dtype, TensorView};
    use std::collections::HashMap;
    use std::rc::Rc;
    use tch::{Device, Kind};
    use thanos_configs::Plan;

    const RESNET: &str = "model.encoder={resnet18: {stem: imagenet}}";

    fn plan(overrides: &[&str]) -> Plan {
        let overrides: Vec<String> = overrides.iter().map(|&text| text.into()).collect();
        Plan::from_preset("digits_cnce", &overrides).expect("valid")
    }

    fn model(plan: &Plan) -> Model {
        let sum: Rc<dyn BatchSum> = Rc::new(Alone);
        Model::new(&plan.config().model, plan.data(), false, Device::Cpu, &sum)
    }

    fn architecture(plan: &Plan) -> Architecture {
        Architecture::of(&plan.config().model, plan.data())
    }

    /// A file of tensors in this kind of numbers, whose names are changed; a name that becomes
    /// empty is skipped.
    fn write(
        path: &Path,
        state: &StateDict,
        dtype: Dtype,
        rename: impl Fn(&str) -> String,
        record: Option<String>,
    ) {
        let kind = match dtype {
            Dtype::F16 => Kind::Half,
            Dtype::BF16 => Kind::BFloat16,
            _ => Kind::Float,
        };
        let bytes = |tensor: &Tensor| {
            let tensor = tensor.to_kind(kind).contiguous();
            let mut bytes = vec![0; tensor.numel() * kind.elt_size_in_bytes()];
            tensor.copy_data_u8(&mut bytes, tensor.numel());
            bytes
        };
        let shape = |tensor: &Tensor| {
            tensor.size().into_iter().map(|size| size as usize).collect::<Vec<_>>()
        };
        let kept = state
            .iter()
            .map(|(name, tensor)| (rename(name), tensor))
            .filter(|(name, _)| !name.is_empty());
        let mut stored: Vec<_> =
            kept.map(|(name, tensor)| (name, dtype, shape(tensor), bytes(tensor))).collect();
        stored.push(("ids".into(), Dtype::I32, vec![2], vec![0; 8]));
        stored.push(("bn1.num_batches_tracked".into(), Dtype::I64, vec![], vec![0; 8]));
        let views = stored.iter().map(|(name, dtype, shape, bytes)| {
            (name.clone(), TensorView::new(*dtype, shape.clone(), bytes).expect("its bytes"))
        });
        let metadata =
            record.map(|record| HashMap::from([(WEIGHTS_METADATA_KEY.to_owned(), record)]));
        fs::write(path, safetensors::serialize(views, metadata).expect("a file")).expect("written");
    }

    /// Weights of one model, written so, are in another one after loading, to this precision.
    fn check(overrides: &[&str], dtype: Dtype, rename: impl Fn(&str) -> String, precision: f64) {
        let (plan, folder) = (plan(overrides), tempfile::tempdir().expect("a folder"));
        tch::manual_seed(3);
        let (source, target) = (model(&plan), model(&plan));
        let path = folder.path().join("w.safetensors");
        write(&path, &source.state(), dtype, &rename, None);
        GivenWeights::read(&path)
            .and_then(|given| given.load_into(&target, &architecture(&plan)))
            .expect("it fits");
        let found = target.state();
        for (name, expected) in source.state() {
            let expected = if rename(&name).is_empty() { expected.zeros_like() } else { expected };
            let error = (&found[&name] - expected).abs().max().double_value(&[]);
            assert!(error <= precision, "{name}: {error}");
        }
    }

    /// Half precision rounds values below 4 by at most 2^-10, bfloat16 by at most 2^-7.
    #[test]
    fn files_of_other_programs_are_read() {
        let same = |name: &str| name.to_owned();
        check(&[], Dtype::F32, same, 0.0);
        check(&[], Dtype::F16, same, 2.0_f64.powi(-10));
        check(&[], Dtype::BF16, same, 2.0_f64.powi(-7));
        check(&[], Dtype::F32, |name| format!("module.{name}"), 0.0);
        check(&[], Dtype::F32, |name| format!("module._orig_mod.{name}"), 0.0);
        let headless =
            |name: &str| if name.starts_with("cls.") { String::new() } else { name.to_owned() };
        check(&[], Dtype::F32, headless, 0.0);
        // torchvision's ResNet: the same names, with its own classifier, which is skipped.
        let torchvision = |name: &str| {
            if name == BIAS { String::new() } else { name.replace("cls.weight", "fc.weight") }
        };
        let (plan, folder) = (plan(&[RESNET]), tempfile::tempdir().expect("a folder"));
        let (source, target) = (model(&plan), model(&plan));
        let path = folder.path().join("w.safetensors");
        write(&path, &source.state(), Dtype::F32, torchvision, None);
        GivenWeights::read(&path)
            .and_then(|given| given.load_into(&target, &architecture(&plan)))
            .expect("it fits");
        assert_eq!(
            target.state()["layer4.1.conv2.weight"],
            source.state()["layer4.1.conv2.weight"]
        );
        assert_eq!(target.state()["bn1.running_var"], source.state()["bn1.running_var"]);
    }

    /// As in torchvision/models/resnet.py: the stem, four layers of two blocks, and a shortcut
    /// wherever the width changes.
    #[test]
    fn a_resnet_has_the_names_of_torchvision() {
        let norm = |name: &str| {
            ["weight", "bias", "running_mean", "running_var"].map(|part| format!("{name}.{part}"))
        };
        let mut expected = vec!["conv1.weight".to_owned()];
        expected.extend(norm("bn1"));
        for (layer, block) in (1..=4).flat_map(|layer| [(layer, 0), (layer, 1)]) {
            let block_name = format!("layer{layer}.{block}");
            for part in [1, 2] {
                expected.push(format!("{block_name}.conv{part}.weight"));
                expected.extend(norm(&format!("{block_name}.bn{part}")));
            }
            if layer > 1 && block == 0 {
                expected.push(format!("{block_name}.downsample.0.weight"));
                expected.extend(norm(&format!("{block_name}.downsample.1")));
            }
        }
        expected.extend([WEIGHT, BIAS].map(String::from));
        expected.sort();
        assert_eq!(model(&plan(&[RESNET])).state().into_keys().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn what_does_not_fit_is_refused_with_what_to_do() {
        let (run, folder) = (plan(&[]), tempfile::tempdir().expect("a folder"));
        let path = folder.path().join("w.safetensors");
        let refusal = |part: &str| {
            let target = model(&run);
            let before = snapshot(&target.state());
            let error = GivenWeights::read(&path)
                .and_then(|given| given.load_into(&target, &architecture(&run)));
            let text = format!("{:#}", error.expect_err(part));
            assert!(text.contains(part), "no `{part}` in {text}");
            assert_eq!(target.state(), before, "{part}: nothing was copied");
        };
        let same = |name: &str| name.to_owned();
        let other = plan(&["model.encoder.vit.heads=2"]);
        let record = architecture(&other).record("cnce", other.data(), &[]);
        write(&path, &model(&other).state(), Dtype::F32, same, Some(record));
        refusal("model.encoder.vit.heads: found 2 in the file, expected 4 as in this run");
        write(&path, &model(&run).state(), Dtype::F32, |name| format!("backbone.{name}"), None);
        refusal("rename them to");
        let mut state = model(&run).state();
        state.insert(WEIGHT.into(), Tensor::zeros([7, 48], (Kind::Float, Device::Cpu)));
        write(&path, &state, Dtype::F32, same, None);
        refusal("remove cls.weight and cls.bias");
        fs::write(&path, b"PK\x03\x04 and a pickle").expect("written");
        refusal("safetensors.torch.save_file");
        fs::write(&path, b"text").expect("written");
        refusal("not a safetensors file");
    }
}
