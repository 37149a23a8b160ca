//! How much a set of latents spreads: a policy that collapses to few answers stays close to the
//! baseline, where CSI and outlier counts see nothing, but loses its spread.

use std::collections::HashSet;
use std::hash::Hash;

use ndarray::ArrayView2;

use super::gram::mean;

/// The trace of the covariance (with divisor `N`) of `points`, `[N, d]`: the mean squared distance from
/// the mean. `None` below two points. Costs `3 N d` floating-point operations.
pub fn total_variance(points: ArrayView2<'_, f64>) -> Option<f64> {
    let rows = points.nrows();
    if rows < 2 {
        return None;
    }
    let mean = mean(points);
    let squares = points.outer_iter().map(|row| {
        let offsets = row.iter().zip(&mean).map(|(value, mean)| value - mean);
        offsets.map(|offset| offset * offset).sum::<f64>()
    });
    Some(squares.sum::<f64>() / rows as f64)
}

/// The share of distinct items. `None` for no items. Costs `O(N)`.
pub fn distinct_ratio<T: Eq + Hash>(items: impl Iterator<Item = T>) -> Option<f64> {
    let mut count = 0_usize;
    let distinct = items.inspect(|_| count += 1).collect::<HashSet<_>>().len();
    (count > 0).then(|| distinct as f64 / count as f64)
}
