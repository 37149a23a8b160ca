//! The InfoRM loss (equation 5, Algorithm 2): preference plus `beta` times the bottleneck.

use candle_core::{D, Tensor};
use serde::{Deserialize, Serialize};

use crate::model::HeadOutput;
use crate::ops::autograd::AutogradOps;
use crate::train::accuracy::ACTIVE_VARIANCE;

/// How the KL divergence of the `2 B` posteriors of `B` pairs becomes one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KlReduction {
    /// Mean over the pairs of `KL_w + KL_l`: the paper's.
    #[default]
    Sum,
    /// Mean over the samples: half of `sum`.
    SampleMean,
    /// Mean over the pairs, of a KL of mu and logvar averaged over d first. Not a KL of d dimensions;
    /// for comparison with runs that used it.
    Collapsed,
}

/// Settings of the loss.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LossConfig {
    /// Weight of the bottleneck.
    pub beta: f64,
    /// Reduction of the KL divergence.
    pub kl: KlReduction,
    /// Probability with which a label is taken to be wrong.
    pub label_smoothing: f64,
    /// By how much a chosen answer's reward should be the higher one.
    pub margin: LossMargin,
}

/// The margin `m` in `-log sigmoid(r_w - r_l - m)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossMargin {
    /// 0.
    #[default]
    None,
    /// What the data says of the pair (Touvron et al. 2023, Llama 2, equation 2); 0 where it says nothing.
    Data,
}

impl Default for LossConfig {
    fn default() -> Self {
        Self { beta: 0.1, kl: KlReduction::Sum, label_smoothing: 0.0, margin: LossMargin::None }
    }
}

impl LossConfig {
    pub(in crate::train) fn check(&self) -> anyhow::Result<()> {
        anyhow::ensure!(
            self.beta >= 0.0 && self.beta.is_finite(),
            "loss.beta: must be finite and not negative"
        );
        anyhow::ensure!(
            (0.0..0.5).contains(&self.label_smoothing),
            "loss.label_smoothing: must be from 0 to below 0.5"
        );
        Ok(())
    }
}

/// The loss of a batch of pairs, and its parts as numbers.
#[derive(Debug)]
pub struct Loss {
    /// What is minimised, a scalar.
    pub total: Tensor,
    /// Mean of `-log sigmoid(r_w - r_l)`, with the margin and the label smoothing of the settings.
    pub preference: f32,
    /// The reduced KL divergence, in nats; 0 for a standard head.
    pub kl: f32,
    /// Share of pairs whose chosen answer has the higher reward.
    pub accuracy: f32,
}

/// The loss of `[chosen .. | rejected ..]`, `2 B` rows, of pairs with these `margins` in the data, `[B]`.
///
/// # Errors
/// A failing tensor operation.
pub fn pair_loss(
    output: &HeadOutput<AutogradOps>,
    config: &LossConfig,
    margins: &[f32],
) -> candle_core::Result<Loss> {
    let rewards = output.reward.flatten_all()?;
    let pairs = rewards.dim(0)? / 2;
    let difference = (rewards.narrow(0, 0, pairs)? - rewards.narrow(0, pairs, pairs)?)?;
    let accuracy = difference.gt(0f32)?.to_dtype(candle_core::DType::F32)?.mean_all()?;
    let margin = match config.margin {
        LossMargin::None => difference,
        LossMargin::Data => (difference - Tensor::new(margins, rewards.device())?)?,
    };
    let mut preference = negative_log_sigmoid(&margin)?.mean_all()?;
    if config.label_smoothing > 0.0 {
        // The label is right with probability 1 - epsilon.
        let wrong = negative_log_sigmoid(&margin.neg()?)?.mean_all()?;
        preference =
            ((preference * (1.0 - config.label_smoothing))? + (wrong * config.label_smoothing)?)?;
    }
    let kl = match &output.posterior {
        None => None,
        Some(posterior) => Some(kl_divergence(posterior, config.kl)?),
    };
    let total = match &kl {
        None => preference.clone(),
        Some(kl) => (&preference + (kl * config.beta)?)?,
    };
    Ok(Loss {
        total,
        preference: preference.to_scalar()?,
        kl: kl.map_or(Ok(0.0), |kl| kl.to_scalar())?,
        accuracy: accuracy.to_scalar()?,
    })
}

/// `-log sigmoid(x) = m + log(exp(-m) + exp(-x - m))`, which does not overflow for `m = max(-x, 0)`. m cancels, so it
/// is a constant here: the gradients of max and |x| at a tie would be wrong.
fn negative_log_sigmoid(x: &Tensor) -> candle_core::Result<Tensor> {
    let largest = x.neg()?.relu()?.detach();
    let sum = (largest.neg()?.exp()? + (x.neg()? - &largest)?.exp()?)?;
    sum.log()? + &largest
}

/// `KL(N(mu, sigma^2) || N(0, I)) = 1/2 sum(mu^2 + exp(logvar) - 1 - logvar)`, reduced.
fn kl_divergence(posterior: &Tensor, reduction: KlReduction) -> candle_core::Result<Tensor> {
    let dimension = posterior.dim(1)? / 2;
    let part = |start| -> candle_core::Result<Tensor> {
        let part = posterior.narrow(1, start, dimension)?;
        match reduction {
            KlReduction::Collapsed => part.mean_keepdim(D::Minus1),
            KlReduction::Sum | KlReduction::SampleMean => Ok(part),
        }
    };
    let (mu, logvar) = (part(0)?, part(dimension)?);
    let terms = (((mu.sqr()? + logvar.exp()?)? - 1.0)? - logvar)?;
    let per_sample = (terms.sum(1)? * 0.5)?;
    match reduction {
        KlReduction::SampleMean => per_sample.mean_all(),
        KlReduction::Sum | KlReduction::Collapsed => per_sample.mean_all()? * 2.0,
    }
}

/// Mean of `r_w - r_l` over pairs, whose rewards stand in the same order.
pub fn mean_margin(chosen: &[f32], rejected: &[f32]) -> f64 {
    let margins = chosen.iter().zip(rejected).map(|(&w, &l)| f64::from(w) - f64::from(l));
    margins.sum::<f64>() / chosen.len().max(1) as f64
}

/// Latent dimensions that tell texts apart: those whose posterior mean has a variance above 0.01 over the rows (active
/// units, Burda et al. 2016). `posterior`: `[mu | logvar]`, `[rows, 2 d]`, of all micro-batches of a step.
pub fn active_dimensions(posterior: &[f32], dimension: usize) -> usize {
    let rows = posterior.chunks_exact(2 * dimension);
    let count = rows.len().max(1) as f64;
    let is_active = |column: &usize| {
        let values = || rows.clone().map(|row| f64::from(row[*column]));
        let mean = values().sum::<f64>() / count;
        values().map(|value| (value - mean).powi(2)).sum::<f64>() / count > ACTIVE_VARIANCE
    };
    (0..dimension).filter(is_active).count()
}
