//! How far classes have collapsed: the mean cosines of every complete stage, with a line where a
//! class would be one point.

use super::figure::{Canvas, Figure, Frame, short, ticks, value};
use serde_json::Value;
use std::fmt::Write;

const WIDTH: f64 = 640.0;
const LEFT: f64 = 165.0;
const STEP: f64 = 28.0;
const COSINES: [(&str, &str); 3] = [
    ("cosine_within_coarse", "within coarse classes"),
    ("cosine_within_fine", "within fine classes"),
    ("cosine_between_views", "between views of an image"),
];

/// `update` is what the page is sent.
pub(super) fn figure(update: &Value) -> Option<Figure> {
    let stages = update["state"]["stages"].as_array()?;
    let rows: Vec<(&str, [Option<f64>; 3])> = stages
        .iter()
        .filter_map(|stage| {
            let cosines = COSINES.map(|(key, _)| stage["result"][key].as_f64());
            cosines.iter().any(Option::is_some).then_some((stage["name"].as_str()?, cosines))
        })
        .collect();
    if rows.is_empty() {
        return None;
    }
    let lowest = rows.iter().flat_map(|(_, cosines)| cosines.iter().flatten().copied());
    let low = lowest.fold(0.0, f64::min);
    let height = rows.len() as f64 * STEP;
    let frame = Frame {
        corner: (LEFT, 8.0),
        size: (WIDTH - LEFT - 24.0, height),
        x: (low, 1.0),
        y: (0.0, 1.0),
    };
    let mut canvas = Canvas::default();
    for tick in ticks(low, 1.0) {
        let (x, bottom) = frame.at(tick, 0.0);
        let class = if tick == 1.0 { "full" } else { "rule" };
        canvas.line((x, 8.0), (x, bottom), class);
        canvas.text((x, bottom + 18.0), ("soft", "middle"), &value(tick));
    }
    let mut label = String::from("Mean cosines, 1 is fully collapsed.");
    for (at, (name, cosines)) in rows.iter().enumerate() {
        let y = 8.0 + (at as f64 + 0.5) * STEP;
        canvas.text((LEFT - 10.0, y + 4.0), ("", "end"), &short(name));
        for (series, cosine) in cosines.iter().enumerate() {
            let Some(cosine) = cosine else { continue };
            canvas.mark((frame.at(*cosine, 0.0).0, y), series);
            _ = write!(label, " {name}: {} {}.", COSINES[series].1, value(*cosine));
        }
    }
    let names = COSINES.map(|(_, name)| name.to_owned());
    let last = canvas.legend((LEFT, height + 48.0), WIDTH, &names);
    Some(Figure {
        name: "collapse",
        caption: "Mean cosines of test embeddings; 1 = fully collapsed".into(),
        label,
        size: (WIDTH, last + 16.0),
        canvas,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_cosine_that_does_not_exist_has_no_mark() {
        let [coarse, fine, views] = COSINES.map(|(key, _)| key);
        let cosines = json!({coarse: null, fine: -0.25, views: 1.0});
        let stages = json!([{"name": "cae", "result": cosines}, {"name": "later", "result": null}]);
        let figure = figure(&json!({"state": {"stages": stages}})).expect("a complete stage");
        let said = "cae: within fine classes -0.25. cae: between views of an image 1.";
        assert!(figure.label.ends_with(said), "{}", figure.label);
        assert!(super::figure(&json!({"state": {"stages": [{"name": "later"}]}})).is_none());
    }
}
