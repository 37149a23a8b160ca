//! What the monitor derives of a checkpoint's baseline, as numbers to read.
//!
//! Serving does not read them: the monitor derives the same, with its own settings, when it first needs them.

use serde::{Deserialize, Serialize};

use crate::checkpoint::Baseline;
use crate::monitor::answers::BaselineSet;
use crate::monitor::settings::MonitorConfig;
use crate::monitor::statistics::null::{Null, Observed};
use crate::monitor::statistics::{CsiParameters, EpsMode, Quantiles, k_distances, moments};

/// Levels of the quantiles: as the names of [`Expected`]'s fields say.
const LEVELS: [f64; 3] = [0.5, 0.95, 0.99];

/// What windows of fresh answers of the SFT model would show, and the limits that follow from the baseline.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// Hash of the weights that made the latents.
    pub weights: String,
    /// What was scored.
    pub source: String,
    /// Number of latents.
    pub samples: usize,
    /// Dimension of a latent.
    pub dimension: usize,
    /// Answers of a window that the nulls below are for.
    pub window: usize,
    /// Neighbours that make a latent a core point of DBSCAN, itself included.
    pub min_samples: usize,
    /// Distances within which a baseline latent has so many neighbours; absent where there are not so many.
    pub k_distances: Option<Quantiles>,
    /// CSI with the radius that is set, and with the one that the baseline gives.
    pub csi: Vec<CsiCalibration>,
    /// Energy distance from the baseline, in latent units.
    pub energy: Option<Expected>,
    /// Mahalanobis distance beyond which an answer counts as an outlier.
    pub mop_limit: Option<f64>,
    /// The 0.95 quantile of the share of outliers.
    pub mop_p95: Option<f64>,
    /// Mean Mahalanobis distance of baseline latents, each from a fit without it.
    pub mahalanobis_mean: Option<f64>,
    /// The 0.05 quantile of the window's spread over the baseline's.
    pub dispersion_p05: Option<f64>,
    /// Which of its nearest baseline latents `knn_distance` is measured to.
    pub neighbours: usize,
    /// Mean distance of a baseline latent to that one among the others.
    pub knn_distance: Option<f64>,
    /// The baseline's rewards, where they are known.
    pub rewards: Option<RewardLevels>,
}

/// CSI per sample with one radius.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CsiCalibration {
    /// Where the radius comes from.
    pub eps_mode: EpsMode,
    /// The radius of DBSCAN, in latent units; absent where the baseline gives none.
    pub eps: Option<f64>,
    /// CSI per sample of fresh answers; absent where the baseline is too small.
    pub per_sample: Option<Expected>,
}

/// A statistic of a window of fresh SFT answers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Expected {
    /// Its mean.
    pub mean: f64,
    /// Its median.
    pub p50: f64,
    /// Its 0.95 quantile, the limit that evaluations show.
    pub p95: f64,
    /// Its 0.99 quantile.
    pub p99: f64,
}

/// Rewards of the baseline.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RewardLevels {
    /// Their mean.
    pub mean: f64,
    /// Their standard deviation.
    pub std: f64,
    /// The level above which a reward is called saturated.
    pub saturated: Option<f64>,
}

impl Calibration {
    /// Derives it with the monitor's own statistics; `None` for a baseline without latents. Takes seconds.
    pub fn of(baseline: &Baseline, config: &MonitorConfig) -> Option<Self> {
        let set = BaselineSet::of_checkpoint(baseline)?;
        let latents = set.latents.view();
        let parameters = config.statistics_parameters();
        let (window, k) = (config.window, parameters.csi.min_samples);
        let reference = set.reference(&parameters.csi);
        let mop_limit = finite(reference.outlier_distance(parameters.mop_alpha));
        let null = set.null(&parameters.csi);
        // Means and quantiles do not depend on what was observed, only on what it was observed of.
        let expected = null.judge(
            latents,
            &Observed {
                samples: window,
                effective_samples: window as f64,
                mop: Some(0.0),
                mop_threshold: mop_limit,
                dispersion_ratio: Some(1.0),
                ..Observed::default()
            },
        );
        let within = k_distances(latents, k);
        let rewards: Vec<f64> = set.rewards.iter().flatten().map(|&r| f64::from(r)).collect();
        let csi = [EpsMode::Fixed, EpsMode::Calibrated].map(|eps_mode| {
            let csi = CsiParameters { eps_mode, ..parameters.csi.clone() };
            let eps = reference.eps(&csi).ok();
            let per_sample = eps.and_then(|_| csi_of(&set, &set.null(&csi), window));
            CsiCalibration { eps_mode, eps, per_sample }
        });
        Some(Self {
            weights: baseline.weights.clone(),
            source: baseline.source.clone(),
            samples: set.len(),
            dimension: baseline.dimension,
            window,
            min_samples: k,
            k_distances: Quantiles::of(&within).filter(|found| found.p95.is_finite()),
            csi: csi.into(),
            energy: energy_of(&null, window),
            mop_limit,
            mop_p95: expected.mop.map(|mop| mop.quantile),
            mahalanobis_mean: mean(reference.held_out()),
            dispersion_p05: expected.dispersion.map(|dispersion| dispersion.quantile),
            neighbours: parameters.neighbours,
            // Among its own, a latent is its own nearest.
            knn_distance: mean(&k_distances(latents, parameters.neighbours + 1)),
            rewards: moments(&rewards).map(|(mean, std)| RewardLevels {
                mean,
                std,
                saturated: reference.saturated(),
            }),
        })
    }
}

fn csi_of(set: &BaselineSet, null: &Null, window: usize) -> Option<Expected> {
    let (mean, [p50, p95, p99]) = null.csi_quantiles(set.latents.view(), window, LEVELS)?;
    Some(Expected { mean, p50, p95, p99 })
}

fn energy_of(null: &Null, window: usize) -> Option<Expected> {
    let (null, samples) = (null.energy()?, window as f64);
    let [p50, p95, p99] = LEVELS.map(|level| null.upper_quantile(1.0 - level, samples));
    Some(Expected { mean: null.mean(samples), p50, p95, p99 })
}

fn mean(values: &[f64]) -> Option<f64> {
    finite(moments(values).map(|(mean, _)| mean))
}

fn finite(value: Option<f64>) -> Option<f64> {
    value.filter(|value| value.is_finite())
}
