//! The volume of the raw data in the coordinator's pod, which alone reads it: workers read packs.
//! It is mounted read-only at `data.dir`; no other path of a configuration may be outside of the
//! volumes that pods have.

use crate::exit::{EXIT_CONFIG, EXIT_USAGE, Fatal};
use serde_yaml::{Mapping, Value};
use std::path::{Path, PathBuf};
use thanos_configs::{DataKind, Plan};

/// Where the base mounts volumes of its own.
const TAKEN: [&str; 6] = ["/", "/credentials", "/config", "/runs", "/packs", "/tmp"];
/// The volume that all pods share.
const RUNS: &str = "/runs";

/// Where the raw data is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum DataVolume {
    /// A PersistentVolumeClaim in the namespace of the run.
    Claim(String),
    /// A directory of every node.
    HostPath(PathBuf),
}

impl std::str::FromStr for DataVolume {
    type Err = String;

    /// An absolute path is a directory of the nodes, everything else the name of a claim.
    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with('/') {
            return Ok(Self::HostPath(text.into()));
        }
        let inside = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
        let ends = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        let is_name = text.len() <= 253
            && text.starts_with(ends)
            && text.ends_with(ends)
            && text.chars().all(inside);
        match is_name {
            true => Ok(Self::Claim(text.into())),
            false => Err(
                "expected the name of a PersistentVolumeClaim, or an absolute path of the nodes"
                    .into(),
            ),
        }
    }
}

/// The volume and the place in a pod where it is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DataMount {
    volume: DataVolume,
    dir: PathBuf,
}

impl DataMount {
    /// What a plan needs in the coordinator's pod; `None`: its data is embedded.
    ///
    /// # Errors
    /// 64 or 78, if the volume or the directory is missing, or a path is in no volume.
    pub(crate) fn of(plan: &Plan, volume: Option<&DataVolume>) -> Result<Option<Self>, Fatal> {
        let data = &plan.config().data;
        let mount = match (&data.dir, volume) {
            (None, None) if data.kind == DataKind::Digits => None,
            (None, _) => {
                let message = "data.dir: set it to the absolute path at which --data is mounted, \
                    such as data.dir=/data";
                return Err(Fatal::new(EXIT_CONFIG, message));
            }
            (Some(dir), None) => {
                let message = format!(
                    "data.dir={} is in no volume of the pods: name the volume with --data, a \
                     PersistentVolumeClaim or a path of the nodes",
                    dir.display()
                );
                return Err(Fatal::new(EXIT_USAGE, message));
            }
            (Some(dir), Some(volume)) => Some(Self { volume: volume.clone(), dir: dir.clone() }),
        };
        if let Some(Self { dir, .. }) =
            mount.as_ref().filter(|mount| TAKEN.iter().any(|taken| mount.dir == Path::new(taken)))
        {
            let message = format!(
                "data.dir={}: the pods have another volume there: use /data",
                dir.display()
            );
            return Err(Fatal::new(EXIT_CONFIG, message));
        }
        let dir = mount.as_ref().map(|mount| mount.dir.as_path());
        let outside = |path: &Path, of: Option<&Path>| !of.is_some_and(|dir| path.starts_with(dir));
        if let Some(map) = data.coarse_map.as_deref().filter(|map| outside(map, dir)) {
            let message = format!(
                "data.coarse_map={} is in no volume of the pods: put it below data.dir",
                map.display()
            );
            return Err(Fatal::new(EXIT_CONFIG, message));
        }
        for backbone in &plan.config().backbones {
            let weights =
                backbone.checkpoint.as_deref().filter(|path| outside(path, Some(Path::new(RUNS))));
            if let Some(path) = weights {
                let (name, path) = (&backbone.name, path.display());
                let message = format!(
                    "backbones.{name}.checkpoint={path} is in no volume of the workers: put it \
                    below {RUNS}"
                );
                return Err(Fatal::new(EXIT_CONFIG, message));
            }
        }
        Ok(mount)
    }

