//! Settings of the monitor; `docs/configuration.md` says what each means.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::error::{MonitorError, OverrideError};
use crate::monitor::journal::JournalConfig;
use crate::monitor::statistics::{CsiParameters, StatisticsParameters};
use crate::monitor::verdict::{AlertParameters, EarlyStop, EarlyStopParameters, ShapingParameters};
use crate::pointer::{pointer, token};

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
    /// What is taken off the rewards.
    pub shaping: ShapingParameters,
    /// What survives a restart.
    pub journal: JournalConfig,
}

/// Settings of the statistics besides CSI.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct StatisticsConfig {
    /// Which of its nearest baseline latents a latent's distance is measured to.
    #[schema(minimum = 1)]
    pub neighbours: usize,
    /// The share of held-out baseline latents that counts as outliers.
    #[schema(exclusive_minimum = 0, exclusive_maximum = 1)]
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
            shaping: ShapingParameters::default(),
            journal: JournalConfig::default(),
        }
    }
}

/// The settings that a run may have of its own. All are optional: what is left out stays.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RunConfig {
    /// Samples of a window where the caller names no steps.
    #[schema(minimum = 1)]
    pub window: usize,
    /// Fewest samples of a window that ends because a new step begins.
    #[schema(minimum = 1)]
    pub min_window: usize,
    /// DBSCAN and noise policy.
    pub csi: CsiParameters,
    /// What is computed besides CSI.
    pub statistics: StatisticsConfig,
    /// When to say that training should stop.
    pub early_stop: EarlyStopParameters,
    /// When to raise alerts.
    pub alerts: AlertParameters,
    /// What is taken off the rewards.
    pub shaping: ShapingParameters,
}

impl MonitorConfig {
    /// The part that a run may change.
    pub fn of_run(&self) -> RunConfig {
        RunConfig {
            window: self.window,
            min_window: self.min_window,
            csi: self.csi.clone(),
            statistics: self.statistics.clone(),
            early_stop: self.early_stop.clone(),
            alerts: self.alerts.clone(),
            shaping: self.shaping,
        }
    }

    /// These settings with some of a run's own over them.
    ///
    /// # Errors
    /// An unknown setting, or a value of the wrong type or out of range.
    pub fn with(&self, overrides: &Map<String, Value>) -> Result<Self, OverrideError> {
        let wrong = |pointer: String, message: String, is_conflict| OverrideError {
            pointer,
            message,
            is_conflict,
        };
        // Numbers, texts and objects of them: this cannot fail.
        let mut merged = serde_json::to_value(self.of_run()).unwrap_or_default();
        if let Value::Object(known) = &mut merged {
            merge(known, overrides, "").map_err(|(at, message)| wrong(at, message, false))?;
        }
        let run: RunConfig = serde_path_to_error::deserialize(merged)
            .map_err(|error| wrong(pointer(error.path()), error.into_inner().to_string(), false))?;
        let RunConfig { window, min_window, csi, statistics, early_stop, alerts, shaping } = run;
        let server = self.clone();
        let config =
            Self { window, min_window, csi, statistics, early_stop, alerts, shaping, ..server };
        match config.check() {
            Ok(()) => Ok(config),
            Err(MonitorError::Setting { setting, message }) => {
                Err(wrong(format!("/{}", setting.replace('.', "/")), message, true))
            }
            Err(error) => Err(wrong(String::new(), error.to_string(), true)),
        }
    }

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
            if !(1..1 << 53).contains(&(value as u64)) {
                return wrong(setting, "must be at least 1 and below 2^53".to_owned());
            }
        }
        for (setting, value) in [("window", self.window), ("min_window", self.min_window)] {
            if value > self.max_window {
                let limit = self.max_window;
                return wrong(
                    setting,
                    format!("must be at most monitor.max_window, which is {limit}"),
                );
            }
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
        if let Err(message) = self.shaping.check() {
            return wrong("shaping", message);
        }
        if let Err(message) = self.journal.check() {
            return wrong("journal", message);
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

/// Puts values over known ones, object by object.
///
/// # Errors
/// The pointer of a name that is not known, or of what is no object and should be one.
fn merge(
    known: &mut Map<String, Value>,
    given: &Map<String, Value>,
    at: &str,
) -> Result<(), (String, String)> {
    for (name, value) in given {
        let at = format!("{at}{}", token(name));
        match (known.get_mut(name), value) {
            (None, _) => {
                let names: Vec<&str> = known.keys().map(String::as_str).collect();
                return Err((at, format!("unknown setting; known are {}", names.join(", "))));
            }
            (Some(Value::Object(known)), Value::Object(given)) => merge(known, given, &at)?,
            (Some(Value::Object(_)), _) => return Err((at, "expected an object".to_owned())),
            // JSON has one kind of numbers: 16.0 is a whole one.
            (Some(old), Value::Number(number)) if old.is_u64() && !number.is_u64() => {
                let whole = number.as_f64().filter(|n| n.fract() == 0.0 && (0.0..1e15).contains(n));
                *old = whole.map_or_else(|| value.clone(), |whole| (whole as u64).into());
            }
            (Some(old), value) => *old = value.clone(),
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    fn with(overrides: Value) -> Result<MonitorConfig, OverrideError> {
        MonitorConfig::default().with(overrides.as_object().unwrap())
    }

    #[test]
    fn what_is_not_named_stays() {
        let changed = with(json!({"window": 16.0, "csi": {"eps": 1}})).unwrap();
        let csi = CsiParameters { eps: 1.0, ..CsiParameters::default() };
        let expected = MonitorConfig { window: 16, csi, ..MonitorConfig::default() };
        assert_eq!(changed, expected);
        assert_eq!(with(json!({})).unwrap(), MonitorConfig::default());
    }

    #[test]
    fn faults_are_named_by_their_pointer() {
        for (overrides, pointer, is_conflict) in [
            (json!({"window": "many"}), "/window", false),
            (json!({"window": 1.5}), "/window", false),
            (json!({"window": null}), "/window", false),
            (json!({"window": 0}), "/window", true),
            (json!({"window": 5000}), "/window", true),
            (json!({"history": 3}), "/history", false),
            (json!({"csi": [0.5, 5, "paper"]}), "/csi", false),
            (json!({"csi": {"eps": -1}}), "/csi", true),
            (json!({"csi": {"noise": "loud"}}), "/csi/noise", false),
            (json!({"csi": {"a/b": 1}}), "/csi/a~1b", false),
            (json!({"shaping": {"gamma": -1}}), "/shaping", true),
            (json!({"statistics": {"mop_alpha": 1}}), "/statistics/mop_alpha", true),
            (json!({"alerts": {"kinds": ["mop", "loud"]}}), "/alerts/kinds/1", false),
        ] {
            let error = with(overrides.clone()).unwrap_err();
            assert_eq!((error.pointer.as_str(), error.is_conflict), (pointer, is_conflict));
        }
    }
}
