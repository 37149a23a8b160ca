//! From pooled hidden states to scores: a reward head and the normalisation of its rewards.

use super::head::{Head, HeadOutput};
use super::score::{Latent, Parts, Score};
use crate::checkpoint::{CheckpointError, ModelConfig, RewardScale, TensorSource};
use crate::ops::{HeadOps, OpsError};

/// A reward head with its normalisation.
#[derive(Debug)]
pub(super) struct Readout<O: HeadOps> {
    head: Head<O>,
    latent_dim: Option<usize>,
    scale: Option<RewardScale>,
}

impl<O: HeadOps> Readout<O> {
    /// Loads the head's tensors.
    ///
    /// # Errors
    /// As [`Head::load`].
    pub(super) fn load(
        ops: &O,
        config: &ModelConfig,
        source: &dyn TensorSource,
    ) -> Result<Self, CheckpointError> {
        let head = Head::load(ops, &config.head, config.decoder.hidden_size, source)?;
        Ok(Self { head, latent_dim: config.head.latent_dim(), scale: config.reward_scale })
    }

    /// The same with noise of its own for [`Readout::draws`].
    pub(super) fn with_noise(self, stream: u64) -> Self {
        Self { head: self.head.with_noise(stream), ..self }
    }

    pub(super) fn head(&self) -> &Head<O> {
        &self.head
    }

    /// Scores of pooled hidden states `[n, hidden]` before the final norm, whose scale and epsilon are given.
    ///
    /// # Errors
    /// A failing device.
    pub(super) fn scores(
        &self,
        ops: &O,
        x: &O::Matrix,
        norm: (&O::Scale, f32),
    ) -> Result<Vec<Score>, OpsError> {
        let HeadOutput { reward, posterior } = self.head.forward(ops, x, norm, None)?;
        let rewards = ops.read(&reward)?;
        if let Head::Standard { bias, objectives, .. } = &self.head {
            let rows = rewards.chunks_exact(bias.len());
            return Ok(rows.map(|row| self.standard(row, bias, objectives)).collect());
        }
        let posterior = posterior.map(|posterior| ops.read(&posterior)).transpose()?;
        let (posterior, dimension) = (posterior.unwrap_or_default(), self.latent_dim.unwrap_or(1));
        Ok(rewards
            .into_iter()
            .zip(posterior.chunks_exact(2 * dimension))
            .map(|(reward, row)| Score {
                reward: self.normalised(reward),
                latent: Some(Latent {
                    mean: row[..dimension].to_vec(),
                    sigma: row[dimension..].iter().map(|logvar| (logvar / 2.0).exp()).collect(),
                }),
                parts: Parts::Whole,
            })
            .collect())
    }

    /// The score of a standard head's outputs `[labels]`.
    fn standard(&self, row: &[f32], bias: &[f32], objectives: &[f32]) -> Score {
        let outputs: Vec<f32> = row.iter().zip(bias).map(|(value, bias)| value + bias).collect();
        let (reward, parts) = match outputs.as_slice() {
            [reward] if objectives.is_empty() => (*reward, Parts::Whole),
            _ => {
                let terms = outputs.iter().zip(objectives);
                let sum: f64 = terms.map(|(&o, &weight)| f64::from(o) * f64::from(weight)).sum();
                (sum as f32, Parts::Objectives(outputs))
            }
        };
        Score { reward: self.normalised(reward), latent: None, parts }
    }

    /// Rewards of `count` draws of a latent from its posterior; none for a standard head.
    ///
    /// # Errors
    /// A failing device.
    pub(super) fn draws(
        &self,
        ops: &O,
        latent: &Latent,
        count: usize,
    ) -> Result<Vec<f64>, OpsError> {
        let (mean, std) = self.scale.map_or((0.0, 1.0), |scale| (scale.mean, scale.std));
        let rewards = self.head.draw(ops, latent, count)?;
        let normalised = |reward| (f64::from(reward) - f64::from(mean)) / f64::from(std);
        Ok(rewards.into_iter().map(normalised).collect())
    }

    fn normalised(&self, reward: f32) -> f32 {
        match self.scale {
            Some(scale) => (reward - scale.mean) / scale.std,
            None => reward,
        }
    }
}
