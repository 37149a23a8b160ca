//! The statistics of a set of answers that is no window of a run.

use serde::Serialize;

use crate::monitor::answers::{BaselineSet, Sample};
use crate::monitor::settings::MonitorConfig;
use crate::monitor::statistics::null::Judged;
use crate::monitor::verdict::{WindowStatistics, evaluate_window, judge};

/// What an evaluation of these answers as a window would say of them, without what takes windows before.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Assessment {
    /// Number of answers.
    pub samples: usize,
    /// What was computed of them.
    #[serde(flatten)]
    pub statistics: WindowStatistics,
    /// Quantile 0.95 of CSI per sample on as many fresh SFT answers.
    pub csi_null_p95: Option<f64>,
    /// The same of the energy distance.
    pub energy_null_p95: Option<f64>,
    /// Probability of such an energy distance on as many fresh SFT answers.
    pub energy_p: Option<f64>,
    /// Quantile 0.95 of MOP on as many fresh SFT answers.
    pub mop_null_p95: Option<f64>,
    /// Why CSI is missing.
    pub reason: Option<String>,
}

impl Assessment {
    /// Compares answers with a baseline. The first call of a baseline computes its nulls, which takes seconds.
    pub fn of(samples: &[Sample], baseline: &BaselineSet, config: &MonitorConfig) -> Self {
        let parameters = config.statistics_parameters();
        let evaluated = evaluate_window(samples, Some(baseline), &parameters);
        let null = judge(samples, baseline, &evaluated, &parameters).null.unwrap_or_default();
        let quantile = |judged: Option<Judged>| {
            judged.map(|judged| judged.quantile).filter(|quantile| quantile.is_finite())
        };
        Self {
            samples: samples.len(),
            csi_null_p95: quantile(null.csi),
            energy_null_p95: quantile(null.energy),
            energy_p: null.energy.and_then(|judged| judged.p).filter(|p| p.is_finite()),
            mop_null_p95: quantile(null.mop),
            reason: evaluated.csi_error.map(|error| error.to_string()),
            statistics: evaluated.statistics,
        }
    }
}
