//! Draws lines over a logarithmic axis as SVG.
use std::fmt::Write as _;

/// One line. Points are (x, y), x above 0.
pub(super) struct Series {
    pub(super) name: String,
    pub(super) points: Vec<(f64, f64)>,
}

const COLOURS: [&str; 6] = ["#1f6feb", "#d1242f", "#1a7f37", "#9a6700", "#8250df", "#57606a"];
const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 420.0;
/// Left, top, right and bottom of the field.
const FIELD: (f64, f64, f64, f64) = (60.0, 40.0, 740.0, 290.0);
const STEPS: u32 = 5;

/// The picture, as the text of an SVG file.
pub(super) fn draw(title: &str, x_title: &str, series: &[Series]) -> String {
    let points = || series.iter().flat_map(|s| &s.points);
    let least = points().map(|p| p.0).fold(f64::INFINITY, f64::min).log10();
    let most = points().map(|p| p.0).fold(1.0, f64::max).log10();
    let top = round_up(points().map(|p| p.1).fold(0.0, f64::max));
    let (left, upper, right, lower) = FIELD;
    let x = |value: f64| left + (value.log10() - least) / (most - least).max(f64::EPSILON) * (right - left);
    let y = |value: f64| lower - value / top * (lower - upper);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"{left}\" y=\"24\" font-size=\"15\">{title}</text>\n"
    );
    // Writing to a String cannot fail.
    for step in 0..=STEPS {
        let value = top * f64::from(step) / f64::from(STEPS);
        let at = y(value);
        let _ = writeln!(out, "<path d=\"M{left} {at:.1}H{right}\" stroke=\"#d0d7de\"/>");
        let _ =
            writeln!(out, "<text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{value:.1}</text>", left - 6.0, at + 4.0);
    }
    let mut marks: Vec<f64> = points().map(|p| p.0).collect();
    marks.sort_by(f64::total_cmp);
    marks.dedup();
    for mark in marks {
        let at = x(mark);
        let _ = writeln!(out, "<text x=\"{at:.1}\" y=\"{:.0}\" text-anchor=\"middle\">{mark}</text>", lower + 18.0);
    }
    let middle = f64::midpoint(left, right);
    let _ = writeln!(out, "<text x=\"{middle}\" y=\"{:.0}\" text-anchor=\"middle\">{x_title}</text>", lower + 36.0);
    for (i, line) in series.iter().enumerate() {
        let colour = COLOURS[i % COLOURS.len()];
        let path: Vec<_> = line.points.iter().map(|p| format!("{:.1},{:.1}", x(p.0), y(p.1))).collect();
        let _ = writeln!(
            out,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            path.join(" ")
        );
        for point in &line.points {
            let _ =
                writeln!(out, "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{colour}\"/>", x(point.0), y(point.1));
        }
        let at = lower + 58.0 + 17.0 * i as f64;
        let _ = writeln!(out, "<text x=\"{left}\" y=\"{at:.0}\" fill=\"{colour}\">{}</text>", line.name);
    }
    out + "</svg>\n"
}

/// The next of 1, 2, 5, 10, 20, 50, ... that is not below.
fn round_up(value: f64) -> f64 {
    let power = 10_f64.powf(value.max(0.001).log10().floor());
    [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|m| *m >= value).unwrap_or(power * 10.0)
}

#[test]
fn scales_end_in_round_figures() {
    for (value, expected) in [(0.7, 1.0), (1.2, 2.0), (37.0, 50.0), (51.0, 100.0), (100.0, 100.0)] {
        assert!((round_up(value) - expected).abs() < 1e-9, "{value}");
    }
}
