//! The row that an evaluated window becomes.

use serde::{Deserialize, Serialize};

use super::alerts::AlertKind;
use super::window_statistics::WindowStatistics;
use crate::monitor::answers::BaselineOrigin;

/// The evaluation of one window.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Evaluation {
    /// Number of the evaluation in its run, from 0.
    pub number: u64,
    /// First and last step of the window, where the caller names steps.
    pub first_step: Option<u64>,
    /// See `first_step`.
    pub last_step: Option<u64>,
    /// Samples in the window.
    pub samples: usize,
    /// What was computed of them.
    #[serde(flatten)]
    pub statistics: WindowStatistics,
    /// Quantile 0.95 of CSI per sample on windows of fresh SFT answers.
    pub csi_null_p95: Option<f64>,
    /// The same of the energy distance.
    pub energy_null_p95: Option<f64>,
    /// Probability of such an energy distance on a window of fresh SFT answers.
    pub energy_p: Option<f64>,
    /// Quantile 0.95 of MOP on windows of fresh SFT answers.
    pub mop_null_p95: Option<f64>,
    /// Change of CSI per sample since the evaluation before.
    pub csi_change: Option<f64>,
    /// That change over the mean of the changes before it (appendix G).
    pub csi_ratio: Option<f64>,
    /// Whether this or an earlier evaluation said that training should stop.
    pub early_stop: bool,
    /// Why training should stop, or why a value is missing.
    pub reason: Option<String>,
    /// Alerts that last after this window.
    pub alerts: Vec<AlertKind>,
    /// Latents that the window was compared with, and where they come from.
    pub baseline_samples: usize,
    /// See `baseline_samples`.
    pub baseline: Option<BaselineOrigin>,
    /// Version of that baseline: 0 for the checkpoint's, then counted in each run.
    pub baseline_version: Option<u64>,
    /// When the evaluation ended, in seconds since the Unix epoch.
    pub finished_at: f64,
    /// How long it took, in seconds.
    pub seconds: f64,
}
