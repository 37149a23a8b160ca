//! Reward shaping: what a trainer may want taken off the model's reward against over-optimisation.
//!
//! `r - gamma * D - spread * std - beta_kl * (log p - log p_ref)`, each term where its coefficient is not
//! zero: IB-latent regularisation (Miao et al., arXiv 2510.13694), where D is the Mahalanobis distance, not
//! squared, from the run's baseline; the standard deviation of the reward over draws of the latent; and
//! the usual penalty on the divergence from the reference model (Ouyang et al. 2022, equation 2).

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Coefficients of the terms; 0 leaves a term out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default, deny_unknown_fields, expecting = "expected an object")]
pub struct ShapingParameters {
    /// Of the Mahalanobis distance from the run's baseline.
    #[schema(minimum = 0)]
    pub gamma: f64,
    /// Of the reward's standard deviation over draws of the latent.
    #[schema(minimum = 0)]
    pub spread: f64,
    /// Of the log-probability of the response over that under the reference model, in nats.
    #[schema(minimum = 0)]
    pub beta_kl: f64,
}

/// What the terms are made of; `None` where it is not known.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct ShapingTerms {
    /// Mahalanobis distance from the run's baseline, not squared.
    pub distance: Option<f64>,
    /// Standard deviation of the reward over draws of the latent.
    pub reward_std: Option<f64>,
    /// `log p - log p_ref` of the response, in nats.
    pub log_ratio: Option<f64>,
}

/// A reward that cannot be shaped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ShapingError {
    /// A coefficient is set, and its term is not known.
    #[error("{}", .0.missing())]
    Missing(Term),
    /// The shaped reward leaves the range of f32.
    #[error("the shaped reward is not finite")]
    NonFinite,
}

/// A term of the shaped reward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Term {
    Distance,
    RewardStd,
    LogRatio,
}

impl Term {
    fn missing(self) -> &'static str {
        match self {
            Self::Distance => {
                "shaping.gamma takes off the Mahalanobis distance, and the run has no baseline with a \
                 covariance: give it one by PUT /runs/{run}/baseline or role `baseline`"
            }
            Self::RewardStd => {
                "shaping.spread takes off the reward's standard deviation: send `samples` (POST /reward)"
            }
            Self::LogRatio => {
                "shaping.beta_kl takes off the log-probability ratio: send `log_probability` and \
                 `reference_log_probability` with the input (POST /reward)"
            }
        }
    }
}

impl ShapingParameters {
    /// Whether any term is on.
    pub fn is_on(&self) -> bool {
        self.gamma != 0.0 || self.spread != 0.0 || self.beta_kl != 0.0
    }

    /// Checks the coefficients.
    ///
    /// # Errors
    /// Names the one at fault.
    pub fn check(&self) -> Result<(), String> {
        for (name, value) in
            [("gamma", self.gamma), ("spread", self.spread), ("beta_kl", self.beta_kl)]
        {
            if !(value.is_finite() && value >= 0.0) {
                return Err(format!("{name} must be finite and not negative, not {value}"));
            }
        }
        Ok(())
    }

    /// The shaped reward.
    ///
    /// # Errors
    /// Where a term that is on is not known, or the result is not finite.
    pub fn shape(&self, reward: f32, terms: &ShapingTerms) -> Result<f32, ShapingError> {
        let mut shaped = f64::from(reward);
        for (coefficient, value, term) in [
            (self.gamma, terms.distance, Term::Distance),
            (self.spread, terms.reward_std, Term::RewardStd),
            (self.beta_kl, terms.log_ratio, Term::LogRatio),
        ] {
            if coefficient != 0.0 {
                shaped -= coefficient * value.ok_or(ShapingError::Missing(term))?;
            }
        }
        let shaped = shaped as f32;
        if shaped.is_finite() { Ok(shaped) } else { Err(ShapingError::NonFinite) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terms_are_taken_off_and_missing_ones_named() {
        let all = ShapingParameters { gamma: 0.5, spread: 2.0, beta_kl: 0.25 };
        let terms =
            ShapingTerms { distance: Some(3.0), reward_std: Some(0.25), log_ratio: Some(-4.0) };
        assert_eq!(all.shape(1.0, &terms), Ok(1.0 - 1.5 - 0.5 + 1.0));
        let off = ShapingParameters::default();
        assert_eq!(off.shape(1.25, &ShapingTerms::default()), Ok(1.25));
        assert!(!off.is_on() && all.is_on());
        let without = ShapingTerms { reward_std: None, ..terms };
        assert_eq!(all.shape(1.0, &without), Err(ShapingError::Missing(Term::RewardStd)));
    }

    #[test]
    fn a_shaped_reward_is_finite_or_an_error() {
        let kl = ShapingParameters { beta_kl: 1.0, ..ShapingParameters::default() };
        for log_ratio in [f64::MAX, -f64::MAX, f64::INFINITY, f64::NAN, 1e39] {
            let terms = ShapingTerms { log_ratio: Some(log_ratio), ..ShapingTerms::default() };
            assert_eq!(kl.shape(0.0, &terms), Err(ShapingError::NonFinite), "{log_ratio}");
        }
        assert!(ShapingParameters { gamma: f64::NAN, ..kl }.check().is_err());
        assert!(ShapingParameters { gamma: -1.0, ..kl }.check().is_err());
        assert!(kl.check().is_ok());
    }
}
