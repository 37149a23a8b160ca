//! What a head's latents carry: KL divergence by dimension, active units, posterior width.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::model::{Latent, Score};
use crate::monitor::statistics::rewards::moments;

/// Variance of a dimension's posterior mean above which it is active (Burda et al. 2016).
pub(in crate::train) const ACTIVE_VARIANCE: f64 = 0.01;

/// What the latents of some answers carry.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LatentDiagnostics {
    /// Answers.
    pub answers: usize,
    /// Mean KL divergence of an answer's posterior from `N(0, I)`, in nats.
    pub kl: f64,
    /// The same of each dimension `[d]`; `kl` is its sum.
    pub kl_by_dimension: Vec<f64>,
    /// Variance over the answers of each dimension's posterior mean `[d]`.
    pub mean_variance: Vec<f64>,
    /// Dimensions of which that exceeds 0.01: active units (Burda et al. 2016).
    pub active_units: usize,
    /// Mean of the posterior's standard deviation, over answers and dimensions.
    pub sigma_mean: f64,
}

impl LatentDiagnostics {
    /// Of scored answers; `None` where there are none, where the head has no latent, or where a number is not finite.
    pub fn of(scores: &[Score]) -> Option<Self> {
        let latents: Vec<&Latent> =
            scores.iter().map(|score| score.latent.as_ref()).collect::<Option<_>>()?;
        let dimension = latents.first()?.mean.len();
        let divergences: Vec<Vec<f64>> =
            latents.iter().map(|latent| latent.divergences().collect()).collect();
        let of = |value: &dyn Fn(usize) -> f64| {
            moments(&(0..latents.len()).map(value).collect::<Vec<f64>>())
        };
        let units = (0..dimension).map(|unit| {
            let (kl, _) = of(&|answer| divergences[answer][unit])?;
            let (_, spread) = of(&|answer| f64::from(latents[answer].mean[unit]))?;
            let (sigma, _) = of(&|answer| f64::from(latents[answer].sigma[unit]))?;
            Some((kl, spread * spread, sigma))
        });
        let units: Vec<(f64, f64, f64)> = units.collect::<Option<_>>()?;
        let mean_variance: Vec<f64> = units.iter().map(|unit| unit.1).collect();
        let found = Self {
            answers: latents.len(),
            kl: units.iter().map(|unit| unit.0).sum(),
            kl_by_dimension: units.iter().map(|unit| unit.0).collect(),
            active_units: mean_variance.iter().filter(|v| **v > ACTIVE_VARIANCE).count(),
            mean_variance,
            sigma_mean: moments(&units.iter().map(|unit| unit.2).collect::<Vec<f64>>())?.0,
        };
        let all = found.kl_by_dimension.iter().chain(&found.mean_variance);
        let is_finite = all.chain([&found.sigma_mean]).all(|value| value.is_finite());
        is_finite.then_some(found)
    }

    /// Dimension of the latent.
    pub fn dimension(&self) -> usize {
        self.kl_by_dimension.len()
    }

    /// Whether a dimension is an active unit.
    ///
    /// # Panics
    /// `unit` that is no dimension.
    pub fn is_active(&self, unit: usize) -> bool {
        self.mean_variance[unit] > ACTIVE_VARIANCE
    }

    /// Dimensions with their KL divergence, the largest first.
    pub fn largest(&self) -> Vec<(usize, f64)> {
        let mut order: Vec<(usize, f64)> =
            self.kl_by_dimension.iter().copied().enumerate().collect();
        order.sort_by(|a, b| b.1.total_cmp(&a.1));
        order
    }
}

impl fmt::Display for LatentDiagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { answers, kl, active_units, sigma_mean, .. } = self;
        let dimension = self.dimension();
        write!(
            f,
            "KL {kl:.3} nats, {active_units} of {dimension} units active, mean posterior sigma {sigma_mean:.3}, over \
             {answers} answers"
        )
    }
}
