//! Figures of an evaluation or of several trainings: bars, and points joined by lines, over one horizontal axis.

use std::fmt::Write as _;
use std::ops::Range;

use plotters::backend::SVGBackend;
use plotters::chart::{ChartBuilder, ChartContext};
use plotters::coord::cartesian::Cartesian2d;
use plotters::coord::types::RangedCoordf64;
use plotters::drawing::IntoDrawingArea;
use plotters::element::{Circle, PathElement, Rectangle};
use plotters::style::{Color, TRANSPARENT};

use super::chart::{Area, Mark, heading, legend_row, say, short_axis, text};
use super::document::Drawing;
use super::document::{SCALE, escape};
use super::error::PlotError;
use super::number::short;
use super::palette::Ink;
use super::size::Size;

type FigureAxes<'a> = ChartContext<'a, SVGBackend<'a>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

const UNIT: i32 = SCALE as i32;
/// Inks of bars and series, in their order; a figure with more of them begins anew.
const INKS: [Ink; 5] = [Ink::First, Ink::Alert, Ink::Second, Ink::Text, Ink::Label];

/// A figure.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Figure {
    /// What it shows.
    pub title: String,
    /// More about it, in a sentence.
    pub note: String,
    /// Name of the horizontal axis.
    pub axis: String,
    /// Words at 0, 1, 2, ... of the horizontal axis; without any it has its numbers.
    pub labels: Vec<String>,
    /// One above the other.
    pub panels: Vec<FigurePanel>,
    /// What to say where there is nothing to draw.
    pub empty: String,
}

/// What is drawn over one vertical axis.
#[derive(Debug, Clone, PartialEq)]
pub struct FigurePanel {
    /// Name of the vertical axis.
    pub axis: String,
    /// Bars.
    pub bars: Vec<Bars>,
    /// Points joined by lines.
    pub series: Vec<Series>,
    /// A line that is drawn dashed, with its name.
    pub reference: Option<(String, [(f64, f64); 2])>,
    /// Values that the vertical axis shows whatever the data.
    pub shown: Vec<f64>,
    /// Bounds that no value can pass.
    pub bounds: (f64, f64),
}

impl Default for FigurePanel {
    fn default() -> Self {
        Self {
            axis: String::new(),
            bars: Vec::new(),
            series: Vec::new(),
            reference: None,
            shown: Vec::new(),
            bounds: (f64::NEG_INFINITY, f64::INFINITY),
        }
    }
}

/// Bars of one name, each from, to, and as high as.
#[derive(Debug, Clone, PartialEq)]
pub struct Bars {
    /// Name for the legend.
    pub name: String,
    /// The bars.
    pub bars: Vec<(f64, f64, f64)>,
}

/// Points of one name, from the left.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// Name for the legend.
    pub name: String,
    /// The points.
    pub points: Vec<FigurePoint>,
}

/// A point.
#[derive(Debug, Clone, Copy, PartialEq)]
#[allow(missing_docs)]
pub struct FigurePoint {
    pub x: f64,
    pub y: f64,
    /// Where it may lie.
    pub interval: Option<(f64, f64)>,
}

impl Figure {
    /// Draws the figure with its title.
    ///
    /// # Errors
    /// Where plotters cannot draw.
    pub fn draw(&self, size: Size) -> Result<Drawing, PlotError> {
        let mut written = String::new();
        let mut over = String::new();
        {
            let extent = (size.width * SCALE, size.height * SCALE);
            let root = SVGBackend::with_string(&mut written, extent).into_drawing_area();
            let area = heading(&root, Some(&self.title))?;
            match self.horizontal() {
                None => say(&area, &self.empty)?,
                Some(x) => {
                    let count = self.panels.len();
                    for (number, (panel, area)) in
                        self.panels.iter().zip(area.split_evenly((count, 1))).enumerate()
                    {
                        self.panel(panel, &area, &x, number + 1 == count, &mut over)?;
                    }
                }
            }
            root.present()?;
        }
        Drawing::new(self.title.clone(), self.describe(), size, &written, &over)
    }

