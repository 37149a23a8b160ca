//! A decoder that is trained on a device of its own: all that a run needs to know of it.
//!
//! From the pooled hidden states on, everything is on the CPU: final norm, head and loss are the same code for every device.

use std::fmt::Debug;
use std::rc::Rc;

use super::inference::ordinal;
use crate::checkpoint::Checkpoint;
use crate::config::DeviceChoice;
use crate::ops::autograd::Trains;
use crate::ops::{AdamWStep, Packing, StateTensor};

/// A parameter on a device.
#[derive(Debug, Clone)]
pub(super) struct DeviceParts {
    /// Checkpoint tensor names with their number of rows.
    pub(super) parts: Vec<(String, usize)>,
    pub(super) shape: Vec<usize>,
}

impl DeviceParts {
    pub(super) fn count(&self) -> usize {
        self.shape.iter().product()
    }
}

/// From pooled hidden states `[sequences * hidden]` to the gradient of the loss for them.
pub(super) type PooledGradient<'a> = dyn FnMut(Vec<f32>) -> anyhow::Result<Vec<f32>> + 'a;

/// The decoder. Every function fails where its device does.
pub(super) trait DeviceDecoder: Debug {
    /// Its parameters, in an order that does not change.
    fn parameters(&self) -> Vec<DeviceParts>;

    /// Pooled hidden states `[sequences * hidden]` before the final norm.
    fn pooled(&self, packing: &Packing) -> anyhow::Result<Vec<f32>>;

    /// Adds the gradients of a batch to those that are there. With `recompute`, only what enters each layer is kept.
    fn backward(
        &self,
        packing: &Packing,
        recompute: bool,
        gradient: &mut PooledGradient<'_>,
    ) -> anyhow::Result<()>;

    /// Sets the gradients to 0.
    fn clear_gradients(&self) -> anyhow::Result<()>;

    /// Sum of the squares of all gradients.
    fn gradient_squares(&self) -> anyhow::Result<f64>;

    /// Changes every parameter by its gradient.
    fn step(&self, step: &AdamWStep) -> anyhow::Result<()>;

    /// Values of a parameter, or what the optimiser has of it, by the parameter's number.
    fn read(&self, index: usize, of: StateTensor) -> anyhow::Result<Vec<f32>>;

    /// Replaces what [`DeviceDecoder::read`] reads.
    fn write(&self, index: usize, of: StateTensor, values: &[f32]) -> anyhow::Result<()>;
}

