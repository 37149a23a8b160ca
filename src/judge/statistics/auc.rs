//! How well a number tells two classes apart.

use serde::Serialize;

use crate::train::NORMAL_QUANTILE;

/// Area under the ROC curve.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Auc {
    /// The chance that a positive's score is above a negative's, where equal ones count half (Mann and Whitney 1947).
    pub auc: f64,
    /// 95 % interval by DeLong's variance (DeLong, DeLong and Clarke-Pearson 1988), cut off at 0 and 1. Absent for fewer
    /// than two of a class, and where that variance is 0, as it is for an area of 0 or 1: it says nothing then.
    pub interval: Option<(f64, f64)>,
    /// Scores of positives.
    pub positives: usize,
    /// Scores of negatives.
    pub negatives: usize,
}

/// The area under the ROC curve of pairs of score and whether it is a positive's; `None` where a class is empty or a score
/// is NaN.
///
/// Costs sorting: the chances of each score are differences of its ranks (Sun and Xu 2014).
pub fn auc(scores: &[(f64, bool)]) -> Option<Auc> {
    if scores.iter().any(|(score, _)| score.is_nan()) {
        return None;
    }
    let of = |class: bool| -> Vec<f64> {
        scores.iter().filter(|(_, positive)| *positive == class).map(|(score, _)| *score).collect()
    };
    let (positives, negatives) = (of(true), of(false));
    let (m, n) = (positives.len(), negatives.len());
    if m == 0 || n == 0 {
        return None;
    }
    let all = midranks(&[&positives[..], &negatives].concat());
    let chances = |all: &[f64], own: &[f64], others: usize| -> Vec<f64> {
        let own = midranks(own);
        all.iter().zip(own).map(|(all, own)| (all - own) / others as f64).collect()
    };
    // Of a positive, to be above a negative; of a negative, to be above a positive.
    let above_negatives = chances(&all[..m], &positives, n);
    let above_positives = chances(&all[m..], &negatives, m);
    let auc = mean(&above_negatives);
    let interval = variance(&above_negatives).zip(variance(&above_positives)).and_then(|(v, w)| {
        let spread = NORMAL_QUANTILE * (v / m as f64 + w / n as f64).sqrt();
        (spread > 0.0).then(|| ((auc - spread).max(0.0), (auc + spread).min(1.0)))
    });
    Some(Auc { auc, interval, positives: m, negatives: n })
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// The unbiased estimate; `None` for fewer than two values.
fn variance(values: &[f64]) -> Option<f64> {
    let mean = mean(values);
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (values.len() > 1).then(|| squares / (values.len() - 1) as f64)
}

/// The rank of each value, from 1; equal ones share the mean of theirs.
fn midranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    let mut before = 0;
    // `==`, since -0 and 0 are equal and yet apart in the order.
    for equal in order.chunk_by(|&a, &b| values[a] == values[b]) {
        let rank = before as f64 + (equal.len() + 1) as f64 / 2.0;
        equal.iter().for_each(|&index| ranks[index] = rank);
        before += equal.len();
    }
    ranks
}
