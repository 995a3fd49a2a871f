//! `thanos-coord data`: fetch raw files, pack them, and look at packs.

use super::{PacksDir, config_of};
use crate::exit::{EXIT_USAGE, Fatal};
use crate::telemetry::progress::{Bar, report_packs};
use crate::terminal::{self, Unit};
use anyhow::Result;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Subcommand, ValueEnum};
use indicatif::HumanBytes;
use std::path::{Path, PathBuf};
use std::time::Duration;
use thanos_configs::{DataConfig, DataKind, OnBadImage, ViewsConfig, preset_names};
use thanos_data::fetch::{FetchError, Fetched, PUBLISHED, Watch, fetch, resources};
use thanos_data::{KeptPack, TestImages};

const SECONDS_OF_A_DAY: u64 = 86_400;

#[derive(Subcommand, Debug)]
pub(super) enum DataVerb {
    /// Download the published files of a data set, checked against their published checksums
    Fetch {
        #[arg(value_parser = published())]
        dataset: String,
        /// Folder to put them in; it is created if needed, and an interrupted download is resumed
        #[arg(long)]
        dir: PathBuf,
        /// URL of a mirror of the files, tried first; https, or http on this machine
        #[arg(long, value_name = "URL")]
        mirror: Vec<String>,
    },
    /// Read a data set's raw files, check them, and write its packs
    Pack {
        #[arg(value_parser = kinds())]
        kind: DataKind,
        /// Folder of the raw files, or the archive they came in; `digits` is built in and needs
        /// none
        #[arg(long)]
        dir: Option<PathBuf>,
        /// image_folder: pixels of a side, 8 to 1024 [default: 64]
        #[arg(long, value_parser = clap::value_parser!(u16).range(8..=1024))]
        side: Option<u16>,
        /// image_folder: YAML file of `CLASS: COARSE CLASS` lines [default: each class is its own]
        #[arg(long, value_name = "FILE")]
        coarse_map: Option<PathBuf>,
        /// What to do with an image that cannot be decoded
        #[arg(long, value_enum, default_value_t = BadImages::Fail)]
        on_bad_image: BadImages,
        /// image_folder: folder of the training images below DIR [default: `train` or another
        /// common name]
        #[arg(long, value_name = "FOLDER")]
        train_folder: Option<String>,
        /// image_folder: folder of the test images below DIR [default: `test`, `val` or another
        /// common name]
        #[arg(long, value_name = "FOLDER")]
        test_folder: Option<String>,
        /// Apply the EXIF orientation of images
        #[arg(long)]
        exif_orientation: bool,
        #[command(flatten)]
        packs: PacksDir,
    },
    /// Describe a pack: sizes, classes, counts, mean and std
    Info {
        pack: PathBuf,
        /// Also draw a sheet of augmented views, as the trainer sees them, to this PNG file
        #[arg(long, value_name = "FILE.png")]
        images: Option<PathBuf>,
        /// Preset or file whose augmentation is drawn [default: a preset of the pack's data set]
        #[arg(long, value_name = "PRESET|FILE", requires = "images")]
        views: Option<String>,
        /// Seed of the views that are drawn
        #[arg(long, default_value_t = 0)]
        seed: u64,
    },
    /// List the cached packs: data set, split, images, size and time of last use
    List {
        #[command(flatten)]
        packs: PacksDir,
    },
    /// Remove packs that were not used for some time and that no process of this machine has open
    Prune {
        /// Days without use
        #[arg(long, value_name = "DAYS", default_value_t = 30)]
        unused_for: u32,
        /// Only list what would be removed
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        packs: PacksDir,
    },
    /// Check a pack's header and tensors against its fingerprint
    Verify { pack: PathBuf },
}

/// The data sets by their names.
fn kinds() -> impl TypedValueParser<Value = DataKind> {
    PossibleValuesParser::new(DataKind::ALL.map(|kind| named(kind.names()))).map(|typed| {
        let is_typed = |kind: &DataKind| kind.names().contains(&typed.as_str());
        DataKind::ALL.into_iter().find(is_typed).expect("the parser accepts only names")
    })
}

/// Names of the data sets that can be downloaded.
fn published() -> PossibleValuesParser {
    PossibleValuesParser::new(PUBLISHED.iter().map(|published| named(published.names)))
}

