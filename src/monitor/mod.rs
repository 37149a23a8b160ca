//! The monitor: the latents of each training run, watched for reward over-optimisation.
//!
//! The engine shows it every scored answer; a thread of its own sorts them into runs and windows
//! (`ingest/worker.rs`), and another evaluates each window (`ingest/evaluator.rs`). Scoring never waits for them.

mod answers;
mod ingest;
mod journal;
mod offline;
mod settings;
pub mod statistics;
mod verdict;

pub use answers::{
    BaselineAnswers, BaselineOrigin, BaselineSet, Observation, Role, Sample, SampleOrigin, Subject,
    Watched, fingerprint, prompt_fingerprint,
};
pub use ingest::{Latest, Monitor, RunView, Window};
pub use journal::{JournalConfig, JournalError};
pub use offline::{Assessment, Calibration, CsiCalibration, Expected, RewardLevels};
pub use settings::{MonitorConfig, MonitorError, OverrideError, RunConfig, StatisticsConfig};
pub use verdict::{Evaluation, WindowEvaluation, WindowStatistics, evaluate_window};
pub use verdict::{alerts, early_stop, shaping};
