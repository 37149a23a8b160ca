//! Where families keep Llama's tensors.

use std::ops::Range;

/// Where a family keeps a tensor of Llama's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TensorPlace {
    /// The family's tensor.
    pub(crate) name: String,
    /// Which of its rows, where it holds other tensors of Llama's, too.
    pub(super) rows: Option<FusedRows>,
}

/// Rows of a tensor that holds several of Llama's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FusedRows {
    /// Rows of the whole.
    pub(super) count: usize,
    /// Those of one, in their order.
    pub(super) ranges: Vec<Range<usize>>,
}

impl TensorPlace {
    /// A tensor of its own.
    pub(super) fn whole(name: &str) -> Self {
        Self { name: name.to_owned(), rows: None }
    }

    /// How many rows the family's tensor has, and which of them a tensor of `count` rows takes, in their order.
    pub(crate) fn rows_of(&self, count: usize) -> (usize, Vec<usize>) {
        match &self.rows {
            None => (count, (0..count).collect()),
            Some(rows) => (rows.count, rows.ranges.iter().cloned().flatten().collect()),
        }
    }

    /// Shape of the family's tensor, for Llama's `shape`.
    pub(super) fn shape(&self, shape: &[usize]) -> Vec<usize> {
        let mut whole = shape.to_vec();
        if let Some(rows) = &self.rows {
            whole[0] = rows.count;
        }
        whole
    }
}
