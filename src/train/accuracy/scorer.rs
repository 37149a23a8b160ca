//! Pair accuracy of a reward model.

use std::ops::Range;
use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::checkpoint::Checkpoint;
use crate::model::{Score, Scorer, variance};
use crate::ops::Packing;
use crate::train::data::EncodedPair;
use crate::train::features::{Compute, Depth, FeatureStore, Inference, entering};

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
    pub(in crate::train) fn of(rewards: &[f64]) -> Self {
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

/// Scores texts for an evaluation: a model, and features of its frozen part where they are kept.
#[allow(missing_debug_implementations)]
pub struct TextScorer {
    model: Box<dyn Inference>,
    kept: Option<Kept>,
}

/// Features, and the layers that come after them.
struct Kept {
    features: FeatureStore,
    /// `None` where features are pooled.
    last_layers: Option<Box<dyn Inference>>,
    hidden: usize,
}

impl TextScorer {
    /// Loads a checkpoint's model; where a folder is named, features at `depth` are kept there.
    ///
    /// # Errors
    /// A device or a precision that cannot be had, tensors that do not fit, or features that cannot be read.
    pub fn load(
        checkpoint: &Checkpoint,
        compute: &Compute,
        features: Option<&Path>,
        depth: Depth,
    ) -> anyhow::Result<Self> {
        let model = compute.load(checkpoint, 0)?;
        let kept = match features {
            None => None,
            Some(folder) => {
                let last_layers = match depth {
                    Depth::Pooled => None,
                    Depth::Entering(layer) => Some(compute.load(checkpoint, layer)?),
                };
                let Checkpoint { config, tensors, .. } = checkpoint;
                let arithmetic = model.arithmetic();
                let features =
                    FeatureStore::open(Some(folder), config, tensors, arithmetic, depth)?;
                Some(Kept { features, last_layers, hidden: config.decoder.hidden_size })
            }
        };
        Ok(Self { model, kept })
    }

    /// A score for each text, in their order.
    ///
    /// # Errors
    /// An empty text, a failing device, or a folder of features that cannot be written.
    pub fn scores(&mut self, texts: &[&[u32]]) -> anyhow::Result<Vec<Score>> {
        let Some(Kept { features, last_layers, hidden, .. }) = &mut self.kept else {
            return scores(self.model.scorer(), texts);
        };
        let numbers = features.numbers(self.model.as_ref(), texts)?;
        if let Some(model) = last_layers {
            return scores_from(model.as_ref(), features, &numbers, texts, *hidden);
        }
        let mut scores = Vec::with_capacity(texts.len());
        for numbers in numbers.chunks(FEATURE_ROWS) {
            let values = numbers.iter().flat_map(|&number| features.get(number)).copied().collect();
            scores.extend(self.model.score_pooled(values)?);
        }
        Ok(scores)
    }

    /// Scores of each pair's chosen and rejected text, one after the other.
    ///
    /// # Errors
    /// As [`TextScorer::scores`].
    pub fn pair_scores(&mut self, pairs: &[EncodedPair]) -> anyhow::Result<Vec<Score>> {
        let texts: Vec<&[u32]> =
            pairs.iter().flat_map(|pair| [pair.chosen.as_slice(), &pair.rejected]).collect();
        self.scores(&texts)
    }
}

/// Scores of texts, in batches of [`TOKEN_BUDGET`] tokens.
pub(in crate::train) fn scores(
    scorer: &dyn Scorer,
    texts: &[&[u32]],
) -> anyhow::Result<Vec<Score>> {
    let mut scores = Vec::with_capacity(texts.len());
    for batch in batches(texts) {
        scores.extend(scorer.score(&texts[batch])?);
    }
    Ok(scores)
}

/// Scores by the last layers of a model, of texts whose features before them have these numbers.
pub(in crate::train) fn scores_from(
    last_layers: &dyn Inference,
    features: &FeatureStore,
    numbers: &[usize],
    texts: &[&[u32]],
    hidden: usize,
) -> anyhow::Result<Vec<Score>> {
    let mut scores = Vec::with_capacity(texts.len());
    for batch in batches(texts) {
        let packing = Packing::shared(&texts[batch.clone()]).context("an empty text")?;
        let states: Vec<&[f32]> = numbers[batch].iter().map(|&n| features.get(n)).collect();
        scores.extend(last_layers.score_entering(&packing, entering(&packing, &states, hidden))?);
    }
    Ok(scores)
}

/// Consecutive texts of at most [`TOKEN_BUDGET`] tokens together, or one.
pub(in crate::train) fn batches(texts: &[&[u32]]) -> Vec<Range<usize>> {
    let mut batches: Vec<Range<usize>> = Vec::new();
    let mut tokens = 0;
    for (index, text) in texts.iter().enumerate() {
        tokens += text.len();
        match batches.last_mut() {
            Some(batch) if tokens <= TOKEN_BUDGET => batch.end = index + 1,
            _ => {
                batches.push(index..index + 1);
                tokens = text.len();
            }
        }
    }
    batches
}

/// The 0.975 quantile of the standard normal distribution.
pub(crate) const NORMAL_QUANTILE: f64 = 1.959_963_984_540_054;

/// The 95 % interval of a mean by the central limit theorem; `None` for fewer than two values.
pub(crate) fn mean_interval(values: &[f64]) -> Option<(f64, f64)> {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    // The variance has divisor n; of a sample it is an estimate with n - 1.
    let spread = NORMAL_QUANTILE * (variance(values) / (count - 1.0)).sqrt();
    (values.len() >= 2).then_some((mean - spread, mean + spread))
}

/// The 95 % score interval of a share (Wilson 1927).
pub fn wilson_interval(successes: usize, count: usize) -> (f64, f64) {
    if count == 0 {
        return (0.0, 1.0);
    }
    let (n, z) = (count as f64, NORMAL_QUANTILE);
    let share = successes as f64 / n;
    let centre = share + z * z / (2.0 * n);
    let spread = z * (share * (1.0 - share) / n + z * z / (4.0 * n * n)).sqrt();
    let scale = 1.0 + z * z / n;
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
