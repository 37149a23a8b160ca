//! The Cluster Separation Index: how far a policy's latents have left those of the SFT model.
//!
//! Equations 6 to 8 and Algorithm 3 of InfoRM (NeurIPS 2024).

use std::fmt;

use linfa::ParamGuard;
use linfa::traits::Transformer;
use linfa_clustering::Dbscan;
use linfa_nn::distance::L2Dist;
use ndarray::{Array2, ArrayView1, ArrayView2};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::neighbours::{GramNeighbours, nearest_distances};

/// What becomes of the latents that DBSCAN leaves out of every cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NoisePolicy {
    /// All noise is one cluster with one centroid: Algorithm 3 loops over the set of labels, and
    /// noise is a label.
    #[default]
    Paper,
    /// Each noise point is a cluster of its own: an outlier counts at its own distance.
    Singletons,
    /// Noise does not count.
    Drop,
}

/// How the policy's latents are clustered. The defaults are scikit-learn's, as in Algorithm 3.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CsiParameters {
    /// Euclidean distance, in latent units, up to which two latents are neighbours, inclusive.
    pub eps: f64,
    /// Neighbours that make a latent a core point, itself included.
    pub min_samples: usize,
    /// What becomes of noise.
    pub noise: NoisePolicy,
}

impl Default for CsiParameters {
    fn default() -> Self {
        Self { eps: 0.5, min_samples: 5, noise: NoisePolicy::Paper }
    }
}

/// A Cluster Separation Index, with what is needed to read it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Csi {
    /// The sum over clusters of size times distance from the centroid to the nearest baseline
    /// latent, in latent units (equation 8). It grows with the number of samples.
    pub csi: f64,
    /// `csi` over the number of samples: comparable between evaluations of different size.
    pub per_sample: f64,
    /// Clusters that DBSCAN found; noise is none of them.
    pub clusters: usize,
    /// Share of the samples that is noise, from 0 to 1. Near 1, `csi` tells little more than the
    /// distance of the mean under [`NoisePolicy::Paper`]: `eps` is too small for this latent space.
    pub noise_fraction: f64,
    /// Number of policy latents.
    pub samples: usize,
}

/// One of the two sets that [`csi()`] compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LatentSet {
    /// Latents of the policy's outputs.
    Policy,
    /// Latents of the SFT model's outputs.
    Baseline,
}

impl fmt::Display for LatentSet {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Policy => "policy",
            Self::Baseline => "baseline",
        })
    }
}

/// Why there is no Cluster Separation Index.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum CsiError {
    /// A set without latents, or with latents of dimension 0.
    #[error("the {set} latents are empty: their shape is [{rows}, {dimension}]")]
    Empty {
        /// The empty set.
        set: LatentSet,
        /// Its number of latents.
        rows: usize,
        /// Its latent dimension.
        dimension: usize,
    },
    /// The two sets come from different latent spaces.
    #[error("the policy latents have dimension {policy}, the baseline latents {baseline}")]
    DimensionMismatch {
        /// Dimension of the policy's latents.
        policy: usize,
        /// Dimension of the baseline's latents.
        baseline: usize,
    },
    /// A latent with a NaN or an infinity.
    #[error("row {row} of the {set} latents is not finite")]
    NonFinite {
        /// The set with that latent.
        set: LatentSet,
        /// The first such row, from 0.
        row: usize,
    },
    /// `eps` is zero, negative, infinite or NaN.
    #[error("eps must be a positive, finite distance, not {0}")]
    Eps(f64),
    /// `min_samples` is 0.
    #[error("min_samples must be at least 1: a latent is its own neighbour")]
    MinSamples,
}

impl CsiParameters {
    /// Checks the ranges.
    ///
    /// # Errors
    /// `eps` that is not a positive distance, or no `min_samples`.
    pub fn check(&self) -> Result<(), CsiError> {
        if !(self.eps.is_finite() && self.eps > 0.0) {
            return Err(CsiError::Eps(self.eps));
        }
        if self.min_samples == 0 {
            return Err(CsiError::MinSamples);
        }
        Ok(())
    }
}

