//! What windows are compared with, computed once for each baseline.

use std::sync::Arc;

use ndarray::{Array1, ArrayView2, Axis};

use super::csi::{CsiError, CsiParameters, EpsMode, calibrated_eps};
use super::dispersion::total_variance;
use super::energy::average;
use super::gram::{Centred, mean};
use super::mahalanobis::Mahalanobis;
use super::nearest::kth;
use super::pairs::{Points, between};
use super::prompt_index::PromptIndex;
use super::rewards::quantile;

/// Parts of a baseline, of which each is measured by a fit to the others.
const FOLDS: usize = 5;

/// The quantile of the baseline's rewards above which a reward is called saturated.
const SATURATION: f64 = 0.99;

/// Everything that is derived of a baseline of `M` latents of dimension `d`.
#[derive(Debug)]
pub struct Reference {
    origin: Array1<f64>,
    centred: Centred,
    mahalanobis: Option<Arc<Mahalanobis>>,
    /// Mahalanobis distances of each part of the baseline by a fit to the others.
    held_out: Vec<f64>,
    mean_distance: f64,
    min_samples: usize,
    k_distances: Vec<f64>,
    total_variance: Option<f64>,
    saturated: Option<f64>,
    prompts: PromptIndex,
}

impl Reference {
    /// Derives it of `latents`, `[M, d]`, at least one, with their covariance, rewards and prompts
    /// where they are known; `min_samples` is that of DBSCAN, for a calibrated radius.
    ///
    /// Costs `2 M^2 d + 10 M d^2` floating-point operations and memory for `M d` numbers.
    pub fn new(
        latents: ArrayView2<'_, f64>,
        mahalanobis: Option<Arc<Mahalanobis>>,
        rewards: Option<&[f32]>,
        prompts: Option<&[Option<u64>]>,
        min_samples: usize,
    ) -> Self {
        let origin = mean(latents);
        let centred = Centred::new(latents, &origin);
        let points = Points { plain: centred.rows(), centred: &centred };
        let count = points.centred.len();
        let k = if min_samples <= count { min_samples } else { 0 };
        let found = between(points, points, k, true);
        let rewards: Option<Vec<f64>> =
            rewards.map(|rewards| rewards.iter().map(|&reward| f64::from(reward)).collect());
        Self {
            held_out: held_out(latents),
            mean_distance: average(&found.mean_distances),
            k_distances: match k {
                0 => vec![f64::INFINITY; count],
                k => kth(&found.nearest, k),
            },
            min_samples,
            total_variance: total_variance(latents),
            saturated: rewards.and_then(|rewards| quantile(&rewards, SATURATION)),
            prompts: PromptIndex::new(prompts.unwrap_or_default()),
            mahalanobis,
            origin,
            centred,
        }
    }

    /// Dimension of a latent.
    pub fn dimension(&self) -> usize {
        self.origin.len()
    }

    /// `latents`, `[N, d]`, less the baseline's mean.
    pub(in crate::monitor) fn centre(&self, latents: ArrayView2<'_, f64>) -> Centred {
        Centred::new(latents, &self.origin)
    }

    pub(in crate::monitor) fn points(&self) -> Points<'_> {
        Points { plain: self.centred.rows(), centred: &self.centred }
    }

    /// The mean distance of all ordered pairs, `mean |y - y'|` of the energy distance.
    pub fn mean_distance(&self) -> f64 {
        self.mean_distance
    }

    /// Distances from the baseline in terms of its covariance.
    pub fn mahalanobis(&self) -> Option<&Mahalanobis> {
        self.mahalanobis.as_deref()
    }

    /// Mahalanobis distances of the baseline's latents, each by a fit without it; empty where the
    /// baseline is too small for that.
    pub fn held_out(&self) -> &[f64] {
        &self.held_out
    }

    /// The Mahalanobis distance that a share `alpha` of held-out baseline latents exceeds; `None` where
    /// the baseline is too small to hold some of it out.
    pub fn outlier_distance(&self, alpha: f64) -> Option<f64> {
        quantile(&self.held_out, 1.0 - alpha)
    }

    /// The trace of the covariance.
    pub fn total_variance(&self) -> Option<f64> {
        self.total_variance
    }

    /// The reward beyond which a reward is called saturated: the 0.99 quantile of the baseline's.
    pub fn saturated(&self) -> Option<f64> {
        self.saturated
    }

    /// The distance of a latent to the nearest one of the same prompt; `None` where the baseline has
    /// no answer to it, or the dimensions differ.
    pub fn paired_distance(&self, prompt: u64, latent: &[f32]) -> Option<f64> {
        if latent.len() != self.dimension() {
            return None;
        }
        let latent: Array1<f64> = latent.iter().map(|&value| f64::from(value)).collect();
        self.prompts.distance(prompt, (latent - &self.origin).view(), self.centred.rows())
    }

    /// The radius of DBSCAN.
    ///
    /// # Errors
    /// Where the baseline gives no radius in [`EpsMode::Calibrated`].
    pub fn eps(&self, parameters: &CsiParameters) -> Result<f64, CsiError> {
        let k = parameters.min_samples;
        match parameters.eps_mode {
            EpsMode::Fixed => Ok(parameters.eps),
            EpsMode::Calibrated if k == self.min_samples => {
                calibrated_eps(&self.k_distances, parameters)
            }
            EpsMode::Calibrated => {
                let found = between(self.points(), self.points(), k, false);
                calibrated_eps(&kth(&found.nearest, k), parameters)
            }
        }
    }
}

/// Mahalanobis distances of the rows of each part by a fit to the other parts; row `i` is of part
/// `i` modulo [`FOLDS`]. A fit makes the latents that it was made of look closer than others. Empty
/// where a fit is not possible.
fn held_out(latents: ArrayView2<'_, f64>) -> Vec<f64> {
    let mut distances = Vec::with_capacity(latents.nrows());
    for fold in 0..FOLDS {
        let (held_out, fitted): (Vec<_>, Vec<_>) =
            (0..latents.nrows()).partition(|row| row % FOLDS == fold);
        let Ok(fit) = Mahalanobis::fit(latents.select(Axis(0), &fitted).view()) else {
            return Vec::new();
        };
        distances.extend(fit.distances(latents.select(Axis(0), &held_out).view()));
    }
    distances
}
