//! A figure as SVG: the same drawing is a file of its own, with its style and on white, and a part
//! of the page, whose style has the same classes for light and dark. It knows no run.

use std::fmt::Write;

/// What `page.css` has for figures within the page.
const STYLE: &str = "text{font:13px system-ui,sans-serif;fill:#1b1f24}\
    .soft{font-size:12px;fill:#555d66}.cell{font-size:10px}.on-dark{fill:#fff}\
    .on-light{fill:#1b1f24}.rule{stroke:#d5dae0}.full{stroke:#b3202a;stroke-width:2}\
    .s0{color:#0068a8}.s1{color:#c04a00}.s2{color:#00794f}.s3{color:#a3407a}\
    .s4{color:#6a5acd}.s5{color:#8a6d00}.s6{color:#3d4550}.s7{color:#0f8a96}";
/// Colours of a series: the classes `s0` to `s7`.
const SERIES: usize = 8;
/// Characters of a name that is drawn.
const MAX_NAME: usize = 20;
/// Width of a character of text, about, in pixels.
pub(super) const CHARACTER: f64 = 7.2;

/// A drawing with a name, under which it is written.
pub(super) struct Figure {
    pub(super) name: &'static str,
    pub(super) caption: String,
    /// What it shows, for people who do not see it.
    pub(super) label: String,
    pub(super) size: (f64, f64),
    pub(super) canvas: Canvas,
}

impl Figure {
    /// An SVG file.
    pub(super) fn as_file(&self) -> String {
        let style =
            format!("<style>{STYLE}</style><rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>");
        self.svg("xmlns=\"http://www.w3.org/2000/svg\" ", &style)
    }

    /// The same as a part of an HTML document.
    pub(super) fn within_page(&self) -> String {
        let caption = escaped(&self.caption);
        let svg = self.svg("", "");
        format!(
            "<figure class=\"drawn\"><figcaption>{caption}</figcaption><div class=\"scroll short\" \
             role=\"region\" aria-label=\"Figure: {}\" tabindex=\"0\">{svg}</div></figure>\n",
            self.name.replace('_', " ")
        )
    }

    fn svg(&self, namespace: &str, style: &str) -> String {
        let (width, height) = (number(self.size.0), number(self.size.1));
        format!(
            "<svg {namespace}width=\"{width}\" height=\"{height}\" \
             viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{}\">{style}{}</svg>",
            escaped(&self.label),
            self.canvas.0
        )
    }
}

/// SVG elements, one after the other.
#[derive(Default)]
pub(super) struct Canvas(String);

impl Canvas {
    /// Elements that are written out.
    pub(super) fn raw(&mut self, elements: &str) {
        self.0.push_str(elements);
    }

    /// Text; `anchor` is `start`, `middle` or `end`.
    pub(super) fn text(&mut self, at: (f64, f64), (class, anchor): (&str, &str), text: &str) {
        _ = write!(
            self.0,
            "<text x=\"{}\" y=\"{}\" class=\"{class}\" text-anchor=\"{anchor}\">{}</text>",
            number(at.0),
            number(at.1),
            escaped(text)
        );
    }

    /// Text from bottom to top, which ends there.
    pub(super) fn upright(&mut self, at: (f64, f64), anchor: &str, text: &str) {
        _ = write!(
            self.0,
            "<text transform=\"translate({} {}) rotate(-90)\" class=\"soft\" \
             text-anchor=\"{anchor}\">{}</text>",
            number(at.0),
            number(at.1),
            escaped(text)
        );
    }

    pub(super) fn line(&mut self, from: (f64, f64), to: (f64, f64), class: &str) {
        _ = write!(
            self.0,
            "<path d=\"M{} {}L{} {}\" class=\"{class}\"/>",
            number(from.0),
            number(from.1),
            number(to.0),
            number(to.1)
        );
    }

    /// A line through points, as a series of this index.
    pub(super) fn polyline(&mut self, points: &[(f64, f64)], series: usize) {
        let mut path = String::new();
        for (at, (x, y)) in points.iter().enumerate() {
            let start = if at == 0 { "M" } else { "L" };
            _ = write!(path, "{start}{} {}", number(*x), number(*y));
        }
        _ = write!(
            self.0,
            "<path d=\"{path}\" class=\"s{}\" fill=\"none\" stroke=\"currentColor\" \
             stroke-width=\"1.5\"/>",
            series % SERIES
        );
    }

    /// A mark of a series: of its own colour and shape.
    pub(super) fn mark(&mut self, (x, y): (f64, f64), series: usize) {
        let path = match series % 5 {
            0 => "m-5 0a5 5 0 1 0 10 0a5 5 0 1 0-10 0z",
            1 => "m-4.5-4.5h9v9h-9z",
            2 => "m0-6l6 10.5h-12z",
            3 => "m0-6.5l5.5 6.5-5.5 6.5-5.5-6.5z",
            _ => "m-5-2h3v-3h4v3h3v4h-3v3h-4v-3h-3z",
        };
        _ = write!(
            self.0,
            "<path d=\"M{} {}{path}\" class=\"s{}\" fill=\"currentColor\"/>",
            number(x),
            number(y),
            series % SERIES
        );
    }

