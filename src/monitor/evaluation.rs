//! The row that an evaluated window becomes.

use serde::{Deserialize, Serialize};

use super::baseline::BaselineOrigin;
use super::statistics::WindowStatistics;

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
    /// Change of CSI per sample since the evaluation before.
    pub csi_change: Option<f64>,
    /// That change over the mean of the changes before it (appendix G).
    pub csi_ratio: Option<f64>,
    /// Whether this or an earlier evaluation said that training should stop.
    pub early_stop: bool,
    /// Why training should stop, or why a value is missing.
    pub reason: Option<String>,
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
