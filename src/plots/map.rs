//! The latent map: where the policy's answers lie among the SFT model's (figure 7 of the InfoRM paper).

use std::fmt::Write as _;
use std::ops::Range;

use plotters::backend::SVGBackend;
use plotters::chart::ChartBuilder;
use plotters::drawing::IntoDrawingArea;
use plotters::element::{Circle, EmptyElement, Text, TriangleMarker};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color, TRANSPARENT};

use super::chart::{Mark, heading, legend_row, say, text};
use super::document::Drawing;
use super::document::{SCALE, escape};
use super::error::PlotError;
use super::number::short;
use super::palette::Ink;
use super::size::Size;

const UNIT: i32 = SCALE as i32;

/// Two-dimensional points of a window and its baseline.
#[derive(Debug, Clone, Default)]
pub struct LatentMap {
    /// The run, for the title.
    pub run: String,
    /// How the points were made: `PCA` or `t-SNE`.
    pub projection: &'static str,
    /// More about it, in a sentence.
    pub note: String,
    /// SFT answers.
    pub baseline: Vec<[f64; 2]>,
    /// The policy's answers.
    pub policy: Vec<[f64; 2]>,
    /// The policy's most outlying answers, the worst first; they are among `policy` too.
    pub outliers: Vec<MapOutlier>,
    /// Why there is nothing to draw, where there is not.
    pub empty: String,
}

/// A marked point.
#[derive(Debug, Clone)]
pub struct MapOutlier {
    /// Where it lies.
    pub at: [f64; 2],
    /// What to say of it where the pointer rests.
    pub words: String,
}

impl LatentMap {
    /// Draws the map, with its title in it or without.
    ///
    /// # Errors
    /// Where plotters cannot draw.
    pub fn draw(&self, size: Size, titled: bool) -> Result<Drawing, PlotError> {
        let title = format!("Latent map of {}", self.run);
        let mut written = String::new();
        let mut over = String::new();
        {
            let extent = (size.width * SCALE, size.height * SCALE);
            let root = SVGBackend::with_string(&mut written, extent).into_drawing_area();
            let area = heading(&root, titled.then_some(title.as_str()))?;
            if self.baseline.is_empty() && self.policy.is_empty() {
                say(&area, &self.empty)?;
            } else {
                self.points(&area, &mut over)?;
            }
            root.present()?;
        }
        Drawing::new(title, self.description(), size, &written, &over)
    }

    fn points(&self, area: &super::chart::Area<'_>, over: &mut String) -> Result<(), PlotError> {
        let (legend, plot) = area.split_vertically(22 * UNIT);
        let mut entries = vec![
            ("SFT baseline".to_owned(), Ink::First, Mark::Circle),
            ("policy, last window".to_owned(), Ink::Alert, Mark::Triangle(6 * UNIT)),
        ];
        if self.baseline.is_empty() {
            entries.remove(0);
        }
        legend_row(&legend, &entries)?;
        let (x, y) = self.ranges();
        let mut axes = ChartBuilder::on(&plot)
            .margin(10 * UNIT)
            .x_label_area_size(14 * UNIT)
            .y_label_area_size(14 * UNIT)
            .build_cartesian_2d(x, y)?;
        // The directions have no unit that would mean anything: no numbers, only what they are.
        axes.configure_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(Ink::Grid.color().stroke_width(SCALE))
            .axis_style(Ink::Grid.color().stroke_width(SCALE))
            .x_labels(5)
            .y_labels(5)
            .x_label_formatter(&|_| String::new())
            .y_label_formatter(&|_| String::new())
            .x_desc(format!("{} 1", self.projection))
            .y_desc(format!("{} 2", self.projection))
            .axis_desc_style(text(11, Ink::Label))
            .draw()?;
        let (first, alert) = (Ink::First.color(), Ink::Alert.color());
        let dot = |&[x, y]: &[f64; 2]| Circle::new((x, y), 5 * UNIT / 2, first.mix(0.5).filled());
        axes.draw_series(self.baseline.iter().map(dot))?;
        let dot =
            |&[x, y]: &[f64; 2]| TriangleMarker::new((x, y), 7 * UNIT / 2, alert.mix(0.6).filled());
        axes.draw_series(self.policy.iter().map(dot))?;
        let middle = f64::midpoint(axes.x_range().start, axes.x_range().end);
        for (number, outlier) in self.outliers.iter().enumerate() {
            let (x, y) = (outlier.at[0], outlier.at[1]);
            let ring = Ink::Text.color().stroke_width(SCALE * 3 / 2);
            axes.draw_series([Circle::new((x, y), 6 * UNIT, ring)])?;
            // Towards the middle, where there is room.
            let (side, gap) = if x < middle { (HPos::Left, 9) } else { (HPos::Right, -9) };
            let style = text(11, Ink::Text).pos(Pos::new(side, VPos::Center));
            let label = EmptyElement::at((x, y))
                + Text::new((number + 1).to_string(), (gap * UNIT, 0), style);
            axes.draw_series([label])?;
            let (left, top) = axes.backend_coord(&(x, y));
            let _ = writeln!(
                over,
                "<circle class=\"hit\" fill=\"none\" cx=\"{left}\" cy=\"{top}\" r=\"{}\"><title>{}</title></circle>",
                9 * UNIT,
                escape(&outlier.words),
            );
        }
        Ok(())
    }

    /// Axes that hold all points, each with its own scale: the first direction may hold nearly all variance,
    /// and with one scale the map would be a stroke.
    fn ranges(&self) -> (Range<f64>, Range<f64>) {
        let points = || self.baseline.iter().chain(&self.policy);
        let range = |axis: usize| {
            let low = points().map(|point| point[axis]).fold(f64::INFINITY, f64::min);
            let high = points().map(|point| point[axis]).fold(f64::NEG_INFINITY, f64::max);
            let room = ((high - low) * 0.05).max(1e-9);
            low - room..high + room
        };
        (range(0), range(1))
    }

    fn description(&self) -> String {
        if self.baseline.is_empty() && self.policy.is_empty() {
            return self.empty.clone();
        }
        let mut words = format!(
            "{} of {} answers of the SFT baseline and {} answers of the policy's last window. {}",
            self.projection,
            self.baseline.len(),
            self.policy.len(),
            self.note,
        );
        if let Some(distance) = self.separation() {
            let _ = write!(
                words,
                " The middle of the policy's answers lies {} times the baseline's spread from the baseline's middle.",
                short(distance)
            );
        }
        if !self.outliers.is_empty() {
            let _ = write!(words, " Its {} most outlying answers are marked.", self.outliers.len());
        }
        words
    }

    /// Distance of the means over the root mean square distance of the baseline from its mean.
    fn separation(&self) -> Option<f64> {
        let mean = |points: &[[f64; 2]]| {
            let count = points.len() as f64;
            let sum =
                points.iter().fold([0.0, 0.0], |sum, point| [sum[0] + point[0], sum[1] + point[1]]);
            [sum[0] / count, sum[1] / count]
        };
        let distance = |a: &[f64; 2], b: &[f64; 2]| (a[0] - b[0]).hypot(a[1] - b[1]);
        let (baseline, policy) = (mean(&self.baseline), mean(&self.policy));
        let squares =
            self.baseline.iter().map(|point| distance(point, &baseline).powi(2)).sum::<f64>();
        let spread = (squares / self.baseline.len() as f64).sqrt();
        let times = distance(&baseline, &policy) / spread;
        times.is_finite().then_some(times)
    }
}
