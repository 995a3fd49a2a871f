//! `log.csv`: the committed steps as a table that every spreadsheet reads. A restarted coordinator
//! writes it again from the ledger, so that no line is missing or there twice.

use super::feed::Row;
use super::{Ending, Sink};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use thanos_configs::LossTerm;

/// The terms of the loss follow, each a column.
const COLUMNS: [&str; 9] = [
    "stage",
    "epoch",
    "step",
    "generation",
    "world_size",
    "images",
    "learning_rate",
    "validation_accuracy",
    "loss",
];

pub(super) struct CsvLog {
    path: PathBuf,
    /// `None`: it has to be written from the start.
    writer: Option<csv::Writer<File>>,
    next_row: u64,
}

impl CsvLog {
    pub(super) fn new(run_dir: &Path) -> Self {
        Self { path: run_dir.join("log.csv"), writer: None, next_row: 0 }
    }

    fn append(&mut self, rows: &[Row]) -> io::Result<()> {
        let writer = match &mut self.writer {
            Some(writer) => writer,
            None => {
                let mut writer = csv::Writer::from_path(&self.path)?;
                writer
                    .write_record(COLUMNS.into_iter().chain(LossTerm::ALL.map(LossTerm::name)))?;
                self.writer.insert(writer)
            }
        };
        let text =
            |number: Option<f64>| number.map_or_else(String::new, |number| number.to_string());
        for Row { step, validation_accuracy, .. } in rows {
            let numbers =
                [step.epoch, step.step, step.generation, u64::from(step.world_size), step.images];
            let line =
                [step.stage.clone()].into_iter().chain(numbers.map(|number| number.to_string()));
            let line =
                line.chain([step.lr.to_string(), text(*validation_accuracy), text(step.loss)]);
            let term = |term: LossTerm| text(step.losses.get(term.name()).copied());
            writer.write_record(line.chain(LossTerm::ALL.map(term)))?;
        }
        writer.flush()
    }
}

impl Sink for CsvLog {
    fn name(&self) -> &'static str {
        "log.csv"
    }

    fn next_row(&self) -> u64 {
        self.next_row
    }

    fn write(&mut self, rows: &[Row]) -> io::Result<()> {
        let written = self.append(rows);
        match (&written, rows.last()) {
            (Ok(()), Some(last)) => self.next_row = last.index + 1,
            (Ok(()), None) => {}
            // A part of them may be there.
            (Err(_), _) => (self.writer, self.next_row) = (None, 0),
        }
        written
    }

    fn finish(&mut self, _ending: &Ending) -> io::Result<()> {
        Ok(())
    }
}
