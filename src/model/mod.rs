//! Reward models: a decoder family and a reward head, written once over [`Ops`].

mod decoder;
mod head;
mod initialise;

use thiserror::Error;

pub use crate::ops::standard_normal;
pub use decoder::Decoder;
pub use head::{Head, HeadOutput};
pub use initialise::{initialise_decoder, initialise_head};

use crate::checkpoint::{CheckpointError, ModelConfig, TensorSource};
use crate::ops::{Ops, OpsError, Packing};

/// A batch that could not be scored.
#[derive(Debug, Error)]
pub enum ScoreError {
    /// A sequence without tokens, or a batch without sequences.
    #[error("a batch needs at least one sequence, and each sequence at least one token")]
    Empty,
    /// The device failed.
    #[error(transparent)]
    Ops(#[from] OpsError),
}

/// The result for one sequence.
#[derive(Debug, Clone, PartialEq)]
pub struct Score {
    /// The reward: normalised where the checkpoint asks for it. May be non-finite where the weights
    /// are; callers must check before they pass it on.
    pub reward: f32,
    /// The latent; `None` for a standard head.
    pub latent: Option<Latent>,
}

/// The posterior of one sequence's latent.
#[derive(Debug, Clone, PartialEq)]
pub struct Latent {
    /// Posterior mean `[d]`.
    pub mean: Vec<f32>,
    /// Posterior standard deviation `[d]`.
    pub sigma: Vec<f32>,
}

impl Latent {
    /// KL divergence of the posterior from `N(0, I)`, in nats: the sum of [`Latent::divergences`].
    pub fn divergence(&self) -> f32 {
        self.divergences().sum::<f64>() as f32
    }

    /// KL divergence in each dimension, in nats: `1/2 (mu^2 + sigma^2 - 1 - 2 ln sigma)`. Infinite where a sigma
    /// underflowed to 0.
    pub fn divergences(&self) -> impl Iterator<Item = f64> {
        self.mean.iter().zip(&self.sigma).map(|(&mean, &sigma)| {
            let (mean, sigma) = (f64::from(mean), f64::from(sigma));
            0.5 * (mean * mean + sigma * sigma - 1.0 - 2.0 * sigma.ln())
        })
    }
}

/// A model that scores token sequences, whatever its family and device.
pub trait Scorer: Send {
    /// Scores each packed sequence at its last token. How the sequences are packed changes no bit.
    ///
    /// # Errors
    /// A failing device. Token ids must be below the vocabulary size.
    fn score_packed(&self, packing: &Packing) -> Result<Vec<Score>, ScoreError>;

    /// Scores each sequence at its last token, with common prefixes computed once.
    ///
    /// # Errors
    /// An empty batch or sequence, or a failing device.
    fn score(&self, sequences: &[&[u32]]) -> Result<Vec<Score>, ScoreError> {
        self.score_packed(&Packing::shared(sequences).ok_or(ScoreError::Empty)?)
    }

    /// Standard deviation of the reward over `draws` draws of a latent from its posterior. The noise
    /// is the same for every text and every call.
    ///
    /// # Errors
    /// A failing device.
    fn reward_spread(&self, latent: &Latent, draws: usize) -> Result<f32, ScoreError>;
}

/// A decoder with a reward head on one device.
#[derive(Debug)]
pub struct RewardModel<O: Ops> {
    ops: O,
    decoder: Decoder<O>,
    head: Head<O>,
    config: ModelConfig,
}

impl<O: Ops> RewardModel<O> {
    /// Builds the model and checks every tensor's shape.
    ///
    /// # Errors
    /// A missing tensor, a wrong shape or type, with file, tensor, found and expected.
    pub fn load(
        ops: O,
        config: &ModelConfig,
        source: &dyn TensorSource,
    ) -> Result<Self, CheckpointError> {
        Self::load_from(ops, config, source, 0)
    }

    /// As [`RewardModel::load`], without what comes before the layer `first_layer`: for the functions that are given what
    /// enters it.
    ///
    /// # Errors
    /// As [`RewardModel::load`].
    pub fn load_from(
        ops: O,
        config: &ModelConfig,
        source: &dyn TensorSource,
        first_layer: usize,
    ) -> Result<Self, CheckpointError> {
        let decoder = Decoder::load(&ops, &config.decoder, source, first_layer)?;
        let head = Head::load(&ops, &config.head, config.decoder.hidden_size, source)?;
        Ok(Self { ops, decoder, head, config: config.clone() })
    }

    /// The backbone.
    pub fn decoder(&self) -> &Decoder<O> {
        &self.decoder
    }