    /// The horizontal axis; `None` where there is nothing to draw.
    fn horizontal(&self) -> Option<Range<f64>> {
        let bars = self.panels.iter().flat_map(|panel| &panel.bars).flat_map(|bars| &bars.bars);
        let bars = bars.flat_map(|&(from, to, _)| [from, to]);
        let points = self.panels.iter().flat_map(|panel| &panel.series);
        let points = points.flat_map(|series| &series.points).map(|point| point.x);
        let (low, high) = bars.chain(points).fold(NOTHING, widened);
        if low > high {
            return None;
        }
        let lines = self.panels.iter().flat_map(|panel| &panel.reference);
        let lines = lines.flat_map(|(_, line)| line).map(|point| point.0);
        let (low, high) = lines.fold((low, high), widened);
        Some(match self.labels.len() {
            0 if high > low => low..high,
            0 => low - 0.5..low + 0.5,
            count => -0.5..count as f64 - 0.5,
        })
    }

    fn panel(
        &self,
        panel: &FigurePanel,
        area: &Area<'_>,
        x: &Range<f64>,
        last: bool,
        over: &mut String,
    ) -> Result<(), PlotError> {
        let (legend, plot) = area.split_vertically(18 * UNIT);
        legend_row(&legend, &panel.legend())?;
        let y = panel.vertical();
        let (x_label, y_label) = (short_axis(x), short_axis(&y));
        let x_label = |value: &f64| match self.labels.as_slice() {
            [] => x_label(*value),
            labels => {
                let is_whole = (value - value.round()).abs() < 1e-6 && *value > -0.5;
                let label = is_whole.then(|| labels.get(value.round() as usize)).flatten();
                label.cloned().unwrap_or_default()
            }
        };
        let mut axes = ChartBuilder::on(&plot)
            .margin_left(8 * UNIT)
            .margin_right(14 * UNIT)
            .margin_top(4 * UNIT)
            .x_label_area_size(if last { 34 * UNIT } else { 6 * UNIT })
            .y_label_area_size(54 * UNIT)
            .build_cartesian_2d(x.clone(), y.clone())?;
        axes.configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(Ink::Grid.color().stroke_width(SCALE))
            .axis_style(Ink::Grid.color().stroke_width(SCALE))
            .set_all_tick_mark_size(3 * UNIT)
            .x_labels(if last { self.labels.len().max(6) + 1 } else { 0 })
            .y_labels(if self.panels.len() > 1 { 4 } else { 5 })
            .x_label_formatter(&x_label)
            .y_label_formatter(&|value| y_label(*value))
            .label_style(text(11, Ink::Label))
            .x_desc(if last { self.axis.as_str() } else { "" })
            .y_desc(panel.axis.as_str())
            .axis_desc_style(text(11, Ink::Label))
            .draw()?;
        for (bars, ink) in panel.bars.iter().zip(INKS.into_iter().cycle()) {
            let style = ink.color().mix(0.75).filled();
            axes.draw_series(bars.bars.iter().map(|&(from, to, height)| {
                let gap = (to - from) * 0.08;
                Rectangle::new([(from + gap, 0.0), (to - gap, height)], style)
            }))?;
        }
        if let Some((_, line)) = &panel.reference {
            let style = Ink::Null.color().stroke_width(3 * SCALE / 2);
            axes.draw_series([PathElement::new(line.to_vec(), style)])?;
        }
        for (series, ink) in panel.series.iter().zip(INKS.into_iter().cycle()) {
            draw_series(&mut axes, series, ink)?;
            for point in &series.points {
                let (left, top) = axes.backend_coord(&(point.x, point.y));
                let _ = writeln!(
                    over,
                    "<circle class=\"hit\" fill=\"none\" cx=\"{left}\" cy=\"{top}\" r=\"{}\"><title>{}</title></circle>",
                    9 * UNIT,
                    escape(&format!("{}: {}", series.name, point.words())),
                );
            }
        }
        Ok(())
    }

