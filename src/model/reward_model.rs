//! A reward model: a decoder and a reward head on one device.

use super::decoder::Decoder;
use super::head::HeadOutput;
use super::readout::Readout;
use super::score::Score;
use super::scorer::{ScoreError, Scorer};
use super::variance::standard_deviation;
use crate::checkpoint::{CheckpointError, ModelConfig, TensorSource};
use crate::ops::{Ops, OpsError, Packing};

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
