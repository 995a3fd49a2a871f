//! The embedding maps of every row: its test images by principal components and by t-SNE. Colour
//! and shape are the fine class, the outline is the coarse one.

use super::TestedRow;
use super::figure::{Canvas, Figure, number, short, width_of};
use crate::run_dir::test_images::EmbeddingMap;
use std::collections::BTreeMap;
use std::fmt::Write;

const SIDE: f64 = 230.0;
const GAP: f64 = 16.0;
const TITLE: f64 = 24.0;
/// The legend needs it.
const MIN_WIDTH: f64 = 480.0;
/// Rows of the table that are side by side.
const ACROSS: usize = 5;
/// Fine classes that the legend names.
const MAX_NAMED: usize = 40;
/// Ten colours that people with any colour vision distinguish (Petroff, "Accessible Color Sequences
/// for Data Visualization", 2021); classes beyond have another shape, then the same again.
const FINE: [&str; 10] = [
    "#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6", "#a96b59", "#e76300", "#b9ac70",
    "#717581", "#92dadd",
];
/// Outlines on white: dark, none, then colours (Okabe and Ito, "Color Universal Design", 2008).
const COARSE: [&str; 8] =
    ["#000000", "#ffffff", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"];

pub(super) fn figure(rows: &[TestedRow]) -> Option<Figure> {
    let maps: Vec<(&TestedRow, &EmbeddingMap)> =
        rows.iter().filter_map(|row| Some((row, row.map.as_ref()?))).collect();
    let (first, map) = maps.first()?;
    let across = maps.len().min(ACROSS);
    let mut canvas = Canvas::default();
    let mut label = String::from("Test images in two dimensions:");
    let block = 2.0 * (SIDE + TITLE) + GAP;
    for (at, (row, map)) in maps.iter().enumerate() {
        let left = (at % across) as f64 * (SIDE + GAP) + GAP / 2.0;
        let top = (at / across) as f64 * block;
        for (panel, (name, places)) in [("PCA", &map.pca), ("t-SNE", &map.tsne)].iter().enumerate()
        {
            let top = top + panel as f64 * (SIDE + TITLE);
            let title = format!("{}, {name}", short(&row.method));
            canvas.text((left, top + 17.0), ("", "start"), &title);
            dots(&mut canvas, [left, top + TITLE], map, places, 2 * at + panel);
        }
        _ = write!(label, " {} by PCA and t-SNE.", row.title());
    }
    let width = across as f64 * (SIDE + GAP);
    let top = maps.len().div_ceil(across) as f64 * block + 6.0;
    let height = legend(&mut canvas, top, width.max(MIN_WIDTH), (first, map));
    let caption = format!(
        "The same {} test images of each row: fine class by colour, coarse class by outline",
        map.fine.len()
    );
    let size = (width.max(MIN_WIDTH), height);
    Some(Figure { name: "embeddings", caption, label, size, canvas })
}

/// The marks of one map in a white square. Marks of one class are one path, drawn twice: its
/// outline, and what is within.
fn dots(
    canvas: &mut Canvas,
    [left, top]: [f64; 2],
    map: &EmbeddingMap,
    places: &[[f64; 2]],
    panel: usize,
) {
    canvas.raw(&format!(
        "<rect x=\"{}\" y=\"{}\" width=\"{SIDE}\" height=\"{SIDE}\" fill=\"#fff\" class=\"rule\"/>",
        number(left),
        number(top)
    ));
    let size = dot_size(places.len());
    let to_panel = scale(places, SIDE - 4.0 * size);
    let mut classes: BTreeMap<(usize, usize), String> = BTreeMap::new();
    for (at, place) in places.iter().enumerate() {
        let (x, y) = to_panel(*place);
        let path = classes.entry((map.fine[at], map.coarse[at])).or_default();
        let (x, y) = (left + SIDE / 2.0 + x, top + SIDE / 2.0 - y);
        _ = write!(path, "M{} {}h0", number(x), number(y));
    }
    for ((fine, coarse), path) in classes {
        let id = format!("m{panel}-{fine}-{coarse}");
        let (colour, outline, cap) = look(fine, coarse);
        canvas.raw(&format!(
            "<defs><path id=\"{id}\" d=\"{path}\"/></defs><g stroke-linecap=\"{cap}\">\
             <use href=\"#{id}\" stroke=\"{outline}\" stroke-width=\"{}\"/>\
             <use href=\"#{id}\" stroke=\"{colour}\" stroke-width=\"{}\"/></g>",
            number(size + 2.0),
            number(size)
        ));
    }
}

/// Colour, outline and shape of a mark.
fn look(fine: usize, coarse: usize) -> (&'static str, &'static str, &'static str) {
    let cap = if (fine / FINE.len()).is_multiple_of(2) { "round" } else { "square" };
    (FINE[fine % FINE.len()], COARSE[coarse % COARSE.len()], cap)
}

/// Fewer marks are larger.
fn dot_size(images: usize) -> f64 {
    match images {
        0..400 => 5.0,
        400..1200 => 4.0,
        _ => 3.0,
    }
}

/// From places to pixels about the middle of a square of this side, by one scale for both axes.
fn scale(places: &[[f64; 2]], side: f64) -> impl Fn([f64; 2]) -> (f64, f64) {
    let range = |axis: usize| {
        let values = places.iter().map(move |place| place[axis]);
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
            (low.min(value), high.max(value))
        })
    };
    let (x, y) = (range(0), range(1));
    let extent = (x.1 - x.0).max(y.1 - y.0);
    let factor = if extent > 0.0 { side / extent } else { 0.0 };
    let middle = (f64::midpoint(x.0, x.1), f64::midpoint(y.0, y.1));
    move |[px, py]| ((px - middle.0) * factor, (py - middle.1) * factor)
}

