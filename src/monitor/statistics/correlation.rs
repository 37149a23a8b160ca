//! Rank correlation: whether longer answers are paid more, whatever the shape of the relation.

/// Spearman's rank correlation of two samples of the same length, tied values sharing the mean of
/// their ranks: the Pearson correlation of the ranks (Spearman 1904; SciPy's `spearmanr`).
///
/// `None` where one of them is constant, shorter than 2 or holds a NaN, or the lengths differ. Costs
/// `O(N log N)`.
pub fn spearman(x: &[f64], y: &[f64]) -> Option<f64> {
    if x.len() != y.len() || x.iter().chain(y).any(|value| value.is_nan()) {
        return None;
    }
    let [x, y] = [x, y].map(centred_ranks);
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let norms = dot(&x, &x) * dot(&y, &y);
    (norms > 0.0).then(|| (dot(&x, &y) / norms.sqrt()).clamp(-1.0, 1.0))
}

/// Ranks less their mean. They are halves of whole numbers, so that sums of their products are exact.
fn centred_ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_unstable_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    let mut first = 0;
    // Not `total_cmp`, for which the two zeros differ.
    for tied in order.chunk_by(|&a, &b| values[a] == values[b]) {
        let rank = first as f64 + 0.5 * (tied.len() as f64 - 1.0);
        for &index in tied {
            ranks[index] = rank - 0.5 * (values.len() as f64 - 1.0);
        }
        first += tied.len();
    }
    ranks
}
