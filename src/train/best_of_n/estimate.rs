//! The expected best of n, without drawing.

use serde::Serialize;

use crate::train::accuracy::mean_interval;

/// Expectation of `values[i]` for the `i` with the greatest `proxy[i]` among `n` of the samples, over all subsets of `n`.
///
/// The sample of rank `i` from below is the best of `C(i - 1, n - 1)` of `C(m, n)` subsets (the unbiased estimator of
/// Nakano et al. 2021). Samples with the same proxy value are chosen with equal chances, so that their order
/// does not count. `None` where `n` is 0 or more than there are samples, or where the lists differ in length.
pub fn expected_best(proxy: &[f64], values: &[f64], n: usize) -> Option<f64> {
    let samples = proxy.len();
    if n == 0 || n > samples || values.len() != samples {
        return None;
    }
    let mut ranked: Vec<(f64, f64)> = proxy.iter().copied().zip(values.iter().copied()).collect();
    ranked.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
    let mut chances = chances(samples, n).into_iter();
    let mut expected = 0.0;
    for equal in ranked.chunk_by(|a, b| a.0 == b.0) {
        let chance: f64 = chances.by_ref().take(equal.len()).sum();
        let values: Vec<f64> = equal.iter().map(|(_, value)| *value).collect();
        expected += chance * average(&values);
    }
    Some(expected)
}

fn average(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// `C(i - 1, n - 1) / C(m, n)` for the ranks `i` from 1 to `m = samples`, from the greatest down: no factorial is formed.
fn chances(samples: usize, n: usize) -> Vec<f64> {
    let mut chances = vec![0.0; samples];
    let mut chance = n as f64 / samples as f64;
    for rank in (n..=samples).rev() {
        chances[rank - 1] = chance;
        chance *= (rank - n) as f64 / (rank - 1).max(1) as f64;
    }
    chances
}

/// KL divergence of the best of `n` from the policy, `ln n - (n - 1) / n`, in nats (Stiennon et al. 2020).
pub fn best_of_n_kl(n: usize) -> f64 {
    let n = n.max(1) as f64;
    n.ln() - (n - 1.0) / n
}

/// A reward over the prompts.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Estimate {
    /// Its mean.
    pub mean: f64,
    /// 95 % interval of the mean over prompts; absent for one prompt.
    pub interval: Option<(f64, f64)>,
    /// The mean in standard deviations of single samples from their mean; absent where they do not differ.
    pub standardised: Option<f64>,
    /// Mean over the prompts of what it is more than for a single sample.
    pub gain: f64,
    /// 95 % interval of the gain over prompts; absent for one prompt.
    pub gain_interval: Option<(f64, f64)>,
}

/// Single samples: each prompt counts alike, and each of its samples.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Singles {
    /// Mean of each prompt.
    means: Vec<f64>,
    pub(super) mean: f64,
    pub(super) std: f64,
}

impl Singles {
    /// `rewards`: a list a prompt.
    pub(super) fn of(rewards: &[Vec<f64>]) -> Self {
        // The best of one, so that what is gained by it is 0 to the last bit.
        let means: Vec<f64> =
            rewards.iter().map(|own| expected_best(own, own, 1).unwrap_or_default()).collect();
        let mean = average(&means);
        let squares = rewards.iter().map(|own| {
            average(&own.iter().map(|reward| (reward - mean).powi(2)).collect::<Vec<_>>())
        });
        let std = average(&squares.collect::<Vec<_>>()).sqrt();
        Self { means, mean, std }
    }

    /// In standard deviations from the mean.
    pub(super) fn standardised(&self, reward: f64) -> Option<f64> {
        (self.std > 0.0).then(|| (reward - self.mean) / self.std)
    }

    /// `best`: the expected reward of the best of n of each prompt.
    pub(super) fn estimate(&self, best: &[f64]) -> Estimate {
        let gains: Vec<f64> = best.iter().zip(&self.means).map(|(best, one)| best - one).collect();
        let mean = average(best);
        Estimate {
            mean,
            interval: mean_interval(best),
            standardised: self.standardised(mean),
            gain: average(&gains),
            gain_interval: mean_interval(&gains),
        }
    }
}
