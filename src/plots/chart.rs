//! Curves over the evaluations of a run: one or two panels with one horizontal axis.

use std::fmt::Write as _;
use std::ops::Range;

use plotters::backend::SVGBackend;
use plotters::chart::{ChartBuilder, ChartContext};
use plotters::coord::Shift;
use plotters::coord::cartesian::Cartesian2d;
use plotters::coord::types::RangedCoordf64;
use plotters::drawing::{DrawingArea, IntoDrawingArea};
use plotters::element::{Circle, PathElement, Polygon, Rectangle, Text, TriangleMarker};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color, IntoFont, TRANSPARENT, TextStyle};

use super::document::Drawing;
use super::document::{SCALE, escape};
use super::error::PlotError;
use super::number::short;
use super::palette::Ink;
use super::size::Size;

pub(super) type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Axes<'a> = ChartContext<'a, SVGBackend<'a>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

const UNIT: i32 = SCALE as i32;
/// Points of a curve that are drawn; of more, only the extremes of neighbours are.
const MAX_POINTS: usize = 480;
/// Evaluations that answer the pointer with their numbers; of more, every second, third, ... one does.
const MAX_HITS: usize = 120;
/// Opacity of [`Stroke::Pale`].
const PALE: f64 = 0.4;
const ALERT_SIZE: i32 = 6 * UNIT;

/// One statistic.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) name: String,
    pub(super) ink: Ink,
    /// One an evaluation; absent where it could not be computed.
    pub(super) values: Vec<Option<f64>>,
    pub(super) stroke: Stroke,
}

/// How a line is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Stroke {
    /// A gap is a gap.
    #[default]
    Plain,
    /// The same, thin and pale: what another line is the mean of.
    Pale,
    /// Over gaps: known at some places only.
    Sparse,
}

/// The area between two statistics.
#[derive(Debug)]
pub(super) struct Band {
    pub(super) name: String,
    pub(super) ink: Ink,
    pub(super) opacity: f64,
    pub(super) low: Vec<Option<f64>>,
    pub(super) high: Vec<Option<f64>>,
    pub(super) stroke: Stroke,
}

/// Statistics of one kind.
#[derive(Debug, Default)]
pub(super) struct CurvePanel {
    pub(super) lines: Vec<Line>,
    pub(super) bands: Vec<Band>,
    /// A level that means something.
    pub(super) level: Option<f64>,
    /// Values that the vertical axis shows whatever the data.
    pub(super) shown: Vec<f64>,
    /// Bounds that the statistic cannot pass.
    pub(super) bounds: Option<(f64, f64)>,
}

/// What lies over all panels.
#[derive(Debug)]
pub(super) struct Chart {
    pub(super) title: String,
    pub(super) description: String,
    /// Of the horizontal axis.
    pub(super) axis: &'static str,
    /// Where each evaluation lies on it, ascending.
    pub(super) x: Vec<f64>,
    /// Whether an alert was active at each evaluation.
    pub(super) alerts: Vec<bool>,
    /// The evaluation that first said stop.
    pub(super) stop: Option<usize>,
    pub(super) panels: Vec<CurvePanel>,
    /// What to say where there is nothing to draw.
    pub(super) empty: String,
}

impl Chart {
    /// Draws the chart, with its title in it or without.
    pub(super) fn draw(self, size: Size, titled: bool) -> Result<Drawing, PlotError> {
        let mut written = String::new();
        let mut over = String::new();
        {
            let extent = (size.width * SCALE, size.height * SCALE);
            let root = SVGBackend::with_string(&mut written, extent).into_drawing_area();
            let area = heading(&root, titled.then_some(self.title.as_str()))?;
            if self.x.is_empty() || self.panels.iter().all(CurvePanel::is_empty) {
                say(&area, &self.empty)?;
            } else {
                let count = self.panels.len();
                for (number, (panel, area)) in
                    self.panels.iter().zip(area.split_evenly((count, 1))).enumerate()
                {
                    self.panel(panel, &area, number + 1 == count, &mut over)?;
                }
            }
            root.present()?;
        }
        Drawing::new(self.title, self.description, size, &written, &over)
    }

