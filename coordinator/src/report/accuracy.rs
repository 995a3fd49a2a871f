//! The accuracy of every row's linear probe on each fine class of the test images.

use super::TestedRow;
use super::figure::{Canvas, Figure, Frame, short};
use std::fmt::Write;

const WIDTH: f64 = 720.0;
const LEFT: f64 = 165.0;
const STEP: f64 = 18.0;
/// Classes that are drawn: more could not be read.
const MAX_CLASSES: usize = 200;

pub(super) fn figure(rows: &[TestedRow]) -> Option<Figure> {
    let names = &rows.first()?.predictions.fine_names;
    let shown = names.len().min(MAX_CLASSES);
    let methods: Vec<String> = rows.iter().map(|row| row.method.clone()).collect();
    let mut canvas = Canvas::default();
    let top = canvas.legend((LEFT, 14.0), WIDTH, &methods) + 20.0;
    let frame = Frame {
        corner: (LEFT, top),
        size: (WIDTH - LEFT - 24.0, shown as f64 * STEP),
        x: (0.0, 100.0),
        y: (0.0, 1.0),
    };
    for tick in [0.0, 25.0, 50.0, 75.0, 100.0] {
        let (x, bottom) = frame.at(tick, 0.0);
        canvas.line((x, top), (x, bottom), "rule");
        canvas.text((x, bottom + 18.0), ("soft", "middle"), &format!("{tick} %"));
    }
    let mut label = String::from("Test accuracy of each fine class.");
    for (class, name) in names.iter().take(shown).enumerate() {
        let y = top + (class as f64 + 0.5) * STEP;
        canvas.line((LEFT, y), (WIDTH - 24.0, y), "rule");
        canvas.text((LEFT - 10.0, y + 4.0), ("", "end"), &short(name));
        _ = write!(label, " {name}:");
        for (series, row) in rows.iter().enumerate() {
            // A class without test images has no accuracy.
            let Some((images, right)) = of_class(row, class) else { continue };
            let percent = 100.0 * right as f64 / images as f64;
            canvas.mark((frame.at(percent, 0.0).0, y), series);
            _ = write!(label, " {} {percent:.0} %", row.method);
        }
        label.push('.');
    }
    let caption = match names.len() > shown {
        true => format!("Test accuracy of the first {shown} of {} fine classes", names.len()),
        false => "Test accuracy of each fine class".into(),
    };
    let size = (WIDTH, top + shown as f64 * STEP + 28.0);
    Some(Figure { name: "accuracy_per_class", caption, label, size, canvas })
}

/// Test images of a class, and those that are predicted right; `None`: there are none.
fn of_class(row: &TestedRow, class: usize) -> Option<(u64, u64)> {
    let counted = row.predictions.of_classes().get(class).copied();
    counted.filter(|(images, _)| *images > 0)
}
