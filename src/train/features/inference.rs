//! Where models run that are not trained: they give features of a frozen part, and scores.

use super::depth::Depth;
use crate::checkpoint::{CheckpointError, ModelConfig, TensorSource};
use crate::model::{RewardModel, Score, ScoreError, Scorer};
use crate::ops::cpu::CpuOps;
use crate::ops::{Ops, OpsError, Packing};

/// A model that is not trained, on whatever device. Every function fails where its device does.
pub trait Inference {
    /// Names what the last digits of hidden states depend on.
    fn arithmetic(&self) -> &str;

    /// The whole model, where all of it is loaded.
    fn scorer(&self) -> &dyn Scorer;

    /// Hidden states at `depth`: `[sequences * hidden]`, or `[rows * hidden]`.
    ///
    /// # Errors
    /// A failing device.
    fn features(&self, packing: &Packing, depth: Depth) -> Result<Vec<f32>, OpsError>;

    /// Scores of pooled hidden states `[n * hidden]`.
    ///
    /// # Errors
    /// A failing device.
    fn score_pooled(&self, pooled: Vec<f32>) -> Result<Vec<Score>, ScoreError>;

    /// Scores of what enters the first layer that is loaded, `[rows * hidden]`.
    ///
    /// # Errors
    /// A failing device.
    fn score_entering(
        &self,
        packing: &Packing,
        entering: Vec<f32>,
    ) -> Result<Vec<Score>, ScoreError>;
}

/// A model in memory.
pub(in crate::train) struct Loaded<O: Ops> {
    pub(super) model: RewardModel<O>,
    pub(super) arithmetic: String,
}

impl Loaded<CpuOps> {
    pub(in crate::train) fn on_cpu(
        ops: CpuOps,
        config: &ModelConfig,
        source: &dyn TensorSource,
        first_layer: usize,
    ) -> Result<Self, CheckpointError> {
        let arithmetic = format!("{} {}", ops.isa().name(), ops.precision().name());
        let model = RewardModel::load_from(ops, config, source, first_layer)?;
        Ok(Self { model, arithmetic })
    }
}

impl<O: Ops + Send + Sync> Loaded<O> {
    fn hidden(&self) -> usize {
        self.model.decoder().hidden_size()
    }
}

impl<O: Ops + Send + Sync> Inference for Loaded<O> {
    fn arithmetic(&self) -> &str {
        &self.arithmetic
    }

    fn scorer(&self) -> &dyn Scorer {
        &self.model
    }

    fn features(&self, packing: &Packing, depth: Depth) -> Result<Vec<f32>, OpsError> {
        let (model, ops) = (&self.model, self.model.ops());
        ops.enter(|| match depth {
            Depth::Pooled => ops.read(&model.pooled(packing)?),
            Depth::Entering(layer) => ops.read(&model.layer_input(packing, layer)?),
        })
    }

    fn score_pooled(&self, pooled: Vec<f32>) -> Result<Vec<Score>, ScoreError> {
        let (model, ops) = (&self.model, self.model.ops());
        Ok(ops.enter(|| model.score_pooled(&ops.upload(pooled, self.hidden())?))?)
    }

    fn score_entering(
        &self,
        packing: &Packing,
        entering: Vec<f32>,
    ) -> Result<Vec<Score>, ScoreError> {
        let (model, ops) = (&self.model, self.model.ops());
        Ok(ops.enter(|| {
            let pooled = model.pooled_from(packing, ops.upload(entering, self.hidden())?)?;
            model.score_pooled(&pooled)
        })?)
    }
}