    /// Adds the volume to a pod and to its first container; `None`: the pod has no such lists.
    pub(crate) fn put_into(&self, pod: &mut Value) -> Option<()> {
        let map = |entries: Vec<(&str, Value)>| -> Value {
            Value::Mapping(Mapping::from_iter(
                entries.into_iter().map(|(key, value)| (key.into(), value)),
            ))
        };
        let path = |path: &Path| Value::from(path.display().to_string());
        let mount = vec![
            ("name", "data".into()),
            ("mountPath", path(&self.dir)),
            ("readOnly", true.into()),
        ];
        let container = pod["containers"].as_sequence_mut()?.first_mut()?;
        container["volumeMounts"].as_sequence_mut()?.push(map(mount));
        let source = match &self.volume {
            DataVolume::Claim(name) => {
                let claim =
                    map(vec![("claimName", name.as_str().into()), ("readOnly", true.into())]);
                ("persistentVolumeClaim", claim)
            }
            DataVolume::HostPath(host) => {
                ("hostPath", map(vec![("path", path(host)), ("type", "Directory".into())]))
            }
        };
        pod["volumes"].as_sequence_mut()?.push(map(vec![("name", "data".into()), source]));
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(overrides: &[&str], volume: Option<&str>) -> Result<Option<DataMount>, String> {
        let overrides: Vec<String> = overrides.iter().map(|&text| text.to_owned()).collect();
        let plan = Plan::from_preset("image_folder_cnce", &overrides).expect("valid");
        let volume = volume.map(|text| text.parse().expect("a volume"));
        DataMount::of(&plan, volume.as_ref()).map_err(|fatal| fatal.message)
    }

    #[test]
    fn a_volume_is_a_claim_or_a_path() {
        assert_eq!("imagenet-2".parse(), Ok(DataVolume::Claim("imagenet-2".into())));
        assert_eq!("/mnt/data".parse(), Ok(DataVolume::HostPath("/mnt/data".into())));
        for text in ["", "data/x", "Data", "-x", "./x", "a_b"] {
            assert!(text.parse::<DataVolume>().is_err(), "{text}");
        }
    }

    #[test]
    fn every_path_is_in_a_volume() {
        let refused = |overrides: &[&str], volume, part: &str| {
            let message = mount(overrides, volume).expect_err("refused");
            assert!(message.contains(part), "{overrides:?}: no `{part}` in {message}");
        };
        refused(&[], Some("claim"), "data.dir: set it to the absolute path");
        refused(&[], None, "data.dir: set it");
        refused(
            &["data.dir=/data"],
            None,
            "data.dir=/data is in no volume of the pods: name the volume with --data",
        );
        refused(&["data.dir=/runs"], Some("claim"), "another volume there");
        refused(
            &["data.dir=/data", "data.coarse_map=/map.yaml"],
            Some("claim"),
            "put it below data.dir",
        );
        let weights = ["data.dir=/data", "backbones.0.checkpoint=/data/w"];
        refused(
            &weights,
            Some("claim"),
            "backbones.cnce.checkpoint=/data/w is in no volume of the workers",
        );
        let good =
            ["data.dir=/data", "data.coarse_map=/data/map.yaml", "backbones.0.checkpoint=/runs/w"];
        let expected = DataMount { volume: DataVolume::Claim("claim".into()), dir: "/data".into() };
        assert_eq!(mount(&good, Some("claim")), Ok(Some(expected)));
        let digits = Plan::from_preset("digits_cae", &[]).expect("valid");
        assert_eq!(DataMount::of(&digits, None).map_err(|fatal| fatal.message), Ok(None));
    }

    #[test]
    fn it_is_mounted_read_only() {
        let check = |volume: DataVolume, expected: &str| {
            let mut pod: Value =
                serde_yaml::from_str("{containers: [{volumeMounts: []}], volumes: []}")
                    .expect("YAML");
            DataMount { volume, dir: "/data".into() }.put_into(&mut pod).expect("lists");
            let expected: Value = serde_yaml::from_str(expected).expect("YAML");
            assert_eq!(pod["volumes"], expected);
            let mounts: Value =
                serde_yaml::from_str("[{name: data, mountPath: /data, readOnly: true}]")
                    .expect("YAML");
            assert_eq!(pod["containers"][0]["volumeMounts"], mounts);
        };
        check(
            DataVolume::Claim("c".into()),
            "[{name: data, persistentVolumeClaim: {claimName: c, readOnly: true}}]",
        );
        check(
            DataVolume::HostPath("/mnt".into()),
            "[{name: data, hostPath: {path: /mnt, type: Directory}}]",
        );
    }
}