/// A name, and other spellings of it.
fn named(names: &[&'static str]) -> PossibleValue {
    PossibleValue::new(names[0]).aliases(names[1..].iter().copied())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum BadImages {
    /// Report it and exit
    Fail,
    /// Skip it, and report how many were skipped
    Skip,
}

pub(super) fn act_data(verb: DataVerb) -> Result<()> {
    match verb {
        DataVerb::Fetch { dataset, dir, mirror } => act_fetch(&dataset, &dir, &mirror)?,
        pack @ DataVerb::Pack { .. } => act_pack(pack)?,
        DataVerb::Info { pack, images, views, seed } => {
            let info = thanos_data::info(&pack).map_err(Fatal::from)?;
            terminal::print_line(&info.to_string())?;
            if let Some(sheet) = images {
                let views = views_of(&info.name, views)?;
                thanos_data::contact_sheet(&pack, &views, seed, &sheet).map_err(Fatal::from)?;
                terminal::print_line(&format!("contact sheet: {}", sheet.display()))?;
            }
        }
        DataVerb::List { packs } => {
            for pack in thanos_data::kept_packs(&packs.path()?).map_err(Fatal::from)? {
                terminal::print_line(&describe(&pack))?;
            }
        }
        DataVerb::Prune { unused_for, dry_run, packs } => {
            let age = Duration::from_secs(u64::from(unused_for) * SECONDS_OF_A_DAY);
            let removed = thanos_data::prune(&packs.path()?, age, dry_run).map_err(Fatal::from)?;
            for pack in &removed {
                terminal::print_line(&describe(pack))?;
            }
            let bytes = HumanBytes(removed.iter().map(|pack| pack.bytes).sum());
            let how = if dry_run { "would be removed" } else { "removed" };
            terminal::print_line(&format!("{how}: {} packs, {bytes}", removed.len()))?;
        }
        DataVerb::Verify { pack } => {
            thanos_data::verify(&pack).map_err(Fatal::from)?;
            terminal::print_line(&format!(
                "{}: header and tensors match the fingerprint",
                pack.display()
            ))?;
        }
    }
    Ok(())
}

/// A line on a pack that is kept.
fn describe(pack: &KeptPack) -> String {
    let what = match &pack.what {
        Some((name, split, images)) => format!("{name} {split}, {images} images"),
        None => "incomplete pack".into(),
    };
    let days = pack.age().as_secs() / SECONDS_OF_A_DAY;
    let open = if pack.open { ", open now" } else { "" };
    format!(
        "{}: {what}, {}, last used {days} days ago{open}",
        pack.path.display(),
        HumanBytes(pack.bytes)
    )
}

/// The configuration that the options of `data pack` are.
fn data_config(verb: DataVerb) -> Result<(DataConfig, PacksDir)> {
    let DataVerb::Pack {
        kind,
        dir,
        side,
        coarse_map,
        on_bad_image,
        train_folder,
        test_folder,
        exif_orientation,
        packs,
    } = verb
    else {
        unreachable!("it is called for `data pack`")
    };
    let is_for_folders =
        side.is_some() || coarse_map.is_some() || train_folder.is_some() || test_folder.is_some();
    if kind != DataKind::ImageFolder && is_for_folders {
        let message = "--side, --coarse-map, --train-folder and --test-folder are for \
            image_folder: other data sets have their own";
        return Err(Fatal::new(EXIT_USAGE, message).into());
    }
    let on_bad_image = match on_bad_image {
        BadImages::Fail => OnBadImage::Fail,
        BadImages::Skip => OnBadImage::Skip,
    };
    let side = side.map(usize::from);
    let config = DataConfig { kind, dir, side, coarse_map, on_bad_image, ..DataConfig::default() };
    Ok((DataConfig { train_folder, test_folder, exif_orientation, ..config }, packs))
}

fn act_pack(verb: DataVerb) -> Result<()> {
    let (config, packs_dir) = data_config(verb)?;
    let bar = Bar::new(Unit::Images);
    let at = |split: &str, done, total| bar.at(split, done, total);
    let packs = thanos_data::pack(&config, &packs_dir.path()?, TestImages::Optional, &at)
        .map_err(Fatal::from)?;
    bar.finish();
    let how = if packs.reused { "already packed" } else { "packed" };
    report_packs(config.kind, &packs);
    for pack in [&packs.train, &packs.test] {
        let (images, split, path) = (pack.images, &pack.split, pack.path.display());
        terminal::print_line(&format!("{how}: {images} {split} images, {path}"))?;
    }
    Ok(())
}

fn act_fetch(dataset: &str, dir: &Path, mirrors: &[String]) -> Result<()> {
    struct Watcher(Bar);
    impl Watch for Watcher {
        fn at(&mut self, file: &str, done: u64, total: u64) {
            self.0.at(file, done, total);
        }
        fn say(&mut self, line: &str) {
            terminal::line(line);
        }
    }
    let resources = resources(dataset).unwrap_or_default();
    let mut watcher = Watcher(Bar::new(Unit::Bytes));
    let fetched = fetch(resources, mirrors, dir, &mut watcher);
    watcher.0.finish();
    let refused = |error: FetchError| Fatal::new(error.exit_code(), error.to_string());
    for file in fetched.map_err(refused)? {
        match file {
            Fetched::New { path, url } => {
                terminal::print_line(&format!("fetched: {} from {url}", path.display()))?
            }
            Fetched::Already { path } => {
                terminal::print_line(&format!("already present: {}", path.display()))?
            }
        }
    }
    Ok(())
}

/// The augmentation of a preset or file, or of the presets of a pack's data set.
fn views_of(pack: &str, target: Option<String>) -> Result<ViewsConfig> {
    let preset = format!("{pack}_supcon");
    match target {
        Some(target) => Ok(config_of(&target, &[])?.views),
        None if preset_names().contains(&preset) => Ok(config_of(&preset, &[])?.views),
        None => Ok(ViewsConfig::default()),
    }
}
