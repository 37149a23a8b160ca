//! What stands for GPUs in a build without the feature `cuda`.

use super::inference::Inference;
use crate::checkpoint::Checkpoint;
use crate::placement::NO_GPU;

pub(in crate::train) fn check(_: usize) -> anyhow::Result<()> {
    anyhow::bail!("device: {}", NO_GPU)
}

pub(in crate::train) fn load(
    ordinal: usize,
    _: &Checkpoint,
    _: usize,
) -> anyhow::Result<Box<dyn Inference>> {
    check(ordinal).and_then(|()| anyhow::bail!("device: {}", NO_GPU))
}
