//! Mahalanobis distance of a latent from those of the SFT model.
//!
//! The covariance is the well-conditioned estimate of Ledoit and Wolf (2004), as in scikit-learn's
//! `LedoitWolf`: it is positive definite even where there are fewer latents than dimensions.

use ndarray::{Array1, Array2, ArrayView1, ArrayView2, s};
use thiserror::Error;

use super::gram::mean;

/// Mean and covariance of the SFT model's latents, ready to measure distances from them.
#[derive(Clone, Debug, PartialEq)]
pub struct Mahalanobis {
    mean: Array1<f64>,
    /// Lower Cholesky factor of the covariance; what is above the diagonal is never read.
    factor: Array2<f64>,
    shrinkage: f64,
}

/// Why there is no Mahalanobis distance from a baseline.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum MahalanobisError {
    /// Fewer than 2 latents.
    #[error("a covariance takes at least 2 baseline latents, there are {rows}: give more of them")]
    TooFew {
        /// The number of baseline latents.
        rows: usize,
    },
    /// Latents of dimension 0.
    #[error("the baseline latents have dimension 0: give latents with at least 1 coordinate")]
    ZeroDimension,
    /// A latent with a NaN or an infinity.
    #[error("row {row} of the baseline latents is not finite: leave it out or compute it anew")]
    NonFinite {
        /// The first such row, from 0.
        row: usize,
    },
    /// All latents are the same.
    #[error("all {rows} baseline latents are the same: give latents of outputs that differ")]
    Constant {
        /// The number of baseline latents.
        rows: usize,
    },
    /// Latents whose squares `f64` cannot hold.
    #[error("the variance of the baseline latents is out of range for f64: rescale all latents")]
    OutOfRange,
    /// Latents that leave the covariance singular although it was shrunk.
    #[error(
        "the covariance of the {rows} baseline latents is not positive definite: \
         give more latents, of which at least 3 differ"
    )]
    NotPositiveDefinite {
        /// The number of baseline latents.
        rows: usize,
    },
}

impl Mahalanobis {
    /// Mean and shrunk covariance of `baseline`, the `[M, d]` latent means of the SFT model's
    /// outputs.
    ///
    /// Costs `2 M d^2 + d^3 / 3` operations, and memory for `M d + d^2` numbers.
    ///
    /// # Errors
    ///
    /// See [`MahalanobisError`]. Shrinkage cannot help where all latents lie at the same distance
    /// from their mean and on one line, as any two do: then it is zero.
    pub fn fit(baseline: ArrayView2<'_, f64>) -> Result<Self, MahalanobisError> {
        let (rows, dimension) = baseline.dim();
        if rows < 2 {
            return Err(MahalanobisError::TooFew { rows });
        }
        if dimension == 0 {
            return Err(MahalanobisError::ZeroDimension);
        }
        let finite = |row: ArrayView1<'_, f64>| row.iter().all(|value| value.is_finite());
        if let Some(row) = baseline.outer_iter().position(|row| !finite(row)) {
            return Err(MahalanobisError::NonFinite { row });
        }

        // A covariance does not depend on the origin, but its rounding does: with a latent as the
        // origin, latents that are all the same have one of exactly zero.
        let origin = baseline.row(0);
        let mut centred = &baseline - &origin;
        if centred.iter().all(|value| *value == 0.0) {
            return Err(MahalanobisError::Constant { rows });
        }
        let offset = mean(centred.view());
        centred -= &offset;
        let mut covariance = centred.t().dot(&centred);
        covariance /= rows as f64;
        let mu = covariance.diag().sum() / dimension as f64;
        if !mu.is_normal() {
            return Err(MahalanobisError::OutOfRange);
        }

        let shrinkage = shrinkage(&centred, &covariance, mu);
        covariance *= 1.0 - shrinkage;
        covariance.diag_mut().map_inplace(|variance| *variance += shrinkage * mu);
        let factor = cholesky(covariance).ok_or(MahalanobisError::NotPositiveDefinite { rows })?;
        Ok(Self { mean: offset + origin, factor, shrinkage })
    }

