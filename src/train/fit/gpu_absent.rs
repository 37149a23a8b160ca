//! What stands for GPUs in a build without the feature `cuda`.

use std::rc::Rc;

use super::device_decoder::DeviceDecoder;
use crate::checkpoint::Checkpoint;
use crate::ops::autograd::Trains;
use crate::placement::NO_GPU;

pub(in crate::train) fn open(
    _: usize,
    _: &Checkpoint,
    _: Trains,
    _: usize,
) -> anyhow::Result<Rc<dyn DeviceDecoder>> {
    anyhow::bail!("device: {}", NO_GPU)
}
