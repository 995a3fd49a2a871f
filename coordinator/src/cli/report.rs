//! `report`: the table of one run, or several runs compared; or one run as a page.

use crate::commands::series::runs_at;
use crate::exit::{EXIT_IO, EXIT_USAGE, Fatal};
use crate::report::write_report;
use crate::run_dir::comparison::{RunResults, RunTable};
use crate::run_dir::identity;
use crate::terminal;
use anyhow::Result;
use clap::{Args, ValueEnum};
use std::path::{Path, PathBuf};
use thanos_configs::default_packs_dir;

#[derive(Args, Debug)]
pub(super) struct ReportArguments {
    /// Directories of runs, or of series of `launch --seeds` or `--sweep`; runs that differ only in
    /// their seed are one line
    #[arg(value_name = "RUN", required = true)]
    run_dirs: Vec<PathBuf>,
    /// As JSON; of a single run the content of `results.json`
    #[arg(long, conflicts_with = "format")]
    json: bool,
    /// Write the page of a single run, with its figures, table, events and configuration, to this
    /// file [RUN/report/index.html, and the figures as SVG files next to it]
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true,
        conflicts_with_all = ["json", "format"])]
    html: Option<Option<PathBuf>>,
    /// How to print it
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A table to read
    Text,
    /// A line for each number
    Csv,
    /// A tabular for the booktabs package
    Latex,
    /// As --json
    Json,
}

/// Prints what was asked for.
pub(super) fn act_report(arguments: &ReportArguments) -> Result<()> {
    if let Some(file) = &arguments.html {
        return write_page(&arguments.run_dirs, file.as_deref());
    }
    let format = if arguments.json { Format::Json } else { arguments.format };
    let mut paths = Vec::new();
    for folder in &arguments.run_dirs {
        paths.extend(runs_at(folder)?);
    }
    let runs =
        paths.iter().map(|run_dir| RunResults::read(run_dir)).collect::<Result<Vec<_>, Fatal>>()?;
    let is_single = arguments.run_dirs.len() == 1 && paths == arguments.run_dirs;
    let table = RunTable::new(&runs);
    let text = match (&runs[..], format) {
        ([run], Format::Text) if is_single => run.results().to_string(),
        ([run], Format::Json) if is_single => run.results().to_json(),
        (_, Format::Text) => table.to_string(),
        (_, Format::Json) => table.to_json(),
        (_, Format::Csv) => table.to_csv().trim_end().to_owned(),
        (_, Format::Latex) => table.to_latex(),
    };
    terminal::print_line(&text)?;
    Ok(())
}

fn write_page(run_dirs: &[PathBuf], file: Option<&Path>) -> Result<()> {
    let [run_dir] = run_dirs else {
        return Err(Fatal::new(
            EXIT_USAGE,
            "--html writes the page of one run: name one directory",
        )
        .into());
    };
    identity(run_dir)?;
    let packs_dir = default_packs_dir(std::env::var_os);
    let written = write_report(run_dir, file, packs_dir.as_deref());
    let page = written.map_err(|error| Fatal::new(EXIT_IO, format!("{error:#}")))?;
    terminal::print_line(&page.display().to_string())?;
    Ok(())
}