    /// The distance of a latent `x` from the mean `m` in terms of the covariance `S`:
    /// `sqrt((x - m)^T S^-1 (x - m))`, not squared. It has no unit, and is of the order of
    /// `sqrt(d)` for an output of the SFT model.
    ///
    /// NaN for a latent of another dimension, and not finite for one that is not finite.
    pub fn distance(&self, latent: &[f32]) -> f64 {
        self.length(latent.iter().map(|&value| f64::from(value)))
    }

    /// [`Self::distance`] of each row of `latents`, `[N, d]`. Costs `N d^2` operations.
    pub fn distances(&self, latents: ArrayView2<'_, f64>) -> Vec<f64> {
        latents.outer_iter().map(|latent| self.length(latent.iter().copied())).collect()
    }

    fn length(&self, latent: impl ExactSizeIterator<Item = f64>) -> f64 {
        if latent.len() != self.dimension() {
            return f64::NAN;
        }
        // Where S = L L^T, the distance is the length of the z that solves L z = x - m.
        let mut z = Array1::zeros(latent.len());
        for (i, (value, mean)) in latent.zip(&self.mean).enumerate() {
            let row = self.factor.row(i);
            z[i] = (value - mean - row.slice(s![..i]).dot(&z.slice(s![..i]))) / row[i];
        }
        z.dot(&z).sqrt()
    }

    /// The weight, from 0 to 1, of the multiple of the identity in the covariance. At 1 the baseline
    /// does not tell its directions apart, and the distance is a multiple of the Euclidean one.
    pub fn shrinkage(&self) -> f64 {
        self.shrinkage
    }

    /// The logarithm of the determinant of the covariance: twice that of its factor.
    pub fn log_determinant(&self) -> f64 {
        2.0 * self.factor.diag().iter().map(|value| value.ln()).sum::<f64>()
    }

    /// The latent dimension of the baseline.
    pub fn dimension(&self) -> usize {
        self.mean.len()
    }
}

/// The shrinkage towards `mu I` of Ledoit and Wolf (2004): the estimated variance `beta` of the
/// covariance over its squared distance `delta` from `mu I`, at most 1.
///
/// Both are taken in units of `mu^2`, which cancels, so that no fourth power leaves the range of
/// `f64`.
fn shrinkage(centred: &Array2<f64>, covariance: &Array2<f64>, mu: f64) -> f64 {
    let (rows, dimension) = centred.dim();
    let square = |value: f64| value * value;
    let norms = centred.outer_iter().map(|row| square(row.dot(&row) / mu));
    let mean_norm = norms.sum::<f64>() / rows as f64;
    let norm: f64 = covariance.iter().map(|value| square(value / mu)).sum();
    let beta = (mean_norm - norm) / (dimension * rows) as f64;
    // The sum of squares, where the expanded square of the difference would cancel.
    let delta = covariance
        .indexed_iter()
        .map(|((i, j), value)| square(value / mu - f64::from(u8::from(i == j))))
        .sum::<f64>()
        / dimension as f64;
    let beta = beta.min(delta);
    if beta > 0.0 { beta / delta } else { 0.0 }
}

/// The lower Cholesky factor of a symmetric matrix, in its place, unless the matrix is within
/// rounding of one that is not positive definite.
fn cholesky(mut matrix: Array2<f64>) -> Option<Array2<f64>> {
    let order = matrix.nrows();
    // Rounding moves a pivot by some `order` units in the last place of the largest diagonal
    // element; the factor leaves room for that of the matrix.
    let largest = matrix.diag().fold(0.0_f64, |largest, value| largest.max(*value));
    let rounding = 8.0 * order as f64 * f64::EPSILON * largest;
    for i in 0..order {
        for j in 0..=i {
            let known = matrix.slice(s![i, ..j]).dot(&matrix.slice(s![j, ..j]));
            let rest = matrix[[i, j]] - known;
            matrix[[i, j]] = if j < i {
                rest / matrix[[j, j]]
            } else if rest > rounding {
                rest.sqrt()
            } else {
                return None;
            };
        }
    }
    Some(matrix)
}
