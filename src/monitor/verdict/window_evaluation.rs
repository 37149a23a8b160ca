//! The evaluation of a window: all statistics, each pair of latents looked at once.

use ndarray::{Array2, ArrayView2};

use super::window_statistics::{WindowEvaluation, WindowStatistics};
use crate::monitor::answers::{BaselineSet, Sample};
use crate::monitor::statistics::{
    Clustering, CsiError, Groups, LatentSet, Mahalanobis, Points, Quantiles, Reference,
    StatisticsParameters, average, between, combine, distinct_ratio, kth, moments, share_above,
    spearman, total_variance, within,
};

/// Computes all statistics of a window of `N` samples; without a baseline, those that need none.
///
/// Costs `(N^2 + 2 N M + 2 N d) d` floating-point operations, `N^2 / 2 + N M` roots and `N^2 / 8` bytes
/// against a baseline of `M` latents of dimension `d`, and once for each baseline what its
/// [`Reference`] does.
pub fn evaluate_window(
    samples: &[Sample],
    baseline: Option<&BaselineSet>,
    parameters: &StatisticsParameters,
) -> WindowEvaluation {
    let mut evaluation = WindowEvaluation::default();
    let reference = baseline.map(|baseline| baseline.reference(&parameters.csi));
    answers(samples, reference, &mut evaluation.statistics);
    match window_latents(samples, reference) {
        Ok(Some(latents)) => evaluate_latents(&latents, reference, parameters, &mut evaluation),
        Ok(None) => {}
        Err(error) => evaluation.csi_error = reference.map(|_| error),
    }
    if let Some(reference) = reference {
        paired(samples, reference, &mut evaluation.statistics);
    }
    evaluation.statistics.keep_finite();
    evaluation
}

/// The latents `[N, d]` of the samples; `None` for no samples.
fn window_latents(
    samples: &[Sample],
    reference: Option<&Reference>,
) -> Result<Option<Array2<f64>>, CsiError> {
    let Some(first) = samples.first() else { return Ok(None) };
    let (rows, policy) = (samples.len(), first.latent.len());
    if policy == 0 {
        return Err(CsiError::Empty { set: LatentSet::Policy, rows, dimension: 0 });
    }
    let baseline = reference.map_or(policy, Reference::dimension);
    if let Some(other) = samples.iter().find(|sample| sample.latent.len() != baseline) {
        return Err(CsiError::DimensionMismatch { policy: other.latent.len(), baseline });
    }
    let finite = |sample: &Sample| sample.latent.iter().all(|value| value.is_finite());
    if let Some(row) = samples.iter().position(|sample| !finite(sample)) {
        return Err(CsiError::NonFinite { set: LatentSet::Policy, row });
    }
    let values = samples.iter().flat_map(|sample| &sample.latent).map(|&v| f64::from(v)).collect();
    Ok(Array2::from_shape_vec((rows, policy), values).ok())
}

