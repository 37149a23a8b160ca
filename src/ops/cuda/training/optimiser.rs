//! What an optimiser does with the parameters of a device.

use half::bf16;

use super::kernels::element_blocks;
use super::parameters::State;
use super::{CudaTraining, DeviceParameter};
use crate::ops::cuda::Buffer;
use crate::ops::cuda::launch::launch;
use crate::ops::{AdamWStep, Kept, Result};

impl CudaTraining {
    /// Sets every gradient to 0.
    ///
    /// # Errors
    /// A failing device.
    pub fn clear_gradients(&self) -> Result<()> {
        for DeviceParameter { tensor, .. } in &*self.parameters.borrow() {
            if let Some(State { gradient, .. }) = &tensor.state {
                self.gpu.ops.memory.clear(gradient, tensor.count())?;
            }
        }
        Ok(())
    }

    /// Sum of the squares of all gradients, in an order that only their number decides.
    ///
    /// # Errors
    /// A failing device.
    pub fn gradient_squares(&self) -> Result<f64> {
        let ops = &self.gpu.ops;
        let parameters = self.parameters.borrow();
        let blocks: Vec<usize> =
            parameters.iter().map(|parameter| element_blocks(parameter.tensor.count())).collect();
        let count = blocks.iter().sum();
        let sums = ops.memory.take::<f64>(count)?;
        let mut first = 0;
        for (DeviceParameter { tensor, .. }, &blocks) in parameters.iter().zip(&blocks) {
            let Some(State { gradient, .. }) = &tensor.state else { continue };
            launch!(
                ops,
                &self.gpu.kernels.sum_of_squares,
                (blocks, 1),
                0,
                [sums.address() + 8 * first as u64, gradient.address(), tensor.count() as i64]
            )?;
            first += blocks;
        }
        Ok(ops.memory.read(&sums, count)?.iter().sum())
    }

    /// Changes every parameter by its gradient.
    ///
    /// # Errors
    /// A failing device.
    pub fn step(&self, step: &AdamWStep) -> Result<()> {
        let ops = &self.gpu.ops;
        for DeviceParameter { tensor, decays, .. } in &*self.parameters.borrow() {
            let (Some(values), Some(state)) = (&tensor.values, &tensor.state) else { continue };
            let AdamWStep { clip, beta1, beta2, rate, root_correction, epsilon, .. } = *step;
            let keep = if *decays { step.keep } else { 1.0 };
            launch!(
                ops,
                &self.gpu.kernels.adamw,
                (element_blocks(tensor.count()), 1),
                0,
                [
                    values.address(),
                    tensor.rounded.as_ref().map_or(0, Buffer::address),
                    state.first.address(),
                    state.second.address(),
                    state.gradient.address(),
                    tensor.count() as i64,
                    keep,
                    clip,
                    beta1,
                    beta2,
                    rate,
                    root_correction,
                    epsilon,
                ]
            )?;
        }
        Ok(())
    }

    /// Copies something of a parameter to host memory.
    ///
    /// # Errors
    /// A failing device.
    pub fn read_parameter(&self, parameter: &DeviceParameter, kept: Kept) -> Result<Vec<f32>> {
        let Some(buffer) = parameter.buffer(kept) else { return Ok(Vec::new()) };
        Ok(self.gpu.ops.memory.read(buffer, parameter.tensor.count())?)
    }

    /// Puts something of a parameter in place of what is there.
    ///
    /// # Errors
    /// A failing device.
    ///
    /// # Panics
    /// If there are more or fewer values than the parameter has.
    pub fn write_parameter(
        &self,
        parameter: &DeviceParameter,
        kept: Kept,
        values: &[f32],
    ) -> Result<()> {
        let tensor = &parameter.tensor;
        assert_eq!(values.len(), tensor.count(), "values of another parameter");
        let memory = &self.gpu.ops.memory;
        if let Some(buffer) = parameter.buffer(kept) {
            memory.write(buffer.address(), values)?;
        }
        if let (Kept::Values, Some(rounded)) = (kept, &tensor.rounded) {
            let values: Vec<bf16> = values.iter().copied().map(bf16::from_f32).collect();
            memory.write(rounded.address(), &values)?;
        }
        Ok(())
    }
}

impl DeviceParameter {
    /// Number of elements.
    pub fn count(&self) -> usize {
        self.tensor.count()
    }

    fn buffer(&self, kept: Kept) -> Option<&Buffer<f32>> {
        let state = self.tensor.state.as_ref();
        match kept {
            Kept::Values => self.tensor.values.as_ref(),
            Kept::Gradient => state.map(|state| &state.gradient),
            Kept::First => state.map(|state| &state.first),
            Kept::Second => state.map(|state| &state.second),
        }
    }
}