/// The decoder of `checkpoint` where the settings want it trained; `None` for the CPU.
///
/// # Errors
/// A device that cannot be had, or a decoder that it does not compute.
pub(super) fn open(
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

#[cfg(feature = "cuda")]
mod gpu {
    use anyhow::Context;

    use super::*;
    use crate::model::Decoder;
    use crate::ops::cuda::CudaError;
    use crate::ops::cuda::training::{CudaTraining, SharedValue};
    use crate::ops::{DeviceOps, OpsError};

    #[derive(Debug)]
    struct GpuDecoder {
        ops: CudaTraining,
        decoder: Decoder<CudaTraining>,
        hidden: usize,
    }

    pub(super) fn open(
        ordinal: usize,
        checkpoint: &Checkpoint,
        trains: Trains,
        rows: usize,
    ) -> anyhow::Result<Rc<dyn DeviceDecoder>> {
        let ops = CudaTraining::new(ordinal, trains, rows).context("device")?;
        let config = &checkpoint.config.decoder;
        let decoder = Decoder::load(&ops, config, &checkpoint.tensors, 0)?;
        ops.leave_out(decoder.norm().0);
        eprintln!("the decoder is trained on cuda:{ordinal} ({})", ops.name());
        Ok(Rc::new(GpuDecoder { ops, decoder, hidden: config.hidden_size }))
    }

    /// Whether an operation failed for want of memory.
    fn is_full(error: &(dyn std::error::Error + Send + Sync + 'static)) -> bool {
        matches!(error.downcast_ref(), Some(CudaError::OutOfMemory { .. }))
    }

    impl GpuDecoder {
        /// The whole pass is recorded.
        fn at_once(
            &self,
            packing: &Packing,
            gradient: &mut PooledGradient<'_>,
        ) -> anyhow::Result<()> {
            let Self { ops, decoder, hidden } = self;
            ops.record();
            let x = decoder.embed(ops, packing)?;
            let pooled = decoder.pooled(ops, packing, x)?;
            let known = ops.upload(gradient(ops.read(&pooled)?)?, *hidden)?;
            ops.backward(&pooled, &known, None)?;
            Ok(())
        }

        /// As `Backward` has it on the CPU.
        fn layer_by_layer(
            &self,
            packing: &Packing,
            gradient: &mut PooledGradient<'_>,
        ) -> anyhow::Result<()> {
            let Self { ops, decoder, hidden } = self;
            let layout = decoder.layout(ops, packing)?;
            let last = decoder.layers().end - 1;
            let mut entered = vec![decoder.embed(ops, packing)?];
            for index in 0..last {
                entered.push(decoder.layer(ops, index, &entered[index], &layout)?);
            }
            let mut leaf = |ops: &CudaTraining| -> anyhow::Result<SharedValue<f32>> {
                let x = entered.pop().context("a layer that nothing enters")?;
                ops.record();
                Ok(ops.leaf(&x))
            };
            let x = leaf(ops)?;
            let (advanced, projection) =
                decoder.next_projection(ops, last, x.clone(), None, &layout)?;
            let pooled = decoder.last_layer(ops, &advanced, &projection, &layout, packing)?;
            let known = ops.upload(gradient(ops.read(&pooled)?)?, *hidden)?;
            let mut known = ops.backward(&pooled, &known, Some(&x))?;
            for index in (0..last).rev() {
                let x = leaf(ops)?;
                let Some(gradient) = known else { break };
                let y = decoder.layer(ops, index, &x, &layout)?;
                known = ops.backward(&y, &gradient, Some(&x))?;
            }
            if let Some(gradient) = known {
                ops.record();
                let x = decoder.embed(ops, packing)?;
                // A frozen table has no gradient.
                ops.backward(&x, &gradient, None)?;
            }
            Ok(())
        }
    }

    impl DeviceDecoder for GpuDecoder {
        fn parameters(&self) -> Vec<DeviceParts> {
            let parameters = self.ops.parameters().into_iter();
            parameters.map(|one| DeviceParts { parts: one.parts, shape: one.shape }).collect()
        }

        fn pooled(&self, packing: &Packing) -> anyhow::Result<Vec<f32>> {
            let Self { ops, decoder, .. } = self;
            let pooled = decoder.pooled(ops, packing, decoder.embed(ops, packing)?)?;
            Ok(ops.read(&pooled)?)
        }

        fn backward(
            &self,
            packing: &Packing,
            recompute: bool,
            gradient: &mut PooledGradient<'_>,
        ) -> anyhow::Result<()> {
            let done = match recompute {
                true => self.layer_by_layer(packing, gradient),
                false => self.at_once(packing, gradient),
            };
            done.map_err(|error| match error.downcast_ref() {
                Some(OpsError::Device(cause)) if is_full(cause.as_ref()) && !recompute => {
                    error.context("schedule.micro_batch_tokens, recompute: the GPU has no room for so many tokens at once")
                }
                Some(OpsError::Device(cause)) if is_full(cause.as_ref()) => {
                    error.context("schedule.micro_batch_tokens: the GPU has no room for so many at once")
                }
                _ => error,
            })
        }

        fn clear_gradients(&self) -> anyhow::Result<()> {
            Ok(self.ops.clear_gradients()?)
        }

        fn gradient_squares(&self) -> anyhow::Result<f64> {
            Ok(self.ops.gradient_squares()?)
        }

        fn step(&self, step: &AdamWStep) -> anyhow::Result<()> {
            Ok(self.ops.step(step)?)
        }

        fn read(&self, index: usize, of: StateTensor) -> anyhow::Result<Vec<f32>> {
            Ok(self.ops.read_parameter(index, of)?)
        }

        fn write(&self, index: usize, of: StateTensor, values: &[f32]) -> anyhow::Result<()> {
            Ok(self.ops.write_parameter(index, of, values)?)
        }
    }
}

#[cfg(not(feature = "cuda"))]
mod gpu {
    use super::*;

    pub(super) fn open(
        _: usize,
        _: &Checkpoint,
        _: Trains,
        _: usize,
    ) -> anyhow::Result<Rc<dyn DeviceDecoder>> {
        anyhow::bail!("device: {}", crate::placement::NO_GPU)
    }
}
