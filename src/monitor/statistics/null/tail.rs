//! Tail probabilities that the nulls share.

use std::f64::consts::SQRT_2;

use libm::{erfc, lgamma};

/// Part of a resampled null that is taken for its tail.
const TAIL: f64 = 0.1;

/// `P(Z > z)` of a standard normal `Z`.
pub(crate) fn normal_tail(z: f64) -> f64 {
    0.5 * erfc(z / SQRT_2)
}

/// The `z` with `P(Z > z) = p`, for `p` from 0 to 1.
pub(crate) fn normal_upper_quantile(p: f64) -> f64 {
    bisect(-40.0, 40.0, |z| normal_tail(z) <= p)
}

/// Where a condition that is false at `low` and true at `high` turns.
pub(crate) fn bisect(mut low: f64, mut high: f64, reached: impl Fn(f64) -> bool) -> f64 {
    for _ in 0..200 {
        let middle = 0.5 * (low + high);
        if middle <= low || middle >= high {
            break;
        }
        if reached(middle) {
            high = middle;
        } else {
            low = middle;
        }
    }
    high
}

/// `P(K >= count)` where `K` is binomial of `trials`, with a probability drawn from
/// `Beta(a, b)`. Costs O(trials).
pub(crate) fn beta_binomial_tail(count: u64, trials: u64, a: f64, b: f64) -> f64 {
    let (n, ln_beta) = (trials as f64, |a: f64, b: f64| lgamma(a) + lgamma(b) - lgamma(a + b));
    let mut ln_mass = ln_beta(a, n + b) - ln_beta(a, b);
    let mut tail = 0.0;
    for k in 0..=trials {
        if k >= count {
            tail += ln_mass.exp();
        }
        let k = k as f64;
        ln_mass += ((n - k) * (k + a)).ln() - ((k + 1.0) * (n - k - 1.0 + b)).ln();
    }
    tail.min(1.0)
}

/// A null known by independent draws. Beyond its 0.9 quantile `u` the tail is exponential with the
/// draws' own mean excess over `u`: exact for an exponential tail, and too heavy, which is the safe
/// side, for every lighter one (log-concave densities, the normal among them).
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Resampled {
    /// Ascending.
    draws: Vec<f64>,
    pub(super) mean: f64,
    threshold: f64,
    excess: f64,
    in_tail: usize,
}

impl Resampled {
    /// `None` for fewer than 20 draws.
    pub(super) fn new(mut draws: Vec<f64>) -> Option<Self> {
        if draws.len() < 20 {
            return None;
        }
        draws.sort_by(f64::total_cmp);
        let in_tail = (draws.len() as f64 * TAIL).ceil() as usize;
        let (body, tail) = draws.split_at(draws.len() - in_tail);
        let threshold = body[body.len() - 1];
        let excess = tail.iter().map(|value| value - threshold).sum::<f64>() / in_tail as f64;
        let mean = draws.iter().sum::<f64>() / draws.len() as f64;
        Some(Self { mean, threshold, excess, in_tail, draws })
    }

    /// Probability of a value of at least `value`.
    pub(super) fn p(&self, value: f64) -> f64 {
        let total = self.draws.len() as f64;
        let at_least = self.draws.len() - self.draws.partition_point(|draw| *draw < value);
        if value <= self.threshold || self.excess <= 0.0 {
            (at_least as f64 + 1.0) / (total + 1.0)
        } else {
            let tail = (self.in_tail as f64 + 1.0) / (total + 1.0);
            tail * (-(value - self.threshold) / self.excess).exp()
        }
    }

    /// The draws' quantile `q`, by linear interpolation.
    pub(super) fn quantile(&self, q: f64) -> f64 {
        let place = q * (self.draws.len() - 1) as f64;
        let (below, above) = (place.floor() as usize, place.ceil() as usize);
        self.draws[below] + (place - place.floor()) * (self.draws[above] - self.draws[below])
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn near(found: f64, expected: f64, relative: f64) {
        assert!((found - expected).abs() <= relative * expected.abs(), "{found}, not {expected}");
    }

    #[test]
    fn the_normal_tail_and_its_quantile() {
        near(normal_tail(1.959_963_984_540_054), 0.025, 1e-12);
        near(normal_tail(6.0), 9.865_876_450_377e-10, 1e-9);
        near(normal_upper_quantile(0.001), 3.090_232_306_167_813, 1e-12);
        near(normal_upper_quantile(0.9), -1.281_551_565_544_600_5, 1e-12);
    }

    #[test]
    fn beta_binomial_of_a_uniform_probability_is_uniform() {
        for count in 0..=10 {
            near(beta_binomial_tail(count, 10, 1.0, 1.0), (11 - count) as f64 / 11.0, 1e-12);
        }
        // Of a probability that is all but certain it is binomial.
        near(beta_binomial_tail(1, 20, 1e6, 99e6), 1.0 - 0.99_f64.powi(20), 1e-5);
    }

    #[test]
    fn an_exponential_tail_is_extrapolated_and_a_normal_one_overstated() {
        let draws = |quantile: &dyn Fn(f64) -> f64| {
            let draws = (0..400).map(|i| quantile((f64::from(i) + 0.5) / 400.0)).collect();
            Resampled::new(draws).unwrap()
        };
        let exponential = draws(&|q| -(1.0 - q).ln());
        near(exponential.p(9.0), (-9.0_f64).exp(), 0.5);
        near(exponential.quantile(0.5), 2.0_f64.ln(), 0.01);
        let normal = draws(&|q| normal_upper_quantile(1.0 - q));
        near(normal.p(1.0), normal_tail(1.0), 0.05);
        for z in [2.0, 3.0, 4.0] {
            assert!(normal.p(z) > 0.9 * normal_tail(z), "{z}");
        }
        assert!(normal.p(4.0) < 20.0 * normal_tail(4.0));
    }

    #[test]
    fn draws_that_are_all_the_same_never_give_certainty() {
        let constant = Resampled::new(vec![2.0; 99]).unwrap();
        assert_eq!(constant.p(2.0), 1.0);
        assert_eq!(constant.p(3.0), 0.01);
    }
}
