//! What is trained: all of a model, or its head over features of the rest.

use anyhow::{Context, ensure};
use candle_core::{Device, Tensor};

use super::config::{FeatureConfig, FitConfig, Mode};
use super::data::EncodedPair;
use super::features::FeatureStore;
use crate::checkpoint::{Checkpoint, MemoryTensors, NormKind, TensorSource};
use crate::model::{Head, HeadOutput, RewardModel};
use crate::ops::autograd::{AutogradOps, Parameter};
use crate::ops::cpu::{CpuOps, Precision};
use crate::ops::{Ops, Packing};

pub(super) enum Trained {
    Full(Box<RewardModel<AutogradOps>>),
    Head {
        ops: AutogradOps,
        head: Box<Head<AutogradOps>>,
        /// Scale and epsilon of the final norm; frozen with the backbone.
        norm: (Tensor, f32),
        features: FeatureStore,
        /// Computes features of texts that `features` has not.
        engine: Box<RewardModel<CpuOps>>,
        /// Rows of each pair's chosen and rejected text in `features`, one after the other.
        rows: Vec<usize>,
    },
}

impl Trained {
    pub(super) fn load(
        config: &FitConfig,
        checkpoint: &Checkpoint,
        train: &[EncodedPair],
    ) -> anyhow::Result<Self> {
        let ops = AutogradOps::new(config.threads, config.dtype).context("dtype")?;
        let Checkpoint { config: model, tensors, .. } = checkpoint;
        match config.mode {
            Mode::Full => Ok(Self::Full(Box::new(RewardModel::load(ops, model, tensors)?))),
            Mode::Head => {
                let FeatureConfig { folder, dtype } = &config.features;
                let engine = CpuOps::new(config.threads, *dtype).context("features.dtype")?;
                let folder = folder.as_deref();
                let mut features = FeatureStore::open(folder, model, tensors, &engine)
                    .context("features.folder")?;
                let texts: Vec<&[u32]> = train
                    .iter()
                    .flat_map(|pair| [pair.chosen.as_slice(), &pair.rejected])
                    .collect();
                let engine = Box::new(RewardModel::load(engine, model, tensors)?);
                let rows = features.rows(&engine, &texts)?;
                let hidden = model.decoder.hidden_size;
                let head = Head::load(&ops, &model.head, hidden, tensors)?;
                ensure!(
                    model.decoder.architecture.norm == NormKind::Rms,
                    "mode: a head alone is not trained on a model with layer norm yet"
                );
                let scale = model.decoder.tensors(tensors).f32("model.norm.weight", &[hidden])?;
                let scale = Tensor::from_vec(scale, hidden, &Device::Cpu)?;
                let norm = (scale, model.decoder.rms_norm_eps);
                Ok(Self::Head { ops, head: Box::new(head), norm, features, engine, rows })
            }
        }
    }

    pub(super) fn parameters(&self) -> Vec<Parameter> {
        match self {
            Self::Full(model) => model.ops().parameters(),
            Self::Head { ops, .. } => ops.parameters(),
        }
    }

    /// Of the chosen texts of the pairs with these numbers, then of their rejected ones.
    pub(super) fn forward(
        &self,
        train: &[EncodedPair],
        batch: &[usize],
        noise: Option<&[f32]>,
    ) -> anyhow::Result<HeadOutput<AutogradOps>> {
        match self {
            Self::Full(model) => {
                let chosen = batch.iter().map(|&pair| &train[pair].chosen);
                let rejected = batch.iter().map(|&pair| &train[pair].rejected);
                let sequences: Vec<&Vec<u32>> = chosen.chain(rejected).collect();
                let packing = Packing::new(&sequences).context("an empty sequence")?;
                Ok(model.forward(&packing, noise)?)
            }
            Self::Head { ops, head, norm: (scale, epsilon), features, rows, .. } => {
                let sides = (0..2).flat_map(|side| batch.iter().map(move |&pair| 2 * pair + side));
                let values: Vec<f32> =
                    sides.flat_map(|side| features.row(rows[side])).copied().collect();
                let hidden = scale.elem_count();
                let x = ops.upload(values, hidden)?;
                Ok(head.forward(ops, &x, (scale, *epsilon), noise)?)
            }
        }
    }

    /// Rewards of each pair's chosen and rejected text, one after the other, with the weights as they are now and
    /// the latents' means.
    pub(super) fn rewards(
        &mut self,
        checkpoint: &Checkpoint,
        threads: usize,
        pairs: &[EncodedPair],
    ) -> anyhow::Result<Vec<f64>> {
        let texts: Vec<&[u32]> =
            pairs.iter().flat_map(|pair| [pair.chosen.as_slice(), &pair.rejected]).collect();
        let rewards = match self {
            Self::Full(_) => {
                let ops = CpuOps::new(threads, Precision::F32)?;
                let model = RewardModel::load(ops, &checkpoint.config, &self.export(checkpoint)?)?;
                let scores = super::evaluate::scores(&model, &texts)?;
                return Ok(scores.iter().map(|score| f64::from(score.reward)).collect());
            }
            Self::Head { ops, head, norm: (scale, epsilon), features, engine, .. } => {
                let rows = features.rows(engine, &texts)?;
                let values = rows.iter().flat_map(|&row| features.row(row)).copied().collect();
                let x = ops.upload(values, scale.elem_count())?;
                ops.read(&head.forward(ops, &x, (scale, *epsilon), None)?.reward)?
            }
        };
        Ok(rewards.into_iter().map(f64::from).collect())
    }

    /// Every tensor of the checkpoint, the trained ones as they are now.
    pub(super) fn export(&self, checkpoint: &Checkpoint) -> anyhow::Result<MemoryTensors> {
        let mut tensors = match self {
            Self::Full(_) => MemoryTensors::default(),
            Self::Head { .. } => checkpoint.tensors.to_memory()?,
        };
        for parameter in self.parameters() {
            let tensor = parameter.var.as_tensor();
            let mut first = 0;
            for (name, rows) in &parameter.parts {
                let part = tensor.narrow(0, first, *rows)?;
                tensors.insert(name, part.dims(), part.flatten_all()?.to_vec1()?);
                first += rows;
            }
        }
        Ok(tensors)
    }
}
