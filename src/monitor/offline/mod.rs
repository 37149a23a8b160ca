//! What is said of answers that are no window of a run.

mod assessment;
mod calibration;

pub use assessment::Assessment;
pub use calibration::{Calibration, CsiCalibration, Expected, RewardLevels};
