//! Where models run that are not trained: they give features of a frozen part, and scores.

use anyhow::Context;

use super::depth::Depth;
use crate::checkpoint::{Checkpoint, CheckpointError, ModelConfig, TensorSource};
use crate::config::DeviceChoice;
use crate::model::{RewardModel, Score, ScoreError, Scorer};
use crate::ops::cpu::{CpuOps, Precision};
use crate::ops::{Ops, OpsError, Packing};

/// Where and how hidden states are computed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compute {
    device: DeviceChoice,
    dtype: Precision,
    threads: usize,
    dtype_key: &'static str,
}

impl Compute {
    /// Products in `dtype` on the processor, with so many threads (0 for one a processor), or on a GPU.
    pub fn new(device: DeviceChoice, dtype: Precision, threads: usize) -> Self {
        Self { device, dtype, threads, dtype_key: "dtype" }
    }

    /// The same, whose errors call the precision by another key.
    pub(super) fn with_dtype_key(self, dtype_key: &'static str) -> Self {
        Self { dtype_key, ..self }
    }

    /// Precision of products.
    pub fn dtype(&self) -> Precision {
        self.dtype
    }

    /// Refuses settings that cannot be, and a GPU that is not there.
    ///
    /// # Errors
    /// Names the setting.
    pub fn check(&self) -> anyhow::Result<()> {
        let DeviceChoice::Cuda(ordinals) = &self.device else {
            // What is computed differs in the last digits: no machine should decide that.
            anyhow::ensure!(
                self.device == DeviceChoice::Cpu,
                "device: expected cpu, cuda or cuda:N"
            );
            return Ok(());
        };
        anyhow::ensure!(
            ordinals.len() <= 1,
            "device: the trainer uses one GPU, {} are named",
            ordinals.len()
        );
        anyhow::ensure!(
            self.dtype == Precision::Bf16,
            "{}: GPUs multiply in bf16: say `bf16`, or `cpu` for the device",
            self.dtype_key
        );
        gpu::check(ordinal(ordinals))
    }

    /// Loads a checkpoint's model, from `first_layer` on.
    ///
    /// # Errors
    /// A setting that [`Compute::check`] refuses, a device that cannot be had, or tensors that do not fit.
    pub fn load(
        &self,
        checkpoint: &Checkpoint,
        first_layer: usize,
    ) -> anyhow::Result<Box<dyn Inference>> {
        self.check()?;
        match &self.device {
            DeviceChoice::Cuda(ordinals) => gpu::load(ordinal(ordinals), checkpoint, first_layer),
            DeviceChoice::Cpu | DeviceChoice::Auto => {
                let ops = CpuOps::new(self.threads, self.dtype).context(self.dtype_key)?;
                let Checkpoint { config, tensors, .. } = checkpoint;
                Ok(Box::new(Loaded::on_cpu(ops, config, tensors, first_layer)?))
            }
        }
    }
}

/// The one GPU that is named, or the first.
pub(super) fn ordinal(ordinals: &[usize]) -> usize {
    ordinals.first().copied().unwrap_or(0)
}

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
pub(super) struct Loaded<O: Ops> {
    model: RewardModel<O>,
    arithmetic: String,
}

impl Loaded<CpuOps> {
    pub(super) fn on_cpu(
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

#[cfg(feature = "cuda")]
mod gpu {
    use super::*;
    use crate::config::CudaConfig;
    use crate::ops::cuda::{CudaError, CudaOps};

    pub(super) fn check(ordinal: usize) -> anyhow::Result<()> {
        let count = CudaOps::count().context("device")?;
        let is_there =
            if ordinal < count { Ok(()) } else { Err(CudaError::NoSuchDevice { ordinal, count }) };
        is_there.context("device")
    }

    pub(super) fn load(
        ordinal: usize,
        checkpoint: &Checkpoint,
        first_layer: usize,
    ) -> anyhow::Result<Box<dyn Inference>> {
        let ops = CudaOps::new(ordinal, &CudaConfig::default().product_rows).context("device")?;
        let arithmetic = format!("cuda {} bf16", ops.name());
        let Checkpoint { config, tensors, .. } = checkpoint;
        let model = RewardModel::load_from(ops, config, tensors, first_layer)?;
        Ok(Box::new(Loaded { model, arithmetic }))
    }
}

#[cfg(not(feature = "cuda"))]
mod gpu {
    use super::*;

    pub(super) fn check(_: usize) -> anyhow::Result<()> {
        anyhow::bail!("device: {}", crate::placement::NO_GPU)
    }

    pub(super) fn load(
        ordinal: usize,
        _: &Checkpoint,
        _: usize,
    ) -> anyhow::Result<Box<dyn Inference>> {
        check(ordinal).and_then(|()| anyhow::bail!("device: {}", crate::placement::NO_GPU))
    }
}
