//! A comparison as text for people, CSV for other programs, and LaTeX for papers.

use super::statistics::{Difference, Summary};
use super::{Group, MEASURES, Measure, PairedDifference, RowSummary, RunTable, shown};
use crate::run_dir::results::QUICK_RUN;
use std::collections::BTreeMap;
use std::fmt;

const CSV_HEADER: [&str; 11] = [
    "kind",
    "group",
    "minus",
    "method",
    "measure",
    "n",
    "mean",
    "sd",
    "ci95_low",
    "ci95_high",
    "seeds",
];

impl fmt::Display for RunTable {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.quick {
            writeln!(out, "{QUICK_RUN}")?;
        }
        for Group { label, seeds, .. } in &self.groups {
            let list: Vec<String> = seeds.iter().map(u64::to_string).collect();
            let runs = if seeds.len() == 1 { "run" } else { "runs" };
            writeln!(out, "{label}: {} {runs}, seeds {}", seeds.len(), list.join(" "))?;
        }
        if !self.differing_keys.is_empty() {
            writeln!(out, "\ndiffering keys")?;
            let values = |values: &[serde_json::Value]| {
                values.iter().map(shown).collect::<Vec<_>>().join(" | ")
            };
            let lines: Vec<Vec<String>> = self
                .differing_keys
                .iter()
                .map(|key| vec![key.key.clone(), values(&key.values)])
                .collect();
            write_columns(out, &lines, 2)?;
        }
        writeln!(
            out,
            "\nmean ± sample standard deviation; accuracies in % of the test images, cosines \
            between them"
        )?;
        write_columns(out, &self.lines(), 2)?;
        if !self.paired_differences.is_empty() {
            writeln!(
                out,
                "\npaired differences over seeds, in percentage points, with their 95 % confidence \
                interval"
            )?;
            write_columns(out, &self.difference_lines(), 1)?;
        }
        write!(
            out,
            "\nfine: a linear layer on the frozen embeddings; coarse: the backbones' own heads; \
            kNN: fine labels by 20 \
             nearest neighbours.\nThe interval is by Student's t over n - 1 degrees of freedom."
        )
    }
}

impl RunTable {
    /// The cells of the table.
    fn lines(&self) -> Vec<Vec<String>> {
        let named = self.groups.len() > 1;
        let titles =
            ["method", "n"].into_iter().chain(MEASURES.iter().map(|measure| measure.title));
        let mut lines = vec![with_label(named, "group", titles.map(str::to_owned).collect())];
        for group in &self.groups {
            for RowSummary { method, measures } in &group.rows {
                let n = measures.values().map(|summary| summary.n).max().unwrap_or(0);
                let cells = MEASURES
                    .iter()
                    .map(|measure| mean_and_sd(measures.get(measure.name), measure, " ± "));
                let cells = [method.clone(), n.to_string()].into_iter().chain(cells).collect();
                lines.push(with_label(named, &group.label, cells));
            }
        }
        lines
    }

    fn difference_lines(&self) -> Vec<Vec<String>> {
        let accuracies = || MEASURES.iter().filter(|measure| measure.is_accuracy);
        let titles =
            ["difference", "n"].into_iter().chain(accuracies().map(|measure| measure.title));
        let mut lines = vec![titles.map(str::to_owned).collect()];
        for difference in &self.paired_differences {
            let n = difference.measures.values().map(|one| one.summary.n).max().unwrap_or(0);
            let cells =
                accuracies().map(|measure| with_interval(difference.measures.get(measure.name)));
            lines.push([name_of(difference), n.to_string()].into_iter().chain(cells).collect());
        }
        lines
    }

    /// A line for each number, so that no column depends on what is compared.
    ///
    /// # Panics
    /// Never: memory takes every write.
    pub(crate) fn to_csv(&self) -> String {
        let mut writer = csv::Writer::from_writer(Vec::new());
        let mut write = |line: [String; CSV_HEADER.len()]| {
            writer.write_record(line).expect("memory takes every write")
        };
        write(CSV_HEADER.map(str::to_owned));
        for group in &self.groups {
            let seeds = group.seeds.iter().map(u64::to_string).collect::<Vec<_>>().join(" ");
            for RowSummary { method, measures } in &group.rows {
                for (name, Summary { n, mean, sd, .. }) in ordered(measures) {
                    let start = ["mean", &group.label, "", method, name].map(str::to_owned);
                    let numbers =
                        [n.to_string(), mean.to_string(), text(*sd), String::new(), String::new()];
                    write(joined(start, numbers, seeds.clone()));
                }
            }
        }
        for PairedDifference { of, minus, method, measures } in &self.paired_differences {
            for (
                name,
                Difference { summary: Summary { n, mean, sd, .. }, confidence_interval_95 },
            ) in ordered(measures)
            {
                let method = method.as_deref().unwrap_or("");
                let start = ["paired_difference", of, minus, method, name].map(str::to_owned);
                let [low, high] = confidence_interval_95
                    .map_or([None, None], |[low, high]| [Some(low), Some(high)]);
                let numbers = [n.to_string(), mean.to_string(), text(*sd), text(low), text(high)];
                write(joined(start, numbers, String::new()));
            }
        }
        String::from_utf8(writer.into_inner().expect("memory takes every write"))
            .expect("all of it was text")
    }

