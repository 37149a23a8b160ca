//! Where a decoder is trained.

use std::rc::Rc;

use crate::checkpoint::Checkpoint;
use crate::config::DeviceChoice;
use crate::ops::autograd::Trains;
use crate::train::features::ordinal;

use super::device_decoder::DeviceDecoder;
use super::gpu;

/// The decoder of `checkpoint` where the settings want it trained; `None` for the CPU.
///
/// # Errors
/// A device that cannot be had, or a decoder that it does not compute.
pub(in crate::train) fn open(
    device: &DeviceChoice,
    micro_batch_tokens: usize,
    checkpoint: &Checkpoint,
    trains: Trains,
) -> anyhow::Result<Option<Rc<dyn DeviceDecoder>>> {
    match device {
        DeviceChoice::Cuda(ordinals) => {
            let ordinal = ordinal(ordinals);
            gpu::open(ordinal, checkpoint, trains, micro_batch_tokens).map(Some)
        }
        DeviceChoice::Auto | DeviceChoice::Cpu => Ok(None),
    }
}