    /// The numbers in words.
    fn describe(&self) -> String {
        let mut words = self.note.clone();
        if self.horizontal().is_none() {
            let _ = write!(words, " {}", self.empty);
        }
        for panel in &self.panels {
            for bars in &panel.bars {
                let total: f64 = bars.bars.iter().map(|&(.., height)| height).sum();
                let (count, total) = (bars.bars.len(), short(total));
                let _ = write!(words, " {}: {count} bars of {total} in all.", bars.name);
            }
            for series in &panel.series {
                let points: Vec<String> = series
                    .points
                    .iter()
                    .map(|point| format!("{} at {}", point.words(), self.place(point.x)))
                    .collect();
                let _ = write!(words, " {}, {}: {}.", panel.axis, series.name, points.join(", "));
            }
        }
        words.trim_start().to_owned()
    }

    fn place(&self, x: f64) -> String {
        // Points of a label may stand a little beside it.
        self.labels.get(x.round().max(0.0) as usize).cloned().unwrap_or_else(|| short(x))
    }
}

fn draw_series(axes: &mut FigureAxes<'_>, series: &Series, ink: Ink) -> Result<(), PlotError> {
    let style = ink.color().stroke_width(2 * SCALE);
    let thin = ink.color().stroke_width(SCALE);
    let intervals = series.points.iter().filter_map(|point| Some((point.x, point.interval?)));
    axes.draw_series(
        intervals.map(|(x, (low, high))| PathElement::new(vec![(x, low), (x, high)], thin)),
    )?;
    let points: Vec<(f64, f64)> = series.points.iter().map(|point| (point.x, point.y)).collect();
    axes.draw_series([PathElement::new(points.clone(), style)])?;
    axes.draw_series(points.into_iter().map(|at| Circle::new(at, 3 * UNIT, ink.color().filled())))?;
    Ok(())
}

impl FigurePanel {
    fn legend(&self) -> Vec<(String, Ink, Mark)> {
        let inks = || INKS.into_iter().cycle();
        let bars = self.bars.iter().zip(inks());
        let bars = bars.map(|(bars, ink)| (bars.name.clone(), ink, Mark::Band(0.5)));
        let series = self.series.iter().zip(inks());
        let series = series.map(|(series, ink)| (series.name.clone(), ink, Mark::Line));
        let line = self.reference.iter().map(|(name, _)| (name.clone(), Ink::Null, Mark::Line));
        bars.chain(series).chain(line).collect()
    }

    /// The vertical axis: all data, and room around it. Bars stand on 0.
    fn vertical(&self) -> Range<f64> {
        let bars = self.bars.iter().flat_map(|bars| &bars.bars);
        let points = self.series.iter().flat_map(|series| &series.points);
        let points = points.flat_map(|point| {
            let (low, high) = point.interval.unwrap_or((point.y, point.y));
            [low, high]
        });
        let line = self.reference.iter().flat_map(|(_, line)| line).map(|point| point.1);
        let (low, high) = bars
            .flat_map(|&(.., height)| [0.0, height])
            .chain(points)
            .chain(line)
            .chain(self.shown.iter().copied())
            .fold(NOTHING, widened);
        if low > high {
            return 0.0..1.0;
        }
        let room = if high > low { (high - low) * 0.08 } else { (high.abs() * 0.1).max(0.5) };
        let (least, most) = self.bounds;
        (low - room).max(least)..(high + room).min(most)
    }
}

impl FigurePoint {
    fn words(&self) -> String {
        let y = short(self.y);
        match self.interval {
            None => y,
            Some((low, high)) => format!("{y} ({} to {})", short(low), short(high)),
        }
    }
}

/// The range of no value.
const NOTHING: (f64, f64) = (f64::INFINITY, f64::NEG_INFINITY);

fn widened((low, high): (f64, f64), value: f64) -> (f64, f64) {
    (low.min(value), high.max(value))
}