    /// A `tabular` for the `booktabs` package.
    pub(crate) fn to_latex(&self) -> String {
        let named = self.groups.len() > 1;
        let mut text = format!(
            "\\begin{{tabular}}{{{}r{}}}\n\\toprule\n",
            if named { "ll" } else { "l" },
            "r".repeat(MEASURES.len())
        );
        let titles =
            ["method", "$n$"].into_iter().chain(MEASURES.iter().map(|measure| measure.title));
        text += &latex_line(&with_label(named, "group", titles.map(str::to_owned).collect()));
        for group in &self.groups {
            text += "\\midrule\n";
            for RowSummary { method, measures } in &group.rows {
                let n = measures.values().map(|summary| summary.n).max().unwrap_or(0);
                let cell = |measure: &Measure| match measures.get(measure.name) {
                    None => "--".into(),
                    summary => format!("${}$", mean_and_sd(summary, measure, " \\pm ")),
                };
                let start = [latex(method), n.to_string()];
                let cells = start.into_iter().chain(MEASURES.iter().map(cell)).collect();
                text += &latex_line(&with_label(named, &latex(&group.label), cells));
            }
        }
        text + "\\bottomrule\n\\end{tabular}"
    }
}

/// In the order of the table.
fn ordered<'a, T>(
    measures: &'a BTreeMap<&'static str, T>,
) -> impl Iterator<Item = (&'static str, &'a T)> {
    MEASURES.iter().filter_map(|measure| Some((measure.name, measures.get(measure.name)?)))
}

fn joined(start: [String; 5], numbers: [String; 5], end: String) -> [String; 11] {
    let mut cells = start.into_iter().chain(numbers).chain([end]);
    std::array::from_fn(|_| cells.next().expect("five, five and one"))
}

fn text(number: Option<f64>) -> String {
    number.map_or_else(String::new, |number| number.to_string())
}

fn with_label(named: bool, label: &str, cells: Vec<String>) -> Vec<String> {
    if named { [vec![label.to_owned()], cells].concat() } else { cells }
}

fn mean_and_sd(summary: Option<&Summary>, measure: &Measure, sign: &str) -> String {
    let Some(Summary { mean, sd, .. }) = summary else { return "n/a".into() };
    let decimals = measure.decimals;
    let mean = format!("{mean:.decimals$}");
    sd.map_or_else(|| mean.clone(), |sd| format!("{mean}{sign}{sd:.decimals$}"))
}

fn with_interval(difference: Option<&Difference>) -> String {
    match difference {
        None => "n/a".into(),
        Some(Difference { summary, confidence_interval_95: None }) => {
            format!("{:+.2}", summary.mean)
        }
        Some(Difference { summary, confidence_interval_95: Some([low, high]) }) => {
            format!("{:+.2} [{low:+.2}, {high:+.2}]", summary.mean)
        }
    }
}

fn name_of(difference: &PairedDifference) -> String {
    let PairedDifference { of, minus, method, .. } = difference;
    match method {
        None => format!("{of} - {minus}"),
        Some(method) => format!("{method}: {of} - {minus}"),
    }
}

/// Columns of equal width; the first `left` ones are aligned left.
fn write_columns(out: &mut fmt::Formatter<'_>, lines: &[Vec<String>], left: usize) -> fmt::Result {
    let width =
        |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..lines.first().map_or(0, Vec::len)).map(width).collect();
    for line in lines {
        let cells = line.iter().zip(&widths).enumerate().map(|(column, (cell, width))| {
            if column < left { format!("{cell:width$}") } else { format!("{cell:>width$}") }
        });
        writeln!(out, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
    }
    Ok(())
}

fn latex_line(cells: &[String]) -> String {
    format!("{} \\\\\n", cells.join(" & "))
}

/// Text without the characters that LaTeX takes for commands.
fn latex(text: &str) -> String {
    let escaped = |character: char| match character {
        '&' | '%' | '$' | '#' | '_' | '{' | '}' => format!("\\{character}"),
        '\\' => "\\textbackslash{}".into(),
        '~' => "\\textasciitilde{}".into(),
        '^' => "\\textasciicircum{}".into(),
        other => other.into(),
    };
    text.chars().map(escaped).collect()
}