    /// The device.
    pub fn ops(&self) -> &O {
        &self.ops
    }

    /// Hidden states before the final norm at each sequence's last token: `[sequences, hidden]`.
    ///
    /// # Errors
    /// A failing device.
    pub fn pooled(&self, packing: &Packing) -> Result<O::Matrix, OpsError> {
        self.pooled_from(packing, self.decoder.embed(&self.ops, packing)?)
    }

    /// [`RewardModel::pooled`] of what enters the first layer that is loaded, `[rows, hidden]`.
    ///
    /// # Errors
    /// A failing device.
    pub fn pooled_from(&self, packing: &Packing, x: O::Matrix) -> Result<O::Matrix, OpsError> {
        self.decoder.pooled(&self.ops, packing, x)
    }

    /// What enters the decoder's layer `index`: `[rows, hidden]`.
    ///
    /// # Errors
    /// A failing device.
    pub fn entering(&self, packing: &Packing, index: usize) -> Result<O::Matrix, OpsError> {
        self.decoder.entering(&self.ops, packing, index)
    }

    /// Hidden states after the final norm at each sequence's last token: `[sequences, hidden]`.
    ///
    /// # Errors
    /// A failing device.
    pub fn last_hidden(&self, packing: &Packing) -> Result<O::Matrix, OpsError> {
        let (scale, epsilon) = self.decoder.norm();
        self.ops.head_norm(&self.pooled(packing)?, scale, epsilon)
    }

    /// Posterior and reward of each sequence, before normalisation. `noise` `[sequences * d]` draws
    /// the latent from its posterior (training); `None` takes its mean (scoring).
    ///
    /// # Errors
    /// A failing device.
    pub fn forward(
        &self,
        packing: &Packing,
        noise: Option<&[f32]>,
    ) -> Result<HeadOutput<O>, OpsError> {
        self.head_forward(&self.pooled(packing)?, noise)
    }

    /// [`RewardModel::forward`] of pooled hidden states `[sequences, hidden]`, as [`RewardModel::pooled`] gives them.
    ///
    /// # Errors
    /// A failing device.
    pub fn head_forward(
        &self,
        pooled: &O::Matrix,
        noise: Option<&[f32]>,
    ) -> Result<HeadOutput<O>, OpsError> {
        self.head.forward(&self.ops, pooled, self.decoder.norm(), noise)
    }

    fn normalised(&self, reward: f32) -> f32 {
        match self.config.reward_scale {
            Some(scale) => (reward - scale.mean) / scale.std,
            None => reward,
        }
    }
}

impl<O: Ops> RewardModel<O> {
    /// Scores of pooled hidden states `[n, hidden]`, as [`RewardModel::pooled`] gives them.
    ///
    /// # Errors
    /// A failing device.
    pub fn score_pooled(&self, x: &O::Matrix) -> Result<Vec<Score>, OpsError> {
        let HeadOutput { reward, posterior } = self.head_forward(x, None)?;
        let rewards = self.ops.read(&reward)?;
        let posterior = posterior.map(|posterior| self.ops.read(&posterior)).transpose()?;
        let Some((posterior, dimension)) = posterior.zip(self.config.head.latent_dim()) else {
            let score = |reward| Score { reward: self.normalised(reward), latent: None };
            return Ok(rewards.into_iter().map(score).collect());
        };
        Ok(rewards
            .into_iter()
            .zip(posterior.chunks_exact(2 * dimension))
            .map(|(reward, row)| Score {
                reward: self.normalised(reward),
                latent: Some(Latent {
                    mean: row[..dimension].to_vec(),
                    sigma: row[dimension..].iter().map(|logvar| (logvar / 2.0).exp()).collect(),
                }),
            })
            .collect())
    }
}

impl<O: Ops + Send + Sync> Scorer for RewardModel<O> {
    fn score_packed(&self, packing: &Packing) -> Result<Vec<Score>, ScoreError> {
        Ok(self.ops.enter(|| self.score_pooled(&self.pooled(packing)?))?)
    }

    fn reward_spread(&self, latent: &Latent, draws: usize) -> Result<f32, ScoreError> {
        let rewards = self.head.draw(&self.ops, latent, draws)?;
        let count = rewards.len().max(1) as f64;
        let mean = rewards.iter().map(|&r| f64::from(r)).sum::<f64>() / count;
        let squares = rewards.iter().map(|&r| (f64::from(r) - mean).powi(2)).sum::<f64>();
        let scale = self.config.reward_scale.map_or(1.0, |scale| f64::from(scale.std));
        Ok(((squares / count).sqrt() / scale) as f32)
    }
}
