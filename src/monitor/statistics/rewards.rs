//! Rewards alone: where they lie, whether they pile up beyond what SFT answers get, and whether the
//! answers to one prompt still differ.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

/// Quantiles of the rewards of a window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Quantiles {
    /// 5 % of the rewards are at most this.
    pub p05: f64,
    /// The lower quartile.
    pub p25: f64,
    /// The median.
    pub p50: f64,
    /// The upper quartile.
    pub p75: f64,
    /// 95 % of the rewards are at most this.
    pub p95: f64,
}

impl Quantiles {
    /// Those of `values`; `None` for none. Costs `O(N log N)`.
    pub fn of(values: &[f64]) -> Option<Self> {
        let sorted = sorted(values);
        let at = |q| quantile_of_sorted(&sorted, q);
        Some(Self { p05: at(0.05)?, p25: at(0.25)?, p50: at(0.5)?, p75: at(0.75)?, p95: at(0.95)? })
    }
}

/// The `q` quantile, `0 <= q <= 1`, interpolated between the two order statistics beside the position
/// `(N - 1) q`: NumPy's `linear`, number 7 of Hyndman and Fan (1996). `None` for no values or another `q`.
/// Costs `O(N log N)`.
pub fn quantile(values: &[f64], q: f64) -> Option<f64> {
    quantile_of_sorted(&sorted(values), q)
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted
}

fn quantile_of_sorted(sorted: &[f64], q: f64) -> Option<f64> {
    if !(0.0..=1.0).contains(&q) {
        return None;
    }
    let last = sorted.len().checked_sub(1)?;
    let position = last as f64 * q;
    let index = (position.floor() as usize).min(last);
    let (low, high) = (sorted[index], sorted[(index + 1).min(last)]);
    if low == high {
        // Two infinities have no difference.
        return Some(low);
    }
    let fraction = position - index as f64;
    // From the nearer end, so that the far end is met exactly.
    Some(if fraction < 0.5 {
        low + (high - low) * fraction
    } else {
        high - (high - low) * (1.0 - fraction)
    })
}

/// The share of values above `threshold`; `None` for no values.
pub fn share_above(values: &[f64], threshold: f64) -> Option<f64> {
    let above = values.iter().filter(|value| **value > threshold).count();
    (!values.is_empty()).then(|| above as f64 / values.len() as f64)
}

/// Mean and standard deviation (with divisor `N`); `None` for no values.
pub fn moments(values: &[f64]) -> Option<(f64, f64)> {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / count;
    (!values.is_empty()).then(|| (mean, variance.sqrt()))
}

/// Groups of answers to one prompt, as GRPO forms them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Groups {
    /// Prompts with at least two answers.
    pub groups: usize,
    /// Those whose rewards are all bitwise equal: their advantages are zero, and nothing is learnt.
    pub zero_variance: usize,
}

impl Groups {
    /// The groups among answers with these prompts and rewards. Costs `O(N)`.
    pub fn of(answers: impl Iterator<Item = (u64, f32)>) -> Self {
        let mut groups: HashMap<u64, (u32, usize, bool)> = HashMap::new();
        for (prompt, reward) in answers {
            let bits = reward.to_bits();
            let (first, count, equal) = groups.entry(prompt).or_insert((bits, 0, true));
            *count += 1;
            *equal &= *first == bits;
        }
        let mut found = Self::default();
        for (_, _, equal) in groups.into_values().filter(|(_, count, _)| *count >= 2) {
            found.groups += 1;
            found.zero_variance += usize::from(equal);
        }
        found
    }

    /// The share of groups without variance; `None` without groups.
    pub fn zero_variance_rate(self) -> Option<f64> {
        (self.groups > 0).then(|| self.zero_variance as f64 / self.groups as f64)
    }
}