/// The Cluster Separation Index of a policy against a baseline (InfoRM, NeurIPS 2024, Algorithm 3).
///
/// `policy` is `[N, d]`, the latent means of the policy's outputs; `baseline` is `[M, d]`, those of
/// the SFT model's outputs for the same prompts. The clusters of `policy` are scikit-learn's
/// `DBSCAN(eps, min_samples)` over Euclidean distances.
///
/// The result depends on the order of rows only by rounding, and by a border point that two
/// clusters can claim: the cluster of the earliest core point has it, as in scikit-learn. A
/// centroid adds its members in the order of rows; the clusters are added in the order of their
/// earliest core points, then what is isolated or noise.
///
/// Costs `(N^2 + 2 N M) d` operations at most and `N^2 / 8` bytes, see [`GramNeighbours`]; callers
/// bound `N`.
///
/// # Errors
///
/// See [`CsiError`].
pub fn csi(
    policy: ArrayView2<'_, f64>,
    baseline: ArrayView2<'_, f64>,
    parameters: &CsiParameters,
) -> Result<Csi, CsiError> {
    parameters.check()?;
    validate(policy, LatentSet::Policy)?;
    validate(baseline, LatentSet::Baseline)?;
    let mismatch =
        CsiError::DimensionMismatch { policy: policy.ncols(), baseline: baseline.ncols() };
    if policy.ncols() != baseline.ncols() {
        return Err(mismatch);
    }

    let labels = dbscan(policy, parameters.eps, parameters.min_samples)?;
    let samples = labels.len();
    let clusters = count(&labels);
    let noise = labels.iter().filter(|label| label.is_none()).count();

    let mut unused = clusters..;
    let groups: Vec<_> = labels
        .into_iter()
        .map(|label| {
            label.or_else(|| match parameters.noise {
                NoisePolicy::Paper => Some(clusters),
                NoisePolicy::Singletons => unused.next(),
                NoisePolicy::Drop => None,
            })
        })
        .collect();
    // Distances do not depend on the origin, but the rounding of means does.
    let origin = baseline.row(0);
    let (centroids, sizes) = centroids(&policy - &origin, &groups);
    let sft = &baseline - &origin;
    let distances = nearest_distances(centroids.view(), sft.view()).map_err(|_| mismatch)?;
    let csi = sizes.iter().zip(distances).fold(0.0, |sum, (size, distance)| sum + size * distance);
    Ok(Csi {
        csi,
        per_sample: csi / samples as f64,
        clusters,
        noise_fraction: noise as f64 / samples as f64,
        samples,
    })
}

fn validate(latents: ArrayView2<'_, f64>, set: LatentSet) -> Result<(), CsiError> {
    let (rows, dimension) = latents.dim();
    if latents.is_empty() {
        return Err(CsiError::Empty { set, rows, dimension });
    }
    let finite = |row: ArrayView1<'_, f64>| row.iter().all(|value| value.is_finite());
    match latents.outer_iter().position(|row| !finite(row)) {
        Some(row) => Err(CsiError::NonFinite { set, row }),
        None => Ok(()),
    }
}

/// The cluster of each row, numbered without gaps from 0; `None` is noise.
fn dbscan(
    points: ArrayView2<'_, f64>,
    eps: f64,
    min_samples: usize,
) -> Result<Vec<Option<usize>>, CsiError> {
    let mut labels =
        Dbscan::params_with(min_samples.max(2), L2Dist, GramNeighbours { radius: eps })
            .tolerance(eps)
            .check()
            .map_err(|_| CsiError::Eps(eps))?
            .transform(&points)
            .to_vec();
    if min_samples == 1 {
        // The library starts at 2. There each point with a neighbour is a core point already, so
        // that only the isolated ones differ: alone they are core points too.
        let mut unused = count(&labels)..;
        for label in &mut labels {
            *label = label.or_else(|| unused.next());
        }
    }
    Ok(labels)
}

/// The number of groups, which are numbered without gaps from 0.
fn count(groups: &[Option<usize>]) -> usize {
    groups.iter().flatten().max().map_or(0, |last| last + 1)
}

/// Mean (equation 6) and size of each group of rows.
fn centroids(points: Array2<f64>, groups: &[Option<usize>]) -> (Array2<f64>, Vec<f64>) {
    let mut sizes = vec![0.0; count(groups)];
    let mut means = Array2::zeros((sizes.len(), points.ncols()));
    for (point, group) in points.outer_iter().zip(groups) {
        if let Some(group) = *group {
            sizes[group] += 1.0;
            means.row_mut(group).scaled_add(1.0, &point);
        }
    }
    for (mut mean, size) in means.outer_iter_mut().zip(&sizes) {
        mean /= *size;
    }
    (means, sizes)
}
