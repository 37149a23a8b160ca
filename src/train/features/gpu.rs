//! A checkpoint on a GPU, in a build with the feature `cuda`.

use anyhow::Context;

use super::inference::{Inference, Loaded};
use crate::checkpoint::Checkpoint;
use crate::config::CudaConfig;
use crate::model::RewardModel;
use crate::ops::cuda::{CudaError, CudaOps};

pub(in crate::train) fn check(ordinal: usize) -> anyhow::Result<()> {
    let count = CudaOps::count().context("device")?;
    let is_there =
        if ordinal < count { Ok(()) } else { Err(CudaError::NoSuchDevice { ordinal, count }) };
    is_there.context("device")
}

pub(in crate::train) fn load(
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
