//! What the linear probe of every row takes the test images for: a matrix of true and predicted
//! fine classes a row, and the same counts as a table.

use super::TestedRow;
use super::figure::{Canvas, Figure, number, short, width_of};
use std::collections::BTreeMap;
use std::fmt::Write;

/// A matrix is about so large, in pixels; its cells are at least 1.5.
const SIDE: f64 = 216.0;
const MIN_CELL: f64 = 1.5;
/// Matrices are side by side up to this width.
const MAX_WIDTH: f64 = 1250.0;
/// Up to so many classes have their counts and names written.
const MAX_WRITTEN: usize = 12;
const MAX_NAMED: usize = 24;
/// From few to all images of a class, light to dark: cells on white in either scheme.
const SHADES: [&str; 8] =
    ["#e3eef9", "#c9def0", "#a4cbe4", "#76b0d9", "#4a94c8", "#2676b5", "#0d579b", "#08306b"];
/// Shades on which text is white.
const DARK_SHADES: usize = 4;

/// The counts as CSV: row, true class, predicted class, images; pairs without images are not
/// listed. `None` without rows.
pub(super) fn table(rows: &[TestedRow]) -> Option<String> {
    if rows.is_empty() {
        return None;
    }
    let mut writer = csv::Writer::from_writer(Vec::new());
    let mut write = |line: [&str; 4]| writer.write_record(line).ok();
    write(["row", "true", "predicted", "images"])?;
    for TestedRow { method, predictions, .. } in rows {
        for ((fine, predicted), images) in predictions.counts() {
            let names = &predictions.fine_names;
            write([method, &names[fine], &names[predicted], &images.to_string()])?;
        }
    }
    String::from_utf8(writer.into_inner().ok()?).ok()
}

pub(super) fn figure(rows: &[TestedRow]) -> Option<Figure> {
    let names = &rows.first()?.predictions.fine_names;
    let classes = names.len();
    let cell = (SIDE / classes as f64).max(MIN_CELL);
    let side = cell * classes as f64;
    let longest = names.iter().map(|name| width_of(&short(name))).fold(0.0, f64::max);
    let is_named = classes <= MAX_NAMED;
    let margin = if is_named { longest + 26.0 } else { 26.0 };
    let (width, height) = (margin + side + 14.0, 26.0 + side + margin);
    let across = rows.len().min(((MAX_WIDTH / width) as usize).max(1));
    let mut canvas = Canvas::default();
    let mut label = String::from("True fine classes by row, predicted ones by column.");
    for (at, row) in rows.iter().enumerate() {
        let corner = ((at % across) as f64 * width, (at / across) as f64 * height);
        let place = (corner.0 + margin, corner.1 + 26.0);
        canvas.text((place.0, corner.1 + 18.0), ("", "start"), &row.title());
        let counts = row.predictions.counts();
        matrix(&mut canvas, place.into(), cell, &counts, classes);
        axes(&mut canvas, place, side, if is_named { names } else { &[] });
        _ = write!(label, " {}.", row.title());
        for ((fine, predicted), images) in most_confused(&counts) {
            _ = write!(label, " {} as {}: {images}.", names[fine], names[predicted]);
        }
    }
    let caption = format!("Confusion matrices of the test images, {classes} fine classes");
    let size = (across as f64 * width, rows.len().div_ceil(across) as f64 * height);
    Some(Figure { name: "confusion", caption, label, size, canvas })
}

type Counts = BTreeMap<(usize, usize), u64>;

/// The pairs of different classes with the most images.
fn most_confused(counts: &Counts) -> Vec<((usize, usize), u64)> {
    let mut wrong: Vec<_> =
        counts.iter().filter(|((fine, predicted), _)| fine != predicted).collect();
    wrong.sort_by_key(|(pair, images)| (std::cmp::Reverse(**images), **pair));
    wrong.into_iter().take(3).map(|(pair, images)| (*pair, *images)).collect()
}

