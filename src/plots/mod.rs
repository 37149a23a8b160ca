//! Plots as SVG: of a run, its statistics over the steps and its latent map; of a training, its log.
//!
//! Drawn by plotters, with text as text. What stands here knows the monitor's evaluations and nothing of who
//! asks: the page, the routes and `trainer` all draw with it.

mod chart;
mod curves;
mod document;
mod error;
mod figure;
mod map;
mod number;
mod palette;
mod projection;
mod size;
mod sparkline;
mod training;

pub use curves::{Curve, RunCurves};
pub use document::{Drawing, page_style};
pub use error::PlotError;
pub use figure::{Bars, Figure, FigurePanel, FigurePoint, Series};
pub use map::{LatentMap, MapOutlier};
pub use number::short;
pub use palette::Theme;
pub use projection::{MapProjection, farthest, project};
pub use size::Size;
pub use sparkline::sparkline;
pub use training::{TrainingCurve, TrainingCurves, TrainingEvaluation, TrainingStep};
