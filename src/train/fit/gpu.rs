//! A decoder that is trained on a GPU, in a build with the feature `cuda`.

use std::rc::Rc;

use anyhow::Context;

use super::device_decoder::{DeviceDecoder, DeviceParts, PooledGradient};
use crate::checkpoint::Checkpoint;
use crate::model::Decoder;
use crate::ops::autograd::Trains;
use crate::ops::cuda::CudaError;
use crate::ops::cuda::training::{CudaTraining, SharedValue};
use crate::ops::{AdamWStep, DeviceOps, OpsError, Packing, StateTensor};

#[derive(Debug)]
struct GpuDecoder {
    ops: CudaTraining,
    decoder: Decoder<CudaTraining>,
    hidden: usize,
}

pub(in crate::train) fn open(
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
    fn at_once(&self, packing: &Packing, gradient: &mut PooledGradient<'_>) -> anyhow::Result<()> {
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