/// Cells of one shade are one path.
fn matrix(canvas: &mut Canvas, [left, top]: [f64; 2], cell: f64, counts: &Counts, classes: usize) {
    let side = number(cell * classes as f64);
    canvas.raw(&format!(
        "<rect x=\"{}\" y=\"{}\" width=\"{side}\" height=\"{side}\" fill=\"#fff\" class=\"rule\"/>",
        number(left),
        number(top)
    ));
    let mut images_of = vec![0; classes];
    counts.iter().for_each(|((fine, _), images)| images_of[*fine] += images);
    let shade = |fine: usize, images: u64| {
        let share = images as f64 / images_of[fine] as f64;
        ((share * SHADES.len() as f64) as usize).min(SHADES.len() - 1)
    };
    let mut paths = vec![String::new(); SHADES.len()];
    for ((fine, predicted), images) in counts {
        let (x, y) = (left + *predicted as f64 * cell, top + *fine as f64 * cell);
        let path = &mut paths[shade(*fine, *images)];
        let side = number(cell);
        _ = write!(path, "M{} {}h{side}v{side}h-{side}z", number(x), number(y));
    }
    for (path, fill) in paths.iter().zip(SHADES).filter(|(path, _)| !path.is_empty()) {
        canvas.raw(&format!("<path d=\"{path}\" fill=\"{fill}\"/>"));
    }
    if classes > MAX_WRITTEN {
        return;
    }
    for ((fine, predicted), images) in counts {
        let x = left + (*predicted as f64 + 0.5) * cell;
        let y = top + (*fine as f64 + 0.5) * cell + 4.0;
        let is_dark = shade(*fine, *images) >= DARK_SHADES;
        let class = if is_dark { "cell on-dark" } else { "cell on-light" };
        canvas.text((x, y), (class, "middle"), &images.to_string());
    }
}

/// Names of the classes, if any, and of the axes.
fn axes(canvas: &mut Canvas, (left, top): (f64, f64), side: f64, names: &[String]) {
    let cell = side / names.len().max(1) as f64;
    for (class, name) in names.iter().enumerate() {
        let middle = (class as f64 + 0.5) * cell + 4.0;
        canvas.text((left - 6.0, top + middle), ("soft", "end"), &short(name));
        canvas.upright((left + middle, top + side + 6.0), "end", &short(name));
    }
    let longest = names.iter().map(|name| width_of(&short(name))).fold(0.0, f64::max);
    canvas.upright((left - longest - 12.0, top + side / 2.0), "middle", "true");
    let below = top + side + longest + 18.0;
    canvas.text((left + side / 2.0, below), ("soft", "middle"), "predicted");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run_dir::test_images::Predictions;

    fn row(fine: Vec<usize>, predicted: Vec<usize>, names: &[&str]) -> TestedRow {
        let fine_names = names.iter().map(|name| (*name).to_owned()).collect();
        let coarse_names = vec!["all".to_owned()];
        let predictions = Predictions { fine, predicted, fine_names, coarse_names };
        TestedRow { method: "cae".into(), predictions, map: None }
    }

    #[test]
    fn the_table_has_a_line_a_pair_and_quotes_names() {
        let rows = [row(vec![0, 0, 1], vec![0, 1, 1], &["a, b", "c"])];
        let expected =
            "row,true,predicted,images\ncae,\"a, b\",\"a, b\",1\ncae,\"a, b\",c,1\ncae,c,c,1\n";
        assert_eq!(table(&rows).as_deref(), Some(expected));
        assert_eq!(table(&[]), None);
    }

    #[test]
    fn a_matrix_names_its_classes_and_what_it_confuses() {
        let figure =
            figure(&[row(vec![0, 0, 0, 1], vec![1, 1, 0, 1], &["cat", "dog"])]).expect("a row");
        assert!(figure.label.ends_with(" cae: 50.0 %. cat as dog: 2."), "{}", figure.label);
        let svg = figure.as_file();
        assert!(svg.matches(">cat<").count() == 2 && svg.contains(">2</text>"), "{svg}");
    }

    #[test]
    fn many_classes_make_a_small_file_and_no_text_for_each() {
        let names: Vec<String> = (0..200).map(|class| format!("class {class}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let pairs = (0..10_000).map(|at| (at % 200, at * 7 % 200)).unzip();
        let (fine, predicted): (Vec<usize>, Vec<usize>) = pairs;
        let svg = figure(&[row(fine, predicted, &names)]).expect("a row").as_file();
        assert!(svg.len() < 100_000 && !svg.contains("class 7<"), "{} bytes", svg.len());
    }
}
