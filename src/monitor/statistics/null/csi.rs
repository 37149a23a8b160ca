//! The null of CSI per sample, by holding out part of the baseline.
//!
//! There is no law to lean on: clusters, noise and the nearest point depend on the latent space. So
//! `h` latents of the baseline are compared with the others, again and again. `h` is about the
//! window's size, since density decides what DBSCAN calls a cluster, but at most half the baseline
//! and 1,024.
//!
//! A mean over `h` of `M` known latents strays from that of all by a variance of `1/h - 1/M`, that of
//! a window of `n` fresh answers by `1/n + 1/M`, in the same unit. Deviations from the mean are
//! scaled by the root of their ratio, which makes up for the window's size and for the baseline's own
//! sampling error.

use ndarray::{ArrayView2, Axis};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::tail::Resampled;
use crate::monitor::statistics::csi::{CsiParameters, NoisePolicy, csi};

const MAX_HELD_OUT: usize = 1024;
/// Fewest latents on either side.
const MIN_HELD_OUT: usize = 8;
/// Multiply-adds that one null may cost, unless that were fewer than the fewest draws.
const BUDGET: f64 = 1.5e10;
const DRAWS: (f64, f64) = (60.0, 200.0);

/// The null for windows of about one size.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct CsiNull {
    draws: Resampled,
    /// `1/h - 1/M`.
    variance: f64,
    baseline: f64,
}

/// The held-out size for windows of `samples` answers: a power of the root of 2.
pub(super) fn held_out(samples: usize, baseline: usize) -> usize {
    let steps = (2.0 * (samples as f64).log2()).round();
    let size = (0.5 * steps).exp2().round() as usize;
    size.min(baseline / 2).clamp(MIN_HELD_OUT, MAX_HELD_OUT)
}

impl CsiNull {
    /// Holds out `size` of the latents `[M, d]` up to 200 times, at most 15 thousand million
    /// multiply-adds or 60 times. `None` where there is no CSI.
    pub(super) fn fit(
        latents: ArrayView2<'_, f64>,
        size: usize,
        parameters: &CsiParameters,
    ) -> Option<Self> {
        let rows = latents.nrows();
        if rows < 2 * size {
            return None;
        }
        let centroids = if parameters.noise == NoisePolicy::Singletons { size } else { 1 };
        let pairs = size * size / 2 + centroids * (rows - size);
        let cost = (pairs * latents.ncols()) as f64;
        let draws = (BUDGET / cost).clamp(DRAWS.0, DRAWS.1) as usize;
        let mut random = ChaCha8Rng::seed_from_u64(size as u64);
        let mut order: Vec<_> = (0..rows).collect();
        let values = (0..draws).map_while(|_| {
            let (chosen, others) = order.partial_shuffle(&mut random, size);
            let (window, rest) = (latents.select(Axis(0), chosen), latents.select(Axis(0), others));
            Some(csi(window.view(), rest.view(), parameters).ok()?.per_sample)
        });
        Some(Self {
            draws: Resampled::new(values.collect())?,
            variance: 1.0 / size as f64 - 1.0 / rows as f64,
            baseline: rows as f64,
        })
    }

    pub(super) fn mean(&self) -> f64 {
        self.draws.mean
    }

    /// Probability of a CSI per sample of at least `value` in a window of `samples` fresh answers.
    pub(super) fn p(&self, value: f64, samples: f64) -> f64 {
        self.draws.p(self.mean() + (value - self.mean()) / self.scale(samples))
    }

    pub(super) fn quantile(&self, q: f64, samples: f64) -> f64 {
        self.mean() + (self.draws.quantile(q) - self.mean()) * self.scale(samples)
    }

    fn scale(&self, samples: f64) -> f64 {
        ((1.0 / samples + 1.0 / self.baseline) / self.variance).sqrt()
    }
}