    fn panel(
        &self,
        panel: &CurvePanel,
        area: &Area<'_>,
        last: bool,
        over: &mut String,
    ) -> Result<(), PlotError> {
        let (legend, plot) = area.split_vertically(18 * UNIT);
        legend_row(&legend, &panel.legend(self.alerts.contains(&true)))?;
        let y = panel.range();
        let x = self.horizontal();
        let (x_label, y_label) = (short_axis(&x), short_axis(&y));
        let mut axes = ChartBuilder::on(&plot)
            .margin_right(12 * UNIT)
            .margin_top(4 * UNIT)
            .x_label_area_size(if last { 34 * UNIT } else { 6 * UNIT })
            .y_label_area_size(44 * UNIT)
            .build_cartesian_2d(x.clone(), y.clone())?;
        let width = plot.dim_in_pixel().0 / SCALE;
        axes.configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(Ink::Grid.color().stroke_width(SCALE))
            .axis_style(Ink::Grid.color().stroke_width(SCALE))
            .set_all_tick_mark_size(3 * UNIT)
            .x_labels(if last { (width / 64).clamp(2, 10) as usize } else { 0 })
            .y_labels(if self.panels.len() > 1 { 3 } else { 5 })
            // Steps are whole.
            .x_label_formatter(&|value| {
                if (value - value.round()).abs() < 1e-6 { x_label(*value) } else { String::new() }
            })
            .y_label_formatter(&|value| y_label(*value))
            .label_style(text(11, Ink::Label))
            .x_desc(if last { self.axis } else { "" })
            .axis_desc_style(text(11, Ink::Label))
            .draw()?;
        self.alert_spans(&mut axes, &y)?;
        for band in &panel.bands {
            self.band(&mut axes, band)?;
        }
        if let Some(level) = panel.level {
            let line = PathElement::new(
                vec![(x.start, level), (x.end, level)],
                Ink::Label.color().stroke_width(SCALE),
            );
            axes.draw_series([line])?;
        }
        for line in &panel.lines {
            self.line(&mut axes, line)?;
        }
        if let Some(line) = panel.lines.first() {
            self.alert_points(&mut axes, line)?;
        }
        self.stop_line(&mut axes, &y, last)?;
        self.hits(&axes, panel, &y, over);
        Ok(())
    }

    fn horizontal(&self) -> Range<f64> {
        let (first, last) = (self.x.first().copied(), self.x.last().copied());
        let (first, last) = (first.unwrap_or(0.0), last.unwrap_or(1.0));
        if last > first { first..last } else { first - 1.0..first + 1.0 }
    }

    /// Stretches of consecutive evaluations with an alert.
    fn spans(&self) -> Vec<(usize, usize)> {
        let mut spans: Vec<(usize, usize)> = Vec::new();
        for at in (0..self.alerts.len()).filter(|&at| self.alerts[at]) {
            match spans.last_mut() {
                Some((_, end)) if *end + 1 == at => *end = at,
                _ => spans.push((at, at)),
            }
        }
        spans
    }

    fn alert_spans(&self, axes: &mut Axes<'_>, y: &Range<f64>) -> Result<(), PlotError> {
        let x = self.horizontal();
        let spans = self.spans().into_iter().map(|(from, to)| {
            // From the middle between the evaluations around, so that a single one has a width too.
            let before =
                from.checked_sub(1).map_or(x.start, |at| f64::midpoint(self.x[at], self.x[from]));
            let after = self.x.get(to + 1).map_or(x.end, |&next| f64::midpoint(self.x[to], next));
            Rectangle::new(
                [(before, y.start), (after, y.end)],
                Ink::Alert.color().mix(0.13).filled(),
            )
        });
        axes.draw_series(spans)?;
        Ok(())
    }

    fn alert_points(&self, axes: &mut Axes<'_>, line: &Line) -> Result<(), PlotError> {
        // Of a long stretch only its ends: they tell when.
        let ends = self.spans().into_iter().flat_map(|(from, to)| {
            if self.x.len() <= MAX_HITS { (from..=to).collect() } else { vec![from, to] }
        });
        let points = ends.filter_map(|at| Some((self.x[at], line.values[at]?)));
        axes.draw_series(
            points.map(|at| TriangleMarker::new(at, ALERT_SIZE, Ink::Alert.color().filled())),
        )?;
        Ok(())
    }

