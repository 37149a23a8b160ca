//! A plot that fails.

use plotters::drawing::DrawingAreaErrorKind;
use thiserror::Error;

/// A plot that could not be drawn.
#[derive(Debug, Error)]
#[error("the plot could not be drawn: {0}")]
pub struct PlotError(pub(super) String);

impl From<DrawingAreaErrorKind<std::io::Error>> for PlotError {
    fn from(error: DrawingAreaErrorKind<std::io::Error>) -> Self {
        Self(error.to_string())
    }
}
