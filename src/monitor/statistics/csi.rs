//! The Cluster Separation Index: how far a policy's latents have left those of the SFT model.
//!
//! Equations 6 to 8 and Algorithm 3 of InfoRM (NeurIPS 2024).

use std::fmt;

use ndarray::{Array1, Array2, ArrayView1, ArrayView2};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::gram::{Centred, mean};
use super::nearest::k_distances;
use super::neighbours::NeighbourGraph;
use super::pairs::{Points, between};
use super::rewards::quantile;

/// What becomes of the latents that DBSCAN leaves out of every cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
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

/// Where the radius of DBSCAN comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum EpsMode {
    /// It is [`CsiParameters::eps`].
    #[default]
    Fixed,
    /// It is a quantile of the baseline's k-distances, that is of the distances within which a latent
    /// has `min_samples` neighbours, itself included: what is dense among SFT outputs is dense.
    Calibrated,
}

/// How the policy's latents are clustered. The defaults are scikit-learn's, as in Algorithm 3.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CsiParameters {
    /// Euclidean distance, in latent units, up to which two latents are neighbours, inclusive.
    #[schema(exclusive_minimum = 0)]
    pub eps: f64,
    /// Whether `eps` is used, or a distance calibrated on the baseline.
    pub eps_mode: EpsMode,
    /// The quantile of the baseline's k-distances that is the calibrated `eps`, from 0 to 1.
    pub eps_quantile: f64,
    /// Neighbours that make a latent a core point, itself included.
    #[schema(minimum = 1)]
    pub min_samples: usize,
    /// What becomes of noise.
    pub noise: NoisePolicy,
}

impl Default for CsiParameters {
    fn default() -> Self {
        Self {
            eps: 0.5,
            eps_mode: EpsMode::Fixed,
            eps_quantile: 0.9,
            min_samples: 5,
            noise: NoisePolicy::Paper,
        }
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
    /// The radius in use.
    pub eps: f64,
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
    /// `eps_quantile` is not from 0 to 1.
    #[error("eps_quantile must be from 0 to 1, not {0}")]
    EpsQuantile(f64),
    /// The baseline gives no radius: too many of its latents are the same, or it has too few.
    #[error(
        "eps cannot be calibrated on {rows} baseline latents: the {quantile} quantile of their \
         distances to {min_samples} neighbours is no positive number; use eps_mode = \"fixed\""
    )]
    Uncalibrated {
        /// Number of baseline latents.
        rows: usize,
        /// `eps_quantile`.
        quantile: f64,
        /// `min_samples`.
        min_samples: usize,
    },
    /// `min_samples` is 0, or more than JSON holds exactly.
    #[error("min_samples must be at least 1, since a latent is its own neighbour, and below 2^53")]
    MinSamples,
}

