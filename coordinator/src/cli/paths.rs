//! The paths of a configuration: made absolute for workers that run elsewhere, with `~/` for the
//! home directory.

use crate::exit::{EXIT_CONFIG, Fatal};
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use thanos_configs::RunConfig;

/// Every path that a configuration has, with its key.
pub(super) fn paths_of(config: &mut RunConfig) -> Vec<(String, &mut PathBuf)> {
    let weights = config.backbones.iter_mut().enumerate().filter_map(|(index, backbone)| {
        Some((format!("backbones.{index}.checkpoint"), backbone.checkpoint.as_mut()?))
    });
    let data = [
        ("data.dir", config.data.dir.as_mut()),
        ("data.coarse_map", config.data.coarse_map.as_mut()),
    ];
    let data = data.into_iter().filter_map(|(key, path)| Some((key.to_owned(), path?)));
    data.chain(weights).collect()
}

/// Makes every path absolute; `home` is that of the user.
///
/// # Errors
/// 78 if a path starts with `~/` and there is no home directory.
pub(super) fn make_absolute(config: &mut RunConfig, home: Option<&Path>) -> Result<()> {
    for (key, path) in paths_of(config) {
        if let Ok(rest) = path.strip_prefix("~") {
            let message =
                || format!("{key}: {}: HOME is not set: write the path out", path.display());
            *path = home.ok_or_else(|| Fatal::new(EXIT_CONFIG, message()))?.join(rest);
        }
        *path =
            std::path::absolute(&*path).with_context(|| format!("{key}: {}", path.display()))?;
    }
    Ok(())
}

/// The paths that are relative, as `KEY=PATH`: what they are depends on where a command is run.
pub(super) fn relative(config: &RunConfig) -> Vec<String> {
    let mut config = config.clone();
    let paths = paths_of(&mut config).into_iter().filter(|(_, path)| path.is_relative());
    paths.map(|(key, path)| format!("{key}={}", path.display())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use thanos_configs::load_preset;

    fn config(overrides: &[&str]) -> RunConfig {
        let overrides: Vec<String> = overrides.iter().map(|&text| text.to_owned()).collect();
        load_preset("image_folder_cnce", &overrides).expect("valid")
    }

    #[test]
    fn paths_become_absolute() {
        let check = |typed: &str, expected: &Path| {
            for key in ["data.dir", "data.coarse_map", "backbones.cnce.checkpoint"] {
                let mut config = config(&[&format!("{key}={typed}")]);
                make_absolute(&mut config, Some(Path::new("/home/me"))).expect("there is a home");
                let paths = paths_of(&mut config);
                assert_eq!(
                    paths.iter().map(|(_, path)| &**path).collect::<Vec<_>>(),
                    [expected],
                    "{key}={typed}"
                );
            }
        };
        let here = std::env::current_dir().expect("a working directory");
        check("/data/set #1", Path::new("/data/set #1"));
        check("~/x", Path::new("/home/me/x"));
        check("~", Path::new("/home/me"));
        check("~x", &here.join("~x"));
        check("a/~", &here.join("a/~"));
        check("x", &here.join("x"));
    }

    #[test]
    fn without_a_home_the_key_is_named() {
        let error =
            make_absolute(&mut config(&["data.dir=~/x"]), None).expect_err("refused").to_string();
        assert_eq!(error, "data.dir: ~/x: HOME is not set: write the path out");
    }

    #[test]
    fn relative_paths_are_named() {
        let config = config(&["data.dir=x", "backbones.0.checkpoint=/w", "data.coarse_map=~/m"]);
        assert_eq!(relative(&config), ["data.dir=x", "data.coarse_map=~/m"]);
    }
}
