//! Tensors by name, wherever they come from.

use super::values::TensorValues;
use crate::checkpoint::files::CheckpointError;

/// Where a model's tensors come from.
pub trait TensorSource {
    /// The values of a tensor.
    ///
    /// # Errors
    /// Where there is no such tensor, or its shape or type is another.
    fn values(&self, name: &str, shape: &[usize]) -> Result<TensorValues, CheckpointError>;

    /// The shape of a tensor of the checkpoint's own, by its name there; `None` where there is none.
    fn shape(&self, name: &str) -> Option<Vec<usize>>;

    /// [`TensorSource::values`] as f32.
    ///
    /// # Errors
    /// As [`TensorSource::values`].
    fn f32(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, CheckpointError> {
        Ok(self.values(name, shape)?.into())
    }

    /// [`TensorSource::f32`] of a tensor as it is stored, for a training that changes what is stored, and what is added to
    /// each value before it is used: 0, but where a family stores the scales of norms less 1.
    ///
    /// # Errors
    /// As [`TensorSource::values`].
    fn stored(&self, name: &str, shape: &[usize]) -> Result<(Vec<f32>, f32), CheckpointError> {
        Ok((self.f32(name, shape)?, 0.0))
    }

    /// The named tensors, each `[rows, columns]`, one below the other.
    ///
    /// # Errors
    /// As [`TensorSource::values`].
    fn stacked(
        &self,
        parts: &[(&str, usize)],
        columns: usize,
    ) -> Result<Vec<f32>, CheckpointError> {
        let mut values = Vec::with_capacity(parts.iter().map(|p| p.1).sum::<usize>() * columns);
        for &(name, rows) in parts {
            values.extend(self.f32(name, &[rows, columns])?);
        }
        Ok(values)
    }
}
