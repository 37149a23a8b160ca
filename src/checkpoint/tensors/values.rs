//! A tensor's values.

use half::{bf16, f16};

/// A tensor's values, row-major, in the type that it is stored in.
#[derive(Debug, Clone, PartialEq)]
pub enum TensorValues {
    /// 32-bit floats.
    F32(Vec<f32>),
    /// IEEE half precision.
    F16(Vec<f16>),
    /// Brain floats.
    Bf16(Vec<bf16>),
}

impl TensorValues {
    pub(in crate::checkpoint) fn is_finite(&self) -> bool {
        match self {
            Self::F32(values) => values.iter().all(|value| value.is_finite()),
            Self::F16(values) => values.iter().all(|value| value.is_finite()),
            Self::Bf16(values) => values.iter().all(|value| value.is_finite()),
        }
    }
}

impl From<TensorValues> for Vec<f32> {
    /// Exact: f32 holds every value of the others.
    fn from(values: TensorValues) -> Self {
        match values {
            TensorValues::F32(values) => values,
            TensorValues::F16(values) => values.into_iter().map(f16::to_f32).collect(),
            TensorValues::Bf16(values) => values.into_iter().map(bf16::to_f32).collect(),
        }
    }
}

impl TensorValues {
    /// From rows as GGUF has them, in which the two rows of a rotary pair stand next to each other, to rows as
    /// Hugging Face has them: in each head first all pairs' first rows, then their second.
    pub(super) fn with_halves_apart(self, rows: usize, heads: usize) -> Self {
        fn apart<T: Copy>(values: &[T], rows: usize, heads: usize) -> Vec<T> {
            let (columns, head_dim) = (values.len() / rows.max(1), rows / heads);
            (0..rows)
                .flat_map(|row| {
                    let (head, row) = (row / head_dim, row % head_dim);
                    let (half, pair) = (row / (head_dim / 2), row % (head_dim / 2));
                    &values[(head * head_dim + 2 * pair + half) * columns..][..columns]
                })
                .copied()
                .collect()
        }
        match self {
            Self::F32(values) => Self::F32(apart(&values, rows, heads)),
            Self::F16(values) => Self::F16(apart(&values, rows, heads)),
            Self::Bf16(values) => Self::Bf16(apart(&values, rows, heads)),
        }
    }
}
