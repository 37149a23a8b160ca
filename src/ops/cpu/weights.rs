//! Weights of the CPU device, packed at load.

use super::device::CpuOps;
use super::linear::{PackedGate, PackedWeight};
use super::norm::Norm;
use super::operand::Precision;
use crate::checkpoint::{CheckpointError, TensorSource, TensorValues};
use crate::ops::device::WeightOps;

/// An embedding table `[rows, columns]` in the type that it is stored in: its rows are only copied.
#[derive(Debug)]
pub struct Table {
    pub(super) columns: usize,
    pub(super) values: TensorValues,
}

/// Loads tensors stacked by rows, and packs them.
pub(super) fn packed(
    precision: Precision,
    source: &dyn TensorSource,
    parts: &[(&str, usize)],
    columns: usize,
) -> std::result::Result<PackedWeight, CheckpointError> {
    let rows = parts.iter().map(|(_, rows)| rows).sum();
    Ok(PackedWeight::new(precision, &source.stacked(parts, columns)?, rows, columns))
}

impl WeightOps for CpuOps {
    type Weight = PackedWeight;
    type GatedWeight = PackedGate;
    type Table = Table;

    fn weight(
        &self,
        source: &dyn TensorSource,
        parts: &[(&str, usize)],
        columns: usize,
    ) -> std::result::Result<PackedWeight, CheckpointError> {
        packed(self.precision, source, parts, columns)
    }

    fn biased_weight(
        &self,
        source: &dyn TensorSource,
        parts: &[(&str, usize)],
        biases: &[&str],
        columns: usize,
    ) -> std::result::Result<PackedWeight, CheckpointError> {
        let mut bias = Vec::new();
        for (&name, &(_, rows)) in biases.iter().zip(parts) {
            bias.extend(source.f32(name, &[rows])?);
        }
        Ok(packed(self.precision, source, parts, columns)?.with_bias(bias))
    }

    fn gated_weight(
        &self,
        source: &dyn TensorSource,
        gate: &str,
        up: &str,
        rows: usize,
        columns: usize,
    ) -> std::result::Result<PackedGate, CheckpointError> {
        let values = source.stacked(&[(gate, rows), (up, rows)], columns)?;
        Ok(PackedGate::new(self.precision, &values, rows, columns))
    }

    fn scale(
        &self,
        source: &dyn TensorSource,
        name: &str,
        columns: usize,
    ) -> std::result::Result<Norm, CheckpointError> {
        Ok(Norm::Rms { scale: source.f32(name, &[columns])? })
    }

    fn layer_scale(
        &self,
        source: &dyn TensorSource,
        scale: &str,
        bias: &str,
        columns: usize,
    ) -> std::result::Result<Norm, CheckpointError> {
        let load = |name| source.f32(name, &[columns]);
        Ok(Norm::Layer { scale: load(scale)?, bias: load(bias)? })
    }

    fn table(
        &self,
        source: &dyn TensorSource,
        name: &str,
        rows: usize,
        columns: usize,
    ) -> std::result::Result<Table, CheckpointError> {
        Ok(Table { columns, values: source.values(name, &[rows, columns])? })
    }
}
