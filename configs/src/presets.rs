//! The experiments of the paper: a data set's recipe and a method's stages, laid over each other.
//! It must not know how they are run.

use crate::dataset::DataKind;
use crate::error::nearest;
use crate::overlays::merge;
use crate::yaml;
use serde_json::Value;

/// Half of a preset, a data set's or a method's.
#[derive(Clone, Copy)]
struct Part {
    name: &'static str,
    about: &'static str,
    text: &'static str,
}

/// Of each data set.
fn datasets() -> [Part; DataKind::ALL.len()] {
    DataKind::ALL.map(|kind| Part { name: kind.name(), about: kind.about(), text: kind.recipe() })
}

const METHODS: [Part; 5] = [
    Part {
        name: "supcon",
        about: "supervised contrastive, and its transfer",
        text: include_str!("../presets/methods/supcon.yaml"),
    },
    Part {
        name: "cnce",
        about: "SupCon + class-conditional InfoNCE, and its transfer",
        text: include_str!("../presets/methods/cnce.yaml"),
    },
    Part {
        name: "cae",
        about: "class-conditional autoencoder, and its transfer",
        text: include_str!("../presets/methods/cae.yaml"),
    },
    Part {
        name: "thanos",
        about: "cNCE and cAE, and the transfer of both together",
        text: include_str!("../presets/methods/thanos.yaml"),
    },
    Part {
        name: "table",
        about: "the paper's table: three backbones, five transfers",
        text: include_str!("../presets/methods/table.yaml"),
    },
];

/// The names of all presets, `DATASET_METHOD`, data set by data set.
pub fn preset_names() -> Vec<String> {
    let names = |dataset: Part| METHODS.map(|method| format!("{}_{}", dataset.name, method.name));
    datasets().into_iter().flat_map(names).collect()
}

/// What a preset is, in one line; `None` when there is no such preset.
pub fn preset_summary(name: &str) -> Option<String> {
    let (dataset, method) = parts(name)?;
    Some(format!("{}: {}", dataset.about, method.about))
}

/// A preset's keys: the data set's with the method's laid over them.
pub(crate) fn preset_value(name: &str) -> Option<Value> {
    let (dataset, method) = parts(name)?;
    let read = |part: Part| {
        yaml::parse(part.text).expect("embedded presets parse: a test reads them all").value
    };
    let mut value = serde_json::json!({ "name": name });
    merge(&mut value, read(dataset));
    merge(&mut value, read(method));
    Some(value)
}

/// The message for an unknown preset.
pub(crate) fn unknown_preset(name: &str) -> String {
    let names = preset_names();
    let meant = nearest(name, names.iter().map(String::as_str));
    let meant = meant.map_or_else(String::new, |meant| format!("; did you mean `{meant}`?"));
    format!("unknown preset `{name}`{meant} (`thanos-coord presets` lists all {})", names.len())
}

fn parts(name: &str) -> Option<(Part, Part)> {
    datasets().into_iter().find_map(|dataset| {
        let method = name.strip_prefix(dataset.name)?.strip_prefix('_')?;
        Some((dataset, METHODS.into_iter().find(|part| part.name == method)?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::{load_file, load_preset, to_yaml};
    use crate::plan::Plan;
    use std::path::Path;

    /// `UPDATE_SNAPSHOTS=1 cargo test -p thanos-configs` writes them again.
    #[test]
    fn every_preset_resolves_to_its_snapshot() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("presets/snapshots");
        let update = std::env::var_os("UPDATE_SNAPSHOTS").is_some();
        for name in preset_names() {
            let config = load_preset(&name, &[]).expect(&name);
            let resolved = to_yaml(&config);
            assert_eq!(
                load_file(&resolved, &name, &[]).as_ref(),
                Ok(&config),
                "{name} does not load again"
            );
            let file = folder.join(format!("{name}.yaml"));
            if update {
                std::fs::create_dir_all(&folder).expect("the folder of snapshots");
                std::fs::write(&file, &resolved).expect("a snapshot");
            }
            let snapshot = std::fs::read_to_string(&file).unwrap_or_default();
            assert_eq!(resolved, snapshot, "{name}: if this is meant, run with UPDATE_SNAPSHOTS=1");
        }
    }

    #[test]
    fn every_preset_has_its_name_a_plan_and_a_summary() {
        let names = preset_names();
        assert_eq!(names.len(), 40);
        for name in names {
            let plan = Plan::from_preset(&name, &[]).expect(&name);
            assert_eq!(plan.config().name, name);
            assert!(name.starts_with(&plan.data().name), "{name} is on {}", plan.data().name);
            let stages: Vec<&str> = plan.stages().iter().map(|stage| stage.name()).collect();
            let expected: &[&str] = match name.rsplit('_').next() {
                Some("supcon") => &["supcon", "transfer_supcon"],
                Some("cnce") => &["cnce", "transfer_cnce"],
                Some("cae") => &["cae", "transfer_cae"],
                Some("thanos") => &["cnce", "cae", "transfer_thanos"],
                _ => &[
                    "supcon",
                    "cnce",
                    "cae",
                    "transfer_supcon",
                    "transfer_cnce",
                    "transfer_cae",
                    "transfer_supcon_cae",
                    "transfer_thanos",
                ],
            };
            assert_eq!(stages, expected, "{name}");
            assert!(preset_summary(&name).is_some_and(|summary| !summary.contains('\n')), "{name}");
        }
    }

    #[test]
    fn an_unknown_name_suggests_the_nearest() {
        let check = |name: &str, part: &str| {
            assert!(unknown_preset(name).contains(part), "{}", unknown_preset(name))
        };
        check("digit_table", "did you mean `digits_table`?");
        check("fashion_mnist_suppcon", "did you mean `fashion_mnist_supcon`?");
        check("", "lists all 40");
        assert_eq!(preset_summary("digits"), None);
        assert_eq!(preset_summary("digits_"), None);
    }
}
