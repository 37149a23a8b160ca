//! Reward models: a decoder family and a reward head, written once over [`Ops`].

mod decoder;
mod ensemble;
mod head;
mod initialise;
mod readout;

use thiserror::Error;

pub use crate::ops::standard_normal;
pub use decoder::Decoder;
pub use ensemble::{Aggregate, Aggregation, Ensemble, MemberSource};
pub use head::{Head, HeadOutput};
pub use initialise::{initialise_decoder, initialise_head};
use readout::Readout;

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
    /// What computes hidden states failed.
    #[error("the encoder failed: {0}")]
    Encoder(String),
}

/// The result for one sequence.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Score {
    /// The reward: normalised where the checkpoint asks for it. May be non-finite where the weights
    /// are; callers must check before they pass it on.
    pub reward: f32,
    /// The latent; `None` for a standard head. That of an ensemble is its first member's.
    pub latent: Option<Latent>,
    /// What the reward was made of.
    pub parts: Parts,
}

impl Score {
    /// Every number of it.
    pub fn values(&self) -> impl Iterator<Item = f32> {
        let (objectives, members): (&[f32], &[Member]) = match &self.parts {
            Parts::Whole => (&[], &[]),
            Parts::Objectives(values) => (values, &[]),
            Parts::Members(members) => (&[], members),
        };
        let members = members
            .iter()
            .flat_map(|Member { reward, latent }| std::iter::once(reward).chain(numbers(latent)));
        std::iter::once(&self.reward)
            .chain(numbers(&self.latent))
            .chain(objectives)
            .chain(members)
            .copied()
    }
}

fn numbers(latent: &Option<Latent>) -> impl Iterator<Item = &f32> {
    latent.iter().flat_map(|latent| latent.mean.iter().chain(&latent.sigma))
}

/// What a reward was made of.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum Parts {
    /// One output of one head.
    #[default]
    Whole,
    /// Outputs of a head with several labels, in their order, before they are weighted.
    Objectives(Vec<f32>),
    /// What each member of an ensemble gives, in their order.
    Members(Vec<Member>),
}

/// What one member of an ensemble gives for a sequence.
#[derive(Debug, Clone, PartialEq)]
pub struct Member {
    /// Its reward, normalised where its checkpoint asks for it.
    pub reward: f32,
    /// Its latent; `None` for a standard head.
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

    /// Standard deviation of the reward over `draws` draws of a score's latents from their posteriors; `None` for a
    /// model without latents. The noise is the same for every text and every call.
    ///
    /// # Errors
    /// A failing device.
    fn reward_spread(&self, score: &Score, draws: usize) -> Result<Option<f32>, ScoreError>;
}

/// A decoder with a reward head on one device.
#[derive(Debug)]
pub struct RewardModel<O: Ops> {
    ops: O,
    decoder: Decoder<O>,
    readout: Readout<O>,
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
        let readout = Readout::load(&ops, config, source)?;
        Ok(Self { ops, decoder, readout })
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
    pub fn layer_input(&self, packing: &Packing, index: usize) -> Result<O::Matrix, OpsError> {
        self.decoder.layer_input(&self.ops, packing, index)
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
        self.readout.head().forward(&self.ops, pooled, self.decoder.norm(), noise)
    }

    /// Scores of pooled hidden states `[n, hidden]`, as [`RewardModel::pooled`] gives them.
    ///
    /// # Errors
    /// A failing device.
    pub fn score_pooled(&self, x: &O::Matrix) -> Result<Vec<Score>, OpsError> {
        self.readout.scores(&self.ops, x, self.decoder.norm())
    }
}

impl<O: Ops + Send + Sync> Scorer for RewardModel<O> {
    fn score_packed(&self, packing: &Packing) -> Result<Vec<Score>, ScoreError> {
        Ok(self.ops.enter(|| self.score_pooled(&self.pooled(packing)?))?)
    }

    fn reward_spread(&self, score: &Score, draws: usize) -> Result<Option<f32>, ScoreError> {
        let Some(latent) = &score.latent else { return Ok(None) };
        let rewards = self.readout.draws(&self.ops, latent, draws)?;
        Ok(Some(standard_deviation(&rewards) as f32))
    }
}

/// Root of the mean squared deviation from the mean; 0 of nothing.
fn standard_deviation(values: &[f64]) -> f64 {
    variance(values).sqrt()
}

/// Mean squared deviation from the mean, `1/n sum (x - mean)^2`; 0 of nothing.
pub fn variance(values: &[f64]) -> f64 {
    let count = values.len().max(1) as f64;
    let mean = values.iter().sum::<f64>() / count;
    values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / count
}