    fn stop_line(&self, axes: &mut Axes<'_>, y: &Range<f64>, label: bool) -> Result<(), PlotError> {
        let Some(stop) = self.stop else { return Ok(()) };
        let at = self.x[stop];
        let style = Ink::Text.color().stroke_width(SCALE * 3 / 2);
        axes.draw_series([PathElement::new(vec![(at, y.start), (at, y.end)], style)])?;
        if label {
            let x = self.horizontal();
            let left = at > f64::midpoint(x.start, x.end);
            let (side, gap) = if left { (HPos::Right, -4 * UNIT) } else { (HPos::Left, 4 * UNIT) };
            let style = text(11, Ink::Text).pos(Pos::new(side, VPos::Top));
            let words = plotters::element::EmptyElement::at((at, y.end))
                + Text::new("early stop", (gap, 2 * UNIT), style);
            axes.draw_series([words])?;
        }
        Ok(())
    }

    fn band(&self, axes: &mut Axes<'_>, band: &Band) -> Result<(), PlotError> {
        let both: Vec<Option<f64>> =
            band.low.iter().zip(&band.high).map(|(low, high)| low.and(*high)).collect();
        for part in parts(&both, band.stroke) {
            let low = thinned(&self.x, &band.low, part.clone());
            let high = thinned(&self.x, &band.high, part);
            let outline: Vec<_> = high.into_iter().chain(low.into_iter().rev()).collect();
            let color = band.ink.color().mix(band.opacity);
            axes.draw_series([Polygon::new(outline, color.filled())])?;
        }
        Ok(())
    }

    fn line(&self, axes: &mut Axes<'_>, line: &Line) -> Result<(), PlotError> {
        let pale = line.stroke == Stroke::Pale;
        let color = line.ink.color().mix(if pale { PALE } else { 1.0 });
        let width = match line.ink {
            _ if pale => SCALE,
            Ink::Null => 3 * SCALE / 2,
            _ => 2 * SCALE,
        };
        for part in parts(&line.values, line.stroke) {
            let points = thinned(&self.x, &line.values, part);
            // A curve of few points shows them; a point between gaps shows itself.
            let few = points.len() <= 40 && (self.x.len() <= 40 || line.stroke == Stroke::Sparse);
            let dots = if line.ink != Ink::Null && few && !pale || points.len() == 1 {
                points.clone()
            } else {
                Vec::new()
            };
            axes.draw_series([PathElement::new(points, color.stroke_width(width))])?;
            axes.draw_series(
                dots.into_iter().map(|at| Circle::new(at, 5 * UNIT / 2, color.filled())),
            )?;
        }
        Ok(())
    }

    /// Invisible strips over the panel that tell each evaluation's numbers where the pointer rests.
    fn hits(&self, axes: &Axes<'_>, panel: &CurvePanel, y: &Range<f64>, over: &mut String) {
        let count = self.x.len();
        let range = self.horizontal();
        let stride = count.div_ceil(MAX_HITS).max(1);
        for at in (0..count).rev().step_by(stride) {
            let before = at
                .checked_sub(stride)
                .map_or(range.start, |b| f64::midpoint(self.x[b], self.x[at]));
            let after =
                self.x.get(at + stride).map_or(range.end, |&next| f64::midpoint(self.x[at], next));
            let (left, top) = axes.backend_coord(&(before, y.end));
            let (right, bottom) = axes.backend_coord(&(after, y.start));
            let mut words = format!("{} {}", self.axis, self.x[at]);
            for line in &panel.lines {
                if let Some(value) = line.values[at] {
                    let _ = write!(words, "; {} {}", line.name, short(value));
                }
            }
            for band in &panel.bands {
                if let (Some(low), Some(high)) = (band.low[at], band.high[at]) {
                    let _ = write!(words, "; {} {} to {}", band.name, short(low), short(high));
                }
            }
            if self.alerts[at] {
                words.push_str("; alert");
            }
            let _ = writeln!(
                over,
                "<rect class=\"hit\" fill=\"none\" x=\"{left}\" y=\"{top}\" width=\"{}\" height=\"{}\"><title>{}</title></rect>",
                (right - left).max(1),
                (bottom - top).max(1),
                escape(&words),
            );
        }
    }
}

