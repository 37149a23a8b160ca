//! A curve as small as a word, for tables.

use std::fmt::Write as _;

use super::palette::Ink;

const WIDTH: f64 = 120.0;
const HEIGHT: f64 = 28.0;
/// Room for the line's width.
const EDGE: f64 = 3.0;

/// The last values as an SVG element without text, for beside its numbers: it is hidden from screen readers.
/// Empty where fewer than two are known.
pub fn sparkline(values: &[Option<f64>]) -> String {
    let known = || values.iter().enumerate().filter_map(|(at, value)| Some((at as f64, (*value)?)));
    if known().count() < 2 {
        return String::new();
    }
    let low = known().map(|(_, value)| value).fold(f64::INFINITY, f64::min);
    let high = known().map(|(_, value)| value).fold(f64::NEG_INFINITY, f64::max);
    let span = if high > low { high - low } else { 1.0 };
    let across = (WIDTH - 2.0 * EDGE) / (values.len() - 1) as f64;
    let mut points = String::new();
    let mut last = (0.0, 0.0);
    for (at, value) in known() {
        last = (EDGE + at * across, HEIGHT - EDGE - (value - low) / span * (HEIGHT - 2.0 * EDGE));
        // Writing to a string cannot fail.
        let _ = write!(points, "{:.1},{:.1} ", last.0, last.1);
    }
    let color = Ink::First.hexadecimal();
    format!(
        "<svg class=\"plot spark\" width=\"{WIDTH}\" height=\"{HEIGHT}\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" aria-hidden=\"true\">\
         <polyline fill=\"none\" stroke=\"{color}\" stroke-width=\"1.5\" points=\"{points}\"/>\
         <circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"2.5\" fill=\"{color}\"/></svg>",
        last.0, last.1
    )
}
