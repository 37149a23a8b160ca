//! A window's statistics beside what fresh SFT answers give: what alerts are raised by.

use ndarray::Array2;

use super::alerts::OutlyingSample;
use super::window_statistics::WindowEvaluation;
use crate::monitor::answers::{BaselineSet, Sample};
use crate::monitor::statistics::StatisticsParameters;
use crate::monitor::statistics::null::{NullValues, Observed};

/// Answers of a window that are named as the most outlying.
const OUTLYING: usize = 10;

/// What a window is judged by.
#[derive(Debug, Default)]
pub(in crate::monitor) struct Judgement {
    /// `None` without a baseline.
    pub(in crate::monitor) null: Option<NullValues>,
    /// The answers farthest from the baseline, the farthest first.
    pub(in crate::monitor) outlying: Vec<OutlyingSample>,
}

/// Judges a window's samples against a baseline. The first window of a baseline pays for its nulls.
pub(in crate::monitor) fn judge(
    window: &[Sample],
    baseline: &BaselineSet,
    evaluated: &WindowEvaluation,
    parameters: &StatisticsParameters,
) -> Judgement {
    let null = baseline.null(&parameters.csi);
    let statistics = &evaluated.statistics;
    let samples = window.len();
    let effective_samples = if statistics.groups > 0 {
        let prompts: Vec<Option<u64>> = window.iter().map(|s| s.prompt).collect();
        let latents = window.iter().flat_map(|sample| &sample.latent);
        let latents: Vec<f64> = latents.map(|&value| f64::from(value)).collect();
        // Of one dimension where there are statistics of them.
        Array2::from_shape_vec((samples, baseline.latents.ncols()), latents)
            .map_or(samples as f64, |latents| null.effective_samples(latents.view(), &prompts))
    } else {
        samples as f64
    };
    let observed = Observed {
        samples,
        effective_samples,
        energy: statistics.energy,
        csi_per_sample: statistics.csi_per_sample,
        mop: statistics.mop,
        mop_threshold: baseline.reference(&parameters.csi).outlier_distance(parameters.mop_alpha),
        dispersion_ratio: statistics.dispersion_ratio,
        distinct_ratio: statistics.distinct_ratio,
    };
    Judgement {
        null: Some(null.judge(baseline.latents.view(), &observed)),
        outlying: outlying(window, &evaluated.distances),
    }
}

fn outlying(window: &[Sample], distances: &[f64]) -> Vec<OutlyingSample> {
    let mut order: Vec<usize> = (0..distances.len().min(window.len())).collect();
    order.sort_by(|&a, &b| distances[b].total_cmp(&distances[a]));
    let named = order.into_iter().take(OUTLYING).map(|row| {
        let sample = &window[row];
        OutlyingSample {
            request: sample.request.to_string(),
            index: sample.index,
            mahalanobis: Some(distances[row]).filter(|distance| distance.is_finite()),
            reward: sample.reward,
        }
    });
    named.collect()
}
