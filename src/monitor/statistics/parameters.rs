//! What the statistics are computed with.

use super::csi::CsiParameters;

/// What the statistics of a window are computed with.
#[derive(Clone, Debug, PartialEq)]
pub struct StatisticsParameters {
    /// DBSCAN and noise policy.
    pub csi: CsiParameters,
    /// Which of its nearest baseline latents a latent's distance is measured to: `k` of kNN.
    pub neighbours: usize,
    /// The share of held-out baseline latents that counts as outliers.
    pub mop_alpha: f64,
}

impl Default for StatisticsParameters {
    fn default() -> Self {
        Self { csi: CsiParameters::default(), neighbours: 5, mop_alpha: 0.01 }
    }
}
