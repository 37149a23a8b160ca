//! What is computed of one window: each statistic in a file of its own.

pub mod csi;
mod gram;
pub mod mahalanobis;
pub mod neighbours;
pub mod null;

use std::collections::HashSet;

use ndarray::Array2;
use serde::{Deserialize, Serialize};

use super::Sample;
use super::baseline::BaselineSet;
use csi::{CsiError, CsiParameters, csi};

/// The statistics of one window. One that cannot be computed is absent.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct WindowStatistics {
    /// Cluster Separation Index (equation 8), or null where it could not be computed.
    pub csi: Option<f64>,
    /// CSI divided by the samples.
    pub csi_per_sample: Option<f64>,
    /// DBSCAN clusters, noise not counted.
    pub clusters: Option<usize>,
    /// Share of samples in no cluster.
    pub noise_fraction: Option<f64>,
    /// Different sequences over samples.
    pub distinct_ratio: Option<f64>,
    /// Mean reward of the window.
    pub reward_mean: f64,
    /// Standard deviation of the reward.
    pub reward_std: f64,
    /// Mean length of the scored sequences, in tokens.
    pub tokens_mean: f64,
    /// Mean over samples and dimensions of the posterior's standard deviation.
    pub sigma_mean: Option<f64>,
    /// Mean KL divergence of the posterior from `N(0, I)`, in nats.
    pub divergence_mean: Option<f64>,
}

/// Computes all statistics of a window; without a baseline, those that need none. Also answers why there
/// is no CSI.
pub fn evaluate_window(
    samples: &[Sample],
    baseline: Option<&BaselineSet>,
    parameters: &CsiParameters,
) -> (WindowStatistics, Option<CsiError>) {
    let separation = baseline.and_then(|baseline| {
        let dimension = samples.first()?.latent.len();
        let values: Vec<f64> =
            samples.iter().flat_map(|sample| &sample.latent).map(|&v| f64::from(v)).collect();
        let latents = Array2::from_shape_vec((samples.len(), dimension), values).ok()?;
        Some(csi(latents.view(), baseline.latents.view(), parameters))
    });
    let (csi, error) = match separation.transpose() {
        Ok(csi) => (csi, None),
        Err(error) => (None, Some(error)),
    };
    let (reward_mean, reward_std) = moments(samples.iter().map(|s| f64::from(s.reward)));
    let (tokens_mean, _) = moments(samples.iter().map(|s| f64::from(s.tokens)));
    let mean = |value: fn(&Sample) -> f32| {
        let (mean, _) = moments(samples.iter().map(|sample| f64::from(value(sample))));
        (!samples.is_empty() && mean.is_finite()).then_some(mean)
    };
    let distinct: HashSet<u64> = samples.iter().map(|sample| sample.sequence).collect();
    let statistics = WindowStatistics {
        csi: csi.as_ref().map(|csi| csi.csi),
        csi_per_sample: csi.as_ref().map(|csi| csi.per_sample),
        clusters: csi.as_ref().map(|csi| csi.clusters),
        noise_fraction: csi.as_ref().map(|csi| csi.noise_fraction),
        distinct_ratio: (!samples.is_empty()).then(|| distinct.len() as f64 / samples.len() as f64),
        reward_mean,
        reward_std,
        tokens_mean,
        sigma_mean: mean(|sample| sample.sigma),
        divergence_mean: mean(|sample| sample.divergence),
    };
    (statistics, error)
}

/// Mean and standard deviation.
fn moments(values: impl Iterator<Item = f64> + Clone) -> (f64, f64) {
    let count = values.clone().count().max(1) as f64;
    let mean = values.clone().sum::<f64>() / count;
    let variance = values.map(|value| (value - mean).powi(2)).sum::<f64>() / count;
    (mean, variance.sqrt())
}
