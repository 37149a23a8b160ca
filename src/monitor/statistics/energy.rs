//! Energy distance: whether two sets of latents come from one population.
//!
//! `E(X, Y) = 2 mean |x - y| - mean |x - x'| - mean |y - y'|` (Szekely and Rizzo 2004, 2013), zero for
//! equal distributions and only for those. The means are over all ordered pairs, those of a point with
//! itself included (the V-statistic), so that it is never below zero.

use ndarray::ArrayView2;

use super::pairs::{between_plain, within};

/// Energy distance of `x`, `[N, d]`, and `y`, `[M, d]`, in latent units.
///
/// `None` where a set is empty or the two differ in `d`. Costs `(N^2 + 2 N M + M^2) d` floating-point
/// operations and half as many roots over `d`; no matrix of distances is kept.
pub fn energy_distance(x: ArrayView2<'_, f64>, y: ArrayView2<'_, f64>) -> Option<f64> {
    Some(combine(mean_distance(x, y)?, mean_distance_within(x)?, mean_distance_within(y)?))
}

/// `mean |x - y|` over all pairs; `None` where a set is empty or the two differ in `d`.
pub fn mean_distance(x: ArrayView2<'_, f64>, y: ArrayView2<'_, f64>) -> Option<f64> {
    let comparable = x.nrows() > 0 && y.nrows() > 0 && x.ncols() == y.ncols();
    comparable.then(|| average(&between_plain(x, y, 0, true).mean_distances))
}

/// `mean |x - x'|` over all ordered pairs; `None` for an empty set. Half the cost of [`mean_distance`].
pub fn mean_distance_within(x: ArrayView2<'_, f64>) -> Option<f64> {
    (x.nrows() > 0).then(|| within(x, None, true).1)
}

/// The energy distance of two sets whose mean distances are these.
pub(in crate::monitor) fn combine(between: f64, within_x: f64, within_y: f64) -> f64 {
    // Rounding may leave a little below zero where the sets are the same.
    (2.0 * between - within_x - within_y).max(0.0)
}

/// The mean; NaN for no values.
pub(in crate::monitor) fn average(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}
