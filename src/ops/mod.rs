//! What a device does: the operations that every model family is written in.
//!
//! [`Ops`] is the only thing that `model/` knows of a device. [`cpu`] scores on the CPU;
//! [`autograd`] records the same operations for training.

use std::fmt::Debug;

use serde::Serialize;
use thiserror::Error;

use crate::checkpoint::{CheckpointError, TensorSource};

pub mod autograd;
pub mod cpu;

/// A device operation that could not be carried out.
#[derive(Debug, Error)]
pub enum OpsError {
    /// The tensor library refused the operation.
    #[error("tensor operation failed: {0}")]
    Tensor(#[from] candle_core::Error),
}

/// Result of a device operation.
pub type Result<T> = std::result::Result<T, OpsError>;

/// Token sequences laid end to end, without padding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packing {
    ids: Vec<u32>,
    offsets: Vec<usize>,
}

impl Packing {
    /// Lays `sequences` end to end. Empty sequences are the caller's error and are not packed;
    /// returns `None` if there is one, or if there is no sequence at all.
    pub fn new<S: AsRef<[u32]>>(sequences: &[S]) -> Option<Self> {
        let mut ids = Vec::with_capacity(sequences.iter().map(|s| s.as_ref().len()).sum());
        let mut offsets = Vec::with_capacity(sequences.len() + 1);
        offsets.push(0);
        for sequence in sequences {
            if sequence.as_ref().is_empty() {
                return None;
            }
            ids.extend_from_slice(sequence.as_ref());
            offsets.push(ids.len());
        }
        (!sequences.is_empty()).then_some(Self { ids, offsets })
    }

    /// Token ids of all sequences, `[rows]`.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Where each sequence starts, and one past the end: `[sequences + 1]`.
    pub fn offsets(&self) -> &[usize] {
        &self.offsets
    }

    /// Number of packed tokens.
    pub fn rows(&self) -> usize {
        self.ids.len()
    }

    /// Number of sequences.
    pub fn sequences(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Row of each sequence's last token, the one that is pooled: `[sequences]`.
    pub fn last_rows(&self) -> Vec<usize> {
        self.offsets[1..].iter().map(|end| end - 1).collect()
    }

    /// Length of the longest sequence, in tokens.
    pub fn longest(&self) -> usize {
        self.offsets.windows(2).map(|w| w[1] - w[0]).max().unwrap_or(0)
    }
}

/// Shape of one attention layer, and its rotary embedding.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct AttentionShape {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads` (grouped-query attention).
    pub key_value_heads: usize,
    /// Channels of a head.
    pub head_dim: usize,
    /// Base of the rotary frequencies (RoPE, Su et al. 2021).
    pub rope_theta: f64,
}

impl AttentionShape {
    /// Columns of the fused projection `[q | k | v]`.
    pub fn qkv_columns(&self) -> usize {
        (self.heads + 2 * self.key_value_heads) * self.head_dim
    }

    /// Columns of the attention output.
    pub fn output_columns(&self) -> usize {
        self.heads * self.head_dim
    }
}

/// The operations of a device. All activations are f32 matrices `[rows, columns]`, row-major,
/// one row a packed token (or, after [`Ops::gather_rows`], one row a sequence).
///
/// Contract: a row of a result depends on no other sequence's rows, and its bits do not depend on
/// how many rows there are.
pub trait Ops: Debug {
    /// Activations `[rows, columns]`.
    type Matrix: Debug;
    /// A linear layer's weight `[out, in]` in the device's own layout.
    type Weight: Debug;
    /// A norm's scale `[columns]`.
    type Scale: Debug;
    /// An embedding table `[vocabulary, columns]`.
    type Table: Debug;
    /// What attention needs to know of a batch, prepared once for all layers.
    type Layout: Debug;

    /// Loads the named tensors, each `[rows, columns]`, stacked by rows into one weight, so that
    /// projections with the same input are one product.
    fn weight(
        &self,
        source: &dyn TensorSource,
        parts: &[(&str, usize)],
        columns: usize,
    ) -> std::result::Result<Self::Weight, CheckpointError>;

    /// Loads a norm's scale `[columns]`.
    fn scale(
        &self,
        source: &dyn TensorSource,
        name: &str,
        columns: usize,
    ) -> std::result::Result<Self::Scale, CheckpointError>;

    /// Loads an embedding table `[rows, columns]`.
    fn table(
        &self,
        source: &dyn TensorSource,
        name: &str,
        rows: usize,
        columns: usize,
    ) -> std::result::Result<Self::Table, CheckpointError>;

    /// Prepares a batch for [`Ops::attention`].
    fn layout(&self, packing: &Packing, shape: &AttentionShape) -> Result<Self::Layout>;

    /// Rows of the table: `[ids, columns]`. Every id must be below the table's rows.
    fn embed(&self, table: &Self::Table, ids: &[u32]) -> Result<Self::Matrix>;

    /// `x W^T`.
    fn linear(&self, x: &Self::Matrix, weight: &Self::Weight) -> Result<Self::Matrix>;

    /// `residual + x W^T`.
    fn linear_add(
        &self,
        x: &Self::Matrix,
        weight: &Self::Weight,
        residual: Self::Matrix,
    ) -> Result<Self::Matrix>;

    /// Root-mean-square norm (Zhang and Sennrich 2019): `x / sqrt(mean(x^2) + epsilon) * scale`.
    fn rms_norm(&self, x: &Self::Matrix, scale: &Self::Scale, epsilon: f32)
    -> Result<Self::Matrix>;

    /// Rotary embedding of q and k, then causal grouped-query attention within each sequence:
    /// `[rows, qkv_columns]` to `[rows, output_columns]`.
    fn attention(
        &self,
        qkv: Self::Matrix,
        layout: &Self::Layout,
        shape: &AttentionShape,
    ) -> Result<Self::Matrix>;

    /// `silu(gate) * up` of `[gate | up]`: `[rows, 2 n]` to `[rows, n]` (SwiGLU, Shazeer 2020).
    fn swiglu(&self, gate_up: Self::Matrix) -> Result<Self::Matrix>;

    /// The given rows, in the given order.
    fn gather_rows(&self, x: &Self::Matrix, rows: &[usize]) -> Result<Self::Matrix>;

    /// Columns `start .. start + count`.
    fn columns(&self, x: &Self::Matrix, start: usize, count: usize) -> Result<Self::Matrix>;

    /// `mu + exp(logvar / 2) * noise` of `[mu | logvar]` (Kingma and Welling 2014):
    /// `[rows, 2 d]` and `[rows * d]` to `[rows, d]`.
    fn reparameterise(&self, posterior: &Self::Matrix, noise: &[f32]) -> Result<Self::Matrix>;

    /// Copies a row-major matrix `[values / columns, columns]` to the device.
    fn upload(&self, values: Vec<f32>, columns: usize) -> Result<Self::Matrix>;

    /// Copies to host memory, row-major.
    fn read(&self, x: &Self::Matrix) -> Result<Vec<f32>>;
}
