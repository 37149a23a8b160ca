//! Distances to the nearest latents of a baseline.
//!
//! The mean distance to the k-th nearest is an outlier score that needs no covariance (Ramaswamy et
//! al. 2000); the distances within a set tell how dense it is (Ester et al. 1996, section 4.2).

use ndarray::ArrayView2;

use super::pairs::between_plain;

/// Distance from each query to the nearest point of a set: [`k_nearest_distances`] with `k = 1`, and
/// equation 7 of InfoRM (NeurIPS 2024) where the queries are cluster centroids and the set is the SFT
/// outputs. The result has length `N`.
pub fn nearest_distances(queries: ArrayView2<'_, f64>, set: ArrayView2<'_, f64>) -> Vec<f64> {
    k_nearest_distances(queries, set, 1)
}

/// Distances from each query to its `k` nearest points of a set, ascending.
///
/// `queries` is `[N, d]` and `set` is `[M, d]`; the result is `[N, k]` row by row. It is infinite where
/// the set has fewer than `k` points or the two differ in `d`. A query that is itself in the set finds
/// itself, as in scikit-learn's `kneighbors(X)`. Each value is the root of a plain sum of squared
/// differences.
///
/// Costs `2 N M d` floating-point operations, and a plain sum for the few points that come closer than
/// all but `k` before.
pub fn k_nearest_distances(
    queries: ArrayView2<'_, f64>,
    set: ArrayView2<'_, f64>,
    k: usize,
) -> Vec<f64> {
    if queries.ncols() != set.ncols() {
        return vec![f64::INFINITY; queries.nrows() * k];
    }
    between_plain(queries, set, k, false).nearest
}

/// The distance within which each point of a set has `k` neighbours, itself included; `[M]`. Infinite where there are
/// fewer.
///
/// Costs `2 M^2 d` floating-point operations.
pub fn k_distances(set: ArrayView2<'_, f64>, k: usize) -> Vec<f64> {
    if k > set.nrows() {
        return vec![f64::INFINITY; set.nrows()];
    }
    kth(&k_nearest_distances(set, set, k), k)
}

/// The last of each `k` values.
pub(in crate::monitor) fn kth(distances: &[f64], k: usize) -> Vec<f64> {
    distances.chunks_exact(k.max(1)).map(|row| row[row.len() - 1]).collect()
}
