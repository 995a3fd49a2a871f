//! Weights that a user gives by `backbones.N.checkpoint`, as far as they can be checked without
//! libtorch: that the file is there, is a whole safetensors file of this architecture, as far as it
//! records one, and which content it has. Whether the tensors fit the model is checked by the
//! workers.

use crate::exit::{EXIT_DATA, Fatal};
use safetensors::tensor::Metadata;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use thanos_configs::{Architecture, Plan, WEIGHTS_METADATA_KEY, pytorch_file_advice, sha256_of};

/// The file of a checkpoint folder that is taken.
const BEST: &str = "best.safetensors";
/// Bytes of the header's length, which comes first.
const LENGTH_BYTES: u64 = 8;
/// Bytes that a header may have, as of the format's own reader.
const MAX_HEADER: u64 = 100_000_000;

/// SHA-256 of the weights of each backbone that is given by a file, by its name.
///
/// # Errors
/// 65, naming the backbone and the file, if it cannot be read, is not a safetensors file, or
/// records another architecture.
pub(crate) fn read_given_weights(plan: &Plan) -> Result<BTreeMap<String, String>, Fatal> {
    let architecture = Architecture::of(&plan.config().model, plan.data());
    let read = |(name, path): (&str, PathBuf)| {
        let Weights { sha256, record } =
            read(&path).map_err(|fault| cannot(name, &path, &fault))?;
        match record {
            Some(record) => architecture
                .check(&record)
                .map_err(|difference| cannot(name, &path, &difference))?,
            None => tracing::warn!(
                "backbone {name}: {} records no architecture: only the names and shapes of its \
                 tensors are checked, which do not show the number of attention heads",
                path.display()
            ),
        }
        Ok((name.to_owned(), sha256))
    };
    given(plan).map(read).collect()
}

/// Compares weights with those that a run was started with.
///
/// # Errors
/// 65, naming the backbone and the file with both hashes, if they are not the same.
pub(crate) fn refuse_changed(
    plan: &Plan,
    expected: &BTreeMap<String, String>,
    found: &BTreeMap<String, String>,
) -> Result<(), Fatal> {
    for (name, path) in given(plan) {
        let (expected, found) = (expected.get(name), found.get(name));
        if let (Some(expected), Some(found)) = (expected, found)
            && expected != found
        {
            let message = format!(
                "the weights of backbone {name} have changed: the SHA-256 of {} is {found}, the \
                 run was started with {expected}; restore the original file, name it with \
                 backbones.N.checkpoint=FILE, or start a new run in another --run-dir",
                path.display()
            );
            return Err(Fatal::new(EXIT_DATA, message));
        }
    }
    Ok(())
}

/// Name and file of each backbone that is given by one.
fn given(plan: &Plan) -> impl Iterator<Item = (&str, PathBuf)> {
    let file = |path: &Path| if path.is_dir() { path.join(BEST) } else { path.to_owned() };
    let backbones = plan.config().backbones.iter();
    backbones.filter_map(move |backbone| {
        Some((backbone.name.as_str(), file(backbone.checkpoint.as_deref()?)))
    })
}

fn cannot(name: &str, path: &Path, fault: &str) -> Fatal {
    Fatal::new(EXIT_DATA, format!("backbone {name}: weights {}: {fault}", path.display()))
}

/// What is known of a file of weights without libtorch.
struct Weights {
    sha256: String,
    /// What it records about its network, as JSON.
    record: Option<String>,
}

/// Reads a file of weights. Errors: what is wrong with it.
fn read(path: &Path) -> Result<Weights, String> {
    let cannot_read = |error: io::Error| format!("cannot be read: {error}");
    let file = File::open(path).map_err(cannot_read)?;
    let bytes = file.metadata().map_err(cannot_read)?.len();
    let header = check_header(file, bytes).map_err(|fault| {
        let mut start = Vec::new();
        _ = File::open(path).and_then(|file| file.take(LENGTH_BYTES).read_to_end(&mut start));
        let advice = pytorch_file_advice(&start, &path.to_string_lossy());
        advice.unwrap_or_else(|| format!("not a safetensors file: {fault}"))
    })?;
    let record =
        header.metadata().as_ref().and_then(|entries| entries.get(WEIGHTS_METADATA_KEY)).cloned();
    let (_, sha256) = File::open(path).and_then(sha256_of).map_err(cannot_read)?;
    Ok(Weights { sha256, record })
}

