//! Tensors that are made in memory.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;

use super::tensor_source::TensorSource;
use super::values::TensorValues;
use crate::checkpoint::files::CheckpointError;

/// Tensors made in memory: freshly initialised or trained weights.
#[derive(Debug, Clone, Default)]
pub struct MemoryTensors {
    entries: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
}

impl MemoryTensors {
    /// Adds or replaces a tensor; `values` are row-major and as many as the shape holds.
    pub fn insert(&mut self, name: &str, shape: &[usize], values: Vec<f32>) {
        debug_assert_eq!(values.len(), shape.iter().product::<usize>());
        self.entries.insert(name.to_owned(), (shape.to_vec(), values));
    }

    /// Puts `values` into these rows of a tensor, of zeros where there is none of this name and shape yet.
    pub(in crate::checkpoint) fn insert_rows(
        &mut self,
        name: &str,
        shape: &[usize],
        rows: &[Range<usize>],
        values: &[f32],
    ) {
        let columns: usize = shape[1..].iter().product();
        let entry = self.entries.entry(name.to_owned()).or_default();
        if entry.0 != shape {
            *entry = (shape.to_vec(), vec![0.0; shape[0] * columns]);
        }
        let mut rest = values;
        for rows in rows {
            let part = rest.split_off(..rows.len() * columns).unwrap_or_default();
            entry.1[rows.start * columns..][..part.len()].copy_from_slice(part);
        }
    }

    /// Name, shape and values of every tensor, in the order of names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[usize], &[f32])> {
        self.entries
            .iter()
            .map(|(name, (shape, values))| (name.as_str(), shape.as_slice(), values.as_slice()))
    }
}

impl TensorSource for MemoryTensors {
    fn values(&self, name: &str, shape: &[usize]) -> Result<TensorValues, CheckpointError> {
        let memory = PathBuf::from("(in memory)");
        match self.entries.get(name) {
            None => Err(CheckpointError::MissingTensor {
                file: memory,
                tensor: name.to_owned(),
                expected: shape.to_vec(),
            }),
            Some((found, _)) if found != shape => Err(CheckpointError::WrongShape {
                file: memory,
                tensor: name.to_owned(),
                found: found.clone(),
                expected: shape.to_vec(),
            }),
            Some((_, values)) => Ok(TensorValues::F32(values.clone())),
        }
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        Some(self.entries.get(name)?.0.clone())
    }
}
