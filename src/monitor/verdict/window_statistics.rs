//! The statistics of a window.

use serde::{Deserialize, Serialize};

use crate::monitor::statistics::{CsiError, Quantiles};

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
    /// Radius of DBSCAN, in latent units.
    pub eps: Option<f64>,
    /// Energy distance of the window and the baseline, in latent units.
    pub energy: Option<f64>,
    /// Share of samples whose Mahalanobis distance few held-out baseline latents exceed.
    pub mop: Option<f64>,
    /// Mean Mahalanobis distance, not squared: the IBL distance.
    pub mahalanobis_mean: Option<f64>,
    /// Trace of the window's covariance over that of the baseline's.
    pub dispersion_ratio: Option<f64>,
    /// Difference of the logarithms of their determinants, divided by the dimension; both are shrunk as
    /// Ledoit and Wolf do.
    pub dispersion_log_det: Option<f64>,
    /// Different sequences over samples.
    pub distinct_ratio: Option<f64>,
    /// Mean distance to the k-th nearest baseline latent.
    pub knn_distance: Option<f64>,
    /// Mean distance to the nearest baseline latent of the same prompt.
    pub paired_distance: Option<f64>,
    /// Samples whose prompt the baseline has.
    pub paired_samples: usize,
    /// Mean reward of the window.
    pub reward_mean: f64,
    /// Standard deviation of the reward.
    pub reward_std: f64,
    /// Quantiles of the reward.
    pub reward_quantiles: Option<Quantiles>,
    /// Share of rewards above the 0.99 quantile of the baseline's.
    pub saturation: Option<f64>,
    /// Share of prompts with several answers whose rewards are all bitwise equal.
    pub group_zero_variance_rate: Option<f64>,
    /// Prompts with several answers.
    pub groups: usize,
    /// Spearman's rank correlation of reward and length: characters of the response where they are
    /// known of all samples, else tokens.
    pub reward_length_rho: Option<f64>,
    /// Mean length of the scored sequences, in tokens.
    pub tokens_mean: f64,
    /// Mean length of the responses, in characters, where it is known of all samples.
    pub response_characters_mean: Option<f64>,
    /// Mean over samples and dimensions of the posterior's standard deviation.
    pub sigma_mean: Option<f64>,
    /// Mean KL divergence of the posterior from `N(0, I)`, in nats.
    pub divergence_mean: Option<f64>,
}

/// What [`evaluate_window`](super::window_evaluation::evaluate_window) finds.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct WindowEvaluation {
    /// The statistics.
    pub statistics: WindowStatistics,
    /// Why there is no CSI; absent also where there is no baseline.
    pub csi_error: Option<CsiError>,
    /// Mahalanobis distance of each sample from the baseline; empty where there is none.
    pub distances: Vec<f64>,
}

impl WindowStatistics {
    /// Takes back what is no number: NaN and infinities never leave.
    pub(in crate::monitor) fn keep_finite(&mut self) {
        for value in [
            &mut self.csi,
            &mut self.csi_per_sample,
            &mut self.noise_fraction,
            &mut self.eps,
            &mut self.energy,
            &mut self.mop,
            &mut self.mahalanobis_mean,
            &mut self.dispersion_ratio,
            &mut self.dispersion_log_det,
            &mut self.distinct_ratio,
            &mut self.knn_distance,
            &mut self.paired_distance,
            &mut self.saturation,
            &mut self.group_zero_variance_rate,
            &mut self.reward_length_rho,
            &mut self.response_characters_mean,
            &mut self.sigma_mean,
            &mut self.divergence_mean,
        ] {
            *value = value.filter(|value| value.is_finite());
        }
    }
}
