//! The report of a run: its page as one file, and figures of what it has trained, as SVG files next
//! to the page and within it. A figure whose data is not there is not drawn: a run that was
//! stopped, or that an earlier version has made, has a report all the same. It changes nothing of
//! the run.

mod accuracy;
mod collapse;
mod confusion;
mod curves;
mod figure;
mod map;
mod views;

use crate::run_dir::plan_of_run;
use crate::run_dir::test_images::{EmbeddingMap, Predictions};
use crate::telemetry::page::{snapshot, with_figures};
use crate::terminal;
use anyhow::Context;
use figure::Figure;
use serde_json::Value;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use thanos_configs::StagePlan;

/// Files of a report beside its figures. The counts are a line for each row of the table and pair
/// of true and predicted class that has images.
const PAGE: &str = "index.html";
const COUNTS: &str = "confusion.csv";
/// Images with their views; it stays when the packs of a run are no longer there.
const VIEWS: &str = "views.png";
/// SVG files, of which those that are not drawn are removed.
const FIGURES: [&str; 5] = ["curves", "collapse", "confusion", "accuracy_per_class", "embeddings"];

/// The page that every run leaves in its directory.
pub(crate) fn report_file(run_dir: &Path) -> PathBuf {
    folder(run_dir).join(PAGE)
}

fn folder(run_dir: &Path) -> PathBuf {
    run_dir.join("report")
}

/// Writes the report of a run into its directory, or its page alone to `file`. `packs_dir` is where
/// its images may be. Returns the page's path.
///
/// # Errors
/// If the directory cannot be read, or a file cannot be written: with its path.
pub(crate) fn write_report(
    run_dir: &Path,
    file: Option<&Path>,
    packs_dir: Option<&Path>,
) -> Result<PathBuf, anyhow::Error> {
    let place = |path: &Path| format!("{}", path.display());
    let update = snapshot(run_dir).with_context(|| place(run_dir))?;
    let (rows, sheet) = (rows(run_dir), sheet(run_dir, packs_dir));
    let drawn = draw(&serde_json::from_str(&update)?, &rows, sheet.as_deref());
    let parts: Vec<String> = drawn.iter().map(Figure::within_page).collect();
    let page = file.map_or_else(|| report_file(run_dir), Path::to_owned);
    let write = |path: &Path, bytes: &[u8]| fs::write(path, bytes).with_context(|| place(path));
    page.parent().map_or(Ok(()), fs::create_dir_all).with_context(|| place(&page))?;
    if file.is_none() {
        let folder = folder(run_dir);
        for name in FIGURES {
            let path = folder.join(name).with_extension("svg");
            match drawn.iter().find(|figure| figure.name == name) {
                Some(figure) => write(&path, figure.as_file().as_bytes())?,
                None => remove(&path).with_context(|| place(&path))?,
            }
        }
        let counts = folder.join(COUNTS);
        match confusion::table(&rows) {
            Some(table) => write(&counts, table.as_bytes())?,
            None => remove(&counts).with_context(|| place(&counts))?,
        }
        if let Some(sheet) = &sheet {
            write(&folder.join(VIEWS), sheet)?;
        }
    }
    write(&page, with_figures(&update, &parts).as_bytes())?;
    Ok(page)
}

/// The figures of the rows that are complete, and of the images, as HTML: what the live page does
/// not draw itself.
pub(crate) fn figures_of_rows(run_dir: &Path, packs_dir: Option<&Path>) -> String {
    let (rows, sheet) = (rows(run_dir), sheet(run_dir, packs_dir));
    draw_rows(&rows, sheet.as_deref()).iter().map(Figure::within_page).collect()
}

/// A complete row of the table: what its probe left of the test images.
struct TestedRow {
    method: String,
    predictions: Predictions,
    map: Option<EmbeddingMap>,
}

impl TestedRow {
    /// Its name and its accuracy.
    fn title(&self) -> String {
        let classes = self.predictions.of_classes();
        let (images, right) =
            classes.iter().fold((0, 0), |sum, class| (sum.0 + class.0, sum.1 + class.1));
        format!("{}: {:.1} %", self.method, 100.0 * right as f64 / images.max(1) as f64)
    }
}

/// Those of a run in the order of its table. A file that is damaged is reported and skipped.
fn rows(run_dir: &Path) -> Vec<TestedRow> {
    let Ok(plan) = plan_of_run(run_dir, &[]) else { return Vec::new() };
    let read = |stage: &str| -> anyhow::Result<Option<(Predictions, Option<EmbeddingMap>)>> {
        let Some(predictions) = Predictions::read(run_dir, stage)? else { return Ok(None) };
        let map = EmbeddingMap::read(run_dir, stage, &predictions)?;
        Ok(Some((predictions, map)))
    };
    let transfers = plan.stages().iter().filter_map(|stage| match stage {
        StagePlan::Transfer(transfer) => Some(transfer),
        StagePlan::Backbone(_) => None,
    });
    let mut rows = Vec::new();
    for transfer in transfers {
        match read(&transfer.name) {
            Ok(Some((predictions, map))) => {
                rows.push(TestedRow { method: transfer.method.clone(), predictions, map });
            }
            Ok(None) => {}
            Err(error) => {
                let method = &transfer.method;
                terminal::line(&format!("the report has no figures of row {method}: {error:#}"));
            }
        }
    }
    rows
}

/// The sheet of training images and views: made of the packs, or as an earlier report has left it.
fn sheet(run_dir: &Path, packs_dir: Option<&Path>) -> Option<Vec<u8>> {
    let left = || fs::read(folder(run_dir).join(VIEWS)).ok();
    views::make(run_dir, packs_dir).or_else(left)
}

fn draw(update: &Value, rows: &[TestedRow], sheet: Option<&[u8]>) -> Vec<Figure> {
    let of_stages = [curves::figure(update), collapse::figure(update)];
    of_stages.into_iter().flatten().chain(draw_rows(rows, sheet)).collect()
}

fn draw_rows(rows: &[TestedRow], sheet: Option<&[u8]>) -> Vec<Figure> {
    let figures = [
        accuracy::figure(rows),
        confusion::figure(rows),
        map::figure(rows),
        sheet.and_then(views::figure),
    ];
    figures.into_iter().flatten().collect()
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
