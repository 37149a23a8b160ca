//! The operations that every decoder is written in.

use std::fmt::Debug;
use std::ops::Range;

use super::error::Result;
use super::weights::WeightOps;
use crate::layer::{AttentionShape, Gelu};
use crate::ops::batch::Packing;

/// Which rows of a layer are queries of its attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueryRows {
    /// Every row: `[q | k | v]` is projected.
    All,
    /// Only each sequence's last row, whose queries [`DecoderOps::last_attention`] is given: `[k | v]` is projected.
    LastOfSequence,
}

/// Computes a decoder's layers.
pub trait DecoderOps: WeightOps {
    /// What attention needs to know of a batch, prepared once for all layers.
    type Layout: Debug + Send + Sync;
    /// Queries, keys and values of a batch in one layer, as attention reads them.
    type Projection: Debug;

    /// Prepares a batch for attention.
    fn layout(&self, packing: &Packing, shape: &AttentionShape) -> Result<Self::Layout>;

    /// Rows of the table: `[ids, columns]`. Every id must be below the table's rows.
    fn embed(&self, table: &Self::Table, ids: &[u32]) -> Result<Self::Matrix>;

    /// The norm that `scale` was loaded for. Root mean square (Zhang and Sennrich 2019):
    /// `x / sqrt(mean(x^2) + epsilon) * scale`; layer norm (Ba et al. 2016):
    /// `(x - mean(x)) / sqrt(var(x) + epsilon) * scale + bias`.
    fn norm(&self, x: &Self::Matrix, scale: &Self::Scale, epsilon: f32) -> Result<Self::Operand>;

    /// `residual +` [`DecoderOps::norm`] of `x`.
    fn norm_add(
        &self,
        x: &Self::Matrix,
        scale: &Self::Scale,
        epsilon: f32,
        residual: Self::Matrix,
    ) -> Result<Self::Matrix>;

    /// [`DecoderOps::norm`] of each head by itself in the given columns, which are whole heads as wide as the scale.
    fn head_norms(
        &self,
        x: Self::Matrix,
        columns: Range<usize>,
        scale: &Self::Scale,
        epsilon: f32,
    ) -> Result<Self::Matrix>;

    /// `factor * x`.
    fn scaled(&self, x: Self::Matrix, factor: f32) -> Result<Self::Matrix>;

    /// `x W^T`.
    fn linear(&self, x: &Self::Operand, weight: &Self::Weight) -> Result<Self::Matrix>;

    /// `residual + x W^T`.
    fn linear_add(
        &self,
        x: &Self::Operand,
        weight: &Self::Weight,
        residual: Self::Matrix,
    ) -> Result<Self::Matrix>;

    /// `silu(x W_gate^T) * x W_up^T` (SwiGLU, Shazeer 2020).
    fn gated_linear(&self, x: &Self::Operand, weight: &Self::GatedWeight) -> Result<Self::Operand>;

    /// `gelu(x W_gate^T) * x W_up^T` (GeGLU, Shazeer 2020).
    fn gelu_gated_linear(
        &self,
        x: &Self::Operand,
        weight: &Self::GatedWeight,
        gelu: Gelu,
    ) -> Result<Self::Operand>;

    /// `gelu(x W^T)`.
    fn gelu_linear(
        &self,
        x: &Self::Operand,
        weight: &Self::Weight,
        gelu: Gelu,
    ) -> Result<Self::Operand>;

    /// Takes every row from one attention to the next: `work` gets causal grouped-query attention of
    /// `previous` (`None` before the first layer), `[rows, output_columns]`, and the residual stream, and
    /// gives the new residual stream and what the next attention reads: `[q | k | v]`
    /// `[rows, qkv_columns]` where all rows are queries, else `[k | v]` `[rows, key_value_columns]`, both before
    /// their rotary embedding. `shape` is that of the next attention; those of one layout may differ in all but their
    /// heads.
    ///
    /// `work` may be called once for all rows, or for blocks of them at the same time, with a device of its
    /// own: it must use that one, and treat every row alike.
    fn next_projection(
        &self,
        x: Self::Matrix,
        previous: Option<&Self::Projection>,
        layout: &Self::Layout,
        shape: &AttentionShape,
        queries: QueryRows,
        work: impl Fn(
            &Self,
            Option<Self::Operand>,
            Self::Matrix,
        ) -> Result<(Self::Matrix, Self::Matrix)>
        + Sync,
    ) -> Result<(Self::Matrix, Self::Projection)>;

    /// Attention of each sequence's last row only, over keys and values that [`DecoderOps::next_projection`] gave:
    /// queries `[sequences, output_columns]` before their rotary embedding, to the same shape.
    fn last_attention(
        &self,
        queries: Self::Matrix,
        projection: &Self::Projection,
        layout: &Self::Layout,
    ) -> Result<Self::Operand>;

    /// The given rows, in the given order.
    fn gather(&self, x: &Self::Matrix, rows: &[usize]) -> Result<Self::Matrix>;
}

/// What training needs of a device beside [`DecoderOps`]: a layer by itself, so that it can be computed again.
pub trait TrainingOps: DecoderOps {
    /// Attention of every row, of `[q | k | v]` before their rotary embedding: `[rows, qkv_columns]` to
    /// `[rows, output_columns]`.
    ///
    /// # Errors
    /// A failing device.
    fn attention(
        &self,
        projected: &Self::Matrix,
        layout: &Self::Layout,
        shape: &AttentionShape,
    ) -> Result<Self::Operand>;
}
