//! Pair accuracy of a reward model.

use serde::{Deserialize, Serialize};

use super::data::EncodedPair;
use crate::model::{ScoreError, Scorer};

/// Tokens of one batch of an evaluation.
const TOKEN_BUDGET: usize = 8192;

/// How often the preferred answer gets the higher reward.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PairAccuracy {
    /// Pairs scored.
    pub pairs: usize,
    /// Pairs whose chosen answer has the strictly higher reward.
    pub correct: usize,
    /// `correct / pairs`.
    pub accuracy: f64,
    /// Wilson's 95 % interval of the accuracy.
    pub interval: (f64, f64),
    /// Mean of `r_w - r_l`.
    pub margin_mean: f64,
    /// Mean of all rewards.
    pub reward_mean: f64,
    /// Standard deviation of all rewards.
    pub reward_std: f64,
}

impl PairAccuracy {
    /// `rewards`: of each pair's chosen and rejected text, one after the other.
    pub(super) fn of(rewards: &[f64]) -> Self {
        let pairs = rewards.len() / 2;
        let margins: Vec<f64> = rewards.chunks_exact(2).map(|pair| pair[0] - pair[1]).collect();
        let correct = margins.iter().filter(|margin| **margin > 0.0).count();
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len().max(1) as f64;
        let reward_mean = mean(rewards);
        let squares: Vec<f64> =
            rewards.iter().map(|reward| (reward - reward_mean).powi(2)).collect();
        Self {
            pairs,
            correct,
            accuracy: correct as f64 / pairs.max(1) as f64,
            interval: wilson_interval(correct, pairs),
            margin_mean: mean(&margins),
            reward_mean,
            reward_std: mean(&squares).sqrt(),
        }
    }
}

/// Scores both answers of each pair.
///
/// # Errors
/// A failing device.
pub fn evaluate(scorer: &dyn Scorer, pairs: &[EncodedPair]) -> Result<PairAccuracy, ScoreError> {
    Ok(PairAccuracy::of(&rewards(scorer, pairs)?))
}

/// Rewards of each pair's chosen and rejected text, one after the other.
pub(super) fn rewards(scorer: &dyn Scorer, pairs: &[EncodedPair]) -> Result<Vec<f64>, ScoreError> {
    let mut rewards: Vec<f64> = Vec::with_capacity(2 * pairs.len());
    let mut batch: Vec<&[u32]> = Vec::new();
    let mut tokens = 0;
    let mut flush = |batch: &mut Vec<&[u32]>| -> Result<(), ScoreError> {
        if !batch.is_empty() {
            rewards.extend(scorer.score(batch)?.iter().map(|score| f64::from(score.reward)));
            batch.clear();
        }
        Ok(())
    };
    for ids in pairs.iter().flat_map(|pair| [&pair.chosen, &pair.rejected]) {
        if tokens + ids.len() > TOKEN_BUDGET {
            flush(&mut batch)?;
            tokens = 0;
        }
        tokens += ids.len();
        batch.push(ids);
    }
    flush(&mut batch)?;
    Ok(rewards)
}

/// The 95 % score interval of a share (Wilson 1927).
pub fn wilson_interval(successes: usize, count: usize) -> (f64, f64) {
    if count == 0 {
        return (0.0, 1.0);
    }
    const Z: f64 = 1.959_963_984_540_054;
    let n = count as f64;
    let share = successes as f64 / n;
    let centre = share + Z * Z / (2.0 * n);
    let spread = Z * (share * (1.0 - share) / n + Z * Z / (4.0 * n * n)).sqrt();
    let scale = 1.0 + Z * Z / n;
    (((centre - spread) / scale).max(0.0), ((centre + spread) / scale).min(1.0))
}

#[cfg(test)]
mod tests {
    use super::wilson_interval;

    /// Against SciPy: `binomtest(k, n).proportion_ci(0.95, method="wilson")`.
    #[test]
    fn wilson_interval_is_the_known_one() {
        for (successes, count, low, high) in [
            (8, 10, 0.4901624715366418, 0.9433178485456248),
            (0, 10, 0.0, 0.27753279986288926),
            (300, 312, 0.9339861104377456, 0.9778637811988684),
        ] {
            let interval = wilson_interval(successes, count);
            assert!((interval.0 - low).abs() < 1e-12, "{interval:?}");
            assert!((interval.1 - high).abs() < 1e-12, "{interval:?}");
        }
    }
}