/// What takes the latents of the window, `[N, d]`.
fn evaluate_latents(
    latents: &Array2<f64>,
    reference: Option<&Reference>,
    parameters: &StatisticsParameters,
    evaluation: &mut WindowEvaluation,
) {
    let statistics = &mut evaluation.statistics;
    let checked = parameters.csi.check();
    let eps = checked.and_then(|()| match reference {
        Some(reference) => reference.eps(&parameters.csi),
        None => parameters.csi.fixed_eps(),
    });
    let (graph, mean_distance) = within(latents.view(), eps.as_ref().ok().copied(), true);
    let clustering = match eps {
        Ok(eps) => Some(Clustering::new(&graph, eps, &parameters.csi)),
        Err(error) => {
            evaluation.csi_error = reference.map(|_| error);
            None
        }
    };
    drop(graph);
    if let Some(clustering) = &clustering {
        statistics.clusters = Some(clustering.clusters);
        statistics.noise_fraction = Some(clustering.noise_fraction);
        statistics.eps = Some(clustering.eps);
    }
    let Some(reference) = reference else { return };

    let centred = reference.centre(latents.view());
    let window = Points { plain: centred.rows(), centred: &centred };
    // Of a baseline with fewer latents than are asked for, only the nearest one is looked for.
    let has_enough = parameters.neighbours <= reference.points().centred.len();
    let k = if has_enough { parameters.neighbours.max(1) } else { 1 };
    let found = between(window, reference.points(), k, true);
    statistics.energy =
        Some(combine(average(&found.mean_distances), mean_distance, reference.mean_distance()));
    statistics.knn_distance = has_enough.then(|| average(&kth(&found.nearest, k)));
    if let Some(clustering) = clustering {
        let nearest: Vec<f64> = found.nearest.iter().step_by(k).copied().collect();
        let csi = clustering.separation(&centred, reference.points().centred, Some(&nearest));
        statistics.csi = Some(csi.csi);
        statistics.csi_per_sample = Some(csi.per_sample);
    }
    spread(latents.view(), reference, statistics);
    if let Some(mahalanobis) = reference.mahalanobis() {
        evaluation.distances = mahalanobis.distances(latents.view());
        statistics.mahalanobis_mean = Some(average(&evaluation.distances));
        let limit = reference.outlier_distance(parameters.mop_alpha);
        statistics.mop = limit.and_then(|limit| share_above(&evaluation.distances, limit));
    }
}

fn spread(latents: ArrayView2<'_, f64>, reference: &Reference, statistics: &mut WindowStatistics) {
    let variances = total_variance(latents).zip(reference.total_variance());
    statistics.dispersion_ratio = variances.map(|(window, baseline)| window / baseline);
    let log_determinants = Mahalanobis::fit(latents)
        .ok()
        .zip(reference.mahalanobis())
        .map(|(window, baseline)| window.log_determinant() - baseline.log_determinant());
    statistics.dispersion_log_det =
        log_determinants.map(|difference| difference / latents.ncols() as f64);
}

/// What takes no latents.
fn answers(samples: &[Sample], reference: Option<&Reference>, statistics: &mut WindowStatistics) {
    let rewards: Vec<f64> = samples.iter().map(|sample| f64::from(sample.reward)).collect();
    let tokens: Vec<f64> = samples.iter().map(|sample| f64::from(sample.tokens)).collect();
    let characters: Option<Vec<f64>> =
        samples.iter().map(|sample| sample.response_characters.map(f64::from)).collect();
    (statistics.reward_mean, statistics.reward_std) = moments(&rewards).unwrap_or_default();
    statistics.reward_quantiles = Quantiles::of(&rewards);
    statistics.saturation =
        reference.and_then(Reference::saturated).and_then(|limit| share_above(&rewards, limit));
    let lengths = characters.as_deref().unwrap_or(&tokens);
    statistics.reward_length_rho = spearman(&rewards, lengths);
    statistics.tokens_mean = moments(&tokens).unwrap_or_default().0;
    let mean = |values: &[f64]| moments(values).map(|(mean, _)| mean);
    statistics.response_characters_mean = characters.as_deref().and_then(mean);
    let mean_of = |value: fn(&Sample) -> f32| {
        mean(&samples.iter().map(|sample| f64::from(value(sample))).collect::<Vec<_>>())
    };
    statistics.sigma_mean = mean_of(|sample| sample.sigma);
    statistics.divergence_mean = mean_of(|sample| sample.divergence);
    statistics.distinct_ratio = distinct_ratio(samples.iter().map(|sample| sample.sequence));
    let named = samples.iter().filter_map(|sample| Some((sample.prompt?, sample.reward)));
    let groups = Groups::of(named);
    statistics.groups = groups.groups;
    statistics.group_zero_variance_rate = groups.zero_variance_rate();
}

/// The distance to the SFT answers of the same prompts.
fn paired(samples: &[Sample], reference: &Reference, statistics: &mut WindowStatistics) {
    let distances: Vec<f64> = samples
        .iter()
        .filter_map(|sample| reference.paired_distance(sample.prompt?, &sample.latent))
        .collect();
    statistics.paired_samples = distances.len();
    statistics.paired_distance = (!distances.is_empty()).then(|| average(&distances));
}
