//! The monitor: the latents of each training run, watched for reward over-optimisation.
//!
//! The engine shows it every scored answer; a thread of its own sorts them into runs and windows
//! (`ingest/worker.rs`), and another evaluates each window (`ingest/evaluator.rs`). Scoring never waits for them.

pub mod alerts;
mod assessment;
mod baseline;
mod calibration;
mod clock;
mod config;
pub mod early_stop;
mod error;
mod evaluation;
mod evaluator;
mod handle;
mod journal;
mod judgement;
mod resume;
mod run;
mod sample;
pub mod shaping;
pub mod statistics;
mod window;
mod window_evaluation;
mod window_statistics;
mod worker;

pub use assessment::Assessment;
pub use baseline::{BaselineAnswers, BaselineOrigin, BaselineSet};
pub use calibration::{Calibration, CsiCalibration, Expected, RewardLevels};
pub use config::{MonitorConfig, RunConfig, StatisticsConfig};
pub use error::{MonitorError, OverrideError};
pub use evaluation::Evaluation;
pub use handle::Monitor;
pub use journal::{JournalConfig, JournalError};
pub use run::{Latest, RunView};
pub use sample::{
    Observation, Origin, Role, Sample, Subject, Watched, fingerprint, prompt_fingerprint,
};
pub use window::Window;
pub use window_evaluation::evaluate_window;
pub use window_statistics::{WindowEvaluation, WindowStatistics};
