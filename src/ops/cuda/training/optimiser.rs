//! What an optimiser does with the parameters of a device.

use half::bf16;

use super::device::CudaTraining;
use super::kernels::element_blocks;
use super::parameters::{DeviceParameter, DeviceTensor, GradientMoments};
use crate::ops::cuda::launch::launch;
use crate::ops::cuda::memory::DeviceBuffer;
use crate::ops::device::{AdamWStep, Result, StateTensor};

impl CudaTraining {
    /// Sets every gradient to 0.
    ///
    /// # Errors
    /// A failing device.
    pub fn clear_gradients(&self) -> Result<()> {
        for DeviceParameter { tensor, .. } in &*self.parameters.borrow() {
            if let Some(GradientMoments { gradient, .. }) = &tensor.state {
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
            let Some(GradientMoments { gradient, .. }) = &tensor.state else { continue };
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
                    tensor.rounded.as_ref().map_or(0, DeviceBuffer::address),
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

    /// Copies a parameter's values, or what the optimiser has of it, to host memory. Parameters are counted as
    /// [`CudaTraining::parameters`] lists them.
    ///
    /// # Errors
    /// A failing device.
    ///
    /// # Panics
    /// If there is no such parameter.
    pub fn read_parameter(&self, index: usize, of: StateTensor) -> Result<Vec<f32>> {
        let parameters = self.parameters.borrow();
        let tensor = &parameters[index].tensor;
        let Some(buffer) = tensor.buffer(of) else { return Ok(Vec::new()) };
        Ok(self.gpu.ops.memory.read(buffer, tensor.count())?)
    }

    /// Puts values in place of what [`CudaTraining::read_parameter`] reads.
    ///
    /// # Errors
    /// A failing device.
    ///
    /// # Panics
    /// If there is no such parameter, or if it has more or fewer values.
    pub fn write_parameter(&self, index: usize, of: StateTensor, values: &[f32]) -> Result<()> {
        let parameters = self.parameters.borrow();
        let tensor = &parameters[index].tensor;
        assert_eq!(values.len(), tensor.count(), "values of another parameter");
        let memory = &self.gpu.ops.memory;
        if let Some(buffer) = tensor.buffer(of) {
            memory.write(buffer.address(), values)?;
        }
        if let (StateTensor::Values, Some(rounded)) = (of, &tensor.rounded) {
            let values: Vec<bf16> = values.iter().copied().map(bf16::from_f32).collect();
            memory.write(rounded.address(), &values)?;
        }
        Ok(())
    }
}

impl DeviceTensor {
    fn buffer(&self, of: StateTensor) -> Option<&DeviceBuffer<f32>> {
        let state = self.state.as_ref();
        match of {
            StateTensor::Values => self.values.as_ref(),
            StateTensor::Gradient => state.map(|state| &state.gradient),
            StateTensor::FirstMoment => state.map(|state| &state.first),
            StateTensor::SecondMoment => state.map(|state| &state.second),
        }
    }
}