impl CurvePanel {
    fn values(&self) -> impl Iterator<Item = f64> + '_ {
        let lines = self.lines.iter().map(|line| &line.values);
        let bands = self.bands.iter().flat_map(|band| [&band.low, &band.high]);
        lines.chain(bands).flatten().copied().flatten()
    }

    fn is_empty(&self) -> bool {
        self.values().next().is_none()
    }

    /// The vertical axis: all data, and room around it.
    fn range(&self) -> Range<f64> {
        let values = || self.values().chain(self.shown.iter().copied()).chain(self.level);
        let low = values().fold(f64::INFINITY, f64::min);
        let high = values().fold(f64::NEG_INFINITY, f64::max);
        if !(low.is_finite() && high.is_finite()) {
            return 0.0..1.0;
        }
        let room = if high > low { (high - low) * 0.08 } else { (high.abs() * 0.1).max(0.5) };
        let (least, most) = self.bounds.unwrap_or((f64::NEG_INFINITY, f64::INFINITY));
        let range = (low - room).max(least)..(high + room).min(most);
        if range.end > range.start { range } else { low - 0.5..low + 0.5 }
    }

    fn legend(&self, alerts: bool) -> Vec<(String, Ink, Mark)> {
        let lines = self.lines.iter().map(|line| {
            let mark = if line.stroke == Stroke::Pale { Mark::Pale } else { Mark::Line };
            (line.name.clone(), line.ink, mark)
        });
        let bands =
            self.bands.iter().map(|band| (band.name.clone(), band.ink, Mark::Band(band.opacity)));
        let alert = alerts.then(|| ("alert".to_owned(), Ink::Alert, Mark::Triangle(ALERT_SIZE)));
        lines.chain(bands).chain(alert).collect()
    }
}

/// Sign of a legend.
#[derive(Debug, Clone, Copy)]
pub(super) enum Mark {
    Line,
    /// A pale line.
    Pale,
    Band(f64),
    /// Of that size.
    Triangle(i32),
    Circle,
}

/// Names beside their signs, from the left.
pub(super) fn legend_row(
    area: &Area<'_>,
    entries: &[(String, Ink, Mark)],
) -> Result<(), PlotError> {
    let (mut x, y) = (8 * UNIT, 10 * UNIT);
    for (name, ink, mark) in entries {
        let color = ink.color();
        let middle = x + 9 * UNIT;
        match mark {
            Mark::Line => area.draw(&PathElement::new(
                vec![(x, y), (x + 18 * UNIT, y)],
                color.stroke_width(2 * SCALE),
            ))?,
            Mark::Pale => area.draw(&PathElement::new(
                vec![(x, y), (x + 18 * UNIT, y)],
                color.mix(PALE).stroke_width(SCALE),
            ))?,
            Mark::Band(opacity) => area.draw(&Rectangle::new(
                [(x, y - 4 * UNIT), (x + 18 * UNIT, y + 4 * UNIT)],
                color.mix((opacity * 1.5).min(1.0)).filled(),
            ))?,
            Mark::Triangle(size) => {
                area.draw(&TriangleMarker::new((middle, y), *size, color.filled()))?
            }
            Mark::Circle => area.draw(&Circle::new((middle, y), 4 * UNIT, color.filled()))?,
        }
        let style = text(11, Ink::Label).pos(Pos::new(HPos::Left, VPos::Center));
        area.draw(&Text::new(name.clone(), (x + 22 * UNIT, y), style))?;
        // About the width of the text: the reader's font is not known here.
        x += (34.0 + 5.9 * name.chars().count() as f64) as i32 * UNIT;
    }
    Ok(())
}

/// Draws the title, where there is to be one; answers the area below.
pub(super) fn heading<'a>(root: &Area<'a>, title: Option<&str>) -> Result<Area<'a>, PlotError> {
    let Some(title) = title else { return Ok(root.clone()) };
    let (top, rest) = root.split_vertically(26 * UNIT);
    let style = text(14, Ink::Text).pos(Pos::new(HPos::Left, VPos::Top));
    // plotters writes what it is given into XML as it is, but for markup: control characters must not get there.
    let title: String =
        title.chars().map(|c| if c.is_control() { '\u{FFFD}' } else { c }).collect();
    top.draw(&Text::new(title, (8 * UNIT, 8 * UNIT), style))?;
    Ok(rest)
}