fn check_header(mut file: File, bytes: u64) -> Result<Metadata, String> {
    let mut length = [0; LENGTH_BYTES as usize];
    file.read_exact(&mut length).map_err(|error| error.to_string())?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER || LENGTH_BYTES + length > bytes {
        return Err(format!("it has {bytes} bytes, and its header claims {length}"));
    }
    let mut header = Vec::new();
    file.take(length).read_to_end(&mut header).map_err(|error| error.to_string())?;
    let header: Metadata = serde_json::from_slice(&header).map_err(|error| error.to_string())?;
    let expected = (LENGTH_BYTES + length).saturating_add(header.data_len() as u64);
    if bytes == expected {
        Ok(header)
    } else {
        Err(format!("it has {bytes} bytes, its header requires {expected}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::tensor::{Dtype, TensorView};
    use std::fs;

    fn plan(weights: &Path) -> Plan {
        let overrides = [format!("backbones.0.checkpoint={}", weights.display())];
        Plan::from_preset("digits_cnce", &overrides).expect("valid")
    }

    fn weights(value: u8) -> Vec<u8> {
        let data = [value; 4];
        let view = TensorView::new(Dtype::U8, vec![4], &data).expect("four bytes");
        safetensors::serialize([("head", view)], None).expect("written")
    }

    #[test]
    fn a_file_that_is_not_whole_weights_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("w.safetensors");
        let check = |bytes: &[u8], part: &str| {
            fs::write(&path, bytes).expect("written");
            let fatal = read_given_weights(&plan(&path)).expect_err(part);
            let named = format!("backbone cnce: weights {}: ", path.display());
            assert!(fatal.exit_code == EXIT_DATA && fatal.message.starts_with(&named), "{fatal}");
            assert!(fatal.message.contains(part), "no `{part}` in {fatal}");
        };
        let good = weights(1);
        check(&good[..good.len() - 1], "bytes, its header requires");
        check(&[&good[..], b"more"].concat(), "bytes, its header requires");
        check(&[0, 0, 0, 0, 0, 0, 0, 0x80, b'{', b'}'], "its header claims 9223372036854775808");
        check(b"text", "not a safetensors file");
        check(b"PK\x03\x04 and a pickle", "convert it with these two lines of Python");
        fs::remove_file(&path).expect("there");
        let fatal = read_given_weights(&plan(&path)).expect_err("none is there");
        assert!(fatal.message.contains("No such file"), "{fatal}");
    }

    #[test]
    fn weights_of_another_architecture_are_refused_before_a_worker_starts() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("w.safetensors");
        let run = plan(&path);
        let other =
            Plan::from_preset("digits_cnce", &["model.encoder.vit.heads=2".into()]).expect("valid");
        let write = |plan: &Plan| {
            let record = Architecture::of(&plan.config().model, plan.data()).record(
                "cnce",
                plan.data(),
                &[],
            );
            let metadata =
                std::collections::HashMap::from([(WEIGHTS_METADATA_KEY.to_owned(), record)]);
            let view = TensorView::new(Dtype::U8, vec![4], &[0; 4]).expect("four bytes");
            fs::write(
                &path,
                safetensors::serialize([("head", view)], Some(metadata)).expect("a file"),
            )
            .expect("written");
        };
        write(&run);
        read_given_weights(&run).expect("the same architecture");
        write(&other);
        let fatal = read_given_weights(&run).expect_err("another number of heads");
        assert_eq!(fatal.exit_code, EXIT_DATA);
        assert!(
            fatal.message.contains("model.encoder.vit.heads: found 2 in the file, expected 4"),
            "{fatal}"
        );
    }

    #[test]
    fn weights_are_known_by_their_content_and_not_by_their_place() {
        let folder = tempfile::tempdir().expect("a folder");
        let [old, new, other] = ["old", "new", "other"].map(|name| folder.path().join(name));
        for (path, value) in [(&old, 1), (&new, 1), (&other, 2)] {
            fs::write(path, weights(value)).expect("written");
        }
        let expected = read_given_weights(&plan(&old)).expect("good");
        let check = |path: &Path| {
            refuse_changed(&plan(path), &expected, &read_given_weights(&plan(path)).expect("good"))
        };
        check(&new).expect("the same content");
        let fatal = check(&other).expect_err("another content");
        let both = [&expected["cnce"], &read_given_weights(&plan(&other)).expect("good")["cnce"]];
        assert_eq!(fatal.exit_code, EXIT_DATA);
        for part in ["backbone cnce", other.to_str().expect("UTF-8"), both[0], both[1]] {
            assert!(fatal.message.contains(part), "no `{part}` in {fatal}");
        }
    }
}
