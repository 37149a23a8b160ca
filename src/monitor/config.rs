//! Settings of the monitor; `docs/configuration.md` says what each means.

use serde::{Deserialize, Serialize};

use super::MonitorError;
use super::alerts::AlertParameters;
use super::early_stop::{EarlyStop, EarlyStopParameters};
use super::statistics::StatisticsParameters;
use super::statistics::csi::CsiParameters;

/// Settings of the monitor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MonitorConfig {
    /// Samples of a window where the caller names no steps.
    pub window: usize,
    /// Fewest samples of a window that ends because a new step begins; fewer are carried over.
    pub min_window: usize,
    /// Most samples of a window, and of a recorded baseline.
    pub max_window: usize,
    /// Evaluations that each run keeps.
    pub history: usize,
    /// Runs that are kept; beyond that the one that was idle longest goes.
    pub max_runs: usize,
    /// Samples that may wait for the monitor; beyond that they are dropped and counted.
    pub max_pending: usize,
    /// DBSCAN and noise policy.
    pub csi: CsiParameters,
    /// What is computed besides CSI.
    pub statistics: StatisticsConfig,
    /// When to say that training should stop.
    pub early_stop: EarlyStopParameters,
    /// When to raise alerts.
    pub alerts: AlertParameters,
}

/// Settings of the statistics besides CSI.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StatisticsConfig {
    /// Which of its nearest baseline latents a latent's distance is measured to.
    pub neighbours: usize,
    /// The share of held-out baseline latents that counts as outliers.
    pub mop_alpha: f64,
}

impl Default for StatisticsConfig {
    fn default() -> Self {
        let StatisticsParameters { neighbours, mop_alpha, .. } = StatisticsParameters::default();
        Self { neighbours, mop_alpha }
    }
}

impl Default for MonitorConfig {
    fn default() -> Self {
        Self {
            window: 256,
            min_window: 32,
            max_window: 4096,
            history: 10_000,
            max_runs: 64,
            max_pending: 65_536,
            csi: CsiParameters::default(),
            statistics: StatisticsConfig::default(),
            early_stop: EarlyStopParameters::default(),
            alerts: AlertParameters::default(),
        }
    }
}

impl MonitorConfig {
    /// Checks the settings.
    ///
    /// # Errors
    /// Names the setting that is out of range.
    pub fn check(&self) -> Result<(), MonitorError> {
        let wrong = |setting, message: String| Err(MonitorError::Setting { setting, message });
        for (setting, value) in [
            ("window", self.window),
            ("min_window", self.min_window),
            ("max_window", self.max_window),
            ("history", self.history),
            ("max_runs", self.max_runs),
            ("max_pending", self.max_pending),
            ("statistics.neighbours", self.statistics.neighbours),
        ] {
            if value == 0 {
                return wrong(setting, "must be at least 1".to_owned());
            }
        }
        if self.window > self.max_window || self.min_window > self.max_window {
            return wrong("max_window", "must be at least `window` and `min_window`".to_owned());
        }
        if !(self.statistics.mop_alpha > 0.0 && self.statistics.mop_alpha < 1.0) {
            return wrong("statistics.mop_alpha", "must be above 0 and below 1".to_owned());
        }
        if let Err(error) = self.csi.check() {
            return wrong("csi", error.to_string());
        }
        if let Err(error) = EarlyStop::new(self.early_stop.clone()) {
            return wrong("early_stop", error.to_string());
        }
        if let Err(error) = self.alerts.check() {
            return wrong("alerts", error.to_string());
        }
        Ok(())
    }

    /// What the statistics of a window are computed with.
    pub fn statistics_parameters(&self) -> StatisticsParameters {
        StatisticsParameters {
            csi: self.csi.clone(),
            neighbours: self.statistics.neighbours,
            mop_alpha: self.statistics.mop_alpha,
        }
    }
}