/// Writes words into the middle of an area, broken into lines.
pub(super) fn say(area: &Area<'_>, words: &str) -> Result<(), PlotError> {
    let (width, height) = area.dim_in_pixel();
    let fits = (width / SCALE / 7).max(12) as usize;
    let mut lines = vec![String::new()];
    for word in words.split_whitespace() {
        let line = lines.last_mut().filter(|line| {
            line.is_empty() || line.chars().count() + 1 + word.chars().count() <= fits
        });
        match line {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) => line.extend([" ", word]),
            None => lines.push(word.to_owned()),
        }
    }
    let style = text(13, Ink::Label).pos(Pos::new(HPos::Center, VPos::Center));
    let (middle, step) = ((width / 2) as i32, 18 * UNIT);
    let top = (height / 2) as i32 - step * (lines.len() as i32 - 1) / 2;
    for (number, line) in lines.into_iter().enumerate() {
        area.draw(&Text::new(line, (middle, top + step * number as i32), style.clone()))?;
    }
    Ok(())
}

/// A text style by its size in pixels. plotters writes sizes divided by 1.24.
pub(super) fn text(pixels: u32, ink: Ink) -> TextStyle<'static> {
    let size = f64::from(pixels * SCALE) * 1.24;
    let style = TextStyle::from(("sans-serif", size).into_font());
    TextStyle { color: ink.color().to_backend_color(), ..style }
}

/// The stretches that are drawn as one: those without a gap, but of a sparse line all of it.
fn parts(values: &[Option<f64>], stroke: Stroke) -> Vec<Range<usize>> {
    if stroke == Stroke::Sparse {
        return std::iter::once(0..values.len()).collect();
    }
    let mut parts: Vec<Range<usize>> = Vec::new();
    for at in (0..values.len()).filter(|&at| values[at].is_some()) {
        match parts.last_mut() {
            Some(part) if part.end == at => part.end += 1,
            _ => parts.push(at..at + 1),
        }
    }
    parts
}

/// The points of a stretch; of more than are worth drawing, the least and the greatest of neighbours.
fn thinned(x: &[f64], values: &[Option<f64>], part: Range<usize>) -> Vec<(f64, f64)> {
    let all: Vec<_> = part.filter_map(|at| Some((x[at], values[at]?))).collect();
    if all.len() <= MAX_POINTS {
        return all;
    }
    let group = all.len().div_ceil(MAX_POINTS / 2);
    let mut points = Vec::with_capacity(MAX_POINTS + 2);
    points.extend(all.first());
    for group in all.chunks(group) {
        let least = group.iter().min_by(|a, b| a.1.total_cmp(&b.1));
        let most = group.iter().max_by(|a, b| a.1.total_cmp(&b.1));
        let mut pair: Vec<_> = least.into_iter().chain(most).copied().collect();
        pair.sort_by(|a, b| a.0.total_cmp(&b.0));
        points.extend(pair);
    }
    points.extend(all.last());
    points
}

/// How an axis of this range writes its numbers: as few decimals as tell its marks apart.
pub(super) fn short_axis(range: &Range<f64>) -> impl Fn(f64) -> String + use<> {
    let span = range.end - range.start;
    let size = range.start.abs().max(range.end.abs());
    let (divisor, unit) = match size {
        size if size >= 1e6 => (1e6, "M"),
        size if size >= 1e4 => (1e3, "k"),
        _ => (1.0, ""),
    };
    let decimals = (1.0 - (span / divisor).log10().floor()).clamp(0.0, 8.0) as usize;
    move |value| {
        let text = format!("{:.decimals$}", value / divisor);
        // Marks are multiples of a step, and the one at 0 may miss it.
        if text.trim_matches(['-', '0', '.']).is_empty() {
            return "0".to_owned();
        }
        let text = if text.contains('.') {
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        } else {
            text
        };
        format!("{}{unit}", text.replacen('-', "\u{2212}", 1))
    }
}