/// Coarse classes, each with its fine ones; where they end.
fn legend(
    canvas: &mut Canvas,
    top: f64,
    width: f64,
    (row, map): (&TestedRow, &EmbeddingMap),
) -> f64 {
    let (fine_names, coarse_names) = (&row.predictions.fine_names, &row.predictions.coarse_names);
    let mut coarse_of: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    let mut pairs: Vec<_> = map.coarse.iter().zip(&map.fine).collect();
    pairs.sort_unstable();
    pairs.dedup();
    pairs.into_iter().for_each(|(coarse, fine)| coarse_of.entry(*coarse).or_default().push(*fine));
    if fine_names.len() > MAX_NAMED {
        let text = format!(
            "{} fine classes: colours and shapes repeat; see embeddings.safetensors",
            fine_names.len()
        );
        canvas.text((GAP / 2.0, top + 12.0), ("soft", "start"), &text);
        return top + 24.0;
    }
    let (mut x, mut y) = (GAP / 2.0, top + 8.0);
    for (coarse, classes) in coarse_of {
        let title = short(&coarse_names[coarse]);
        let names = classes.iter().map(|fine| short(&fine_names[*fine]));
        let entries: Vec<(Option<usize>, String)> = std::iter::once((None, format!("{title}:")))
            .chain(classes.iter().map(|fine| Some(*fine)).zip(names))
            .collect();
        for (fine, name) in entries {
            let room = width_of(&name) + if fine.is_some() { 30.0 } else { 12.0 };
            if x + room > width && x > GAP {
                (x, y) = (GAP / 2.0, y + 20.0);
            }
            let text = if let Some(fine) = fine {
                mark(canvas, (x + 7.0, y), (fine, coarse));
                x + 18.0
            } else {
                x
            };
            canvas.text((text, y + 4.0), ("soft", "start"), &name);
            x += room;
        }
        x += 10.0;
    }
    y + 16.0
}

/// A mark of the legend, on white as in the maps.
fn mark(canvas: &mut Canvas, (x, y): (f64, f64), (fine, coarse): (usize, usize)) {
    let (colour, outline, cap) = look(fine, coarse);
    let place = format!("M{} {}h0", number(x), number(y));
    canvas.raw(&format!(
        "<g stroke-linecap=\"{cap}\"><path d=\"M{} {}h14v14h-14z\" fill=\"#fff\"/>\
         <path d=\"{place}\" stroke=\"{outline}\" stroke-width=\"10\"/>\
         <path d=\"{place}\" stroke=\"{colour}\" stroke-width=\"7\"/></g>",
        number(x - 7.0),
        number(y - 7.0)
    ));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run_dir::test_images::Predictions;

    fn row(images: usize, classes: usize) -> TestedRow {
        let fine: Vec<usize> = (0..images).map(|at| at % classes).collect();
        let coarse: Vec<usize> = fine.iter().map(|fine| fine % 2).collect();
        let places: Vec<[f64; 2]> = (0..images)
            .map(|at| [(at as f64).sin() * 30.0, (at as f64 * 1.7).cos() * 10.0])
            .collect();
        let fine_names = (0..classes).map(|class| format!("class {class}")).collect();
        let coarse_names = vec!["even".into(), "odd".into()];
        let predictions =
            Predictions { fine: fine.clone(), predicted: fine.clone(), fine_names, coarse_names };
        let map = EmbeddingMap { fine, coarse, pca: places.clone(), tsne: places };
        TestedRow { method: "cae".into(), predictions, map: Some(map) }
    }

    #[test]
    fn every_image_is_a_mark_in_both_maps_and_every_class_is_named() {
        let svg = figure(&[row(100, 10)]).expect("a map").as_file();
        // The legend has one for each class and outline, twice: with its outline.
        assert_eq!(svg.matches("h0").count(), 2 * 100 + 2 * 10);
        for text in ["even:", "odd:", "class 0", "class 9", "cae, PCA", "cae, t-SNE"] {
            assert!(svg.contains(text), "no {text}");
        }
        assert!(figure(&[TestedRow { map: None, ..row(100, 10) }]).is_none());
    }

    #[test]
    fn many_images_make_a_small_file() {
        let rows: Vec<TestedRow> = (0..5).map(|_| row(2000, 100)).collect();
        let svg = figure(&rows).expect("maps").as_file();
        assert!(svg.len() < 500_000 && svg.contains("100 fine classes"), "{} bytes", svg.len());
    }

    #[test]
    fn a_map_that_is_a_point_is_in_the_middle() {
        let to_panel = scale(&[[3.0, 4.0]; 2], 100.0);
        assert_eq!(to_panel([3.0, 4.0]), (0.0, 0.0));
        let to_panel = scale(&[[0.0, 0.0], [10.0, 5.0]], 100.0);
        assert_eq!([to_panel([0.0, 0.0]), to_panel([10.0, 5.0])], [(-50.0, -25.0), (50.0, 25.0)]);
    }
}
