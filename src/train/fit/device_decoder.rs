//! A decoder that is trained on a device of its own: all that a run needs to know of it.
//!
//! From the pooled hidden states on, everything is on the CPU: final norm, head and loss are the same code for every device.

use std::fmt::Debug;

use crate::ops::{AdamWStep, Packing, StateTensor};

/// A parameter on a device.
#[derive(Debug, Clone)]
pub(in crate::train) struct DeviceParts {
    /// Checkpoint tensor names with their number of rows.
    pub(in crate::train) parts: Vec<(String, usize)>,
    pub(in crate::train) shape: Vec<usize>,
}

impl DeviceParts {
    pub(in crate::train) fn count(&self) -> usize {
        self.shape.iter().product()
    }
}

/// From pooled hidden states `[sequences * hidden]` to the gradient of the loss for them.
pub(in crate::train) type PooledGradient<'a> = dyn FnMut(Vec<f32>) -> anyhow::Result<Vec<f32>> + 'a;

/// The decoder. Every function fails where its device does.
pub(in crate::train) trait DeviceDecoder: Debug {
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
