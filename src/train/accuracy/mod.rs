//! What a checkpoint gives on pairs and answers, in numbers.

mod baseline_report;
mod diagnostics;
mod figures;
mod report;
pub(super) mod scorer;

pub(super) use baseline_report::baseline_of;
pub use baseline_report::{BaselineReport, CALIBRATION_FILE};
pub(super) use diagnostics::ACTIVE_VARIANCE;
pub use diagnostics::LatentDiagnostics;
pub use report::{CalibrationBin, MarginBin, PairEvaluation};
#[cfg(feature = "judge")]
pub(crate) use scorer::NORMAL_QUANTILE;
pub(crate) use scorer::mean_interval;
pub use scorer::{PairAccuracy, TextScorer, wilson_interval};
