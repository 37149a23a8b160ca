//! Weights of a GPU, rounded to bf16 at load.

use half::bf16;

use super::device::CudaOps;
use super::matrices::{CudaTable, CudaWeight};
use super::memory::DeviceBuffer;
use crate::checkpoint::{CheckpointError, TensorSource, TensorValues};
use crate::ops::device::WeightOps;

impl CudaOps {
    fn upload_weight(
        &self,
        source: &dyn TensorSource,
        parts: &[(&str, usize)],
        columns: usize,
    ) -> std::result::Result<CudaWeight, CheckpointError> {
        let outputs = parts.iter().map(|(_, rows)| rows).sum();
        let values: Vec<bf16> =
            source.stacked(parts, columns)?.into_iter().map(bf16::from_f32).collect();
        Ok(CudaWeight { outputs, columns, values: self.memory.upload(&values)? })
    }
}

impl WeightOps for CudaOps {
    type Weight = CudaWeight;
    type GatedWeight = CudaWeight;
    type Table = CudaTable;

    fn weight(
        &self,
        source: &dyn TensorSource,
        parts: &[(&str, usize)],
        columns: usize,
    ) -> std::result::Result<CudaWeight, CheckpointError> {
        self.upload_weight(source, parts, columns)
    }

    /// Refused by `supports`.
    fn biased_weight(
        &self,
        _: &dyn TensorSource,
        _: &[(&str, usize)],
        _: &[&str],
        _: usize,
    ) -> std::result::Result<CudaWeight, CheckpointError> {
        Err(CheckpointError::Unsupported("this device adds no biases".to_owned()))
    }

    fn gated_weight(
        &self,
        source: &dyn TensorSource,
        gate: &str,
        up: &str,
        rows: usize,
        columns: usize,
    ) -> std::result::Result<CudaWeight, CheckpointError> {
        self.upload_weight(source, &[(gate, rows), (up, rows)], columns)
    }

    fn scale(
        &self,
        source: &dyn TensorSource,
        name: &str,
        columns: usize,
    ) -> std::result::Result<DeviceBuffer<f32>, CheckpointError> {
        Ok(self.memory.upload(&source.f32(name, &[columns])?)?)
    }

    /// Refused by `supports`.
    fn layer_scale(
        &self,
        _: &dyn TensorSource,
        _: &str,
        _: &str,
        _: usize,
    ) -> std::result::Result<DeviceBuffer<f32>, CheckpointError> {
        Err(CheckpointError::Unsupported("this device computes no layer norm".to_owned()))
    }

    fn table(
        &self,
        source: &dyn TensorSource,
        name: &str,
        rows: usize,
        columns: usize,
    ) -> std::result::Result<CudaTable, CheckpointError> {
        let values: Vec<bf16> = match source.values(name, &[rows, columns])? {
            TensorValues::Bf16(values) => values,
            values => Vec::<f32>::from(values).into_iter().map(bf16::from_f32).collect(),
        };
        Ok(CudaTable { columns, values: self.memory.upload(&values)? })
    }
}
