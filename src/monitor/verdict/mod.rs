//! What a window says: its evaluation, early stop, alerts and shaping.

pub mod alerts;
pub mod early_stop;
mod evaluation;
mod judgement;
pub mod shaping;
mod window_evaluation;
mod window_statistics;

pub(super) use alerts::{Alert, AlertKind, AlertParameters, Alerts, Changes, Look};
pub(super) use early_stop::{EarlyStop, EarlyStopParameters};
pub use evaluation::Evaluation;
pub(super) use judgement::{Judgement, judge};
pub(super) use shaping::ShapingParameters;
pub use window_evaluation::evaluate_window;
pub use window_statistics::{WindowEvaluation, WindowStatistics};

// A link of the API's description has this path.
#[cfg(doc)]
use super::statistics;
