//! Matrices in host memory.

use super::buffers::Buffer;

/// A row-major f32 matrix in host memory.
#[derive(Debug, Clone, PartialEq)]
pub struct Matrix {
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) values: Buffer<f32>,
}

impl Matrix {
    /// A matrix with arbitrary contents, for an operation that writes every element.
    pub(super) fn stale(rows: usize, columns: usize) -> Self {
        Self { rows, columns, values: Buffer::stale(rows * columns) }
    }

    pub(in crate::ops) fn from_slice(values: &[f32], columns: usize) -> Self {
        let mut matrix = Self::stale(values.len() / columns, columns);
        matrix.values.copy_from_slice(values);
        matrix
    }

    /// Rows and columns.
    pub(in crate::ops) fn shape(&self) -> (usize, usize) {
        (self.rows, self.columns)
    }

    pub(in crate::ops) fn to_vec(&self) -> Vec<f32> {
        self.values.to_vec()
    }

    pub(super) fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.columns..][..self.columns]
    }
}
