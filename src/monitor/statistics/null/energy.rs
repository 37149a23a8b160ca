//! The law of the energy distance between a baseline and fresh answers of the same population.
//!
//! With `n` and `m` latents, `T = E(X, Y) / (1/n + 1/m)` tends to `sum_i lambda_i Z_i^2`, where the
//! `Z_i` are standard normal and the `lambda_i` are the eigenvalues of the distance, centred
//! (Szekely and Rizzo 2013, "Energy statistics"). That law knows neither `n` nor `m`: one fit to the
//! baseline serves windows of every size, larger than the baseline too. The baseline's own sampling
//! error is part of it.
//!
//! What is taken from the baseline:
//!
//! | | |
//! |---|---|
//! | `sum lambda` | mean distance of two latents: the exact mean of `T` |
//! | `sum lambda^2` | mean square of the U-centred distances, unbiased (Szekely and Rizzo 2014, "Partial distance correlation") |
//! | the largest `lambda` | orthogonal iteration; the tail is theirs |
//! | the rest | one chi-square that matches what is left of both sums |
//! | `V`, variance of `2 mean_j \|y_i - y_j\|` over `i` | the distances of latents from themselves, 0, stand in the means too: `V m / (n (n + m))` more variance of `T`, which a window of 32 feels |
//!
//! Tails are Kuonen's (1999, "Saddlepoint approximations for distributions of quadratic forms in
//! normal variables"), good to some per cent of `p` however small `p` is. The law itself is a limit: of windows of 32 answers,
//! a quarter of them from a wide cluster, three times as many fall beyond its level 0.002
//! (`tests/integration/monitor/null.rs`).

use ndarray::{Array2, ArrayView2, Axis};
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::tail::{bisect, normal_tail};
use crate::monitor::statistics::gram::mean;

/// Most baseline latents that the law is fitted to: 2,000 cost 1 GFLOP at d = 128, and 32 MB.
const MAX_ROWS: usize = 2000;
/// Fewest.
pub(super) const MIN_ROWS: usize = 16;
/// Eigenvalues that are told apart.
const LEADING: usize = 12;
const ITERATIONS: usize = 40;

/// The law of the energy distance between a window and the baseline; the formulas head this file.
#[derive(Debug, Clone, PartialEq)]
pub struct EnergyNull {
    /// Pairs of an eigenvalue and how often it stands there, which need not be whole.
    spectrum: Vec<(f64, f64)>,
    mean: f64,
    self_variance: f64,
    /// Variance of the fitted mean, because only some of the baseline's latents were looked at.
    subset_variance: f64,
    baseline: f64,
}

impl EnergyNull {
    /// Fits the law to the baseline's latents `[M, d]`. `None` for fewer than 16 latents, or where
    /// all are the same or one is not finite.
    ///
    /// Costs `N^2 (d + 500)` multiply-adds and `8 N^2` bytes, `N = min(M, 2000)`.
    pub fn fit(latents: ArrayView2<'_, f64>) -> Option<Self> {
        let rows = latents.nrows();
        if rows < MIN_ROWS {
            return None;
        }
        let n = rows.min(MAX_ROWS);
        let mut distances = if n < rows {
            let mut order: Vec<_> = (0..rows).collect();
            let (chosen, _) = order.partial_shuffle(&mut ChaCha8Rng::seed_from_u64(0), n);
            pairwise(latents.select(Axis(0), chosen).view())
        } else {
            pairwise(latents)
        };
        let count = n as f64;
        let sums = distances.sum_axis(Axis(1));
        let total = sums.sum();
        let mean = total / (count * (count - 1.0));
        if !(mean.is_finite() && mean > 0.0) {
            return None;
        }
        let own = sums.mapv(|sum| 2.0 * sum / (count - 1.0));
        let self_variance = own.var(1.0);

        // U-centring leaves zeros on the diagonal. The kernel is minus that.
        let level = total / ((count - 1.0) * (count - 2.0));
        for ((i, j), value) in distances.indexed_iter_mut() {
            *value =
                if i == j { 0.0 } else { (sums[i] + sums[j]) / (count - 2.0) - level - *value };
        }
        let squares = distances.iter().map(|value| value * value).sum::<f64>();
        let second = (squares / (count * (count - 3.0))).max(0.0);
        // With the diagonal back, on the average, the matrix has hardly any negative eigenvalue.
        let diagonal = mean / count;
        distances /= count;
        let leading = leading_eigenvalues(&distances, diagonal);

        let left = mean - leading.iter().sum::<f64>();
        let left_second = second - leading.iter().map(|value| value * value).sum::<f64>();
        let smallest = leading.iter().copied().fold(f64::INFINITY, f64::min);
        let mut spectrum: Vec<_> = leading.into_iter().map(|value| (value, 1.0)).collect();
        if left > 0.0 {
            // Where sampling error leaves no second moment, the rest is all but a constant; where it leaves
            // too much, the rest is still smaller than what leads.
            let value = (left_second / left).min(smallest).max(1e-4 * left);
            spectrum.push((value, left / value));
        } else {
            let scale = mean / (mean - left);
            spectrum.iter_mut().for_each(|(value, _)| *value *= scale);
        }
        let baseline = rows as f64;
        let subset_variance = self_variance * (1.0 / count - 1.0 / baseline);
        Some(Self { spectrum, mean, self_variance, subset_variance, baseline })
    }

