//! How a token is drawn from logits: temperature and nucleus.

use serde::{Deserialize, Serialize};

/// How tokens are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// Divides the logits; 0 takes the most probable token.
    pub temperature: f64,
    /// Tokens are drawn from the fewest most probable ones whose probabilities sum to this at least.
    pub top_p: f64,
    /// Most tokens of a text.
    pub max_new_tokens: usize,
    /// Seed of all samples.
    pub seed: u64,
}

/// The settings of the paper's policies (appendix J.3).
impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 0.8, top_p: 0.9, max_new_tokens: 512, seed: 0 }
    }
}

impl Sampling {
    /// The token drawn from `logits` with the random number `uniform` from [0, 1).
    ///
    /// Probabilities are a softmax in f64 over `logits / temperature`; the nucleus is that of Holtzman et al. 2020. Equally
    /// probable tokens stand in the order of their ids. `None` where no logit is a number above negative infinity.
    pub fn draw(&self, logits: &[f32], uniform: f64) -> Option<u32> {
        let (best, greatest) = logits.iter().enumerate().filter(|(_, logit)| !logit.is_nan()).fold(
            (0, f32::NEG_INFINITY),
            |best, (id, &logit)| {
                if logit > best.1 { (id, logit) } else { best }
            },
        );
        if greatest == f32::NEG_INFINITY {
            return None;
        }
        if self.temperature <= 0.0 {
            return Some(best as u32);
        }
        let weight = |logit: f32| match logit.is_nan() {
            true => 0.0,
            false => (f64::from(logit - greatest) / self.temperature).exp(),
        };
        let total: f64 = logits.iter().map(|&logit| weight(logit)).sum();
        // All tokens below this share together have less than 1 - top_p: none of them is in the nucleus.
        let least = total * (1.0 - self.top_p).max(0.0) / logits.len() as f64;
        let mut nucleus: Vec<(u32, f64)> = logits
            .iter()
            .enumerate()
            .map(|(id, &logit)| (id as u32, weight(logit)))
            .filter(|&(_, weight)| weight >= least && weight > 0.0)
            .collect();
        // Stable: equal ones keep the order of their ids.
        nucleus.sort_by(|a, b| b.1.total_cmp(&a.1));
        let mut mass = 0.0;
        let end = nucleus.iter().position(|&(_, weight)| {
            mass += weight;
            mass >= self.top_p * total
        });
        nucleus.truncate(end.map_or(nucleus.len(), |end| end + 1));
        let mut left = uniform * nucleus.iter().map(|(_, weight)| weight).sum::<f64>();
        let drawn = nucleus.iter().find(|(_, weight)| {
            left -= weight;
            left < 0.0
        });
        drawn.or(nucleus.last()).map(|&(id, _)| id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampling(temperature: f64, top_p: f64) -> Sampling {
        Sampling { temperature, top_p, ..Sampling::default() }
    }

    #[test]
    fn the_most_probable_token_is_taken_without_temperature() {
        let greedy = sampling(0.0, 0.9);
        assert_eq!(greedy.draw(&[1.0, f32::NAN, 3.0, 3.0], 0.99), Some(2));
        assert_eq!(greedy.draw(&[f32::NEG_INFINITY, f32::NAN], 0.5), None);
    }

    #[test]
    fn tokens_are_drawn_as_often_as_the_nucleus_says() {
        // Probabilities 0.5, 0.3, 0.15, 0.05, in another order.
        let logits = [0.15_f32, 0.5, 0.05, 0.3].map(f32::ln);
        for (top_p, expected) in [
            (1.0, [0.15, 0.5, 0.05, 0.3]),
            (0.9, [0.15 / 0.95, 0.5 / 0.95, 0.0, 0.3 / 0.95]),
            (0.8, [0.0, 0.625, 0.0, 0.375]),
            (0.5, [0.0, 1.0, 0.0, 0.0]),
            (0.0, [0.0, 1.0, 0.0, 0.0]),
        ] {
            let mut counts = [0.0_f64; 4];
            for step in 0..1000 {
                let token = sampling(1.0, top_p).draw(&logits, (f64::from(step) + 0.5) / 1000.0);
                counts[token.expect("a token") as usize] += 1e-3;
            }
            for (count, expected) in counts.iter().zip(expected) {
                assert!((count - expected).abs() < 2e-3, "{top_p}: {counts:?}");
            }
        }
    }

    #[test]
    fn a_temperature_divides_the_logits() {
        let logits = [0.0, 1.0];
        let share = |temperature: f64| {
            let drawn = (0..1000).filter(|&step| {
                sampling(temperature, 1.0).draw(&logits, f64::from(step) / 1e3) == Some(1)
            });
            drawn.count() as f64 / 1e3
        };
        for temperature in [0.5_f64, 1.0, 2.0] {
            let expected = 1.0 / (1.0 + (-1.0 / temperature).exp());
            assert!((share(temperature) - expected).abs() < 2e-3, "{temperature}");
        }
    }
}
