//! The curves of every stage: its loss by term over its steps, and its validation accuracy.

use super::figure::{Canvas, Figure, Frame, number, short, ticks, value, width_of};
use serde_json::Value;
use std::fmt::Write;

/// A chart with the room for its titles and axes; a stage has two, and two stages are side by side.
const CELL: (f64, f64) = (270.0, 190.0);
const MARGIN: (f64, f64) = (52.0, 40.0);
const CHARTS_ACROSS: usize = 4;
/// Points of a line: more are joined, each then the mean of several.
const MAX_POINTS: usize = 200;

/// A line of a chart: a name, and points from left to right.
struct Line {
    name: String,
    points: Vec<(f64, f64)>,
}

/// `update` is what the page is sent.
pub(super) fn figure(update: &Value) -> Option<Figure> {
    let stages = update["state"]["stages"].as_array()?;
    let mut canvas = Canvas::default();
    let (mut charts, mut label) = (0, String::from("Loss and validation accuracy."));
    for name in stages.iter().filter_map(|stage| stage["name"].as_str()) {
        let losses = losses(&update["series"][name]);
        let accuracies = accuracies(&update["evaluations"][name]);
        if losses.is_empty() {
            continue;
        }
        for (title, across, lines) in
            [("loss", "steps", losses), ("validation, %", "epochs", accuracies)]
        {
            let column = (charts % CHARTS_ACROSS) as f64 * CELL.0;
            let row = (charts / CHARTS_ACROSS) as f64 * CELL.1;
            chart(
                &mut canvas,
                (column, row),
                (&format!("{}: {title}", short(name)), across),
                &lines,
            );
            for (of, last) in
                lines.iter().filter_map(|line| Some((&line.name, line.points.last()?)))
            {
                _ = write!(label, " {name}: last {of} {}.", value(last.1));
            }
            charts += 1;
        }
    }
    let lines = charts.div_ceil(CHARTS_ACROSS) as f64;
    let size = (CHARTS_ACROSS.min(charts) as f64 * CELL.0, lines * CELL.1);
    let caption = "Loss by term, and validation accuracy, of every stage".into();
    (charts > 0).then_some(Figure { name: "curves", caption, label, size, canvas })
}

/// A line a term.
fn losses(series: &Value) -> Vec<Line> {
    let steps = numbers(&series["step"]);
    let terms = series["terms"].as_object().into_iter().flatten();
    let line = |(name, values): (&String, &Value)| {
        let pairs = steps.iter().zip(numbers(values));
        let points = pairs.filter_map(|(step, value)| Some(((*step)? + 1.0, value?))).collect();
        Line { name: name.clone(), points: joined(points) }
    };
    terms.map(line).filter(|line| !line.points.is_empty()).collect()
}

fn accuracies(evaluations: &Value) -> Vec<Line> {
    let evaluations = evaluations.as_array().into_iter().flatten();
    let points: Vec<(f64, f64)> = evaluations
        .filter_map(|one| Some((one["epoch"].as_f64()? + 1.0, 100.0 * one["accuracy"].as_f64()?)))
        .collect();
    if points.is_empty() {
        return Vec::new();
    }
    vec![Line { name: "accuracy".into(), points: joined(points) }]
}

fn numbers(values: &Value) -> Vec<Option<f64>> {
    values.as_array().into_iter().flatten().map(Value::as_f64).collect()
}

/// At most [`MAX_POINTS`] points: means of as many neighbours as it takes.
fn joined(points: Vec<(f64, f64)>) -> Vec<(f64, f64)> {
    let together = points.len().div_ceil(MAX_POINTS).max(1);
    let mean = |part: &[(f64, f64)]| {
        let n = part.len() as f64;
        let sum = part.iter().fold((0.0, 0.0), |sum, (x, y)| (sum.0 + x, sum.1 + y));
        (sum.0 / n, sum.1 / n)
    };
    points.chunks(together).map(mean).collect()
}

fn chart(canvas: &mut Canvas, corner: (f64, f64), (title, across): (&str, &str), lines: &[Line]) {
    let all = || lines.iter().flat_map(|line| line.points.iter().copied());
    let range = |values: &mut dyn Iterator<Item = f64>| {
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
            (low.min(value), high.max(value))
        })
    };
    let (left, top) = (corner.0 + MARGIN.0, corner.1 + MARGIN.1);
    let frame = Frame {
        corner: (left, top),
        size: (CELL.0 - MARGIN.0 - 18.0, CELL.1 - MARGIN.1 - 34.0),
        x: range(&mut all().map(|(x, _)| x)),
        y: range(&mut all().map(|(_, y)| y)),
    };
    let (right, bottom) = (left + frame.size.0, top + frame.size.1);
    canvas.text((corner.0 + 8.0, corner.1 + 16.0), ("", "start"), title);
    if lines.is_empty() {
        canvas.text((left, top + 20.0), ("soft", "start"), "not evaluated");
        return;
    }
    for tick in ticks(frame.y.0, frame.y.1) {
        let (_, y) = frame.at(frame.x.0, tick);
        canvas.line((left, y), (right, y), "rule");
        canvas.text((left - 6.0, y + 4.0), ("soft", "end"), &value(tick));
    }
    let mut ends = vec![(left, "start", frame.x.0), (right, "end", frame.x.1)];
    ends.dedup_by_key(|(.., x)| *x);
    for (x, anchor, end) in ends {
        canvas.text((x, bottom + 18.0), ("soft", anchor), &value(end.round()));
    }
    canvas.text((f64::midpoint(left, right), bottom + 18.0), ("soft", "middle"), across);
    let mut legend = left;
    for (series, line) in lines.iter().enumerate() {
        let points: Vec<(f64, f64)> = line.points.iter().map(|(x, y)| frame.at(*x, *y)).collect();
        canvas.polyline(&points, series);
        if let [only] = points[..] {
            canvas.mark(only, series);
        }
        if lines.len() > 1 {
            canvas.raw(&format!(
                "<path d=\"M{} {}h12\" class=\"s{series}\" stroke=\"currentColor\" \
                 stroke-width=\"3\"/>",
                number(legend),
                number(corner.1 + 28.0)
            ));
            canvas.text((legend + 16.0, corner.1 + 32.0), ("soft", "start"), &line.name);
            legend += 28.0 + width_of(&line.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn points_are_joined_to_their_means() {
        let points: Vec<(f64, f64)> =
            (0..401).map(|at| (f64::from(at), 2.0 * f64::from(at))).collect();
        let joined = joined(points);
        assert_eq!((joined.len(), joined[0], joined[133]), (134, (1.0, 2.0), (399.5, 799.0)));
    }

    #[test]
    fn every_stage_with_steps_has_two_charts() {
        let terms = json!({"contrastive": [3.0, null], "reconstruction": [1.0, 0.5]});
        let series = json!({"step": [0, 1], "terms": terms});
        let update = json!({
            "state": {"stages": [{"name": "both"}, {"name": "later"}]},
            "series": {"both": series},
            "evaluations": {"both": [{"epoch": 0, "accuracy": 0.5}]},
        });
        let figure = figure(&update).expect("one stage has steps");
        assert_eq!(figure.size, (2.0 * CELL.0, CELL.1));
        assert!(figure.label.contains("both: last contrastive 3. both: last reconstruction 0.5."));
        assert!(figure.label.ends_with("both: last accuracy 50."), "{}", figure.label);
        assert!(super::figure(&json!({"state": {"stages": []}})).is_none());
    }
}