    /// Names with their marks next to each other, in lines that are not wider than `right`: where
    /// the last one is.
    pub(super) fn legend(&mut self, (left, top): (f64, f64), right: f64, names: &[String]) -> f64 {
        let (mut x, mut y) = (left, top);
        for (series, name) in names.iter().enumerate() {
            let width = 28.0 + width_of(name);
            if x + width > right && x > left {
                (x, y) = (left, y + 20.0);
            }
            self.mark((x + 6.0, y), series);
            self.text((x + 16.0, y + 4.0), ("soft", "start"), name);
            x += width;
        }
        y
    }
}

/// The rectangle of a chart, and the ranges of its axes.
pub(super) struct Frame {
    pub(super) corner: (f64, f64),
    pub(super) size: (f64, f64),
    pub(super) x: (f64, f64),
    pub(super) y: (f64, f64),
}

impl Frame {
    /// Where a point of the chart is.
    pub(super) fn at(&self, x: f64, y: f64) -> (f64, f64) {
        let share = |value: f64, (low, high): (f64, f64)| match high > low {
            true => (value - low) / (high - low),
            false => 0.5,
        };
        let down = self.corner.1 + (1.0 - share(y, self.y)) * self.size.1;
        (self.corner.0 + share(x, self.x) * self.size.0, down)
    }
}

/// Round numbers between two, about four of them.
pub(super) fn ticks(low: f64, high: f64) -> Vec<f64> {
    if high - low <= 0.0 || !(high - low).is_finite() {
        return vec![low];
    }
    let rough = (high - low) / 4.0;
    let power = 10.0_f64.powf(rough.log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power);
    let step = steps.into_iter().find(|step| *step >= rough).unwrap_or(rough);
    let first = (low / step).ceil() as i64;
    (first..).map(|at| at as f64 * step).take_while(|tick| *tick <= high + step * 1e-9).collect()
}

/// A number of a picture: to a tenth of a pixel.
pub(super) fn number(value: f64) -> String {
    let tenths = (value * 10.0).round() / 10.0;
    // Also of a negative zero.
    format!("{}", tenths + 0.0)
}

/// A number of an axis, to four digits.
pub(super) fn value(value: f64) -> String {
    if value == 0.0 {
        return "0".into();
    }
    let digits = (3.0 - value.abs().log10().floor()).clamp(0.0, 9.0);
    let text = format!("{value:.0$}", digits as usize);
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

/// A name that is not too long.
pub(super) fn short(name: &str) -> String {
    match name.chars().count() > MAX_NAME {
        true => name.chars().take(MAX_NAME - 1).chain(['…']).collect(),
        false => name.to_owned(),
    }
}

/// Width of a text in pixels, about.
pub(super) fn width_of(text: &str) -> f64 {
    text.chars().count() as f64 * CHARACTER
}

fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '&' => escaped.push_str("&amp;"),
            '"' => escaped.push_str("&quot;"),
            // XML has no other control characters.
            other if other.is_control() && other != '\n' && other != '\t' => {}
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_text_and_never_markup() {
        let mut canvas = Canvas::default();
        canvas.text((0.0, 1.0), ("soft", "start"), "<script>\"&\u{1}");
        let figure = Figure {
            name: "map",
            caption: "</figure>".into(),
            label: "\"><script>".into(),
            size: (10.0, 20.0),
            canvas,
        };
        for text in [figure.as_file(), figure.within_page()] {
            assert!(!text.contains("<script>") && text.contains("&lt;script&gt;&quot;&amp;<"));
        }
        assert!(figure.within_page().contains("<figcaption>&lt;/figure&gt;</figcaption>"));
    }

    #[test]
    fn numbers_and_ticks_are_short() {
        let shown = [0.0, -0.01, 12.345, 100.0].map(number);
        assert_eq!(shown, ["0", "0", "12.3", "100"]);
        assert_eq!(
            [0.0, 0.12345, 12.0, 1234.6, -3.0].map(value),
            ["0", "0.1235", "12", "1235", "-3"]
        );
        assert_eq!(ticks(0.0, 100.0), [0.0, 50.0, 100.0]);
        assert_eq!(ticks(0.3, 1.1), [0.4, 0.6000000000000001, 0.8, 1.0]);
        assert_eq!(ticks(2.0, 2.0), [2.0]);
    }

    #[test]
    fn a_frame_turns_the_vertical_axis_up() {
        let frame =
            Frame { corner: (10.0, 20.0), size: (100.0, 50.0), x: (0.0, 4.0), y: (-1.0, 1.0) };
        assert_eq!([frame.at(0.0, -1.0), frame.at(4.0, 1.0)], [(10.0, 70.0), (110.0, 20.0)]);
    }
}