    /// Mean distance of two latents of the baseline.
    pub fn mean_distance(&self) -> f64 {
        self.mean
    }

    /// Mean of `E(X, Y)` for a window of `samples` independent answers.
    pub fn mean(&self, samples: f64) -> f64 {
        self.mean * self.unit(samples)
    }

    /// Probability that a window of `samples` independent answers of the baseline's population lies
    /// at least `energy` from the baseline.
    pub fn p(&self, energy: f64, samples: f64) -> f64 {
        self.tail(energy / self.unit(samples), self.normal_variance(samples))
    }

    /// The `E(X, Y)` that such a window exceeds with probability `p`.
    pub fn upper_quantile(&self, p: f64, samples: f64) -> f64 {
        let variance = self.normal_variance(samples);
        let mut high = 2.0 * self.mean;
        while self.tail(high, variance) > p {
            high *= 2.0;
        }
        bisect(0.0, high, |t| self.tail(t, variance) <= p) * self.unit(samples)
    }

    fn unit(&self, samples: f64) -> f64 {
        1.0 / samples + 1.0 / self.baseline
    }

    fn normal_variance(&self, samples: f64) -> f64 {
        let share = self.baseline / (samples * (samples + self.baseline));
        self.self_variance * share + self.subset_variance
    }

    /// `P(sum lambda Z^2 + N(0, variance) > t)`.
    fn tail(&self, t: f64, variance: f64) -> f64 {
        let derivative = |zeta: f64| {
            let terms = self.spectrum.iter().map(|(v, k)| k * v / (1.0 - 2.0 * zeta * v));
            terms.sum::<f64>() + variance * zeta
        };
        let largest = self.spectrum.iter().fold(0.0_f64, |largest, (value, _)| largest.max(*value));
        let pole = 0.5 / largest;
        let mut low = -pole;
        while derivative(low) > t {
            low *= 2.0;
            if low < -1e12 * pole {
                return 1.0;
            }
        }
        let zeta = bisect(low, pole, |zeta| zeta >= pole || derivative(zeta) >= t);
        let cumulant = 0.5 * variance * zeta * zeta
            - 0.5 * self.spectrum.iter().map(|(v, k)| k * (-2.0 * zeta * v).ln_1p()).sum::<f64>();
        let moment = |power: i32| {
            let terms =
                self.spectrum.iter().map(|(v, k)| k * (v / (1.0 - 2.0 * zeta * v)).powi(power));
            terms.sum::<f64>()
        };
        let second = 2.0 * moment(2) + variance;
        let w = zeta.signum() * (2.0 * (zeta * t - cumulant)).max(0.0).sqrt();
        if w.abs() < 1e-4 {
            // The limit at the mean.
            let skewness = 8.0 * moment(3) / second.powf(1.5);
            return 0.5 - skewness / (6.0 * (2.0 * std::f64::consts::PI).sqrt());
        }
        let u = zeta * second.sqrt();
        normal_tail(w + (u / w).ln() / w)
    }
}

/// Euclidean distances of all pairs of rows. To `1e-8` of the largest, which a null does not feel.
fn pairwise(latents: ArrayView2<'_, f64>) -> Array2<f64> {
    let centred = &latents - &mean(latents);
    let norms: Vec<f64> = centred.outer_iter().map(|row| row.dot(&row)).collect();
    let mut distances = centred.dot(&centred.t());
    for ((i, j), value) in distances.indexed_iter_mut() {
        let squared = norms[i] + norms[j] - 2.0 * *value;
        *value = if i == j { 0.0 } else { squared.max(0.0).sqrt() };
    }
    distances
}

/// The positive ones among the largest eigenvalues of a symmetric `matrix + shift I`, less `shift`.
fn leading_eigenvalues(matrix: &Array2<f64>, shift: f64) -> Vec<f64> {
    let (n, k) = (matrix.nrows(), LEADING.min(matrix.nrows() / 2));
    let mut random = ChaCha8Rng::seed_from_u64(1);
    let mut basis = Array2::from_shape_simple_fn((n, k), || random.random::<f64>() - 0.5);
    let mut values = Vec::new();
    for _ in 0..ITERATIONS {
        let mut image = matrix.dot(&basis);
        image.scaled_add(shift, &basis);
        values = (0..k).map(|i| basis.column(i).dot(&image.column(i)) - shift).collect();
        orthonormalise(&mut image);
        basis = image;
    }
    values.retain(|value| *value > 0.0);
    values
}

/// Gram and Schmidt, column by column, and twice: what is left of a column that was almost in the span
/// of those before is rounding, which lies in that span (Kahan's "twice is enough").
fn orthonormalise(basis: &mut Array2<f64>) {
    for i in 0..basis.ncols() {
        for _ in 0..2 {
            for j in 0..i {
                let (earlier, mut column) =
                    basis.multi_slice_mut((ndarray::s![.., j], ndarray::s![.., i]));
                let shadow = earlier.dot(&column);
                column.scaled_add(-shadow, &earlier);
            }
            let mut column = basis.column_mut(i);
            let length = column.dot(&column).sqrt();
            if length > 0.0 {
                column /= length;
            }
        }
    }
}
