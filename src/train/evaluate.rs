//! Pair accuracy of a reward model.

use serde::{Deserialize, Serialize};

use super::config::FeatureConfig;
use super::data::EncodedPair;
use super::features::FeatureStore;
use crate::checkpoint::Checkpoint;
use crate::model::{RewardModel, Score, ScoreError, Scorer};
use crate::ops::Ops;
use crate::ops::cpu::CpuOps;

/// Tokens of one batch of an evaluation.
const TOKEN_BUDGET: usize = 8192;
/// Features of one call of the head.
const FEATURE_ROWS: usize = 1024;

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

/// Scores texts for an evaluation: a model on the CPU, and features of its backbone where they are kept.
#[derive(Debug)]
pub struct Judge {
    model: RewardModel<CpuOps>,
    features: Option<FeatureStore>,
}

impl Judge {
    /// Loads a checkpoint's model; pooled hidden states are kept in the folder of `features`, if it names one.
    ///
    /// # Errors
    /// A precision that this processor has not, tensors that do not fit, or features that cannot be read.
    pub fn load(
        checkpoint: &Checkpoint,
        features: &FeatureConfig,
        threads: usize,
    ) -> anyhow::Result<Self> {
        let Checkpoint { config, tensors, .. } = checkpoint;
        let ops = CpuOps::new(threads, features.dtype)?;
        let store = match &features.folder {
            None => None,
            Some(folder) => Some(FeatureStore::open(Some(folder), config, tensors, &ops)?),
        };
        Ok(Self { model: RewardModel::load(ops, config, tensors)?, features: store })
    }

    /// A score for each text, in their order.
    ///
    /// # Errors
    /// An empty text, a failing device, or a folder of features that cannot be written.
    pub fn scores(&mut self, texts: &[&[u32]]) -> anyhow::Result<Vec<Score>> {
        let Some(features) = &mut self.features else { return scores(&self.model, texts) };
        let rows = features.rows(&self.model, texts)?;
        let mut scores = Vec::with_capacity(texts.len());
        for rows in rows.chunks(FEATURE_ROWS) {
            let values: Vec<f32> =
                rows.iter().flat_map(|&row| features.row(row)).copied().collect();
            let ops = self.model.ops();
            let columns = values.len() / rows.len();
            scores.extend(
                ops.enter(|| self.model.score_pooled(&ops.upload(values, columns)?))
                    .map_err(ScoreError::from)?,
            );
        }
        Ok(scores)
    }

    /// Scores of each pair's chosen and rejected text, one after the other.
    ///
    /// # Errors
    /// As [`Judge::scores`].
    pub fn pair_scores(&mut self, pairs: &[EncodedPair]) -> anyhow::Result<Vec<Score>> {
        let texts: Vec<&[u32]> =
            pairs.iter().flat_map(|pair| [pair.chosen.as_slice(), &pair.rejected]).collect();
        self.scores(&texts)
    }
}

/// Scores of texts, in batches of [`TOKEN_BUDGET`] tokens.
pub(super) fn scores(scorer: &dyn Scorer, texts: &[&[u32]]) -> anyhow::Result<Vec<Score>> {
    let mut scores = Vec::with_capacity(texts.len());
    let mut rest = texts;
    while !rest.is_empty() {
        let mut tokens = 0;
        let fitting = rest.iter().take_while(|text| {
            tokens += text.len();
            tokens <= TOKEN_BUDGET
        });
        let (batch, later) = rest.split_at(fitting.count().max(1));
        scores.extend(scorer.score(batch)?);
        rest = later;
    }
    Ok(scores)
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
