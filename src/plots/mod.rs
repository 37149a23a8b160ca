//! Plots as SVG: of a run, its statistics over the steps and its latent map; of a training, its log.
//!
//! Drawn by plotters, with text as text. What stands here knows the monitor's evaluations and nothing of who
//! asks: the page, the routes and `trainer` all draw with it.

mod chart;
mod curves;
mod document;
mod figure;
mod map;
mod number;
mod palette;
mod projection;
mod sparkline;
mod training;

use plotters::drawing::DrawingAreaErrorKind;
use thiserror::Error;

pub use curves::{Curve, RunCurves};
pub use document::{Drawing, page_style};
pub use figure::{Bars, Figure, FigurePanel, FigurePoint, Series};
pub use map::{LatentMap, MapOutlier};
pub use number::short;
pub use palette::Theme;
pub use projection::{Projection, farthest, project};
pub use sparkline::sparkline;
pub use training::{TrainingCurve, TrainingCurves, TrainingEvaluation, TrainingStep};

/// Width and height in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub struct Size {
    pub width: u32,
    pub height: u32,
}

impl Size {
    /// Of curves where nobody asks for another.
    pub const CURVE: Self = Self { width: 640, height: 360 };
    /// Of the latent map where nobody asks for another.
    pub const MAP: Self = Self { height: 480, ..Self::CURVE };
}

/// A plot that could not be drawn.
#[derive(Debug, Error)]
#[error("the plot could not be drawn: {0}")]
pub struct PlotError(String);

impl From<DrawingAreaErrorKind<std::io::Error>> for PlotError {
    fn from(error: DrawingAreaErrorKind<std::io::Error>) -> Self {
        Self(error.to_string())
    }
}
