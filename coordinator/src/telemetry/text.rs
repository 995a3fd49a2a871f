//! Prometheus's text format for the series that are known only when they are read: counters of
//! fractions of a second, and series of workers, which end with their sessions. The recorder of
//! `metrics` has neither.

use std::fmt::Write;

/// A metric's name, type and help.
pub type Described = (&'static str, &'static str, &'static str);

/// Labels of a sample, and its value.
pub(crate) type Sample = (Vec<(&'static str, String)>, f64);

/// Appends a metric with its samples; `run` is on every one. Nothing if there are no samples.
pub(crate) fn write(text: &mut String, run: &str, described: Described, samples: &[Sample]) {
    let (name, kind, help) = described;
    if samples.is_empty() {
        return;
    }
    // Writing to a string does not fail.
    _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    for (labels, value) in samples {
        _ = write!(text, "{name}{{run=\"{}\"", escape(run));
        for (label, value) in labels {
            _ = write!(text, ",{label}=\"{}\"", escape(value));
        }
        _ = writeln!(text, "}} {value}");
    }
    text.push('\n');
}

fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// Without the series of this process, which node_exporter has of its own under the same names and
/// another help.
pub(crate) fn without_process(text: &str) -> String {
    let is_kept = |line: &&str| {
        let name =
            line.strip_prefix("# HELP ").or_else(|| line.strip_prefix("# TYPE ")).unwrap_or(line);
        !name.starts_with("process_")
    };
    text.lines().filter(is_kept).flat_map(|line| [line, "\n"]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped() {
        let mut text = String::new();
        let samples = [(vec![("worker", "w\\0".into())], 1.5)];
        write(&mut text, "a\"b\nc", ("x_total", "counter", "Help"), &samples);
        write(&mut text, "run", ("y", "gauge", "No samples"), &[]);
        assert_eq!(
            text,
            "# HELP x_total Help\n# TYPE x_total \
            counter\nx_total{run=\"a\\\"b\\nc\",worker=\"w\\\\0\"} 1.5\n\n"
        );
    }

    #[test]
    fn the_file_has_no_series_of_the_process() {
        let text = "# HELP process_open_fds Help\n# TYPE process_open_fds \
            gauge\nprocess_open_fds{run=\"r\"} 3\n\
                    # HELP loss Help\nloss 1\n";
        assert_eq!(without_process(text), "# HELP loss Help\nloss 1\n");
    }
}