impl CsiParameters {
    /// Checks the ranges.
    ///
    /// # Errors
    /// `eps` that is not a positive distance, an `eps_quantile` that is none, or no `min_samples`.
    pub fn check(&self) -> Result<(), CsiError> {
        if !(self.eps.is_finite() && self.eps > 0.0) {
            return Err(CsiError::Eps(self.eps));
        }
        if !(0.0..=1.0).contains(&self.eps_quantile) {
            return Err(CsiError::EpsQuantile(self.eps_quantile));
        }
        if !(1..1 << 53).contains(&(self.min_samples as u64)) {
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
/// Costs `(N^2 + 2 C M) d` operations, `C` being the number of clusters, and `N^2 / 8` bytes, see
/// [`NeighbourGraph`]; a calibrated `eps` costs `2 M^2 d` more. Callers bound `N`.
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
    if policy.ncols() != baseline.ncols() {
        return Err(CsiError::DimensionMismatch {
            policy: policy.ncols(),
            baseline: baseline.ncols(),
        });
    }
    let eps = match parameters.eps_mode {
        EpsMode::Fixed => parameters.eps,
        EpsMode::Calibrated => {
            calibrated_eps(&k_distances(baseline, parameters.min_samples), parameters)?
        }
    };
    let clustering = Clustering::new(&NeighbourGraph::new(policy, eps), eps, parameters);
    let origin = mean(baseline);
    let (centred, sft) = (Centred::new(policy, &origin), Centred::new(baseline, &origin));
    Ok(clustering.separation(&centred, &sft, None))
}

impl CsiParameters {
    /// The radius without a baseline.
    ///
    /// # Errors
    /// In [`EpsMode::Calibrated`], which takes one.
    pub(in crate::monitor) fn fixed_eps(&self) -> Result<f64, CsiError> {
        match self.eps_mode {
            EpsMode::Fixed => Ok(self.eps),
            EpsMode::Calibrated => calibrated_eps(&[], self),
        }
    }
}

/// The radius that a baseline with these k-distances, at `min_samples` neighbours, gives.
///
/// # Errors
/// Where it gives none.
pub(in crate::monitor) fn calibrated_eps(
    k_distances: &[f64],
    parameters: &CsiParameters,
) -> Result<f64, CsiError> {
    let eps = quantile(k_distances, parameters.eps_quantile);
    eps.filter(|eps| eps.is_finite() && *eps > 0.0).ok_or(CsiError::Uncalibrated {
        rows: k_distances.len(),
        quantile: parameters.eps_quantile,
        min_samples: parameters.min_samples,
    })
}

/// The clusters of the policy's latents, which take no baseline.
#[derive(Debug)]
pub(in crate::monitor) struct Clustering {
    /// The group of each latent that counts: its cluster, or what the noise policy makes of noise.
    groups: Vec<Option<usize>>,
    pub(in crate::monitor) eps: f64,
    pub(in crate::monitor) clusters: usize,
    pub(in crate::monitor) noise_fraction: f64,
}

impl Clustering {
    pub(in crate::monitor) fn new(
        graph: &NeighbourGraph,
        eps: f64,
        parameters: &CsiParameters,
    ) -> Self {
        let labels = graph.clusters(parameters.min_samples);
        let clusters = count(&labels);
        let noise = labels.iter().filter(|label| label.is_none()).count();
        let noise_fraction = noise as f64 / labels.len() as f64;
        let mut unused = clusters..;
        let groups = labels
            .into_iter()
            .map(|label| {
                label.or_else(|| match parameters.noise {
                    NoisePolicy::Paper => Some(clusters),
                    NoisePolicy::Singletons => unused.next(),
                    NoisePolicy::Drop => None,
                })
            })
            .collect();
        Self { groups, eps, clusters, noise_fraction }
    }

    /// Equation 8. The two sets have one origin, of which distances do not depend, but the rounding of
    /// means does. `nearest` are the distances of the policy's latents to their nearest baseline
    /// latents, where they are known: those of groups of one.
    pub(in crate::monitor) fn separation(
        &self,
        policy: &Centred,
        baseline: &Centred,
        nearest: Option<&[f64]>,
    ) -> Csi {
        let (centroids, sizes) = centroids(policy.rows(), &self.groups);
        let mut distances = vec![f64::NAN; sizes.len()];
        if let Some(nearest) = nearest {
            for (group, nearest) in self.groups.iter().zip(nearest) {
                if let Some(group) = group.filter(|&group| sizes[group] == 1.0) {
                    distances[group] = *nearest;
                }
            }
        }
        let unknown: Vec<usize> = (0..sizes.len()).filter(|&g| distances[g].is_nan()).collect();
        let queries = centroids.select(ndarray::Axis(0), &unknown);
        let centred = Centred::new(queries.view(), &Array1::zeros(queries.ncols()));
        let found = between(
            Points { plain: queries.view(), centred: &centred },
            Points { plain: baseline.rows(), centred: baseline },
            1,
            false,
        );
        for (group, distance) in unknown.into_iter().zip(found.nearest) {
            distances[group] = distance;
        }
        let csi = sizes.iter().zip(distances).fold(0.0, |sum, (size, far)| sum + size * far);
        let samples = self.groups.len();
        Csi {
            csi,
            per_sample: csi / samples as f64,
            clusters: self.clusters,
            noise_fraction: self.noise_fraction,
            samples,
            eps: self.eps,
        }
    }
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

/// The number of groups, which are numbered without gaps from 0.
fn count(groups: &[Option<usize>]) -> usize {
    groups.iter().flatten().max().map_or(0, |last| last + 1)
}

/// Mean (equation 6) and size of each group of rows.
fn centroids(points: ArrayView2<'_, f64>, groups: &[Option<usize>]) -> (Array2<f64>, Vec<f64>) {
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
