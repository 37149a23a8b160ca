//! Weights of a training on a GPU.

use std::sync::Arc;

use half::bf16;

use super::device::CudaTraining;
use super::parameters::{
    DeviceAdapter, DeviceParameter, DeviceTensor, DeviceWeight, GradientMoments, LayerPart,
    TensorRole,
};
use crate::checkpoint::{CheckpointError, TensorSource};
use crate::ops::autograd::{Trains, adapter_name};
use crate::ops::cuda::memory::DeviceBuffer;
use crate::ops::device::WeightOps;

impl CudaTraining {
    /// Every parameter loaded so far, in loading order.
    pub fn parameters(&self) -> Vec<DeviceParameter> {
        self.parameters.borrow().clone()
    }

    /// A tensor of the decoder: trained, or frozen where only adapters are.
    pub(super) fn decoder_tensor(
        &self,
        parts: &[(&str, usize)],
        values: &[f32],
        columns: usize,
        role: TensorRole,
    ) -> Result<Arc<DeviceTensor>, CheckpointError> {
        let tensor = self.tensor(values, columns, role, self.trains == Trains::All)?;
        if tensor.state.is_some() {
            let shape = match role {
                TensorRole::Factor => vec![tensor.rows, columns],
                TensorRole::Scale => vec![columns],
            };
            self.register(parts, shape, role, &tensor);
        }
        Ok(tensor)
    }

    /// The adapters of a stack of linear layers; empty where it has none.
    pub(super) fn adapters(
        &self,
        parts: &[(&str, usize)],
        columns: usize,
    ) -> Result<Vec<LayerPart>, CheckpointError> {
        let Trains::Adapters { lora, seed } = &self.trains else { return Ok(Vec::new()) };
        if !parts.iter().any(|(name, _)| lora.adapts(name)) {
            return Ok(Vec::new());
        }
        let rank = lora.rank;
        let trained = |name: String, values: &[f32], rows: usize, columns: usize| {
            let tensor = self.tensor(values, columns, TensorRole::Factor, true)?;
            self.register(&[(&name, rows)], vec![rows, columns], TensorRole::Factor, &tensor);
            Ok::<_, CheckpointError>(tensor)
        };
        let adapter = |name: &str, rows: usize| -> Result<_, CheckpointError> {
            // Numbered by how many parameters came before it, as on the CPU.
            let a = lora.initial_a(*seed, self.parameters.borrow().len(), columns);
            let a = trained(adapter_name(name, 'A'), &a, rank, columns)?;
            let b = trained(adapter_name(name, 'B'), &vec![0.0; rows * rank], rows, rank)?;
            Ok(DeviceAdapter { a, b, scale: lora.scale() as f32 })
        };
        let part = |&(name, rows): &(&str, usize)| {
            let adapter = lora.adapts(name).then(|| adapter(name, rows)).transpose()?;
            Ok(LayerPart { rows, adapter })
        };
        parts.iter().map(part).collect()
    }

    pub(super) fn weight_of(
        &self,
        source: &dyn TensorSource,
        parts: &[(&str, usize)],
        columns: usize,
    ) -> Result<DeviceWeight, CheckpointError> {
        let values = source.stacked(parts, columns)?;
        let tensor = self.decoder_tensor(parts, &values, columns, TensorRole::Factor)?;
        Ok(DeviceWeight { tensor, adapters: self.adapters(parts, columns)? })
    }

    fn tensor(
        &self,
        values: &[f32],
        columns: usize,
        role: TensorRole,
        is_trained: bool,
    ) -> Result<Arc<DeviceTensor>, CheckpointError> {
        let memory = &self.gpu.ops.memory;
        let count = values.len();
        let rounded = match role {
            TensorRole::Scale => None,
            TensorRole::Factor => {
                let rounded: Vec<bf16> = values.iter().copied().map(bf16::from_f32).collect();
                Some(memory.upload(&rounded)?)
            }
        };
        let is_read = is_trained || role == TensorRole::Scale;
        let values = if is_read { Some(memory.upload(values)?) } else { None };
        let zeros = || -> Result<DeviceBuffer<f32>, CheckpointError> {
            let buffer = memory.take(count)?;
            memory.clear(&buffer, count)?;
            Ok(buffer)
        };
        let state = match is_trained {
            true => Some(GradientMoments { gradient: zeros()?, first: zeros()?, second: zeros()? }),
            false => None,
        };
        Ok(Arc::new(DeviceTensor { rows: count / columns, columns, rounded, values, state }))
    }

    fn register(
        &self,
        parts: &[(&str, usize)],
        shape: Vec<usize>,
        role: TensorRole,
        tensor: &Arc<DeviceTensor>,
    ) {
        self.parameters.borrow_mut().push(DeviceParameter {
            parts: parts.iter().map(|&(name, rows)| (name.to_owned(), rows)).collect(),
            shape,
            decays: role == TensorRole::Factor,
            tensor: tensor.clone(),
        });
    }
}

impl WeightOps for CudaTraining {
    type Weight = Arc<DeviceWeight>;
    type GatedWeight = Arc<DeviceWeight>;
    type Table = Arc<DeviceTensor>;

    fn weight(
        &self,
        source: &dyn TensorSource,
        parts: &[(&str, usize)],
        columns: usize,
    ) -> std::result::Result<Arc<DeviceWeight>, CheckpointError> {
        Ok(Arc::new(self.weight_of(source, parts, columns)?))
    }

    /// Refused by `supports`.
    fn biased_weight(
        &self,
        _: &dyn TensorSource,
        _: &[(&str, usize)],
        _: &[&str],
        _: usize,
    ) -> std::result::Result<Arc<DeviceWeight>, CheckpointError> {
        Err(CheckpointError::Unsupported("this device adds no biases".to_owned()))
    }

    fn gated_weight(
        &self,
        source: &dyn TensorSource,
        gate: &str,
        up: &str,
        rows: usize,
        columns: usize,
    ) -> std::result::Result<Arc<DeviceWeight>, CheckpointError> {
        self.weight(source, &[(gate, rows), (up, rows)], columns)
    }

    fn scale(
        &self,
        source: &dyn TensorSource,
        name: &str,
        columns: usize,
    ) -> std::result::Result<Arc<DeviceTensor>, CheckpointError> {
        let values = source.f32(name, &[columns])?;
        self.decoder_tensor(&[(name, columns)], &values, columns, TensorRole::Scale)
    }

    /// Refused by `supports`.
    fn layer_scale(
        &self,
        _: &dyn TensorSource,
        _: &str,
        _: &str,
        _: usize,
    ) -> std::result::Result<Arc<DeviceTensor>, CheckpointError> {
        Err(CheckpointError::Unsupported("this device computes no layer norm".to_owned()))
    }

    fn table(
        &self,
        source: &dyn TensorSource,
        name: &str,
        rows: usize,
        columns: usize,
    ) -> std::result::Result<Arc<DeviceTensor>, CheckpointError> {
        let values = source.f32(name, &[rows, columns])?;
        self.decoder_tensor(&[(name, rows)], &values, columns, TensorRole::Factor)
    }
}
