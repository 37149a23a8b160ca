//! Norms.

use super::kernels::elementwise::{layer_norm, rms_norm};
use crate::isa::Isa;

/// A norm's kind and weights `[columns]`.
#[derive(Debug)]
pub enum Norm {
    /// Root mean square.
    Rms {
        /// Factor of each column.
        scale: Vec<f32>,
    },
    /// Layer norm.
    Layer {
        /// Factor of each column.
        scale: Vec<f32>,
        /// Added to each column.
        bias: Vec<f32>,
    },
}

impl Norm {
    pub(super) fn columns(&self) -> usize {
        let (Self::Rms { scale } | Self::Layer { scale, .. }) = self;
        scale.len()
    }

    /// Norms rows `[rows, columns]`.
    pub(super) fn apply(&self, isa: Isa, x: &[f32], epsilon: f32, out: &mut [f32]) {
        match self {
            Self::Rms { scale } => rms_norm(isa, x, scale, epsilon, out),
            Self::Layer { scale, bias } => layer_norm(isa, x, scale, bias, epsilon, out),
        }
    }
}
