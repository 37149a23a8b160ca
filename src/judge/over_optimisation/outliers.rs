//! What a reward model says of single answers: their rewards, and how far their latents are from a baseline's.

use std::path::Path;

use anyhow::Context;
use ndarray::Array2;
use serde::Serialize;

use crate::checkpoint::Checkpoint;
use crate::judge::session::LabelledAnswer;
use crate::monitor::statistics::StatisticsParameters;
use crate::monitor::statistics::nearest::{k_nearest_distances, nearest_distances};
use crate::monitor::statistics::neighbours::NeighbourGraph;
use crate::monitor::{BaselineSet, MonitorConfig, Sample};
use crate::train::{Compute, Scoring};

/// What a reward model says of an answer. What takes latents or a baseline is absent without.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct AnswerStatistics {
    /// Distance of the latent to the k-th nearest baseline latent, k as the monitor has it.
    pub knn_distance: Option<f64>,
    /// Mahalanobis distance from the baseline, not squared.
    pub mahalanobis: Option<f64>,
    /// Distance to the nearest baseline latent of the centroid of the answer's cluster (equation 7 of the paper), where
    /// DBSCAN clusters all answers; of an answer in no cluster, its own.
    pub cluster_distance: Option<f64>,
    /// 1 for an answer that DBSCAN leaves out of every cluster, else 0.
    pub dbscan_noise: Option<f64>,
    /// KL divergence of the posterior from `N(0, I)`, in nats.
    pub divergence: Option<f64>,
    /// The reward.
    pub reward: f64,
}

/// A statistic's name, and its value for an answer.
pub(super) type Statistic = (&'static str, fn(&AnswerStatistics) -> Option<f64>);

/// The statistics, all of which are expected to be greater for over-optimised answers.
pub(super) const STATISTICS: [Statistic; 6] = [
    ("knn_distance", |found| found.knn_distance),
    ("mahalanobis", |found| found.mahalanobis),
    ("cluster_distance", |found| found.cluster_distance),
    ("dbscan_noise", |found| found.dbscan_noise),
    ("divergence", |found| found.divergence),
    ("reward", |found| Some(found.reward)),
];

/// A reward model, and what its answers are compared with.
#[derive(Debug, Clone, Copy)]
pub(super) struct RewardModelSettings<'a> {
    /// Checkpoint folder.
    pub(super) model: &'a Path,
    /// SFT answers instead of the checkpoint's baseline.
    pub(super) baseline: Option<&'a Path>,
    pub(super) compute: &'a Compute,
}

/// What a reward model says of all answers.
pub(super) struct Outliers {
    pub(super) name: String,
    pub(super) weights: String,
    pub(super) baseline_samples: Option<usize>,
    /// Why statistics are missing.
    pub(super) note: Option<String>,
    /// One an answer.
    pub(super) statistics: Vec<AnswerStatistics>,
}

impl RewardModelSettings<'_> {
    /// Scores the answers, and compares their latents with the baseline's by the monitor's default settings.
    ///
    /// # Errors
    /// A checkpoint or baseline that cannot be read, an answer that is too long for the model or whose reward or latent is
    /// not finite.
    pub(super) fn outliers(&self, answers: &[LabelledAnswer]) -> anyhow::Result<Outliers> {
        let open = match self.baseline {
            None => Checkpoint::open,
            Some(_) => Checkpoint::open_without_baseline,
        };
        let checkpoint = open(self.model).with_context(|| self.model.display().to_string())?;
        let mut scoring = Scoring::load(&checkpoint, self.compute)?;
        let config = MonitorConfig::default();
        let compared_with = scoring.compared_with(self.baseline, &config)?;
        let scored = scoring.responses(answers.iter().map(|answer| &answer.response))?;
        let mut statistics: Vec<AnswerStatistics> = scored
            .iter()
            .map(|(score, sample)| AnswerStatistics {
                reward: f64::from(score.reward),
                divergence: sample.as_ref().map(|sample| f64::from(sample.divergence)),
                ..AnswerStatistics::default()
            })
            .collect();
        let (baseline_samples, note) = match compared_with {
            Ok(baseline) => {
                let samples: Vec<&Sample> =
                    scored.iter().filter_map(|(_, sample)| sample.as_ref()).collect();
                let parameters = config.statistics_parameters();
                let note = compare(&samples, &baseline, &parameters, &mut statistics)?;
                (Some(baseline.len()), note)
            }
            Err(reason) => (None, Some(format!("no distances of latents: {reason}"))),
        };
        Ok(Outliers {
            name: checkpoint.name.clone(),
            weights: checkpoint.weights.clone(),
            baseline_samples,
            note,
            statistics,
        })
    }
}

/// Enters what takes a baseline; says what of it is missing.
fn compare(
    samples: &[&Sample],
    baseline: &BaselineSet,
    parameters: &StatisticsParameters,
    statistics: &mut [AnswerStatistics],
) -> anyhow::Result<Option<String>> {
    let values: Vec<f64> =
        samples.iter().flat_map(|sample| &sample.latent).map(|&value| f64::from(value)).collect();
    let latents = Array2::from_shape_vec((samples.len(), baseline.latents.ncols()), values)
        .context("the latents of answers and baseline differ in dimension")?;
    let mut missing = Vec::new();
    let k = parameters.neighbours;
    if k <= baseline.len() {
        let nearest = k_nearest_distances(latents.view(), baseline.latents.view(), k);
        for (found, nearest) in statistics.iter_mut().zip(nearest.chunks_exact(k)) {
            found.knn_distance = nearest.last().copied();
        }
    } else {
        missing.push(format!("the baseline has fewer than {k} latents: no knn_distance"));
    }
    match &baseline.mahalanobis {
        Some(mahalanobis) => {
            for (found, distance) in
                statistics.iter_mut().zip(mahalanobis.distances(latents.view()))
            {
                found.mahalanobis = Some(distance);
            }
        }
        None => missing.push("the baseline has no covariance: no mahalanobis".to_owned()),
    }
    match baseline.reference(&parameters.csi).eps(&parameters.csi) {
        Ok(eps) => {
            let graph = NeighbourGraph::new(latents.view(), eps);
            let clusters = graph.clusters(parameters.csi.min_samples);
            let distances =
                nearest_distances(centroids(&latents, &clusters).view(), baseline.latents.view());
            for ((found, cluster), distance) in statistics.iter_mut().zip(&clusters).zip(distances)
            {
                found.cluster_distance = Some(distance);
                found.dbscan_noise = Some(if cluster.is_none() { 1.0 } else { 0.0 });
            }
        }
        Err(error) => missing.push(format!("{error}: no clusters")),
    }
    Ok((!missing.is_empty()).then(|| missing.join("; ")))
}

/// For each latent `[N, d]` the mean of its cluster, or itself where it is in none.
fn centroids(latents: &Array2<f64>, clusters: &[Option<usize>]) -> Array2<f64> {
    let count = clusters.iter().flatten().max().map_or(0, |last| last + 1);
    let mut sums = Array2::<f64>::zeros((count, latents.ncols()));
    let mut sizes = vec![0.0; count];
    for (latent, cluster) in latents.outer_iter().zip(clusters) {
        if let Some(cluster) = *cluster {
            sums.row_mut(cluster).scaled_add(1.0, &latent);
            sizes[cluster] += 1.0;
        }
    }
    let mut centroids = latents.clone();
    for (mut row, cluster) in centroids.outer_iter_mut().zip(clusters) {
        if let Some(cluster) = *cluster {
            row.assign(&(&sums.row(cluster) / sizes[cluster]));
        }
    }
    centroids
}
